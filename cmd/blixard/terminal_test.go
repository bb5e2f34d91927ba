package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/api"
	"github.com/blixard/blixard/api/apitest"
)

// newDaemon serves testdata/fleet.json until the test ends.
func newDaemon(t *testing.T) *daemon {
	t.Helper()
	b, err := os.ReadFile("testdata/fleet.json")
	if err != nil {
		t.Fatal(err)
	}
	s, err := apitest.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{fleet: apitest.New(s), path: filepath.Join(t.TempDir(), "b.sock"), role: api.RoleAdmin}
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// command is the CLI as a process of its own.
func (d *daemon) command(t *testing.T, env []string, args ...string) *exec.Cmd {
	t.Helper()
	path, err := exec.LookPath("blixard")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append([]string{"BLIXARD_ADDR=" + d.path, "TERM=xterm", "TZ=UTC", "PATH=" + os.Getenv("PATH")}, env...)
	return cmd
}

// terminal opens a pseudo-terminal of a size.
func terminal(t *testing.T, rows, columns uint16) (screen, side *os.File) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd := int(screen.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}); err != nil {
		t.Fatal(err)
	}
	side, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = screen.Close() })
	return screen, side
}

// onTerminal runs a command with a terminal as its output and returns all of it.
func onTerminal(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	screen, side := terminal(t, 50, 200)
	cmd.Stdout = side
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = side.Close()
	// The terminal's end reads as EIO once nobody has its other side.
	out, _ := io.ReadAll(screen)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestTerminal_Colors(t *testing.T) {
	d := newDaemon(t)
	got := onTerminal(t, d.command(t, nil, "vm", "list"))
	for _, want := range []string{"\x1b[31;1mcritical\x1b[0m", "\x1b[33mdegraded\x1b[0m", "\x1b[32mhealthy\x1b[0m", "\x1b[35munknown\x1b[0m"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
	page := onTerminal(t, d.command(t, nil, "vm", "show", "cache-2"))
	if !strings.Contains(page, "\x1b[31;1mcrashlooping\x1b[0m") {
		t.Errorf("%q", page)
	}
	plain := d.command(t, nil, "vm", "list")
	want, err := plain.Output()
	if err != nil {
		t.Fatal(err)
	}
	for name, cmd := range map[string]*exec.Cmd{
		"NO_COLOR":   d.command(t, []string{"NO_COLOR=1"}, "vm", "list"),
		"--no-color": d.command(t, nil, "vm", "list", "--no-color"),
		"TERM=dumb":  d.command(t, []string{"TERM=dumb"}, "vm", "list"),
	} {
		if got := strings.ReplaceAll(onTerminal(t, cmd), "\r\n", "\n"); got != string(want) {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// live is a live view on a terminal, read frame by frame.
type live struct {
	t      *testing.T
	cmd    *exec.Cmd
	frames *bufio.Reader
}

// until reads frames until one has the text, and returns it.
func (l *live) until(want string) string {
	l.t.Helper()
	var seen []string
	for {
		var frame bytes.Buffer
		for {
			// A frame ends by turning wrapping on again.
			part, err := l.frames.ReadBytes('h')
			if err != nil {
				l.t.Fatalf("no frame with %q: %v\n%q", want, err, seen)
			}
			frame.Write(part)
			if bytes.HasSuffix(part, []byte("\x1b[?7h")) {
				break
			}
		}
		if strings.Contains(frame.String(), want) {
			return frame.String()
		}
		seen = append(seen, frame.String())
	}
}

func TestTerminal_Live(t *testing.T) {
	d := newDaemon(t)
	screen, side := terminal(t, 12, 80)
	l := &live{t: t, cmd: d.command(t, nil, "vm", "list", "-w"), frames: bufio.NewReader(screen)}
	var stderr bytes.Buffer
	l.cmd.Stdout, l.cmd.Stderr = side, &stderr
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = side.Close()

	first := l.until("5 VMs: 2 healthy, 1 degraded, 1 critical, 1 unknown")
	if !strings.HasPrefix(first, "\x1b[2J\x1b[?7l\x1b[HVM ") || !strings.Contains(first, "warning: h4: system manager") {
		t.Errorf("%q", first)
	}
	// Ages grow between two lists.
	l.until("3m13s")
	// A change shows at once.
	d.fleet.Change(func(s *apitest.Script) {
		s.VMs[3].Health = &blixard.VMHealth{Status: blixard.Healthy}
	})
	l.until("3 healthy, 1 degraded, 1 critical")
	// More VMs than fit: the foot stays in sight.
	d.fleet.Change(func(s *apitest.Script) {
		for i := range 40 {
			v := s.VMs[0]
			v.Name = fmt.Sprintf("more-%02d", i)
			v.ID = "h1/" + v.Name
			s.VMs = append(s.VMs, v)
		}
	})
	full := l.until("45 VMs: 43 healthy")
	if lines := strings.Count(full, "\r\n"); lines > 11 || !strings.Contains(full, "… and 38 more") {
		t.Errorf("%d lines: %q", lines, full)
	}
	// Without a daemon the last list stands, and says so.
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	l.until("NOT CONNECTED, this is ")
	l.until("NOT CONNECTED, this is 2s old")
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	for strings.Contains(l.until("45 VMs"), "NOT CONNECTED") {
		continue
	}
	if err := l.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	endedBy(t, l.cmd, syscall.SIGINT)
	if stderr.Len() > 0 {
		t.Errorf("stderr: %s", stderr.String())
	}
}

// endedBy waits for a command and holds that a signal ended it.
func endedBy(t *testing.T, cmd *exec.Cmd, want syscall.Signal) {
	t.Helper()
	// How it ended is what counts.
	_ = cmd.Wait()
	if got := cmd.ProcessState.Sys().(syscall.WaitStatus); !got.Signaled() || got.Signal() != want {
		t.Errorf("%v: %v, want %v", cmd.Args, cmd.ProcessState, want)
	}
}

// TestSignals holds that Ctrl-C and a closed pipe end a stream at once, without
// a word, and with the status that a shell expects.
func TestSignals(t *testing.T) {
	d := newDaemon(t)
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE} {
		t.Run(signal.String(), func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = r.Close() }()
			cmd := d.command(t, nil, "events", "-q", "-f", "-o", "json")
			var stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = w, &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			_ = w.Close()
			if _, err := bufio.NewReader(r).ReadString('\n'); err != nil {
				t.Fatal(err)
			}
			if err := d.fleet.AwaitStreams(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
			if signal == syscall.SIGPIPE {
				_ = r.Close()
				d.fleet.Emit(blixard.Event{Node: "h1", Type: blixard.EventState})
			} else if err := cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			endedBy(t, cmd, signal)
			if stderr.Len() > 0 {
				t.Errorf("stderr: %s", stderr.String())
			}
			if err := d.fleet.AwaitStreams(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
		})
	}
}
