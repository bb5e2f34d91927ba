package main_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/lab"
)

// withVMs is a site with the daemon and three VMs that run.
func withVMs(t *testing.T, names ...string) *site {
	t.Helper()
	s := newSite(t, false)
	for _, n := range names {
		s.ok(s.AddVM(t.Context(), lab.VM{Name: n}))
	}
	s.ok(s.StartVMs(t.Context(), names...))
	s.start()
	s.awaitState(15*time.Second, blixard.StateRunning, names...)
	s.settled()
	return s
}

// settled waits until nothing waits to be written.
func (s *site) settled() {
	s.t.Helper()
	s.within(15*time.Second, "everything is written", func() error {
		c := s.cluster()
		if !c.Store.Healthy || c.Store.Pending+c.Store.Buffered > 0 {
			return fmt.Errorf("%+v", c.Store)
		}
		return nil
	})
}

// transitions are the states a VM went through by its events, from index on.
func (s *site) transitions(name string, after uint64) []string {
	s.t.Helper()
	var out []string
	for _, e := range s.events() {
		if e.Type == blixard.EventState && e.VM == name && e.Index > after {
			out = append(out, e.To)
		}
	}
	return out
}

// last is the index of the newest event.
func (s *site) last() uint64 {
	s.t.Helper()
	events := s.events()
	if len(events) == 0 {
		return 0
	}
	return events[len(events)-1].Index
}

func TestTransitions(t *testing.T) {
	s := withVMs(t, "web-1", "plain")
	s.ok(s.AddVM(t.Context(), lab.VM{Name: "mute", Hypervisor: "kvmtool"})) // has no shutdown command
	s.ok(s.StartVMs(t.Context(), "mute"))
	s.awaitState(10*time.Second, blixard.StateRunning, "mute")
	s.settled()
	from := s.last()

	s.exec("systemctl", "kill", "-s", "KILL", "--kill-whom=main", "microvm@web-1")
	s.awaitState(5*time.Second, blixard.StateStarting, "web-1")
	s.awaitState(15*time.Second, blixard.StateRunning, "web-1")
	s.exec("systemctl", "stop", "microvm@mute")
	if p := s.show("microvm@mute", "ActiveState", "Result"); p["ActiveState"] != "failed" {
		t.Fatalf("a VM without a shutdown command ended as %v, so this test shows nothing", p)
	}
	mute := s.awaitState(5*time.Second, blixard.StateStopped, "mute")["mute"]
	if !mute.Intended || mute.Health.Status != blixard.Healthy {
		t.Errorf("a stop on purpose is shown as %+v, health %+v", mute.VMStatus, mute.Health)
	}
	s.settled()
	got := s.transitions("web-1", from)
	if len(got) < 2 || got[len(got)-1] != "running" || !slices.Contains(got, "starting") {
		t.Errorf("web-1 went through %v, want starting and at last running", got)
	}
	killed := slices.ContainsFunc(s.events(), func(e blixard.Event) bool {
		return e.VM == "web-1" && e.Index > from && e.ExitSignal == "SIGKILL"
	})
	if !killed {
		t.Error("no event names the signal that ended web-1")
	}
	if vm := s.vms()["web-1"]; vm.RestartsLastHour == nil || *vm.RestartsLastHour != 1 {
		t.Errorf("restarts in the last hour: %v, want 1", vm.RestartsLastHour)
	}
}

