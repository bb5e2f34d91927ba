package monitor

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/blixard/blixard"
)

// TestMonitor_hint: a change that is hinted is known at once.
func TestMonitor_hint(t *testing.T) {
	onHost(t, func(t *testing.T, h *host) {
		h.system.run(vmUnit("web"), "a", 0)
		h.start()
		h.expect("web", blixard.StateRunning, "a")
		start := time.Now()
		h.system.set(vmUnit("web"), func(p *blixard.UnitProperties) {
			p.ActiveState, p.SubState, p.Result, p.ExecMainCode, p.ExecMainStatus = "activating", "auto-restart", "exit-code", 1, 1
		})
		h.system.hint(blixard.Hints{Units: []string{vmUnit("web")}})
		h.expect("web", blixard.StateStarting, "a")
		h.system.told(vmUnit("web"), "b", 1)
		h.expect("web", blixard.StateRunning, "b")
		h.system.told(vmUnit("new"), "n", 0)
		h.expect("new", blixard.StateRunning, "n")
		h.system.gone(vmUnit("new"))
		h.system.hint(blixard.Hints{Units: []string{vmUnit("new")}})
		h.expect("new", blixard.StateStopped, "")
		if d := time.Since(start); d != 0 {
			t.Errorf("it took %v", d)
		}
	})
}

// TestMonitor_jobs: the result of a start that failed before it began arrives
// with the unit's hint or alone.
func TestMonitor_jobs(t *testing.T) {
	onHost(t, func(t *testing.T, h *host) {
		for _, name := range []string{"web", "db"} {
			h.system.set(vmUnit(name), func(p *blixard.UnitProperties) { p.ActiveState, p.SubState = "inactive", "dead" })
		}
		h.start()
		h.system.hint(blixard.Hints{Units: []string{vmUnit("web")}, Jobs: []blixard.JobResult{{Unit: vmUnit("web"), Result: "dependency"}}})
		h.system.hint(blixard.Hints{Jobs: []blixard.JobResult{{Unit: vmUnit("db"), Result: "dependency"}, {Unit: "other.service", Result: "failed"}}})
		for _, name := range []string{"web", "db"} {
			h.expect(name, blixard.StateStopped, "")
			if v := h.vm("system", name); v.Result != "dependency" || v.Health.Status != blixard.Critical {
				t.Errorf("%s: result %q, health %+v", name, v.Result, v.Health)
			}
		}
	})
}

// TestMonitor_listing: what nobody hinted at is found by the next listing, and
// listings keep their places however long they take.
func TestMonitor_listing(t *testing.T) {
	onHost(t, func(t *testing.T, h *host) {
		h.system.run(vmUnit("web"), "a", 0)
		h.system.listTakes = 700 * time.Millisecond
		h.start()
		h.sleep(time.Second)
		h.system.run(vmUnit("lost"), "l", 0)
		h.sleep(31 * time.Second)
		h.expect("lost", blixard.StateRunning, "l")
		base := h.system.listed()[1]
		for i := 1; i <= 10; i++ {
			// A hint that is being worked off when a listing is due delays that
			// one, and none after it.
			place := base.Add(time.Duration(2*i-1) * 30 * time.Second)
			h.sleep(time.Until(place.Add(-300 * time.Millisecond)))
			h.system.told(vmUnit("web"), fmt.Sprint(i), uint32(i))
			h.sleep(31*time.Second + 300*time.Millisecond)
		}
		times := h.system.listed()[1:]
		if len(times) != 21 {
			t.Fatalf("%d listings, want 21", len(times))
		}
		for i, at := range times {
			late, allowed := at.Sub(base.Add(time.Duration(i)*30*time.Second)), time.Duration(0)
			if i%2 == 1 {
				allowed = 400 * time.Millisecond
			}
			if late < 0 || late > allowed {
				t.Errorf("listing %d was %v late", i, late)
			}
		}
	})
}

// TestMonitor_listingReadsChanges: a listing reads the properties of what
// changed, and of nothing else.
func TestMonitor_listingReadsChanges(t *testing.T) {
	onHost(t, func(t *testing.T, h *host) {
		for i := range 20 {
			h.system.run(vmUnit(fmt.Sprintf("vm%d", i)), "a", 0)
		}
		h.start()
		if r := h.system.readCount(); len(r) != 20 {
			t.Errorf("the first listing read %v", r)
		}
		h.sleep(65 * time.Second)
		if r := h.system.readCount(); len(r) != 0 {
			t.Errorf("nothing changed, and read was %v", r)
		}
		h.system.set(vmUnit("vm3"), func(p *blixard.UnitProperties) { p.ActiveState, p.SubState = "failed", "failed" })
		h.sleep(30 * time.Second)
		if r := h.system.readCount(); len(r) != 1 || r[vmUnit("vm3")] != 1 {
			t.Errorf("one changed, and read was %v", r)
		}
	})
}

