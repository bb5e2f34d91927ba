// Command probe stands in for the daemon under its unit: it tries what the
// daemon must be able to do and what must be refused, writes down the answers,
// and says that it is ready.
//
// It reads from /etc/blixard/probe.json whom to try, and writes to
// /run/blixard/probe.json.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/systemd"
)

// asked is whom to try.
type asked struct {
	// UID is a user with a manager of their own, PID a process of theirs.
	UID uint32
	PID int
}

func main() {
	if len(os.Args) > 1 {
		fmt.Print("child")
		return
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run() error {
	text, err := os.ReadFile("/etc/blixard/probe.json")
	if err != nil {
		return err
	}
	var who asked
	if err := json.Unmarshal(text, &who); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if text, err = json.MarshalIndent(try(ctx, who), "", "\t"); err != nil {
		return err
	}
	if err := os.WriteFile("/run/blixard/probe.json", text, 0o644); err != nil {
		return err
	}
	if err := systemd.NewNotifier().Ready(); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// try tells by a name what came of each attempt: "ok", what was found, or in
// one word why it failed.
func try(ctx context.Context, who asked) map[string]string {
	got := map[string]string{
		"cpus":           said(runtime.NumCPU() > 0, "some"),
		"write state":    word(os.WriteFile("/var/lib/blixard/x", nil, 0o600)),
		"listen":         listen(),
		"child":          child(ctx),
		"system manager": manager(ctx, nil),
		"user's manager": manager(ctx, &who.UID),
		"read command line": said(func() bool {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", who.PID))
			return err == nil && bytes.Contains(b, []byte("sleep"))
		}(), "ok"),
		"read cgroups":     word(entries("/sys/fs/cgroup")),
		"read VMs":         word(entries("/var/lib/microvms")),
		"list home":        word(entries("/home/alice")),
		"list root's home": word(entries("/root")),
		"write /etc":       word(os.WriteFile("/etc/x", nil, 0o600)),
		"write VMs":        word(os.WriteFile("/var/lib/microvms/x", nil, 0o600)),
		"write cgroups":    word(os.WriteFile("/sys/fs/cgroup/cgroup.procs", nil, 0o600)),
		"become root":      word(thread(func() error { return setresuid(0) })),
		"user namespace":   word(thread(func() error { return unix.Unshare(unix.CLONE_NEWUSER) })),
		"mount":            word(unix.Mount("none", "/tmp", "tmpfs", 0, "")),
		"packet socket":    word(socket(unix.AF_PACKET, unix.SOCK_RAW)),
		"netlink socket":   word(socket(unix.AF_NETLINK, unix.SOCK_RAW)),
		"inet socket":      word(socket(unix.AF_INET, unix.SOCK_STREAM)),
		"writable and executable": word(func() error {
			_, err := unix.Mmap(-1, 0, 4096, unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
			return err
		}()),
	}
	status, err := os.ReadFile("/proc/self/status")
	got["status"] = word(err)
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch name {
		case "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp":
			got[name] = strings.TrimLeft(strings.TrimSpace(value), "0")
		}
	}
	return got
}

func said(ok bool, text string) string {
	if ok {
		return text
	}
	return "no"
}

// word is an error in one word.
func word(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, syscall.EAFNOSUPPORT):
		return "no such family"
	case errors.Is(err, syscall.EROFS):
		return "read-only"
	case errors.Is(err, fs.ErrPermission):
		return "refused"
	default:
		return err.Error()
	}
}

func entries(dir string) error {
	_, err := os.ReadDir(dir)
	return err
}

// listen opens a socket that everybody may connect to.
func listen() string {
	l, err := net.Listen("unix", "/run/blixard/probe.sock")
	if err != nil {
		return word(err)
	}
	defer l.Close()
	return word(os.Chmod("/run/blixard/probe.sock", 0o666))
}

// child runs this program as a child, as the daemon does for its store.
func child(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "/proc/self/exe", "child").Output()
	if err != nil {
		return word(err)
	}
	return string(out)
}

// manager asks a service manager for its units.
func manager(ctx context.Context, uid *uint32) string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c, err := systemd.Dial(ctx, systemd.Config{UID: uid})
	if err != nil {
		if blixard.ErrorCode(err) == blixard.CodeDenied {
			return "denied"
		}
		return err.Error()
	}
	defer c.Close()
	units, err := c.ListUnits(ctx, "*")
	if err != nil {
		return err.Error()
	}
	return said(len(units) > 0, "units")
}

// thread does something to a thread that is then thrown away.
func thread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// setresuid sets the effective uid of the calling thread only.
func setresuid(uid uintptr) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uid, ^uintptr(0)); errno != 0 {
		return errno
	}
	return nil
}

func socket(family, kind int) error {
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}
