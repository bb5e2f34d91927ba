package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// dirFormat is the version of the data directory's layout that this package
// reads and writes.
const dirFormat = 1

// The files of a data directory.
const (
	lockFile     = "lock"
	identityFile = "identity.json"
	memberFolder = "member"
)

// maxIdentity bounds the identity file in bytes.
const maxIdentity = 4096

// Dir is a data directory that this process holds. Nobody else opens it until
// Close.
type Dir struct {
	path string
	lock *os.File
	id   identity
}

// identity is what identity.json holds.
type identity struct {
	Format    int       `json:"format"`
	NodeID    string    `json:"node_id"`
	CreatedAt time.Time `json:"created_at"`
}

// OpenDir takes hold of a data directory. It makes the directory, readable by
// its owner alone, and the node's identity where there is none yet, and changes
// nothing that is there. Errors say what is wrong with which path and what to
// do. It does not block on another holder.
func OpenDir(path string) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open data directory: %w", err)
	}
	if err := makeDir(path); err != nil {
		return nil, fmt.Errorf("open data directory: %w", err)
	}
	lock, err := tryLock(filepath.Join(path, lockFile))
	if held, ok := errors.AsType[*heldError](err); ok {
		return nil, fmt.Errorf("open data directory: %s is held by %s; two daemons cannot share one: stop that one, or give this one a data_dir of its own", path, held.holder)
	}
	if err != nil {
		return nil, fmt.Errorf("open data directory: %w", explain(err))
	}
	d := &Dir{path: path, lock: lock}
	if d.id, err = openIdentity(path); err != nil {
		return nil, errors.Join(fmt.Errorf("open data directory: %w", explain(err)), d.Close())
	}
	return d, nil
}

// NodeID is the identity of the node, 32 hex digits born with the directory.
func (d *Dir) NodeID() string { return d.id.NodeID }

// MemberDir is the folder for the node's member of the store.
func (d *Dir) MemberDir() string { return filepath.Join(d.path, memberFolder) }

// Close lets go of the directory.
func (d *Dir) Close() error {
	if err := d.lock.Close(); err != nil {
		return fmt.Errorf("close data directory: %w", err)
	}
	return nil
}

// makeDir makes a directory with its parents, readable by its owner alone. One
// that is there stays as it is.
func makeDir(path string) error {
	if info, err := os.Stat(path); err == nil && !info.IsDir() {
		return fmt.Errorf("%s is not a directory; remove it or choose another path", path)
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return explain(err)
	}
	return nil
}

// explain adds to an error of the file system what to do about it.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w; free some space on that file system", err)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w; choose a path that can be written to", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w; it must belong to the user that runs this program (uid %d)", err, os.Getuid())
	}
	return err
}

// openIdentity reads the identity of a directory that is held, or makes it in
// one that is empty.
func openIdentity(dir string) (identity, error) {
	name := filepath.Join(dir, identityFile)
	id, err := readIdentity(name)
	if !errors.Is(err, fs.ErrNotExist) {
		return id, err
	}
	if err := checkEmpty(dir); err != nil {
		return id, err
	}
	var random [16]byte
	rand.Read(random[:]) // never fails: crypto/rand
	id = identity{Format: dirFormat, NodeID: hex.EncodeToString(random[:]), CreatedAt: time.Now().UTC().Truncate(time.Second)}
	data, err := json.Marshal(id)
	if err != nil {
		return id, fmt.Errorf("encode identity: %w", err)
	}
	if err := renameio.WriteFile(name, append(data, '\n'), 0o600, renameio.WithTempDir(dir)); err != nil {
		return id, fmt.Errorf("write identity: %w", err)
	}
	return id, syncDir(dir)
}

// readIdentity reads and checks an identity. fs.ErrNotExist says that there is
// none.
func readIdentity(name string) (identity, error) {
	var id identity
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return id, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return id, err
	}
	damaged := func(why string) error {
		return fmt.Errorf("%s %s; it is left as it is: restore it from a backup, or choose another data directory", name, why)
	}
	if !info.Mode().IsRegular() {
		return id, damaged("is not a regular file")
	}
	data, err := io.ReadAll(io.LimitReader(f, maxIdentity+1))
	if err != nil {
		return id, err
	}
	if len(data) > maxIdentity {
		return id, damaged("is too long for an identity")
	}
	var version struct {
		Format int `json:"format"`
	}
	if json.Unmarshal(data, &version) == nil && version.Format > 0 && version.Format != dirFormat {
		return id, fmt.Errorf("%s is of format %d and this program knows format %d; run the version of blixard that wrote it, or choose another data directory", filepath.Dir(name), version.Format, dirFormat)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&id); err != nil {
		return id, damaged(fmt.Sprintf("is no identity (%v)", err))
	}
	if raw, err := hex.DecodeString(id.NodeID); err != nil || len(raw) != 16 || id.NodeID != strings.ToLower(id.NodeID) || id.Format != dirFormat || id.CreatedAt.IsZero() {
		return id, damaged("is no identity of a node")
	}
	return id, nil
}

// checkEmpty refuses a directory that holds anything a new data directory does
// not: it belongs to something else, or its identity was lost.
func checkEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		if name == lockFile || name == "lost+found" || strings.HasPrefix(name, "."+identityFile) {
			continue
		}
		return fmt.Errorf("%s holds %q but no %s, so it is no data directory of blixard; give an empty directory, or restore %s from a backup", dir, name, identityFile, identityFile)
	}
	return nil
}

// syncDir makes a change of a directory's entries last.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// heldError says that another process holds a lock.
type heldError struct{ holder string }

func (e *heldError) Error() string { return "held by " + e.holder }

// tryLock takes the lock on a file, which it makes, and writes this process' id
// into it for people. The lock goes with the file's descriptor, and so with the
// process, however it ends. A *heldError says that another process has it.
func tryLock(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = &heldError{holder(f)}
		} else {
			err = fmt.Errorf("lock %s: %w", name, err)
		}
		return nil, errors.Join(err, f.Close())
	}
	// Whether the id could be written does not matter to the lock: on a full
	// disk the holder is merely not named.
	if f.Truncate(0) == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return f, nil
}

// holder is the holder of a lock as its file names it.
func holder(f *os.File) string {
	var b [16]byte
	n, _ := f.ReadAt(b[:], 0)
	if pid, err := strconv.ParseUint(strings.TrimSpace(string(b[:n])), 10, 31); err == nil {
		return fmt.Sprintf("process %d", pid)
	}
	return "another process"
}

// lockPoll is how often a lock that is held is tried again.
const lockPoll = 50 * time.Millisecond

// awaitLock takes the lock on a file and waits for its holder to let go. held is
// called once when it has to wait.
func awaitLock(ctx context.Context, name string, held func(holder string)) (*os.File, error) {
	for first := true; ; first = false {
		f, err := tryLock(name)
		h, ok := errors.AsType[*heldError](err)
		if !ok {
			return f, err
		}
		if first {
			held(h.holder)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(lockPoll):
		}
	}
}
