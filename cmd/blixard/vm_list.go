package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/blixard/blixard"
)

func (a *app) vmListCommand() *cobra.Command {
	var flags listFlags
	var watch bool
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the VMs, worst first",
		Long: `List the VMs of every node, worst first.

AGE is how long ago the host last confirmed what the row says. "-" is a value
that is not known; blixard vm show VM says why.

With --watch a terminal shows the list as it changes; a pipe, or -o json, gets
one JSON object a line: every VM, {"synced":true}, and then each VM as it
changes. Both go on when the daemon comes back after a restart.`,
		Example: `  blixard vm list --filter state!=running
  blixard vm list --columns name,node,result,since --sort -since
  blixard vm list -o name --filter 'name=web-*'`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, err := newView(a, vmNoun(), &flags)
			if err != nil {
				return err
			}
			if watch {
				return a.watchVMs(cmd.Context(), v)
			}
			return a.listVMs(cmd.Context(), v)
		},
	}
	flags.register(cmd, vmNoun().keys())
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on showing changes")
	return cmd
}

func (a *app) listVMs(ctx context.Context, v *view[blixard.VM]) error {
	client, err := a.dial(nil)
	if err != nil {
		return err
	}
	defer client.Close()
	l, err := client.VMs(ctx)
	if err != nil {
		return err
	}
	all := len(l.Items)
	l.Items = v.choose(l.Items)
	if err := printList(a, v, l); err != nil {
		return err
	}
	if v.human() && !a.quiet {
		_, err = a.stderr.Write([]byte(vmSummary(l.Items, all) + "\n"))
	}
	return err
}

// printList prints a list, its items chosen already, and on stderr why it may
// be incomplete.
func printList[T any](a *app, v *view[T], l blixard.List[T]) error {
	b, err := v.render(l)
	if err != nil {
		return err
	}
	if err := a.print(b); err != nil {
		return err
	}
	if v.format != "json" && v.format != "yaml" {
		a.warnProblems(l.Problems)
	}
	return nil
}

// warnProblems tells why an answer may be incomplete or old.
func (a *app) warnProblems(problems []string) {
	for _, p := range problems {
		a.warnf("warning: %s", safe(p))
	}
}
