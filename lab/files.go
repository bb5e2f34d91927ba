package lab

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// place is where the host's file path can be reached from here: through PID 1
// while the host runs, and in its layer of the overlay while it is off.
func (h *Host) place(path string) (string, error) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return "", fmt.Errorf("path %q on host %s is not absolute and clean", path, h.name)
	}
	if pid, err := h.PID(); err == nil {
		return fmt.Sprintf("/proc/%d/root%s", pid, path), nil
	}
	return h.upper(path), nil
}

// makeParents makes the folders above path. A folder that the root file system
// has gets the mode and owner it has there, since it will stand for that one.
func (h *Host) makeParents(path string) error {
	dir := filepath.Dir(path)
	if dir == "/" {
		return nil
	}
	target, err := h.place(dir)
	if err != nil {
		return err
	}
	if st, err := os.Stat(target); err == nil {
		if !st.IsDir() {
			return fmt.Errorf("%s on %s is no folder", dir, h.name)
		}
		return nil
	}
	if err := h.makeParents(dir); err != nil {
		return err
	}
	mode, uid, gid := fs.FileMode(0o755), 0, 0
	if st, err := os.Stat(filepath.Join(h.lab.rootfs.Root(), dir)); err == nil && !h.Running() {
		uid, gid = ownerOf(st)
		mode = st.Mode().Perm() | st.Mode()&fs.ModeSticky
	}
	if err := os.Mkdir(target, mode.Perm()); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return errors.Join(os.Chown(target, uid, gid), os.Chmod(target, mode))
}

// ownerOf is the owner of a file.
func ownerOf(st fs.FileInfo) (uid, gid int) {
	if own, ok := st.Sys().(*syscall.Stat_t); ok {
		return int(own.Uid), int(own.Gid)
	}
	return 0, 0
}

// Mkdir makes a folder on the host, which may be off, with those above it. One
// that is there gets the mode.
func (h *Host) Mkdir(path string, mode fs.FileMode) error {
	if err := h.makeParents(path + "/x"); err != nil {
		return fmt.Errorf("make %s on %s: %w", path, h.name, err)
	}
	target, err := h.place(path)
	if err != nil {
		return err
	}
	return os.Chmod(target, mode)
}

// Symlink makes a symbolic link at path, in place of whatever file was there.
func (h *Host) Symlink(target, path string) error {
	at, err := h.place(path)
	if err != nil {
		return err
	}
	if err := h.makeParents(path); err != nil {
		return fmt.Errorf("link %s on %s: %w", path, h.name, err)
	}
	err = os.Symlink(target, at)
	if errors.Is(err, fs.ErrExist) {
		// Replaced at once, as ln -sTf does not but nix does.
		temp := filepath.Join(filepath.Dir(at), ".lab-link")
		if err := os.Symlink(target, temp); err != nil {
			return err
		}
		return os.Rename(temp, at)
	}
	return err
}

// Remove removes a file or a folder with all in it. On a host that is off it
// can only remove what was written to the host, not what its root file system
// brought.
func (h *Host) Remove(path string) error {
	at, err := h.place(path)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(at); err != nil {
		return fmt.Errorf("remove %s on %s: %w", path, h.name, err)
	}
	return nil
}

// put writes a small file without the care of WriteFile: fixtures make
// thousands. The folder must be there.
func (h *Host) put(path string, data []byte, mode fs.FileMode) error {
	at, err := h.place(path)
	if err != nil {
		return err
	}
	err = os.WriteFile(at, data, mode)
	if errors.Is(err, syscall.ETXTBSY) {
		// A file that a program runs from is replaced, not overwritten.
		if err := os.Remove(at); err != nil {
			return err
		}
		err = os.WriteFile(at, data, mode)
	}
	if err != nil {
		return err
	}
	// Whatever the umask of this process.
	return os.Chmod(at, mode)
}

// WriteFile writes a file on the host, which may be off, with the folders above
// it. It is replaced at once: a reader sees the old or the new. Symbolic links
// in its folders must be relative, as Debian's are.
func (h *Host) WriteFile(path string, data []byte, mode fs.FileMode) error {
	return h.write(path, mode, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// CopyIn copies a file of this machine to the host, which may be off, with its
// permission bits.
func (h *Host) CopyIn(source, path string) error {
	f, err := os.Open(source)
	if err != nil {
		return fmt.Errorf("copy to %s: %w", h.name, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("copy to %s: %w", h.name, err)
	}
	return h.write(path, st.Mode().Perm(), func(w io.Writer) error {
		_, err := io.Copy(w, f)
		return err
	})
}

func (h *Host) write(path string, mode fs.FileMode, fill func(io.Writer) error) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s on %s: %w", path, h.name, err)
		}
	}()
	target, err := h.place(path)
	if err != nil {
		return err
	}
	if err := h.makeParents(path); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(target), ".lab-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if err := errors.Join(fill(f), f.Chmod(mode), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), target)
}

// ReadFile reads a file of the host, which may be off. Symbolic links must be
// relative: an absolute one would leave the host.
func (h *Host) ReadFile(path string) ([]byte, error) {
	target, err := h.place(path)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(target)
	if errors.Is(err, fs.ErrNotExist) && !h.Running() {
		data, err = os.ReadFile(filepath.Join(h.lab.rootfs.Root(), path))
	}
	if err != nil {
		return nil, fmt.Errorf("read %s of %s: %w", path, h.name, trimRoot(err))
	}
	return data, nil
}

// trimRoot takes this machine's part off a path error, so that it tells of the
// host's own path once.
func trimRoot(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) && strings.HasPrefix(pe.Path, "/") {
		return pe.Err
	}
	return err
}
