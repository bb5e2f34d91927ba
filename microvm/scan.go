package microvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard"
)

const (
	// maxEntries bounds the entries of a state directory that are looked at.
	maxEntries = 32768
	// maxFolder is the longest folder that can be a VM: the shortest template's
	// instance.
	maxFolder = blixard.MaxName - len("x@.service")
	// maxReasons bounds the entries that are listed as no VMs, and the reasons
	// of an incomplete scan.
	maxReasons = 64
	// settled is how old the last change of a folder must be for its times to
	// tell the next change: file systems count time in steps.
	settled = 2 * time.Second
)

// Config says where a Scanner looks.
type Config struct {
	// StateDirs hold a folder for each VM; where two have the same, the first
	// counts.
	StateDirs []string
	// StoreDir is the Nix store, where the links current lead.
	StoreDir string
}

// DefaultConfig is microvm.nix's default.
func DefaultConfig() Config {
	return Config{StateDirs: []string{"/var/lib/microvms"}, StoreDir: "/nix/store"}
}

// Validate refuses paths that are not absolute and clean, and the same one twice.
func (c *Config) Validate() error {
	seen := map[string]bool{}
	for _, dir := range append([]string{c.StoreDir}, c.StateDirs...) {
		if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir || len(dir) >= maxPath {
			return fmt.Errorf("directory %q is not an absolute path in its shortest form", dir)
		}
		if seen[dir] {
			return fmt.Errorf("directory %q is named twice", dir)
		}
		seen[dir] = true
	}
	return nil
}

// Definition is what the host's files say of one VM. It is never changed once
// handed out.
type Definition struct {
	blixard.VMDefinition
	// Name is the VM's, and Dir its folder.
	Name, Dir string
	// Unavailable gives the reason for each field of VMDefinition that is not
	// known, by JSON name.
	Unavailable map[string]string
}

// Ignored is an entry of a state directory that defines no VM.
type Ignored struct {
	// Path is hostile text, see Printable.
	Path   string
	Reason string
}

// Scan is one reading of the state directories.
type Scan struct {
	// Definitions are the VMs that are defined, by name.
	Definitions map[string]*Definition
	// Unreadable are the names of folders of which it cannot be told whether
	// they define a VM.
	Unreadable []string
	// Complete says that there are no others than these and the Unreadable.
	Complete bool
	// Reasons say why it is not Complete and why folders are Unreadable,
	// Printable, the first 64.
	Reasons []string
	// Ignored are the first 64 entries that define none, IgnoredCount counts
	// all.
	Ignored      []Ignored
	IgnoredCount int
	// Missing are the state directories that do not exist; they are complete
	// and empty.
	Missing []string
}

func (s *Scan) ignore(dir, name, reason string) {
	s.IgnoredCount++
	if len(s.Ignored) < maxReasons {
		s.Ignored = append(s.Ignored, Ignored{filepath.Join(dir, name), reason})
	}
}

func (s *Scan) incomplete(dir string, err error) {
	s.Complete = false
	s.reason(dir, err)
}

func (s *Scan) unreadable(dir, name string, err error) {
	s.Unreadable = append(s.Unreadable, name)
	s.reason(filepath.Join(dir, name), err)
}

func (s *Scan) reason(path string, err error) {
	if len(s.Reasons) < maxReasons {
		s.Reasons = append(s.Reasons, fmt.Sprintf("cannot read %s: %v", Printable(path), unwrapPath(err)))
	}
}

// ErrUndefined says that no folder defines the VM.
var ErrUndefined = errors.New("not defined")

// Scanner reads state directories. It keeps what it read of a folder until that
// changes: microvm.nix replaces links and never writes through them, so the
// folder's own times tell.
type Scanner struct {
	cfg Config
	now func() time.Time

	mu sync.Mutex // held through each call, guards what follows
	// kept is what was read of each folder, by state directory and name.
	kept []map[string]*folder
}

