package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	// closeTimeout bounds the end of a lab.
	closeTimeout = 45 * time.Second
	// openTimeout bounds New where the caller sets no deadline: it leaves room
	// for making the root file system.
	openTimeout = rootfsTimeout + time.Minute
	// maxHosts is how many hosts a lab's network has addresses for.
	maxHosts = 200
)

// Config says what a lab is to be.
type Config struct {
	// Progress hears, one line a step, what takes long. May be nil.
	Progress io.Writer
}

// Lab is a set of hosts on a network of their own, and of machines.
type Lab struct {
	id       string
	dir      string
	progress io.Writer
	helper   string
	locks    []*fileLock

	keeper     *exec.Cmd
	keeperPipe io.WriteCloser
	keeperLog  *bytes.Buffer

	// ready is held while the means for hosts are prepared.
	ready  sync.Mutex
	fabric *fabric
	rootfs *RootFS
	cgroup string // the lab's cgroup, absolute

	mu       sync.Mutex // guards what follows
	hosts    []*Host
	machines []*Machine
	closed   bool
}

// New opens a lab for a test. It fails the test, naming what to type, where root
// or a tool is missing. The lab ends with the test; if the test failed, the
// hosts' warnings are logged before.
func New(t testing.TB) *Lab {
	t.Helper()
	if err := Check(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), openTimeout)
	defer cancel()
	l, err := Open(ctx, Config{Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			l.explain(t)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := l.prepareHosts(ctx); err != nil {
		t.Fatal(err)
	}
	return l
}

// explain logs what the hosts and machines complained of.
func (l *Lab) explain(t testing.TB) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, h := range l.Hosts() {
		if h.Running() {
			t.Logf("host %s:\n%s", h.Name(), h.diagnose(ctx))
		}
	}
	l.mu.Lock()
	machines := slices.Clone(l.machines)
	l.mu.Unlock()
	for _, m := range machines {
		t.Logf("machine %s:\n%s", m.Name(), m.diagnose(ctx))
	}
}

// Open makes an empty lab, after removing what killed ones left behind. It takes
// no root yet: AddHost does, and prepares what hosts need, the root file system
// included (see Setup). Close it.
func Open(ctx context.Context, cfg Config) (_ *Lab, err error) {
	// What cannot be removed, a process that no kill ends for one, is no reason
	// not to begin.
	if err := Sweep(ctx); err != nil {
		say(cfg.Progress, "%v", err)
	}
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	l := &Lab{progress: cfg.Progress}
	path, lock, err := helper(ctx, cache)
	if err != nil {
		return nil, err
	}
	l.helper = path
	l.locks = append(l.locks, lock)
	if err := l.openDir(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open lab: %w", err), l.release())
	}
	return l, nil
}

// base is the folder of all labs of this user.
func base() (string, error) {
	dir := fmt.Sprintf("/var/tmp/blixard-lab-%d", os.Geteuid())
	if err := os.Mkdir(dir, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	// /var/tmp is everybody's: somebody else may have been first.
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return "", err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return "", fmt.Errorf("%s is not a folder that only you can write; remove it", dir)
	}
	return dir, nil
}

// openDir makes the lab's folder with its lock, and starts the keeper.
func (l *Lab) openDir(ctx context.Context) (err error) {
	root, err := base()
	if err != nil {
		return err
	}
	id := make([]byte, 4)
	rand.Read(id)
	l.id = hex.EncodeToString(id)
	l.dir = filepath.Join(root, l.id)

	// A sweep must not meet the folder before it is locked.
	guard, err := lockFile(ctx, root+"/lock", unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, guard.release()) }()
	if err := os.Mkdir(l.dir, 0o711); err != nil {
		return err
	}
	// The name is new and so is the file: this does not wait.
	lock, err := lockFile(ctx, l.dir+"/lab", unix.LOCK_EX)
	if err != nil {
		return err
	}
	l.locks = append(l.locks, lock)
	l.keeper = exec.Command(l.helper, "keep", l.dir)
	l.keeperLog = new(bytes.Buffer)
	l.keeper.Stderr = l.keeperLog
	l.keeper.ExtraFiles = []*os.File{lock.file}
	// Out of the terminal's reach: Ctrl-C is for the test.
	l.keeper.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if l.keeperPipe, err = l.keeper.StdinPipe(); err != nil {
		return err
	}
	if err := l.keeper.Start(); err != nil {
		l.keeper = nil
		return errors.Join(fmt.Errorf("start keeper: %w", err), os.RemoveAll(l.dir))
	}
	return nil
}

// prepareHosts readies once what all hosts share.
func (l *Lab) prepareHosts(ctx context.Context) error {
	l.ready.Lock()
	defer l.ready.Unlock()
	if l.fabric != nil {
		return nil
	}
	if err := Check(); err != nil {
		return err
	}
	if l.rootfs == nil {
		root, err := OpenRootFS(ctx, l.progress)
		if err != nil {
			return err
		}
		l.rootfs = root
	}
	if l.cgroup == "" {
		if err := l.makeCgroup(ctx); err != nil {
			return fmt.Errorf("make the lab's cgroup: %w", err)
		}
	}
	if err := os.WriteFile(filepath.Join(l.dir, "hosts"), []byte("127.0.0.1\tlocalhost\n"), 0o644); err != nil {
		return err
	}
	f, err := openFabric(l.rootfs.Root())
	if err != nil {
		return fmt.Errorf("make the lab's network: %w", err)
	}
	l.fabric = f
	return nil
}