// TestManagerFaults has systemd and the bus go away in every way that leaves the
// VMs running: the daemon heals within 5 s and no VM changes its state.
func TestManagerFaults(t *testing.T) {
	s := withVMs(t, "web-1", "web-2", "victim-1", "victim-2", "victim-3", "victim-4")
	for _, fault := range []struct{ name, command, victim string }{
		{"daemon-reload", "systemctl daemon-reload", "victim-1"},
		{"daemon-reexec", "systemctl daemon-reexec", "victim-2"},
		{"dbus restarted", "systemctl restart dbus.service", "victim-3"},
		{"dbus killed", "systemctl kill -s KILL dbus.service", "victim-4"},
	} {
		t.Run(fault.name, func(t *testing.T) {
			s := &site{s.Host, t}
			from := s.last()
			s.exec("sh", "-c", fault.command)
			start := time.Now()
			s.exec("systemctl", "kill", "-s", "KILL", "--kill-whom=main", "microvm@"+fault.victim)
			s.within(5*time.Second, "a change after it is seen", func() error {
				if st := s.vms()[fault.victim].State; st != blixard.StateStarting {
					return fmt.Errorf("%s is %s", fault.victim, st)
				}
				return nil
			})
			t.Logf("healed in %s", time.Since(start).Round(time.Millisecond))
			s.awaitState(15*time.Second, blixard.StateRunning, "web-1", "web-2", fault.victim)
			s.settled()
			for _, name := range []string{"web-1", "web-2"} {
				if got := s.transitions(name, from); len(got) > 0 {
					t.Errorf("%s, which ran on, is said to have become %v", name, got)
				}
			}
		})
	}
}

// memberPID is the process of the store's member.
func (s *site) memberPID() string {
	s.t.Helper()
	main := s.show("blixard-monitor", "MainPID")["MainPID"]
	return s.exec("pgrep", "-P", main, "-f", "blixard-monitor member")
}

func TestMemberFaults(t *testing.T) {
	s := withVMs(t, "web-1", "web-2")
	for _, fault := range []struct{ name, signal string }{{"killed", "KILL"}, {"hung", "STOP"}} {
		t.Run(fault.name, func(t *testing.T) {
			s := &site{s.Host, t}
			from := s.last()
			before := s.cluster().Store.Members[0].Restarts
			s.exec("kill", "-"+fault.signal, s.memberPID())
			if fault.signal == "STOP" {
				s.within(30*time.Second, "cluster status says degraded", func() error {
					if code, out := s.code("blixard", "cluster", "status"); code != 10 {
						return fmt.Errorf("it ends with %d:\n%s", code, out)
					}
					return nil
				})
			}
			// The host is watched on, and answered for.
			s.exec("systemctl", "stop", "microvm@web-2")
			s.awaitState(3*time.Second, blixard.StateStopped, "web-2")
			s.exec("systemctl", "start", "microvm@web-2")
			s.awaitState(3*time.Second, blixard.StateRunning, "web-2")
			s.within(60*time.Second, "the member is started anew", func() error {
				if m := s.cluster().Store.Members[0]; m.Restarts == before || m.State != "running" {
					return fmt.Errorf("%+v", m)
				}
				return nil
			})
			s.settled()
			got := s.transitions("web-2", from)
			if i := slices.Index(got, "stopped"); i < 0 || got[len(got)-1] != "running" {
				t.Errorf("web-2 went through %v, want stopped and at last running", got)
			}
			for i := 1; i < len(got); i++ {
				if got[i] == got[i-1] {
					t.Errorf("a transition of web-2 is told twice: %v", got)
				}
			}
		})
	}
}

// TestMemberDiskFull fills the disk under the store: the host is watched on, the
// fault is told, and what happened meanwhile is written when there is room.
func TestMemberDiskFull(t *testing.T) {
	s := newSite(t, false)
	s.ok(s.AddVM(t.Context(), lab.VM{Name: "web-1"}))
	s.ok(s.StartVMs(t.Context(), "web-1"))
	// The unit's own state directory is a file system of its own, as it may be.
	s.exec("sh", "-ec", `mkdir -p /var/lib/blixard
		mount -t tmpfs -o size=200m,mode=0700,uid=$(id -u blixard),gid=$(id -g blixard) tmpfs /var/lib/blixard`)
	s.start()
	s.awaitState(15*time.Second, blixard.StateRunning, "web-1")
	s.settled()
	from := s.last()
	s.exec("sh", "-c", "dd if=/dev/zero of=/var/lib/blixard/filler bs=64k 2>/dev/null; true")
	// Enough is written to need room.
	stop := func() {
		s.exec("systemctl", "stop", "microvm@web-1")
		s.awaitState(5*time.Second, blixard.StateStopped, "web-1")
	}
	start := func() {
		s.exec("systemctl", "start", "microvm@web-1")
		s.awaitState(5*time.Second, blixard.StateRunning, "web-1")
	}
	for range 5 {
		stop()
		start()
	}
	stop()
	s.exec("rm", "/var/lib/blixard/filler")
	s.within(90*time.Second, "everything is written once there is room", func() error {
		c := s.cluster()
		if !c.Store.Healthy || c.Store.Pending+c.Store.Buffered > 0 {
			return fmt.Errorf("%+v", c.Store)
		}
		return nil
	})
	got := s.transitions("web-1", from)
	if n := strings.Count(strings.Join(got, " "), "stopped"); n != 6 || got[len(got)-1] != "stopped" {
		t.Errorf("web-1 stopped 6 times; its events say %v", got)
	}
}