// folder is what was read of one folder.
type folder struct {
	stamp stamp
	// def is nil when the folder defines no VM, for the reason.
	def    *Definition
	reason string
	// again says that the same folder may read otherwise the next time.
	again bool
}

// stamp tells a folder's present from its past.
type stamp struct {
	dev, ino     uint64
	mtime, ctime int64 // ns
}

func stampOf(st *unix.Stat_t) stamp {
	return stamp{st.Dev, st.Ino, st.Mtim.Nano(), st.Ctim.Nano()}
}

// NewScanner makes a Scanner that has read nothing yet.
func NewScanner(cfg Config) (*Scanner, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Scanner{cfg: cfg, now: time.Now, kept: make([]map[string]*folder, len(cfg.StateDirs))}
	for i := range s.kept {
		s.kept[i] = map[string]*folder{}
	}
	return s, nil
}

// Scan reads all state directories. It never fails: what it could not read the
// Scan says. When ctx ends it stops between two folders, incomplete.
func (s *Scanner) Scan(ctx context.Context) *Scan {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := &Scan{Complete: true, Definitions: make(map[string]*Definition, len(s.kept[0]))}
	r := reader{storeDir: s.cfg.StoreDir, now: s.now()}
	defer r.close()
	for i, dir := range s.cfg.StateDirs {
		s.scanDir(ctx, &r, i, dir, out)
	}
	return out
}

func (s *Scanner) scanDir(ctx context.Context, r *reader, i int, dir string, out *Scan) {
	f, err := openDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		out.Missing = append(out.Missing, dir)
		clear(s.kept[i])
		return
	}
	if err != nil {
		out.incomplete(dir, err)
		return
	}
	defer f.Close()
	kept := s.kept[i]
	next := make(map[string]*folder, len(kept))
	count := 0
	for {
		names, err := f.Readdirnames(1024)
		for _, name := range names {
			if ctx.Err() != nil {
				out.incomplete(dir, context.Cause(ctx))
				return
			}
			if count++; count > maxEntries {
				out.incomplete(dir, fmt.Errorf("more than %d entries", maxEntries))
				return
			}
			if why := unfit(name); why != "" {
				out.ignore(dir, name, why)
				continue
			}
			fo, err := r.folder(int(f.Fd()), dir, name, kept[name])
			switch {
			case errors.Is(err, fs.ErrNotExist):
				// It went since it was listed.
				continue
			case err != nil:
				out.unreadable(dir, name, err)
				continue
			}
			next[name] = fo
			switch {
			case fo.def == nil:
				out.ignore(dir, name, fo.reason)
			case out.Definitions[name] != nil:
				out.ignore(dir, name, "is the same VM as "+out.Definitions[name].Dir)
			default:
				out.Definitions[name] = fo.def
			}
		}
		if errors.Is(err, io.EOF) {
			s.kept[i] = next
			return
		}
		if err != nil {
			out.incomplete(dir, err)
			return
		}
	}
}

// openDir opens a directory and nothing else, without waiting.
func openDir(dir string) (*os.File, error) {
	return os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
}

