package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/api"
)

func (a *app) vmRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "remove VM",
		Aliases: []string{"rm"},
		Short:   "Remove a VM from the records",
		Long: `Remove a VM from the records. It does not touch the VM: one that runs is shown as
removed until it stops, and is not recorded again by being seen. Its events stay.
blixard vm adopt VM takes it up again.`,
		Args:              args(1, 1, "VM"),
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeVM(cmd.Context(), args[0], "removed", (*api.Client).RemoveVM)
		},
	}
}

func (a *app) vmAdoptCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "adopt VM",
		Short: "Record a VM that is there but not recorded, or was removed",
		Args:  args(1, 1, "VM"),
		// What is shown can be adopted; what is not shown has no name to offer.
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeVM(cmd.Context(), args[0], "adopted", (*api.Client).AdoptVM)
		},
	}
}

// changeVM changes one VM's record and says so.
func (a *app) changeVM(ctx context.Context, name, done string, change func(*api.Client, context.Context, blixard.VMRef) (blixard.List[blixard.VM], error)) error {
	format, err := a.format("table", "wide", "json", "yaml", "name")
	if err != nil {
		return err
	}
	ref, err := vmRef(name)
	if err != nil {
		return err
	}
	client, err := a.dial(nil)
	if err != nil {
		return err
	}
	defer client.Close()
	l, err := change(client, ctx, ref)
	if err != nil {
		return err
	}
	var b []byte
	switch format {
	case "json":
		b, err = encoded(l)
	case "yaml":
		b, err = encodedYAML(l)
	default:
		for i := range l.Items {
			if format == "name" {
				b = fmt.Appendf(b, "%s\n", safe(l.Items[i].ID))
				continue
			}
			b = fmt.Appendf(b, "%s %s\n", done, safe(l.Items[i].ID))
			if v := &l.Items[i]; v.RemovedAt != nil {
				a.warnf("%s is %s: it is shown as removed until it stops", safe(v.ID), v.State)
			}
		}
	}
	if err != nil {
		return err
	}
	return a.print(b)
}
