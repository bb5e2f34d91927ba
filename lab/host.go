package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// startTimeout and stopTimeout bound Start and Stop whose context has no
	// deadline of its own.
	startTimeout = 60 * time.Second
	stopTimeout  = 90 * time.Second
	// killTimeout bounds the end of killed processes: the kernel tears down a
	// host of thousands in a second.
	killTimeout = 30 * time.Second
	// tmpSize bounds a host's /tmp and /dev/shm.
	tmpSize = "1g"
	// sigPowerOff asks systemd to power off, as systemctl poweroff does:
	// SIGRTMIN+4 as glibc counts it.
	sigPowerOff = syscall.Signal(38)
)

// passedDevices are the devices of the machine that hosts see, where they exist.
var passedDevices = []string{
	"null", "zero", "full", "random", "urandom", "tty", "net/tun", "kvm", "fuse", "vhost-net", "vhost-vsock",
}

// Host is a systemd of its own. See the package documentation for what it shares
// with the machine.
type Host struct {
	lab   *Lab
	name  string
	index int
	addr  netip.Addr
	dir   string

	life sync.Mutex // held while the host is being started or ended

	mu       sync.Mutex // guards what follows
	run      *bootedHost
	stateDir string // of microvm.nix, empty where it is not installed
}

// bootedHost is one run of a host, from power on to power off.
type bootedHost struct {
	cmd     *exec.Cmd
	cgroup  string
	console bytes.Buffer
	gone    chan struct{} // closed when PID 1 and all below it are dead
	execs   int           // cgroups given to Cmds, guarded by Host.mu
}

// hostSpec is what PID 1 is told, see hostinit.
type hostSpec struct {
	Name, Root, Lower, Upper, Work, BootID, Hosts, Notify, Tmp string
	Devs                                                       []string
}

