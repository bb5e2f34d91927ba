package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/blixard/blixard"
)

const (
	// checkEvery is how often a member is asked whether it answers, and
	// checkTimeout how long it may take.
	checkEvery   = 2 * time.Second
	checkTimeout = 4 * time.Second
	// hungAfter is the number of checks in a row that a member may miss.
	hungAfter = 2
	// startTimeout is how long a member may take until it is ready; a large
	// log takes its time.
	startTimeout = 2 * time.Minute
	// stopTimeout is how long it may take to end when it is told to.
	stopTimeout = 15 * time.Second
	// restartMin and restartMax bound the pause before it is started anew.
	restartMin = 200 * time.Millisecond
	restartMax = 15 * time.Second
	// healthyAfter is how long it must run for the pause to be short again.
	healthyAfter = 30 * time.Second
	// keptLines is how many of its last lines make the reason of its end.
	keptLines = 5
	// maxLine bounds one of them in bytes.
	maxLine = 1024
)

// The states of a member.
const (
	memberStarting = "starting"
	memberRunning  = "running"
	memberHung     = "hung"
	memberDown     = "down"
)

// SupervisorConfig says how to run a member.
type SupervisorConfig struct {
	Member MemberConfig
	// Command is the program and arguments of the child.
	Command []string
	Logger  *slog.Logger
}

// Supervisor runs a member as a child process and starts it anew whenever it
// ends or hangs. The child cannot outlive this process.
type Supervisor struct {
	cfg SupervisorConfig

	// mu guards what follows.
	mu       sync.Mutex
	state    string
	reason   string
	restarts int
}

// NewSupervisor makes a supervisor that runs nothing until Run.
func NewSupervisor(cfg SupervisorConfig) *Supervisor {
	return &Supervisor{cfg: cfg, state: memberStarting}
}

// memberState is what Status tells of the member as a process.
func (s *Supervisor) memberState() (state, reason string, restarts int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state, s.reason, s.restarts
}

func (s *Supervisor) set(state, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = state
	if reason != "" || state == memberRunning {
		s.reason = reason
	}
}

// Run keeps a member running until ctx ends, then ends it in order.
func (s *Supervisor) Run(ctx context.Context) error {
	delays := backoff.NewExponentialBackOff()
	delays.InitialInterval, delays.MaxInterval = restartMin, restartMax
	for {
		s.set(memberStarting, "")
		began := time.Now()
		err := s.once(ctx)
		if ctx.Err() != nil {
			s.set(memberDown, "ended")
			return nil
		}
		if time.Since(began) > healthyAfter {
			delays.Reset()
		}
		pause := delays.NextBackOff()
		s.cfg.Logger.Warn("member ended; it is started anew", "err", err, "in", pause.Round(time.Millisecond))
		s.set(memberDown, err.Error())
		select {
		case <-ctx.Done():
			s.set(memberDown, "ended")
			return nil
		case <-time.After(pause):
		}
		s.mu.Lock()
		s.restarts++
		s.mu.Unlock()
	}
}

// child is a running member.
type child struct {
	cmd   *exec.Cmd
	stdin io.Closer
	// ready is closed when it answers, ended when it has ended with err.
	ready, ended chan struct{}
	err          error
	tail         tail
}

// once runs one member until it ends, hangs or ctx ends.
func (s *Supervisor) once(ctx context.Context) error {
	c, err := s.start()
	if err != nil {
		return err
	}
	select {
	case <-c.ready:
		s.set(memberRunning, "")
	case <-c.ended:
		return c.why()
	case <-time.After(startTimeout):
		c.kill()
		return fmt.Errorf("not ready within %s: %s", startTimeout, c.tail.String())
	case <-ctx.Done():
		c.stop()
		return ctx.Err()
	}
	hung := make(chan error, 1)
	wctx, stop := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		if err := s.watch(wctx); err != nil {
			hung <- err
		}
	})
	defer watch.Wait()
	defer stop()
	select {
	case <-c.ended:
		return c.why()
	case err := <-hung:
		s.set(memberHung, err.Error())
		c.kill()
		return fmt.Errorf("hung: %w", err)
	case <-ctx.Done():
		c.stop()
		return ctx.Err()
	}
}

// start starts the child.
func (s *Supervisor) start() (*child, error) {
	c := &child{cmd: exec.Command(s.cfg.Command[0], s.cfg.Command[1:]...), ready: make(chan struct{}), ended: make(chan struct{})}
	// A stopped process does not see its standard input close: the kernel has
	// to kill it with its parent.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdin, err := c.cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start member: %w", err)
	}
	c.stdin = stdin
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start member: %w", err)
	}
	stderr, err := c.cmd.StderrPipe()
	if err != nil {
		return nil, fmt.Errorf("start member: %w", err)
	}
	started := make(chan error, 1)
	go func() {
		// The signal is sent when the thread that started the child ends, so
		// this one stays until the child has ended.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		var readers sync.WaitGroup
		readers.Go(func() { c.read(stdout, func(line string) { c.isReady(line) }) })
		readers.Go(func() {
			c.read(stderr, func(line string) {
				c.tail.add(line)
				s.cfg.Logger.Debug("member says", "line", line)
			})
		})
		readers.Wait()
		c.err = c.cmd.Wait()
		close(c.ended)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start member: %w", err)
	}
	return c, nil
}

// read hands on every line, cut to maxLine bytes.
func (c *child) read(r io.Reader, f func(string)) {
	br := bufio.NewReaderSize(r, maxLine)
	for {
		line, prefix, err := br.ReadLine()
		if err != nil {
			return
		}
		f(string(line))
		for prefix && err == nil {
			_, prefix, err = br.ReadLine()
		}
	}
}

func (c *child) isReady(line string) {
	if line != readyLine {
		return
	}
	select {
	case <-c.ready:
	default:
		close(c.ready)
	}
}

// why says how the child ended.
func (c *child) why() error {
	text := "ended by itself"
	if c.err != nil {
		text = c.err.Error()
	}
	if t := c.tail.String(); t != "" {
		text += ": " + t
	}
	return errors.New(text)
}

// kill ends the child at once and waits for it.
func (c *child) kill() {
	c.cmd.Process.Kill()
	<-c.ended
}

// stop ends the child in order, or at once when that takes too long.
func (c *child) stop() {
	c.stdin.Close()
	select {
	case <-c.ended:
	case <-time.After(stopTimeout):
		c.kill()
	}
}

// watch asks the member again and again whether it answers, with a read that
// goes through its log. It returns when it does not.
func (s *Supervisor) watch(ctx context.Context) error {
	cli, err := newClient([]string{s.cfg.Member.ClientURL()})
	if err != nil {
		return err
	}
	defer cli.Close()
	missed := 0
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		cctx, cancel := context.WithTimeout(ctx, checkTimeout)
		_, err := cli.Get(cctx, "health", clientv3.WithCountOnly())
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			missed = 0
			continue
		}
		if missed++; missed >= hungAfter {
			return fmt.Errorf("no answer to %d checks: %w", missed, err)
		}
	}
}

// tail keeps the last lines that were added.
type tail struct {
	mu    sync.Mutex
	lines []string
}

func (t *tail) add(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines = append(t.lines, line)
	if len(t.lines) > keptLines {
		t.lines = t.lines[1:]
	}
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(t.lines, " | ")
}

// member is the member as Status shows it, without what only etcd knows.
func (s *Supervisor) member(node string) blixard.MemberStatus {
	state, reason, restarts := s.memberState()
	return blixard.MemberStatus{Node: node, State: state, Reason: reason, Restarts: restarts, QuotaBytes: s.cfg.Member.QuotaBytes}
}
