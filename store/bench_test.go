package store

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/blixard/blixard"
)

// benchRecord is a record as a host of microvm.nix makes it.
func benchRecord(name string, pid int) blixard.RegisterVM {
	ready, restarts := true, uint32(3)
	r := register(name, blixard.StateRunning)
	r.Status = blixard.VMStatus{State: blixard.StateRunning, Substate: "running", Ready: &ready, MainPID: uint32(pid), InvocationID: fmt.Sprintf("%032x", pid),
		Restarts: &restarts, Result: "success", Since: &observedAt, ControlGroup: "/system.slice/system-microvm.slice/microvm@" + name + ".service"}
	r.Definition = blixard.VMDefinition{Hypervisor: "cloud-hypervisor", HostName: name, Config: blixard.ConfigCurrent, Provenance: blixard.ProvenanceDeclared, VsockCID: uint32(pid)}
	for _, h := range []string{"virtiofsd", "tap-interfaces", "macvtap-interfaces", "pci-devices", "set-booted"} {
		r.Helpers = append(r.Helpers, blixard.Helper{Name: h, Unit: "microvm-" + h + "@" + name + ".service", State: blixard.StateRunning, Substate: "exited"})
	}
	return r
}

func benchBatch(i, vms int) blixard.Batch {
	b := blixard.Batch{ID: fmt.Sprint("batch", i)}
	for j := range vms {
		name := fmt.Sprintf("vm-%05d", j)
		c := benchRecord(name, i+1)
		b.Commands = append(b.Commands, blixard.UpdateState{ID: c.ID, Status: c.Status, Definition: c.Definition, Helpers: c.Helpers, ObservedAt: observedAt},
			blixard.UpdateHealth{ID: c.ID, Health: blixard.VMHealth{Status: blixard.Healthy, Checks: []blixard.HealthCheck{{Name: blixard.CheckServiceState, Status: blixard.Healthy, Since: observedAt}}}})
		e := event(name, blixard.EventState)
		e.From, e.To, e.InvocationID = string(blixard.StateStarting), string(blixard.StateRunning), c.Status.InvocationID
		b.Events = append(b.Events, e)
	}
	return b
}

// registerMany registers n VMs.
func registerMany(t testing.TB, s *Store, n int) {
	t.Helper()
	for i := 0; i < n; i += MaxBatchVMs {
		b := blixard.Batch{ID: fmt.Sprint("register", i)}
		for j := i; j < min(n, i+MaxBatchVMs); j++ {
			name := fmt.Sprintf("vm-%05d", j)
			b.Commands = append(b.Commands, benchRecord(name, j+1), blixard.UpdateHealth{ID: vmID(name), Health: blixard.VMHealth{Status: blixard.Healthy,
				Checks: []blixard.HealthCheck{{Name: blixard.CheckServiceState, Status: blixard.Healthy, Message: "running", Since: observedAt}}}})
		}
		mustApply(t, s, b)
	}
}

// BenchmarkStore_Apply is one transition, or 100, acknowledged; and until it is
// in memory.
func BenchmarkStore_Apply(b *testing.B) {
	for _, vms := range []int{1, 100} {
		b.Run(fmt.Sprint(vms), func(b *testing.B) {
			_, member := memberUp(b)
			s, _ := openStore(b, member, nil)
			registerMany(b, s, 100)
			var acked, seen []time.Duration
			for i := 0; b.Loop(); i++ {
				batch := benchBatch(i, vms)
				begin := time.Now()
				index, err := s.Apply(b.Context(), batch)
				check(b, err)
				acked = append(acked, time.Since(begin))
				check(b, s.Wait(b.Context(), index))
				seen = append(seen, time.Since(begin))
			}
			for name, d := range map[string][]time.Duration{"acked": acked, "in-memory": seen} {
				slices.Sort(d)
				b.ReportMetric(float64(d[len(d)/2].Microseconds())/1000, name+"-p50-ms")
				b.ReportMetric(float64(d[len(d)*99/100].Microseconds())/1000, name+"-p99-ms")
			}
		})
	}
}

// BenchmarkStore_load is the start with 10,000 records, and what they need of
// memory.
func BenchmarkStore_load(b *testing.B) {
	const n = 10_000
	_, member := memberUp(b)
	s, stop := openStore(b, member, nil)
	registerMany(b, s, n)
	stop()
	heap := func() float64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	var held float64
	for b.Loop() {
		before := heap()
		begin := time.Now()
		s, stop := openStore(b, member, nil)
		v, err := s.Loaded(b.Context())
		check(b, err)
		b.ReportMetric(float64(time.Since(begin).Milliseconds()), "load-ms")
		if v.vms.n != n {
			b.Fatalf("%d records", v.vms.n)
		}
		held = heap() - before
		runtime.KeepAlive(v)
		stop()
	}
	b.ReportMetric(held/n, "B/VM")
}

// BenchmarkMirror_apply is one change taken in while 10,000 records are held.
func BenchmarkMirror_apply(b *testing.B) {
	c := testCodec(b)
	m := newMirror(nil, keys{DefaultPrefix}, c)
	t := newTable().builder()
	for i := range 10_000 {
		t.put(&entry{rec: blixard.VMRecord{VMID: vmID(fmt.Sprintf("vm-%05d", i))}})
	}
	v := *m.view.Load()
	v.vms = t.t
	m.publish(&v)
	e := entry{rec: blixard.VMRecord{VMID: vmID("vm-00007")}}
	b.ReportAllocs()
	for b.Loop() {
		last := m.view.Load()
		d := &draft{View: *last, tables: last.vms.builder()}
		d.tables.put(&e)
		m.publish(d.done())
	}
}
