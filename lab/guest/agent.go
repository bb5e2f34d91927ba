package main

import (
	"bufio"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// agentPort is where the agent listens; QEMU forwards a port of the test
// machine's loopback to it.
const agentPort = 7700

// request is the first line of a connection, in JSON; the lab has its twin in
// machine_agent.go. What follows depends on Op:
//
//	settle  gives the machine its identity and the agent its token; once a boot
//	forget  takes the token away again, for a snapshot
//	exec    frames both ways, see exec.go
//	signal  sends Signal to all processes of the command with that ID
//	dial    the bytes of the connection to Network, Addr, both ways
//	write   Size bytes, the file's new content; the reply comes after them
//	read    the reply tells the size, the content follows
//	time    sets the wall clock
//	off     powers the machine off as systemctl poweroff does
type request struct {
	Op    string
	Token string

	Argv, Env []string // exec
	ID        string   // exec, signal: hexadecimal, new for each command
	Signal    int      // signal

	Network, Addr string // dial

	Path string // write, read
	Mode uint32
	Size int64

	Name      string    // settle: host name
	MachineID string    // settle: empty keeps the disk's
	Resumed   bool      // settle: the machine goes on from a snapshot
	Seed      []byte    // settle: for the kernel's random numbers
	Time      time.Time // settle and time; zero leaves the clock alone
}

// reply is the first line of the answer.
type reply struct {
	Error string
	Errno syscall.Errno
	Size  int64
}

// agent answers requests. It belongs to the first caller, who sets the token.
type agent struct {
	mu    sync.Mutex // guards token
	token string
}

func runAgent() error {
	listener, err := net.Listen("tcp4", fmt.Sprintf(":%d", agentPort))
	if err != nil {
		return err
	}
	if err := os.WriteFile("/dev/console", []byte("lab agent ready\n"), 0); err != nil {
		return err
	}
	a := &agent{}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		go a.serve(conn.(*net.TCPConn))
	}
}

// serve carries out the one request of a connection.
func (a *agent) serve(conn *net.TCPConn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return // A port scan, or a forward whose machine went on without it.
	}
	var req request
	if err := json.Unmarshal(line, &req); err != nil {
		_ = answer(conn, fmt.Errorf("read request: %w", err), 0)
		return
	}
	if err := a.admit(req); err != nil {
		_ = answer(conn, err, 0)
		return
	}
	// A failure to answer means that the caller is gone, who alone would care.
	switch req.Op {
	case "settle":
		_ = answer(conn, settle(req), 0)
	case "forget":
		a.forget()
		_ = answer(conn, nil, 0)
	case "exec":
		runExec(conn, in, req)
	case "signal":
		_ = answer(conn, signalExec(req), 0)
	case "dial":
		dial(conn, in, req)
	case "write":
		_ = answer(conn, writeFile(in, req), 0)
	case "read":
		readFile(conn, req)
	case "time":
		_ = answer(conn, setTime(req.Time), 0)
	case "off":
		// SIGRTMIN+4 as glibc counts it.
		_ = answer(conn, syscall.Kill(1, syscall.Signal(38)), 0)
	default:
		_ = answer(conn, fmt.Errorf("no request %q", req.Op), 0)
	}
}

// admit keeps out whoever came to a port that was another machine's before.
func (a *agent) admit(req request) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.token == "" && req.Op == "settle" {
		a.token = req.Token
	}
	if a.token == "" || subtle.ConstantTimeCompare([]byte(a.token), []byte(req.Token)) != 1 {
		return errors.New("this is another's machine")
	}
	return nil
}

func (a *agent) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.token = ""
}

func answer(w io.Writer, err error, size int64) error {
	r := reply{Size: size}
	if err != nil {
		r.Error = err.Error()
		errors.As(err, &r.Errno)
	}
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = w.Write(append(line, '\n'))
	return err
}

// dial joins the caller and what he asked for until both directions ended.
func dial(conn *net.TCPConn, in io.Reader, req request) {
	far, err := net.DialTimeout(req.Network, req.Addr, 10*time.Second)
	if answer(conn, err, 0) != nil || err != nil {
		return
	}
	defer far.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(far, in)
		if c, ok := far.(interface{ CloseWrite() error }); ok {
			_ = c.CloseWrite()
		}
	}()
	_, _ = io.Copy(conn, far)
	_ = conn.CloseWrite()
	<-done
}

// writeFile replaces a file at once, with the folders above it.
func writeFile(in io.Reader, req request) (err error) {
	dir := filepath.Dir(req.Path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".lab-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = io.CopyN(f, in, req.Size)
	if err := errors.Join(err, f.Chmod(fs.FileMode(req.Mode)), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), req.Path)
}

// readFile sends a file's content as it is now. Files of /proc and /sys claim to
// be empty: all is read first.
func readFile(conn *net.TCPConn, req request) {
	data, err := os.ReadFile(req.Path)
	if answer(conn, err, int64(len(data))) == nil && err == nil {
		_, _ = conn.Write(data)
	}
}
