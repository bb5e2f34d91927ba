package main

import (
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/blixard/blixard"
)

func (a *app) nodeShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "show NODE",
		Short:             "Show everything known of a node, by name or id",
		Args:              args(1, 1, "node"),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			format, err := a.format("table", "wide", "json", "yaml")
			if err != nil {
				return err
			}
			if args[0] == "" || strings.Contains(args[0], "/") {
				return usagef("%q is no node's name", args[0]).WithHint("blixard node list")
			}
			client, err := a.dial(nil)
			if err != nil {
				return err
			}
			defer client.Close()
			l, err := client.Node(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.show(format, l, func(p *page) {
				for i := range l.Items {
					p.node(&l.Items[i], time.Now())
				}
			}, nil)
		},
	}
}

func (p *page) node(n *blixard.Node, now time.Time) {
	p.why = nil
	p.row("Node", "", text(n.Name))
	p.row("ID", "", text(n.ID))
	p.row("Status", "", nodeStatus(n))
	seen := ageOf(n.AgeSeconds)
	if seen.here {
		seen.text += " ago"
	}
	p.row("Last seen", "", seen)
	p.row("VMs", "", number(n.VMs))
	p.row("Monitor", "", text(n.Version), ago(now, n.StartedAt))
	p.row("systemd", "", text(n.SystemdVersion))
	if len(n.Problems) > 0 {
		p.section("Problems")
		p.lines(n.Problems)
	}
	if len(n.Managers) > 0 {
		p.section("Managers")
		t := newTable("MANAGER", "CONNECTED", "LAST LISTING", "REASON", "HINT")
		for _, m := range n.Managers {
			t.add([]value{text(m.Name), yesNo(&m.Connected), moment(m.LastListing), text(m.Reason), text(m.Hint)})
		}
		p.table(t)
	}
}

// lines writes texts, one a line, indented.
func (p *page) lines(texts []string) {
	for _, s := range texts {
		p.b.WriteString("  " + safe(s) + "\n")
	}
}
