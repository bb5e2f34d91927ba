// Package apitest holds a Fleet that answers from a script, for tests of what
// stands on the API: the server, the client, the CLI.
//
// It decides nothing: it says what it was told, with the semantics of streams
// that blixard.Fleet promises. All methods may be called at once. Production
// code does not import it.
package apitest

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"sync"

	"github.com/blixard/blixard"
)

// Script is what a Fleet knows.
type Script struct {
	Index      uint64                `json:"index"`
	AgeSeconds *float64              `json:"age_seconds"`
	Problems   []string              `json:"problems"`
	VMs        []blixard.VM          `json:"vms"`
	Events     []blixard.Event       `json:"events"`
	Nodes      []blixard.Node        `json:"nodes"`
	Cluster    blixard.ClusterStatus `json:"cluster"`
	// Trimmed is the index up to which events are no longer kept.
	Trimmed uint64 `json:"trimmed"`
	// Error, when set, is the answer to everything.
	Error *blixard.Error `json:"error"`
}

// Parse reads a Script from JSON.
func Parse(b []byte) (*Script, error) {
	var s Script
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("parse script: %w", err)
	}
	return &s, nil
}

// Fleet answers from its Script.
type Fleet struct {
	mu     sync.Mutex
	script Script
	// changed is closed, and made anew, when the script changes; counted when
	// streams, the number of those that wait for it, does.
	changed, counted chan struct{}
	streams          int
}

var _ blixard.Fleet = (*Fleet)(nil)

// New makes a Fleet. The script belongs to it from now on.
func New(s *Script) *Fleet {
	return &Fleet{script: *s, changed: make(chan struct{}), counted: make(chan struct{})}
}

// Change edits the script; every stream looks at it again.
func (f *Fleet) Change(edit func(*Script)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	edit(&f.script)
	close(f.changed)
	f.changed = make(chan struct{})
	f.count(0)
}

// Emit commits events: each gets the next index.
func (f *Fleet) Emit(events ...blixard.Event) {
	f.Change(func(s *Script) {
		for _, e := range events {
			s.Index++
			e.Index = s.Index
			s.Events = append(slices.Clip(s.Events), e)
		}
	})
}

// AwaitStreams waits until that many streams have sent all there is and wait for
// a change.
func (f *Fleet) AwaitStreams(ctx context.Context, n int) error {
	for {
		f.mu.Lock()
		have, counted := f.streams, f.counted
		f.mu.Unlock()
		if have == n {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %d streams, there are %d: %w", n, have, ctx.Err())
		case <-counted:
		}
	}
}

// count counts streams that wait; the caller holds mu.
func (f *Fleet) count(n int) {
	f.streams = n
	close(f.counted)
	f.counted = make(chan struct{})
}

// wait waits for a change after the look that gave changed.
func (f *Fleet) wait(ctx context.Context, changed <-chan struct{}) error {
	f.mu.Lock()
	if changed == f.changed {
		f.count(f.streams + 1)
	}
	f.mu.Unlock()
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if changed == f.changed {
		f.count(f.streams - 1)
	}
	return blixard.Errorf(blixard.CodeUnavailable, "the stream ended: %v", context.Cause(ctx))
}

func (f *Fleet) look() (Script, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.script, f.changed
}

func answer[T any](s Script, items []T) (blixard.List[T], error) {
	if s.Error != nil {
		return blixard.List[T]{}, s.Error
	}
	return blixard.List[T]{APIVersion: blixard.APIVersion, Index: s.Index, AgeSeconds: s.AgeSeconds, Problems: s.Problems, Items: items}, nil
}

// VMs lists the script's VMs.
func (f *Fleet) VMs(context.Context) (blixard.List[blixard.VM], error) {
	s, _ := f.look()
	return answer(s, s.VMs)
}

func find(s Script, ref blixard.VMRef) ([]blixard.VM, error) {
	var found []blixard.VM
	for _, v := range s.VMs {
		if v.ID == ref.Node+"/"+ref.Name && ref.Manager == "" {
			// The whole address of a VM means that one.
			return []blixard.VM{v}, nil
		}
		if ref.Match(v.VMID()) {
			found = append(found, v)
		}
	}
	switch len(found) {
	case 0:
		return nil, blixard.Errorf(blixard.CodeNotFound, "no VM %q", ref.Name).WithHint("blixard vm list")
	case 1:
		return found, nil
	}
	e := blixard.Errorf(blixard.CodeAmbiguous, "%q means more than one VM", ref.Name)
	for _, v := range found {
		e.Candidates = append(e.Candidates, v.ID)
	}
	return nil, e
}

// VM shows one.
func (f *Fleet) VM(_ context.Context, ref blixard.VMRef) (blixard.List[blixard.VM], error) {
	s, _ := f.look()
	if s.Error != nil {
		return blixard.List[blixard.VM]{}, s.Error
	}
	items, err := find(s, ref)
	if err != nil {
		return blixard.List[blixard.VM]{}, err
	}
	return answer(s, items)
}

// AdoptVM takes away a VM's tombstone.
func (f *Fleet) AdoptVM(ctx context.Context, ref blixard.VMRef) (blixard.List[blixard.VM], error) {
	return f.set(ctx, ref, func(v *blixard.VM) { v.RemovedAt = nil })
}

