// Command hostinit is the lab's helper outside the test process. The lab embeds
// this file, builds it once into its cache and runs it in one of four modes:
//
//	hostinit init             as PID 1 of fresh namespaces: mounts the host's
//	                          file systems as told on standard input and
//	                          becomes systemd
//	hostinit keep DIR         waits until standard input ends, that is until the
//	                          process that opened the lab closed it or died, then
//	                          sweeps DIR
//	hostinit sweep DIR        kills what a lab left and removes its folder
//	hostinit hold             keeps a new systemd scope alive until standard
//	                          input ends, by when the keeper is in it
//
// It uses the standard library only, so that one file is all there is to build.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// sweepTimeout bounds the wait for killed processes to be gone.
const sweepTimeout = 30 * time.Second

// Spec is what init reads from standard input; the lab has its twin in host.go.
type Spec struct {
	Name   string   // host name
	Root   string   // empty folder on which the root is mounted
	Lower  string   // the shared root file system
	Upper  string   // what this host wrote
	Work   string   // overlayfs's work folder
	BootID string   // file that holds this boot's id
	Hosts  string   // file that becomes /etc/hosts
	Notify string   // folder with the socket that hears READY=1
	Tmp    string   // size of /tmp and /dev/shm in bytes, as tmpfs reads it
	Devs   []string // character devices under /dev to have, where the machine has them
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "hostinit:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 1 && args[0] == "init":
		return runInit()
	case len(args) == 2 && args[0] == "keep":
		return keep(args[1])
	case len(args) == 2 && args[0] == "sweep":
		return sweep(args[1])
	case len(args) == 1 && args[0] == "hold":
		return hold()
	}
	return errors.New("a helper of the lab: not for use by hand")
}

// runInit turns this process into the host's systemd. It returns only with an
// error.
func runInit() error {
	// Namespaces belong to threads: all of it happens on the one that execs.
	runtime.LockOSThread()
	var s Spec
	if err := json.NewDecoder(os.Stdin).Decode(&s); err != nil {
		return fmt.Errorf("read spec: %w", err)
	}
	syscall.Umask(0o022)
	// As the kernel gives it to PID 1 of a machine, with the room that systemd
	// and dbus-daemon make of it: not what Go's runtime or the caller set.
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("read limit of open files: %w", err)
	}
	limit.Cur = min(1024, limit.Max)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("set limit of open files: %w", err)
	}
	// The parent put this process into the host's cgroup: from here on that is
	// the root of the tree.
	if err := syscall.Unshare(syscall.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("unshare cgroup namespace: %w", err)
	}
	if err := syscall.Sethostname([]byte(s.Name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := mountAll(s); err != nil {
		return err
	}
	if err := os.Chdir(s.Root); err != nil {
		return err
	}
	// The new root over the old one, then the old one away: needs no folder.
	if err := syscall.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot root: %w", err)
	}
	if err := syscall.Unmount(".", syscall.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount old root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	// As systemd has it where it is the machine's: services see what is mounted
	// later, such as users' /run/user folders.
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts: %w", err)
	}
	null, err := syscall.Open("/dev/null", syscall.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open /dev/null: %w", err)
	}
	if err := syscall.Dup3(null, 0, 0); err != nil {
		return fmt.Errorf("close standard input: %w", err)
	}
	env := []string{
		"container=blixard-lab",
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin",
		"NOTIFY_SOCKET=/run/host/notify/socket",
	}
	argv := []string{"/lib/systemd/systemd", "--log-target=journal", "--show-status=no"}
	return fmt.Errorf("exec %s: %w", argv[0], syscall.Exec(argv[0], argv, env))
}

