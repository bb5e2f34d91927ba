package monitor

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/correlate"
)

// Settings are what a running monitor can be given anew.
type Settings struct {
	// Interval is the time between complete listings, 1 s at least.
	Interval time.Duration
	// UserManagers watches users' managers beside the system's.
	UserManagers bool
	// Policy is the Tracker's; its Node is set from Config.Node.
	Policy correlate.Config
	Units  Units
	Files  Files
}

// Config holds a monitor's settings and what it works with.
type Config struct {
	Settings
	// Node is this node's record.
	Node blixard.NodeRecord
	// BufferEvents bounds the events that wait while the store is away.
	BufferEvents int

	// Dial connects to a manager, "system" or "user:UID", whose hints are of
	// units that classify, and tells its version. An *Error with a hint tells
	// what to do when it cannot.
	Dial  func(ctx context.Context, manager string, units Units) (Bus, string, error)
	Users Users
	Store Store
	Meter Meter
	Log   *slog.Logger
}

// tickEvery is how often time passes for the Tracker: windows close and states
// become unknown that much late at most.
const tickEvery = 5 * time.Second

// flushTimeout bounds the last writes when the monitor ends.
const flushTimeout = 5 * time.Second

// Monitor watches one host. Make it with New, and run it once.
type Monitor struct {
	cfg    Config
	inbox  chan func(now time.Time, t *correlate.Tracker)
	box    *outbox
	writer *writer

	// The engine's own; nobody else touches them.
	tracker *correlate.Tracker
	loops   *loops

	view    atomic.Pointer[View]
	beats   beats
	systemd atomic.Pointer[string]
	loaded  atomic.Bool
	policy  atomic.Pointer[correlate.Config]
}

// loops are the watchers and the reader of one set of settings.
type loops struct {
	ctx    context.Context
	cancel context.CancelFunc
	reader *reader
	// watched holds, for each manager that is watched, whether it is known
	// not to run.
	watched map[string]*atomic.Bool
	run     func(f func(context.Context) error)
}

// New makes a monitor that does nothing until Run.
func New(cfg Config) *Monitor {
	cfg.Policy.Node = cfg.Node.Name
	m := &Monitor{cfg: cfg, inbox: make(chan func(time.Time, *correlate.Tracker), 16), box: newOutbox(cfg.BufferEvents),
		tracker: correlate.New(cfg.Policy)}
	m.writer = &writer{box: m.box, store: cfg.Store, meter: cfg.Meter, log: cfg.Log}
	m.view.Store(&View{changed: make(chan struct{})})
	m.policy.Store(&cfg.Policy)
	return m
}

// Run watches until the context ends, then writes what waits, for a bounded
// time, and returns.
func (m *Monitor) Run(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	// The writer outlives the engine, so that the last events are written.
	wctx, stopWriter := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWriter()
	written := make(chan struct{})
	go func() {
		defer close(written)
		_ = m.writer.Run(wctx) // ends with its context alone
	}()

	m.box.add(nil, []blixard.Event{{ObservedAt: time.Now(), Node: m.cfg.Node.Name, Type: blixard.EventMonitorStarted, Detail: "version " + m.cfg.Node.Version}})
	m.begin(gctx, g, []string{blixard.SystemManager})
	g.Go(func() error { return m.load(gctx) })
	g.Go(func() error { return m.engine(gctx, g) })
	err := g.Wait()

	// The engine has ended: its Tracker is ours.
	m.tracker.Flush(time.Now())
	m.box.add(m.tracker.Take())
	m.box.add(nil, []blixard.Event{{ObservedAt: time.Now(), Node: m.cfg.Node.Name, Type: blixard.EventMonitorStopped}})
	m.drain(flushTimeout)
	stopWriter()
	<-written
	return err
}

