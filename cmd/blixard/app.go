package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/api"
)

// systemSocket is where the system's daemon listens.
const systemSocket = "/run/blixard/blixard.sock"

// app is one run of the CLI.
type app struct {
	name   string
	getenv func(string) string
	stdout io.Writer
	stderr io.Writer

	// The global flags.
	addr    string
	output  string
	timeout time.Duration
	noColor bool
	quiet   bool
	verbose bool
}

func newApp(name string, getenv func(string) string, stdout, stderr io.Writer) *app {
	return &app{name: filepath.Base(name), getenv: getenv, stdout: stdout, stderr: stderr}
}

// exitCode is an error that was told already, or is none: only the code is left.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// run runs one command and returns the exit code.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if code, ok := errors.AsType[exitCode](err); ok {
		return int(code)
	}
	a.printError(err)
	return blixard.ErrorCode(err).Exit()
}

// printError prints an error, what it could have meant, and what to do.
func (a *app) printError(err error) {
	if f, ok := errors.AsType[*faults](err); ok {
		for _, line := range f.lines {
			a.errorf("%s", safe(line))
		}
		return
	}
	e, ok := errors.AsType[*blixard.Error](err)
	if !ok {
		a.errorf("%s", safe(err.Error()))
		return
	}
	a.errorf("%s", safe(e.Message))
	for _, c := range e.Candidates {
		fmt.Fprintf(a.stderr, "  %s\n", safe(c))
	}
	if e.Hint == "" && len(e.Candidates) > 0 {
		fmt.Fprintln(a.stderr, "hint: say which of these")
	}
	if e.Hint != "" {
		fmt.Fprintf(a.stderr, "hint: %s\n", safe(e.Hint))
	}
}

// errorf prints a line on stderr under the program's name.
func (a *app) errorf(format string, args ...any) {
	fmt.Fprintf(a.stderr, "blixard: "+format+"\n", args...)
}

// warnf is errorf for what is no error; -q keeps it away.
func (a *app) warnf(format string, args ...any) {
	if !a.quiet {
		a.errorf(format, args...)
	}
}

// usagef is an error of whoever typed the command.
func usagef(format string, args ...any) *blixard.Error {
	return blixard.Errorf(blixard.CodeInvalid, format, args...)
}

func (a *app) root() *cobra.Command {
	root := a.group("blixard", "Watch microVMs that run as systemd services",
		a.vmCommand(), a.eventsCommand(), a.nodeCommand(), a.clusterCommand(), a.configCommand(), a.versionCommand())
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%v", err).WithHint(cmd.CommandPath() + " --help")
	})
	f := root.PersistentFlags()
	f.StringVar(&a.addr, "addr", "", "the daemon's `address`, unix:///PATH (default $BLIXARD_ADDR, else "+systemSocket+" or your own daemon's)")
	f.StringVarP(&a.output, "output", "o", "", "`format`: "+strings.Join(formats, ", ")+" (default $BLIXARD_OUTPUT, else table)")
	f.DurationVar(&a.timeout, "timeout", api.DefaultTimeout, "how long to wait for an answer")
	f.BoolVar(&a.noColor, "no-color", false, "no colours (so do NO_COLOR, a pipe and TERM=dumb)")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "no summaries and warnings")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "say on stderr what is asked of the daemon")
	must(root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp)))
	return root
}

// must is for what cobra refuses only when the program is wrong.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// group is a command that only holds others.
func (a *app) group(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		e := usagef("%s has no command %q", cmd.CommandPath(), args[0])
		cmd.SuggestionsMinimumDistance = 2
		if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
			return e.WithHint("did you mean " + cmd.CommandPath() + " " + s[0] + "?")
		}
		return e.WithHint(cmd.CommandPath() + " --help")
	}
	cmd.AddCommand(commands...)
	return cmd
}

// args checks how many arguments there are.
func args(lo, hi int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < lo:
			return usagef("%s: which %s?", cmd.CommandPath(), what).WithHint(cmd.UseLine())
		case len(args) > hi && hi == 0:
			return usagef("%s takes no arguments, there is %q", cmd.CommandPath(), args[0]).WithHint(cmd.UseLine())
		case len(args) > hi:
			return usagef("%s: one %s at a time, there is also %q", cmd.CommandPath(), what, args[hi]).WithHint(cmd.UseLine())
		}
		return nil
	}
}

// address is where the daemon is: what was asked for, else the system's socket,
// else the user's own when only that is there.
func (a *app) address() string {
	if a.addr != "" {
		return a.addr
	}
	if env := a.getenv("BLIXARD_ADDR"); env != "" {
		return env
	}
	if dir := a.getenv("XDG_RUNTIME_DIR"); dir != "" && os.Getuid() != 0 {
		own := filepath.Join(dir, "blixard", "blixard.sock")
		if !exists(systemSocket) && exists(own) {
			return "unix://" + own
		}
	}
	return "unix://" + systemSocket
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// dial makes the client of the daemon. onStream is as in api.ClientConfig.
func (a *app) dial(onStream func(error)) (*api.Client, error) {
	if a.timeout <= 0 {
		return nil, usagef("--timeout %v: want more than 0", a.timeout)
	}
	cfg := api.ClientConfig{Addr: a.address(), Timeout: a.timeout, OnStream: onStream}
	if a.verbose {
		cfg.Logger = slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelDebug,
			ReplaceAttr: func(_ []string, at slog.Attr) slog.Attr {
				if at.Key == slog.TimeKey || at.Key == slog.LevelKey {
					return slog.Attr{}
				}
				return at
			}}))
	}
	return api.Dial(cfg)
}

// streamNews tells that a stream lost its daemon or goes on.
func (a *app) streamNews(err error) {
	if err == nil {
		a.warnf("connected again")
		return
	}
	a.warnf("%s; trying again", safe(err.Error()))
}

// formats are the formats there are.
var formats = []string{"table", "wide", "json", "yaml", "csv", "name"}

// format is the output's format: what was asked for, and the table where the
// environment's wish is none of those the command has.
func (a *app) format(has ...string) (string, error) {
	asked, from := a.output, "--output"
	if asked == "" {
		asked, from = a.getenv("BLIXARD_OUTPUT"), "BLIXARD_OUTPUT"
	}
	switch {
	case asked == "":
		return "table", nil
	case !slices.Contains(formats, asked):
		return "", usagef("%s: there is no format %q", from, asked).WithHint("there are " + strings.Join(formats, ", "))
	case slices.Contains(has, asked):
		return asked, nil
	case from == "BLIXARD_OUTPUT":
		return "table", nil
	}
	return "", usagef("%s: this command has no format %q", from, asked).WithHint("it has " + strings.Join(has, ", "))
}

// terminal is stdout as a terminal's file descriptor, -1 when it is none.
func (a *app) terminal() int {
	if f, ok := a.stdout.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return int(f.Fd())
	}
	return -1
}

// color says whether stdout gets colours.
func (a *app) color() bool {
	return !a.noColor && a.getenv("NO_COLOR") == "" && a.getenv("TERM") != "dumb" && a.terminal() >= 0
}

// print writes a result.
func (a *app) print(b []byte) error {
	if _, err := a.stdout.Write(b); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}
