package monitor

import (
	"context"
	"errors"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/correlate"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The fakes below stand at the seams of the package: managers, files and a store
// that do what a script says, also hang, fail and vanish.

// callDeadline is the deadline that a fake connection has of its own.
const callDeadline = 10 * time.Second

// manager is a service manager. Its units change by script; connections see
// them, and hear of the change if it is hinted.
type manager struct {
	name string

	mu    sync.Mutex
	down  error
	units map[string]*blixard.UnitProperties
	conns map[*conn]bool
	// listTakes is how long a listing takes.
	listTakes time.Duration
	// listHangs and hangs hold calls until they are closed: of ListUnits, and of
	// Properties by unit.
	listHangs chan struct{}
	hangs     map[string]chan struct{}
	// broken are the units that cannot be read.
	broken map[string]bool

	dials    []time.Time
	listings []time.Time
	// reads counts Properties by unit.
	reads map[string]int
}

func newManager(name string) *manager {
	return &manager{name: name, units: map[string]*blixard.UnitProperties{}, conns: map[*conn]bool{},
		hangs: map[string]chan struct{}{}, broken: map[string]bool{}, reads: map[string]int{}}
}

// conn is one connection to a manager.
type conn struct {
	m *manager

	mu      sync.Mutex
	pending blixard.Hints
	wake    chan struct{}
	dead    chan struct{}
	kill    func()
}

func (m *manager) dial() (*conn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dials = append(m.dials, time.Now())
	if m.down != nil {
		return nil, m.down
	}
	c := &conn{m: m, wake: make(chan struct{}, 1), dead: make(chan struct{})}
	c.kill = sync.OnceFunc(func() { close(c.dead) })
	m.conns[c] = true
	return c, nil
}

// drop ends every connection; with err the manager is away until rise.
func (m *manager) drop(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down = err
	for c := range m.conns {
		c.kill()
	}
	clear(m.conns)
}

func (m *manager) rise() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down = nil
}

// set changes a unit without a hint.
func (m *manager) set(name string, change func(*blixard.UnitProperties)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.units[name]
	if p == nil {
		p = &blixard.UnitProperties{Unit: blixard.Unit{Name: name, LoadState: "loaded", Path: "/" + name},
			Service: true, Type: "simple", Restart: "always", Result: "success"}
	}
	c := *p
	change(&c)
	m.units[name] = &c
}

// gone unloads a unit without a hint.
func (m *manager) gone(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.units, name)
}

// hint tells every connection.
func (m *manager) hint(h blixard.Hints) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for c := range m.conns {
		c.mu.Lock()
		for _, u := range h.Units {
			if !slices.Contains(c.pending.Units, u) {
				c.pending.Units = append(c.pending.Units, u)
			}
		}
		c.pending.Jobs = append(c.pending.Jobs, h.Jobs...)
		c.pending.All = c.pending.All || h.All
		c.pending.Reloading = c.pending.Reloading || h.Reloading
		c.mu.Unlock()
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

// listed are the times of the complete listings.
func (m *manager) listed() []time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.listings)
}

func (m *manager) dialed() []time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.dials)
}

// readCount takes the number of reads by unit since the last call.
func (m *manager) readCount() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.reads
	m.reads = map[string]int{}
	return r
}

var errDead = errors.New("connection reset")

// wait waits for a hanging call, if it hangs, as a connection does: until its
// context or deadline ends, or the connection.
func (c *conn) wait(ctx context.Context, hangs chan struct{}) error {
	select {
	case <-c.dead:
		return errDead
	default:
	}
	if hangs == nil {
		return ctx.Err()
	}
	timer := time.NewTimer(callDeadline)
	defer timer.Stop()
	select {
	case <-hangs:
		return nil
	case <-c.dead:
		return errDead
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return errors.New("no answer in time")
	}
}

