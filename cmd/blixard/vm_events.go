package main

import "github.com/spf13/cobra"

func (a *app) vmEventsCommand() *cobra.Command {
	var flags eventFlags
	cmd := &cobra.Command{
		Use:               "events VM",
		Short:             "Show what happened to one VM, oldest first",
		Long:              "Show what happened to one VM, oldest first." + eventsLong,
		Args:              args(1, 1, "VM"),
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := vmRef(args[0])
			if err != nil {
				return err
			}
			return a.events(cmd.Context(), ref, &flags)
		},
	}
	flags.register(cmd)
	return cmd
}
