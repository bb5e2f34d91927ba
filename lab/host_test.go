package lab_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/blixard/blixard/lab"
)

// boot opens a lab with running hosts of these names.
func boot(t *testing.T, names ...string) (*lab.Lab, []*lab.Host) {
	t.Helper()
	l := lab.New(t)
	hosts, err := l.Boot(t.Context(), names...)
	if err != nil {
		t.Fatal(err)
	}
	return l, hosts
}

// run executes a command on the host and fails the test if that fails.
func run(t *testing.T, h *lab.Host, argv ...string) string {
	t.Helper()
	out, err := h.Exec(t.Context(), argv...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// within is a context that ends after a time, for what must end at once.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestHost_Start(t *testing.T) {
	l := lab.New(t)
	h, err := l.AddHost("h1")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.WriteFile("/etc/motd.d/before", []byte("written while off"), 0o600); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("up after %v", time.Since(began).Round(time.Millisecond))
	for command, want := range map[string]string{
		"cat /proc/1/comm":              "systemd",
		"hostname":                      "h1",
		"getent hosts h1":               h.Addr().String() + "      h1",
		"cat /etc/motd.d/before":        "written while off",
		"stat -c %a /etc/motd.d/before": "600",
		"systemctl list-units --failed --no-legend --plain": "",
		"systemctl is-active dbus systemd-journald":         "active\nactive",
	} {
		if got := run(t, h, strings.Fields(command)...); got != want {
			t.Errorf("%s: %q, want %q", command, got, want)
		}
	}
	if got := run(t, h, "systemctl", "--version"); !strings.HasPrefix(got, "systemd 252 ") {
		t.Errorf("systemctl --version: %s", got)
	}
	controllers, err := h.Controllers()
	if err != nil {
		t.Fatal(err)
	}
	if got := run(t, h, "cat", "/sys/fs/cgroup/cgroup.controllers"); got != strings.Join(controllers, " ") {
		t.Errorf("the host has the controllers %q, Controllers says %q", got, controllers)
	}
	// The machine's own settings are not the host's to change.
	if _, err := h.Exec(t.Context(), "sh", "-c", "echo x > /proc/sys/kernel/hostname"); err == nil {
		t.Error("/proc/sys/kernel can be written")
	}
	if err := h.Start(t.Context()); err == nil {
		t.Error("started twice")
	}
	if err := h.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if h.Running() {
		t.Error("it runs after Stop")
	}
	if data, err := h.ReadFile("/etc/motd.d/before"); err != nil || string(data) != "written while off" {
		t.Errorf("read while off: %q, %v", data, err)
	}
	if data, err := h.ReadFile("/etc/debian_version"); err != nil || !strings.HasPrefix(string(data), "12") {
		t.Errorf("read of the root file system while off: %q, %v", data, err)
	}
	if _, err := h.Exec(t.Context(), "true"); err == nil {
		t.Error("Exec worked on a host that is off")
	}
}

func TestHost_Start_failure(t *testing.T) {
	t.Parallel() // It waits, mostly.
	l := lab.New(t)
	h, err := l.AddHost("h1")
	if err != nil {
		t.Fatal(err)
	}
	const endless = "[Service]\nType=oneshot\nExecStart=sleep infinity\n[Install]\nWantedBy=multi-user.target\n"
	if err := h.WriteFile("/etc/systemd/system/endless.service", []byte(endless), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := h.Symlink("../endless.service", "/etc/systemd/system/multi-user.target.wants/endless.service"); err != nil {
		t.Fatal(err)
	}
	err = h.Start(within(t, 4*time.Second))
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error %v, want the deadline", err)
	}
	if !strings.Contains(err.Error(), "endless.service") {
		t.Errorf("the error does not name the job that hangs: %v", err)
	}
	if h.Running() {
		t.Error("it runs after a failed Start")
	}
}

func TestHost_Exec(t *testing.T) {
	_, hosts := boot(t, "h1")
	h := hosts[0]
	_, err := h.Exec(t.Context(), "sh", "-c", "echo why >&2; exit 3")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.HasSuffix(err.Error(), ": why") {
		t.Errorf("error %v", err)
	}
	// What a cancelled command started dies with it.
	ctx := within(t, 300*time.Millisecond)
	if _, err := h.Exec(ctx, "sh", "-c", "sleep 4242 & sleep 4242"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want the deadline", err)
	}
	if out, err := h.Exec(t.Context(), "pgrep", "--runstates=R,S,D,T", "-x", "sleep"); err == nil {
		t.Errorf("still there: %s", out)
	}
	// A command that talks.
	cmd := h.Command(t.Context(), "cat")
	stdin, in := io.Pipe()
	out, stdout := io.Pipe()
	cmd.Stdin, cmd.Stdout = stdin, stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(in, "hello\n"); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 6)
	if _, err := io.ReadFull(out, answer); err != nil || string(answer) != "hello\n" {
		t.Errorf("answer %q, %v", answer, err)
	}
	if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
		t.Error(err)
	}
	// A signal reaches the command and what it started, on the host.
	cmd = h.Command(t.Context(), "sh", "-c", "trap 'exit 5' TERM; sleep 4244 & until grep -q sleep /proc/$!/comm; do :; done; echo hello; wait; wait")
	cmd.Stdout = stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, answer); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 5 {
		t.Errorf("a command told to end: %v", err)
	}
	await(t, func() bool {
		_, err := h.Exec(t.Context(), "pgrep", "-f", "^sleep 4244")
		return err != nil
	})
}

