package lab_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/lab"
)

func TestLab_Cut(t *testing.T) {
	l, hosts := boot(t, "h1", "h2", "h3")
	a, b, c := hosts[0], hosts[1], hosts[2]
	if !ping(t, a, b) {
		t.Fatal("h2 does not answer h1")
	}
	if err := l.Cut(a, b); err != nil {
		t.Fatal(err)
	}
	if ping(t, a, b) {
		t.Error("h2 answers h1 through a cut")
	}
	if !ping(t, a, c) || !ping(t, b, c) {
		t.Error("the cut reaches others")
	}
	if err := l.Isolate(c); err != nil {
		t.Fatal(err)
	}
	if ping(t, a, c) {
		t.Error("an isolated host answers")
	}
	if err := l.Heal(); err != nil {
		t.Fatal(err)
	}
	if !ping(t, a, b) || !ping(t, a, c) {
		t.Error("not healed")
	}
	// A cut outlives a crash of the host: it is the switch's.
	if err := errors.Join(l.Cut(a, b), b.Crash(), b.Start(t.Context())); err != nil {
		t.Fatal(err)
	}
	if ping(t, a, b) {
		t.Error("the cut was gone after a reboot")
	}
}

func TestLab_CutOneWay(t *testing.T) {
	l, hosts := boot(t, "h1", "h2")
	a, b := hosts[0], hosts[1]
	// Neighbours by hand: resolving needs both directions.
	for _, pair := range [][2]*lab.Host{{a, b}, {b, a}} {
		mac := run(t, pair[1], "cat", "/sys/class/net/vmbr/address")
		run(t, pair[0], "ip", "neigh", "replace", pair[1].Addr().String(), "lladdr", mac, "dev", "vmbr")
	}
	if err := l.CutOneWay(a, b); err != nil {
		t.Fatal(err)
	}
	// One message is lost and a later one is not: the first to arrive tells.
	send := func(from, to *lab.Host, text string) {
		run(t, from, "sh", "-c", fmt.Sprintf("echo %s | socat -u - UDP-SENDTO:%s:9000", text, to.Addr()))
	}
	listen := func(h *lab.Host) (first func() string) {
		run(t, h, "systemd-run", "--unit=listener", "--property=StandardOutput=file:/run/heard", "socat", "-u", "UDP-RECV:9000", "STDOUT")
		await(t, func() bool { return strings.Contains(run(t, h, "cat", "/proc/net/udp"), ":2328 ") })
		return func() (got string) {
			await(t, func() bool { got = run(t, h, "head", "-n1", "/run/heard"); return got != "" })
			return got
		}
	}
	atA, atB := listen(a), listen(b)
	send(b, a, "back")
	if got := atA(); got != "back" {
		t.Errorf("h1 heard %q", got)
	}
	send(a, b, "lost")
	if err := l.Heal(); err != nil {
		t.Fatal(err)
	}
	send(a, b, "found")
	if got := atB(); got != "found" {
		t.Errorf("h2 heard %q first", got)
	}
}

func TestLab_sideBySide(t *testing.T) {
	_, first := boot(t, "h1", "h2")
	_, second := boot(t, "h1")
	if first[0].Addr() != second[0].Addr() {
		t.Fatalf("addresses %v and %v: this test wants them equal", first[0].Addr(), second[0].Addr())
	}
	if got := run(t, second[0], "ip", "-4", "-brief", "address"); !strings.Contains(got, second[0].Addr().String()) {
		t.Errorf("addresses: %s", got)
	}
	if !ping(t, first[0], first[1]) {
		t.Error("the first lab's hosts do not see each other")
	}
	if ping(t, second[0], first[1]) {
		t.Error("one lab's host answers another's")
	}
}

func TestLab_AddHost(t *testing.T) {
	l := lab.New(t)
	for _, name := range []string{"", "a/b", "..", "-x", "UP", strings.Repeat("a", 41)} {
		if _, err := l.AddHost(name); err == nil {
			t.Errorf("%q was taken", name)
		}
	}
	if _, err := l.AddHost("h1"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.AddHost("h1"); err == nil {
		t.Error("the same name was taken twice")
	}
}

// childEnv tells a test binary to be the child of a test.
const childEnv = "BLIXARD_LAB_TEST_CHILD"

// TestMain runs the tests, or the process that some of them start.
func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "" {
		os.Exit(m.Run())
	}
	if err := child(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// child runs a lab, tells of it and waits for its end.
func child() error {
	ctx := context.Background()
	l, err := lab.Open(ctx, lab.Config{})
	if err != nil {
		return err
	}
	hosts, err := l.Boot(ctx, "h1")
	if err != nil {
		return errors.Join(err, l.Close())
	}
	pid, err := hosts[0].PID()
	if err != nil {
		return errors.Join(err, l.Close())
	}
	fmt.Printf("CHILD %s %s %d %d\n", l.Dir(), hosts[0].Cgroup(), pid, l.KeeperPID())
	select {}
}

func TestLab_leftovers(t *testing.T) {
	for _, tc := range []struct {
		name   string
		signal syscall.Signal
		keeper bool // killed too
	}{
		{"interrupted", syscall.SIGINT, false},
		{"killed", syscall.SIGKILL, false},
		{"killed with its keeper", syscall.SIGKILL, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), childEnv+"=1")
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var dir, cgroup string
			var pid, keeper int
			lines := bufio.NewScanner(out)
			for keeper == 0 && lines.Scan() {
				t.Log(lines.Text())
				if rest, ok := strings.CutPrefix(lines.Text(), "CHILD "); ok {
					if _, err := fmt.Sscan(rest, &dir, &cgroup, &pid, &keeper); err != nil {
						t.Error(err)
					}
				}
			}
			if keeper == 0 {
				t.Fatalf("the child said nothing: %v", cmd.Wait())
			}
			if tc.keeper {
				if err := syscall.Kill(keeper, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			// As a terminal does it, to the whole process group.
			if err := syscall.Kill(-cmd.Process.Pid, tc.signal); err != nil {
				t.Fatal(err)
			}
			// It ends by the signal: that is what this test is about.
			_ = cmd.Wait()
			// Held by the keeper until it is done, or until the kernel is done with
			// a killed one.
			awaitUnlocked(t, dir+"/lab")
			if tc.keeper {
				if err := lab.Sweep(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			for _, path := range []string{dir, cgroup, fmt.Sprintf("/proc/%d/root/etc", pid)} {
				if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s is left: %v", path, err)
				}
			}
		})
	}
}

// awaitUnlocked waits until nobody holds the lock.
func awaitUnlocked(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	await(t, func() bool { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil })
}

func TestLab_Close(t *testing.T) {
	l, err := lab.Open(t.Context(), lab.Config{})
	if err != nil {
		t.Fatal(err)
	}
	hosts, err := l.Boot(t.Context(), "h1")
	if err != nil {
		t.Fatal(errors.Join(err, l.Close()))
	}
	began := time.Now()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("closed in %v", time.Since(began).Round(time.Millisecond))
	for _, path := range []string{l.Dir(), hosts[0].Cgroup()} {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	if err := l.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := l.AddHost("h2"); err == nil {
		t.Error("a closed lab took a host")
	}
}
