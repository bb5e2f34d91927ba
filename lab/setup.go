package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// toolPackages maps each command the lab runs to the Debian package that has it.
// All else (ip, nft, systemctl) is run from the hosts' own root file system.
var toolPackages = map[string]string{
	"mke2fs":     "e2fsprogs",
	"mmdebstrap": "mmdebstrap",
	"newuidmap":  "uidmap",
	"nsenter":    "util-linux",
	qemuProgram:  "qemu-system-x86",
}

// hostTools and machineTools are the commands that making and running hosts with
// real guests takes, and machines.
var (
	hostTools    = []string{"mmdebstrap", "nsenter", qemuProgram}
	machineTools = []string{"mmdebstrap", "mke2fs", qemuProgram}
)

// keyringPackage lets mmdebstrap check Debian's signatures on a machine that is
// no Debian.
const keyringPackage = "debian-archive-keyring"

// findTool is where the command is: an ordinary user's PATH seldom has the
// folders of all.
func findTool(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if found, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return found, nil
		}
	}
	return "", err
}

// missingTools are the packages that bring those of the commands that are not
// there, sorted. Without root mmdebstrap needs one more command.
func missingTools(commands ...string) []string {
	var packages []string
	if slices.Contains(commands, "mmdebstrap") {
		if os.Geteuid() != 0 {
			commands = append(slices.Clone(commands), "newuidmap")
		}
		if _, err := os.Stat("/usr/share/keyrings/debian-archive-keyring.gpg"); err != nil {
			packages = append(packages, keyringPackage)
		}
	}
	for _, c := range commands {
		if _, err := findTool(c); err != nil {
			packages = append(packages, toolPackages[c])
		}
	}
	slices.Sort(packages)
	return slices.Compact(packages)
}

func missingError(packages []string) error {
	sudo := ""
	if os.Geteuid() != 0 {
		sudo = "sudo "
	}
	return fmt.Errorf("missing tools; type: %sapt-get install -y --no-install-recommends %s", sudo, strings.Join(packages, " "))
}

var errNoRoot = errors.New("hosts in namespaces need root")

// Refused tells why this user of this machine cannot have hosts, whatever else
// is installed: no root, no namespaces, no cgroup tree to write to. Machines
// need none of these.
func Refused() error {
	if err := checkPlatform(); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errNoRoot
	}
	mount, err := cgroupMount()
	if err != nil {
		return err
	}
	if err := unix.Access(mount, unix.W_OK); err != nil {
		return fmt.Errorf("hosts in namespaces need to write to %s: %w", mount, err)
	}
	cmd := exec.Command("unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup", "--fork", "mount", "-t", "tmpfs", "none", "/tmp")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("namespaces are refused here: %w (%s)", err, tail(string(out), 1))
	}
	return nil
}

func checkPlatform() error {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return fmt.Errorf("the lab needs linux/amd64, this is %s/%s", runtime.GOOS, runtime.GOARCH)
	}
	return nil
}

// Check tells whether this machine can run hosts, or with what it has can make
// what is missing. The error names what to type.
func Check() error {
	switch err := Refused(); {
	case errors.Is(err, errNoRoot):
		return fmt.Errorf("%w; type: sudo -E env PATH=$PATH make test", err)
	case err != nil:
		return err
	}
	tools := []string{"nsenter"}
	if !haveRootFS() {
		tools = append(tools, "mmdebstrap")
	}
	if missing := missingTools(tools...); len(missing) > 0 {
		return missingError(missing)
	}
	return nil
}

// Setup is SetupHosts and SetupMachines: all that tests need.
func Setup(ctx context.Context, progress io.Writer) error {
	if err := SetupHosts(ctx, progress); err != nil {
		return err
	}
	return SetupMachines(ctx, progress)
}

// SetupHosts brings a Debian machine to where hosts with real guests start at
// once: it installs missing packages and fills the cache. It needs root and tells
// progress in words, one line a step. Doing it again costs a few milliseconds.
func SetupHosts(ctx context.Context, progress io.Writer) error {
	if err := setupHosts(ctx, progress); err != nil {
		return fmt.Errorf("set up the lab's hosts: %w", err)
	}
	return nil
}

func setupHosts(ctx context.Context, progress io.Writer) (err error) {
	switch err := Refused(); {
	case errors.Is(err, errNoRoot):
		return fmt.Errorf("%w; type: sudo -E env PATH=$PATH go run ./lab/cmd/lab setup", err)
	case err != nil:
		return err
	}
	if err := bring(ctx, progress, hostTools); err != nil {
		return err
	}
	cache, err := CacheDir()
	if err != nil {
		return err
	}
	_, lock, err := helper(ctx, cache)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.release()) }()
	root, err := OpenRootFS(ctx, progress)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	boot, err := openBootFiles(ctx, root.Root(), progress)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, boot.Close()) }()
	_, err = accelerator(ctx, boot, progress)
	return err
}

// SetupMachines is SetupHosts for machines. It needs no root; without it missing
// packages are an error that names what to type.
func SetupMachines(ctx context.Context, progress io.Writer) error {
	if err := setupMachines(ctx, progress); err != nil {
		return fmt.Errorf("set up the lab's machines: %w", err)
	}
	return nil
}

func setupMachines(ctx context.Context, progress io.Writer) (err error) {
	if err := checkPlatform(); err != nil {
		return err
	}
	if err := bring(ctx, progress, machineTools); err != nil {
		return err
	}
	base, err := openMachineBase(ctx, progress)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, base.Close()) }()
	accel, err := accelerator(ctx, base.boot, progress)
	if err != nil {
		return err
	}
	snap, err := openSnapshot(ctx, base, accel, progress)
	if err != nil {
		return err
	}
	return snap.lock.release()
}

// bring installs what is missing of the commands, if this is root.
func bring(ctx context.Context, progress io.Writer, commands []string) error {
	missing := missingTools(commands...)
	switch {
	case len(missing) == 0:
		return nil
	case os.Geteuid() != 0:
		return missingError(missing)
	}
	return install(ctx, missing, progress)
}

// install runs apt-get for the packages.
func install(ctx context.Context, packages []string, progress io.Writer) error {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("this machine has no apt-get; install by its own means: %s", strings.Join(packages, " "))
	}
	say(progress, "Installing %s", strings.Join(packages, ", "))
	ctx, cancel := context.WithTimeout(ctx, rootfsTimeout)
	defer cancel()
	for _, args := range [][]string{
		{"update"},
		append([]string{"install", "-y", "--no-install-recommends"}, packages...),
	} {
		cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-qq", "-o", "DPkg::Lock::Timeout=120"}, args...)...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8")
		// Out of the terminal's reach, so that Ctrl-C interrupts apt-get, which
		// then ends between two packages, and not dpkg in the middle of one.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
		cmd.WaitDelay = time.Minute
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w: %s", args[0], errors.Join(context.Cause(ctx), err), tail(string(out), 20))
		}
	}
	return nil
}
