package main

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/api"
)

// versions is what blixard version tells.
type versions struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Go      string `json:"go"`
	// Daemon is nil when it did not answer; DaemonError says why.
	Daemon      *api.Version `json:"daemon,omitempty"`
	DaemonError string       `json:"daemon_error,omitempty"`
}

// daemonTime is how long to wait for the daemon's version.
const daemonTime = time.Second

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the versions of this program and of the daemon",
		Args:  args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			format, err := a.format("table", "wide", "json", "yaml")
			if err != nil {
				return err
			}
			v := versions{Version: version, Commit: commit, Go: runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH}
			client, err := a.dial(nil)
			if err != nil {
				return err
			}
			defer client.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), min(daemonTime, a.timeout))
			defer cancel()
			if d, err := client.Version(ctx); err == nil {
				v.Daemon = &d
			} else {
				v.DaemonError = err.Error()
			}
			return a.show(format, v, func(p *page) { p.versions(&v) }, nil)
		},
	}
}

func (p *page) versions(v *versions) {
	c := v.Commit
	if c == "" {
		c = "not known"
	}
	fmt.Fprintf(&p.b, "blixard %s (commit %s, %s, API %s)\n", v.Version, c, v.Go, blixard.APIVersion)
	if v.Daemon != nil {
		fmt.Fprintf(&p.b, "blixard-monitor %s (API %s)\n", safe(v.Daemon.Version), safe(v.Daemon.APIVersion))
		return
	}
	fmt.Fprintf(&p.b, "blixard-monitor -  (%s)\n", safe(v.DaemonError))
}
