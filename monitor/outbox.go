package monitor

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"slices"
	"sync"

	"github.com/blixard/blixard"
)

// Bounds of one batch, below the store's own.
const (
	batchVMs    = 100
	batchEvents = 500
)

// outbox holds what is to be written. Of a VM's commands the last write of each
// kind wins; events are kept in order up to a bound, and when it is reached the
// oldest that is no end of a VM goes first, and the loss is told.
type outbox struct {
	// maxEvents bounds the events that wait.
	maxEvents int

	mu sync.Mutex
	// order is the VMs with commands, first come first.
	order    []blixard.VMID
	commands map[blixard.VMID][]blixard.Command
	events   []blixard.Event
	lost     uint64
	// inflight counts what the batch being written holds.
	inflight int
	// wake has room for one: something waits.
	wake chan struct{}
	// waiters wait until an explicit command for a VM is written.
	waiters map[blixard.VMID][]*waiter
}

// waiter waits for a command.
type waiter struct {
	// is tells the command from others for the same VM.
	is func(blixard.Command) bool
	// outcome has room for the one outcome.
	outcome chan outcome
}

// outcome is what became of a command: the index at which it was written, or
// why the store refused it.
type outcome struct {
	index uint64
	err   error
}

func newOutbox(maxEvents int) *outbox {
	return &outbox{maxEvents: maxEvents, commands: map[blixard.VMID][]blixard.Command{},
		wake: make(chan struct{}, 1), waiters: map[blixard.VMID][]*waiter{}}
}

// add takes in commands and events.
func (o *outbox) add(commands []blixard.Command, events []blixard.Event) {
	if len(commands)+len(events) == 0 {
		return
	}
	o.mu.Lock()
	for _, c := range commands {
		o.put(c)
	}
	o.events = append(o.events, events...)
	for len(o.events) > o.maxEvents {
		o.shed()
	}
	o.mu.Unlock()
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// put adds a command, in place of one of the same kind that nothing but updates
// follow. The caller holds mu.
func (o *outbox) put(c blixard.Command) {
	id := c.Target()
	have := o.commands[id]
	if len(have) == 0 {
		o.order = append(o.order, id)
	}
	for i := len(have) - 1; i >= 0; i-- {
		switch c.(type) {
		case blixard.UpdateState:
			if _, ok := have[i].(blixard.UpdateState); ok {
				have[i] = c
				return
			}
		case blixard.UpdateHealth:
			if _, ok := have[i].(blixard.UpdateHealth); ok {
				have[i] = c
				return
			}
		}
		switch have[i].(type) {
		case blixard.RegisterVM, blixard.RemoveVM:
			i = 0
		}
	}
	o.commands[id] = append(have, c)
}

// terminal reports whether an event is the end of a VM or of its record, which
// is dropped last.
func terminal(e *blixard.Event) bool {
	switch e.Type {
	case blixard.EventRemoved, blixard.EventRegistered, blixard.EventEventsLost:
		return true
	case blixard.EventState:
		switch blixard.VMState(e.To) {
		case blixard.StateFailed, blixard.StateStopped, blixard.StateCrashlooping:
			return true
		}
	}
	return false
}

// shed drops the oldest event that is not terminal, or the oldest. The caller
// holds mu.
func (o *outbox) shed() {
	at := 0
	for i := range o.events {
		if !terminal(&o.events[i]) {
			at = i
			break
		}
	}
	o.events = append(o.events[:at], o.events[at+1:]...)
	o.lost++
}

// next waits for something to write and takes at most one batch of it.
func (o *outbox) next(ctx context.Context) (blixard.Batch, error) {
	for {
		if b, ok := o.take(); ok {
			return b, nil
		}
		select {
		case <-ctx.Done():
			return blixard.Batch{}, ctx.Err()
		case <-o.wake:
		}
	}
}

// take takes at most one batch; ok is false when nothing waits.
func (o *outbox) take() (b blixard.Batch, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := min(len(o.order), batchVMs)
	for _, id := range o.order[:n] {
		b.Commands = append(b.Commands, o.commands[id]...)
		delete(o.commands, id)
	}
	o.order = append(o.order[:0], o.order[n:]...)
	if o.lost > 0 && len(o.events) > 0 {
		b.Events = append(b.Events, blixard.Event{ObservedAt: o.events[0].ObservedAt, Node: o.events[0].Node,
			Type: blixard.EventEventsLost, Count: o.lost, Detail: "dropped because the store was away for too long"})
		o.lost = 0
	}
	n = min(len(o.events), batchEvents)
	b.Events = append(b.Events, o.events[:n]...)
	o.events = append(o.events[:0], o.events[n:]...)
	if len(b.Commands)+len(b.Events) == 0 {
		return b, false
	}
	b.ID = newBatchID()
	o.inflight = len(b.Commands) + len(b.Events)
	return b, true
}

func newBatchID() string {
	var id [16]byte
	rand.Read(id[:]) // never fails: crypto/rand
	return hex.EncodeToString(id[:])
}

// done tells that a batch, or part of the one that was taken, was written at an
// index, or refused for good with err.
func (o *outbox) done(b *blixard.Batch, index uint64, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.inflight -= len(b.Commands) + len(b.Events)
	for _, c := range b.Commands {
		ws := o.waiters[c.Target()]
		for i := 0; i < len(ws); i++ {
			if ws[i].is(c) {
				ws[i].outcome <- outcome{index, err}
				ws = slices.Delete(ws, i, i+1)
				i--
			}
		}
		o.keep(c.Target(), ws)
	}
}

// keep keeps the waiters of a VM. The caller holds mu.
func (o *outbox) keep(id blixard.VMID, ws []*waiter) {
	if len(ws) == 0 {
		delete(o.waiters, id)
		return
	}
	o.waiters[id] = ws
}

// wait returns a channel that gets what becomes of the next command for a VM
// that is the one, and a function that gives up waiting.
func (o *outbox) wait(id blixard.VMID, is func(blixard.Command) bool) (<-chan outcome, func()) {
	w := &waiter{is: is, outcome: make(chan outcome, 1)}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.waiters[id] = append(o.waiters[id], w)
	return w.outcome, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.keep(id, slices.DeleteFunc(o.waiters[id], func(x *waiter) bool { return x == w }))
	}
}

// waiting counts the commands and events that are not written yet; what is in
// flight counts as commands.
func (o *outbox) waiting() (commands, events int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.order) + o.inflight, len(o.events)
}
