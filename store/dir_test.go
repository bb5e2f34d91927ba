package store

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOpenDir_identityLasts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "data")
	d, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	id := d.NodeID()
	if len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "" {
		t.Errorf("node id %q", id)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", info.Mode(), err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if d, err = OpenDir(path); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if d.NodeID() != id {
		t.Errorf("node id %q after %q", d.NodeID(), id)
	}
}

func TestOpenDir_held(t *testing.T) {
	path := t.TempDir()
	d, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = OpenDir(path)
	if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "process "+strconv.Itoa(os.Getpid())) {
		t.Errorf("second holder: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestOpenDir_oneOfManyWins(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	var mu sync.Mutex
	var held []*Dir
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if d, err := OpenDir(path); err == nil {
				mu.Lock()
				held = append(held, d)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(held) != 1 {
		t.Errorf("%d hold it", len(held))
	}
	for _, d := range held {
		d.Close()
	}
}

func TestOpenDir_refuses(t *testing.T) {
	good := `{"format":1,"node_id":"0123456789abcdef0123456789abcdef","created_at":"2026-01-01T00:00:00Z"}`
	for name, c := range map[string]struct {
		make func(t *testing.T, path string)
		want string
	}{
		"a file":         {func(t *testing.T, p string) { os.Remove(p); write(t, p, "") }, "is not a directory"},
		"newer":          {identityOf(`{"format":2,"node_id":"x","more":1}`), "is of format 2 and this program knows format 1; run the version"},
		"half written":   {identityOf(good[:40]), "is no identity"},
		"empty":          {identityOf(""), "is no identity"},
		"unknown field":  {identityOf(strings.Replace(good, "{", `{"x":1,`, 1)), "is no identity"},
		"upper case":     {identityOf(strings.Replace(good, "abcdef", "ABCDEF", 2)), "is no identity of a node"},
		"short id":       {identityOf(strings.Replace(good, "0123456789abcdef", "", 1)), "is no identity of a node"},
		"no format":      {identityOf(strings.Replace(good, `"format":1,`, "", 1)), "is no identity of a node"},
		"no date":        {identityOf(strings.Replace(good, `,"created_at":"2026-01-01T00:00:00Z"`, "", 1)), "is no identity of a node"},
		"huge":           {identityOf(good + strings.Repeat(" ", 10000)), "is too long"},
		"a FIFO":         {func(t *testing.T, p string) { check(t, unix.Mkfifo(filepath.Join(p, identityFile), 0o600)) }, "is not a regular file"},
		"a link":         {func(t *testing.T, p string) { check(t, os.Symlink("/etc/passwd", filepath.Join(p, identityFile))) }, "too many levels"},
		"a lock link":    {func(t *testing.T, p string) { check(t, os.Symlink("/etc/passwd", filepath.Join(p, lockFile))) }, "too many levels"},
		"other's":        {func(t *testing.T, p string) { write(t, filepath.Join(p, "notes.txt"), "x") }, `holds "notes.txt" but no identity.json`},
		"lost identity":  {func(t *testing.T, p string) { check(t, os.Mkdir(filepath.Join(p, memberFolder), 0o700)) }, `holds "member" but no identity.json`},
		"read-only disk": {func(t *testing.T, p string) { mountTmpfs(t, p, "ro,size=1m") }, "choose a path that can be written to"},
		"full disk": {func(t *testing.T, p string) {
			mountTmpfs(t, p, "size=64k,nr_inodes=64")
			fill(t, filepath.Join(p, ".identity.json-fill"), 0)
		}, "free some space"},
	} {
		t.Run(name, func(t *testing.T) {
			path := t.TempDir()
			c.make(t, path)
			before := listing(t, path)
			d, err := OpenDir(path)
			if err == nil {
				d.Close()
				t.Fatal("opened")
			}
			if !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("error %q: want %q and %q", err, c.want, path)
			}
			if after := listing(t, path); after != before {
				t.Errorf("changed from %q to %q", before, after)
			}
		})
	}
}

// A daemon that was killed while it made the identity leaves a temporary file.
func TestOpenDir_leftover(t *testing.T) {
	path := t.TempDir()
	write(t, filepath.Join(path, ".identity.json123456"), `{"for`)
	write(t, filepath.Join(path, lockFile), "99999\n")
	d, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
}

func identityOf(text string) func(*testing.T, string) {
	return func(t *testing.T, path string) { write(t, filepath.Join(path, identityFile), text) }
}

func write(t *testing.T, name, text string) {
	t.Helper()
	check(t, os.WriteFile(name, []byte(text), 0o600))
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// listing is what a directory holds, the lock aside.
func listing(t *testing.T, path string) string {
	t.Helper()
	entries, err := os.ReadDir(path)
	if err != nil {
		return err.Error()
	}
	var out []string
	for _, e := range entries {
		if e.Name() == lockFile {
			continue
		}
		text := ""
		if e.Type().IsRegular() {
			b, err := os.ReadFile(filepath.Join(path, e.Name()))
			check(t, err)
			text = string(b[:min(len(b), 200)])
		}
		out = append(out, e.Name()+" "+e.Type().String()+" "+text)
	}
	return strings.Join(out, "\n")
}

// mountTmpfs mounts a disk of its own on a directory until the test ends.
func mountTmpfs(t testing.TB, path, options string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test mounts a small disk and needs root: run sudo make test")
	}
	flags := uintptr(0)
	if rest, ok := strings.CutPrefix(options, "ro,"); ok {
		flags, options = unix.MS_RDONLY, rest
	}
	if err := unix.Mount("tmpfs", path, "tmpfs", flags, options); err != nil {
		t.Fatalf("mount tmpfs on %s: %v", path, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", path, err)
		}
	})
}

// fill fills a disk with a file until so many bytes are left.
func fill(t testing.TB, name string, leave int64) {
	t.Helper()
	f, err := os.Create(name)
	check(t, err)
	defer f.Close()
	free, err := freeSpace(filepath.Dir(name))
	check(t, err)
	if free > leave {
		check(t, unix.Fallocate(int(f.Fd()), 0, 0, free-leave))
	}
}
