package systemd

import (
	"bytes"
	"context"
	"sync"

	"github.com/blixard/blixard"
)

const (
	// maxHints bounds the units named between two calls of Hints, maxJobs the
	// jobs' results.
	maxHints = 8192
	maxJobs  = 8192
)

// Hints waits until something changed at the manager and returns all that was
// gathered since it last did. An error means that ctx ended or that the
// connection is lost. Only one goroutine may call it at a time.
func (c *Conn) Hints(ctx context.Context) (blixard.Hints, error) {
	for {
		select {
		case <-c.hints.ready:
		case <-c.lost:
			return blixard.Hints{}, c.lostErr
		case <-ctx.Done():
			return blixard.Hints{}, context.Cause(ctx)
		}
		// The connection may be lost beside: then its hints are worth nothing.
		select {
		case <-c.lost:
			return blixard.Hints{}, c.lostErr
		default:
		}
		h, resubscribe, ok := c.hints.take()
		if resubscribe {
			// Before anybody lists: what changes after the listing is told.
			if err := c.subscribe(ctx); err != nil {
				c.fail(err)
				continue
			}
		}
		if ok {
			return h, nil
		}
	}
}

// hintSet gathers hints between two calls of Hints.
type hintSet struct {
	filter func(string) bool
	// ready holds a token while there may be something to take.
	ready chan struct{}

	mu          sync.Mutex // guards what follows
	units       map[string]struct{}
	jobs        []blixard.JobResult
	all         bool
	reloading   bool
	resubscribe bool
}

func newHintSet(filter func(string) bool) *hintSet {
	return &hintSet{filter: filter, ready: make(chan struct{}, 1), units: map[string]struct{}{}}
}

// wake puts the token; the caller holds mu.
func (s *hintSet) wake() {
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

// unit adds a unit if it is of interest.
func (s *hintSet) unit(name []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all {
		return
	}
	if _, ok := s.units[string(name)]; ok {
		return
	}
	n := string(name)
	if !s.filter(n) {
		return
	}
	if len(s.units) == maxHints {
		s.overflow()
		return
	}
	s.units[n] = struct{}{}
	s.wake()
}

// job adds the result of a job on a unit of interest.
func (s *hintSet) job(unit, result []byte) {
	j := blixard.JobResult{Unit: string(unit), Result: string(result)}
	if !s.filter(j.Unit) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.jobs) == maxJobs {
		// The oldest are worth least.
		s.jobs = append(s.jobs[:0], s.jobs[maxJobs/2:]...)
		s.overflow()
	}
	s.jobs = append(s.jobs, j)
	s.wake()
}

// everything says that all may have changed.
func (s *hintSet) everything() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.overflow()
}

// overflow is everything for a caller that holds mu.
func (s *hintSet) overflow() {
	s.all = true
	s.units = map[string]struct{}{}
	s.wake()
}

// reload takes in that the manager began to reload or is done.
func (s *hintSet) reload(active bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reloading = active
	if active {
		s.wake()
	} else {
		s.overflow()
	}
}

// owner takes in that the manager is on the bus anew.
func (s *hintSet) owner() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reloading = false
	s.resubscribe = true
	s.overflow()
}

// take returns what was gathered, ok if it is anything. That the manager
// reloads is told by itself, after what came before it.
func (s *hintSet) take() (h blixard.Hints, resubscribe, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	resubscribe, s.resubscribe = s.resubscribe, false
	if len(s.units) > 0 || len(s.jobs) > 0 || s.all {
		h = blixard.Hints{Jobs: s.jobs, All: s.all}
		if len(s.units) > 0 {
			h.Units = make([]string, 0, len(s.units))
			for n := range s.units {
				h.Units = append(h.Units, n)
			}
		}
		clear(s.units)
		s.jobs, s.all = nil, false
		if s.reloading {
			s.wake()
		}
		return h, resubscribe, true
	}
	h.Reloading, s.reloading = s.reloading, false
	return h, resubscribe, h.Reloading
}

// signal takes in a signal. Only the reader calls it.
func (c *Conn) signal(h *header, d *decoder) {
	if !c.direct && string(h.sender) == busName {
		if string(h.member) == "NameOwnerChanged" && string(h.signature) == "sss" {
			name, _, owner := d.string(), d.string(), d.string()
			if d.err == nil && string(name) == managerName {
				c.setOwner(string(owner))
				if len(owner) > 0 {
					c.hints.owner()
				}
			}
		}
		return
	}
	// Others may send signals to this connection by its name: they are told
	// apart by the sender, which the bus fills in.
	if !c.direct && (c.owner == "" || string(h.sender) != c.owner) {
		return
	}
	switch string(h.iface) {
	case propsIface:
		if string(h.member) != "PropertiesChanged" || string(h.signature) != "sa{sv}as" || string(d.string()) != unitIface {
			return
		}
		if label, ok := bytes.CutPrefix(h.path, []byte(unitRoot+"/")); ok {
			c.scratch = unescapeLabel(c.scratch[:0], label)
			c.hints.unit(c.scratch)
		}
	case managerIface:
		switch string(h.member) {
		case "UnitNew", "UnitRemoved":
			if string(h.signature) != "so" {
				return
			}
			if name := d.string(); d.err == nil {
				c.hints.unit(name)
			}
		case "JobRemoved":
			if string(h.signature) != "uoss" {
				return
			}
			d.uint32()
			d.skipString()
			unit, result := d.string(), d.string()
			if d.err == nil {
				c.hints.job(unit, result)
				c.hints.unit(unit)
			}
		case "Reloading":
			if string(h.signature) != "b" {
				return
			}
			if active := d.bool(); d.err == nil {
				c.reloading.Store(active)
				c.hints.reload(active)
			}
		}
	}
}

// unescapeLabel appends the name behind the last part of an object path to b.
// systemd escapes every byte but letters and digits as _xx, and an empty name
// as a lone underscore.
func unescapeLabel(b, label []byte) []byte {
	if string(label) == "_" {
		return b
	}
	for i := 0; i < len(label); i++ {
		if label[i] == '_' && i+2 < len(label) {
			hi, ok1 := unhex(label[i+1])
			lo, ok2 := unhex(label[i+2])
			if ok1 && ok2 {
				b = append(b, hi<<4|lo)
				i += 2
				continue
			}
		}
		b = append(b, label[i])
	}
	return b
}

func unhex(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}
