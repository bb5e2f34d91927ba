package main_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/lab"
)

// TestService looks at the daemon as systemd sees it, under the unit that ships.
func TestService(t *testing.T) {
	s := withVMs(t, "web-1")
	p := s.show("blixard-monitor", "ActiveState", "StatusText", "User", "WatchdogUSec", "NotifyAccess")
	if p["ActiveState"] != "active" || !strings.HasPrefix(p["StatusText"], "1 VM, 1 running") {
		t.Errorf("the unit is %v", p)
	}
	if p["User"] != "blixard" {
		t.Errorf("it runs as %q", p["User"])
	}
	// The command lines of its processes open no TCP port.
	if out := s.exec("ss", "-Hltn"); out != "" {
		t.Errorf("a lone host listens on TCP:\n%s", out)
	}

	t.Run("reload", func(t *testing.T) {
		s := &site{s.Host, t}
		s.ok(s.WriteFile("/etc/blixard/config.toml", []byte("interval = \"1s\"\n[crashloop]\nrestarts = 2\n"), 0o644))
		s.exec("systemctl", "reload", "blixard-monitor")
		for n := range uint32(2) {
			s.exec("systemctl", "kill", "-s", "KILL", "--kill-whom=main", "microvm@web-1")
			s.within(20*time.Second, "web-1 is restarted", func() error {
				if vm := s.vms()["web-1"]; vm.Restarts == nil || *vm.Restarts != n+1 || vm.MainPID == 0 {
					return fmt.Errorf("web-1 is %s, restarted %v times", vm.State, vm.Restarts)
				}
				return nil
			})
		}
		s.awaitState(5*time.Second, blixard.StateCrashlooping, "web-1")
		s.ok(s.WriteFile("/etc/blixard/config.toml", []byte("interval = \"sometimes\"\n"), 0o644))
		s.code("systemctl", "reload", "blixard-monitor")
		if vm := s.vms()["web-1"]; vm.State != blixard.StateCrashlooping {
			t.Errorf("a faulty configuration changed something: web-1 is %s", vm.State)
		}
		if log := s.log(); !strings.Contains(log, "sometimes") {
			t.Errorf("the log does not name the faulty value:\n%s", log)
		}
		s.ok(s.WriteFile("/etc/blixard/config.toml", []byte("interval = \"2s\"\n"), 0o644))
	})

	t.Run("watchdog", func(t *testing.T) {
		s := &site{s.Host, t}
		s.ok(s.WriteFile("/run/systemd/system/blixard-monitor.service.d/test.conf", []byte("[Service]\nWatchdogSec=3\nRestartSec=0\n"), 0o644))
		s.exec("systemctl", "daemon-reload")
		s.exec("systemctl", "restart", "blixard-monitor")
		pid := s.show("blixard-monitor", "MainPID")["MainPID"]
		s.exec("kill", "-STOP", pid)
		s.within(30*time.Second, "systemd restarts a daemon that hangs", func() error {
			p := s.show("blixard-monitor", "MainPID", "ActiveState")
			if p["MainPID"] == pid || p["ActiveState"] != "active" {
				return fmt.Errorf("%v", p)
			}
			return nil
		})
	})

	t.Run("stop", func(t *testing.T) {
		s := &site{s.Host, t}
		start := time.Now()
		s.exec("systemctl", "stop", "blixard-monitor")
		if d := time.Since(start); d > 10*time.Second {
			t.Errorf("it took %s to stop", d)
		}
		if p := s.show("blixard-monitor", "Result", "ExecMainStatus"); p["Result"] != "success" || p["ExecMainStatus"] != "0" {
			t.Errorf("it ended with %v", p)
		}
		if out := s.exec("sh", "-c", "pgrep -x blixard-monitor || true"); out != "" {
			t.Errorf("processes stay behind: %s", out)
		}
		if code, out := s.code("blixard", "vm", "list"); code != 5 || !strings.Contains(out, "systemctl status blixard-monitor") {
			t.Errorf("with no daemon the CLI ends with %d, want 5 and what to type:\n%s", code, out)
		}
	})
}

