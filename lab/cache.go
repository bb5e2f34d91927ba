package lab

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

//go:embed hostinit/main.go
var hostinitSource []byte

// CacheDir is the folder of everything made once: $XDG_CACHE_HOME/blixard-lab,
// or ~/.cache/blixard-lab.
func CacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find cache folder: %w", err)
	}
	return filepath.Join(dir, "blixard-lab"), nil
}

// digest names a thing by what it is made of.
func digest(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:8])
}

// fileLock is a lock between processes that ends with its holder.
type fileLock struct{ file *os.File }

// lockFile waits for the lock at path, shared or not, until ctx ends.
func lockFile(ctx context.Context, path string, how int) (*fileLock, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	// flock cannot be cancelled: a thread of its own waits, and takes the lock
	// away with it when nobody wants it any more.
	var failed error // valid when locked is closed
	locked := make(chan struct{})
	go func() {
		defer close(locked)
		for {
			if failed = unix.Flock(int(f.Fd()), how); !errors.Is(failed, syscall.EINTR) {
				return
			}
		}
	}()
	select {
	case <-locked:
		if failed != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, failed)
		}
		if !named(f, path) {
			// Removed while this process waited: another file has the name now.
			f.Close()
			return lockFile(ctx, path, how)
		}
		return &fileLock{f}, nil
	case <-ctx.Done():
		go func() {
			<-locked
			f.Close()
		}()
		return nil, fmt.Errorf("lock %s, held by another process: %w", path, ctx.Err())
	}
}

// tryLockFile takes the lock on a file that exists without waiting; ok tells
// whether it did.
func tryLockFile(path string, how int) (lock *fileLock, ok bool, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, false, fmt.Errorf("open lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, false, nil
		}
		return nil, false, fmt.Errorf("lock %s: %w", path, err)
	}
	return &fileLock{f}, true, nil
}

// named tells whether path still names f.
func named(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}

func (l *fileLock) release() error { return l.file.Close() }

// cached returns a shared lock on the folder root/name, made by build if it is
// not there. build writes into an empty folder that takes its name only when it
// is whole, so nobody ever sees half of one; two processes never build the same.
func cached(ctx context.Context, root, name string, build func(ctx context.Context, dir string) error) (string, *fileLock, error) {
	dir := filepath.Join(root, name)
	path := dir + ".lock"
	for {
		use, err := lockFile(ctx, path, unix.LOCK_SH)
		if err != nil {
			return "", nil, err
		}
		if _, err := os.Stat(dir); err == nil {
			// The lock's time is that of the last use, for forgetOld.
			now := time.Now()
			if err := os.Chtimes(path, now, now); err != nil {
				return "", nil, errors.Join(err, use.release())
			}
			return dir, use, nil
		}
		if err := use.release(); err != nil {
			return "", nil, err
		}
		if err := buildCached(ctx, path, dir, build); err != nil {
			return "", nil, err
		}
	}
}

func buildCached(ctx context.Context, path, dir string, build func(ctx context.Context, dir string) error) (err error) {
	lock, err := lockFile(ctx, path, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.release()) }()
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	// The lock is ours: what an earlier attempt left is nobody's.
	temp := dir + ".tmp"
	if err := os.RemoveAll(temp); err != nil {
		return err
	}
	if err := os.Mkdir(temp, 0o755); err != nil {
		return err
	}
	if err := build(ctx, temp); err != nil {
		return errors.Join(err, os.RemoveAll(temp))
	}
	return os.Rename(temp, dir)
}

// keepUnused is how long a cached thing outlives its last use: checkouts with
// different recipes must not make each other's anew by turns.
const keepUnused = 24 * time.Hour

// forgetOld removes the cached folders prefix* in root other than keep that no
// process holds a lock on and none has used for keepUnused.
func forgetOld(root, prefix, keep string) error {
	locks, err := filepath.Glob(filepath.Join(root, prefix+"*.lock"))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range locks {
		dir := strings.TrimSuffix(path, ".lock")
		st, err := os.Stat(path)
		if err != nil || filepath.Base(dir) == keep || time.Since(st.ModTime()) < keepUnused {
			continue
		}
		lock, ok, err := tryLockFile(path, unix.LOCK_EX)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if !ok {
			continue
		}
		errs = append(errs, os.RemoveAll(dir), os.RemoveAll(dir+".tmp"), os.Remove(path), lock.release())
	}
	return errors.Join(errs...)
}

// goTool is the go command.
func goTool() (string, error) {
	path, err := exec.LookPath("go")
	if err != nil {
		return "", fmt.Errorf("find go, with which the lab builds its helpers; type: export PATH=$PATH:/usr/local/go/bin: %w", err)
	}
	return path, nil
}

// buildStatic compiles the one-file program into path, without cgo and without
// a module around it.
func buildStatic(ctx context.Context, source []byte, path string) error {
	tool, err := goTool()
	if err != nil {
		return err
	}
	src := path + ".go"
	if err := os.WriteFile(src, source, 0o644); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, tool, "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", path, src)
	cmd.Dir = filepath.Dir(path)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GO111MODULE=off", "GOFLAGS=", "GOOS=linux")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", filepath.Base(path), err, out)
	}
	return os.Remove(src)
}

// helper returns the path of hostinit, built if need be, and the lock that keeps
// it there.
func helper(ctx context.Context, cache string) (string, *fileLock, error) {
	name := "hostinit-" + digest(string(hostinitSource), runtime.Version(), runtime.GOARCH)
	dir, lock, err := cached(ctx, cache, name, func(ctx context.Context, dir string) error {
		return buildStatic(ctx, hostinitSource, filepath.Join(dir, "hostinit"))
	})
	if err != nil {
		return "", nil, fmt.Errorf("build the lab's helper: %w", err)
	}
	if err := forgetOld(cache, "hostinit-", name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", nil, errors.Join(fmt.Errorf("remove old helpers: %w", err), lock.release())
	}
	return filepath.Join(dir, "hostinit"), lock, nil
}