// Refresh reads what defines one VM anew. ErrUndefined says that nothing does;
// with any other error it is not known.
func (s *Scanner) Refresh(name string) (*Definition, error) {
	if why := unfit(name); why != "" {
		return nil, fmt.Errorf("%w: the name %s", ErrUndefined, why)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := reader{storeDir: s.cfg.StoreDir, now: s.now()}
	defer r.close()
	for i, dir := range s.cfg.StateDirs {
		def, err := s.refresh(&r, i, dir, name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read %s: %w", Printable(filepath.Join(dir, name)), unwrapPath(err))
		}
		if def != nil {
			return def, nil
		}
	}
	return nil, ErrUndefined
}

func (s *Scanner) refresh(r *reader, i int, dir, name string) (*Definition, error) {
	delete(s.kept[i], name)
	f, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fo, err := r.folder(int(f.Fd()), dir, name, nil)
	if err != nil {
		return nil, err
	}
	s.kept[i][name] = fo
	return fo.def, nil
}

// unfit says why no VM can have that name, "" if one can.
func unfit(name string) string {
	switch {
	case name == "", name == ".", name == "..":
		return "is no name of a folder"
	case len(name) > maxFolder:
		return "is too long for the name of a unit"
	case !validInstance(name):
		return "cannot be in the name of a unit"
	}
	return ""
}

// reader reads folders, and opens the store when it first needs it.
type reader struct {
	storeDir string
	now      time.Time
	store    *store
	storeErr error
	link     [maxPath]byte
}

func (r *reader) close() {
	if r.store != nil {
		// It was only read: there is nothing that closing could lose.
		_ = r.store.close()
	}
}

// folder reads one folder of the state directory that stateFD is. What was kept
// of it is returned if it has not changed. An error says that it cannot be told
// whether it defines a VM.
func (r *reader) folder(stateFD int, dir, name string, kept *folder) (*folder, error) {
	var st unix.Stat_t
	if err := ignoringEINTR(func() error { return unix.Fstatat(stateFD, name, &st, unix.AT_SYMLINK_NOFOLLOW) }); err != nil {
		return nil, err
	}
	if kept != nil && !kept.again && kept.stamp == stampOf(&st) {
		return kept, nil
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return &folder{stamp: stampOf(&st), reason: "is no folder"}, nil
	}
	var fd int
	err := ignoringEINTR(func() (err error) {
		fd, err = unix.Openat(stateFD, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		return err
	})
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		return &folder{stamp: stampOf(&st), reason: "is no folder", again: true}, nil
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	// Before what is in it: a change that comes while it is read tells later.
	if err := ignoringEINTR(func() error { return unix.Fstat(fd, &st) }); err != nil {
		return nil, err
	}
	out := &folder{stamp: stampOf(&st)}
	// In a folder that changed just now, or that says so of the future, another
	// change may leave the same times.
	out.again = r.now.Sub(time.Unix(0, out.stamp.ctime)) < settled
	current, err := r.readlink(fd, "current")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		out.reason = "has no link current"
		return out, nil
	case errors.Is(err, errNoLink):
		out.reason = "has a current that is no link"
		return out, nil
	case err != nil:
		return nil, err
	}
	d := &Definition{Name: name, Dir: filepath.Join(dir, name), Unavailable: map[string]string{}}
	if transient := r.runner(d, current); transient {
		out.again = true
	}
	if transient := r.config(d, fd, current); transient {
		out.again = true
	}
	if transient := r.provenance(d, fd); transient {
		out.again = true
	}
	out.def = d
	return out, nil
}

// errNoLink is a file that should be a link.
var errNoLink = errors.New("is no link")

func (r *reader) readlink(fd int, name string) (string, error) {
	var n int
	err := ignoringEINTR(func() (err error) {
		n, err = unix.Readlinkat(fd, name, r.link[:])
		return err
	})
	switch {
	case errors.Is(err, unix.EINVAL):
		return "", errNoLink
	case err != nil:
		return "", err
	case n == len(r.link):
		return "", errors.New("is too long")
	}
	return string(r.link[:n]), nil
}

// storePath is the name of the store path that a link leads to.
func (r *reader) storePath(link string) (string, bool) {
	name, ok := inStore(r.storeDir, strings.TrimRight(link, "/"))
	return name, ok && name != "" && !strings.Contains(name, "/") && name != "." && name != ".."
}

// outside is the reason for what is not known because of a link.
func (r *reader) outside(link string) string {
	return link + " does not lead to a path of " + r.storeDir
}

// runner tells what the link current and the runner behind it say. transient
// means that the same link may tell more another time.
func (r *reader) runner(d *Definition, current string) (transient bool) {
	fields := func(reason string) {
		for _, f := range []string{"hypervisor", "host_name", "vsock_cid"} {
			d.Unavailable[f] = reason
		}
	}
	path, ok := r.storePath(current)
	if !ok {
		fields(r.outside("current"))
		return false
	}
	if r.store == nil && r.storeErr == nil {
		r.store, r.storeErr = openStore(r.storeDir)
	}
	err := r.storeErr
	if err == nil {
		_, err = r.store.root.Lstat(path)
	}
	// A runner in the store never changes, unless it is not there yet.
	transient = err != nil
	word := func(name string) (string, error) {
		if err != nil {
			return "", unwrapPath(err)
		}
		text, err := r.store.word(path + "/share/microvm/" + name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			transient = true
		}
		return text, err
	}

	told, toldErr := word("hypervisor")
	if toldErr == nil && (!validName(told) || len(told) > 64) {
		told, toldErr = "", errors.New("is no name of a hypervisor")
	}
	hypervisor, hostName, splitErr := splitRunner(path, told)
	if told != "" {
		hypervisor = told
	}
	switch {
	case hypervisor != "":
		d.Hypervisor = hypervisor
	case toldErr != nil && !errors.Is(toldErr, fs.ErrNotExist):
		d.Unavailable["hypervisor"] = fmt.Sprintf("share/microvm/hypervisor: %v", toldErr)
	default:
		d.Unavailable["hypervisor"] = splitErr.Error()
	}
	if d.HostName = hostName; hostName == "" {
		d.Unavailable["host_name"] = splitErr.Error()
	}

	cid, cidErr := word("vsock-cid")
	switch {
	case cidErr == nil:
		if d.VsockCID, cidErr = parseCID(cid); cidErr != nil {
			d.Unavailable["vsock_cid"] = "share/microvm/vsock-cid: " + cidErr.Error()
		}
	case err != nil:
		d.Unavailable["vsock_cid"] = fmt.Sprintf("cannot read the runner: %v", unwrapPath(err))
	case !errors.Is(cidErr, fs.ErrNotExist):
		d.Unavailable["vsock_cid"] = fmt.Sprintf("share/microvm/vsock-cid: %v", cidErr)
	case toldErr != nil:
		// The two files came together.
		d.Unavailable["vsock_cid"] = "the runner does not tell it, being older than March 2026"
	}
	return transient
}

// config compares what the VM was started with to what it would be started with.
func (r *reader) config(d *Definition, fd int, current string) (transient bool) {
	booted, err := r.readlink(fd, "booted")
	is, isOK := r.storePath(current)
	was, wasOK := r.storePath(booted)
	switch {
	case err == nil && !isOK:
		// Elsewhere what is behind an unchanged link may change.
		d.Unavailable["config"] = r.outside("current")
	case err == nil && !wasOK:
		d.Unavailable["config"] = r.outside("booted")
	case err == nil && was == is:
		d.Config = blixard.ConfigCurrent
	case err == nil:
		d.Config = blixard.ConfigStale
	case errors.Is(err, fs.ErrNotExist):
		d.Unavailable["config"] = "the VM is not booted"
	default:
		d.Unavailable["config"] = fmt.Sprintf("booted: %v", err)
		return !errors.Is(err, errNoLink)
	}
	return false
}

// provenance tells how the VM came to the host by what was left in its folder.
func (r *reader) provenance(d *Definition, fd int) (transient bool) {
	for _, trace := range []struct {
		name string
		mode uint32
		is   blixard.Provenance
	}{
		{"toplevel", unix.S_IFLNK, blixard.ProvenanceDeclared},
		{"flake", unix.S_IFREG, blixard.ProvenanceImperative},
		{"old", unix.S_IFLNK, blixard.ProvenanceDeployed},
	} {
		var st unix.Stat_t
		err := ignoringEINTR(func() error { return unix.Fstatat(fd, trace.name, &st, unix.AT_SYMLINK_NOFOLLOW) })
		switch {
		case err == nil && st.Mode&unix.S_IFMT == trace.mode:
			d.Provenance = trace.is
			return false
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			d.Unavailable["provenance"] = fmt.Sprintf("%s: %v", trace.name, err)
			return true
		}
	}
	d.Unavailable["provenance"] = "the folder holds no toplevel, flake or old"
	return false
}

// ignoringEINTR repeats a system call that a signal interrupted.
func ignoringEINTR(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
