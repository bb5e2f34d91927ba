package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/time/rate"
)

// The states of a member, as blixard.MemberStatus tells them.
const (
	// MemberStarting: it is about to run, replays its log, or waits for its
	// folder. Leads to running, hung or down.
	MemberStarting = "starting"
	// MemberRunning: it answers. Leads to hung or down.
	MemberRunning = "running"
	// MemberHung: its process does not answer and is being killed, which a
	// stalled disk may delay. Leads to down.
	MemberHung = "hung"
	// MemberDown: it has no process. Leads to starting.
	MemberDown = "down"
)

// SupervisorConfig says which member to run and how.
type SupervisorConfig struct {
	Member MemberConfig
	// Command is the program and its arguments that run the member, with
	// RunMember, from that configuration.
	Command []string
	Logger  *slog.Logger

	// HangAfter is how long a health request may take. 0 means 5 s.
	HangAfter time.Duration
	// StartWithin is how long a member may take until it answers first; it
	// replays its log meanwhile. 0 means 2 min.
	StartWithin time.Duration
	// ProbeEvery is the time between health requests. 0 means 2 s.
	ProbeEvery time.Duration
	// StopWithin is how long a member may take to end in order. 0 means 10 s.
	StopWithin time.Duration
	// RestartMax bounds the pause before a member is started again, which grows
	// from 0.1 s. 0 means 15 s.
	RestartMax time.Duration
}

// Validate refuses a configuration that cannot run a member.
func (c *SupervisorConfig) Validate() error {
	if len(c.Command) == 0 {
		return errors.New("no command for the member")
	}
	return c.Member.Validate()
}

// The pause before a member is started again. One that answered for long
// enough begins again with the shortest.
const (
	restartMin   = 100 * time.Millisecond
	restartReset = 30 * time.Second
)

// Supervisor keeps a member running as a child process.
type Supervisor struct {
	cfg SupervisorConfig

	// mu guards state.
	mu    sync.Mutex
	state MemberState
}

// MemberState is how a supervised member does.
type MemberState struct {
	// State is MemberStarting, MemberRunning, MemberHung or MemberDown.
	State string
	// Reason says why it does not run; it is empty when it does.
	Reason string
	// Since is when the state began, with the monotonic clock.
	Since time.Time
	// Restarts counts the starts after the first.
	Restarts int
	// PID is its process, 0 when there is none.
	PID int
}

// NewSupervisor makes a supervisor that does nothing until Run.
func NewSupervisor(cfg SupervisorConfig) *Supervisor {
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{{&cfg.HangAfter, 5 * time.Second}, {&cfg.StartWithin, 2 * time.Minute}, {&cfg.ProbeEvery, 2 * time.Second}, {&cfg.StopWithin, 10 * time.Second}, {&cfg.RestartMax, 15 * time.Second}} {
		if *d.v == 0 {
			*d.v = d.def
		}
	}
	cfg.Member = cfg.Member.normal()
	return &Supervisor{cfg: cfg, state: MemberState{State: MemberDown, Reason: "not started yet", Since: time.Now()}}
}

// Status is how the member does now. It does not block.
func (s *Supervisor) Status() MemberState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// set changes the state and leaves the count of restarts.
func (s *Supervisor) set(state, reason string, pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.State != state {
		s.state.Since = time.Now()
	}
	s.state.State, s.state.Reason, s.state.PID = state, reason, pid
}

