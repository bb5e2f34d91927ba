package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// toolPackages maps each command the lab runs to the Debian package that has it.
// All else (ip, nft, systemctl) is run from the hosts' own root file system.
var toolPackages = map[string]string{
	"mmdebstrap":         "mmdebstrap",
	"nsenter":            "util-linux",
	"qemu-system-x86_64": "qemu-system-x86",
}

// keyringPackage lets mmdebstrap check Debian's signatures on a machine that is
// no Debian.
const keyringPackage = "debian-archive-keyring"

// missingTools are the packages that bring those of the commands that are not on
// the PATH, sorted.
func missingTools(commands ...string) []string {
	var packages []string
	for _, c := range commands {
		if _, err := exec.LookPath(c); err != nil {
			packages = append(packages, toolPackages[c])
		}
	}
	if _, err := os.Stat("/usr/share/keyrings/debian-archive-keyring.gpg"); err != nil && slices.Contains(commands, "mmdebstrap") {
		packages = append(packages, keyringPackage)
	}
	slices.Sort(packages)
	return slices.Compact(packages)
}

func missingError(packages []string) error {
	return fmt.Errorf("missing tools; type: apt-get install -y --no-install-recommends %s", strings.Join(packages, " "))
}

// Check tells whether this machine can run hosts, or with what it has can make
// what is missing. The error names what to type.
func Check() error {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return fmt.Errorf("the lab needs linux/amd64, this is %s/%s", runtime.GOOS, runtime.GOARCH)
	}
	if os.Geteuid() != 0 {
		return errors.New("the lab's hosts need root; type: sudo -E env PATH=$PATH make test")
	}
	tools := []string{"nsenter"}
	if !haveRootFS() {
		tools = append(tools, "mmdebstrap")
	}
	if missing := missingTools(tools...); len(missing) > 0 {
		return missingError(missing)
	}
	if _, err := cgroupMount(); err != nil {
		return err
	}
	return nil
}

// Setup brings a Debian machine to where labs start at once: it installs missing
// packages and fills the cache. It needs root and tells progress in words, one
// line a step. Doing it again costs a few milliseconds.
func Setup(ctx context.Context, progress io.Writer) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("set up the lab: needs root; type: sudo -E env PATH=$PATH go run ./lab/cmd/lab setup")
	}
	var all []string
	for c := range toolPackages {
		all = append(all, c)
	}
	if missing := missingTools(all...); len(missing) > 0 {
		if err := install(ctx, missing, progress); err != nil {
			return err
		}
	}
	if err := Check(); err != nil {
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
	return root.Close()
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
		cmd.WaitDelay = 10 * time.Second
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w: %s", args[0], err, tail(string(out), 20))
		}
	}
	return nil
}
