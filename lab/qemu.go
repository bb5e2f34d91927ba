package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	qemuProgram = "qemu-system-x86_64"
	// accelTimeout bounds the trial boot with KVM, which takes a second where
	// KVM works.
	accelTimeout = 10 * time.Second
	// qmpTimeout bounds one question to QEMU.
	qmpTimeout = 10 * time.Second
	// consoleMax is how much of a console is kept, its end, in bytes.
	consoleMax = 64 << 10
)

// q35 boots every time without KVM. "-M microvm" hangs in the calibration of its
// timers in two boots of three.
const q35 = "q35,smm=off,sata=off,smbus=off,usb=off"

// kernelCommandLine is what all guests' kernels are told: to end the virtual
// machine on a panic, and to leave out what is slow without KVM.
const kernelCommandLine = "console=ttyS0 quiet panic=-1 reboot=t nokaslr no_timer_check mitigations=off init_on_alloc=0 net.ifnames=0"

// emulator is a QEMU started by this process. It dies with this process.
type emulator struct {
	qmp     *qmp
	console tailBuffer

	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended; err is valid then
	err  error
}

// startEmulator starts QEMU with the arguments and QMP added.
func startEmulator(args []string) (*emulator, error) {
	path, err := exec.LookPath(qemuProgram)
	if err != nil {
		return nil, missingError(missingTools(qemuProgram))
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	args = append([]string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control",
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
	}, args...)
	e := &emulator{done: make(chan struct{})}
	e.cmd = exec.Command(path, args...)
	e.cmd.Stdout, e.cmd.Stderr = &e.console, &e.console
	e.cmd.ExtraFiles = []*os.File{theirs}
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The kernel sends the signal when the thread that started QEMU ends:
		// this one stays until QEMU is gone.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := e.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		e.err = e.cmd.Wait()
		close(e.done)
	}()
	if err := <-started; err != nil {
		return nil, errors.Join(fmt.Errorf("start QEMU: %w", err), ours.Close())
	}
	e.qmp = newQMP(ours)
	if err := e.qmp.hello(); err != nil {
		return nil, errors.Join(fmt.Errorf("start QEMU: %w", err), e.kill(), errors.New(e.console.String()))
	}
	return e, nil
}

// kill ends QEMU at once, as a power cut, and waits for its end.
func (e *emulator) kill() error {
	if err := e.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill QEMU: %w", err)
	}
	<-e.done
	return e.qmp.close()
}

func (e *emulator) running() bool {
	select {
	case <-e.done:
		return false
	default:
		return true
	}
}

// ended is the error for whom QEMU's end came too early, with what it said last.
// done must be closed.
func (e *emulator) ended() error {
	return errors.Join(errors.New("QEMU ended"), e.err, errors.New(e.console.String()))
}

// awaitLine waits until the console has a line with that text.
func (e *emulator) awaitLine(ctx context.Context, text string) error {
	for {
		seen, changed := e.console.watch()
		if strings.Contains(seen, text) {
			return nil
		}
		select {
		case <-changed:
		case <-e.done:
			return fmt.Errorf("before %q: %w", text, e.ended())
		case <-ctx.Done():
			return fmt.Errorf("wait for %q on the console: %w\n%s", text, ctx.Err(), e.console.String())
		}
	}
}

func socketPair() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	mine := os.NewFile(uintptr(fds[0]), "qmp")
	defer mine.Close()
	theirs = os.NewFile(uintptr(fds[1]), "qmp")
	conn, err := net.FileConn(mine)
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return conn.(*net.UnixConn), theirs, nil
}

// qmp is QEMU's control connection. One question at a time; events are passed
// over, since who waits for something asks for it.
type qmp struct {
	mu   sync.Mutex // held from question to answer
	conn *net.UnixConn
	in   *json.Decoder
}

func newQMP(conn *net.UnixConn) *qmp { return &qmp{conn: conn, in: json.NewDecoder(conn)} }