// TestDaemonKilled kills the daemon again and again: records and history stay,
// nothing is told twice, and no VM is said to have changed.
func TestDaemonKilled(t *testing.T) {
	s := withVMs(t, "web-1", "web-2")
	from := s.last()
	for range 5 {
		pid := s.show("blixard-monitor", "MainPID")["MainPID"]
		s.exec("kill", "-KILL", pid)
		s.within(15*time.Second, "it is started anew and answers", func() error {
			if code, out := s.code("blixard", "vm", "list", "-o", "name"); code != 0 || s.show("blixard-monitor", "MainPID")["MainPID"] == pid {
				return fmt.Errorf("code %d: %s", code, out)
			}
			return nil
		})
		s.awaitState(15*time.Second, blixard.StateRunning, "web-1", "web-2")
	}
	s.settled()
	for _, e := range s.events() {
		if e.Index > from && e.VM != "" {
			t.Errorf("nothing happened to %s, yet there is %+v", e.VM, e)
		}
	}
	seen := map[uint64]bool{}
	for _, e := range s.events() {
		if seen[e.Index] {
			t.Errorf("index %d is told twice", e.Index)
		}
		seen[e.Index] = true
	}
}

// TestWhileAway has VMs change while the daemon is down.
func TestWhileAway(t *testing.T) {
	s := withVMs(t, "web-1", "web-2")
	from := s.last()
	s.exec("systemctl", "stop", "blixard-monitor")
	s.exec("systemctl", "stop", "microvm@web-2")
	s.start()
	s.awaitState(15*time.Second, blixard.StateStopped, "web-2")
	s.settled()
	if got := s.transitions("web-2", from); len(got) != 1 || got[0] != "stopped" {
		t.Errorf("web-2 was stopped while the daemon was away; its events say %v", got)
	}
	if got := s.transitions("web-1", from); len(got) != 0 {
		t.Errorf("web-1 ran on; its events say %v", got)
	}
}

// TestStorm restarts many VMs at once: once settled, everything shown equals
// what systemd says.
func TestStorm(t *testing.T) {
	s := newSite(t, false)
	names, err := s.AddVMs(t.Context(), lab.VM{Name: "crowd"}, 100)
	s.ok(err)
	s.ok(s.StartVMs(t.Context(), names...))
	s.start()
	s.awaitState(30*time.Second, blixard.StateRunning, names...)
	for range 2 {
		s.exec("sh", "-c", "systemctl kill -s KILL --kill-whom=main 'microvm@crowd*'")
		s.within(60*time.Second, "all are restarted", func() error {
			out := s.exec("sh", "-c", "systemctl list-units --no-legend --plain 'microvm@crowd*' | grep -c ' running ' || true")
			if n, _ := strconv.Atoi(out); n != len(names) {
				return fmt.Errorf("%s run", out)
			}
			return nil
		})
	}
	s.awaitState(30*time.Second, blixard.StateRunning, names...)
	s.within(30*time.Second, "the list equals systemd's", func() error { return equalsSystemd(s, s.vms()) })
	for name, vm := range s.vms() {
		if vm.RestartsLastHour == nil || *vm.RestartsLastHour != 2 {
			t.Errorf("%s was restarted twice, shown: %v", name, vm.RestartsLastHour)
			break
		}
	}
}
