package store

import (
	"bytes"
	"encoding/json"
	"time"

	"github.com/blixard/blixard"
)

// merge applies a command to a record, nil for none, and returns the record
// after it: old itself if the command does not apply, else a new one. It follows
// the semantics that the commands document.
func merge(old *blixard.VMRecord, c blixard.Command, nodeID string) *blixard.VMRecord {
	var r blixard.VMRecord
	if old != nil {
		r = *old
	}
	there := old != nil && old.RemovedAt == nil
	switch c := c.(type) {
	case blixard.RegisterVM:
		switch {
		case old == nil:
			r = blixard.VMRecord{VMID: c.ID, Epoch: 1, RegisteredAt: stamp(c.ObservedAt)}
		case there:
		case c.Readopt:
			r = blixard.VMRecord{VMID: c.ID, Epoch: old.Epoch + 1, RegisteredAt: stamp(c.ObservedAt)}
		default:
			return old
		}
		r.NodeID, r.Unit = nodeID, c.Unit
		setState(&r, c.Status, c.Definition, c.Helpers, c.ObservedAt, nil)
	case blixard.UpdateState:
		if !there || c.Epoch != 0 && c.Epoch != old.Epoch {
			return old
		}
		r.NodeID = nodeID
		setState(&r, c.Status, c.Definition, c.Helpers, c.ObservedAt, c.StaleSince)
	case blixard.UpdateHealth:
		if !there || c.Epoch != 0 && c.Epoch != old.Epoch {
			return old
		}
		// ObservedAt stays: it is of the state, which this says nothing of.
		h := c.Health
		h.Checks = append([]blixard.HealthCheck(nil), h.Checks...)
		for i := range h.Checks {
			h.Checks[i].Since = stamp(h.Checks[i].Since)
		}
		r.Health = &h
	case blixard.RemoveVM:
		if !there {
			return old
		}
		r.RemovedAt = stampPtr(&c.RemovedAt)
	}
	return &r
}

// settle is the record to write after commands made next of old, nil for none:
// nil when nothing changed. committed is when it is proposed.
func settle(old, next *blixard.VMRecord, committed time.Time) *blixard.VMRecord {
	if next == old || old != nil && sameRecord(old, next) {
		return nil
	}
	r := *next
	r.CommittedAt = stamp(committed)
	return &r
}

func setState(r *blixard.VMRecord, s blixard.VMStatus, d blixard.VMDefinition, h []blixard.Helper, observed time.Time, stale *time.Time) {
	s.Since = stampPtr(s.Since)
	r.Status, r.Definition, r.ObservedAt, r.StaleSince = s, d, stamp(observed), stampPtr(stale)
	r.Helpers = append([]blixard.Helper(nil), h...)
}

// stamp is a time as it is after it was stored.
func stamp(t time.Time) time.Time { return t.Round(0).UTC() }

func stampPtr(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	u := stamp(*t)
	return &u
}

// sameRecord reports whether two records say the same, whenever they were
// proposed. What is stored is compared, so nothing can be forgotten here.
func sameRecord(a, b *blixard.VMRecord) bool {
	c := *b
	c.CommittedAt = a.CommittedAt
	x, errA := json.Marshal(a)
	y, errB := json.Marshal(&c)
	return errA == nil && errB == nil && bytes.Equal(x, y)
}
