package lab_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/blixard/blixard/lab"
)

// onMachine executes a command on the machine and fails the test if that fails.
func onMachine(t *testing.T, m *lab.Machine, argv ...string) string {
	t.Helper()
	out, err := m.Exec(t.Context(), argv...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func TestMachine(t *testing.T) {
	began := time.Now()
	m := lab.NewMachine(t, "m1")
	t.Logf("up after %v", time.Since(began).Round(time.Millisecond))
	ctx := t.Context()
	t.Run("systemd", func(t *testing.T) {
		if got := onMachine(t, m, "systemctl", "is-system-running"); got != "running" {
			t.Errorf("systemd is %s:\n%s", got, onMachine(t, m, "systemctl", "--failed"))
		}
		if got := onMachine(t, m, "hostname"); got != "m1" {
			t.Errorf("host name %q", got)
		}
		if got := onMachine(t, m, "journalctl", "--boot", "--lines=1", "--output=export"); !strings.Contains(got, "_MACHINE_ID="+onMachine(t, m, "cat", "/etc/machine-id")) {
			t.Errorf("the journal has another machine id: %s", got)
		}
	})
	t.Run("cgroup", func(t *testing.T) {
		have := " " + onMachine(t, m, "cat", "/sys/fs/cgroup/cgroup.controllers") + " "
		for _, want := range []string{"cpu", "memory", "io", "pids"} {
			if !strings.Contains(have, " "+want+" ") {
				t.Errorf("controllers%shave no %s", have, want)
			}
		}
		out := onMachine(t, m, "systemd-run", "--wait", "--pipe", "--property=MemoryMax=24M", "--property=MemorySwapMax=0", "--property=OOMPolicy=continue",
			"sh", "-c", "head -c 64M /dev/zero | tail; cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/memory.events")
		if !strings.Contains(out, "oom_kill 1") {
			t.Errorf("memory.events of a unit over its limit: %s", out)
		}
	})
	t.Run("modules", func(t *testing.T) {
		onMachine(t, m, "modprobe", "--all", "dm-delay", "vhost_vsock", "tun", "overlay", "nf_tables")
		// A disk that fails, and a network that delays.
		if out, err := m.Exec(ctx, "sh", "-ec", `
			truncate -s 8M /srv/flaky
			loop=$(losetup --find --show /srv/flaky)
			dmsetup create flaky --noudevsync --table "0 16384 flakey $loop 0 0 1"
			dmsetup mknodes
			! dd if=/dev/zero of=/dev/mapper/flaky bs=4k count=1 oflag=direct
			dmsetup remove --noudevsync flaky
			tc qdisc add dev lo root netem delay 50ms
			ping -c 1 127.0.0.1`); err != nil {
			t.Error(err)
		} else {
			var ms float64
			_, after, _ := strings.Cut(out, "time=")
			if _, err := fmt.Sscan(after, &ms); err != nil || ms < 100 {
				t.Errorf("a ping delayed by 50 ms each way: %s, %v", out, err)
			}
		}
	})
	t.Run("clock", func(t *testing.T) {
		if err := m.SetClock(ctx, time.Now().Add(-time.Hour)); err != nil {
			t.Fatal(err)
		}
		var seconds int64
		if _, err := fmt.Sscan(onMachine(t, m, "date", "+%s"), &seconds); err != nil {
			t.Fatal(err)
		}
		if behind := time.Since(time.Unix(seconds, 0)); behind < 59*time.Minute || behind > 61*time.Minute {
			t.Errorf("the clock is %v behind, not an hour", behind)
		}
	})
	t.Run("exec", func(t *testing.T) { testMachineExec(t, m) })
	t.Run("files", func(t *testing.T) { testMachineFiles(t, m) })
	t.Run("dial", func(t *testing.T) { testMachineDial(t, m) })
	t.Run("fixtures", func(t *testing.T) { testMachineFixtures(t, m) })
	t.Run("freeze", func(t *testing.T) {
		if err := m.Freeze(ctx); err != nil {
			t.Fatal(err)
		}
		short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		if conn, err := m.Dial(short, "unix", "/run/systemd/private"); err == nil {
			conn.Close()
			t.Error("a frozen machine answers")
		}
		if err := m.Thaw(ctx); err != nil {
			t.Fatal(err)
		}
		onMachine(t, m, "true")
	})
}

func testMachineExec(t *testing.T, m *lab.Machine) {
	cmd := m.Command(t.Context(), "sh", "-c", "tr a-z A-Z; echo $WORD >&2; exit 3")
	var stdout, stderr bytes.Buffer
	text := strings.Repeat("some text\n", 50_000)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(text), &stdout, &stderr
	cmd.Env = []string{"WORD=done"}
	err := cmd.Run()
	var exit *lab.MachineExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("exit: %v", err)
	}
	if stdout.String() != strings.ToUpper(text) || stderr.String() != "done\n" {
		t.Errorf("%d bytes of output, want %d; %q", stdout.Len(), len(text), stderr.String())
	}
	if _, err := m.Exec(t.Context(), "no-such-program"); err == nil || errors.As(err, &exit) {
		t.Errorf("a program that is not there: %v", err)
	}

	// What does not read its input is killed all the same, with its children.
	ctx, cancel := context.WithCancel(t.Context())
	deaf := m.Command(ctx, "sh", "-c", "sleep 4242 & echo up; sleep 4243")
	read, write := io.Pipe()
	deaf.Stdin, deaf.Stdout = neverEnding{}, write
	if err := deaf.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(read, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := deaf.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("a killed command: %v", err)
	}
	if out, err := m.Exec(t.Context(), "pgrep", "-f", "^sleep 424[23]"); err == nil {
		t.Errorf("processes of a killed command live: %s", out)
	}
}

// testMachineFixtures holds fixtures on a machine to what they are on a host.
func testMachineFixtures(t *testing.T, m *lab.Machine) {
	ctx := t.Context()
	if err := m.AddVM(ctx, lab.VM{Name: "early"}); err == nil {
		t.Error("a VM without microvm.nix")
	}
	if err := m.InstallMicroVM(ctx, lab.MicroVMOptions{}); err != nil {
		t.Fatal(err)
	}
	vm := lab.VM{Name: "web-1", HostName: "web-one", Provenance: lab.Declared, Taps: []string{"vm-web-1"}, Virtiofs: []string{"data"}}
	if err := m.AddVM(ctx, vm); err != nil {
		t.Fatal(err)
	}
	onMachine(t, m, "systemctl", "start", "microvm@web-1")
	if got := onMachine(t, m, "sh", "-c", "tr '\\0' ' ' < /proc/$(systemctl show -P MainPID microvm@web-1)/cmdline; ps -o user=,comm= $(systemctl show -P MainPID microvm@web-1)"); !strings.HasPrefix(got, "microvm@web-one -name web-one ") || !strings.HasSuffix(got, "microvm  qemu-system-x86") {
		t.Errorf("the VMM: %s", got)
	}
	if got := onMachine(t, m, "sh", "-c", "cat /sys/class/net/vm-web-1/master/uevent; systemctl is-active microvm-virtiofsd@web-1"); got != "DEVTYPE=bridge\nINTERFACE=vmbr\nIFINDEX="+onMachine(t, m, "cat", "/sys/class/net/vmbr/ifindex")+"\nactive" {
		t.Errorf("tap and helper: %s", got)
	}
	dir := m.StateDir("web-1")
	if got := onMachine(t, m, "stat", "-c", "%U:%G %a %N", dir, dir+"/current"); !strings.HasPrefix(got, "microvm:kvm 755 '"+dir+"'\nmicrovm:kvm 777 '"+dir+"/current' -> '/nix/store/") {
		t.Errorf("the state directory: %s", got)
	}
	onMachine(t, m, "systemctl", "stop", "microvm@web-1")
	if got := onMachine(t, m, "systemctl", "show", "--property=ActiveState,Result", "--value", "microvm@web-1"); got != "success\ninactive" {
		t.Errorf("stopped: %s", got)
	}
}

type neverEnding struct{}

func (neverEnding) Read(b []byte) (int, error) { return len(b), nil }

func testMachineFiles(t *testing.T, m *lab.Machine) {
	local := filepath.Join(t.TempDir(), "file")
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	if err := os.WriteFile(local, data, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := m.CopyIn(local, "/srv/new/folder/file"); err != nil {
		t.Fatal(err)
	}
	if got, err := m.ReadFile("/srv/new/folder/file"); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read back %d bytes: %v", len(got), err)
	}
	if got := onMachine(t, m, "stat", "-c", "%a %U", "/srv/new/folder/file"); got != "750 root" {
		t.Errorf("the copy is %s", got)
	}
	if err := m.WriteFile("/srv/new/folder/file", []byte("short"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := onMachine(t, m, "cat", "/srv/new/folder/file"); got != "short" {
		t.Errorf("written: %q", got)
	}
	if got, err := m.ReadFile("/proc/sys/kernel/ostype"); err != nil || string(got) != "Linux\n" {
		t.Errorf("a file of proc: %q, %v", got, err)
	}
	if _, err := m.ReadFile("/no/such/file"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	if err := m.WriteFile("/proc/new", data, 0o644); err == nil {
		t.Error("a file was written into proc")
	}
}

// testMachineDial speaks HTTP over a Unix socket of the machine to a server of
// one answer.
func testMachineDial(t *testing.T, m *lab.Machine) {
	const answer = "#!/bin/sh\nread line\nprintf 'HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\nConnection: close\\r\\n\\r\\nhello'\n"
	if err := m.WriteFile("/srv/answer", []byte(answer), 0o755); err != nil {
		t.Fatal(err)
	}
	server := m.Command(t.Context(), "socat", "-d", "-d", "UNIX-LISTEN:/run/answer,fork", "EXEC:/srv/answer")
	read, write := io.Pipe()
	server.Stderr = write
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	for seen, b := "", make([]byte, 1024); !strings.Contains(seen, "listening on"); {
		n, err := read.Read(b)
		if err != nil {
			t.Fatalf("%v: %s", err, seen)
		}
		seen += string(b[:n])
	}
	go func() { _, _ = io.Copy(io.Discard, read) }()
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return m.Dial(ctx, "unix", "/run/answer") },
	}}
	response, err := client.Get("http://machine/")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if body, err := io.ReadAll(response.Body); err != nil || string(body) != "hello" {
		t.Errorf("answer %q, %v", body, err)
	}
	if _, err := m.Dial(t.Context(), "unix", "/run/nobody"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a socket that is not there: %v", err)
	}
	if err := server.Signal(os.Kill); err != nil {
		t.Error(err)
	}
	if err := server.Wait(); err == nil {
		t.Error("a killed server ended well")
	}
}

// TestNode holds hosts and machines to one meaning.
func TestNode(t *testing.T) {
	_, hosts := boot(t, "h1")
	for _, n := range []lab.Node{hosts[0], lab.NewMachine(t, "m1")} {
		t.Run(n.Name(), func(t *testing.T) {
			ctx := t.Context()
			var exit interface{ ExitCode() int }
			if _, err := n.Exec(ctx, "sh", "-c", "echo why >&2; exit 7"); !errors.As(err, &exit) || exit.ExitCode() != 7 || !strings.Contains(err.Error(), "why") {
				t.Errorf("a command that fails: %v", err)
			}
			if out, err := n.Exec(ctx, "sh", "-c", "echo $HOME; tty || pwd"); err != nil || !strings.HasPrefix(out, "/root\n") {
				t.Errorf("a command: %q, %v", out, err)
			}
			if err := n.WriteFile("/srv/a/b", []byte("text"), 0o640); err != nil {
				t.Fatal(err)
			}
			if got, err := n.ReadFile("/srv/a/b"); err != nil || string(got) != "text" {
				t.Errorf("read %q, %v", got, err)
			}
			if _, err := n.ReadFile("/srv/a/c"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a file that is not there: %v", err)
			}
			conn, err := n.Dial(ctx, "unix", "/run/dbus/system_bus_socket")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, "\x00AUTH\r\n"); err != nil {
				t.Fatal(err)
			}
			if answer, err := bufio.NewReader(conn).ReadString('\n'); !strings.HasPrefix(answer, "REJECTED") {
				t.Errorf("the bus answers %q, %v", answer, err)
			}
			if err := n.Start(ctx); err == nil {
				t.Error("started twice")
			}
			if err := n.Crash(); err != nil {
				t.Fatal(err)
			}
			if err := n.Wait(ctx); err != nil || n.Running() {
				t.Errorf("after a crash: running %v, %v", n.Running(), err)
			}
			if _, err := n.Exec(ctx, "true"); err == nil {
				t.Error("a command ran on what is off")
			}
		})
	}
}

