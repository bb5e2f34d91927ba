package main

import (
	"cmp"
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/blixard/blixard"
)

func (a *app) nodeCommand() *cobra.Command {
	return a.group("node", "Hosts that run a monitor", a.nodeListCommand(), a.nodeShowCommand())
}

// nodeNoun is what lists know of nodes.
func nodeNoun() *noun[blixard.Node] {
	return &noun[blixard.Node]{
		fields: []field[blixard.Node]{
			{"name", "NODE", func(n *blixard.Node) value { return text(n.Name) }},
			{"id", "ID", func(n *blixard.Node) value { return text(n.ID) }},
			{"status", "STATUS", nodeStatus},
			{"vms", "VMS", func(n *blixard.Node) value { return number(n.VMs) }},
			{"version", "VERSION", func(n *blixard.Node) value { return text(n.Version) }},
			{"systemd_version", "SYSTEMD", func(n *blixard.Node) value { return text(n.SystemdVersion) }},
			{"managers", "MANAGERS", nodeManagers},
			{"started_at", "STARTED", func(n *blixard.Node) value { return moment(n.StartedAt) }},
			{"last_seen", "LAST SEEN", func(n *blixard.Node) value { return moment(n.LastSeen) }},
			{"age_seconds", "AGE", func(n *blixard.Node) value { return ageOf(n.AgeSeconds) }},
		},
		table: []string{"name", "status", "vms", "version", "systemd_version", "managers", "age_seconds"},
		wide:  []string{"name", "id", "status", "vms", "version", "systemd_version", "managers", "started_at", "last_seen", "age_seconds"},
		id:    func(n *blixard.Node) string { return n.Name },
		order: func(a, b *blixard.Node) int {
			return cmp.Or(cmp.Compare(nodeRank(b.Status), nodeRank(a.Status)), cmp.Compare(a.Name, b.Name))
		},
	}
}

// nodeRank orders statuses, worst highest.
func nodeRank(s blixard.NodeStatus) int {
	switch s {
	case blixard.NodeReady:
		return 0
	case blixard.NodeDegraded:
		return 1
	default:
		return 2
	}
}

func nodeStatus(n *blixard.Node) value {
	return text(string(n.Status)).in([]tone{good, warn, bad}[nodeRank(n.Status)])
}

// nodeManagers names the managers, those that are away with a mark.
func nodeManagers(n *blixard.Node) value {
	var names []string
	for _, m := range n.Managers {
		if m.Connected {
			names = append(names, m.Name)
		} else {
			names = append(names, m.Name+" (away)")
		}
	}
	return text(strings.Join(names, ", "))
}

// completeNodes offers the nodes' names if the daemon answers at once.
func (a *app) completeNodes(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	client, err := a.dial(nil)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer client.Close()
	l, err := client.Nodes(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []cobra.Completion
	for _, n := range l.Items {
		if strings.HasPrefix(n.Name, prefix) && n.Name == safe(n.Name) {
			out = append(out, n.Name)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
