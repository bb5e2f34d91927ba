package systemd_test

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/lab"
)

// cpu is the CPU time a process has used, in ns; 0 stands for this one.
func cpu(b *testing.B, pid int) int64 {
	b.Helper()
	clock := int32(unix.CLOCK_PROCESS_CPUTIME_ID)
	if pid != 0 {
		// The clock of another process, as clock_getcpuclockid makes it.
		clock = int32(^pid<<3 | 2)
	}
	var ts unix.Timespec
	if err := unix.ClockGettime(clock, &ts); err != nil {
		b.Fatal(err)
	}
	return ts.Nano()
}

// BenchmarkConn compares this package to godbus on one host in one run: the CPU
// that a listing takes by unit and a reading of properties by call, of this
// process (self) and of it with systemd and dbus-daemon (total).
func BenchmarkConn(b *testing.B) {
	h := bootHost(b)
	names, err := h.AddVMs(b.Context(), lab.VM{Name: "vm"}, 300)
	if err != nil {
		b.Fatal(err)
	}
	if err := h.StartVMs(b.Context(), names...); err != nil {
		b.Fatal(err)
	}
	manager, err := h.PID()
	if err != nil {
		b.Fatal(err)
	}
	bus := busPID(b, h)
	c := dial(b, onSystemBus(b, h))
	ref := refDial(b, h)
	patterns := []string{"microvm@*.service", "microvm-*@*.service"}
	measure := func(b *testing.B, per int, unit string, op func(b *testing.B)) {
		op(b)
		b.ReportAllocs()
		self, rest := cpu(b, 0), cpu(b, manager)+cpu(b, bus)
		for b.Loop() {
			op(b)
		}
		self, rest = cpu(b, 0)-self, cpu(b, manager)+cpu(b, bus)-rest
		us := func(ns int64) float64 { return float64(ns) / float64(b.N*per) / 1000 }
		b.ReportMetric(us(self), "self-µs/"+unit)
		b.ReportMetric(us(self+rest), "total-µs/"+unit)
	}
	units, err := c.ListUnits(b.Context(), patterns...)
	if err != nil || len(units) != 6*len(names) {
		b.Fatalf("%d units, %v", len(units), err)
	}
	b.Run("ListUnits/own", func(b *testing.B) {
		measure(b, len(units), "unit", func(b *testing.B) {
			if got, err := c.ListUnits(b.Context(), patterns...); err != nil || len(got) != len(units) {
				b.Fatal(len(got), err)
			}
		})
	})
	b.Run("ListUnits/godbus", func(b *testing.B) {
		measure(b, len(units), "unit", func(b *testing.B) {
			if got := refList(b, ref, patterns...); len(got) != len(units) {
				b.Fatal(len(got))
			}
		})
	})
	path := units[0].Path
	b.Run("Properties/own", func(b *testing.B) {
		measure(b, 1, "call", func(b *testing.B) {
			if p, err := c.Properties(b.Context(), path); err != nil || p.Name == "" {
				b.Fatal(p, err)
			}
		})
	})
	b.Run("Properties/godbus", func(b *testing.B) {
		measure(b, 1, "call", func(b *testing.B) {
			var p map[string]dbus.Variant
			if err := ref.Object("org.freedesktop.systemd1", dbus.ObjectPath(path)).Call("org.freedesktop.DBus.Properties.GetAll", 0, "").Store(&p); err != nil || len(p) < 100 {
				b.Fatal(len(p), err)
			}
		})
	})
}

// busPID is the pid of the host's dbus-daemon as this machine counts it.
func busPID(b *testing.B, h *lab.Host) int {
	b.Helper()
	procs, err := os.ReadFile(h.Cgroup() + "/system.slice/dbus.service/cgroup.procs")
	if err != nil {
		b.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(procs)))
	if err != nil {
		b.Fatal(err)
	}
	return pid
}