// TestMonitor_all: when hints were lost, every unit is read again, even one
// whose row looks as before.
func TestMonitor_all(t *testing.T) {
	onHost(t, func(t *testing.T, h *host) {
		for i := range 20 {
			h.system.run(vmUnit(fmt.Sprintf("vm%d", i)), "a", 0)
		}
		h.start()
		h.system.readCount()
		h.system.run(vmUnit("vm7"), "b", 1) // a whole restart that nobody hinted at
		h.system.hint(blixard.Hints{All: true})
		h.expect("vm7", blixard.StateRunning, "b")
		if r := h.system.readCount(); len(r) != 20 {
			t.Errorf("read were %d units: %v", len(r), r)
		}
	})
}

// TestMonitor_manyHints: beyond 64 hinted units one listing is made instead.
func TestMonitor_manyHints(t *testing.T) {
	for _, n := range []int{hintUnits, hintUnits + 1} {
		onHost(t, func(t *testing.T, h *host) {
			for i := range 100 {
				h.system.run(vmUnit(fmt.Sprintf("vm%d", i)), "a", 0)
			}
			h.start()
			h.system.readCount()
			listings := len(h.system.listed())
			var units []string
			for i := range n {
				h.system.run(vmUnit(fmt.Sprintf("vm%d", i)), "b", 1)
				units = append(units, vmUnit(fmt.Sprintf("vm%d", i)))
			}
			h.system.hint(blixard.Hints{Units: units})
			for i := range n {
				h.expect(fmt.Sprintf("vm%d", i), blixard.StateRunning, "b")
			}
			if r := h.system.readCount(); len(r) != n {
				t.Errorf("%d hints: %d units were read", n, len(r))
			}
			want := 0
			if n > hintUnits {
				want = 1
			}
			if got := len(h.system.listed()) - listings; got != want {
				t.Errorf("%d hints: %d listings, want %d", n, got, want)
			}
		})
	}
}

// TestMonitor_unitHangs: a unit whose properties do not come delays no other,
// and is not shown as if nothing had happened to it.
func TestMonitor_unitHangs(t *testing.T) {
	onHost(t, func(t *testing.T, h *host) {
		for _, name := range []string{"hung", "web", "db"} {
			h.system.run(vmUnit(name), "a", 0)
		}
		h.start()
		hang := make(chan struct{})
		h.system.mu.Lock()
		h.system.hangs[vmUnit("hung")] = hang
		h.system.mu.Unlock()

		h.system.run(vmUnit("hung"), "b", 1)
		h.system.run(vmUnit("web"), "b", 1)
		h.system.hint(blixard.Hints{Units: []string{vmUnit("hung"), vmUnit("web")}})
		h.sleep(time.Second)
		h.expect("web", blixard.StateRunning, "b")
		h.system.told(vmUnit("db"), "b", 1)
		h.expect("db", blixard.StateRunning, "b")
		h.sleep(callDeadline)
		if v := h.vm("system", "hung"); v.InvocationID == "a" {
			t.Errorf("the unit that hangs is shown as it was: %+v", v.VMStatus)
		}
		// For as long as it hangs, listings go on as well.
		h.system.run(vmUnit("new"), "n", 0)
		h.sleep(31 * time.Second)
		h.expect("new", blixard.StateRunning, "n")
		if s := h.Stuck(30 * time.Second); s != "" {
			t.Errorf("stuck: %s", s)
		}
		close(hang)
		h.sleep(31 * time.Second)
		h.expect("hung", blixard.StateRunning, "b")
		if v := h.vm("system", "hung"); *v.Restarts != 1 {
			t.Errorf("restarts %d", *v.Restarts)
		}
		if lost := h.store.kept("", blixard.EventManagerLost); len(lost) != 0 {
			t.Errorf("the manager was told lost: %+v", lost)
		}
	})
}

