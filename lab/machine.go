package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	// machineMemoryMB and machineCPUs are the same for all: a snapshot holds
	// them.
	machineMemoryMB = 2048
	machineCPUs     = 2
	// coldTimeout bounds a start without a snapshot, machineTimeout all else that
	// a machine is asked to do and whose caller sets no deadline.
	coldTimeout    = 3 * time.Minute
	machineTimeout = 90 * time.Second
	// agentReady is the line on the console from which on the agent answers.
	agentReady = "lab agent ready"
)

// MachineOptions say how a machine is to be; the zero value is usual.
type MachineOptions struct {
	// Cold boots the machine at its first start, too, which takes some ten
	// seconds more: for tests of what a boot does.
	Cold bool
}

// Machine is a virtual machine with a kernel of its own: all of cgroup v2,
// systemd as PID 1, a clock, modules such as dm-flakey and netem. It needs no
// root. Its methods mean what those of Host mean; it has 2 processors and 2 GiB
// of memory, and no network but Exec, Dial and the files.
//
// The first start goes on from a snapshot of a booted machine, made once and
// kept in the cache, with ids, name, clock and random numbers of its own; later
// ones boot from its disk. It ends with its lab, and with this process however
// that ends.
//
// Its methods may be called from many goroutines; Start, Stop, Crash, Restart
// and Close wait for each other.
type Machine struct {
	name     string
	dir      string
	opts     MachineOptions
	progress io.Writer

	life   sync.Mutex   // held while the machine is being started or ended; guards what follows
	base   *machineBase // nil once closed
	cached []*snapshot  // those that its disk lies over

	mu       sync.Mutex // guards what follows
	run      *bootedMachine
	stateDir string // of microvm.nix, empty where it is not installed
}

// Node is what a Host and a Machine both are, for tests that run on either. Exec
// of a command that failed wraps an error with ExitCode() int. ReadFile of what
// is not there wraps fs.ErrNotExist.
type Node interface {
	Name() string
	Running() bool
	Start(ctx context.Context) error
	Stop(ctx context.Context) error
	Crash() error
	Restart(ctx context.Context) error
	Wait(ctx context.Context) error
	Freeze(ctx context.Context) error
	Thaw(ctx context.Context) error
	Exec(ctx context.Context, argv ...string) (string, error)
	WriteFile(path string, data []byte, mode fs.FileMode) error
	CopyIn(source, path string) error
	ReadFile(path string) ([]byte, error)
	Dial(ctx context.Context, network, addr string) (net.Conn, error)
}

var (
	_ Node = (*Host)(nil)
	_ Node = (*Machine)(nil)
)

// bootedMachine is one run of a machine.
type bootedMachine struct {
	*emulator
	port  int // of this machine's loopback, where the agent is
	token string
}

// NewMachine opens a lab for a test with one running machine. Where a tool is
// missing it fails the test, naming what to type. Both end with the test.
func NewMachine(t testing.TB, name string) *Machine {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), openTimeout)
	defer cancel()
	l, err := Open(ctx, Config{Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			l.explain(t)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	m, err := l.AddMachine(ctx, name, MachineOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return m
}

// AddMachine adds a machine that is off. It needs no root. If the cache holds no
// disk it is made now, and with it Debian's packages are fetched.
func (l *Lab) AddMachine(ctx context.Context, name string, opts MachineOptions) (*Machine, error) {
	m, err := l.addMachine(ctx, name, opts)
	if err != nil {
		return nil, fmt.Errorf("add machine %s: %w", name, err)
	}
	return m, nil
}

func (l *Lab) addMachine(ctx context.Context, name string, opts MachineOptions) (*Machine, error) {
	if err := checkHostName(name); err != nil {
		return nil, err
	}
	base, err := openMachineBase(ctx, l.progress)
	if err != nil {
		return nil, err
	}
	m := &Machine{name: name, dir: filepath.Join(l.Dir(), "m-"+name), opts: opts, progress: l.progress, base: base}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errors.Join(errors.New("the lab is closed"), base.Close())
	}
	if err := os.Mkdir(m.dir, 0o700); err != nil {
		return nil, errors.Join(err, base.Close())
	}
	l.machines = append(l.machines, m)
	return m, nil
}

// Close ends the machine as Crash does, for good, before its lab does. Its disk
// goes with the lab. Closing twice does nothing.
func (m *Machine) Close() error {
	m.life.Lock()
	defer m.life.Unlock()
	if m.base == nil {
		return nil
	}
	errs := []error{m.crash(), m.base.Close()}
	for _, s := range m.cached {
		errs = append(errs, s.lock.release())
	}
	m.base, m.cached = nil, nil
	return errors.Join(errs...)
}

// Name is the machine's name in the lab, and its host name.
func (m *Machine) Name() string { return m.name }

// running is the present run, nil while the machine is off.
func (m *Machine) running() *bootedMachine {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.run == nil || !m.run.running() {
		return nil
	}
	return m.run
}

// Running tells whether the machine is on.
func (m *Machine) Running() bool { return m.running() != nil }

// Wait blocks until the machine is off or ctx ends.
func (m *Machine) Wait(ctx context.Context) error {
	run := m.running()
	if run == nil {
		return nil
	}
	select {
	case <-run.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for %s to be off: %w", m.name, ctx.Err())
	}
}

// Console is what the machine's kernel and its first programs wrote in the
// present or the last run, at most the last 64 KiB.
func (m *Machine) Console() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.run == nil {
		return ""
	}
	return m.run.console.String()
}

