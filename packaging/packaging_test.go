// Package packaging_test tries the unit files that ship on a real host.
package packaging_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/blixard/blixard/lab"
)

// goals are the highest exposure by systemd's own measure (0 to 10) that the
// unit may have, without and with the drop-in for users' managers.
const (
	goalPlain = 1.5
	goalUsers = 2.0
)

// host runs, with microvm.nix's fixtures and with the probe as the daemon.
func host(t *testing.T) *lab.Host {
	t.Helper()
	bin := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(bin, "blixard-monitor"), "./testdata/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the probe: %v\n%s", err, out)
	}
	hosts, err := lab.New(t).Boot(t.Context(), "h1")
	if err != nil {
		t.Fatal(err)
	}
	h := hosts[0]
	if err := h.InstallMicroVM(t.Context(), lab.MicroVMOptions{}); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{
		filepath.Join(bin, "blixard-monitor"): "/usr/bin/blixard-monitor",
		"blixard-monitor.service":             "/usr/lib/systemd/system/blixard-monitor.service",
		"blixard.sysusers":                    "/usr/lib/sysusers.d/blixard.conf",
	} {
		if err := h.CopyIn(from, to); err != nil {
			t.Fatal(err)
		}
	}
	// systemd shares mounts with the services' namespaces, but not where it takes
	// itself to run in a container.
	run(t, h, "mount", "--make-rshared", "/")
	run(t, h, "systemd-sysusers")
	run(t, h, "systemctl", "daemon-reload")
	return h
}

// addUsers installs the drop-in.
func addUsers(t *testing.T, h *lab.Host) {
	t.Helper()
	if err := h.CopyIn("users.conf", "/etc/systemd/system/blixard-monitor.service.d/users.conf"); err != nil {
		t.Fatal(err)
	}
	run(t, h, "systemctl", "daemon-reload")
}

func run(t *testing.T, h *lab.Host, argv ...string) string {
	t.Helper()
	out, err := h.Exec(t.Context(), argv...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// TestUnit has systemd judge the unit: nothing to complain of, and an exposure
// within its goal.
func TestUnit(t *testing.T) {
	h := host(t)
	judge := func(goal float64) {
		t.Helper()
		// It ends with 0 on an unknown key: any word is a complaint.
		if said := run(t, h, "sh", "-c", "exec systemd-analyze verify --man=no /usr/lib/systemd/system/blixard-monitor.service 2>&1"); said != "" {
			t.Errorf("systemd-analyze verify: %s", said)
		}
		out := run(t, h, "systemd-analyze", "security", "--offline=true", "--no-pager", "/usr/lib/systemd/system/blixard-monitor.service")
		m := regexp.MustCompile(`Overall exposure level for \S+: (\d+\.\d+)`).FindStringSubmatch(out)
		if m == nil {
			t.Fatalf("systemd-analyze security: %s", out)
		}
		exposure, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		if t.Logf("exposure %.1f, goal %.1f", exposure, goal); exposure > goal {
			t.Errorf("too much exposed:\n%s", out)
		}
	}
	judge(goalPlain)
	addUsers(t, h)
	judge(goalUsers)

	if got := run(t, h, "id", "-nG", "blixard"); got != "blixard" {
		t.Errorf("groups of the user: %s", got)
	}
}

// TestSandbox runs the probe under the unit: what the daemon needs works, and
// what it must not do is refused.
func TestSandbox(t *testing.T) {
	h := host(t)
	alice, err := h.AddUser(t.Context(), "alice")
	if err != nil {
		t.Fatal(err)
	}
	run(t, h, "systemd-run", "--uid=alice", "--unit=sleeper", "--", "sleep", "infinity")
	asked := fmt.Sprintf(`{"UID": %d, "PID": %s}`, alice.UID, run(t, h, "systemctl", "show", "--value", "--property=MainPID", "sleeper"))
	if err := h.WriteFile("/etc/blixard/probe.json", []byte(asked), 0o644); err != nil {
		t.Fatal(err)
	}

	plain := map[string]string{
		"cpus": "some", "write state": "ok", "listen": "ok", "child": "child", "status": "ok",
		"system manager": "units", "read command line": "ok", "read cgroups": "ok", "read VMs": "ok", "inet socket": "ok",
		"user's manager": "denied", "list home": "refused", "list root's home": "refused",
		"write /etc": "read-only", "write VMs": "read-only", "write cgroups": "read-only",
		"become root": "refused", "user namespace": "refused", "mount": "refused",
		"packet socket": "no such family", "netlink socket": "no such family", "writable and executable": "refused",
		"CapEff": "", "CapBnd": "", "CapAmb": "", "NoNewPrivs": "1", "Seccomp": "2",
	}
	if d := cmp.Diff(plain, probe(t, h)); d != "" {
		t.Errorf("plain (-want +got)\n%s", d)
	}

	addUsers(t, h)
	users := maps.Clone(plain)
	// CAP_SETUID alone, which is what the drop-in says it means.
	users["CapEff"], users["CapBnd"], users["CapAmb"] = "80", "80", "80"
	users["user's manager"], users["become root"] = "units", "ok"
	if d := cmp.Diff(users, probe(t, h)); d != "" {
		t.Errorf("with the drop-in (-want +got)\n%s", d)
	}

	// A user whose manager starts later is reached too.
	bob, err := h.AddUser(t.Context(), "bob")
	if err != nil {
		t.Fatal(err)
	}
	pid := run(t, h, "systemctl", "show", "--value", "--property=MainPID", "blixard-monitor")
	run(t, h, "nsenter", "--mount", "--target="+pid, "test", "-S", fmt.Sprintf("/run/user/%d/bus", bob.UID))

	for path, want := range map[string]string{"/var/lib/blixard": "blixard:blixard 700", "/run/blixard": "blixard:blixard 755", "/run/blixard/probe.json": "blixard:blixard 600"} {
		if got := run(t, h, "stat", "--format=%U:%G %a", path); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
}

// probe runs the probe and reads what it found.
func probe(t *testing.T, h *lab.Host) map[string]string {
	t.Helper()
	if _, err := h.Exec(t.Context(), "systemctl", "restart", "blixard-monitor"); err != nil {
		t.Fatalf("%v\n%s", err, run(t, h, "journalctl", "--no-pager", "--unit=blixard-monitor", "--lines=20"))
	}
	text, err := h.ReadFile("/run/blixard/probe.json")
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]string
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	return got
}
