package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/config"
)

func (a *app) configCommand() *cobra.Command {
	return a.group("config", "The daemon's configuration", a.configShowCommand(), a.configValidateCommand())
}

// loadConfig reads the configuration as a daemon of the same user would.
func loadConfig(file string) (config.Config, config.Sources, error) {
	cfg, sources, err := config.Load(config.LoadOptions{File: file, Environment: config.OfProcess()})
	if err != nil {
		return cfg, nil, &faults{strings.Split(err.Error(), "\n")}
	}
	return cfg, sources, nil
}

// faults is an error with several lines. Each is told on its own.
type faults struct{ lines []string }

func (f *faults) Error() string { return strings.Join(f.lines, "\n") }

// Unwrap makes it an error of whoever wrote the configuration.
func (f *faults) Unwrap() error {
	return blixard.Errorf(blixard.CodeInvalid, "configuration: %s", f.Error())
}

func configFlag(cmd *cobra.Command) *string {
	file := cmd.Flags().String("config", "", "configuration `FILE` (default $BLIXARD_CONFIG, else the daemon's)")
	must(cmd.MarkFlagFilename("config", "toml"))
	return file
}
