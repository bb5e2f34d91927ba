package main

import "github.com/spf13/cobra"

func (a *app) configValidateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "validate",
		Short: "Check the configuration without using it",
		Long: `Check the configuration without using it. Every fault is told with its file and line,
and the exit code is 2.`,
		Args: args(0, 0, ""),
	}
	file := configFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		if _, err := a.format("table"); err != nil {
			return err
		}
		if _, _, err := loadConfig(*file); err != nil {
			return err
		}
		return a.print([]byte("the configuration is valid\n"))
	}
	return cmd
}
