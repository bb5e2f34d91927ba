package monitor

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/blixard/blixard"
)

func userUnit(name string) string { return "microvm-" + name + ".service" }

// TestMonitor_users: users' managers come and go beside the system's.
func TestMonitor_users(t *testing.T) {
	onHost(t, func(t *testing.T, h *host) {
		h.system.run(vmUnit("web"), "a", 0)
		h.start()
		m := h.login(1000)
		m.run(userUnit("web"), "u", 0)
		h.sleep(time.Second)
		user := blixard.UserManager(1000)
		h.expectAt(user, "web", blixard.StateRunning, "u")
		h.expect("web", blixard.StateRunning, "a")
		m.told(userUnit("web"), "v", 1)
		h.expectAt(user, "web", blixard.StateRunning, "v")

		// Logged out: no loss is told, and after three listings the VM is stale.
		h.logout(1000)
		h.sleep(4 * time.Minute)
		v := h.vm(user, "web")
		if v == nil || !v.Stale {
			t.Errorf("after the logout: %+v", v)
		}
		if e := h.store.kept("", blixard.EventManagerLost, blixard.EventManagerReturned); len(e) != 0 {
			t.Errorf("a logout is told as %+v", e)
		}
		if m := h.View().Managers[user]; !m.Lost.IsZero() {
			t.Errorf("a logout is shown as a loss: %+v", m)
		}

		// Logged in again.
		m = h.login(1000)
		m.run(userUnit("web"), "w", 0)
		h.sleep(beatEvery)
		h.expectAt(user, "web", blixard.StateRunning, "w")
		if e := h.store.kept("web", blixard.EventReturned); len(e) != 1 {
			t.Errorf("events %+v", e)
		}

		// Its bus breaks for long though the user stays: that is a loss.
		m.drop(errors.New("connection refused"))
		h.sleep(30 * time.Second)
		if e := h.store.kept("", blixard.EventManagerLost); len(e) != 1 || e[0].Manager != user {
			t.Errorf("events %+v", e)
		}
		h.sleep(2 * time.Minute)
		h.expectAt(user, "web", blixard.StateUnknown, "")
		h.expect("web", blixard.StateRunning, "a")
		m.rise()
		h.sleep(5 * time.Second)
		h.expectAt(user, "web", blixard.StateRunning, "w")
	})
}

// TestMonitor_userSighted: a user's manager that cannot be reached, whose VMs
// are seen by other traces.
func TestMonitor_userSighted(t *testing.T) {
	onHost(t, func(t *testing.T, h *host) {
		m := h.login(1000)
		m.down = blixard.Errorf(blixard.CodeDenied, "permission denied").WithHint("install the drop-in")
		h.seen.units[1000] = []string{userUnit("game"), "pipewire.service"}
		h.start()
		h.sleep(5 * time.Second)
		user := blixard.UserManager(1000)
		h.expectAt(user, "game", blixard.StateUnknown, "")
		if v := h.vm(user, "game"); v.Unavailable["state"] != "permission denied (install the drop-in)" {
			t.Errorf("the reason is %v", v.Unavailable)
		}
		if h.vm(user, "pipewire") != nil {
			t.Error("a unit that is no VM is shown")
		}
		if m := h.View().Managers[user]; m.Hint != "install the drop-in" {
			t.Errorf("manager %+v", m)
		}
		h.sleep(5 * time.Minute)
		if e := h.store.kept("", blixard.EventManagerLost, blixard.EventManagerReturned); len(e) != 0 {
			t.Errorf("a manager that was never reached is told as %+v", e)
		}
		m.run(userUnit("game"), "g", 0)
		m.rise()
		h.sleep(5 * time.Second)
		h.expectAt(user, "game", blixard.StateRunning, "g")
	})
}

// TestMonitor_userRecorded: the records name a user who is not logged in.
func TestMonitor_userRecorded(t *testing.T) {
	onHost(t, func(t *testing.T, h *host) {
		user := blixard.UserManager(1000)
		vm := blixard.VMID{Node: "host", Manager: user, Name: "game"}
		h.store.records[vm] = &blixard.VMRecord{VMID: vm, Unit: userUnit("game"), Epoch: 1, Status: blixard.VMStatus{State: blixard.StateRunning}}
		h.start()
		h.sleep(5 * time.Minute)
		if v := h.vm(user, "game"); v == nil || !v.Stale {
			t.Errorf("it shows %+v", v)
		}
		if e := h.store.kept("", blixard.EventManagerLost, blixard.EventManagerReturned); len(e) != 0 {
			t.Errorf("a manager that does not run is told as %+v", e)
		}
	})
}

