package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// execTimeout bounds an Exec whose context has no deadline.
const execTimeout = 2 * time.Minute

// Cmd is a command on a host. Set the streams before Start. When its context
// ends it is killed with everything it started, and Wait returns when all of
// that is dead.
type Cmd struct {
	// Stdin, Stdout and Stderr are as in exec.Cmd; a terminal may be passed
	// through.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Env is added to the host's: HOME=/root, the usual PATH, LANG=C.UTF-8 and
	// TERM.
	Env []string

	ctx    context.Context
	host   *Host
	argv   []string
	cmd    *exec.Cmd
	cgroup string
	killed atomic.Bool
}

// Command prepares a command on the host. It runs as root, in a cgroup of its
// own outside any unit.
func (h *Host) Command(ctx context.Context, argv ...string) *Cmd {
	return &Cmd{ctx: ctx, host: h, argv: argv}
}

// Start starts the command. Wait must follow.
func (c *Cmd) Start() error {
	if err := c.start(); err != nil {
		return fmt.Errorf("run %q on %s: %w", c.argv, c.host.name, err)
	}
	return nil
}

func (c *Cmd) start() error {
	if len(c.argv) == 0 {
		return errors.New("no command")
	}
	run := c.host.running()
	if run == nil {
		return errors.New("the host is off")
	}
	c.host.mu.Lock()
	run.execs++
	c.cgroup = filepath.Join(run.cgroup, fmt.Sprintf("lab-exec-%d", run.execs))
	c.host.mu.Unlock()
	if err := os.Mkdir(c.cgroup, 0o755); err != nil {
		return err
	}
	dir, err := os.Open(c.cgroup)
	if err != nil {
		return err
	}
	defer dir.Close()
	term := os.Getenv("TERM")
	if term == "" {
		term = "dumb"
	}
	args := []string{"--target", fmt.Sprint(run.cmd.Process.Pid), "--all", "--", "env", "-i",
		"HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "TERM=" + term}
	args = append(append(args, c.Env...), c.argv...)
	c.cmd = exec.CommandContext(c.ctx, "nsenter", args...)
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = c.Stdin, c.Stdout, c.Stderr
	c.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	c.cmd.Cancel = c.kill
	// What the command left running may hold the pipes.
	c.cmd.WaitDelay = time.Second
	if err := c.cmd.Start(); err != nil {
		return errors.Join(err, removeCgroup(c.cgroup))
	}
	return nil
}

// kill ends the command and what it started.
func (c *Cmd) kill() error {
	c.killed.Store(true)
	err := c.signal(syscall.SIGKILL)
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		err = errors.Join(err, c.set("cgroup.kill", "1"))
	}
	return err
}

// signal sends the signal to all processes of the command. Frozen, the cgroup
// cannot grow while they are counted. nsenter is spared if it has a child to
// reap: else that would be left to the machine's PID 1, and the host's end would
// wait for it.
func (c *Cmd) signal(sig syscall.Signal) (err error) {
	if err := c.set("cgroup.freeze", "1"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.set("cgroup.freeze", "0")) }()
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	if err := awaitCgroup(ctx, c.cgroup, "frozen 1"); err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(c.cgroup, "cgroup.procs"))
	if err != nil {
		return err
	}
	pids := strings.Fields(string(text))
	own := strconv.Itoa(c.cmd.Process.Pid)
	for _, pid := range pids {
		n, err := strconv.Atoi(pid)
		if err != nil {
			return err
		}
		if pid == own && len(pids) > 1 {
			continue
		}
		if err := syscall.Kill(n, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("signal %d: %w", n, err)
		}
	}
	return nil
}

func (c *Cmd) set(file, value string) error {
	err := os.WriteFile(filepath.Join(c.cgroup, file), []byte(value), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return os.ErrProcessDone
	}
	return err
}

// Wait waits for the command's end. The error of one that ran and failed wraps
// *exec.ExitError; a command killed with its host ends so too.
func (c *Cmd) Wait() error {
	err := c.cmd.Wait()
	if c.killed.Load() {
		// What the command started dies in its own time.
		ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
		defer cancel()
		if gone := awaitCgroup(ctx, c.cgroup, "populated 0"); gone != nil && !errors.Is(gone, fs.ErrNotExist) && !errors.Is(gone, syscall.ENODEV) {
			err = errors.Join(err, gone)
		}
	}
	// Refused while something the command left in the background still runs: the
	// host's end removes it then.
	_ = os.Remove(c.cgroup)
	if err != nil {
		if cause := context.Cause(c.ctx); cause != nil {
			err = errors.Join(cause, err)
		}
		return fmt.Errorf("run %q on %s: %w", c.argv, c.host.name, err)
	}
	return nil
}

// Run is Start and Wait.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Signal sends a signal to every process of the command. One that has ended is
// os.ErrProcessDone.
func (c *Cmd) Signal(sig os.Signal) error {
	number, ok := sig.(syscall.Signal)
	if !ok {
		return fmt.Errorf("signal %q: %v is none", c.argv, sig)
	}
	if err := c.signal(number); err != nil {
		return fmt.Errorf("signal %q on %s: %w", c.argv, c.host.name, err)
	}
	return nil
}

// Exec runs a command on the host as root and returns its standard output. The
// error of a command that failed wraps *exec.ExitError and ends with what it
// wrote to standard error. Without a deadline in ctx it is killed after two
// minutes.
func (h *Host) Exec(ctx context.Context, argv ...string) (string, error) {
	return h.output(ctx, argv...)
}

func (h *Host) output(ctx context.Context, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, execTimeout)
	defer cancel()
	cmd := h.Command(ctx, argv...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if text := strings.TrimSpace(stderr.String()); err != nil && text != "" {
		err = fmt.Errorf("%w: %s", err, tail(text, 20))
	}
	return stdout.String(), err
}
