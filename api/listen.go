package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxSocketPath is the longest path of a socket in bytes, the kernel's bound.
const maxSocketPath = 107

// besideSuffix ends the name under which a socket is made.
const besideSuffix = ".new"

// ErrInUse says that another daemon serves on the socket.
var ErrInUse = errors.New("another daemon serves on it")

// Listen opens the Unix socket at path for everybody to connect to; who may ask
// what is the Authorizer's to say. The folder is made when only it is missing.
//
// A socket that nobody serves any more is replaced, in one step, so that
// clients never find none or one they may not connect to. One that is served is
// left alone (ErrInUse), and so is anything that is no socket. Closing the
// listener removes its own socket and no other.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	l, err := listen(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

func listen(ctx context.Context, path string) (net.Listener, error) {
	if !filepath.IsAbs(path) {
		return nil, errors.New("the path is not absolute")
	}
	if bound := maxSocketPath - len(besideSuffix); len(path) > bound {
		return nil, fmt.Errorf("the path is longer than %d bytes", bound)
	}
	dir := filepath.Dir(path)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	unlock, err := lockDir(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := vacant(ctx, path); err != nil {
		return nil, err
	}
	// The new socket gets its mode under a name beside and is then moved over
	// the old one.
	beside := path + besideSuffix
	if err := removeSocket(beside); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: beside, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	s := &socket{UnixListener: l, path: path}
	if err := s.publish(beside); err != nil {
		return nil, errors.Join(err, l.Close(), removeSocket(beside))
	}
	return s, nil
}

// vacant reports whether a daemon may take the path: nothing is there, or the
// socket of one that is dead.
func vacant(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != os.ModeSocket {
		return errors.New("there is something that is no socket; it is left alone")
	}
	d := net.Dialer{Timeout: time.Second}
	conn, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		return errors.Join(ErrInUse, conn.Close())
	}
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	// Anything else, such as a full backlog, is a sign of life.
	return fmt.Errorf("%w: %w", ErrInUse, err)
}

// removeSocket removes a socket, and nothing that is none.
func removeSocket(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%s is no socket; it is left alone", path)
	}
	return os.Remove(path)
}

// lockDir takes the lock on a folder under which sockets in it are replaced. A
// daemon holds it for moments; waiting ends with the context.
func lockDir(ctx context.Context, dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			// Closing gives up the lock.
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("lock %s: another process holds it", dir), f.Close())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// socket is a listener that knows its file.
type socket struct {
	*net.UnixListener
	path     string
	dev, ino uint64
	close    sync.Once
	closeErr error
}

func (s *socket) publish(beside string) error {
	if err := os.Chmod(beside, 0o666); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(beside, &st); err != nil {
		return err
	}
	s.dev, s.ino = st.Dev, st.Ino
	return os.Rename(beside, s.path)
}

// Addr is the path that clients use.
func (s *socket) Addr() net.Addr { return &net.UnixAddr{Name: s.path, Net: "unix"} }

// Close stops listening and removes the socket if it is still this one.
func (s *socket) Close() error {
	s.close.Do(func() {
		s.closeErr = s.UnixListener.Close()
		var st unix.Stat_t
		if unix.Lstat(s.path, &st) == nil && st.Dev == s.dev && st.Ino == s.ino {
			s.closeErr = errors.Join(s.closeErr, os.Remove(s.path))
		}
	})
	return s.closeErr
}