// TestMonitor_usersOff: users' managers are not watched, and their recorded VMs
// say so.
func TestMonitor_usersOff(t *testing.T) {
	onHost(t, func(t *testing.T, h *host) {
		user := blixard.UserManager(1000)
		vm := blixard.VMID{Node: "host", Manager: user, Name: "game"}
		h.store.records[vm] = &blixard.VMRecord{VMID: vm, Unit: userUnit("game"), Epoch: 1, Status: blixard.VMStatus{State: blixard.StateRunning}}
		h.login(1000).run(userUnit("game"), "g", 0)
		h.start()
		s := h.settings()
		s.UserManagers = false
		if err := h.Reconfigure(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		h.sleep(2 * time.Minute)
		v := h.vm(user, "game")
		if v == nil || v.State != blixard.StateUnknown || v.Stale {
			t.Errorf("it shows %+v", v)
		}
		if m := h.View().Managers[user]; m.Lost.IsZero() || m.Hint == "" {
			t.Errorf("manager %+v", m)
		}
	})
}

// TestMonitor_files: the host's files are read every interval, and those of a VM
// when its service starts or stops.
func TestMonitor_files(t *testing.T) {
	onHost(t, func(t *testing.T, h *host) {
		h.files.define("web", "qemu")
		h.start()
		h.expect("web", blixard.StateStopped, "")
		if v := h.vm("system", "web"); v.Hypervisor != "qemu" {
			t.Errorf("definition %+v", v.VMDefinition)
		}
		h.files.define("web", "crosvm")
		h.system.told(vmUnit("web"), "a", 0)
		h.expect("web", blixard.StateRunning, "a")
		if v := h.vm("system", "web"); v.Hypervisor != "crosvm" {
			t.Errorf("its service started, and its definition is %+v", v.VMDefinition)
		}
		if !slices.Contains(h.files.refreshed, "web") {
			t.Errorf("read alone were %v", h.files.refreshed)
		}
		h.files.define("db", "qemu")
		h.sleep(31 * time.Second)
		h.expect("db", blixard.StateStopped, "")
	})
}

// TestMonitor_filesHang: a file system that hangs hangs nothing else.
func TestMonitor_filesHang(t *testing.T) {
	onHost(t, func(t *testing.T, h *host) {
		h.files.define("web", "qemu")
		h.files.define("db", "qemu")
		h.system.run(vmUnit("web"), "a", 0)
		h.start()
		hang := make(chan struct{})
		h.files.mu.Lock()
		h.files.hangs = hang
		h.files.mu.Unlock()
		h.sleep(25 * time.Second)
		if r := h.View().FilesReason; r != "" {
			t.Errorf("files: %s", r)
		}
		h.sleep(10 * time.Minute)
		h.system.told(vmUnit("web"), "b", 1)
		h.system.told(vmUnit("new"), "n", 0)
		h.expect("web", blixard.StateRunning, "b")
		h.expect("new", blixard.StateRunning, "n")
		if r := h.View().FilesReason; r == "" {
			t.Error("it is not said that the files do not answer")
		}
		if v := h.vm("system", "new"); v.Orphan || v.Unavailable["config"] == "" {
			t.Errorf("a VM whose files cannot be read: %+v, %v", v.VMDefinition, v.Unavailable)
		}
		h.expect("db", blixard.StateStopped, "")
		if v := h.vm("system", "db"); v.Stale {
			t.Error("a VM is stale because the files hang")
		}
		if s := h.Stuck(30 * time.Second); s != "" {
			t.Errorf("stuck: %s", s)
		}
		h.files.mu.Lock()
		h.files.hangs = nil
		h.files.mu.Unlock()
		close(hang)
		h.sleep(31 * time.Second)
		if r := h.View().FilesReason; r != "" {
			t.Errorf("files: %s", r)
		}
	})
}

// TestMonitor_reconfigure: new settings take effect without a restart, and
// nothing happens to VMs by it.
func TestMonitor_reconfigure(t *testing.T) {
	onHost(t, func(t *testing.T, h *host) {
		h.system.run(vmUnit("web"), "a", 0)
		user := h.login(1000)
		user.run(userUnit("game"), "g", 0)
		h.start()
		h.sleep(time.Minute)
		s := h.settings()
		s.Interval = 5 * time.Second
		s.Policy.Adopt = false
		if err := h.Reconfigure(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		h.sleep(time.Second)
		before := len(h.system.listed())
		h.sleep(time.Minute)
		if n := len(h.system.listed()) - before; n != 12 {
			t.Errorf("%d listings in a minute, want 12", n)
		}
		h.system.told(vmUnit("new"), "n", 0)
		h.expect("new", blixard.StateRunning, "n")
		h.expect("web", blixard.StateRunning, "a")
		h.expectAt(blixard.UserManager(1000), "game", blixard.StateRunning, "g")
		h.sleep(time.Second)
		if h.store.record(id("new")) != nil {
			t.Error("recorded although adoption is off")
		}
		if e := h.store.kept("web", blixard.EventState, blixard.EventStale); len(e) != 0 {
			t.Errorf("events %+v", e)
		}
		if e := h.store.kept("", blixard.EventManagerLost); len(e) != 0 {
			t.Errorf("events %+v", e)
		}
		if s := h.Stuck(30 * time.Second); s != "" {
			t.Errorf("stuck: %s", s)
		}
	})
}

// TestMonitor_view: a view does not change, and tells when there is a newer one.
func TestMonitor_view(t *testing.T) {
	onHost(t, func(t *testing.T, h *host) {
		h.system.run(vmUnit("web"), "a", 0)
		h.start()
		h.expect("web", blixard.StateRunning, "a")
		v := h.View()
		select {
		case <-v.Changed():
			t.Error("nothing changed, but the view says so")
		default:
		}
		old := *v.Entries[0].VM
		h.system.told(vmUnit("web"), "b", 1)
		h.expect("web", blixard.StateRunning, "b")
		select {
		case <-v.Changed():
		default:
			t.Error("the view does not say that there is a newer one")
		}
		if v.Entries[0].VM.InvocationID != old.InvocationID || len(v.Entries) != 1 {
			t.Error("the old view changed")
		}
	})
}
