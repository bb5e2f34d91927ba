package monitor

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/correlate"
)

// Config holds a monitor's settings and what it works with.
type Config struct {
	// Node is this node's record. Its SystemdVersion is filled in when known.
	Node blixard.NodeRecord
	// Interval is the time between complete listings, 1 s at least.
	Interval time.Duration
	// UserManagers watches users' managers beside the system's.
	UserManagers bool
	// Policy is the Tracker's; its Node is set from Node.
	Policy correlate.Config
	// BufferEvents bounds the events that wait while the store is away.
	BufferEvents int

	// Dial connects to a manager, "system" or "user:UID", and tells its
	// version. An *Error with a hint tells what to do when it cannot.
	Dial  func(ctx context.Context, manager string) (Bus, string, error)
	Units Units
	Users Users
	Files Files
	Store Store
	Meter Meter
	Log   *slog.Logger
}

// tickEvery is how often time passes for the Tracker.
const tickEvery = time.Second

// flushTimeout bounds the last writes when the monitor ends.
const flushTimeout = 5 * time.Second

// Monitor watches one host. Make it with New, and run it once.
type Monitor struct {
	cfg    Config
	inbox  chan func(now time.Time, t *correlate.Tracker)
	box    *outbox
	writer *writer
	reader *reader

	// The engine's own; nobody else touches them.
	tracker  *correlate.Tracker
	watchers map[string]*atomic.Bool
	start    func(manager string)

	view    atomic.Pointer[View]
	beats   beats
	systemd atomic.Pointer[string]
	loaded  atomic.Bool
}

// New makes a monitor that does nothing until Run.
func New(cfg Config) *Monitor {
	cfg.Policy.Node = cfg.Node.Name
	m := &Monitor{cfg: cfg, inbox: make(chan func(time.Time, *correlate.Tracker), 16), box: newOutbox(cfg.BufferEvents),
		tracker: correlate.New(cfg.Policy), watchers: map[string]*atomic.Bool{}}
	m.writer = &writer{box: m.box, store: cfg.Store, meter: cfg.Meter, log: cfg.Log}
	m.reader = newReader(cfg.Interval, cfg.Files, cfg.Meter)
	m.reader.deliver = m.deliver
	m.view.Store(&View{changed: make(chan struct{})})
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
		m.writer.Run(wctx)
	}()

	m.start = func(manager string) {
		w := m.watcher(manager)
		g.Go(func() error { return w.Run(gctx) })
	}
	m.box.add(nil, []blixard.Event{{ObservedAt: time.Now(), Node: m.cfg.Node.Name, Type: blixard.EventMonitorStarted, Detail: "version " + m.cfg.Node.Version}})
	m.watch(blixard.SystemManager)
	g.Go(func() error { return m.reader.Run(gctx) })
	g.Go(func() error { return m.load(gctx) })
	g.Go(func() error { return m.engine(gctx) })
	err := g.Wait()

	m.box.add(nil, []blixard.Event{{ObservedAt: time.Now(), Node: m.cfg.Node.Name, Type: blixard.EventMonitorStopped}})
	m.drain(flushTimeout)
	stopWriter()
	<-written
	return err
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
			m.deliver(ctx, func(now time.Time, t *correlate.Tracker) {
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
func (m *Monitor) engine(ctx context.Context) error {
	beat := m.beats.add("engine")
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	for {
		beat.now()
		select {
		case <-ctx.Done():
			return nil
		case f := <-m.inbox:
			f(time.Now(), m.tracker)
		case <-tick.C:
			now := time.Now()
			if d := m.reader.hangs(now); d > m.cfg.Interval {
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

// deliver has the engine run f, and returns when it is queued.
func (m *Monitor) deliver(ctx context.Context, f func(now time.Time, t *correlate.Tracker)) error {
	select {
	case m.inbox <- f:
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

// watch starts to watch a manager that is not watched yet. Only the engine, and
// Run before there is one, calls it.
func (m *Monitor) watch(manager string) {
	if _, ok := m.watchers[manager]; ok || manager != blixard.SystemManager && !m.cfg.UserManagers {
		return
	}
	m.watchers[manager] = new(atomic.Bool)
	m.start(manager)
}

func (m *Monitor) watcher(manager string) *watcher {
	w := &watcher{manager: manager, interval: m.cfg.Interval, dial: m.cfg.Dial, units: m.cfg.Units, meter: m.cfg.Meter,
		log: m.cfg.Log, beat: m.beats.add(manager), version: func(string) {}}
	w.deliver = m.deliver
	if manager != blixard.SystemManager {
		w.ended = m.watchers[manager]
		uid, _ := strconv.ParseUint(strings.TrimPrefix(manager, "user:"), 10, 32)
		w.sighted = func() ([]string, error) { return m.cfg.Users.Sighted(uint32(uid)) }
		return w
	}
	w.version = func(v string) { m.systemd.Store(&v) }
	w.deliver = func(ctx context.Context, f func(now time.Time, t *correlate.Tracker)) error {
		return m.deliver(ctx, func(now time.Time, t *correlate.Tracker) {
			f(now, t)
			for _, name := range t.Touched() {
				m.reader.refresh(name)
			}
		})
	}
	if m.cfg.UserManagers {
		w.users = func(ctx context.Context, running map[string]bool) {
			m.deliver(ctx, func(time.Time, *correlate.Tracker) { m.setUsers(running) })
		}
	}
	return w
}

// setUsers takes in which users' managers run. The engine calls it.
func (m *Monitor) setUsers(running map[string]bool) {
	for name, ended := range m.watchers {
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
	return m.explicit(ctx, id, func(now time.Time, t *correlate.Tracker) error {
		if !t.Remove(now, id) {
			return blixard.Errorf(blixard.CodeNotFound, "VM %s is not recorded", id)
		}
		return nil
	})
}

// Adopt records a VM that is there but not recorded, or was removed. Errors are
// as with Remove.
func (m *Monitor) Adopt(ctx context.Context, id blixard.VMID) (uint64, error) {
	return m.explicit(ctx, id, func(now time.Time, t *correlate.Tracker) error {
		if !t.Adopt(now, id) {
			return blixard.Errorf(blixard.CodeConflict, "VM %s is recorded already, or is not there", id)
		}
		return nil
	})
}

// explicit runs a change that somebody asked for and waits until it is written.
func (m *Monitor) explicit(ctx context.Context, id blixard.VMID, change func(time.Time, *correlate.Tracker) error) (uint64, error) {
	if reason, _ := m.writer.status(); reason != "" || !m.loaded.Load() {
		if reason == "" {
			reason = "its records are not loaded yet"
		}
		return 0, blixard.Errorf(blixard.CodeUnavailable, "the store takes no writes: %s", reason).WithHint("blixard cluster status")
	}
	written, giveUp := m.box.wait(id)
	defer giveUp()
	var refused error
	if err := m.ask(ctx, func(now time.Time, t *correlate.Tracker) { refused = change(now, t) }); err != nil {
		return 0, blixard.Errorf(blixard.CodeTimeout, "not done in time: %v", err)
	}
	if refused != nil {
		return 0, refused
	}
	select {
	case index := <-written:
		return index, nil
	case <-ctx.Done():
		return 0, blixard.Errorf(blixard.CodeTimeout, "not acknowledged in time; it is written when the store takes it")
	}
}
