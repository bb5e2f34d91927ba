package lab

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// agentPort is where a machine's agent listens, see guest/agent.go.
const agentPort = 7700

// agentRequest and agentReply are the first lines of a connection to the agent;
// guest/agent.go has their twins and says what they mean.
type agentRequest struct {
	Op    string
	Token string

	Argv, Env []string
	ID        string
	Signal    int

	Network, Addr string

	Path string
	Mode uint32
	Size int64

	Name      string
	MachineID string
	Resumed   bool
	Seed      []byte
	Time      time.Time
}

type agentReply struct {
	Error string
	Errno syscall.Errno
	Size  int64
}

// err is the agent's error with its number, so that errors.Is knows it.
func (r agentReply) err() error {
	switch {
	case r.Error == "":
		return nil
	case r.Errno != 0:
		return fmt.Errorf("%s (%w)", r.Error, r.Errno)
	default:
		return errors.New(r.Error)
	}
}

// forwardedPort is the port of this machine's loopback that QEMU forwards into
// the guest.
func (e *emulator) forwardedPort() (int, error) {
	var text string
	if err := e.qmp.ask("human-monitor-command", map[string]string{"command-line": "info usernet"}, &text); err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		// TCP[HOST_FORWARD], descriptor, source address and port, and more.
		fields := strings.Fields(line)
		if len(fields) > 3 && fields[0] == "TCP[HOST_FORWARD]" {
			var port int
			if _, err := fmt.Sscan(fields[3], &port); err != nil {
				return 0, fmt.Errorf("read forwarded port: %w", err)
			}
			return port, nil
		}
	}
	return 0, fmt.Errorf("QEMU forwards no port: %s", text)
}

// agentConn is a connection that carries one request. It is closed when the
// request's context ends.
type agentConn struct {
	net.Conn
	in   *bufio.Reader
	stop func() bool
}

func (c *agentConn) Read(b []byte) (int, error) { return c.in.Read(b) }

// CloseWrite ends this side's half of the connection.
func (c *agentConn) CloseWrite() error { return c.Conn.(*net.TCPConn).CloseWrite() }

func (c *agentConn) Close() error {
	c.stop()
	return c.Conn.Close()
}

// request connects to the agent and sends the request's first line.
func (r *bootedMachine) request(ctx context.Context, req agentRequest) (*agentConn, error) {
	req.Token = r.token
	line, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp4", fmt.Sprintf("127.0.0.1:%d", r.port))
	if err != nil {
		return nil, fmt.Errorf("reach the agent: %w", err)
	}
	c := &agentConn{Conn: conn, in: bufio.NewReader(conn)}
	c.stop = context.AfterFunc(ctx, func() { c.Conn.Close() })
	if _, err := conn.Write(append(line, '\n')); err != nil {
		return nil, errors.Join(fmt.Errorf("ask the agent: %w", err), c.Close())
	}
	return c, nil
}

// reply reads the first line of the answer.
func (c *agentConn) reply(ctx context.Context) (agentReply, error) {
	line, err := c.in.ReadBytes('\n')
	if err != nil {
		return agentReply{}, fmt.Errorf("hear from the agent: %w", errors.Join(context.Cause(ctx), err))
	}
	var r agentReply
	if err := json.Unmarshal(line, &r); err != nil {
		return agentReply{}, fmt.Errorf("hear from the agent: %w", err)
	}
	return r, r.err()
}

// simple makes a request whose answer is one line.
func (r *bootedMachine) simple(ctx context.Context, req agentRequest) error {
	c, err := r.request(ctx, req)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.reply(ctx)
	return err
}

// settle makes a machine that has just come up its own.
func (r *bootedMachine) settle(ctx context.Context, name string, resumed bool) error {
	seed := make([]byte, 64)
	rand.Read(seed)
	err := r.simple(ctx, agentRequest{
		Op: "settle", Name: name, MachineID: randomHex(16), Resumed: resumed, Seed: seed, Time: time.Now(),
	})
	if err != nil {
		return fmt.Errorf("settle: %w", err)
	}
	return nil
}

// on runs f with the present run and a deadline.
func (m *Machine) on(ctx context.Context, what string, f func(context.Context, *bootedMachine) error) error {
	run := m.running()
	if run == nil {
		return fmt.Errorf("%s on %s: it is off", what, m.name)
	}
	ctx, cancel := context.WithTimeout(ctx, machineTimeout)
	defer cancel()
	if err := f(ctx, run); err != nil {
		return fmt.Errorf("%s on %s: %w", what, m.name, err)
	}
	return nil
}

// SetClock sets the machine's wall clock; it has its own.
func (m *Machine) SetClock(ctx context.Context, to time.Time) error {
	return m.on(ctx, "set clock", func(ctx context.Context, run *bootedMachine) error {
		return run.simple(ctx, agentRequest{Op: "time", Time: to})
	})
}

// WriteFile writes a file on the machine, which must be on, with the folders
// above it. It is replaced at once: a reader sees the old or the new.
func (m *Machine) WriteFile(path string, data []byte, mode fs.FileMode) error {
	return m.write(path, mode, int64(len(data)), bytes.NewReader(data))
}

// CopyIn copies a file of this machine to the machine, which must be on, with
// its permission bits.
func (m *Machine) CopyIn(source, path string) error {
	f, err := os.Open(source)
	if err != nil {
		return fmt.Errorf("copy to %s: %w", m.name, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("copy to %s: %w", m.name, err)
	}
	return m.write(path, st.Mode().Perm(), st.Size(), f)
}

func (m *Machine) write(path string, mode fs.FileMode, size int64, data io.Reader) error {
	return m.on(context.Background(), "write "+path, func(ctx context.Context, run *bootedMachine) error {
		if !filepath.IsAbs(path) {
			return errors.New("the path is not absolute")
		}
		c, err := run.request(ctx, agentRequest{Op: "write", Path: path, Mode: uint32(mode.Perm()), Size: size})
		if err != nil {
			return err
		}
		defer c.Close()
		// An agent that refuses says why and closes: its answer counts for more
		// than the failure to write.
		_, copyErr := io.CopyN(c, data, size)
		if _, err := c.reply(ctx); err != nil {
			return errors.Join(err, copyErr)
		}
		return copyErr
	})
}

// ReadFile reads a file of the machine, which must be on.
func (m *Machine) ReadFile(path string) ([]byte, error) {
	var data []byte
	err := m.on(context.Background(), "read "+path, func(ctx context.Context, run *bootedMachine) error {
		c, err := run.request(ctx, agentRequest{Op: "read", Path: path})
		if err != nil {
			return err
		}
		defer c.Close()
		reply, err := c.reply(ctx)
		if err != nil {
			return err
		}
		data = make([]byte, reply.Size)
		_, err = io.ReadFull(c, data)
		return err
	})
	return data, err
}

// Dial connects to the machine from this process, as http.Transport's
// DialContext does. A "unix" address is a path on the machine, any other is
// dialled from the machine itself, where 127.0.0.1 is the machine; either way
// its peer sees uid 0. ctx bounds the dialling only.
func (m *Machine) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var conn *agentConn
	err := m.on(ctx, "dial "+addr, func(ctx context.Context, run *bootedMachine) error {
		c, err := run.request(ctx, agentRequest{Op: "dial", Network: network, Addr: addr})
		if err != nil {
			return err
		}
		if _, err := c.reply(ctx); err != nil {
			return errors.Join(err, c.Close())
		}
		if !c.stop() {
			return errors.Join(context.Cause(ctx), c.Close())
		}
		conn = c
		return nil
	})
	if err != nil {
		return nil, err
	}
	return conn, nil
}
