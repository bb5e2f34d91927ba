package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"
)

// The kinds of frames of a command's connection, as in guest/exec.go.
const (
	frameStdin  = 'i'
	frameStdout = 'o'
	frameStderr = 'e'
	frameExit   = 'x'
	frameMax    = 64 << 10
)

// signalTimeout bounds the sending of a signal.
const signalTimeout = 10 * time.Second

// MachineCmd is a command on a machine: what Cmd is on a host. Set the streams
// before Start. When its context ends it is killed with everything it started.
type MachineCmd struct {
	// Stdin, Stdout and Stderr are as in exec.Cmd; nil is nothing. What is read
	// from Stdin when the command ends is lost.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Env is added to the machine's: HOME=/root, the usual PATH, LANG=C.UTF-8.
	Env []string

	ctx     context.Context
	machine *Machine
	argv    []string
	id      string
	run     *bootedMachine
	conn    *agentConn
	stop    func() bool
	done    chan struct{} // closed when the command has ended; err is valid then
	err     error
}

// MachineExitError tells that a command ran and failed.
type MachineExitError struct {
	// Code is the exit status, -1 if Signal ended the command.
	Code   int
	Signal syscall.Signal
}

func (e *MachineExitError) Error() string {
	if e.Signal != 0 {
		return "signal: " + e.Signal.String()
	}
	return fmt.Sprintf("exit status %d", e.Code)
}

// ExitCode is Code, as exec.ExitError has it.
func (e *MachineExitError) ExitCode() int { return e.Code }

// Command prepares a command on the machine. It runs as root, in a cgroup of its
// own outside any unit.
func (m *Machine) Command(ctx context.Context, argv ...string) *MachineCmd {
	return &MachineCmd{ctx: ctx, machine: m, argv: argv}
}

// Start starts the command. Wait must follow. That it could not be run at all is
// Wait's error.
func (c *MachineCmd) Start() error {
	c.run = c.machine.running()
	if c.run == nil {
		return fmt.Errorf("run %q on %s: the machine is off", c.argv, c.machine.name)
	}
	c.id = randomHex(8)
	// The connection outlives ctx until the command is killed.
	conn, err := c.run.request(context.WithoutCancel(c.ctx), agentRequest{Op: "exec", Argv: c.argv, Env: c.Env, ID: c.id})
	if err != nil {
		return fmt.Errorf("run %q on %s: %w", c.argv, c.machine.name, err)
	}
	c.conn = conn
	c.done = make(chan struct{})
	c.stop = context.AfterFunc(c.ctx, func() {
		_ = c.Signal(os.Kill)
		c.conn.Close()
	})
	go c.feed()
	go func() {
		defer close(c.done)
		c.err = c.collect()
	}()
	return nil
}

// feed sends the command its input until that ends or the command does. A Stdin
// that blocks keeps its goroutine, as with exec.Cmd.
func (c *MachineCmd) feed() {
	buffer := make([]byte, frameMax)
	for c.Stdin != nil {
		n, err := c.Stdin.Read(buffer)
		if n > 0 && writeFrame(c.conn, frameStdin, buffer[:n]) != nil {
			return
		}
		if err != nil {
			break
		}
	}
	// The command may have ended: then there is nobody to tell.
	_ = writeFrame(c.conn, frameStdin, nil)
}

// collect passes on the command's output and returns how it ended.
func (c *MachineCmd) collect() error {
	for {
		kind, data, err := readFrame(c.conn)
		if err != nil {
			return fmt.Errorf("lost the command: %w", err)
		}
		switch kind {
		case frameStdout:
			err = passOn(c.Stdout, data)
		case frameStderr:
			err = passOn(c.Stderr, data)
		case frameExit:
			return exitError(data)
		default:
			err = fmt.Errorf("the agent sent a frame %q", kind)
		}
		if err != nil {
			return errors.Join(err, c.Signal(os.Kill))
		}
	}
}

func passOn(w io.Writer, data []byte) error {
	if w == nil {
		return nil
	}
	_, err := w.Write(data)
	return err
}

func exitError(data []byte) error {
	var end struct {
		Code, Signal int
		Error        string
	}
	if err := json.Unmarshal(data, &end); err != nil {
		return fmt.Errorf("read how the command ended: %w", err)
	}
	switch {
	case end.Error != "":
		return errors.New(end.Error)
	case end.Code != 0 || end.Signal != 0:
		return &MachineExitError{end.Code, syscall.Signal(end.Signal)}
	default:
		return nil
	}
}

// Wait waits for the command's end. The error of one that ran and failed wraps
// *MachineExitError.
func (c *MachineCmd) Wait() error {
	<-c.done
	c.stop()
	// Collect has seen all there is; that feed is still sending is of no use.
	c.conn.Close()
	if c.err == nil {
		return nil
	}
	return fmt.Errorf("run %q on %s: %w", c.argv, c.machine.name, errors.Join(context.Cause(c.ctx), c.err))
}

// Run is Start and Wait.
func (c *MachineCmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Signal sends a signal to every process of the command.
func (c *MachineCmd) Signal(sig os.Signal) error {
	number, ok := sig.(syscall.Signal)
	if !ok {
		return fmt.Errorf("signal %q: %v is none", c.argv, sig)
	}
	ctx, cancel := context.WithTimeout(context.Background(), signalTimeout)
	defer cancel()
	if err := c.run.simple(ctx, agentRequest{Op: "signal", ID: c.id, Signal: int(number)}); err != nil {
		return fmt.Errorf("signal %q on %s: %w", c.argv, c.machine.name, err)
	}
	return nil
}

// Exec runs a command on the machine as root and returns its standard output.
// The error of a command that failed wraps *MachineExitError and ends with what
// it wrote to standard error. Without a deadline in ctx it is killed after two
// minutes.
func (m *Machine) Exec(ctx context.Context, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, execTimeout)
	defer cancel()
	cmd := m.Command(ctx, argv...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if text := strings.TrimSpace(stderr.String()); err != nil && text != "" {
		err = fmt.Errorf("%w: %s", err, tail(text, 20))
	}
	return stdout.String(), err
}

func readFrame(in io.Reader) (kind byte, data []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return 0, nil, err
	}
	size := binary.BigEndian.Uint32(head[1:])
	if size > frameMax {
		return 0, nil, fmt.Errorf("the agent sent a frame of %d bytes", size)
	}
	data = make([]byte, size)
	_, err = io.ReadFull(in, data)
	return head[0], data, err
}

func writeFrame(w io.Writer, kind byte, data []byte) error {
	head := [5]byte{kind}
	binary.BigEndian.PutUint32(head[1:], uint32(len(data)))
	_, err := w.Write(append(head[:], data...))
	return err
}
