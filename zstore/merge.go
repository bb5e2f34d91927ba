package store

import (
	"time"

	"github.com/blixard/blixard"
)

// merge applies a command to the record that is there, nil for none, and
// returns the record after it. changed is false when nothing is to be written.
// It is the meaning of the commands, as command.go gives it.
func merge(old *blixard.VMRecord, c blixard.Command, nodeID string) (rec *blixard.VMRecord, changed bool) {
	switch c := c.(type) {
	case blixard.RegisterVM:
		return register(old, c, nodeID)
	case blixard.UpdateState:
		if !applies(old, c.Epoch) || old.Status.Equal(c.Status) && old.Definition == c.Definition &&
			equalHelpers(old.Helpers, c.Helpers) && equalTime(old.StaleSince, c.StaleSince) {
			return old, false
		}
		r := *old
		r.Status, r.Definition, r.Helpers = c.Status, c.Definition, c.Helpers
		r.ObservedAt, r.StaleSince = c.ObservedAt, c.StaleSince
		return &r, true
	case blixard.UpdateHealth:
		if !applies(old, c.Epoch) || c.Health.Equal(old.Health) {
			return old, false
		}
		r := *old
		h := c.Health
		r.Health, r.ObservedAt = &h, c.ObservedAt
		return &r, true
	case blixard.RemoveVM:
		if old == nil || old.RemovedAt != nil {
			return old, false
		}
		r := *old
		at := c.RemovedAt
		r.RemovedAt = &at
		return &r, true
	}
	return old, false
}

// applies reports whether an update for an epoch is for the record.
func applies(old *blixard.VMRecord, epoch uint64) bool {
	return old != nil && old.RemovedAt == nil && (epoch == 0 || epoch == old.Epoch)
}

func register(old *blixard.VMRecord, c blixard.RegisterVM, nodeID string) (*blixard.VMRecord, bool) {
	if old != nil && old.RemovedAt != nil && !c.Readopt {
		return old, false
	}
	r := blixard.VMRecord{VMID: c.ID, NodeID: nodeID, Unit: c.Unit, Epoch: 1, Status: c.Status,
		Definition: c.Definition, Helpers: c.Helpers, RegisteredAt: c.ObservedAt, ObservedAt: c.ObservedAt}
	if old == nil {
		return &r, true
	}
	r.Epoch = old.Epoch
	if old.RemovedAt != nil {
		r.Epoch++
		return &r, true
	}
	r.RegisteredAt, r.Health = old.RegisteredAt, old.Health
	if old.Unit == r.Unit && old.StaleSince == nil && old.Status.Equal(r.Status) && old.Definition == r.Definition && equalHelpers(old.Helpers, r.Helpers) {
		return old, false
	}
	return &r, true
}

func equalHelpers(a, b []blixard.Helper) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func equalTime(a, b *time.Time) bool { return a == b || a != nil && b != nil && a.Equal(*b) }
