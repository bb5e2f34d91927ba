package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/blixard/blixard/lab"
)

const (
	// leaveTimeout bounds the time a live view takes to end once it is told to.
	leaveTimeout = 3 * time.Second
	// readTime is for reading what can be tried before the live view covers it.
	readTime = 20 * time.Second
)

// liveView leaves a person at a live view until Ctrl-C.
func (d *demo) liveView(ctx context.Context) error {
	socket := filepath.Join(d.lab.Dir(), "blixard.sock")
	var on, more string
	if d.host != nil {
		pid, err := d.host.PID()
		if err != nil {
			return err
		}
		if err := os.Symlink(fmt.Sprintf("/proc/%d/root/run/blixard/blixard.sock", pid), socket); err != nil {
			return err
		}
		on = fmt.Sprintf("nsenter -t %d -a", pid)
		more = fmt.Sprintf("    %s curl -s --unix-socket /run/blixard/blixard.sock http://localhost/metrics\n", on)
	} else {
		machine := d.stage.(*lab.Machine)
		commands := filepath.Join(d.lab.Dir(), "commands.sock")
		serving, err := serveMachine(ctx, machine, socket, commands)
		if err != nil {
			return err
		}
		defer serving.close()
		self, err := os.Executable()
		if err != nil {
			return err
		}
		on = self + " -on " + commands
		if _, err := exec.LookPath("curl"); err == nil {
			more = fmt.Sprintf("    curl -s --unix-socket %s http://localhost/metrics\n", socket)
		}
	}
	d.step("A live view. Ctrl-C ends it and cleans up. To try meanwhile in another terminal, as the same user:")
	try := fmt.Sprintf(`
    export BLIXARD_ADDR=unix://%[1]s
    %[2]s/blixard vm show db-1
    %[2]s/blixard events -f    # Ctrl-C ends it
    %[2]s/blixard vm list -o json
    %[3]s systemctl stop microvm@web-1    # a stop on purpose is no failure
    %[3]s systemctl start microvm@web-1
    %[3]s systemctl kill -s KILL microvm@cache-2    # a crash is
%[4]s`, socket, d.bin, on, more)
	fmt.Fprintln(os.Stderr, try)
	kept := filepath.Join(d.lab.Dir(), "try")
	if err := os.WriteFile(kept, []byte(try), 0o600); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "These lines stay in %s. ", kept)
	if err := pause(ctx); err != nil {
		return err
	}
	d.live = true
	// The view is told to end, and so leaves the terminal as it found it.
	vctx, kill := context.WithCancel(context.WithoutCancel(ctx))
	defer kill()
	view := d.view(vctx)
	if err := view.Start(); err != nil {
		return err
	}
	var failed error // valid when ended is closed
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		failed = view.Wait()
	}()
	select {
	case <-ended:
		// Ctrl-C reaches a view on this terminal first.
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(leaveTimeout):
			return fmt.Errorf("the live view ended: %w", failed)
		}
	case <-ctx.Done():
	}
	if err := view.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
		kill()
	}
	select {
	case <-ended:
	case <-time.After(leaveTimeout):
		kill()
		<-ended
	}
	return nil
}

// view is the live view on this terminal.
func (d *demo) view(ctx context.Context) process {
	if d.host != nil {
		c := d.host.Command(ctx, "blixard", "vm", "list", "-w")
		c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
		return c
	}
	// The machine cannot have this terminal: it gets one of its own of that size.
	width, height, err := term.GetSize(1)
	if err != nil {
		width, height = 80, 24
	}
	c := d.stage.(*lab.Machine).Command(ctx, "socat", "-u",
		fmt.Sprintf("SYSTEM:stty rows %d cols %d; exec blixard vm list -w,pty,setsid,ctty,stderr", height, width), "STDOUT")
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	c.Env = []string{"TERM=" + os.Getenv("TERM")}
	return c
}

