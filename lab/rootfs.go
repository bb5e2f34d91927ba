package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// rootfsSuite is the Debian release of the hosts: systemd 252.
const rootfsSuite = "bookworm"

// rootfsTimeout bounds the making of the root file system, downloads included.
const rootfsTimeout = 10 * time.Minute

// rootfsPackages is what hosts and machines have beyond Debian's minimum.
var rootfsPackages = []string{
	"systemd", "systemd-sysv", "dbus", "dbus-user-session", "libpam-systemd", "polkitd",
	"udev", "kmod", "iproute2", "iputils-ping", "nftables", "procps", "socat", "curl",
	"qemu-system-x86", "linux-image-cloud-amd64",
}

// rootfsLeaveOut is what nobody reads in a test.
var rootfsLeaveOut = []string{
	"/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*",
}

// rootfsMasked are the units that cost time at every start and serve nothing
// here.
var rootfsMasked = []string{
	"apt-daily.timer", "apt-daily-upgrade.timer", "console-getty.service", "dpkg-db-backup.timer",
	"e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer", "getty@tty1.service",
	"ldconfig.service", "systemd-firstboot.service", "systemd-hwdb-update.service",
	"systemd-machine-id-commit.service", "systemd-timesyncd.service", "systemd-update-done.service",
}

// RootFS is the root file system that hosts and machines share. It is made once
// from Debian's packages and kept in the cache; a change of its recipe makes a
// new one.
type RootFS struct {
	// Dir is the cache folder of this recipe. The tree itself is Dir/root; what
	// else is derived from it (kernels, disks) may be kept beside it.
	Dir string

	lock *fileLock
}

// Root is the tree. Nobody may write into it.
func (r *RootFS) Root() string { return filepath.Join(r.Dir, "root") }

// Close gives up the claim on the cached tree: it may be removed once its recipe
// has changed.
func (r *RootFS) Close() error { return r.lock.release() }

// OpenRootFS returns the root file system, made now if the cache does not hold
// it: that takes root, mmdebstrap, a Debian mirror and about a minute, and tells
// progress in words, one line a step.
func OpenRootFS(ctx context.Context, progress io.Writer) (*RootFS, error) {
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	args := rootfsArgs()
	name := rootfsName(args)
	dir, lock, err := cached(ctx, cache, name, func(ctx context.Context, dir string) error {
		return makeRootFS(ctx, args, filepath.Join(dir, "root"), progress)
	})
	if err != nil {
		return nil, fmt.Errorf("make the hosts' root file system: %w", err)
	}
	if err := forgetOld(cache, "rootfs-", name); err != nil {
		return nil, errors.Join(fmt.Errorf("remove old root file systems: %w", err), lock.release())
	}
	return &RootFS{Dir: dir, lock: lock}, nil
}

func rootfsName(args []string) string { return "rootfs-" + digest(args...) }

// haveRootFS tells whether the cache holds the root file system.
func haveRootFS() bool {
	cache, err := CacheDir()
	if err != nil {
		return false
	}
	_, err = os.Stat(filepath.Join(cache, rootfsName(rootfsArgs())))
	return err == nil
}

// rootfsArgs is the recipe: mmdebstrap's arguments but for the target.
func rootfsArgs() []string {
	args := []string{"--variant=minbase", "--format=directory", "--include=" + strings.Join(rootfsPackages, ",")}
	for _, p := range rootfsLeaveOut {
		args = append(args, "--dpkgopt=path-exclude="+p)
	}
	var masks strings.Builder
	masks.WriteString(`cd "$1/etc/systemd/system" && ln -sf /dev/null systemd-networkd-wait-online.service`)
	for _, u := range rootfsMasked {
		masks.WriteString(" && ln -sf /dev/null " + u)
	}
	return append(args,
		"--customize-hook="+masks.String(),
		// What microvm.nix's host module adds; udev brings the group kvm.
		`--customize-hook=chroot "$1" useradd --system --gid kvm --no-create-home --home-dir /var/empty --shell /usr/sbin/nologin microvm`,
		// Each host gets its own.
		`--customize-hook=rm -f "$1/etc/machine-id" "$1/etc/hostname" "$1/etc/hosts" && : > "$1/etc/hosts"`,
		rootfsSuite)
}

func makeRootFS(ctx context.Context, recipe []string, target string, progress io.Writer) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root: run as root, or with sudo -E")
	}
	if missing := missingTools("mmdebstrap"); len(missing) > 0 {
		return missingError(missing)
	}
	ctx, cancel := context.WithTimeout(ctx, rootfsTimeout)
	defer cancel()
	say(progress, "Making the hosts' root file system from Debian %s (once, about a minute)", rootfsSuite)
	started := time.Now()
	args := append(recipe[:len(recipe):len(recipe)], target)
	cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
	// A plain interrupt lets mmdebstrap unmount and remove what it began.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("mmdebstrap: %w: %s", err, tail(log.String(), 20))
	}
	say(progress, "Made it in %.0f s", time.Since(started).Seconds())
	return nil
}

func say(w io.Writer, format string, args ...any) {
	if w != nil {
		fmt.Fprintf(w, format+"\n", args...)
	}
}

// tail is the last n lines of s.
func tail(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