// Run keeps the member running until ctx ends. Then it has the member end in
// order, kills it when that takes too long, and returns when its process is
// gone. The error is of the configuration.
func (s *Supervisor) Run(ctx context.Context) error {
	if err := s.cfg.Validate(); err != nil {
		return fmt.Errorf("supervise member: %w", err)
	}
	// The kernel kills the child when the thread that started it ends, so this
	// one must last as long as Run.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	delays := backoff.NewExponentialBackOff()
	delays.InitialInterval, delays.MaxInterval, delays.Multiplier = restartMin, s.cfg.RestartMax, 2
	for {
		err := s.runOnce(ctx, delays)
		if ctx.Err() != nil {
			s.set(MemberDown, "the daemon ends", 0)
			return nil
		}
		pause := delays.NextBackOff()
		s.set(MemberDown, err.Error(), 0)
		s.cfg.Logger.Warn("member of the store is down", "err", err, "again_in", pause.Round(time.Millisecond))
		select {
		case <-ctx.Done():
			s.set(MemberDown, "the daemon ends", 0)
			return nil
		case <-time.After(pause):
		}
		s.mu.Lock()
		s.state.Restarts++
		s.mu.Unlock()
	}
}

// runOnce runs the member once and says how it ended.
func (s *Supervisor) runOnce(ctx context.Context, delays *backoff.ExponentialBackOff) error {
	s.set(MemberStarting, "", 0)
	if err := s.awaitFolder(ctx); err != nil {
		return err
	}
	c, err := startChild(s.cfg.Command, s.cfg.Logger)
	if err != nil {
		return fmt.Errorf("start member: %w", err)
	}
	s.set(MemberStarting, "", c.cmd.Process.Pid)
	pctx, stopProbing := context.WithCancel(ctx)
	defer stopProbing()
	probed, done := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(done)
		probed <- s.probe(pctx, c.cmd.Process.Pid, delays)
	}()
	select {
	case <-ctx.Done():
		s.set(MemberRunning, "ends", c.cmd.Process.Pid)
		stopProbing()
		<-done
		return c.stop(s.cfg.StopWithin)
	case <-c.ended:
		stopProbing()
		<-done
		return s.advise(c.reason())
	case hung := <-probed:
		if ctx.Err() != nil {
			return c.stop(s.cfg.StopWithin)
		}
		s.set(MemberHung, hung.Error(), c.cmd.Process.Pid)
		s.cfg.Logger.Warn("member of the store hangs and is killed", "err", hung, "pid", c.cmd.Process.Pid)
		c.kill()
		<-c.ended
		return hung
	}
}

// advise adds to the reason of an end what to do about a member whose files are
// damaged, which no restart mends.
func (s *Supervisor) advise(err error) error {
	for _, sign := range []string{"invalid database", "crc mismatch", "checksum error", "checksum mismatch", "failed to read WAL", "failed to recover v3 backend", "unexpected EOF", "unexpected end of file"} {
		if strings.Contains(err.Error(), sign) {
			return fmt.Errorf("%w; its files are damaged: restore them, or stop the daemon and move %s away, and the records are made anew of what the host runs, without their history", err, s.cfg.Member.Dir)
		}
	}
	return err
}

// awaitFolder waits until no other process holds the member's folder, such as a
// member of a daemon that was killed.
func (s *Supervisor) awaitFolder(ctx context.Context) error {
	if err := makeDir(s.cfg.Member.Dir); err != nil {
		return fmt.Errorf("start member: %w", err)
	}
	lock, err := awaitLock(ctx, filepath.Join(s.cfg.Member.Dir, lockFile), func(holder string) {
		s.set(MemberStarting, fmt.Sprintf("waits for %s, which still holds %s", holder, s.cfg.Member.Dir), 0)
	})
	if err != nil {
		return fmt.Errorf("start member: %w", explain(err))
	}
	return lock.Close()
}

// probe asks a member for its health again and again. It returns why the member
// is taken to hang, or when ctx ends.
func (s *Supervisor) probe(ctx context.Context, pid int, delays *backoff.ExponentialBackOff) error {
	client, err := newClient([]string{s.cfg.Member.ClientURL()})
	if err != nil {
		return err
	}
	defer client.Close()
	started := time.Now()
	for within := s.cfg.StartWithin; ; within = s.cfg.HangAfter {
		// A read that etcd confirms needs all that a write needs but the disk's
		// room: the log, the disk and the state behind it must move.
		if err := probeOnce(ctx, client, within); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("did not answer within %s: %w", within, err)
		}
		s.set(MemberRunning, "", pid)
		if time.Since(started) > restartReset {
			delays.Reset()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(s.cfg.ProbeEvery):
		}
	}
}

