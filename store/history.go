package store

import (
	"cmp"
	"slices"

	"github.com/blixard/blixard"
)

// batch is the events of one key, which were written as one transaction.
type batch struct {
	key string
	// rev is the revision of the write, from which the indices follow.
	rev int64
	// events are in order, with their indices. They are missing when the value
	// cannot be read.
	events []blixard.Event
	// bad is why the value cannot be read.
	bad error
}

// last is an index that no event of the batch exceeds and every later one does.
func (b *batch) last() uint64 { return blixard.Index(b.rev, blixard.IndexScale-1) }

// history holds the kept events in order. A history that was published never
// changes: append may write behind what others see, never into it.
type history struct {
	batches []*batch
	// n counts events.
	n int
}

func (h history) append(b *batch) history {
	return history{append(h.batches, b), h.n + len(b.events)}
}

// remove is the history without the batch of a key.
func (h history) remove(key string) history {
	// Trimming takes the oldest, so it is near the front.
	for i, b := range h.batches {
		if b.key != key {
			continue
		}
		n := h.n - len(b.events)
		if i == 0 {
			return history{h.batches[1:], n}
		}
		return history{append(slices.Clone(h.batches[:i]), h.batches[i+1:]...), n}
	}
	return h
}

// after are the batches with events of a greater index.
func (h history) after(index uint64) []*batch {
	i, _ := slices.BinarySearchFunc(h.batches, index, func(b *batch, index uint64) int {
		if b.last() <= index {
			return -1
		}
		return 1
	})
	return h.batches[i:]
}

// newest are the newest events that a query selects, oldest first.
func (h history) newest(q blixard.EventQuery) []blixard.Event {
	limit := q.Limit
	if limit <= 0 || limit > blixard.MaxEvents {
		limit = blixard.MaxEvents
	}
	var out []blixard.Event
	for _, b := range slices.Backward(h.after(q.After)) {
		for i := len(b.events) - 1; i >= 0 && b.events[i].Index > q.After; i-- {
			if !selects(q.VM, &b.events[i]) {
				continue
			}
			if out = append(out, b.events[i]); len(out) == limit {
				slices.Reverse(out)
				return out
			}
		}
	}
	slices.Reverse(out)
	return out
}

// selects reports whether a reference selects an event; the zero reference
// selects all.
func selects(ref blixard.VMRef, e *blixard.Event) bool {
	return ref == (blixard.VMRef{}) || ref.Match(blixard.VMID{Node: e.Node, Manager: e.Manager, Name: e.VM})
}

func sortBatches(bs []*batch) {
	slices.SortFunc(bs, func(a, b *batch) int { return cmp.Compare(a.rev, b.rev) })
}
