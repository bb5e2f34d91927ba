package monitor

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/blixard/blixard"
)

func unavailable(context.Context, blixard.Batch) error {
	return blixard.Errorf(blixard.CodeUnavailable, "no leader")
}

// TestMonitor_storeAway: the store is away for long. The host is watched on, and
// when the store is back everything is written once, in order.
func TestMonitor_storeAway(t *testing.T) {
	onHost(t, func(t *testing.T, h *host) {
		h.system.run(vmUnit("web"), "r0", 0)
		h.start()
		h.sleep(time.Second)
		h.store.judge(unavailable)
		const changes = 40
		for i := 1; i <= changes; i++ {
			h.sleep(5 * time.Minute) // far apart: no crash loop
			h.system.set(vmUnit("web"), func(p *blixard.UnitProperties) {
				p.ActiveState, p.SubState, p.Result, p.ExecMainCode, p.ExecMainStatus = "activating", "auto-restart", "exit-code", 1, int32(i)
			})
			h.system.hint(blixard.Hints{Units: []string{vmUnit("web")}})
			h.expect("web", blixard.StateStarting, fmt.Sprintf("r%d", i-1))
			h.system.told(vmUnit("web"), fmt.Sprintf("r%d", i), uint32(i))
			h.expect("web", blixard.StateRunning, fmt.Sprintf("r%d", i))
		}
		s := h.Status()
		if s.StoreFailing == "" || s.Events == 0 || s.Commands == 0 || time.Since(s.StoreSince) < time.Hour {
			t.Errorf("status %+v", s)
		}
		if e := h.store.kept("web", blixard.EventState); len(e) != 0 {
			t.Fatalf("the store is away, and holds %+v", e)
		}
		h.store.judge(nil)
		h.sleep(10 * time.Second)
		if s := h.Status(); s.StoreFailing != "" || s.Events+s.Commands != 0 {
			t.Errorf("status %+v", s)
		}
		states := h.store.kept("web", blixard.EventState)
		if len(states) != 2*changes {
			t.Fatalf("%d changes of state, want %d", len(states), 2*changes)
		}
		for i, e := range states {
			from, to := "running", "starting"
			if i%2 == 1 {
				from, to = to, from
			}
			if e.From != from || e.To != to || i > 0 && e.ObservedAt.Before(states[i-1].ObservedAt) {
				t.Fatalf("change %d is %+v", i, e)
			}
		}
		if e := h.store.kept("web", blixard.EventRestart); len(e) != changes {
			t.Errorf("%d restarts, want %d", len(e), changes)
		}
		if r := h.store.record(id("web")); r.Status.InvocationID != fmt.Sprintf("r%d", changes) || *r.Status.Restarts != changes {
			t.Errorf("record %+v", r.Status)
		}
	})
}

// TestMonitor_storeFlaps: writes are lost, or applied with their answers lost,
// at random; in the end everything is there once.
func TestMonitor_storeFlaps(t *testing.T) {
	onHost(t, func(t *testing.T, h *host) {
		random, fate := rand.New(rand.NewPCG(1, 2)), rand.New(rand.NewPCG(3, 4))
		h.store.judge(func(ctx context.Context, _ blixard.Batch) error {
			switch fate.IntN(5) {
			case 0:
				return blixard.Errorf(blixard.CodeUnavailable, "no leader")
			case 1:
				return errApplied
			case 2:
				return blixard.Errorf(blixard.CodeBusy, "too many requests")
			case 3:
				if fate.IntN(10) == 0 {
					<-ctx.Done()
					return ctx.Err()
				}
			}
			return nil
		})
		for i := range 10 {
			h.system.run(vmUnit(fmt.Sprintf("vm%d", i)), "r0", 0)
		}
		h.start()
		runs := map[int]int{}
		for range 300 {
			i := random.IntN(10)
			runs[i]++
			h.system.told(vmUnit(fmt.Sprintf("vm%d", i)), fmt.Sprintf("r%d", runs[i]), uint32(runs[i]))
			h.sleep(time.Duration(random.IntN(3000)) * time.Millisecond)
		}
		h.store.judge(nil)
		h.sleep(2 * time.Minute)
		for i := range 10 {
			name := fmt.Sprintf("vm%d", i)
			count := uint64(0)
			for _, e := range h.store.kept(name, blixard.EventRestart) {
				count += e.Count
			}
			if count != uint64(runs[i]) {
				t.Errorf("%s: told of %d restarts, there were %d", name, count, runs[i])
			}
			if e := h.store.kept(name, blixard.EventRegistered); len(e) != 1 {
				t.Errorf("%s: registered %d times", name, len(e))
			}
			if r := h.store.record(id(name)); r == nil || r.Status.InvocationID != fmt.Sprintf("r%d", runs[i]) {
				t.Errorf("%s: record %+v", name, r)
			}
		}
	})
}