func (c *conn) ListUnits(ctx context.Context, patterns ...string) ([]blixard.Unit, error) {
	c.m.mu.Lock()
	hangs, takes := c.m.listHangs, c.m.listTakes
	if slices.ContainsFunc(patterns, func(p string) bool { return strings.Contains(p, "*") }) {
		c.m.listings = append(c.m.listings, time.Now())
	}
	c.m.mu.Unlock()
	if err := c.wait(ctx, hangs); err != nil {
		return nil, err
	}
	if takes > 0 {
		select {
		case <-time.After(takes):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	var out []blixard.Unit
	for _, name := range slices.Sorted(maps.Keys(c.m.units)) {
		if slices.ContainsFunc(patterns, func(p string) bool {
			ok, err := path.Match(p, name)
			return ok && err == nil
		}) {
			out = append(out, c.m.units[name].Unit)
		}
	}
	return out, nil
}

func (c *conn) Properties(ctx context.Context, p string) (blixard.UnitProperties, error) {
	name := strings.TrimPrefix(p, "/")
	c.m.mu.Lock()
	c.m.reads[name]++
	hangs := c.m.hangs[name]
	asked := c.m.units[name]
	c.m.mu.Unlock()
	if err := c.wait(ctx, hangs); err != nil {
		return blixard.UnitProperties{}, err
	}
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	if c.m.broken[name] {
		return blixard.UnitProperties{}, errors.New("cannot be read")
	}
	u := c.m.units[name]
	if u == nil {
		return blixard.UnitProperties{}, ErrNoUnit
	}
	if hangs != nil {
		u = asked // a late answer is as old as the question
	}
	return *u, nil
}

func (c *conn) Hints(ctx context.Context) (blixard.Hints, error) {
	for {
		c.mu.Lock()
		h := c.pending
		c.pending = blixard.Hints{}
		c.mu.Unlock()
		if len(h.Units) > 0 || len(h.Jobs) > 0 || h.All || h.Reloading {
			return h, nil
		}
		select {
		case <-c.wake:
		case <-c.dead:
			return blixard.Hints{}, errDead
		case <-ctx.Done():
			return blixard.Hints{}, ctx.Err()
		}
	}
}

func (c *conn) Close() error {
	c.m.mu.Lock()
	delete(c.m.conns, c)
	c.m.mu.Unlock()
	c.kill()
	return nil
}

// fakeFiles are the host's files.
type fakeFiles struct {
	mu    sync.Mutex
	defs  map[string]correlate.Definition
	fails string
	hangs chan struct{}
	// quit ends what hangs at the end of the test.
	quit chan struct{}
	// refreshed are the VMs that were read alone.
	refreshed []string
}

func (f *fakeFiles) wait(ctx context.Context) {
	f.mu.Lock()
	hangs := f.hangs
	f.mu.Unlock()
	if hangs != nil {
		// A file system that hangs heeds no context.
		select {
		case <-hangs:
		case <-f.quit:
		}
	}
}

func (f *fakeFiles) Scan(ctx context.Context) (map[string]correlate.Definition, bool, string) {
	f.wait(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fails != "" {
		return nil, false, f.fails
	}
	return maps.Clone(f.defs), true, ""
}

func (f *fakeFiles) Refresh(ctx context.Context, name string) (correlate.Definition, bool) {
	f.wait(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refreshed = append(f.refreshed, name)
	d, ok := f.defs[name]
	return d, ok && f.fails == ""
}

// define changes what the files define; the empty hypervisor removes it.
func (f *fakeFiles) define(name, hypervisor string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if hypervisor == "" {
		delete(f.defs, name)
		return
	}
	f.defs[name] = correlate.Definition{VMDefinition: blixard.VMDefinition{Hypervisor: hypervisor}}
}

// fakeStore keeps what it is given. Its verdict, if there is one, comes first.
type fakeStore struct {
	mu sync.Mutex
	// verdict refuses a batch, or says nil; it may take its time.
	verdict func(ctx context.Context, b blixard.Batch) error
	// load holds Load until it is closed.
	load chan struct{}

	index    uint64
	ids      map[string]uint64
	attempts []string
	batches  []blixard.Batch
	records  map[blixard.VMID]*blixard.VMRecord
	events   []blixard.Event
}

func newStore() *fakeStore {
	return &fakeStore{ids: map[string]uint64{}, records: map[blixard.VMID]*blixard.VMRecord{}}
}

func (s *fakeStore) judge(verdict func(ctx context.Context, b blixard.Batch) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.verdict = verdict
}

func (s *fakeStore) Apply(ctx context.Context, b blixard.Batch) (uint64, error) {
	s.mu.Lock()
	verdict := s.verdict
	s.attempts = append(s.attempts, b.ID)
	s.mu.Unlock()
	var err error
	if verdict != nil {
		if err = verdict(ctx, b); err != nil && !errors.Is(err, errApplied) {
			return 0, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	index, again := s.ids[b.ID]
	if !again {
		s.index++
		index = s.index
		s.ids[b.ID] = index
		s.batches = append(s.batches, b)
		s.events = append(s.events, b.Events...)
		for _, c := range b.Commands {
			s.apply(c)
		}
	}
	if err != nil {
		return 0, blixard.Errorf(blixard.CodeTimeout, "no answer")
	}
	return index, nil
}

// errApplied as a verdict applies the batch and loses the answer.
var errApplied = errors.New("applied, and the answer is lost")

func (s *fakeStore) apply(c blixard.Command) {
	id := c.Target()
	r := s.records[id]
	alive := r != nil && r.RemovedAt == nil
	switch c := c.(type) {
	case blixard.RegisterVM:
		if r == nil || c.Readopt {
			s.records[id] = &blixard.VMRecord{VMID: id, Unit: c.Unit, Epoch: s.index, Status: c.Status, Definition: c.Definition, Helpers: c.Helpers, ObservedAt: c.ObservedAt}
		}
	case blixard.UpdateState:
		if alive {
			r.Status, r.Definition, r.Helpers, r.StaleSince, r.ObservedAt = c.Status, c.Definition, c.Helpers, c.StaleSince, c.ObservedAt
		}
	case blixard.UpdateHealth:
		if alive {
			r.Health = &c.Health
		}
	case blixard.RemoveVM:
		if alive {
			r.RemovedAt = &c.RemovedAt
		}
	}
}

func (s *fakeStore) Load(ctx context.Context) ([]blixard.VMRecord, []blixard.Event, error) {
	s.mu.Lock()
	load := s.load
	s.mu.Unlock()
	if load != nil {
		select {
		case <-load:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var rs []blixard.VMRecord
	for _, r := range s.records {
		rs = append(rs, *r)
	}
	return rs, slices.Clone(s.events), nil
}

// kept are the events of a VM, or of the node for "", of the types given.
func (s *fakeStore) kept(vm string, types ...blixard.EventType) []blixard.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []blixard.Event
	for _, e := range s.events {
		if e.VM == vm && (len(types) == 0 || slices.Contains(types, e.Type)) {
			out = append(out, e)
		}
	}
	return out
}

func (s *fakeStore) record(id blixard.VMID) *blixard.VMRecord {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.records[id]; r != nil {
		c := *r
		return &c
	}
	return nil
}

// fakeUnits tells units apart as microvm.nix names them.
type fakeUnits struct{}

func (fakeUnits) Patterns(manager string) []string {
	if manager == blixard.SystemManager {
		return []string{"microvm@*.service", "microvm-*@*.service", "install-microvm-*.service", "microvms.target"}
	}
	return []string{"microvm-*.service"}
}

func (fakeUnits) Classify(manager, unit string) (kind correlate.Kind, vm, helper string, ok bool) {
	name, service := strings.CutSuffix(unit, ".service")
	if manager != blixard.SystemManager {
		vm, ok = strings.CutPrefix(name, "microvm-")
		return correlate.KindVM, vm, "", ok && service
	}
	if vm, ok := strings.CutPrefix(name, "microvm@"); ok && service {
		return correlate.KindVM, vm, "", true
	}
	if rest, ok := strings.CutPrefix(name, "microvm-"); ok && service {
		helper, vm, ok := strings.Cut(rest, "@")
		return correlate.KindHelper, vm, helper, ok
	}
	return 0, "", "", false
}

type fakeUsers struct {
	mu sync.Mutex
	// units are the names of the units that each user is seen to run.
	units map[uint32][]string
}

func (u *fakeUsers) Sighted(uid uint32) ([]string, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.units[uid], nil
}

type fakeMeter struct{}

func (fakeMeter) Listed(string, time.Duration, error)        {}
func (fakeMeter) Scanned(time.Duration, bool)                {}
func (fakeMeter) Wrote(*blixard.Batch, time.Duration, error) {}