// TestMonitor_unitAnswersLate: an answer that comes late is taken in when it
// comes, and what changed meanwhile is read again.
func TestMonitor_unitAnswersLate(t *testing.T) {
	onHost(t, func(t *testing.T, h *host) {
		h.system.run(vmUnit("slow"), "a", 0)
		h.start()
		hang := make(chan struct{})
		h.system.mu.Lock()
		h.system.hangs[vmUnit("slow")] = hang
		h.system.mu.Unlock()
		h.system.readCount()
		h.system.told(vmUnit("slow"), "b", 1)
		h.sleep(2 * time.Second)
		h.expect("slow", blixard.StateRunning, "a")
		h.system.hint(blixard.Hints{Units: []string{vmUnit("slow")}})
		h.sleep(2 * time.Second)
		if n := h.system.readCount()[vmUnit("slow")]; n != 1 {
			t.Errorf("a unit that does not answer was asked %d times at once", n)
		}
		h.system.set(vmUnit("slow"), func(p *blixard.UnitProperties) { p.ActiveState, p.SubState = "activating", "auto-restart" })
		h.system.hint(blixard.Hints{Units: []string{vmUnit("slow")}})
		h.sleep(2 * time.Second)
		h.system.mu.Lock()
		delete(h.system.hangs, vmUnit("slow"))
		h.system.mu.Unlock()
		close(hang)
		h.expect("slow", blixard.StateStarting, "b")
		if e := h.store.kept("slow", blixard.EventRestart); len(e) != 1 || e[0].Count != 1 {
			t.Errorf("events %+v", e)
		}
	})
}

// TestMonitor_manyUnitsHang: more units hang than are read at once.
func TestMonitor_manyUnitsHang(t *testing.T) {
	onHost(t, func(t *testing.T, h *host) {
		var hung []string
		for i := range calls + 5 {
			name := fmt.Sprintf("hung%d", i)
			h.system.run(vmUnit(name), "a", 0)
			hung = append(hung, vmUnit(name))
		}
		h.system.run(vmUnit("web"), "a", 0)
		h.start()
		hang := make(chan struct{})
		h.system.mu.Lock()
		for _, u := range hung {
			h.system.hangs[u] = hang
		}
		h.system.mu.Unlock()
		h.system.hint(blixard.Hints{Units: hung})
		h.sleep(2 * time.Second)
		h.system.told(vmUnit("web"), "b", 1)
		h.expect("web", blixard.StateRunning, "b")
		h.sleep(time.Minute)
		h.expect("web", blixard.StateRunning, "b")
		close(hang)
		h.sleep(time.Minute)
		for i := range hung {
			h.expect(fmt.Sprintf("hung%d", i), blixard.StateRunning, "a")
		}
	})
}

// TestMonitor_lostWhileReading: a connection that breaks while units are read
// says nothing about the units.
func TestMonitor_lostWhileReading(t *testing.T) {
	onHost(t, func(t *testing.T, h *host) {
		for i := range 40 {
			h.system.run(vmUnit(fmt.Sprintf("vm%d", i)), "a", 0)
		}
		h.start()
		hang := make(chan struct{})
		h.system.mu.Lock()
		for i := range 40 {
			h.system.hangs[vmUnit(fmt.Sprintf("vm%d", i))] = hang
		}
		h.system.mu.Unlock()
		h.sleep(time.Second)
		h.store.mu.Lock()
		before := len(h.store.batches)
		h.store.mu.Unlock()
		h.system.hint(blixard.Hints{All: true})
		h.sleep(100 * time.Millisecond)
		h.system.drop(errors.New("no such file or directory"))
		h.sleep(time.Second)
		for i := range 40 {
			h.expect(fmt.Sprintf("vm%d", i), blixard.StateRunning, "a")
		}
		for _, b := range h.store.batches[before:] {
			if len(b.Commands) != 0 {
				t.Errorf("written was %+v", b.Commands)
			}
		}
		close(hang)
		h.system.rise()
	})
}

// TestMonitor_unreadable: a unit that cannot be read is told by its row, and
// read again.
func TestMonitor_unreadable(t *testing.T) {
	onHost(t, func(t *testing.T, h *host) {
		h.system.run(vmUnit("web"), "a", 0)
		h.start()
		h.system.mu.Lock()
		h.system.broken[vmUnit("web")] = true
		h.system.mu.Unlock()
		h.system.told(vmUnit("web"), "b", 1)
		h.expect("web", blixard.StateRunning, "")
		if v := h.vm("system", "web"); v.Restarts != nil || v.Unavailable["restarts"] == "" {
			t.Errorf("restarts %v, because %v", v.Restarts, v.Unavailable)
		}
		h.system.mu.Lock()
		h.system.broken[vmUnit("web")] = false
		h.system.mu.Unlock()
		h.sleep(31 * time.Second)
		h.expect("web", blixard.StateRunning, "b")
	})
}

// TestMonitor_lostConnection: a connection that breaks is made anew at once,
// and all is listed and read again. Nothing is said to have happened to VMs.
func TestMonitor_lostConnection(t *testing.T) {
	onHost(t, func(t *testing.T, h *host) {
		h.system.run(vmUnit("web"), "a", 0)
		h.system.run(vmUnit("db"), "a", 0)
		h.start()
		h.system.run(vmUnit("db"), "b", 1) // unhinted, and its row looks as before
		h.system.drop(nil)
		h.sleep(2 * time.Second)
		h.expect("web", blixard.StateRunning, "a")
		h.expect("db", blixard.StateRunning, "b")
		if e := h.store.kept("web", blixard.EventState, blixard.EventStale, blixard.EventReturned); len(e) != 0 {
			t.Errorf("events %+v", e)
		}
		node := h.store.kept("", blixard.EventManagerLost, blixard.EventManagerReturned)
		if len(node) != 2 || node[0].Type != blixard.EventManagerLost || node[1].Type != blixard.EventManagerReturned {
			t.Errorf("events %+v", node)
		}
	})
}

