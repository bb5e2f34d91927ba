package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

const (
	commandPort = 7777
	// lineMax bounds a command, and so a log line, in bytes.
	lineMax = 64 << 10
	// connMax bounds the connections served at once; more wait.
	connMax = 32
	// connIdle ends a connection that says nothing.
	connIdle = 10 * time.Minute
	// replyTimeout bounds each write of an answer.
	replyTimeout = 30 * time.Second
)

// runMicroVM is PID 1 of a microVM. It returns only with an error, which ends
// the virtual machine: the kernel panics when its PID 1 ends.
func runMicroVM(args map[string]string) error {
	console, err := openConsole()
	if err != nil {
		return err
	}
	if err := setUpLink("lo", netip.MustParsePrefix("127.0.0.1/8")); err != nil {
		return err
	}
	// A guest without a network still takes commands on the console.
	if text, ok := args["lab.addr"]; ok {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return fmt.Errorf("read lab.addr: %w", err)
		}
		if err := setUpLink("eth0", prefix); err != nil {
			return err
		}
	}
	if name, ok := args["lab.name"]; ok {
		if err := syscall.Sethostname([]byte(name)); err != nil {
			return fmt.Errorf("set host name: %w", err)
		}
	}
	listener, err := net.Listen("tcp4", fmt.Sprintf(":%d", commandPort))
	if err != nil {
		return err
	}
	g := &guest{console: console, load: newLoad()}
	if err := g.watchPowerButton(); err != nil {
		return err
	}
	uptime, err := readUptime()
	if err != nil {
		return err
	}
	if err := g.log(fmt.Sprintf("guest ready name=%s addr=%s uptime=%.2f", args["lab.name"], args["lab.addr"], uptime)); err != nil {
		return err
	}
	go g.serve(console, console, func() {})
	slots := make(chan struct{}, connMax)
	for {
		conn, err := listener.Accept()
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			c := timedConn{conn.(*net.TCPConn)}
			g.serve(c, c, c.finish)
			_ = conn.Close() // Nobody is left to tell.
		}()
	}
}

// openConsole opens the serial console without echo and without carriage
// returns, so that the journal gets lines as they were written.
func openConsole() (*os.File, error) {
	f, err := os.OpenFile("/dev/ttyS0", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open console: %w", err)
	}
	const tcgets, tcsets = 0x5401, 0x5402
	termios := make([]byte, 60)
	if err := ioctl(f.Fd(), tcgets, termios); err != nil {
		return nil, fmt.Errorf("read console settings: %w", err)
	}
	// struct termios begins with four words: input, output, control, local.
	clear := func(word int, flags byte) { termios[4*word] &^= flags }
	clear(1, syscall.OPOST)
	clear(3, syscall.ECHO|syscall.ISIG)
	if err := ioctl(f.Fd(), tcsets, termios); err != nil {
		return nil, fmt.Errorf("set console: %w", err)
	}
	return f, nil
}

// timedConn gives every read and write of a connection its bound.
type timedConn struct{ *net.TCPConn }

func (c timedConn) Read(b []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(connIdle)); err != nil {
		return 0, err
	}
	return c.TCPConn.Read(b)
}

func (c timedConn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(replyTimeout)); err != nil {
		return 0, err
	}
	return c.TCPConn.Write(b)
}

// finish waits, for a second at most, until the other side has what was sent:
// it closes when it sees the end.
func (c timedConn) finish() {
	if c.CloseWrite() == nil && c.SetReadDeadline(time.Now().Add(time.Second)) == nil {
		_, _ = io.Copy(io.Discard, c.TCPConn)
	}
}

// guest is the state that all connections share.
type guest struct {
	load *load

	mu      sync.Mutex // guards what follows
	console *os.File
	lines   int
	hung    bool
}

// serve answers commands, a line each, until in ends. flush is called before the
// guest ends by a command, so that its answer gets out.
func (g *guest) serve(in io.Reader, out io.Writer, flush func()) {
	lines := bufio.NewScanner(in)
	lines.Buffer(make([]byte, 4096), lineMax)
	for lines.Scan() {
		if g.isHung() {
			select {}
		}
		answer, end, err := g.do(lines.Text(), out)
		if err != nil {
			answer = "error: " + err.Error()
		}
		if _, err := fmt.Fprintln(out, answer); err != nil {
			return
		}
		if end == nil {
			continue
		}
		flush()
		if err := end(); err != nil {
			g.complain(err)
		}
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		_, _ = fmt.Fprintf(out, "error: a command has at most %d bytes\n", lineMax)
		flush()
	}
}

func (g *guest) isHung() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.hung
}

func (g *guest) hang() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.hung = true
}

// log writes one line to the console.
func (g *guest) log(line string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lines++
	_, err := g.console.WriteString(line + "\n")
	return err
}

// complain says on the console what went wrong with the guest itself. There is
// nobody to tell if that fails.
func (g *guest) complain(err error) { _ = g.log(fmt.Sprintf("<3>guest: %v", err)) }

func (g *guest) logged() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.lines
}

// inputEventSize and keyPower are of linux/input.h.
const (
	inputEventSize = 24
	evKey          = 1
	keyPower       = 116
)

// watchPowerButton powers the guest off when the button is pressed, as QMP's
// system_powerdown does.
func (g *guest) watchPowerButton() error {
	paths, err := filepath.Glob("/dev/input/event*")
	if err != nil {
		return err
	}
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("open power button: %w", err)
		}
		go func() {
			g.complain(g.readButton(f))
		}()
	}
	return nil
}

// readButton heeds the button until that fails.
func (g *guest) readButton(f *os.File) error {
	event := make([]byte, inputEventSize)
	for {
		if _, err := io.ReadFull(f, event); err != nil {
			return fmt.Errorf("read power button: %w", err)
		}
		kind, code := binary.NativeEndian.Uint16(event[16:]), binary.NativeEndian.Uint16(event[18:])
		pressed := binary.NativeEndian.Uint32(event[20:]) == 1
		if kind != evKey || code != keyPower || !pressed || g.isHung() {
			continue
		}
		if err := g.log("guest: power button pressed"); err != nil {
			return err
		}
		if err := powerOff(); err != nil {
			return err
		}
	}
}

func powerOff() error {
	syscall.Sync()
	return syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
}

func reboot() error {
	syscall.Sync()
	return syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
}

func crashKernel() error {
	if err := os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0); err != nil {
		return fmt.Errorf("panic: %w", err)
	}
	return nil
}

func readUptime() (float64, error) {
	text, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0, err
	}
	var up float64
	if _, err := fmt.Sscan(string(text), &up); err != nil {
		return 0, fmt.Errorf("read uptime: %w", err)
	}
	return up, nil
}
