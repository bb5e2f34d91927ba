package main

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	// diskTimeout bounds the wait for the disk to appear.
	diskTimeout = 10 * time.Second
	sysroot     = "/sysroot"
	agentPath   = "/run/lab/agent"
	// machineAddr is the address that QEMU's user network forwards to.
	machineAddr = "10.0.2.15/24"
)

// agentUnit lives as long as the machine: it conflicts with no target, so that a
// test can look into a machine that hangs in its shutdown.
const agentUnit = `[Unit]
Description=Lab agent
DefaultDependencies=no

[Service]
ExecStart=` + agentPath + ` agent
Restart=always
RestartSec=100ms
KillMode=process
OOMScoreAdjust=-1000
`

// idleUnits cost seconds of a boot without KVM and serve nothing here.
var idleUnits = []string{
	"e2scrub_reap.service", "getty.target", "modprobe@configfs.service", "modprobe@drm.service", "modprobe@efi_pstore.service",
	"modprobe@fuse.service", "modprobe@loop.service", "modprobe@dm_mod.service", "systemd-binfmt.service", "systemd-pstore.service",
	"systemd-rfkill.service", "systemd-update-utmp.service", "systemd-update-utmp-runlevel.service", "systemd-network-generator.service",
	"systemd-udev-trigger.service", "systemd-udev-settle.service", "serial-getty@ttyS0.service", "sys-kernel-debug.mount",
	"sys-kernel-tracing.mount", "dev-hugepages.mount", "dev-mqueue.mount",
}

// runStage makes the machine's disk the root and becomes its systemd. What the
// lab adds goes to /run: the disk stays what the root file system is.
func runStage() error {
	if err := setUpLink("lo", netip.MustParsePrefix("127.0.0.1/8")); err != nil {
		return err
	}
	if err := setUpLink("eth0", netip.MustParsePrefix(machineAddr)); err != nil {
		return err
	}
	if err := mountDisk(); err != nil {
		return err
	}
	if err := putMachineID(); err != nil {
		return err
	}
	if err := fillRun(); err != nil {
		return err
	}
	for _, at := range []string{"/proc", "/sys", "/dev"} {
		if err := syscall.Mount(at, sysroot+at, "", syscall.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", at, err)
		}
	}
	// The initramfs stays in memory below the root for good: free what is big.
	if err := errors.Join(os.RemoveAll("/modules"), os.Remove("/init")); err != nil {
		return err
	}
	if err := os.Chdir(sysroot); err != nil {
		return err
	}
	if err := syscall.Mount(".", "/", "", syscall.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := syscall.Chroot("."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	return syscall.Exec("/lib/systemd/systemd", []string{"/lib/systemd/systemd"}, env)
}

func mountDisk() error {
	for deadline := time.Now().Add(diskTimeout); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(disk); err == nil {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no disk %s after %v", disk, diskTimeout)
		}
	}
	if err := os.Mkdir(sysroot, 0o755); err != nil {
		return err
	}
	if err := syscall.Mount(disk, sysroot, "ext4", syscall.MS_NOATIME, "noinit_itable"); err != nil {
		return fmt.Errorf("mount disk: %w", err)
	}
	return nil
}

// putMachineID gives a new disk an identity. Without one systemd would take the
// boot for the first of a new system and enable every unit it finds.
func putMachineID() error {
	path := sysroot + "/etc/machine-id"
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.WriteFile(path, []byte(newID()+"\n"), 0o444)
}

// newID is a random id as machines and boots have it: 32 hexadecimal digits.
func newID() string {
	id := make([]byte, 16)
	rand.Read(id)
	return hex.EncodeToString(id)
}

// fillRun puts the agent and what makes it start on the new root's /run.
func fillRun() error {
	run := sysroot + "/run"
	if err := syscall.Mount("tmpfs", run, "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	units := run + "/systemd/system"
	for _, dir := range []string{run + "/lab", units + "/sysinit.target.wants"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	self, err := os.ReadFile("/init")
	if err != nil {
		return err
	}
	if err := os.WriteFile(sysroot+agentPath, self, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(units+"/lab-agent.service", []byte(agentUnit), 0o644); err != nil {
		return err
	}
	if err := os.Symlink("../lab-agent.service", units+"/sysinit.target.wants/lab-agent.service"); err != nil {
		return err
	}
	for _, unit := range idleUnits {
		if err := os.Symlink("/dev/null", filepath.Join(units, unit)); err != nil {
			return err
		}
	}
	return nil
}