// probeOnce asks until there is an answer, for that long at most.
func probeOnce(ctx context.Context, client *clientv3.Client, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		_, err := client.Get(ctx, "health", clientv3.WithCountOnly())
		if err == nil || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Bounds on what a child says.
const (
	// childLine is how much of a line is kept, in bytes.
	childLine = 2048
	// childLines are passed on at once, and then one every childEvery.
	childLines = 30
	childEvery = 5 * time.Second
)

// child is the process of a member.
type child struct {
	cmd   *exec.Cmd
	stdin io.Closer
	// ended is closed when the process is gone and all it said was read.
	ended chan struct{}
	err   error // of the process; written before ended is closed

	// mu guards last and worst.
	mu sync.Mutex
	// last is the last line it said, worst the first that tells of a crash with
	// the one before.
	last, worst string
}

// startChild starts a process whose standard input stays open until stop, and
// which the kernel kills when the calling thread ends.
func startChild(command []string, log *slog.Logger) (*child, error) {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = childEnv(os.Environ())
	// A group of its own: what a terminal sends to the daemon is not for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, errors.Join(err, stdin.Close())
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{cmd: cmd, stdin: stdin, ended: make(chan struct{})}
	go func() {
		defer close(c.ended)
		c.listen(stderr, log)
		c.err = cmd.Wait()
	}()
	return c, nil
}

// childEnv is the environment without what systemd means for the daemon alone.
func childEnv(env []string) []string {
	var out []string
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		switch name {
		case "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "GOMEMLIMIT", "GOGC":
		default:
			out = append(out, e)
		}
	}
	return out
}

// listen passes on what the child says, some of it when it is much, and keeps what
// tells why it ended.
func (c *child) listen(r io.Reader, log *slog.Logger) {
	in := bufio.NewReaderSize(r, childLine)
	limit := rate.NewLimiter(rate.Every(childEvery), childLines)
	for left := 0; ; {
		line, more, err := in.ReadLine()
		if err != nil {
			return
		}
		text := strings.ToValidUTF8(string(line), "?")
		for more && err == nil {
			_, more, err = in.ReadLine()
		}
		if text == "" {
			continue
		}
		c.mu.Lock()
		if c.worst == "" && (strings.HasPrefix(text, "panic:") || strings.HasPrefix(text, "fatal error:")) {
			// Etcd logs what made it panic just before.
			c.worst = strings.TrimPrefix(message(c.last)+": "+text, ": ")
		}
		c.last = text
		c.mu.Unlock()
		if !limit.Allow() {
			left++
			continue
		}
		log.Warn("member: "+message(text), "pid", c.cmd.Process.Pid, "left_out", left)
		left = 0
	}
}

// message is what a line of a log says, without time and level.
func message(line string) string {
	if _, rest, ok := strings.Cut(line, " msg="); ok && strings.HasPrefix(line, "time=") {
		return rest
	}
	return line
}

// reason is why the child ended, in one line.
func (c *child) reason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	how := "it ended by itself"
	if c.err != nil {
		how = c.err.Error()
	}
	switch {
	case c.worst != "":
		return fmt.Errorf("%s: %s", how, c.worst)
	case c.last != "" && c.cmd.ProcessState.Exited():
		return fmt.Errorf("%s: %s", how, message(c.last))
	}
	return errors.New(how)
}

// stop has the child end in order and kills it when it does not in time. It
// returns when the process is gone.
func (c *child) stop(within time.Duration) error {
	c.stdin.Close()
	select {
	case <-c.ended:
	case <-time.After(within):
		c.kill()
		<-c.ended
	}
	return c.reason()
}

// kill kills the child; it is not gone before ended is closed, which a process
// that waits for a stalled disk may delay.
func (c *child) kill() {
	c.stdin.Close()
	// An error says that it is gone already.
	_ = c.cmd.Process.Kill()
}
