package store

import (
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/blixard/blixard"
)

// model is what a store must hold, kept in the plainest way: the semantics of
// command.go written a second time.
type model struct {
	records map[blixard.VMID]blixard.VMRecord
	events  []blixard.Event // without their indices
	indices map[string]uint64
}

// apply applies a batch and reports whether it changes anything.
func (m *model) apply(b blixard.Batch) bool {
	before := maps.Clone(m.records)
	for _, c := range b.Commands {
		id := c.Target()
		r, ok := m.records[id]
		removed := r.RemovedAt != nil
		switch c := c.(type) {
		case blixard.RegisterVM:
			if removed && !c.Readopt {
				continue
			}
			if !ok || removed {
				r = blixard.VMRecord{VMID: id, Epoch: r.Epoch + 1, RegisteredAt: c.ObservedAt}
			}
			r.NodeID, r.Unit, r.Status, r.Definition, r.Helpers, r.ObservedAt, r.StaleSince = testNode.ID, c.Unit, c.Status, c.Definition, c.Helpers, c.ObservedAt, nil
		case blixard.UpdateState:
			if !ok || removed || c.Epoch != 0 && c.Epoch != r.Epoch {
				continue
			}
			r.Status, r.Definition, r.Helpers, r.ObservedAt, r.StaleSince = c.Status, c.Definition, c.Helpers, c.ObservedAt, c.StaleSince
		case blixard.UpdateHealth:
			if !ok || removed || c.Epoch != 0 && c.Epoch != r.Epoch {
				continue
			}
			r.Health = &c.Health
		case blixard.RemoveVM:
			if !ok || removed {
				continue
			}
			r.RemovedAt = &c.RemovedAt
		}
		m.records[id] = r
	}
	m.events = append(m.events, b.Events...)
	return len(b.Events) > 0 || !cmp.Equal(before, m.records)
}

var modelRuns atomic.Int64

// A random history of batches, repeats and restarts leaves what the model says.
func TestStore_model(t *testing.T) {
	t.Parallel()
	_, member := memberUp(t)
	names := []string{"a", "c%2F", "ü"}
	gen := func(t *rapid.T) blixard.Command {
		id := vmID(rapid.SampledFrom(names).Draw(t, "vm"))
		id.Manager = rapid.SampledFrom([]string{"system", "user:0"}).Draw(t, "manager")
		at := observedAt.Add(time.Duration(rapid.IntRange(0, 3).Draw(t, "at")) * time.Minute)
		status := blixard.VMStatus{State: rapid.SampledFrom(blixard.VMStates).Draw(t, "state"), MainPID: uint32(rapid.IntRange(0, 2).Draw(t, "pid"))}
		if rapid.Bool().Draw(t, "restarts") {
			n := uint32(rapid.IntRange(0, 1).Draw(t, "n"))
			status.Restarts = &n
		}
		var helpers []blixard.Helper
		for i := range rapid.IntRange(0, 2).Draw(t, "helpers") {
			helpers = append(helpers, blixard.Helper{Name: fmt.Sprint("h", i), State: status.State})
		}
		var stale *time.Time
		if rapid.Bool().Draw(t, "stale") {
			stale = &at
		}
		epoch := uint64(rapid.IntRange(0, 3).Draw(t, "epoch"))
		switch rapid.IntRange(0, 3).Draw(t, "command") {
		case 0:
			return blixard.RegisterVM{ID: id, Unit: "u", Status: status, Helpers: helpers, ObservedAt: at, Readopt: rapid.Bool().Draw(t, "readopt")}
		case 1:
			return blixard.UpdateState{ID: id, Epoch: epoch, Status: status, Helpers: helpers, ObservedAt: at, StaleSince: stale}
		case 2:
			return blixard.UpdateHealth{ID: id, Epoch: epoch, ObservedAt: at, Health: blixard.VMHealth{Status: rapid.SampledFrom(blixard.HealthStatuses).Draw(t, "health")}}
		default:
			return blixard.RemoveVM{ID: id, RemovedAt: at}
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		prefix := fmt.Sprintf("/model%d/", modelRuns.Add(1))
		open := func() (*Store, func()) { return openStore(t, member, func(c *Config) { c.Prefix = prefix }) }
		s, stop := open()
		defer func() { stop() }()
		m := &model{records: map[blixard.VMID]blixard.VMRecord{}, indices: map[string]uint64{}}
		var last []blixard.Batch
		apply := func(b blixard.Batch) uint64 {
			index, err := s.Apply(t.Context(), b)
			if err != nil {
				rt.Fatalf("apply %s: %v", b.ID, err)
			}
			return index
		}
		compare := func() {
			want := slices.SortedFunc(maps.Values(m.records), func(a, b blixard.VMRecord) int { return compareVM(a.VMID, b.VMID) })
			v := s.View()
			if d := cmp.Diff(want, v.VMs(testNode.Name), cmpopts.EquateEmpty(), cmpopts.IgnoreFields(blixard.VMRecord{}, "CommittedAt")); d != "" {
				rt.Fatalf("records: %s", d)
			}
			events := v.Events(blixard.EventQuery{})
			if d := cmp.Diff(m.events, events, cmpopts.EquateEmpty(), cmpopts.IgnoreFields(blixard.Event{}, "CommittedAt", "Index")); d != "" {
				rt.Fatalf("events: %s", d)
			}
			if !slices.IsSortedFunc(events, func(a, b blixard.Event) int { return int(int64(a.Index - b.Index)) }) {
				rt.Fatalf("events out of order: %v", events)
			}
		}
		for i := range rapid.IntRange(1, 25).Draw(rt, "steps") {
			switch rapid.IntRange(0, 9).Draw(rt, "step") {
			case 0:
				stop()
				s, stop = open()
			case 1, 2:
				if len(last) == 0 {
					continue
				}
				b := last[rapid.IntRange(max(0, len(last)-recentBatches), len(last)-1).Draw(rt, "which")]
				if index := apply(b); index != m.indices[b.ID] {
					rt.Fatalf("batch %s again: index %d, was %d", b.ID, index, m.indices[b.ID])
				}
			default:
				b := blixard.Batch{ID: fmt.Sprint("batch", i)}
				for range rapid.IntRange(0, 4).Draw(rt, "commands") {
					b.Commands = append(b.Commands, gen(rt))
				}
				for range rapid.IntRange(0, 2).Draw(rt, "events") {
					b.Events = append(b.Events, event(fmt.Sprint(i), blixard.EventState))
				}
				changes := m.apply(b)
				before := s.Index()
				index := apply(b)
				if changes {
					// It is known when it comes again, and only then.
					last, m.indices[b.ID] = append(last, b), index
				} else if before != 0 && index > max(before, slices.Max(append(slices.Collect(maps.Values(m.indices)), 0))) {
					rt.Fatalf("a batch that changes nothing has index %d", index)
				}
				if rapid.Bool().Draw(rt, "look") {
					if err := s.Wait(t.Context(), index); err != nil {
						rt.Fatal(err)
					}
					if _, err := s.Loaded(t.Context()); err != nil {
						rt.Fatal(err)
					}
					compare()
				}
			}
		}
		for _, b := range last[max(0, len(last)-1):] {
			if err := s.Wait(t.Context(), m.indices[b.ID]); err != nil {
				rt.Fatal(err)
			}
		}
		if _, err := s.Loaded(t.Context()); err != nil {
			rt.Fatal(err)
		}
		compare()
	})
}