// Start starts the machine and returns when systemd is running or degraded. On
// failure the machine is off and the error holds what it said. A machine that
// runs is an error.
func (m *Machine) Start(ctx context.Context) error {
	m.life.Lock()
	defer m.life.Unlock()
	if m.Running() {
		return fmt.Errorf("start %s: it runs already", m.name)
	}
	if err := m.start(ctx); err != nil {
		why := m.diagnose(context.WithoutCancel(ctx))
		return errors.Join(fmt.Errorf("start %s: %w\n%s", m.name, err, why), m.crash())
	}
	return nil
}

func (m *Machine) start(ctx context.Context) error {
	if m.base == nil {
		return errors.New("it is closed")
	}
	// The remains of a run that ended by itself.
	if err := m.crash(); err != nil {
		return err
	}
	accel, err := accelerator(ctx, m.base.boot, m.progress)
	if err != nil {
		return err
	}
	disk := filepath.Join(m.dir, "disk.qcow2")
	args := machineArgs(m.base, accel, disk)
	switch _, err := os.Stat(disk); {
	case err == nil:
		return m.boot(ctx, args)
	case !errors.Is(err, os.ErrNotExist):
		return err
	case m.opts.Cold:
		if err := writeOverlay(disk, m.base.disk, "raw"); err != nil {
			return err
		}
		return m.boot(ctx, args)
	}
	snap, err := openSnapshot(ctx, m.base, accel, m.progress)
	if err != nil {
		return err
	}
	m.cached = append(m.cached, snap)
	if err := writeOverlay(disk, snap.disk, "qcow2"); err != nil {
		return err
	}
	return m.resume(ctx, snap, args)
}

// machineArgs are QEMU's but for the memory. A snapshot fits the very same only.
func machineArgs(base *machineBase, accel, disk string) []string {
	return []string{
		"-accel", accel, "-M", q35 + ",memory-backend=mem", "-cpu", "max",
		"-m", fmt.Sprintf("%dM", machineMemoryMB), "-smp", fmt.Sprint(machineCPUs),
		"-kernel", base.boot.kernel, "-initrd", base.boot.machine,
		"-append", kernelCommandLine + " loglevel=4 audit=0 systemd.show_status=0 lab.role=machine",
		// What the guest syncs is in this machine's page cache, which is as good
		// as a disk to a virtual machine.
		"-drive", "if=none,id=disk,format=qcow2,cache=unsafe,file=" + strings.ReplaceAll(disk, ",", ",,"),
		"-device", "virtio-blk-pci,drive=disk",
		"-netdev", fmt.Sprintf("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-10.0.2.15:%d", agentPort),
		"-device", "virtio-net-pci,netdev=net,romfile=",
	}
}

// begin starts QEMU as the machine's present run.
func (m *Machine) begin(args []string) (*bootedMachine, error) {
	e, err := startEmulator(args)
	if err != nil {
		return nil, err
	}
	run := &bootedMachine{emulator: e, token: randomHex(16)}
	m.mu.Lock()
	m.run = run
	m.mu.Unlock()
	if run.port, err = e.forwardedPort(); err != nil {
		return nil, err
	}
	return run, nil
}

