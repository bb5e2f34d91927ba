package metrics

import (
	"slices"

	"github.com/blixard/blixard"
)

// memberStates are the states of a member.
var memberStates = []string{"running", "starting", "down", "hung"}

var memberLabels = labels("state", memberStates)

// nodeFamilies writes the series of the node that answers and of its store.
func (p *page) nodeFamilies(c *blixard.ClusterStatus, vms int) {
	i := slices.IndexFunc(c.Nodes, func(n blixard.Node) bool { return n.Name == c.Node })
	if i >= 0 {
		n := &c.Nodes[i]
		p.family("blixard_node_info", info, "What the node is; always 1.")
		p.sample("blixard_node_info", 1, label("node", n.Name), label("id", n.ID), label("systemd_version", n.SystemdVersion))
		p.family("blixard_manager_connected", gauge, "Whether a service manager can be asked.")
		for j := range n.Managers {
			p.sample("blixard_manager_connected", truth(n.Managers[j].Connected), label("manager", n.Managers[j].Name))
		}
		p.family("blixard_manager_last_listing_timestamp_seconds", gauge, "When a manager's units were last listed whole; absent while they never were.")
		for j := range n.Managers {
			if at := n.Managers[j].LastListing; at != nil {
				p.sample("blixard_manager_last_listing_timestamp_seconds", unix(*at), label("manager", n.Managers[j].Name))
			}
		}
	}
	p.family("blixard_vms", gauge, "VMs that the node shows.")
	p.sample("blixard_vms", float64(vms))

	s := &c.Store
	p.family("blixard_store_healthy", gauge, "Whether the store acknowledges writes.")
	p.sample("blixard_store_healthy", truth(s.Healthy))
	p.family("blixard_store_revision", gauge, "The store's revision that this node has in memory; absent while it has none.")
	if s.Revision > 0 {
		p.sample("blixard_store_revision", float64(s.Revision))
	}
	p.family("blixard_store_pending_commands", gauge, "Commands that wait to be written.")
	p.sample("blixard_store_pending_commands", float64(s.Pending))
	p.family("blixard_store_buffered_events", gauge, "Events that wait to be written.")
	p.sample("blixard_store_buffered_events", float64(s.Buffered))

	member := func(name, kind, help string, sample func(m *blixard.MemberStatus, own []byte)) {
		p.family(name, kind, help)
		for j := range s.Members {
			sample(&s.Members[j], label("member", s.Members[j].Node))
		}
	}
	member("blixard_store_member_state", gauge, "1 for the state that a member of the store is in, 0 for the others.", func(m *blixard.MemberStatus, own []byte) {
		p.set("blixard_store_member_state", slices.Index(memberStates, m.State), memberLabels, own)
	})
	member("blixard_store_member_leader", gauge, "Whether a member leads the store.", func(m *blixard.MemberStatus, own []byte) {
		p.sample("blixard_store_member_leader", truth(m.Leader), own)
	})
	member("blixard_store_member_restarts_total", counter, "How often the daemon had to start a member anew.", func(m *blixard.MemberStatus, own []byte) {
		p.sample("blixard_store_member_restarts_total", float64(m.Restarts), own)
	})
	member("blixard_store_member_database_bytes", gauge, "Size of a member's database; absent while it is not known.", func(m *blixard.MemberStatus, own []byte) {
		if m.DatabaseBytes > 0 {
			p.sample("blixard_store_member_database_bytes", float64(m.DatabaseBytes), own)
		}
	})
	member("blixard_store_member_quota_bytes", gauge, "Bound on the size of a member's database; absent while it is not known.", func(m *blixard.MemberStatus, own []byte) {
		if m.QuotaBytes > 0 {
			p.sample("blixard_store_member_quota_bytes", float64(m.QuotaBytes), own)
		}
	})
}
