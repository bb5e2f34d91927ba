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

// equalsSystemd compares what is shown of system VMs with what systemd says of
// their units, for those that are loaded.
func equalsSystemd(s *site, vms map[string]blixard.VM) error {
	for name, vm := range vms {
		if vm.Manager != blixard.SystemManager || vm.Restarts == nil {
			continue
		}
		p := s.show(vm.Unit, "LoadState", "SubState", "MainPID", "InvocationID", "NRestarts")
		switch {
		case p["LoadState"] != "loaded":
			return fmt.Errorf("%s: shown as loaded, is %s", name, p["LoadState"])
		case p["SubState"] != vm.Substate:
			return fmt.Errorf("%s: substate %s, systemd says %s", name, vm.Substate, p["SubState"])
		case p["MainPID"] != strconv.Itoa(int(vm.MainPID)):
			return fmt.Errorf("%s: main PID %d, systemd says %s", name, vm.MainPID, p["MainPID"])
		case p["InvocationID"] != vm.InvocationID:
			return fmt.Errorf("%s: invocation %s, systemd says %s", name, vm.InvocationID, p["InvocationID"])
		case p["NRestarts"] != strconv.Itoa(int(*vm.Restarts)):
			return fmt.Errorf("%s: %d restarts, systemd says %s", name, *vm.Restarts, p["NRestarts"])
		}
	}
	return nil
}

func TestDiscovery(t *testing.T) {
	s := newSite(t, true)
	ctx := t.Context()
	zoo, err := s.AddZoo(ctx)
	s.ok(err)
	s.ok(s.AddVM(ctx, lab.VM{Name: "idle", Provenance: lab.Declared}))
	hostile, err := s.HostileInstances(ctx)
	s.ok(err)
	for _, p := range lab.AllPlanted() {
		s.ok(s.Plant("planted-"+string(p), p))
	}
	u, err := s.AddUser(ctx, "ada")
	s.ok(err)
	s.ok(u.AddVM(ctx, lab.VM{Name: "web-1"}))
	lookAlikes, err := u.AddLookAlikes(ctx)
	s.ok(err)
	_, err = u.Exec(ctx, "systemctl", "--user", "start", "microvm-web-1.service")
	s.ok(err)
	s.start()
	s.exec("sh", "-c", "systemctl start --no-block "+strings.Join(quoted(append(slices.Clone(zoo.Running), zoo.Looping...)), " "))
	user := fmt.Sprintf("user:%d/web-1", u.UID)
	vms := s.awaitState(20*time.Second, blixard.StateRunning, append(slices.Clone(zoo.Running), user)...)
	s.awaitState(60*time.Second, blixard.StateCrashlooping, zoo.Looping...)

	for _, name := range append(append(append([]string{"idle"}, zoo.Running...), zoo.Looping...), zoo.Failing...) {
		if _, ok := vms[name]; !ok {
			t.Errorf("%s is not found", name)
		}
	}
	if vm := vms["idle"]; vm.State != blixard.StateStopped || vm.Provenance != blixard.ProvenanceDeclared {
		t.Errorf("idle is %s, %q, want stopped and declared", vm.State, vm.Provenance)
	}
	for _, name := range slices.Concat(hostile.Running, hostile.Failed, hostile.Skipped) {
		if _, ok := vms[name]; !ok {
			t.Errorf("the instance %q, which systemd lists, is not shown", name)
		}
	}
	for _, unit := range lookAlikes {
		for id, vm := range vms {
			if vm.Unit == unit {
				t.Errorf("%s was taken for the VM %s", unit, id)
			}
		}
	}
	for id, vm := range vms {
		if strings.HasPrefix(vm.Unit, "microvm-") && vm.Manager == blixard.SystemManager {
			t.Errorf("the helper %s was taken for the VM %s", vm.Unit, id)
		}
	}
	if a, b := vms["web-1"], vms[user]; a.MainPID == b.MainPID || a.Manager != "system" || b.Manager != fmt.Sprintf("user:%d", u.UID) {
		t.Errorf("two VMs named web-1 are shown as %+v and %+v", a, b)
	}
	if code, out := s.code("blixard", "vm", "show", "web-1"); code != 2 || !strings.Contains(out, "h1/"+user) {
		t.Errorf("a name that two VMs have ends with %d, want 2 and the candidates:\n%s", code, out)
	}
	for _, id := range []string{"h1/web-1", "h1/" + user} {
		if got := get[blixard.VM](s, "vm", "show", id).Items; len(got) != 1 || got[0].ID != id {
			t.Errorf("the address %s shows %v", id, got)
		}
	}
	// What loops changes while one looks, so each look may need another one.
	s.within(20*time.Second, "the list equals systemd's", func() error { return equalsSystemd(s, s.vms()) })
}

func quoted(names []string) []string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = "'microvm@" + n + ".service'"
	}
	return out
}

