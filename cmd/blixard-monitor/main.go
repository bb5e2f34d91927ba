// Command blixard-monitor watches the microVMs of its host, keeps what it sees
// in the replicated store, and answers for it on a Unix socket.
//
// It acts on nothing: it starts, stops and changes no unit. Started without
// arguments it runs until it is told to end; SIGHUP has it read its
// configuration again.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/blixard/blixard/config"
	"github.com/blixard/blixard/store"
)

// version and commit are set when it is built.
var (
	version = "dev"
	commit  = ""
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// usageError is an error in how the command was called or configured.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// run runs the command and returns its exit code: 0, 1 for an error, 2 for one
// in the arguments or the configuration.
func run(args []string, stdout, stderr io.Writer) int {
	// A journal that takes no more lines must not end the daemon: without this a
	// write to a broken standard error does.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := command(stdout, stderr)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintln(stderr, "blixard-monitor:", err)
	if _, ok := errors.AsType[usageError](err); ok {
		return 2
	}
	return 1
}

func command(stdout, stderr io.Writer) *cobra.Command {
	var file string
	flags := map[string]*string{}
	root := &cobra.Command{
		Use:           "blixard-monitor",
		Short:         "watch the microVMs of this host",
		Long:          "blixard-monitor watches the microVMs of this host, keeps what it sees in the\nreplicated store, and answers for it on a Unix socket. Each flag overrides a key\nof the configuration; docs/configuration.md has them all.",
		Args:          noArguments,
		SilenceErrors: true, SilenceUsage: true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		RunE: func(cmd *cobra.Command, _ []string) error {
			given := map[string]string{}
			for key, value := range flags {
				if cmd.Flags().Changed(flagName(key)) {
					given[key] = *value
				}
			}
			load := func() (config.Config, error) {
				cfg, _, err := config.Load(config.LoadOptions{File: file, Environment: config.OfProcess(), Flags: given})
				if err != nil {
					return cfg, fmt.Errorf("configuration: %w", err)
				}
				return cfg, nil
			}
			cfg, err := load()
			if err != nil {
				return usageError{err}
			}
			return serve(cmd.Context(), cfg, load, stderr)
		},
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.Flags().StringVar(&file, "config", "", "configuration `FILE`")
	for _, key := range []struct{ name, value, usage string }{
		{"data_dir", "DIR", "where identity and store are kept"},
		{"interval", "DUR", "time between complete listings, such as 30s"},
		{"node_name", "NAME", "name of this node"},
	} {
		flags[key.name] = root.Flags().String(flagName(key.name), "", "`"+key.value+"`: "+key.usage)
	}
	root.AddCommand(versionCommand(stdout), memberCommand(stderr))
	return root
}

func noArguments(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unexpected argument %q; see blixard-monitor --help", args[0])}
	}
	return nil
}

// flagName is the flag that overrides a key.
func flagName(key string) string {
	for _, k := range config.Keys() {
		if k.Name == key {
			return k.Flag()
		}
	}
	panic("no key " + key)
}

func versionCommand(stdout io.Writer) *cobra.Command {
	return &cobra.Command{Use: "version", Short: "tell the version", Args: noArguments,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(stdout, "blixard-monitor", fullVersion())
			return err
		}}
}

// fullVersion is the version with the commit it was built from.
func fullVersion() string {
	if commit == "" {
		return version
	}
	return version + " (" + commit + ")"
}

// memberCommand runs a member of the store. The daemon calls it for its child;
// it ends with its standard input.
func memberCommand(stderr io.Writer) *cobra.Command {
	var cfg store.MemberConfig
	cmd := &cobra.Command{Use: "member", Hidden: true, Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := slog.New(slog.NewTextHandler(stderr, nil))
			return store.RunMember(cmd.Context(), cfg, log)
		}}
	cfg.AddFlags(cmd.Flags())
	return cmd
}