// RemoveVM makes a running VM's record a tombstone and takes another away.
func (f *Fleet) RemoveVM(ctx context.Context, ref blixard.VMRef) (blixard.List[blixard.VM], error) {
	return f.set(ctx, ref, func(v *blixard.VM) {
		if v.State == blixard.StateRunning {
			v.RemovedAt = v.LastSeen
		} else {
			v.Name = ""
		}
	})
}

func (f *Fleet) set(ctx context.Context, ref blixard.VMRef, edit func(*blixard.VM)) (blixard.List[blixard.VM], error) {
	l, err := f.VM(ctx, ref)
	if err != nil {
		return l, err
	}
	id := l.Items[0].ID
	f.Change(func(s *Script) {
		s.Index++
		l.Index = s.Index
		s.VMs = slices.Clone(s.VMs)
		for i := range s.VMs {
			if s.VMs[i].ID != id {
				continue
			}
			edit(&s.VMs[i])
			if s.VMs[i].Name != "" {
				l.Items[0] = s.VMs[i]
			}
		}
		s.VMs = slices.DeleteFunc(s.VMs, func(v blixard.VM) bool { return v.Name == "" })
	})
	return l, nil
}

// WatchVMs streams the script's VMs.
func (f *Fleet) WatchVMs(ctx context.Context) iter.Seq2[blixard.VMFrame, error] {
	return func(yield func(blixard.VMFrame, error) bool) {
		sent := map[string]string{}
		for first := true; ; first = false {
			s, changed := f.look()
			if s.Error != nil {
				yield(blixard.VMFrame{}, s.Error)
				return
			}
			there := map[string]bool{}
			for i := range s.VMs {
				v := s.VMs[i]
				there[v.ID] = true
				b, err := json.Marshal(v)
				if err != nil {
					yield(blixard.VMFrame{}, err)
					return
				}
				if sent[v.ID] == string(b) {
					continue
				}
				sent[v.ID] = string(b)
				if !yield(blixard.VMFrame{VM: &v, Index: s.Index}, nil) {
					return
				}
			}
			for id := range sent {
				if there[id] {
					continue
				}
				delete(sent, id)
				if !yield(blixard.VMFrame{Gone: id, Index: s.Index}, nil) {
					return
				}
			}
			if first && !yield(blixard.VMFrame{Synced: true, Index: s.Index}, nil) {
				return
			}
			if err := f.wait(ctx, changed); err != nil {
				yield(blixard.VMFrame{}, err)
				return
			}
		}
	}
}

func chosen(s Script, q blixard.EventQuery) []blixard.Event {
	var out []blixard.Event
	for _, e := range s.Events {
		id := blixard.VMID{Node: e.Node, Manager: e.Manager, Name: e.VM}
		if e.Index > q.After && e.Index > s.Trimmed && (q.VM == blixard.VMRef{} || q.VM.Match(id)) {
			out = append(out, e)
		}
	}
	if q.Limit > 0 && len(out) > q.Limit {
		out = out[len(out)-q.Limit:]
	}
	return out
}

// Events lists the script's events.
func (f *Fleet) Events(_ context.Context, q blixard.EventQuery) (blixard.List[blixard.Event], error) {
	s, _ := f.look()
	l, err := answer(s, chosen(s, q))
	l.AgeSeconds = nil
	return l, err
}

// FollowEvents streams the script's events.
func (f *Fleet) FollowEvents(ctx context.Context, q blixard.EventQuery) iter.Seq2[blixard.EventFrame, error] {
	return func(yield func(blixard.EventFrame, error) bool) {
		s, changed := f.look()
		if q.After == 0 {
			q.After = s.Index
		}
		for {
			switch {
			case s.Error != nil:
				yield(blixard.EventFrame{}, s.Error)
				return
			case q.After > s.Index:
				// The index came from another store.
				q.After = s.Index
				if !yield(blixard.EventFrame{Gap: true, Index: q.After}, nil) {
					return
				}
			case q.After < s.Trimmed:
				q.After = s.Trimmed
				if !yield(blixard.EventFrame{Gap: true, Index: q.After}, nil) {
					return
				}
			}
			for _, e := range chosen(s, q) {
				q.After = e.Index
				if !yield(blixard.EventFrame{Event: &e, Index: e.Index}, nil) {
					return
				}
			}
			if err := f.wait(ctx, changed); err != nil {
				yield(blixard.EventFrame{}, err)
				return
			}
			s, changed = f.look()
		}
	}
}

// Nodes lists the script's nodes.
func (f *Fleet) Nodes(context.Context) (blixard.List[blixard.Node], error) {
	s, _ := f.look()
	return answer(s, s.Nodes)
}

// Node shows one by name or id.
func (f *Fleet) Node(_ context.Context, name string) (blixard.List[blixard.Node], error) {
	s, _ := f.look()
	for _, n := range s.Nodes {
		if n.Name == name || n.ID == name {
			return answer(s, []blixard.Node{n})
		}
	}
	return blixard.List[blixard.Node]{}, blixard.Errorf(blixard.CodeNotFound, "no node %q", name).WithHint("blixard node list")
}

// Cluster tells the script's.
func (f *Fleet) Cluster(context.Context) (blixard.ClusterStatus, error) {
	s, _ := f.look()
	if s.Error != nil {
		return blixard.ClusterStatus{}, s.Error
	}
	c := s.Cluster
	c.APIVersion, c.Index = blixard.APIVersion, s.Index
	return c, nil
}
