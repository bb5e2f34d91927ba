package store

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// dirFormat is the version of the data directory's layout.
const dirFormat = 1

// maxIdentity bounds the size of identity.json in bytes.
const maxIdentity = 4096

// Dir is a data directory that this process holds: no other daemon can open it
// until Close. It holds lock, identity.json and the member's directory.
type Dir struct {
	path string
	lock *os.File
	id   string
}

// identity is what identity.json holds.
type identity struct {
	Format    int       `json:"format"`
	NodeID    string    `json:"node_id"`
	CreatedAt time.Time `json:"created_at"`
}

var nodeID = regexp.MustCompile(`^[0-9a-f]{32}$`)

// OpenDir opens a data directory, and makes it and the node's identity where
// there is none. A directory that another daemon holds, that another version
// made or whose identity cannot be read is an error that says what to do;
// nothing in it is changed then.
func OpenDir(path string) (_ *Dir, err error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(path, "lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open data directory: %w", err)
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock data directory %s: %w", path, err)
		}
		holder := "another daemon"
		if b, rerr := io.ReadAll(io.LimitReader(lock, 32)); rerr == nil && len(bytes.TrimSpace(b)) > 0 {
			holder = "the daemon with PID " + strings.TrimSpace(string(b))
		}
		return nil, fmt.Errorf("data directory %s is in use by %s; stop it, or give this one another --data-dir", path, holder)
	}
	if err := lock.Truncate(0); err == nil {
		// Who holds it is told to people only; the lock itself is what counts.
		lock.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	}
	d := &Dir{path: path, lock: lock}
	if err := d.identify(); err != nil {
		return nil, err
	}
	return d, nil
}

// identify reads the node's identity, or makes it in an empty directory.
func (d *Dir) identify() error {
	file := filepath.Join(d.path, "identity.json")
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return d.found(file)
	}
	if err != nil {
		return fmt.Errorf("read identity: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxIdentity+1))
	if err != nil {
		return fmt.Errorf("read identity: %w", err)
	}
	var id identity
	if len(b) > maxIdentity || json.Unmarshal(b, &id) != nil {
		return fmt.Errorf("%s cannot be read as a node's identity; bring it back from a backup, or move the data directory away to start as a new node", file)
	}
	if id.Format != dirFormat {
		return fmt.Errorf("data directory %s has format %d, and this version knows %d only; run the version that made it, or move it away to start as a new node", d.path, id.Format, dirFormat)
	}
	if !nodeID.MatchString(id.NodeID) {
		return fmt.Errorf("%s holds no node id; bring it back from a backup, or move the data directory away to start as a new node", file)
	}
	d.id = id.NodeID
	return nil
}

// found makes a new identity, in a directory that holds nothing of an old one.
func (d *Dir) found(file string) error {
	if _, err := os.Lstat(d.MemberDir()); err == nil {
		return fmt.Errorf("data directory %s holds a store but no identity.json; bring it back from a backup, or move the directory away to start as a new node", d.path)
	}
	var raw [16]byte
	rand.Read(raw[:]) // never fails: crypto/rand
	id := identity{Format: dirFormat, NodeID: hex.EncodeToString(raw[:]), CreatedAt: time.Now().UTC()}
	b, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return fmt.Errorf("make identity: %w", err)
	}
	if err := renameio.WriteFile(file, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	d.id = id.NodeID
	return nil
}

// NodeID is the node's identity, 32 hex digits, born with the directory.
func (d *Dir) NodeID() string { return d.id }

// MemberDir is where the member keeps its data.
func (d *Dir) MemberDir() string { return filepath.Join(d.path, "member") }

// Close lets others open the directory.
func (d *Dir) Close() error {
	if err := d.lock.Close(); err != nil {
		return fmt.Errorf("unlock data directory: %w", err)
	}
	return nil
}