// TestMachine_Crash runs two machines at once: they are not each other, and one
// crashes and boots again.
func TestMachine_Crash(t *testing.T) {
	l, err := lab.Open(t.Context(), lab.Config{Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	ctx := t.Context()
	began := time.Now()
	machines := make([]*lab.Machine, 2)
	var group errgroup.Group
	for i := range machines {
		m, err := l.AddMachine(ctx, fmt.Sprintf("m%d", i+1), lab.MachineOptions{})
		if err != nil {
			t.Fatal(err)
		}
		machines[i] = m
		group.Go(func() error { return m.Start(ctx) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("two machines up after %v", time.Since(began).Round(time.Millisecond))
	for _, file := range []string{"/etc/machine-id", "/proc/sys/kernel/random/boot_id", "/proc/sys/kernel/random/uuid", "/etc/hostname"} {
		if a, b := onMachine(t, machines[0], "cat", file), onMachine(t, machines[1], "cat", file); a == b {
			t.Errorf("both machines have %s in %s", a, file)
		}
	}

	m := machines[0]
	id, bootID := onMachine(t, m, "cat", "/etc/machine-id"), onMachine(t, m, "cat", "/proc/sys/kernel/random/boot_id")
	onMachine(t, m, "sh", "-c", "echo kept > /srv/synced; sync; echo lost > /srv/unsynced")
	if err := m.Crash(); err != nil {
		t.Fatal(err)
	}
	if m.Running() {
		t.Error("it runs after a crash")
	}
	if _, err := m.Exec(ctx, "true"); err == nil {
		t.Error("a command ran on a crashed machine")
	}
	began = time.Now()
	if err := m.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("booted from its disk after %v", time.Since(began).Round(time.Millisecond))
	if got := onMachine(t, m, "cat", "/srv/synced"); got != "kept" {
		t.Errorf("what was synced before the crash: %q", got)
	}
	if out, err := m.Exec(ctx, "grep", "lost", "/srv/unsynced"); err == nil {
		t.Errorf("what was not synced before the crash: %q", out)
	}
	if got := onMachine(t, m, "cat", "/etc/machine-id"); got != id {
		t.Errorf("machine id %s, was %s", got, id)
	}
	if got := onMachine(t, m, "cat", "/proc/sys/kernel/random/boot_id"); got == bootID {
		t.Error("the boot id is that before the crash")
	}
	if err := m.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if m.Running() {
		t.Error("it runs after Stop")
	}
	// The other one ends with its lab.
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if machines[1].Running() {
		t.Error("it runs after its lab was closed")
	}
	if _, err := l.AddMachine(ctx, "m3", lab.MachineOptions{}); err == nil {
		t.Error("a closed lab took a machine")
	}
}