func newHost(l *Lab, name string, index int) (*Host, error) {
	h := &Host{lab: l, name: name, index: index, addr: hostAddr(index), dir: filepath.Join(l.dir, "h-"+name)}
	for _, d := range []string{"", "root", "upper", "work", "notify", "upper/etc", "upper/var", "upper/var/log", "upper/var/log/journal"} {
		path := filepath.Join(h.dir, d)
		if err := errors.Join(os.Mkdir(path, 0o755), os.Chmod(path, 0o755)); err != nil {
			return nil, err
		}
	}
	if err := h.put("/etc/hostname", []byte(name+"\n"), 0o644); err != nil {
		return nil, err
	}
	id := make([]byte, 16)
	rand.Read(id)
	if err := h.put("/etc/machine-id", []byte(hex.EncodeToString(id)+"\n"), 0o444); err != nil {
		return nil, err
	}
	// The file is bind-mounted into every host: an added line shows in all.
	f, err := os.OpenFile(filepath.Join(l.dir, "hosts"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	_, err = fmt.Fprintf(f, "%s\t%s\n", h.addr, name)
	return h, errors.Join(err, f.Close())
}

// Name is the host's name in the lab, and its host name.
func (h *Host) Name() string { return h.name }

// Addr is the host's address on the lab's network.
func (h *Host) Addr() netip.Addr { return h.addr }

// Cgroup is the host's cgroup as the machine sees it; the root of the tree that
// the host sees. It exists while the host runs.
func (h *Host) Cgroup() string { return filepath.Join(h.lab.cgroup, h.name) }

// Controllers are the cgroup controllers the host has, none where the machine
// has none to give.
func (h *Host) Controllers() ([]string, error) {
	text, err := os.ReadFile(filepath.Join(h.Cgroup(), "cgroup.controllers"))
	if err != nil {
		return nil, fmt.Errorf("read controllers of %s: %w", h.name, err)
	}
	return strings.Fields(string(text)), nil
}

// port is the name of the host's port on the lab's switch.
func (h *Host) port() string { return fmt.Sprintf("p%d", h.index) }

// upper is where the host's own copy of path is kept.
func (h *Host) upper(path string) string { return filepath.Join(h.dir, "upper", path) }

// running is the present run, nil while the host is off.
func (h *Host) running() *bootedHost {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.run == nil {
		return nil
	}
	select {
	case <-h.run.gone:
		return nil
	default:
		return h.run
	}
}

// Running tells whether the host's PID 1 lives.
func (h *Host) Running() bool { return h.running() != nil }

// PID is the host's PID 1 as this machine counts it, for /proc.
func (h *Host) PID() (int, error) {
	run := h.running()
	if run == nil {
		return 0, fmt.Errorf("host %s is off", h.name)
	}
	return run.cmd.Process.Pid, nil
}

// Wait blocks until the host is off or ctx ends.
func (h *Host) Wait(ctx context.Context) error {
	run := h.running()
	if run == nil {
		return nil
	}
	select {
	case <-run.gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for %s to be off: %w", h.name, ctx.Err())
	}
}

// Start boots the host and returns when systemd has finished starting, running
// or degraded. On failure the host is off and the error holds what it said. A
// host that runs is an error.
func (h *Host) Start(ctx context.Context) error {
	h.life.Lock()
	defer h.life.Unlock()
	if h.Running() {
		return fmt.Errorf("start %s: it runs already", h.name)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := h.start(ctx); err != nil {
		why := h.diagnose(context.WithoutCancel(ctx))
		return errors.Join(fmt.Errorf("start %s: %w\n%s", h.name, err, why), h.crash())
	}
	return nil
}

func (h *Host) start(ctx context.Context) error {
	// The remains of a run that ended by itself.
	if err := h.crash(); err != nil {
		return err
	}
	socket := filepath.Join(h.dir, "notify/socket")
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer notify.Close()
	spec, err := h.spec()
	if err != nil {
		return err
	}
	run, stdin, err := h.spawn()
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.run = run
	h.mu.Unlock()
	defer stdin.Close()
	// PID 1 waits for its spec: its network is there before systemd is.
	if err := h.lab.fabric.plug(h, run.cmd.Process.Pid); err != nil {
		return err
	}
	if _, err := stdin.Write(spec); err != nil {
		return fmt.Errorf("tell PID 1: %w", err)
	}
	if err := stdin.Close(); err != nil {
		return err
	}
	if err := awaitReady(ctx, notify, run.gone); err != nil {
		return err
	}
	out, err := h.output(ctx, "systemctl", "is-system-running")
	switch state := strings.TrimSpace(out); state {
	case "running", "degraded":
		return nil
	default:
		return fmt.Errorf("systemd is %q: %w", state, err)
	}
}

func (h *Host) spec() ([]byte, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	if err != nil {
		return nil, err
	}
	bootID := filepath.Join(h.dir, "boot_id")
	if err := os.Remove(bootID); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if err := os.WriteFile(bootID, id, 0o444); err != nil {
		return nil, err
	}
	return json.Marshal(hostSpec{
		Name: h.name, Root: filepath.Join(h.dir, "root"), Lower: h.lab.rootfs.Root(),
		Upper: filepath.Join(h.dir, "upper"), Work: filepath.Join(h.dir, "work"),
		BootID: bootID, Hosts: filepath.Join(h.lab.dir, "hosts"), Notify: filepath.Join(h.dir, "notify"),
		Tmp: tmpSize, Devs: passedDevices,
	})
}

// spawn starts PID 1, which waits for its spec on the pipe.
func (h *Host) spawn() (*bootedHost, *os.File, error) {
	run := &bootedHost{cgroup: h.Cgroup(), gone: make(chan struct{})}
	if err := os.Mkdir(run.cgroup, 0o755); err != nil {
		return nil, nil, err
	}
	dir, err := os.Open(run.cgroup)
	if err != nil {
		return nil, nil, err
	}
	defer dir.Close()
	read, write, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer read.Close()
	cmd := exec.Command(h.lab.helper, "init")
	cmd.Env = []string{"GOMAXPROCS=1"}
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = read, &run.console, &run.console
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true,
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS |
			syscall.CLONE_NEWIPC | syscall.CLONE_NEWNET,
		UseCgroupFD: true, CgroupFD: int(dir.Fd()),
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("start PID 1: %w", err), write.Close())
	}
	run.cmd = cmd
	go func() {
		// The kernel reaps PID 1 of a namespace after everything in it.
		_ = cmd.Wait()
		close(run.gone)
	}()
	return run, write, nil
}

// awaitReady waits for systemd's READY=1, which PID 1 sends once no start job is
// left, as it does to nspawn.
func awaitReady(ctx context.Context, notify *net.UnixConn, gone <-chan struct{}) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// A read cannot wait for a context or a channel: closing ends it.
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-ctx.Done():
		case <-gone:
		case <-stop:
		}
		notify.Close()
	}()
	message := make([]byte, 4096)
	for {
		n, err := notify.Read(message)
		if err != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("wait for systemd: %w", ctx.Err())
			}
			return errors.New("PID 1 ended before it was ready")
		}
		for line := range strings.Lines(string(message[:n])) {
			if strings.TrimSpace(line) == "READY=1" {
				return nil
			}
		}
	}
}