func TestHost_CopyIn(t *testing.T) {
	_, hosts := boot(t, "h1")
	h := hosts[0]
	source := filepath.Join(t.TempDir(), "tool")
	if err := os.WriteFile(source, []byte("#!/bin/sh\necho works\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := h.CopyIn(source, "/opt/deep/er/tool"); err != nil {
		t.Fatal(err)
	}
	if got := run(t, h, "/opt/deep/er/tool"); got != "works" {
		t.Errorf("it says %q", got)
	}
	if err := h.WriteFile("/opt/../etc/x", nil, 0o644); err == nil {
		t.Error("a path that climbs was taken")
	}
}

func TestHost_Crash(t *testing.T) {
	_, hosts := boot(t, "h1")
	h := hosts[0]
	boot1, machine1 := run(t, h, "cat", "/proc/sys/kernel/random/boot_id"), run(t, h, "cat", "/etc/machine-id")
	run(t, h, "sh", "-c", "echo kept > /var/lib/kept; logger --journald < /dev/null; echo before | systemd-cat -t marker; journalctl --sync")
	if err := h.Crash(); err != nil {
		t.Fatal(err)
	}
	if h.Running() {
		t.Fatal("it runs after Crash")
	}
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := run(t, h, "cat", "/proc/sys/kernel/random/boot_id"); got == boot1 {
		t.Error("the boot id is the old one")
	}
	if got := run(t, h, "cat", "/etc/machine-id"); got != machine1 {
		t.Error("the machine id changed")
	}
	if got := run(t, h, "cat", "/var/lib/kept"); got != "kept" {
		t.Errorf("the file says %q", got)
	}
	if got := run(t, h, "journalctl", "--boot=-1", "-t", "marker", "-o", "cat"); got != "before" {
		t.Errorf("the journal of the boot before says %q", got)
	}
	// A host may end by itself.
	if _, err := h.Exec(t.Context(), "systemctl", "reboot"); err != nil {
		t.Logf("systemctl reboot: %v", err)
	}
	if err := h.Wait(within(t, 30*time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := h.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// ping asks from a whether b answers.
func ping(t *testing.T, a, b *lab.Host) bool {
	_, err := a.Exec(t.Context(), "ping", "-q", "-c", "1", "-W", "0.4", b.Addr().String())
	return err == nil
}

func TestHost_Freeze(t *testing.T) {
	_, hosts := boot(t, "h1", "h2")
	h := hosts[0]
	conn, err := h.Dial(t.Context(), "unix", "/run/dbus/system_bus_socket")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := h.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The bus answers an unknown command at once, when it runs.
	if _, err := io.WriteString(conn, "\x00HELLO\r\n"); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 5)
	if err := conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, answer); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a frozen bus answered %q, %v", answer, err)
	}
	if !ping(t, hosts[1], h) {
		t.Error("a frozen host's kernel does not answer ping")
	}
	if err := h.Thaw(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != "ERROR" {
		t.Errorf("a thawed bus answered %q, %v", answer, err)
	}
}

func TestHost_Dial(t *testing.T) {
	l, hosts := boot(t, "h1", "h2")
	for _, h := range hosts {
		// A tiny web server: socat answers each connection with the host's name.
		const server = "[Service]\nExecStart=socat TCP-LISTEN:80,reuseaddr,fork EXEC:/opt/answer\n"
		const answer = "#!/bin/sh\nread line\nprintf 'HTTP/1.0 200 OK\\r\\n\\r\\n%s' $(hostname)\n"
		if err := errors.Join(
			h.WriteFile("/opt/answer", []byte(answer), 0o755),
			h.WriteFile("/etc/systemd/system/web.service", []byte(server), 0o644)); err != nil {
			t.Fatal(err)
		}
		run(t, h, "systemctl", "start", "web.service")
	}
	client := http.Client{Transport: &http.Transport{DialContext: hosts[0].Dial, DisableKeepAlives: true}}
	for host, want := range map[string]string{"127.0.0.1": "h1", "h1": "h1", "h2": "h2", hosts[1].Addr().String(): "h2"} {
		var body string
		await(t, func() bool {
			resp, err := client.Get("http://" + host + "/")
			if err != nil {
				t.Log(err)
				return false
			}
			defer resp.Body.Close()
			data, err := io.ReadAll(resp.Body)
			body = string(data)
			return err == nil
		})
		if body != want {
			t.Errorf("%s is %q, want %q", host, body, want)
		}
	}
	if err := l.Isolate(hosts[1]); err != nil {
		t.Fatal(err)
	}
	if conn, err := hosts[0].Dial(within(t, 300*time.Millisecond), "tcp", "h2:80"); err == nil {
		conn.Close()
		t.Error("an isolated host was reached")
	}
	// The test itself stays in the machine's own namespace: no thread is left
	// behind in a host's.
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	await(t, func() bool {
		threads, err := filepath.Glob("/proc/self/task/*/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		for _, thread := range threads {
			if ns, err := os.Readlink(thread); err == nil && ns != own {
				return false
			}
		}
		return len(threads) > 0
	})
}

// await polls until ok, for what has no event to wait for.
func await(t *testing.T, ok func() bool) {
	t.Helper()
	ctx := within(t, 20*time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("waited in vain")
		}
	}
}