// pause lets a person read before the screen is drawn over.
func pause(ctx context.Context) error {
	fmt.Fprintf(os.Stderr, "The live view follows in %.0f s, or with Enter. ", readTime.Seconds())
	for deadline := time.Now().Add(readTime); time.Now().Before(deadline); {
		// Ctrl-C interrupts the wait; the bound is for other ends of ctx.
		fds := []unix.PollFd{{Fd: 0, Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 100)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("wait for Enter: %w", err)
		case n > 0:
			// What was typed is of no meaning, and neither is its end.
			_, _ = os.Stdin.Read(make([]byte, 256))
			return nil
		}
	}
	return nil
}

// machineSockets are sockets of this user that lead to the machine.
type machineSockets struct {
	listeners []net.Listener
	stop      context.CancelFunc
	wg        sync.WaitGroup
}

// serveMachine makes socket lead to the machine's daemon, and runs on the machine
// what it is told through commands.
func serveMachine(ctx context.Context, m *lab.Machine, socket, commands string) (*machineSockets, error) {
	ctx, stop := context.WithCancel(ctx)
	s := &machineSockets{stop: stop}
	for path, serve := range map[string]func(context.Context, *lab.Machine, net.Conn) error{socket: join, commands: execute} {
		l, err := net.Listen("unix", path)
		if err == nil {
			s.listeners = append(s.listeners, l)
			err = os.Chmod(path, 0o600)
		}
		if err != nil {
			s.close()
			return nil, fmt.Errorf("serve the machine: %w", err)
		}
		s.wg.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return // It was closed.
				}
				s.wg.Go(func() {
					defer conn.Close()
					stop := context.AfterFunc(ctx, func() { conn.Close() })
					defer stop()
					// The one who asked sees the connection end, and has the screen.
					_ = serve(ctx, m, conn)
				})
			}
		})
	}
	return s, nil
}

func (s *machineSockets) close() {
	s.stop()
	for _, l := range s.listeners {
		// It is closed once only.
		_ = l.Close()
	}
	s.wg.Wait()
}

// join joins the connection and one to the machine's daemon.
func join(ctx context.Context, m *lab.Machine, conn net.Conn) error {
	far, err := m.Dial(ctx, "unix", "/run/blixard/blixard.sock")
	if err != nil {
		return err
	}
	defer far.Close()
	stop := context.AfterFunc(ctx, func() { far.Close() })
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(far, conn)
		// The caller is gone: a stream that says nothing must end, too.
		far.Close()
	}()
	_, err = io.Copy(conn, far)
	conn.Close()
	<-done
	return err
}

// answer is what execute replies.
type answer struct {
	Output, Error string
	Code          int
}

// execute runs the command that it is sent.
func execute(ctx context.Context, m *lab.Machine, conn net.Conn) error {
	var argv []string
	if err := json.NewDecoder(conn).Decode(&argv); err != nil {
		return err
	}
	var a answer
	out, err := m.Exec(ctx, argv...)
	a.Output = out
	if err != nil {
		a.Error, a.Code = err.Error(), 1
		var exit *lab.MachineExitError
		if errors.As(err, &exit) && exit.ExitCode() > 0 {
			a.Code = exit.ExitCode()
		}
	}
	return json.NewEncoder(conn).Encode(a)
}

// runOn is execute's other side.
func runOn(ctx context.Context, socket string, argv []string) (code int, err error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return 1, fmt.Errorf("reach the demo, which must be at its live view: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := json.NewEncoder(conn).Encode(argv); err != nil {
		return 1, fmt.Errorf("tell the demo: %w", err)
	}
	var a answer
	if err := json.NewDecoder(conn).Decode(&a); err != nil {
		return 1, fmt.Errorf("hear from the demo: %w", err)
	}
	fmt.Print(a.Output)
	if a.Error != "" {
		return a.Code, errors.New(strings.TrimSpace(a.Error))
	}
	return 0, nil
}