// Stop powers the host off as systemctl poweroff does and waits until it is off.
// A host that is off is left so.
func (h *Host) Stop(ctx context.Context) error {
	h.life.Lock()
	defer h.life.Unlock()
	return h.stop(ctx)
}

func (h *Host) stop(ctx context.Context) error {
	run := h.running()
	if run == nil {
		return h.crash()
	}
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if err := run.cmd.Process.Signal(sigPowerOff); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", h.name, err)
	}
	select {
	case <-run.gone:
		return h.crash()
	case <-ctx.Done():
		return fmt.Errorf("stop %s: %w\n%s", h.name, ctx.Err(), h.diagnose(context.WithoutCancel(ctx)))
	}
}

// Crash kills everything on the host at once, as a power cut does, and returns
// when nothing of it runs. What was written to files stays written: the kernel,
// and so its page cache, is the machine's. A host that is off is left so.
func (h *Host) Crash() error {
	h.life.Lock()
	defer h.life.Unlock()
	return h.crash()
}

// crash ends the run and removes what is left of it.
func (h *Host) crash() error {
	h.mu.Lock()
	run := h.run
	h.run = nil
	h.mu.Unlock()
	if run != nil {
		// With PID 1 the kernel kills all of its namespace. The nsenter of a Cmd
		// is outside and must be left alive to reap its child, which the
		// namespace waits for; and thawed, if the host is frozen.
		if err := run.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("crash %s: %w", h.name, err)
		}
		if err := os.WriteFile(filepath.Join(run.cgroup, "cgroup.freeze"), []byte("0"), 0); err != nil {
			return fmt.Errorf("crash %s: %w", h.name, err)
		}
		select {
		case <-run.gone:
		case <-time.After(killTimeout):
			return fmt.Errorf("crash %s: PID 1 is there %v after its kill", h.name, killTimeout)
		}
	}
	// A run that never got a process left its cgroup at most.
	if err := killCgroup(h.Cgroup()); err != nil {
		return fmt.Errorf("crash %s: %w", h.name, err)
	}
	return nil
}

// Restart is Stop and Start: a clean reboot.
func (h *Host) Restart(ctx context.Context) error {
	if err := h.Stop(ctx); err != nil {
		return err
	}
	return h.Start(ctx)
}

// Freeze stops all processes of the host where they are, as a stalled hypervisor
// does; the kernel still answers ping. It returns when they stand still.
func (h *Host) Freeze(ctx context.Context) error { return h.freeze(ctx, true) }

// Thaw ends Freeze.
func (h *Host) Thaw(ctx context.Context) error { return h.freeze(ctx, false) }

func (h *Host) freeze(ctx context.Context, on bool) error {
	verb, value := "thaw", "0"
	if on {
		verb, value = "freeze", "1"
	}
	run := h.running()
	if run == nil {
		return fmt.Errorf("%s %s: it is off", verb, h.name)
	}
	if err := os.WriteFile(filepath.Join(run.cgroup, "cgroup.freeze"), []byte(value), 0); err != nil {
		return fmt.Errorf("%s %s: %w", verb, h.name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if err := awaitCgroup(ctx, run.cgroup, "frozen "+value); err != nil {
		return fmt.Errorf("%s %s: %w", verb, h.name, err)
	}
	return nil
}

// diagnose is what the host itself has to say of what went wrong.
func (h *Host) diagnose(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var b strings.Builder
	run := h.running()
	if run == nil {
		h.mu.Lock()
		run = h.run
		h.mu.Unlock()
		if run != nil {
			<-run.gone
			fmt.Fprintf(&b, "PID 1: %v\n%s", run.cmd.ProcessState, run.console.String())
		}
		return b.String()
	}
	for _, argv := range [][]string{
		{"systemctl", "list-jobs", "--no-pager"},
		{"systemctl", "list-units", "--failed", "--no-pager", "--no-legend", "--plain"},
		{"journalctl", "--boot", "--priority=warning", "--lines=40", "--no-pager", "--output=short-monotonic"},
	} {
		out, err := h.output(ctx, argv...)
		fmt.Fprintf(&b, "$ %s\n%s", strings.Join(argv, " "), out)
		if err != nil {
			fmt.Fprintf(&b, "%v\n", err)
		}
	}
	return b.String()
}