// Dir is the lab's folder, removed by Close. Others may keep files in it.
func (l *Lab) Dir() string { return l.dir }

// AddHost adds a host that is off. Its files can be written at once. It needs
// root and prepares what hosts share if this is the first.
func (l *Lab) AddHost(name string) (*Host, error) {
	if err := checkHostName(name); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	if err := l.prepareHosts(ctx); err != nil {
		return nil, fmt.Errorf("add host %s: %w", name, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errors.New("add host: the lab is closed")
	}
	if slices.ContainsFunc(l.hosts, func(h *Host) bool { return h.name == name }) {
		return nil, fmt.Errorf("add host %s: it exists", name)
	}
	if len(l.hosts) == maxHosts {
		return nil, fmt.Errorf("add host %s: a lab has at most %d hosts", name, maxHosts)
	}
	h, err := newHost(l, name, len(l.hosts)+1)
	if err != nil {
		return nil, fmt.Errorf("add host %s: %w", name, err)
	}
	l.hosts = append(l.hosts, h)
	return h, nil
}

// Boot adds hosts and starts them side by side.
func (l *Lab) Boot(ctx context.Context, names ...string) ([]*Host, error) {
	var hosts []*Host
	group, ctx := errgroup.WithContext(ctx)
	for _, name := range names {
		h, err := l.AddHost(name)
		if err != nil {
			return nil, errors.Join(err, group.Wait())
		}
		hosts = append(hosts, h)
		group.Go(func() error { return h.Start(ctx) })
	}
	return hosts, group.Wait()
}

// Hosts are the lab's hosts, in the order they were added.
func (l *Lab) Hosts() []*Host {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.hosts)
}

// Close ends the hosts and machines as a power cut does and removes everything
// the lab made.
// Closing twice does nothing.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	hosts, machines := l.hosts, l.machines
	l.mu.Unlock()
	var group errgroup.Group
	for _, h := range hosts {
		group.Go(h.Crash)
	}
	for _, m := range machines {
		group.Go(m.Close)
	}
	err := group.Wait()
	return errors.Join(err, l.release())
}

// release gives back all but the hosts and machines. The keeper does the removing: it does so
// whether this process lives or not, so there is one way only.
func (l *Lab) release() error {
	l.ready.Lock()
	defer l.ready.Unlock()
	var errs []error
	if l.fabric != nil {
		errs = append(errs, l.fabric.close())
	}
	if l.keeper != nil {
		errs = append(errs, l.keeperPipe.Close(), l.waitKeeper())
	}
	if l.rootfs != nil {
		errs = append(errs, l.rootfs.Close())
	}
	for _, lock := range l.locks {
		errs = append(errs, lock.release())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close lab: %w", err)
	}
	return nil
}

func (l *Lab) waitKeeper() error {
	killer := time.AfterFunc(closeTimeout, func() {
		// Wait tells of the kill; one that came too late is none.
		_ = l.keeper.Process.Kill()
	})
	defer killer.Stop()
	if err := l.keeper.Wait(); err != nil {
		return fmt.Errorf("keeper: %w: %s", err, strings.TrimSpace(l.keeperLog.String()))
	}
	return nil
}

// Sweep removes what labs of this user left whose process and keeper were both
// killed. Living labs are not touched.
func Sweep(ctx context.Context) (err error) {
	root, err := base()
	if err != nil {
		return err
	}
	guard, err := lockFile(ctx, root+"/lock", unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, guard.release()) }()
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if err := sweepOne(ctx, filepath.Join(root, e.Name())); err != nil {
			return fmt.Errorf("sweep up after a killed lab: %w", err)
		}
	}
	return nil
}

func sweepOne(ctx context.Context, dir string) (err error) {
	// Nobody makes a folder while the caller holds the lock on all of them: one
	// without its lock file is being removed, or its removal was cut short.
	if _, err := os.Stat(dir + "/lab"); errors.Is(err, fs.ErrNotExist) {
		_ = os.Remove(dir)
		return nil
	}
	lock, ok, err := tryLockFile(dir+"/lab", unix.LOCK_EX)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || !ok {
		return err
	}
	defer func() { err = errors.Join(err, lock.release()) }()
	cache, err := CacheDir()
	if err != nil {
		return err
	}
	path, use, err := helper(ctx, cache)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, use.release()) }()
	if out, err := exec.CommandContext(ctx, path, "sweep", dir).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// hostAddr is the address of the host with that index, from 1.
func hostAddr(index int) netip.Addr { return netip.AddrFrom4([4]byte{10, 77, 0, byte(10 + index)}) }

// checkHostName holds names to what a file name, a host name and a unit name all
// allow.
func checkHostName(name string) error {
	if name == "" || len(name) > 40 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || name[0] == '-' {
		return fmt.Errorf("host name %q: only a-z, 0-9 and -, at most 40", name)
	}
	return nil
}
