package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/blixard/blixard"
)

func (a *app) clusterCommand() *cobra.Command {
	return a.group("cluster", "The replicated store and the nodes together", a.clusterStatusCommand())
}

// The exit codes of a verdict.
const (
	exitDegraded = exitCode(10)
	exitCritical = exitCode(11)
)

func (a *app) clusterStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show whether the store and the nodes are well",
		Long: `Show whether the store and the nodes are well. The exit code is 0 when they are, 10
when something is degraded or not known, and 11 when it is critical.`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			format, err := a.format("table", "wide", "json", "yaml")
			if err != nil {
				return err
			}
			client, err := a.dial(nil)
			if err != nil {
				return err
			}
			defer client.Close()
			c, err := client.Cluster(cmd.Context())
			if err != nil {
				return err
			}
			if err := a.show(format, c, func(p *page) { p.cluster(&c) }, nil); err != nil {
				return err
			}
			switch c.Status {
			case blixard.Healthy:
				return nil
			case blixard.Critical:
				return exitCritical
			}
			return exitDegraded
		},
	}
}

func (p *page) cluster(c *blixard.ClusterStatus) {
	p.b.WriteString("Cluster " + safe(cmp.Or(c.Store.ClusterID, "-")) + "  ")
	status := healthOf(c.Status)
	paint(&p.b, safe(status.text), status.tone, p.color)
	leader := "no leader known"
	for _, m := range c.Store.Members {
		if m.Leader {
			leader = fmt.Sprintf("leader %s (term %d)", safe(m.Node), m.Term)
		}
	}
	p.b.WriteString("  " + leader)
	if c.Store.Revision > 0 {
		fmt.Fprintf(&p.b, "  revision %d", c.Store.Revision)
	}
	p.b.WriteByte('\n')
	if c.Store.Pending > 0 || c.Store.Buffered > 0 {
		fmt.Fprintf(&p.b, "%s and %s wait to be written\n", plural(c.Store.Pending, "command"), plural(c.Store.Buffered, "event"))
	}

	t := newTable("NODE", "STATUS", "VERSION", "VMS", "MEMBER", "STORE", "DB", "AGE")
	members := slices.Clone(c.Store.Members)
	for i := range c.Nodes {
		n := &c.Nodes[i]
		var m blixard.MemberStatus
		if j := slices.IndexFunc(members, func(m blixard.MemberStatus) bool { return m.Node == n.Name }); j >= 0 {
			m = members[j]
			members = slices.Delete(members, j, j+1)
		}
		t.add([]value{text(n.Name), nodeStatus(n), text(n.Version), number(n.VMs), memberState(m), text(m.Version), database(m), ageOf(n.AgeSeconds)})
	}
	for _, m := range members {
		t.add([]value{text(m.Node), {}, {}, {}, memberState(m), text(m.Version), database(m), {}})
	}
	p.b.Write(t.bytes(p.color))

	problems := slices.Clone(c.Problems)
	if !c.Store.Healthy {
		reason := "store: " + cmp.Or(c.Store.Reason, "it acknowledges no writes")
		told := func(s string) bool { return c.Store.Reason != "" && strings.Contains(s, c.Store.Reason) }
		if !slices.ContainsFunc(problems, told) {
			problems = append(problems, reason)
		}
	}
	if len(problems) > 0 {
		p.section("Problems")
		p.lines(problems)
	}
}

func memberState(m blixard.MemberStatus) value {
	out := text(m.State)
	switch m.State {
	case "running":
		out.tone = good
	case "starting":
		out.tone = warn
	default:
		out.tone = bad
	}
	if m.Reason != "" {
		out.text += " (" + m.Reason + ")"
	}
	if m.Restarts > 0 {
		out.text += ", " + plural(m.Restarts, "restart")
	}
	return out
}

// database is the size of a member's database and its bound.
func database(m blixard.MemberStatus) value {
	switch {
	case m.DatabaseBytes == 0:
		return value{}
	case m.QuotaBytes == 0:
		return text(size(m.DatabaseBytes))
	}
	return text(size(m.DatabaseBytes) + "/" + size(m.QuotaBytes))
}
