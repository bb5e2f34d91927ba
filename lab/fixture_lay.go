package lab

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"time"
)

// entry is a file of a fixture as it is to lie on a node: Path is absolute, and
// a folder has the Mode of one. The folders above it are made.
type entry struct {
	File
	hard  bool // Link is a hard link to a file laid down before
	owned bool // by microvm:kvm, as whom VMMs run; else by root
}

func textFile(path string, mode fs.FileMode, text string) entry {
	return entry{File: File{Path: path, Data: []byte(text), Mode: mode}}
}

func linkFile(path, target string) entry { return entry{File: File{Path: path, Link: target}} }

func folder(path string, mode fs.FileMode) entry {
	return entry{File: File{Path: path, Mode: fs.ModeDir | mode}}
}

func owned(e entry) entry {
	e.owned = true
	return e
}

// site is a node on which fixtures are laid down.
type site interface {
	Node
	// lay writes the files in their order, over those that are there.
	lay(ctx context.Context, files []entry) error
	// StateDir is microvm.nix's, empty before setStateDir.
	StateDir(name string) string
	setStateDir(dir string)
}

var (
	_ site = (*Host)(nil)
	_ site = (*Machine)(nil)
)

// installMicroVM is InstallMicroVM for every kind of node.
func installMicroVM(ctx context.Context, s site, opts MicroVMOptions) error {
	if opts.StateDir == "" {
		opts.StateDir = DefaultStateDir
	}
	if opts.TimeoutSec == 0 {
		opts.TimeoutSec = 150
	}
	files, err := installFiles(opts)
	if err == nil {
		err = s.lay(ctx, files)
	}
	if err != nil {
		return fmt.Errorf("install microvm.nix on %s: %w", s.Name(), err)
	}
	s.setStateDir(opts.StateDir)
	if err := reload(ctx, s); err != nil || !s.Running() {
		return err
	}
	_, err = s.Exec(ctx, "systemctl", "start", "microvms.target")
	return err
}

// addVM is AddVM for every kind of node.
func addVM(ctx context.Context, s site, vms []VM) error {
	units := false
	for _, vm := range vms {
		changed, err := layVM(ctx, s, &vm)
		if err != nil {
			return fmt.Errorf("add VM %q on %s: %w", vm.Name, s.Name(), err)
		}
		units = units || changed
	}
	if units {
		return reload(ctx, s)
	}
	return nil
}

// layVM completes the VM and writes its files; units tells whether units are
// among them.
func layVM(ctx context.Context, s site, vm *VM) (units bool, err error) {
	if s.StateDir("") == "" {
		return false, errors.New("InstallMicroVM was not called")
	}
	if err := vm.complete(); err != nil {
		return false, err
	}
	files, err := vmFiles(s.StateDir(""), vm)
	if err != nil {
		return false, err
	}
	return vm.Provenance == Declared || vm.Notify, s.lay(ctx, files)
}

// reload tells a running systemd that units changed.
func reload(ctx context.Context, n Node) error {
	if !n.Running() {
		return nil
	}
	_, err := n.Exec(ctx, "systemctl", "daemon-reload")
	return err
}

// lay writes without the care of WriteFile: fixtures have tens of thousands of
// files.
func (h *Host) lay(ctx context.Context, files []entry) error {
	made := make(map[string]bool)
	for _, f := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		if parent := path.Dir(f.Path); !made[parent] {
			if err := h.makeParents(f.Path); err != nil {
				return err
			}
			made[parent] = true
		}
		if err := h.layOne(f); err != nil {
			return err
		}
		if f.owned {
			if err := h.chown(f.Path); err != nil {
				return err
			}
		}
	}
	return nil
}

func (h *Host) layOne(f entry) error {
	switch {
	case f.Mode.IsDir():
		return h.Mkdir(f.Path, f.Mode.Perm())
	case f.hard:
		from, err := h.place(f.Link)
		if err != nil {
			return err
		}
		to, err := h.place(f.Path)
		if err != nil {
			return err
		}
		if err := os.Link(from, to); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	case f.Link != "":
		return h.Symlink(f.Link, f.Path)
	default:
		return h.put(f.Path, f.Data, f.Mode)
	}
}

// lay sends the files as one archive: each request to a machine costs
// milliseconds.
func (m *Machine) lay(ctx context.Context, files []entry) error {
	var archive bytes.Buffer
	out := tar.NewWriter(&archive)
	for _, f := range files {
		head := &tar.Header{Name: f.Path[1:], Mode: int64(f.Mode.Perm()), Linkname: f.Link, ModTime: time.Now(), Format: tar.FormatGNU}
		switch {
		case f.Mode.IsDir():
			head.Typeflag, head.Name = tar.TypeDir, head.Name+"/"
		case f.hard:
			head.Typeflag, head.Linkname = tar.TypeLink, f.Link[1:]
		case f.Link != "":
			head.Typeflag = tar.TypeSymlink
		default:
			head.Typeflag, head.Size = tar.TypeReg, int64(len(f.Data))
		}
		if f.owned {
			head.Uname, head.Gname = "microvm", "kvm"
		}
		if err := out.WriteHeader(head); err != nil {
			return fmt.Errorf("pack %s: %w", f.Path, err)
		}
		if head.Size > 0 {
			if _, err := out.Write(f.Data); err != nil {
				return fmt.Errorf("pack %s: %w", f.Path, err)
			}
		}
	}
	if err := out.Close(); err != nil {
		return fmt.Errorf("pack files: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, machineTimeout)
	defer cancel()
	var log tailBuffer
	cmd := m.Command(ctx, "tar", "--extract", "--touch", "--same-permissions", "--directory=/")
	cmd.Stdin, cmd.Stderr = &archive, &log
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("unpack files: %w: %s", err, tail(log.String(), 20))
	}
	return nil
}