// boot starts the machine from its disk.
func (m *Machine) boot(ctx context.Context, args []string) error {
	run, err := m.begin(append(args, "-object", fmt.Sprintf("memory-backend-ram,id=mem,size=%dM", machineMemoryMB)))
	if err != nil {
		return err
	}
	return m.awaitBoot(ctx, run)
}

func (m *Machine) awaitBoot(ctx context.Context, run *bootedMachine) error {
	ctx, cancel := context.WithTimeout(ctx, coldTimeout)
	defer cancel()
	if err := run.awaitLine(ctx, agentReady); err != nil {
		return err
	}
	if err := run.settle(ctx, m.name, false); err != nil {
		return err
	}
	return m.awaitSystemd(ctx)
}

func (m *Machine) awaitSystemd(ctx context.Context) error {
	out, err := m.Exec(ctx, "systemctl", "is-system-running", "--wait")
	switch state := strings.TrimSpace(out); state {
	case "running", "degraded":
		return nil
	default:
		return fmt.Errorf("systemd is %q: %w", state, err)
	}
}

// Stop powers the machine off as systemctl poweroff does and waits until it is
// off. A machine that is off is left so.
func (m *Machine) Stop(ctx context.Context) error {
	m.life.Lock()
	defer m.life.Unlock()
	run := m.running()
	if run == nil {
		return m.crash()
	}
	ctx, cancel := context.WithTimeout(ctx, machineTimeout)
	defer cancel()
	if err := run.simple(ctx, agentRequest{Op: "off"}); err != nil {
		return fmt.Errorf("stop %s: %w", m.name, err)
	}
	select {
	case <-run.done:
		return m.crash()
	case <-ctx.Done():
		return fmt.Errorf("stop %s: %w\n%s", m.name, ctx.Err(), m.diagnose(context.WithoutCancel(ctx)))
	}
}

// Crash ends the machine at once, as a power cut does: what its programs had not
// synced to disk is lost. A machine that is off is left so.
func (m *Machine) Crash() error {
	m.life.Lock()
	defer m.life.Unlock()
	return m.crash()
}

func (m *Machine) crash() error {
	m.mu.Lock()
	run := m.run
	m.mu.Unlock()
	if run == nil {
		return nil
	}
	if err := run.kill(); err != nil {
		return fmt.Errorf("crash %s: %w", m.name, err)
	}
	return nil
}

// Restart is Stop and Start: a clean reboot.
func (m *Machine) Restart(ctx context.Context) error {
	if err := m.Stop(ctx); err != nil {
		return err
	}
	return m.Start(ctx)
}

// Freeze stops the machine where it is, its kernel and clock too, as a stalled
// hypervisor does.
func (m *Machine) Freeze(ctx context.Context) error { return m.control(ctx, "freeze", "stop") }

// Thaw ends Freeze. The machine's clock goes on from where it stood.
func (m *Machine) Thaw(ctx context.Context) error { return m.control(ctx, "thaw", "cont") }

func (m *Machine) control(ctx context.Context, verb, command string) error {
	run := m.running()
	if run == nil {
		return fmt.Errorf("%s %s: it is off", verb, m.name)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s %s: %w", verb, m.name, err)
	}
	if err := run.qmp.ask(command, nil, nil); err != nil {
		return fmt.Errorf("%s %s: %w", verb, m.name, err)
	}
	return nil
}

// diagnose is what the machine itself has to say of what went wrong.
func (m *Machine) diagnose(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	var b strings.Builder
	if text := m.Console(); text != "" {
		fmt.Fprintf(&b, "console:\n%s\n", tail(text, 40))
	}
	if !m.Running() {
		return b.String() + "the machine is off\n"
	}
	for _, argv := range [][]string{
		{"systemctl", "list-jobs", "--no-pager"},
		{"systemctl", "list-units", "--failed", "--no-pager", "--no-legend", "--plain"},
		{"journalctl", "--boot", "--priority=warning", "--lines=40", "--no-pager", "--output=short-monotonic"},
	} {
		out, err := m.Exec(ctx, argv...)
		fmt.Fprintf(&b, "$ %s\n%s", strings.Join(argv, " "), out)
		if err != nil {
			fmt.Fprintf(&b, "%v\n", err)
		}
	}
	return b.String()
}

// randomHex is n random bytes in hexadecimal.
func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return hex.EncodeToString(b)
}