// TestAccess asks as root, as a member of the group and as somebody else.
func TestAccess(t *testing.T) {
	s := withVMs(t, "web-1")
	s.exec("sh", "-ec", "useradd ada; useradd bob; usermod -aG blixard ada")
	as := func(user string, argv ...string) (int, string) {
		return s.code(append([]string{"runuser", "-u", user, "--"}, argv...)...)
	}
	for _, c := range []struct {
		user string
		argv []string
		code int
	}{
		{"ada", []string{"blixard", "vm", "list"}, 0},
		{"ada", []string{"blixard", "events"}, 0},
		{"ada", []string{"blixard", "vm", "remove", "web-1"}, 4},
		{"bob", []string{"blixard", "vm", "list"}, 4},
		{"bob", []string{"blixard", "cluster", "status"}, 4},
	} {
		if code, out := as(c.user, c.argv...); code != c.code {
			t.Errorf("%s: %s ends with %d, want %d:\n%s", c.user, strings.Join(c.argv, " "), code, c.code, out)
		}
	}
	if _, out := as("bob", "blixard", "vm", "list"); !strings.Contains(out, "usermod -aG blixard") {
		t.Errorf("the denial does not say what would help:\n%s", out)
	}
	if _, ok := s.vms()["web-1"]; !ok {
		t.Error("web-1 is gone")
	}
}

// TestMetrics scrapes over the socket, and counts the calls to systemd that a
// scrape makes: none.
func TestMetrics(t *testing.T) {
	s := newSite(t, false)
	s.ok(s.WriteFile("/etc/blixard/config.toml", []byte("interval = \"1h\"\n"), 0o644))
	s.ok(s.AddVM(t.Context(), lab.VM{Name: "web-1"}))
	s.ok(s.StartVMs(t.Context(), "web-1"))
	s.start()
	s.awaitState(15*time.Second, blixard.StateRunning, "web-1")
	s.settled()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return s.Dial(ctx, "unix", "/run/blixard/blixard.sock")
	}}}
	scrape := func() map[string]string {
		resp, err := client.Get("http://h1/metrics")
		s.ok(err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		s.ok(err)
		out := map[string]string{}
		for _, line := range strings.Split(string(body), "\n") {
			if name, value, ok := strings.Cut(line, "} "); ok {
				out[name+"}"] = value
			}
		}
		return out
	}
	first := scrape()
	found := false
	for k, v := range first {
		if strings.HasPrefix(k, "blixard_vm_state{") && strings.Contains(k, `vm="web-1"`) && strings.Contains(k, `state="running"`) {
			found = true
			if v != "1" {
				t.Errorf("%s is %s, want 1", k, v)
			}
		}
	}
	if !found {
		t.Fatalf("no state of web-1 among %d series", len(first))
	}
	for range 20 {
		scrape()
	}
	for k, v := range scrape() {
		if strings.HasPrefix(k, "blixard_dbus_calls_total{") && first[k] != v {
			t.Errorf("%s went from %s to %s over 20 scrapes", k, first[k], v)
		}
	}
}

