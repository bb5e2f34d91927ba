package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// settle makes this boot the machine's own: name, clock, and where it goes on
// from a snapshot that others go on from too, random numbers and ids.
func settle(req request) error {
	if err := setTime(req.Time); err != nil {
		return err
	}
	if err := syscall.Sethostname([]byte(req.Name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := os.WriteFile("/etc/hostname", []byte(req.Name+"\n"), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile("/etc/hosts", []byte("127.0.0.1\tlocalhost\n127.0.1.1\t"+req.Name+"\n"), 0o644); err != nil {
		return err
	}
	if !req.Resumed {
		return nil
	}
	if err := seed(req.Seed); err != nil {
		return fmt.Errorf("seed random numbers: %w", err)
	}
	if err := os.Remove("/etc/machine-id"); err != nil {
		return err
	}
	if err := os.WriteFile("/etc/machine-id", []byte(req.MachineID+"\n"), 0o444); err != nil {
		return err
	}
	if err := newBootID(); err != nil {
		return fmt.Errorf("change boot id: %w", err)
	}
	// The journal holds both ids from its start on.
	if out, err := exec.Command("systemctl", "restart", "systemd-journald.service").CombinedOutput(); err != nil {
		return fmt.Errorf("restart journald: %w: %s", err, out)
	}
	return nil
}

func setTime(t time.Time) error {
	if t.IsZero() {
		return nil
	}
	tv := syscall.NsecToTimeval(t.UnixNano())
	if err := syscall.Settimeofday(&tv); err != nil {
		return fmt.Errorf("set clock: %w", err)
	}
	return nil
}

// seed mixes fresh bytes into the kernel's random numbers, credits them, and
// makes it use them at once: all machines of one snapshot have the same state.
func seed(data []byte) error {
	const addEntropy, reseed = 0x40085203, 0x5207
	f, err := os.OpenFile("/dev/urandom", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if len(data) == 0 {
		return errors.New("no seed")
	}
	// struct rand_pool_info: bits of entropy, bytes of data, data.
	info := binary.NativeEndian.AppendUint32(nil, uint32(8*len(data)))
	info = binary.NativeEndian.AppendUint32(info, uint32(len(data)))
	if err := ioctl(f.Fd(), addEntropy, append(info, data...)); err != nil {
		return err
	}
	return ioctl(f.Fd(), reseed, make([]byte, 8))
}

// newBootID puts a new id over the kernel's, which cannot be changed.
func newBootID() error {
	id := newID()
	text := fmt.Sprintf("%s-%s-%s-%s-%s\n", id[:8], id[8:12], id[12:16], id[16:20], id[20:])
	const path = "/run/lab/boot_id"
	if err := os.WriteFile(path, []byte(text), 0o444); err != nil {
		return err
	}
	return syscall.Mount(path, "/proc/sys/kernel/random/boot_id", "", syscall.MS_BIND, "")
}