// mountAll builds the host's tree under s.Root.
func mountAll(s Spec) error {
	const safe = syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC
	at := func(p string) string { return filepath.Join(s.Root, p) }
	var failed error
	mount := func(source, target, kind string, flags uintptr, data string) {
		if failed != nil {
			return
		}
		if err := syscall.Mount(source, target, kind, flags, data); err != nil {
			failed = fmt.Errorf("mount %s on %s: %w", source, target, err)
		}
	}
	bind := func(source, target string) { mount(source, target, "", syscall.MS_BIND, "") }
	readOnly := func(p string) {
		bind(at(p), at(p))
		mount("", at(p), "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY|safe, "")
	}
	mkdir := func(p string) {
		if failed == nil {
			failed = os.MkdirAll(at(p), 0o755)
		}
	}

	mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, "")
	mount("overlay", s.Root, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,index=off,metacopy=off", s.Lower, s.Upper, s.Work))
	mount("proc", at("proc"), "proc", safe, "")
	bind(s.BootID, at("proc/sys/kernel/random/boot_id"))
	// The kernel's settings are the machine's, not this host's; those of the
	// network namespace are its own.
	bind(at("proc/sys/net"), at("proc/sys/net"))
	mount(at("proc/sys"), at("proc/sys"), "", syscall.MS_BIND|syscall.MS_REC, "")
	mount("", at("proc/sys"), "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY|safe, "")
	if _, err := os.Stat(at("proc/sysrq-trigger")); err == nil {
		readOnly("proc/sysrq-trigger")
	}
	mkdir("run")
	mount("tmpfs", at("run"), "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, "mode=755")
	mount("sysfs", at("sys"), "sysfs", safe|syscall.MS_RDONLY, "")
	mount("cgroup2", at("sys/fs/cgroup"), "cgroup2", safe, "")
	mount("tmpfs", at("tmp"), "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, "mode=1777,size="+s.Tmp)
	mount("tmpfs", at("dev"), "tmpfs", syscall.MS_NOSUID, "mode=755")
	mkdir("dev/pts")
	mkdir("dev/shm")
	mount("devpts", at("dev/pts"), "devpts", syscall.MS_NOSUID|syscall.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5")
	mount("tmpfs", at("dev/shm"), "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, "mode=1777,size="+s.Tmp)
	for _, d := range s.Devs {
		var st syscall.Stat_t
		if err := syscall.Stat(filepath.Join("/dev", d), &st); err != nil || st.Mode&syscall.S_IFMT != syscall.S_IFCHR {
			continue
		}
		// Nodes of its own, for all: the machine's groups are not the host's.
		mkdir(filepath.Dir(filepath.Join("dev", d)))
		node := at(filepath.Join("dev", d))
		if failed == nil {
			failed = errors.Join(syscall.Mknod(node, syscall.S_IFCHR|0o666, int(st.Rdev)), os.Chmod(node, 0o666))
		}
	}
	for name, target := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0",
		"stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if failed == nil {
			failed = os.Symlink(target, at(filepath.Join("dev", name)))
		}
	}
	touch(at("etc/hosts"), &failed)
	bind(s.Hosts, at("etc/hosts"))
	mkdir("run/host/notify")
	bind(s.Notify, at("run/host/notify"))
	return failed
}

func touch(path string, failed *error) {
	if *failed != nil {
		return
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		*failed = err
		return
	}
	*failed = f.Close()
}

// keep outlives the process that opened the lab, however that ends.
func keep(dir string) error {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE)
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return fmt.Errorf("wait for the lab: %w", err)
	}
	return sweep(dir)
}

// hold says that it runs, and so that its scope is up, and waits.
func hold() error {
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT)
	fmt.Println("ok")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// sweep removes the processes, cgroups and files of the lab in dir, in this
// order: nothing that lives can write into a folder being removed. What is gone
// already is no error.
func sweep(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "lab")); err != nil {
		return fmt.Errorf("%s is no lab's folder: %w", dir, err)
	}
	cgroups, err := os.ReadFile(filepath.Join(dir, "cgroup"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var errs []error
	for cgroup := range strings.Lines(string(cgroups)) {
		errs = append(errs, sweepCgroup(strings.TrimSpace(cgroup)))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	// The marker goes last, so that a sweep cut short can be done again.
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != "lab" && e.Name() != "cgroup" {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// sweepCgroup kills what is in the cgroup and removes it.
func sweepCgroup(path string) error {
	if !strings.HasPrefix(filepath.Base(path), "blixard-lab-") {
		return fmt.Errorf("%s is no lab's cgroup", path)
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	events, err := os.Open(filepath.Join(path, "cgroup.events"))
	if err != nil {
		return err
	}
	defer events.Close()
	if err := os.WriteFile(filepath.Join(path, "cgroup.kill"), []byte("1"), 0); err != nil {
		return fmt.Errorf("kill %s: %w", path, err)
	}
	for deadline := time.Now().Add(sweepTimeout); ; {
		text := make([]byte, 4096)
		n, err := events.ReadAt(text, 0)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if strings.Contains(string(text[:n]), "populated 0") {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes in %s survived a kill for %v", path, sweepTimeout)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return removeCgroup(path)
}

// removeCgroup removes a cgroup and those below it, deepest first.
func removeCgroup(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(path, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