// TestBadStart starts the daemon where it cannot work: it ends at once with a
// message that says why.
func TestBadStart(t *testing.T) {
	s := withVMs(t, "web-1")
	bad := func(name string, code int, want string, argv ...string) {
		t.Run(name, func(t *testing.T) {
			s := &site{s.Host, t}
			got, out := s.code(append([]string{"timeout", "20", "blixard-monitor"}, argv...)...)
			if got != code || !strings.Contains(out, want) {
				t.Errorf("ended with %d, want %d and %q in:\n%s", got, code, want, out)
			}
			if strings.Contains(out, "goroutine") {
				t.Errorf("it panicked:\n%s", out)
			}
		})
	}
	s.ok(s.WriteFile("/tmp/unknown.toml", []byte("intervall = \"2s\"\n"), 0o644))
	s.ok(s.WriteFile("/tmp/huge.toml", []byte("interval = \"9000h\"\n"), 0o644))
	s.ok(s.WriteFile("/tmp/half.toml", []byte("interval = \"2s\n"), 0o644))
	s.exec("sh", "-ec", `mkdir -p /tmp/alien /tmp/broken; echo '{"format": 99, "version": 99, "node_id": "x"}' >/tmp/alien/identity.json
		echo '{"form' >/tmp/broken/identity.json; echo x >/tmp/file`)
	bad("unknown key", 2, "intervall", "--config", "/tmp/unknown.toml")
	bad("out of bounds", 2, "interval", "--config", "/tmp/huge.toml")
	bad("not TOML", 2, "half.toml", "--config", "/tmp/half.toml")
	bad("no such file", 2, "nowhere.toml", "--config", "/tmp/nowhere.toml")
	bad("unknown flag", 2, "--nonsense", "--nonsense")
	bad("bad interval", 2, "interval", "--interval", "-3s")
	bad("bad name", 2, "node_name", "--node-name", "a/b")
	bad("second daemon", 1, "/var/lib/blixard", "--data-dir", "/var/lib/blixard")
	bad("other version", 1, "/tmp/alien", "--data-dir", "/tmp/alien")
	bad("broken identity", 1, "/tmp/broken", "--data-dir", "/tmp/broken")
	bad("no directory", 1, "/tmp/file", "--data-dir", "/tmp/file")
	// Whatever was tried, the one that runs went on.
	if vm := s.vms()["web-1"]; vm.State != blixard.StateRunning {
		t.Errorf("web-1 is %s", vm.State)
	}
}

// TestNoBus starts the daemon on a host whose bus is away: it serves, says so,
// and finds everything when the bus comes.
func TestNoBus(t *testing.T) {
	s := newSite(t, false)
	s.ok(s.AddVM(t.Context(), lab.VM{Name: "web-1"}))
	s.ok(s.StartVMs(t.Context(), "web-1"))
	s.ok(s.WriteFile("/etc/blixard/config.toml", []byte("interval = \"2s\"\n"), 0o644))
	// The unit wants the bus, so the daemon is started by hand.
	s.exec("sh", "-ec", "systemctl stop dbus.socket dbus.service")
	run := s.Command(t.Context(), "blixard-monitor")
	s.ok(run.Start())
	defer s.end(run)
	s.within(20*time.Second, "it serves without a bus", func() error {
		code, out := s.code("sh", "-c", "blixard node list -o json 2>/dev/null")
		var l blixard.List[blixard.Node]
		if code != 0 || json.Unmarshal([]byte(out), &l) != nil || len(l.Items) != 1 {
			return fmt.Errorf("code %d: %s", code, out)
		}
		if n := l.Items[0]; n.Status != blixard.NodeDegraded || len(n.Problems) == 0 {
			return fmt.Errorf("the node is %s: %v", n.Status, n.Problems)
		}
		return nil
	})
	s.exec("systemctl", "start", "dbus.socket")
	s.awaitState(10*time.Second, blixard.StateRunning, "web-1")
}

// TestOrdinaryUser runs the daemon as somebody with no rights at all.
func TestOrdinaryUser(t *testing.T) {
	s := newSite(t, false)
	s.ok(s.AddVM(t.Context(), lab.VM{Name: "web-1"}))
	s.ok(s.StartVMs(t.Context(), "web-1"))
	u, err := s.AddUser(t.Context(), "ada")
	s.ok(err)
	run := fmt.Sprintf("/run/user/%d", u.UID)
	env := []string{"runuser", "-u", "ada", "--", "env", "HOME=/home/ada", "XDG_RUNTIME_DIR=" + run}
	daemon := s.Command(t.Context(), append(env, "blixard-monitor", "--interval", "2s")...)
	s.ok(daemon.Start())
	defer s.end(daemon)
	s.within(20*time.Second, "the user's own daemon answers its user", func() error {
		code, out := s.code(append(env, "blixard", "vm", "list", "-o", "name")...)
		if code != 0 || !strings.Contains(out, "h1/web-1") {
			return fmt.Errorf("code %d: %s", code, out)
		}
		return nil
	})
	if out := s.exec("ls", "/home/ada/.local/state/blixard"); !strings.Contains(out, "identity.json") {
		t.Errorf("its data is not in the user's state directory: %s", out)
	}
}