// TestMonitor_recordsLate: the store cannot be read for long. What is observed is
// shown, nothing is written, and then what happened is told once.
func TestMonitor_recordsLate(t *testing.T) {
	onHost(t, func(t *testing.T, h *host) {
		h.system.run(vmUnit("web"), "a", 0)
		h.system.run(vmUnit("db"), "a", 0)
		h.start()
		h.sleep(time.Second)
		h.end()
		events := len(h.store.kept("web"))

		h.store.load = make(chan struct{})
		h.system.run(vmUnit("web"), "b", 2) // while nobody watched
		h.start()
		h.expect("web", blixard.StateRunning, "b")
		if h.Status().Loaded {
			t.Error("it says that the records are loaded")
		}
		h.system.set(vmUnit("db"), func(p *blixard.UnitProperties) {
			p.ActiveState, p.SubState, p.Restart, p.Result = "failed", "failed", "no", "oom-kill"
		})
		h.system.hint(blixard.Hints{Units: []string{vmUnit("db")}})
		h.expect("db", blixard.StateFailed, "a")
		h.sleep(10 * time.Minute)
		if n := len(h.store.kept("db", blixard.EventState)); n != 0 {
			t.Errorf("%d events were written before the records were read", n)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := h.Remove(ctx, id("web")); blixard.ErrorCode(err) != blixard.CodeUnavailable {
			t.Errorf("Remove gives %v", err)
		}
		close(h.store.load)
		h.sleep(5 * time.Second)
		web, db := h.store.kept("web")[events:], h.store.kept("db", blixard.EventState)
		if len(web) != 1 || web[0].Type != blixard.EventRestart || web[0].Count != 2 {
			t.Errorf("events of web: %+v", web)
		}
		if len(db) != 1 || db[0].From != "running" || db[0].To != "failed" || db[0].Result != "oom-kill" {
			t.Errorf("events of db: %+v", db)
		}
		if r := h.store.record(id("db")); r.Status.State != blixard.StateFailed {
			t.Errorf("record of db: %+v", r.Status)
		}
	})
}

// TestMonitor_restart: the monitor ends and starts again, and nothing is said to
// have happened.
func TestMonitor_restart(t *testing.T) {
	onHost(t, func(t *testing.T, h *host) {
		h.files.define("web", "qemu")
		h.files.define("off", "qemu")
		h.system.run(vmUnit("web"), "a", 0)
		h.start()
		h.sleep(time.Minute)
		first := len(h.store.batches)
		for range 5 {
			h.end()
			h.sleep(time.Minute)
			h.start()
			h.sleep(time.Minute)
		}
		for _, name := range []string{"web", "off"} {
			if e := h.store.kept(name); len(e) != 1 || e[0].Type != blixard.EventRegistered {
				t.Errorf("events of %s: %+v", name, e)
			}
		}
		node := h.store.kept("")
		for i, e := range node {
			want := blixard.EventMonitorStarted
			if i%2 == 1 {
				want = blixard.EventMonitorStopped
			}
			if e.Type != want {
				t.Errorf("event %d of the node: %+v", i, e)
			}
		}
		for _, b := range h.store.batches[first:] {
			if len(b.Commands) != 0 {
				t.Errorf("after the first life was written %+v", b.Commands)
			}
		}
	})
}

// TestMonitor_end: the last events are written before it ends, those held back
// among them; a store that is away delays the end no longer than for a bound.
func TestMonitor_end(t *testing.T) {
	onHost(t, func(t *testing.T, h *host) {
		h.system.run(vmUnit("web"), "r0", 0)
		h.start()
		for i := 1; i <= 20; i++ {
			h.system.told(vmUnit("web"), fmt.Sprintf("r%d", i), uint32(i))
			h.sleep(time.Second)
		}
		h.store.judge(func(ctx context.Context, _ blixard.Batch) error {
			select {
			case <-time.After(100 * time.Millisecond):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		start := time.Now()
		h.end()
		if d := time.Since(start); d > time.Second {
			t.Errorf("it took %v to end", d)
		}
		var count uint64
		for _, e := range h.store.kept("web", blixard.EventRestart) {
			count += e.Count
		}
		if count != 20 {
			t.Errorf("told of %d restarts, there were 20", count)
		}
		if e := h.store.kept(""); e[len(e)-1].Type != blixard.EventMonitorStopped {
			t.Errorf("the last event is %+v", e[len(e)-1])
		}

		h.start()
		h.store.judge(func(ctx context.Context, _ blixard.Batch) error {
			<-ctx.Done()
			return ctx.Err()
		})
		h.system.told(vmUnit("web"), "last", 0)
		start = time.Now()
		h.end()
		if d := time.Since(start); d > flushTimeout+time.Second {
			t.Errorf("with a store that hangs it took %v to end", d)
		}
	})
}

// TestMonitor_Remove goes through what Remove and Adopt answer.
func TestMonitor_Remove(t *testing.T) {
	onHost(t, func(t *testing.T, h *host) {
		h.system.run(vmUnit("web"), "a", 0)
		h.start()
		h.sleep(time.Second)
		ctx := t.Context()
		code := func(what string, err error, want blixard.Code) {
			t.Helper()
			if err == nil || blixard.ErrorCode(err) != want {
				t.Errorf("%s: %v, want %s", what, err, want)
			}
		}
		_, err := h.Remove(ctx, id("nobody"))
		code("remove a VM that is not recorded", err, blixard.CodeNotFound)
		_, err = h.Remove(ctx, blixard.VMID{Node: "host", Manager: "user:1", Name: "web"})
		code("remove another manager's VM", err, blixard.CodeNotFound)
		_, err = h.Adopt(ctx, id("web"))
		code("adopt a recorded VM", err, blixard.CodeConflict)
		_, err = h.Adopt(ctx, id("nobody"))
		code("adopt a VM that is not there", err, blixard.CodeConflict)

		index, err := h.Remove(ctx, id("web"))
		if err != nil || index != h.store.index {
			t.Errorf("Remove gives %d, %v; the store is at %d", index, err, h.store.index)
		}
		if r := h.store.record(id("web")); r.RemovedAt == nil {
			t.Error("it was acknowledged, and is not removed")
		}
		if v := h.vm("system", "web"); v == nil || v.RemovedAt == nil {
			t.Errorf("it runs, and is shown as %+v", v)
		}
		_, err = h.Remove(ctx, id("web"))
		code("remove a removed VM", err, blixard.CodeNotFound)
		index, err = h.Adopt(ctx, id("web"))
		if err != nil || index != h.store.index {
			t.Errorf("Adopt gives %d, %v; the store is at %d", index, err, h.store.index)
		}
		if r := h.store.record(id("web")); r.RemovedAt != nil {
			t.Error("it was acknowledged, and is not there")
		}

		// The store does not answer in time: the outcome is unknown.
		h.store.judge(func(ctx context.Context, _ blixard.Batch) error {
			<-ctx.Done()
			return ctx.Err()
		})
		short, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		_, err = h.Remove(short, id("web"))
		code("remove with a store that hangs", err, blixard.CodeTimeout)
		h.sleep(applyTimeout)
		_, err = h.Remove(ctx, id("web"))
		code("remove with a store that is known to fail", err, blixard.CodeUnavailable)
		h.store.judge(nil)
		h.sleep(10 * time.Second)
		if r := h.store.record(id("web")); r.RemovedAt == nil {
			t.Error("what timed out was not done later")
		}

		// The store refuses the removal for good.
		if _, err = h.Adopt(ctx, id("web")); err != nil {
			t.Fatal(err)
		}
		h.store.judge(func(_ context.Context, b blixard.Batch) error {
			for _, c := range b.Commands {
				if _, ok := c.(blixard.RemoveVM); ok {
					return blixard.Errorf(blixard.CodeTooLarge, "too large")
				}
			}
			return nil
		})
		_, err = h.Remove(ctx, id("web"))
		code("remove, refused", err, blixard.CodeTooLarge)
	})
}

// TestMonitor_RemoveInFlight: a removal is acknowledged when it is written, not
// when an older write for the same VM is.
func TestMonitor_RemoveInFlight(t *testing.T) {
	onHost(t, func(t *testing.T, h *host) {
		h.start()
		h.sleep(time.Second)
		gate := make(chan struct{})
		h.store.judge(func(ctx context.Context, b blixard.Batch) error {
			select {
			case <-gate:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		h.system.told(vmUnit("web"), "a", 0) // its registration is in flight
		h.expect("web", blixard.StateRunning, "a")
		removed := make(chan error, 1)
		go func() {
			_, err := h.Remove(t.Context(), id("web"))
			if r := h.store.record(id("web")); err == nil && (r == nil || r.RemovedAt == nil) {
				err = errors.New("acknowledged before it was written")
			}
			removed <- err
		}()
		synctest.Wait()
		gate <- struct{}{}
		synctest.Wait()
		close(gate)
		if err := <-removed; err != nil {
			t.Error(err)
		}
	})
}

// TestMonitor_storm restarts VMs a thousand times, all at once and again and
// again, while hints run together, are lost and told lost, and connections
// break. In the end everything is as the script left it.
func TestMonitor_storm(t *testing.T) {
	const vms, restarts = 200, 1000
	onHost(t, func(t *testing.T, h *host) {
		random := rand.New(rand.NewPCG(7, 11))
		name := func(i int) string { return fmt.Sprintf("vm%d", i) }
		n, runs := make([]uint32, vms), make([]int, vms)
		truth := make([]uint64, vms)
		for i := range vms {
			h.system.run(vmUnit(name(i)), name(i)+"-0", 0)
			h.files.define(name(i), "qemu")
		}
		h.start()
		h.sleep(time.Second)
		for range restarts {
			i := random.IntN(vms)
			runs[i]++
			n[i]++
			truth[i]++
			unit := vmUnit(name(i))
			h.system.set(unit, func(p *blixard.UnitProperties) {
				p.ActiveState, p.SubState, p.Result, p.ExecMainCode, p.ExecMainStatus, p.MainPID = "activating", "auto-restart", "signal", 2, 9, 0
			})
			switch random.IntN(10) {
			case 0: // the hint is lost with others, and that is told
				h.system.hint(blixard.Hints{All: true})
			case 1:
				h.system.drop(nil) // the connection breaks, and hints with it
			default:
				h.system.hint(blixard.Hints{Units: []string{unit}})
			}
			if random.IntN(3) == 0 {
				time.Sleep(time.Duration(random.IntN(2000)) * time.Millisecond)
			}
			h.system.told(unit, fmt.Sprintf("%s-%d", name(i), runs[i]), n[i])
		}
		// Some end otherwise than running.
		for i := range vms {
			unit := vmUnit(name(i))
			switch i % 10 {
			case 0:
				h.system.set(unit, func(p *blixard.UnitProperties) { p.ActiveState, p.SubState, p.MainPID = "deactivating", "stop", 0 })
			case 1:
				h.system.gone(unit)
			case 2:
				h.system.set(unit, func(p *blixard.UnitProperties) {
					p.ActiveState, p.SubState, p.Restart, p.Result = "failed", "failed", "no", "oom-kill"
				})
			}
			h.system.hint(blixard.Hints{Units: []string{unit}})
		}
		h.sleep(5 * time.Minute) // the crash loops' windows pass
		for i := range vms {
			v := h.vm("system", name(i))
			r := h.store.record(id(name(i)))
			if v == nil || r == nil {
				t.Fatalf("%s is not there: %v, %v", name(i), v, r)
			}
			want, inv := blixard.StateRunning, fmt.Sprintf("%s-%d", name(i), runs[i])
			switch i % 10 {
			case 0:
				want = blixard.StateStopping
			case 1:
				want, inv = blixard.StateStopped, ""
			case 2:
				want = blixard.StateFailed
			}
			if v.State != want || v.InvocationID != inv {
				t.Errorf("%s is %s (run %q), want %s (run %q)", name(i), v.State, v.InvocationID, want, inv)
			}
			if inv != "" && (v.Restarts == nil || *v.Restarts != n[i]) {
				t.Errorf("%s: restarts %v, want %d", name(i), v.Restarts, n[i])
			}
			if !r.Status.Equal(v.VMStatus) {
				t.Errorf("%s: the record says %+v, the view %+v", name(i), r.Status, v.VMStatus)
			}
			var count uint64
			for _, e := range h.store.kept(name(i), blixard.EventRestart) {
				count += e.Count
			}
			if count != truth[i] {
				t.Errorf("%s: told of %d restarts, there were %d", name(i), count, truth[i])
			}
			at := ""
			for _, e := range h.store.kept(name(i), blixard.EventRegistered, blixard.EventState) {
				if e.Type == blixard.EventState && e.From != at {
					t.Errorf("%s: from %s, but it was %s", name(i), e.From, at)
				}
				at = e.To
			}
		}
		if c := h.Status(); c.Commands+c.Events != 0 {
			t.Errorf("status %+v", c)
		}
	})
}
