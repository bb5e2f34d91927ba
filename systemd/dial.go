package systemd

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard"
)

// usersDropIn is what lets the service reach users' managers.
const usersDropIn = "blixard-monitor.service.d/users.conf"

// Dial connects to a manager, logs in and subscribes to its signals: whatever
// changes after it returns is told by Hints. Each address is given the timeout of
// a call, and so is each step of the subscription; ctx bounds the whole.
//
// An error that is an *Error of package blixard is for people: it says that this
// process may not reach the user's manager, and what would help.
func Dial(ctx context.Context, cfg Config) (*Conn, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Filter == nil {
		cfg.Filter = func(string) bool { return true }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	c, err := dial(ctx, &cfg)
	if err == nil {
		return c, nil
	}
	if _, ok := errors.AsType[*blixard.Error](err); ok {
		return nil, err
	}
	if cfg.UID == nil {
		return nil, fmt.Errorf("dial systemd: %w", err)
	}
	return nil, fmt.Errorf("dial systemd of user %d: %w", *cfg.UID, err)
}

func dial(ctx context.Context, cfg *Config) (*Conn, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	endpoints, err := cfg.endpoints()
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, e := range endpoints {
		nc, err := login(ctx, cfg, e)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c := newConn(nc, e.direct, cfg)
		if err := c.begin(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", e.path, errors.Join(err, c.Close())))
			continue
		}
		return c, nil
	}
	err = errors.Join(errs...)
	if cfg.UID != nil && refused(errs) {
		return nil, denied(*cfg.UID, err)
	}
	return nil, err
}

// refused reports whether it is for want of a privilege that none answered. A
// socket that is not there beside one that refuses does not matter.
func refused(errs []error) bool {
	found := false
	for _, err := range errs {
		switch {
		case errors.Is(err, fs.ErrPermission), errors.Is(err, errRejected):
			found = true
		case !errors.Is(err, fs.ErrNotExist):
			return false
		}
	}
	return found
}

// denied is the refusal in words for a person.
func denied(uid uint32, err error) *blixard.Error {
	return blixard.Errorf(blixard.CodeDenied,
		"the service manager of user %d cannot be asked: it answers only that user, and this process may not act as them (%v)", uid, err).
		WithHint("allow it with the drop-in " + usersDropIn + ", which grants the service CAP_SETUID, then restart blixard-monitor")
}

// login connects to a socket and authenticates.
func login(ctx context.Context, cfg *Config, e endpoint) (_ *net.UnixConn, err error) {
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	uid := uint32(os.Geteuid())
	var nc *net.UnixConn
	if cfg.UID != nil && *cfg.UID != uid {
		uid = *cfg.UID
		nc, err = connectAs(ctx, e.path, uid)
	} else {
		nc, err = connect(ctx, e.path)
	}
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() {
		// It fails on a closed connection only, which nobody waits for.
		_ = nc.SetDeadline(time.Unix(1, 0))
	})
	if err = authenticate(nc, uid); err == nil && e.direct {
		err = awaitTaken(ctx, nc)
	}
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("log in at %s: %w", e.path, errors.Join(err, nc.Close()))
	}
	return nc, nil
}

func connect(ctx context.Context, path string) (*net.UnixConn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return nc.(*net.UnixConn), nil
}

// connectAs connects as another user: the socket remembers the effective uid of
// the thread that connected it, and only that thread's is changed.
func connectAs(ctx context.Context, path string, uid uint32) (*net.UnixConn, error) {
	var nc *net.UnixConn
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		old := os.Geteuid()
		if err = setEUID(int(uid)); err != nil {
			runtime.UnlockOSThread()
			err = fmt.Errorf("act as user %d: %w", uid, err)
			return
		}
		nc, err = connect(ctx, path)
		if back := setEUID(old); back != nil {
			// The thread stays locked and so ends with this goroutine: nothing
			// else ever runs on it.
			err = errors.Join(err, fmt.Errorf("act as user %d again: %w", old, back))
			return
		}
		runtime.UnlockOSThread()
	}()
	<-done
	if err != nil && nc != nil {
		err = errors.Join(err, nc.Close())
	}
	if err != nil {
		return nil, err
	}
	return nc, nil
}

// setEUID sets the effective uid of the calling thread only, unlike
// syscall.Setresuid, which sets that of all.
func setEUID(uid int) error {
	keep := ^uintptr(0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep); errno != 0 {
		return errno
	}
	return nil
}

// errRejected says that the other end does not let this user in.
var errRejected = errors.New("refused")

// authenticate speaks the client's side of SASL EXTERNAL.
func authenticate(nc *net.UnixConn, uid uint32) error {
	id := hex.EncodeToString([]byte(strconv.FormatUint(uint64(uid), 10)))
	if _, err := nc.Write([]byte("\x00AUTH EXTERNAL " + id + "\r\n")); err != nil {
		return err
	}
	line, err := readLine(nc)
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(line, []byte("OK ")) {
		return fmt.Errorf("log in as user %d: %w: %.100q", uid, errRejected, line)
	}
	_, err = nc.Write([]byte("BEGIN\r\n"))
	return err
}

// readLine reads up to the line's end and nothing behind it.
func readLine(nc *net.UnixConn) ([]byte, error) {
	var line []byte
	for one := make([]byte, 1); len(line) < 1024; {
		n, err := nc.Read(one)
		if err != nil {
			return nil, err
		}
		line = append(line, one[:n]...)
		if bytes.HasSuffix(line, []byte("\r\n")) {
			return line[:len(line)-2], nil
		}
	}
	return nil, errors.New("endless line")
}

// awaitTaken waits until the other end has read all that was sent. systemd, on
// its private socket, lets a call lie that it reads together with the BEGIN
// before it, until more arrives.
func awaitTaken(ctx context.Context, nc *net.UnixConn) error {
	raw, err := nc.SyscallConn()
	if err != nil {
		return err
	}
	// The kernel tells of it only when asked; it takes microseconds.
	for pause := 20 * time.Microsecond; ; pause = min(2*pause, 5*time.Millisecond) {
		var unread int
		var ioctlErr error
		err := raw.Control(func(fd uintptr) { unread, ioctlErr = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
		if err = errors.Join(err, ioctlErr); err != nil || unread == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}