// begin starts the loops with the present settings. Only Run, before there is
// an engine, and then the engine call it.
func (m *Monitor) begin(ctx context.Context, g *errgroup.Group, managers []string) {
	lctx, cancel := context.WithCancel(ctx)
	l := &loops{ctx: lctx, cancel: cancel, watched: map[string]*atomic.Bool{}}
	l.run = func(f func(context.Context) error) { g.Go(func() error { return f(lctx) }) }
	l.reader = newReader(m.cfg.Interval, m.cfg.Files, m.cfg.Meter, m.deliver)
	m.loops = l
	m.beats.clear()
	for _, name := range managers {
		m.watch(name)
	}
	l.run(l.reader.Run)
}

// Reconfigure gives a running monitor new settings. Everything is listed and
// read anew with them; nothing that is known is forgotten meanwhile.
func (m *Monitor) Reconfigure(ctx context.Context, s Settings) error {
	s.Policy.Node = m.cfg.Node.Name
	return m.deliver(ctx, func(_ time.Time, t *correlate.Tracker) {
		m.cfg.Settings = s
		m.policy.Store(&s.Policy)
		t.SetPolicy(s.Policy)
		m.loops.cancel()
	})
}

// drain waits until nothing waits to be written, or for d.
func (m *Monitor) drain(d time.Duration) {
	end := time.Now().Add(d)
	for time.Now().Before(end) {
		if c, e := m.box.waiting(); c+e == 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// load waits for the store's records and hands them to the Tracker.
func (m *Monitor) load(ctx context.Context) error {
	for ctx.Err() == nil {
		records, events, err := m.cfg.Store.Load(ctx)
		if err == nil {
			_ = m.deliver(ctx, func(now time.Time, t *correlate.Tracker) {
				t.SetRecords(now, records, events)
				for i := range records {
					m.watch(records[i].Manager)
				}
			})
			m.loaded.Store(true)
			return nil
		}
		m.cfg.Log.Debug("records cannot be read yet", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	return nil
}

// engine owns the Tracker: it runs what the others deliver and lets time pass.
func (m *Monitor) engine(ctx context.Context, g *errgroup.Group) error {
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	for {
		m.beats.engine.now()
		select {
		case <-ctx.Done():
			return nil
		case <-m.loops.ctx.Done():
			if ctx.Err() != nil {
				return nil
			}
			m.begin(ctx, g, slices.Collect(maps.Keys(m.loops.watched)))
		case f := <-m.inbox:
			f(time.Now(), m.tracker)
		case <-tick.C:
			now := time.Now()
			if d := m.loops.reader.hangs(now); d > m.cfg.Interval {
				m.tracker.FilesUnknown(fmt.Sprintf("the state directory has not answered for %s", d.Round(time.Second)))
			}
			m.tracker.Tick(now)
		}
		m.box.add(m.tracker.Take())
		// In a storm what is queued is taken in first, then shown at once.
		if len(m.inbox) == 0 && m.tracker.Changed() {
			m.publish()
		}
	}
}

// deliver has the engine run f, and returns when it is queued. The only error is
// the end of ctx, which a loop sees by itself.
func (m *Monitor) deliver(ctx context.Context, f func(now time.Time, t *correlate.Tracker)) error {
	// What a loop says after its end is not heard: it may be older than what its
	// successor says.
	heard := func(now time.Time, t *correlate.Tracker) {
		if ctx.Err() == nil {
			f(now, t)
		}
	}
	select {
	case m.inbox <- heard:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ask has the engine run f and waits for it.
func (m *Monitor) ask(ctx context.Context, f func(now time.Time, t *correlate.Tracker)) error {
	done := make(chan struct{})
	err := m.deliver(ctx, func(now time.Time, t *correlate.Tracker) {
		f(now, t)
		close(done)
	})
	if err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// watch starts to watch a manager that is not watched yet. The engine calls it.
func (m *Monitor) watch(manager string) {
	if _, ok := m.loops.watched[manager]; ok {
		return
	}
	if manager != blixard.SystemManager && !m.cfg.UserManagers {
		m.tracker.Lost(time.Now(), manager, "users' managers are not watched", "set discovery.user_managers = true in the configuration")
		return
	}
	m.loops.watched[manager] = new(atomic.Bool)
	m.loops.run(m.watcher(manager).Run)
}

func (m *Monitor) watcher(manager string) *watcher {
	w := &watcher{manager: manager, interval: m.cfg.Interval, dial: m.cfg.Dial, units: m.cfg.Units, meter: m.cfg.Meter,
		log: m.cfg.Log, beat: m.beats.add(manager), deliver: m.deliver, version: func(string) {}}
	if uid, ok := strings.CutPrefix(manager, "user:"); ok {
		w.ended = m.loops.watched[manager]
		n, _ := strconv.ParseUint(uid, 10, 32) // its name was made from a number
		w.sighted = func() ([]string, error) { return m.cfg.Users.Sighted(uint32(n)) }
		return w
	}
	w.version = func(v string) { m.systemd.Store(&v) }
	reader := m.loops.reader
	w.deliver = func(ctx context.Context, f func(now time.Time, t *correlate.Tracker)) error {
		return m.deliver(ctx, func(now time.Time, t *correlate.Tracker) {
			f(now, t)
			for _, name := range t.Touched() {
				reader.refresh(name)
			}
		})
	}
	if m.cfg.UserManagers {
		w.users = func(ctx context.Context, running map[string]bool) {
			_ = m.deliver(ctx, func(time.Time, *correlate.Tracker) { m.setUsers(running) })
		}
	}
	return w
}

// setUsers takes in which users' managers run. The engine calls it.
func (m *Monitor) setUsers(running map[string]bool) {
	for name, ended := range m.loops.watched {
		if name != blixard.SystemManager {
			ended.Store(!running[name])
		}
	}
	for name := range running {
		m.watch(name)
	}
}

// Remove makes a VM's record a tombstone and returns the index at which the
// store acknowledged it. CodeNotFound says that there is no such record,
// CodeUnavailable that the store takes no writes; nothing is done then. On
// CodeTimeout it is done later.
func (m *Monitor) Remove(ctx context.Context, id blixard.VMID) (uint64, error) {
	is := func(c blixard.Command) bool { _, ok := c.(blixard.RemoveVM); return ok }
	return m.explicit(ctx, id, is, func(now time.Time, t *correlate.Tracker) error {
		if !t.Remove(now, id) {
			return blixard.Errorf(blixard.CodeNotFound, "VM %s is not recorded", id)
		}
		return nil
	})
}

// Adopt records a VM that is there but not recorded, or was removed. Errors are
// as with Remove.
func (m *Monitor) Adopt(ctx context.Context, id blixard.VMID) (uint64, error) {
	is := func(c blixard.Command) bool { _, ok := c.(blixard.RegisterVM); return ok }
	return m.explicit(ctx, id, is, func(now time.Time, t *correlate.Tracker) error {
		if !t.Adopt(now, id) {
			return blixard.Errorf(blixard.CodeConflict, "VM %s is recorded already, or is not there", id)
		}
		return nil
	})
}

// explicit runs a change that somebody asked for and waits until its command,
// which is tells from others for the VM, is written.
func (m *Monitor) explicit(ctx context.Context, id blixard.VMID, is func(blixard.Command) bool, change func(time.Time, *correlate.Tracker) error) (uint64, error) {
	if reason, _, _ := m.writer.status(); reason != "" || !m.loaded.Load() {
		if reason == "" {
			reason = "its records are not loaded yet"
		}
		return 0, blixard.Errorf(blixard.CodeUnavailable, "the store takes no writes: %s", reason).WithHint("blixard cluster status")
	}
	written, giveUp := m.box.wait(id, is)
	defer giveUp()
	var refused error
	if err := m.ask(ctx, func(now time.Time, t *correlate.Tracker) { refused = change(now, t) }); err != nil {
		return 0, blixard.Errorf(blixard.CodeTimeout, "not done in time: %v", err)
	}
	if refused != nil {
		return 0, refused
	}
	select {
	case o := <-written:
		return o.index, o.err
	case <-ctx.Done():
		return 0, blixard.Errorf(blixard.CodeTimeout, "not acknowledged in time; it is written when the store takes it")
	}
}
