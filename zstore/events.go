package store

import (
	"context"
	"iter"
	"time"

	"github.com/blixard/blixard"
)

const (
	// keepAlive is the longest silence of a stream of events.
	keepAlive = 15 * time.Second
	// chunk bounds the events that a stream takes from memory at once.
	chunk = 1000
)

// matches reports whether an event is of what an address selects.
func matches(e *blixard.Event, ref blixard.VMRef) bool {
	if ref == (blixard.VMRef{}) {
		return true
	}
	return e.VM != "" && ref.Match(blixard.VMID{Node: e.Node, Manager: e.Manager, Name: e.VM})
}

// Events lists kept events from memory, oldest first: the newest that a query's
// limit allows.
func (s *Store) Events(q blixard.EventQuery) ([]blixard.Event, error) {
	if q.Limit < 0 || q.Limit > blixard.MaxEvents {
		return nil, blixard.Errorf(blixard.CodeInvalid, "limit %d: 0 to %d", q.Limit, blixard.MaxEvents)
	}
	if q.Limit == 0 {
		q.Limit = blixard.MaxEvents
	}
	all, _, _, _, _ := s.mirror.after(q.After, 0)
	out := all[:0]
	for i := range all {
		if matches(&all[i], q.VM) {
			out = append(out, all[i])
		}
	}
	if n := len(out) - q.Limit; n > 0 {
		out = out[n:]
	}
	return out, nil
}

// FollowEvents streams every event after q.After, or from now on when that is 0,
// each once and in order. A frame with Gap comes where events are no longer
// kept, and where the store turned out to be another one. After silence comes a
// frame with the index alone. It ends with ctx.
func (s *Store) FollowEvents(ctx context.Context, q blixard.EventQuery) iter.Seq2[blixard.EventFrame, error] {
	return func(yield func(blixard.EventFrame, error) bool) {
		index := q.After
		_, rev, changed, _, life := s.mirror.after(index, 1)
		for rev == 0 {
			select {
			case <-ctx.Done():
				yield(blixard.EventFrame{}, blixard.Errorf(blixard.CodeUnavailable, "the stream ended"))
				return
			case <-changed:
				_, rev, changed, _, life = s.mirror.after(index, 1)
			}
		}
		if index == 0 {
			index = blixard.Index(rev, blixard.IndexScale-1)
		}
		if index > blixard.Index(rev, blixard.IndexScale-1) {
			// Of another life of the store, before its data was lost.
			index = 0
			if !yield(blixard.EventFrame{Gap: true}, nil) {
				return
			}
		}
		silence := time.NewTicker(keepAlive)
		defer silence.Stop()
		for {
			events, rev, changed, gap, now := s.mirror.after(index, chunk)
			if now != life {
				life, index = now, 0
				if !yield(blixard.EventFrame{Gap: true}, nil) {
					return
				}
				continue
			}
			if gap && !yield(blixard.EventFrame{Gap: true, Index: index}, nil) {
				return
			}
			for i := range events {
				index = events[i].Index
				if matches(&events[i], q.VM) && !yield(blixard.EventFrame{Event: &events[i], Index: index}, nil) {
					return
				}
			}
			if len(events) > 0 {
				continue
			}
			index = max(index, blixard.Index(rev, blixard.IndexScale-1))
			select {
			case <-ctx.Done():
				yield(blixard.EventFrame{}, blixard.Errorf(blixard.CodeUnavailable, "the stream ended"))
				return
			case <-changed:
			case <-silence.C:
				if !yield(blixard.EventFrame{Index: index}, nil) {
					return
				}
			}
		}
	}
}