// close may be called twice.
func (q *qmp) close() error {
	if err := q.conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

type qmpMessage struct {
	Greeting json.RawMessage `json:"QMP"`
	Return   json.RawMessage `json:"return"`
	Event    string          `json:"event"`
	Error    *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

// hello takes the greeting and leaves the negotiation.
func (q *qmp) hello() error {
	if err := q.conn.SetReadDeadline(time.Now().Add(qmpTimeout)); err != nil {
		return err
	}
	var m qmpMessage
	if err := q.in.Decode(&m); err != nil {
		return fmt.Errorf("read QMP greeting: %w", err)
	}
	if m.Greeting == nil {
		return errors.New("read QMP greeting: it is none")
	}
	return q.ask("qmp_capabilities", nil, nil)
}

// ask carries out a command and decodes its answer into result, unless that is
// nil.
func (q *qmp) ask(command string, args any, result any) error {
	if err := q.exchange(command, args, nil, result); err != nil {
		return fmt.Errorf("ask QEMU to %s: %w", command, err)
	}
	return nil
}

// pass gives QEMU an open file under a name.
func (q *qmp) pass(name string, file *os.File) error {
	rights := unix.UnixRights(int(file.Fd()))
	if err := q.exchange("getfd", map[string]string{"fdname": name}, rights, nil); err != nil {
		return fmt.Errorf("pass QEMU a file: %w", err)
	}
	return nil
}

func (q *qmp) exchange(command string, args any, rights []byte, result any) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	question := map[string]any{"execute": command}
	if args != nil {
		question["arguments"] = args
	}
	line, err := json.Marshal(question)
	if err != nil {
		return err
	}
	if err := q.conn.SetDeadline(time.Now().Add(qmpTimeout)); err != nil {
		return err
	}
	if _, _, err := q.conn.WriteMsgUnix(append(line, '\n'), rights, nil); err != nil {
		return err
	}
	for {
		var m qmpMessage
		if err := q.in.Decode(&m); err != nil {
			return err
		}
		switch {
		case m.Event != "":
		case m.Error != nil:
			return fmt.Errorf("%s: %s", m.Error.Class, m.Error.Desc)
		case result == nil:
			return nil
		default:
			return json.Unmarshal(m.Return, result)
		}
	}
}

// tailBuffer keeps the end of what is written to it.
type tailBuffer struct {
	mu      sync.Mutex // guards what follows
	data    []byte
	changed chan struct{} // closed at the next write, if somebody watches
}

func (b *tailBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.data = append(b.data, p...)
	if over := len(b.data) - consoleMax; over > 0 {
		b.data = append([]byte(nil), b.data[over:]...)
	}
	if b.changed != nil {
		close(b.changed)
		b.changed = nil
	}
	return len(p), nil
}

func (b *tailBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.data)
}

// watch returns what is there and a channel closed when there is more.
func (b *tailBuffer) watch() (string, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.changed == nil {
		b.changed = make(chan struct{})
	}
	return string(b.data), b.changed
}

// qemuVersion is the first line of what QEMU says of itself.
func qemuVersion(ctx context.Context) (string, error) {
	path, err := exec.LookPath(qemuProgram)
	if err != nil {
		return "", missingError(missingTools(qemuProgram))
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("ask QEMU for its version: %w", err)
	}
	line, _, _ := bytes.Cut(out, []byte("\n"))
	return string(line), nil
}

// accelerator is kvm or tcg: whether a guest boots with KVM is tried once for a
// machine's kernel, QEMU and user, and remembered. The device file alone proves
// nothing: KVM under another hypervisor may open and never run a guest.
func accelerator(ctx context.Context, boot *bootFiles, progress io.Writer) (string, error) {
	if !mayUseKVM() {
		return "tcg", nil
	}
	version, err := qemuVersion(ctx)
	if err != nil {
		return "", err
	}
	var host unix.Utsname
	if err := unix.Uname(&host); err != nil {
		return "", fmt.Errorf("read kernel version: %w", err)
	}
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	name := "accel-" + digest(version, string(host.Release[:]), string(host.Version[:]), boot.release, cpuModel())
	dir, lock, err := cached(ctx, cache, name, func(ctx context.Context, dir string) error {
		say(progress, "Trying whether KVM works (once, at most %.0f s)", accelTimeout.Seconds())
		accel := "kvm"
		if err := tryKVM(ctx, boot); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			accel = "tcg"
		}
		return os.WriteFile(filepath.Join(dir, "accel"), []byte(accel), 0o644)
	})
	if err != nil {
		return "", fmt.Errorf("find out whether KVM works: %w", err)
	}
	accel, err := os.ReadFile(filepath.Join(dir, "accel"))
	return string(accel), errors.Join(err, lock.release(), forgetOld(cache, "accel-", name))
}

func mayUseKVM() bool { return unix.Access("/dev/kvm", unix.R_OK|unix.W_OK) == nil }

// tryKVM boots the microVM's guest with KVM until it is ready.
func tryKVM(ctx context.Context, boot *bootFiles) error {
	ctx, cancel := context.WithTimeout(ctx, accelTimeout)
	defer cancel()
	e, err := startEmulator([]string{
		"-accel", "kvm", "-M", q35, "-cpu", "max", "-m", "128M",
		"-kernel", boot.kernel, "-initrd", boot.microVM, "-append", kernelCommandLine,
	})
	if err != nil {
		return err
	}
	return errors.Join(e.awaitLine(ctx, "guest ready"), e.kill())
}

// cpuModel tells processors apart as far as a virtual machine's state depends on
// them. One that cannot be read is no reason to stop: it is then as unknown as
// it is in the next run.
func cpuModel() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(string(text), "\n\n")
	var b strings.Builder
	for line := range strings.Lines(first) {
		for _, key := range []string{"vendor_id", "model name", "stepping", "microcode", "flags"} {
			if strings.HasPrefix(line, key) {
				b.WriteString(line)
			}
		}
	}
	return b.String()
}
