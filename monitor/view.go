package monitor

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/blixard/blixard/correlate"
)

// View is what the host is known to be at one moment. It never changes.
type View struct {
	// Entries are the VMs by name.
	Entries []correlate.Entry
	// Managers are the service managers by name.
	Managers map[string]correlate.ManagerView
	// FilesReason is why the host's files are not known whole, "" when they are.
	FilesReason string
	changed     chan struct{}
}

// Changed is closed when there is a newer view.
func (v *View) Changed() <-chan struct{} { return v.changed }

// View is what is known now. It costs nothing and may be called from anywhere.
func (m *Monitor) View() *View { return m.view.Load() }

// publish makes a new view; only the engine calls it.
func (m *Monitor) publish() {
	v := &View{changed: make(chan struct{})}
	v.Entries, v.Managers = m.tracker.View()
	v.FilesReason = m.tracker.FilesReason()
	close(m.view.Swap(v).changed)
}

// Status is what the monitor says of itself.
type Status struct {
	// SystemdVersion is the host's, empty until it is known.
	SystemdVersion string
	// Loaded says that the store's records could be read.
	Loaded bool
	// StoreFailing is why the store takes no writes, since StoreSince; empty
	// when it does.
	StoreFailing string
	StoreSince   time.Time
	// Acknowledged is the greatest index that the store gave what the monitor
	// wrote, 0 when it wrote nothing yet.
	Acknowledged uint64
	// Commands and Events wait to be written.
	Commands, Events int
	// UnknownAfter is how long a state stands without being confirmed.
	UnknownAfter time.Duration
}

// Status may be called from anywhere.
func (m *Monitor) Status() Status {
	s := Status{Loaded: m.loaded.Load(), UnknownAfter: m.policy.Load().UnknownAfter}
	if v := m.systemd.Load(); v != nil {
		s.SystemdVersion = *v
	}
	s.StoreFailing, s.StoreSince, s.Acknowledged = m.writer.status()
	s.Commands, s.Events = m.box.waiting()
	return s
}

// Stuck names a loop that has not moved for longer than d, "" when all move.
// Reading files does not count: it may hang in the kernel, and is told as such.
func (m *Monitor) Stuck(d time.Duration) string { return m.beats.stuck(d) }

// beat is the last time a loop moved, by the monotonic clock.
type beat struct {
	name  string
	start time.Time
	at    atomic.Int64
}

func (b *beat) now() { b.at.Store(int64(time.Since(b.start))) }

// silent is how long ago the loop moved, 0 before it began.
func (b *beat) silent() time.Duration {
	if b.start.IsZero() {
		return 0
	}
	return time.Since(b.start) - time.Duration(b.at.Load())
}

// beats are the beats of all loops.
type beats struct {
	engine beat

	mu sync.Mutex
	// watchers are those of the present settings.
	watchers []*beat
}

// clear forgets the watchers, which are made anew, and starts the engine's.
func (bs *beats) clear() {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	bs.watchers = nil
	if bs.engine.start.IsZero() {
		bs.engine.name, bs.engine.start = "engine", time.Now()
	}
}

func (bs *beats) add(name string) *beat {
	b := &beat{name: name, start: time.Now()}
	bs.mu.Lock()
	defer bs.mu.Unlock()
	bs.watchers = append(bs.watchers, b)
	return b
}

func (bs *beats) stuck(d time.Duration) string {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	if bs.engine.silent() > d {
		return bs.engine.name
	}
	for _, b := range bs.watchers {
		if b.silent() > d {
			return b.name
		}
	}
	return ""
}
