package microvm

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

const (
	// maxFile bounds the files that are read, in bytes: a word or a number.
	maxFile = 256
	// maxLinks bounds the links on the way to a file of the store.
	maxLinks = 16
	// maxPath bounds a link's target, as the kernel does.
	maxPath = 4096
	// hashLength is that of the first part of a store path's name.
	hashLength = 32
)

// hypervisors are those of microvm.nix. A name that is not among them is taken
// from the runner's own file only.
var hypervisors = [...]string{"qemu", "cloud-hypervisor", "firecracker", "crosvm", "kvmtool", "stratovirt", "alioth", "vfkit"}

// splitRunner splits the name of a runner's store path,
// HASH-microvm-HYPERVISOR-HOSTNAME. Both names may hold dashes, so a hypervisor
// is needed to split by: the one that the runner tells, or a known one.
func splitRunner(name, told string) (hypervisor, hostName string, err error) {
	if len(name) < hashLength || strings.Trim(name[:hashLength], "0123456789abcdefghijklmnopqrstuvwxyz") != "" {
		return "", "", fmt.Errorf("%q is no name of a store path", Printable(name))
	}
	rest, ok := strings.CutPrefix(name[hashLength:], "-microvm-")
	if !ok {
		return "", "", fmt.Errorf("%q is not the runner of a microVM", Printable(name))
	}
	if told != "" {
		if host, ok := strings.CutPrefix(rest, told+"-"); ok && validName(host) {
			return told, host, nil
		}
		return "", "", fmt.Errorf("%q is not named after the hypervisor %s", Printable(name), told)
	}
	for _, h := range hypervisors {
		if host, ok := strings.CutPrefix(rest, h+"-"); ok && validName(host) {
			return h, host, nil
		}
	}
	return "", "", fmt.Errorf("%q names no known hypervisor", Printable(name))
}

// validName reports whether s is one or more of the characters that Nix allows
// in the name of a store path.
func validName(s string) bool {
	if s == "" || len(s) > 211 {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case strings.IndexByte("+-._?=", c) >= 0:
		default:
			return false
		}
	}
	return true
}

// errOutside says that a link leads out of the store.
var errOutside = errors.New("leads out of the store")

// store reads files of the Nix store, and nothing else whatever links say.
type store struct {
	dir  string // absolute and clean
	root *os.Root
}

func openStore(dir string) (*store, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &store{dir: dir, root: root}, nil
}

func (s *store) close() error { return s.root.Close() }

// inStore is the part of an absolute path below the store.
func inStore(dir, path string) (string, bool) {
	rest, ok := strings.CutPrefix(path, dir+"/")
	if dir == "/" {
		rest, ok = strings.CutPrefix(path, "/")
	}
	return rest, ok
}

// word reads a file that holds one line of printable ASCII without spaces.
// fs.ErrNotExist says that it is not there.
func (s *store) word(path string) (string, error) {
	data, err := s.read(path)
	if err != nil {
		return "", err
	}
	text := strings.TrimSuffix(string(data), "\n")
	if text == "" {
		return "", errors.New("is empty")
	}
	for i := 0; i < len(text); i++ {
		if text[i] <= ' ' || text[i] > '~' {
			return "", errors.New("is not one word")
		}
	}
	return text, nil
}

// read reads a short regular file. Links within the store are followed by hand,
// because the store's links are absolute and os.Root refuses those.
func (s *store) read(path string) (_ []byte, err error) {
	path, err = s.resolve(path)
	if err != nil {
		return nil, err
	}
	// Whatever is there by now is opened without waiting, and read only if it
	// is a file.
	f, err := s.root.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, unwrapPath(err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	fi, err := f.Stat()
	if err != nil {
		return nil, unwrapPath(err)
	}
	if !fi.Mode().IsRegular() {
		return nil, errors.New("is no regular file")
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, unwrapPath(err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("is longer than %d bytes", maxFile)
	}
	return data, nil
}

// resolve returns the path below the store's root that path, itself below it,
// leads to, with no link left in it.
func (s *store) resolve(path string) (string, error) {
	var done []string
	todo := strings.Split(path, "/")
	links, size := 0, len(path)
	for len(todo) > 0 {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			if len(done) == 0 {
				return "", errOutside
			}
			done = done[:len(done)-1]
			continue
		}
		at := filepath.Join(append(done[:len(done):len(done)], part)...)
		fi, err := s.root.Lstat(at)
		if err != nil {
			return "", unwrapPath(err)
		}
		if fi.Mode()&fs.ModeSymlink == 0 {
			done = append(done, part)
			continue
		}
		to, err := s.root.Readlink(at)
		if err != nil {
			return "", unwrapPath(err)
		}
		links++
		if size += len(to); links > maxLinks || size > maxPath {
			return "", errors.New("too many links")
		}
		if strings.HasPrefix(to, "/") {
			rest, ok := inStore(s.dir, to)
			if !ok {
				return "", errOutside
			}
			done, to = done[:0], rest
		}
		todo = append(strings.Split(to, "/"), todo...)
	}
	if len(done) == 0 {
		return "", errOutside
	}
	return filepath.Join(done...), nil
}

// unwrapPath leaves of an error what is not the path, which callers name.
func unwrapPath(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}

// parseCID reads a guest's vsock context id. 0 to 2 and the largest number
// belong to hosts.
func parseCID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n < 3 || n == 1<<32-1 {
		return 0, fmt.Errorf("%.20q is no guest's context id", s)
	}
	return uint32(n), nil
}
