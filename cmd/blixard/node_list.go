package main

import "github.com/spf13/cobra"

func (a *app) nodeListCommand() *cobra.Command {
	var flags listFlags
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the nodes, worst first",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, err := newView(a, nodeNoun(), &flags)
			if err != nil {
				return err
			}
			client, err := a.dial(nil)
			if err != nil {
				return err
			}
			defer client.Close()
			l, err := client.Nodes(cmd.Context())
			if err != nil {
				return err
			}
			l.Items = v.choose(l.Items)
			return printList(a, v, l)
		},
	}
	flags.register(cmd, nodeNoun().keys())
	return cmd
}
