package systemd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// notifyTimeout bounds the time for which a manager may not read.
	notifyTimeout = time.Second
	// maxStatus bounds a status line, in bytes.
	maxStatus = 1024
)

// Notifier tells the manager that runs this process, as sd_notify does, how it
// is. Where no manager listens, it says nothing and that is no error. Each method
// sends one datagram and blocks for a second at most; an error means that the
// manager was not told. The methods may be called from many goroutines.
type Notifier struct {
	socket   string
	watchdog time.Duration
}

// NewNotifier takes from the environment whom to tell and how often.
func NewNotifier() *Notifier {
	return &Notifier{socket: os.Getenv("NOTIFY_SOCKET"), watchdog: watchdogInterval(os.Getenv("WATCHDOG_USEC"), os.Getenv("WATCHDOG_PID"))}
}

// watchdogInterval reads the two variables; the second, if set, names the
// process that is meant.
func watchdogInterval(usec, pid string) time.Duration {
	if pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0
	}
	n, err := strconv.ParseInt(usec, 10, 64)
	if err != nil || n <= 0 || n > int64(1<<63-1)/int64(time.Microsecond) {
		return 0
	}
	return time.Duration(n) * time.Microsecond
}

// WatchdogInterval is the longest time between two calls of Watchdog that the
// manager bears, 0 when it keeps no watch. Call it at half of that at most.
func (n *Notifier) WatchdogInterval() time.Duration { return n.watchdog }

// Ready tells that start-up, or a reload, is done.
func (n *Notifier) Ready() error { return n.send("READY=1") }

// Status tells in one line how the process is; systemctl status shows it. What
// breaks the line becomes a space.
func (n *Notifier) Status(text string) error {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
	return n.send("STATUS=" + strings.ToValidUTF8(text[:min(len(text), maxStatus)], ""))
}

// Watchdog tells that the process lives.
func (n *Notifier) Watchdog() error { return n.send("WATCHDOG=1") }

// Stopping tells that the process is about to end.
func (n *Notifier) Stopping() error { return n.send("STOPPING=1") }

// Reloading tells that the process reads its configuration again; Ready must
// follow.
func (n *Notifier) Reloading() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("read monotonic clock: %w", err)
	}
	return n.send(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", now.Nano()/1000))
}

func (n *Notifier) send(message string) (err error) {
	if n.socket == "" {
		return nil
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("notify manager: %w", err)
		}
	}()
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if err := conn.SetWriteDeadline(time.Now().Add(notifyTimeout)); err != nil {
		return err
	}
	_, err = conn.Write([]byte(message))
	return err
}