func TestDrift(t *testing.T) {
	s := newSite(t, false)
	ctx := t.Context()
	vm := lab.VM{Name: "web-1", HostName: "web-one"}
	s.ok(s.AddVM(ctx, vm))
	s.ok(s.StartVMs(ctx, "web-1"))
	s.start()
	config := func(want blixard.Config) func() error {
		return func() error {
			if got := s.vms()["web-1"].Config; got != want {
				return fmt.Errorf("config is %q", got)
			}
			return nil
		}
	}
	s.within(10*time.Second, "current", config(blixard.ConfigCurrent))
	vm.Revision = 2
	s.ok(s.Rebuild(vm))
	s.within(10*time.Second, "stale after a rebuild", config(blixard.ConfigStale))
	s.exec("systemctl", "restart", "microvm@web-1")
	s.within(10*time.Second, "current after a restart", config(blixard.ConfigCurrent))
}

func TestStaleAndBack(t *testing.T) {
	s := newSite(t, false)
	ctx := t.Context()
	vm := lab.VM{Name: "gone"}
	s.ok(s.AddVM(ctx, vm))
	s.ok(s.AddVM(ctx, lab.VM{Name: "stays"}))
	s.start()
	s.awaitState(10*time.Second, blixard.StateStopped, "gone", "stays")
	s.exec("mv", s.StateDir("gone"), "/root/gone")
	s.within(20*time.Second, "stale", func() error {
		if vm := s.vms()["gone"]; !vm.Stale || vm.State != blixard.StateUnknown {
			return fmt.Errorf("gone is %s, stale %v", vm.State, vm.Stale)
		}
		return nil
	})
	if s.vms()["stays"].Stale {
		t.Error("a VM that is there went stale")
	}
	s.exec("mv", "/root/gone", s.StateDir("gone"))
	s.awaitState(10*time.Second, blixard.StateStopped, "gone")

	// A state directory that cannot be read says nothing of its VMs.
	s.exec("chmod", "0700", "/var/lib/microvms")
	s.within(20*time.Second, "the unreadable directory is told", func() error {
		if l := get[blixard.VM](s, "vm", "list"); len(l.Problems) == 0 {
			return fmt.Errorf("no problem is told")
		}
		return nil
	})
	before := s.show("blixard-monitor", "ActiveEnterTimestampMonotonic")
	cycles(s, 5)
	if vms := s.vms(); vms["gone"].Stale || vms["stays"].Stale {
		t.Errorf("VMs went stale because their directory cannot be read")
	}
	if after := s.show("blixard-monitor", "ActiveEnterTimestampMonotonic"); after["ActiveEnterTimestampMonotonic"] != before["ActiveEnterTimestampMonotonic"] {
		t.Error("the daemon was restarted")
	}
}

// cycles waits until the system's manager was listed n times more.
func cycles(s *site, n int) {
	s.t.Helper()
	var last time.Time
	for range n + 1 {
		s.within(10*time.Second, "another listing", func() error {
			node := get[blixard.Node](s, "node", "list").Items[0]
			if node.LastSeen == nil || !node.LastSeen.After(last) {
				return fmt.Errorf("last seen %v", node.LastSeen)
			}
			last = *node.LastSeen
			return nil
		})
	}
}

func TestRemove(t *testing.T) {
	s := newSite(t, false)
	ctx := t.Context()
	s.ok(s.AddVM(ctx, lab.VM{Name: "web-1"}))
	s.ok(s.StartVMs(ctx, "web-1"))
	s.start()
	s.awaitState(10*time.Second, blixard.StateRunning, "web-1")
	s.settled()
	s.exec("blixard", "vm", "remove", "web-1")
	if vm := s.vms()["web-1"]; vm.RemovedAt == nil || vm.State != blixard.StateRunning {
		t.Errorf("a removed VM that runs is shown as %+v", vm)
	}
	s.exec("systemctl", "stop", "microvm@web-1")
	s.within(10*time.Second, "it is shown no more", func() error {
		if vm, ok := s.vms()["web-1"]; ok {
			return fmt.Errorf("it is %s", vm.State)
		}
		return nil
	})
	if code, out := s.code("blixard", "vm", "show", "web-1"); code != 3 {
		t.Errorf("showing a removed VM ends with %d, want 3:\n%s", code, out)
	}
}

func TestUsers_WithoutDropIn(t *testing.T) {
	s := newSite(t, false)
	ctx := t.Context()
	u, err := s.AddUser(ctx, "ada")
	s.ok(err)
	s.ok(u.AddVM(ctx, lab.VM{Name: "web-1"}))
	_, err = u.Exec(ctx, "systemctl", "--user", "start", "microvm-web-1.service")
	s.ok(err)
	s.start()
	id := fmt.Sprintf("user:%d/web-1", u.UID)
	var vm blixard.VM
	s.within(15*time.Second, "the user's VM is sighted", func() error {
		var ok bool
		if vm, ok = s.vms()[id]; !ok {
			return fmt.Errorf("%s is not shown", id)
		}
		return nil
	})
	if vm.State != blixard.StateUnknown || !strings.Contains(vm.Unavailable["state"], "users.conf") {
		t.Errorf("%s is %s because of %q; want unknown, and the drop-in named", id, vm.State, vm.Unavailable["state"])
	}
}
