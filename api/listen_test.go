package api

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func TestListen_Mode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "b.sock")
	l, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if l.Addr().String() != path {
		t.Errorf("address %s", l.Addr())
	}
	if err := errors.Join(l.Close(), l.Close()); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// dead leaves the socket of a daemon that was killed.
func dead(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestListen_Stale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "b.sock")
	dead(t, path)
	// So does a daemon that was killed while it listened anew.
	dead(t, path+besideSuffix)
	l, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if _, err := net.Dial("unix", path); err != nil {
		t.Error(err)
	}
}

func TestListen_Living(t *testing.T) {
	path := filepath.Join(t.TempDir(), "b.sock")
	l, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if _, err := Listen(t.Context(), path); !errors.Is(err, ErrInUse) {
		t.Fatalf("a second daemon: %v", err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

func TestListen_NoSocket(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	dead(t, target)
	for name, make := range map[string]func(string) error{
		"file":   func(p string) error { return os.WriteFile(p, []byte("x"), 0o600) },
		"folder": func(p string) error { return os.Mkdir(p, 0o700) },
		"fifo":   func(p string) error { return syscall.Mkfifo(p, 0o600) },
		"link":   func(p string) error { return os.Symlink(target, p) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, name)
			if err := make(path); err != nil {
				t.Fatal(err)
			}
			before, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			if l, err := Listen(t.Context(), path); err == nil {
				_ = l.Close()
				t.Fatal("it listens")
			}
			after, err := os.Lstat(path)
			if err != nil || !os.SameFile(before, after) {
				t.Errorf("it was touched: %v", err)
			}
		})
	}
	// The name beside is left alone too.
	beside := filepath.Join(dir, "b.sock.new")
	if err := os.WriteFile(beside, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := Listen(t.Context(), filepath.Join(dir, "b.sock")); err == nil {
		_ = l.Close()
		t.Error("it listens over a file that is no socket")
	}
}

func TestListen_Paths(t *testing.T) {
	for _, path := range []string{"relative", "/" + strings.Repeat("a", 107), "/proc/no/such/folder/b.sock"} {
		if l, err := Listen(t.Context(), path); err == nil {
			_ = l.Close()
			t.Errorf("it listens on %q", path)
		}
	}
	dir := t.TempDir()
	path := filepath.Join(dir, strings.Repeat("a", maxSocketPath-len(dir)-1-len(besideSuffix)))
	l, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatalf("on a path of %d bytes: %v", len(path), err)
	}
	_ = l.Close()
}

// TestListen_Race starts many daemons over a dead one's socket: one gets it.
func TestListen_Race(t *testing.T) {
	path := filepath.Join(t.TempDir(), "b.sock")
	for range 20 {
		dead(t, path)
		var wg sync.WaitGroup
		var mu sync.Mutex
		var won []net.Listener
		for range 8 {
			wg.Go(func() {
				l, err := Listen(t.Context(), path)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					won = append(won, l)
				case !errors.Is(err, ErrInUse):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(won) != 1 {
			t.Fatalf("%d daemons listen", len(won))
		}
		if err := won[0].Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestListen_CloseForeign holds that closing leaves another daemon's socket.
func TestListen_CloseForeign(t *testing.T) {
	path := filepath.Join(t.TempDir(), "b.sock")
	old, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	next, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = next.Close() }()
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("unix", path); err != nil {
		t.Error(err)
	} else {
		_ = c.Close()
	}
}
