package store

import (
	"testing"

	"github.com/blixard/blixard"
)

func TestStore_Apply(t *testing.T) {
	_, member := memberUp(t)
	s, _ := openStore(t, member, nil)
	first := mustApply(t, s, blixard.Batch{ID: "a", Commands: []blixard.Command{register("web", blixard.StateRunning)},
		Events: []blixard.Event{event("web", blixard.EventRegistered), event("web", blixard.EventState)}})
	if again := mustApply(t, s, blixard.Batch{ID: "a", Events: []blixard.Event{event("web", blixard.EventState)}}); again != first {
		t.Errorf("repeated: index %d, want %d", again, first)
	}
	r, ok := s.View().VM(vmID("web"))
	if !ok || r.Epoch != 1 || r.Status.State != blixard.StateRunning || r.NodeID != testNode.ID {
		t.Errorf("record %+v", r)
	}
	events, err := s.Events(blixard.EventQuery{})
	if err != nil || len(events) != 2 {
		t.Fatalf("events %v, %v", events, err)
	}
	if events[1].Index != events[0].Index+1 || events[1].Index > first {
		t.Errorf("indices %d, %d; batch %d", events[0].Index, events[1].Index, first)
	}
}