// TestMonitor_redial: a manager that stays away is dialed again and again, with
// bounded pauses, and back within 5 s; meanwhile what is known ages to unknown,
// and nothing is written of it.
func TestMonitor_redial(t *testing.T) {
	onHost(t, func(t *testing.T, h *host) {
		h.system.run(vmUnit("web"), "a", 0)
		h.start()
		batches := func() int { h.store.mu.Lock(); defer h.store.mu.Unlock(); return len(h.store.batches) }
		h.system.drop(errors.New("no such file or directory"))
		h.sleep(time.Second)
		written := batches()
		before := len(h.system.dialed())
		h.sleep(time.Minute)
		h.expect("web", blixard.StateRunning, "a")
		h.sleep(9 * time.Minute)
		h.expect("web", blixard.StateUnknown, "")
		if m := h.View().Managers["system"]; m.Lost.IsZero() || m.Reason != "no such file or directory" {
			t.Errorf("manager %+v", m)
		}
		if h.Stuck(10*time.Second) != "" {
			t.Errorf("stuck: %s", h.Stuck(10*time.Second))
		}
		dials := h.system.dialed()[before:]
		if n := len(dials); n < 200 || n > 1200 {
			t.Errorf("%d dials in ten minutes", n)
		}
		for i := 1; i < len(dials); i++ {
			if d := dials[i].Sub(dials[i-1]); d > 3*time.Second+time.Millisecond {
				t.Errorf("a pause of %v between dials", d)
			}
		}
		if n := batches() - written; n != 0 {
			t.Errorf("written was %+v", h.store.batches[written:])
		}
		h.system.rise()
		h.sleep(5 * time.Second)
		h.expect("web", blixard.StateRunning, "a")
		if e := h.store.kept("web", blixard.EventState, blixard.EventStale); len(e) != 0 {
			t.Errorf("events %+v", e)
		}
		// The next loss begins with short pauses again.
		before = len(h.system.dialed())
		h.system.drop(nil)
		h.sleep(200 * time.Millisecond)
		h.expect("web", blixard.StateRunning, "a")
		if len(h.system.dialed()) == before {
			t.Error("it was not dialed again within 200 ms")
		}
	})
}

// TestMonitor_managerHangs: a manager that does not answer is lost after the
// call's deadline, and listed again when it answers.
func TestMonitor_managerHangs(t *testing.T) {
	onHost(t, func(t *testing.T, h *host) {
		h.system.run(vmUnit("web"), "a", 0)
		h.start()
		hang := make(chan struct{})
		h.system.mu.Lock()
		h.system.listHangs = hang
		h.system.mu.Unlock()
		h.system.told(vmUnit("web"), "b", 1)
		h.sleep(5 * time.Minute)
		h.expect("web", blixard.StateUnknown, "")
		h.system.mu.Lock()
		h.system.listHangs = nil
		h.system.mu.Unlock()
		close(hang)
		h.sleep(5 * time.Second)
		h.expect("web", blixard.StateRunning, "b")
	})
}

// TestMonitor_reloading: while the manager reloads nothing is asked; then
// everything is listed.
func TestMonitor_reloading(t *testing.T) {
	onHost(t, func(t *testing.T, h *host) {
		h.system.run(vmUnit("web"), "a", 0)
		h.start()
		listings := len(h.system.listed())
		h.system.hint(blixard.Hints{Reloading: true})
		h.sleep(time.Second)
		if n := len(h.system.listed()); n != listings {
			t.Errorf("%d listings while it reloads", n-listings)
		}
		h.system.run(vmUnit("web"), "b", 1)
		h.system.hint(blixard.Hints{All: true})
		h.expect("web", blixard.StateRunning, "b")
	})
}

// TestMonitor_unlistedUnit: a unit that vanishes between its listing and its
// reading is not loaded.
func TestMonitor_unlistedUnit(t *testing.T) {
	onHost(t, func(t *testing.T, h *host) {
		h.files.define("web", "qemu")
		h.system.run(vmUnit("web"), "a", 0)
		hang := make(chan struct{})
		h.system.hangs[vmUnit("web")] = hang
		h.start()
		h.system.gone(vmUnit("web"))
		close(hang)
		h.sleep(time.Second)
		h.expect("web", blixard.StateStopped, "")
	})
}
