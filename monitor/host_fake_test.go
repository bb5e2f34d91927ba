package monitor

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/correlate"
)

// host is a host with a monitor, in a bubble of time of its own.
type host struct {
	t     *testing.T
	mu    sync.Mutex
	users map[string]*manager
	*Monitor
	system *manager
	files  *fakeFiles
	store  *fakeStore
	seen   *fakeUsers
	end    func()
}

// settings are those of every test unless it says otherwise.
func (h *host) settings() Settings {
	return Settings{Interval: 30 * time.Second, UserManagers: true, Units: fakeUnits{}, Files: h.files,
		Policy: correlate.Config{Adopt: true, StaleAfter: 3, UnknownAfter: 90 * time.Second, CrashRestarts: 3, CrashWindow: 2 * time.Minute}}
}

// onHost runs f on a host whose monitor is not started yet, and ends the monitor
// after it.
func onHost(t *testing.T, f func(t *testing.T, h *host)) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{t: t, users: map[string]*manager{}, system: newManager(blixard.SystemManager),
			files: &fakeFiles{defs: map[string]correlate.Definition{}, quit: make(chan struct{})}, store: newStore(), seen: &fakeUsers{units: map[uint32][]string{}}}
		h.end = func() {}
		defer func() {
			close(h.files.quit)
			h.end()
		}()
		f(t, h)
	})
}

// start starts a monitor, the first or after end.
func (h *host) start() {
	cfg := Config{Settings: h.settings(), Node: blixard.NodeRecord{Name: "host", Version: "1"}, BufferEvents: 10000,
		Users: h.seen, Store: h.store, Meter: fakeMeter{}, Log: slog.New(slog.DiscardHandler),
		Dial: func(_ context.Context, name string, _ Units) (Bus, string, error) {
			m := h.system
			if name != blixard.SystemManager {
				h.mu.Lock()
				m = h.users[name]
				h.mu.Unlock()
				if m == nil {
					return nil, "", blixard.Errorf(blixard.CodeUnavailable, "no bus of %s", name).WithHint("log in")
				}
			}
			c, err := m.dial()
			if err != nil {
				return nil, "", err
			}
			return c, "252", nil
		}}
	h.Monitor = New(cfg)
	ctx, cancel := context.WithCancel(h.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := h.Run(ctx); err != nil {
			h.t.Errorf("the monitor ended with %v", err)
		}
	}()
	h.end = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	synctest.Wait()
}

// sleep lets time pass.
func (h *host) sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// login starts a user's manager, as the system's tells it.
func (h *host) login(uid uint32) *manager {
	name := blixard.UserManager(uid)
	m := newManager(name)
	h.mu.Lock()
	h.users[name] = m
	h.mu.Unlock()
	unit := fmt.Sprintf("user@%d.service", uid)
	h.system.set(unit, func(p *blixard.UnitProperties) { p.ActiveState, p.SubState = "active", "running" })
	h.system.hint(blixard.Hints{Units: []string{unit}})
	return m
}

// logout ends a user's manager: its bus goes first, and the system's manager
// tells two seconds later.
func (h *host) logout(uid uint32) {
	name := blixard.UserManager(uid)
	h.mu.Lock()
	m := h.users[name]
	delete(h.users, name)
	h.mu.Unlock()
	m.drop(errDead)
	h.sleep(2 * time.Second)
	unit := fmt.Sprintf("user@%d.service", uid)
	h.system.gone(unit)
	h.system.hint(blixard.Hints{Units: []string{unit}})
}

// vmUnit is the unit of a VM of the system's manager.
func vmUnit(name string) string { return "microvm@" + name + ".service" }

// run has a VM's unit run, as a new run.
func (m *manager) run(unit, inv string, n uint32) {
	m.set(unit, func(p *blixard.UnitProperties) {
		p.ActiveState, p.SubState, p.InvocationID, p.NRestarts = "active", "running", inv, n
		p.Result, p.ExecMainCode, p.ExecMainStatus, p.MainPID = "success", 0, 0, 100+n
	})
}

// told is run, with a hint.
func (m *manager) told(unit, inv string, n uint32) {
	m.run(unit, inv, n)
	m.hint(blixard.Hints{Units: []string{unit}})
}

// vm finds a VM in the present view.
func (h *host) vm(manager, name string) *blixard.VM {
	for _, e := range h.View().Entries {
		if e.VM.Manager == manager && e.VM.Name == name {
			return e.VM
		}
	}
	return nil
}

// expect fails unless a VM of the system's manager is in a state, now.
func (h *host) expect(name string, want blixard.VMState, inv string) {
	h.t.Helper()
	h.expectAt(blixard.SystemManager, name, want, inv)
}

func (h *host) expectAt(manager, name string, want blixard.VMState, inv string) {
	h.t.Helper()
	synctest.Wait()
	v := h.vm(manager, name)
	switch {
	case v == nil:
		h.t.Fatalf("%s %s is not shown, want %s", manager, name, want)
	case v.State != want || v.InvocationID != inv:
		h.t.Fatalf("%s %s is %s (run %q), want %s (run %q): %v", manager, name, v.State, v.InvocationID, want, inv, v.Unavailable)
	}
}
