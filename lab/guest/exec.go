package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The kinds of frames of an exec connection. A frame is its kind, the length of
// the data in four bytes, most significant first, and the data.
const (
	frameStdin  = 'i' // to the command; an empty one is the end
	frameStdout = 'o'
	frameStderr = 'e'
	frameExit   = 'x' // the last: exit in JSON

	frameMax = 64 << 10
)

// exit tells how a command ended.
type exit struct {
	Code   int // -1 if a signal ended it
	Signal int
	Error  string // it did not start, or its end is not known
}

// runExec runs a command in a cgroup of its own. The caller's going away kills it
// with everything it started.
func runExec(conn *net.TCPConn, in *bufio.Reader, req request) {
	out := &frameWriter{w: conn}
	code, err := runCommand(out, in, req)
	if err != nil {
		code.Error = err.Error()
	}
	data, err := json.Marshal(code)
	if err != nil {
		return
	}
	_ = out.write(frameExit, data)
}

func runCommand(out *frameWriter, in *bufio.Reader, req request) (exit, error) {
	cgroup, err := execCgroup(req.ID)
	if err != nil {
		return exit{}, err
	}
	if len(req.Argv) == 0 {
		return exit{}, errors.New("no command")
	}
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		return exit{}, err
	}
	// Refused while something the command left in the background still runs.
	defer func() { _ = os.Remove(cgroup) }()
	dir, err := os.Open(cgroup)
	if err != nil {
		return exit{}, err
	}
	defer dir.Close()
	cmd := exec.Command(req.Argv[0], req.Argv[1:]...)
	cmd.Env = append([]string{"HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}, req.Env...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = out.stream(frameStdout), out.stream(frameStderr)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	// What the command left running may hold the pipes.
	cmd.WaitDelay = time.Second
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return exit{}, err
	}
	if err := cmd.Start(); err != nil {
		return exit{}, err
	}
	go func() {
		if err := feed(in, stdin); err != nil {
			_ = os.WriteFile(cgroup+"/cgroup.kill", []byte("1"), 0)
		}
	}()
	err = cmd.Wait()
	if cmd.ProcessState == nil {
		return exit{}, err
	}
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok {
		return exit{}, err
	}
	code := exit{Code: cmd.ProcessState.ExitCode()}
	if status.Signaled() {
		code.Signal = int(status.Signal())
	}
	return code, nil
}

// feed passes the caller's frames on until he is gone, which is an error.
func feed(in *bufio.Reader, stdin io.WriteCloser) error {
	for {
		kind, data, err := readFrame(in)
		if err != nil {
			return errors.Join(err, stdin.Close())
		}
		switch {
		case kind == frameStdin && len(data) > 0:
			// A command may well end without reading all it is given.
			_, _ = stdin.Write(data)
		case kind == frameStdin:
			_ = stdin.Close()
		default:
			return fmt.Errorf("unknown frame %q", kind)
		}
	}
}

// execCgroup is the cgroup of the command with that id.
func execCgroup(id string) (string, error) {
	if id == "" || strings.Trim(id, "0123456789abcdef") != "" {
		return "", fmt.Errorf("%q is no id of a command", id)
	}
	return "/sys/fs/cgroup/lab-exec-" + id, nil
}

// signalExec sends a signal to all processes of a command. It is a request of
// its own: the command's connection may be full of what it does not read.
func signalExec(req request) error {
	cgroup, err := execCgroup(req.ID)
	if err != nil {
		return err
	}
	if syscall.Signal(req.Signal) == syscall.SIGKILL {
		return os.WriteFile(cgroup+"/cgroup.kill", []byte("1"), 0)
	}
	procs, err := os.ReadFile(cgroup + "/cgroup.procs")
	if err != nil {
		return err
	}
	var errs []error
	for _, text := range strings.Fields(string(procs)) {
		pid, err := strconv.Atoi(text)
		if err != nil {
			return err
		}
		if err := syscall.Kill(pid, syscall.Signal(req.Signal)); err != nil && err != syscall.ESRCH {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func readFrame(in *bufio.Reader) (kind byte, data []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return 0, nil, err
	}
	size := binary.BigEndian.Uint32(head[1:])
	if size > frameMax {
		return 0, nil, fmt.Errorf("frame of %d bytes", size)
	}
	data = make([]byte, size)
	_, err = io.ReadFull(in, data)
	return head[0], data, err
}

// frameWriter writes frames, from several goroutines.
type frameWriter struct {
	mu sync.Mutex // held while a frame is written
	w  io.Writer
}

func (f *frameWriter) write(kind byte, data []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	head := [5]byte{kind}
	binary.BigEndian.PutUint32(head[1:], uint32(len(data)))
	_, err := f.w.Write(append(head[:], data...))
	return err
}

// stream is a writer whose writes become frames of that kind.
func (f *frameWriter) stream(kind byte) io.Writer { return frameStream{f, kind} }

type frameStream struct {
	to   *frameWriter
	kind byte
}

func (s frameStream) Write(b []byte) (int, error) {
	for n := 0; n < len(b); {
		part := b[n:min(n+frameMax, len(b))]
		if err := s.to.write(s.kind, part); err != nil {
			return n, err
		}
		n += len(part)
	}
	return len(b), nil
}
