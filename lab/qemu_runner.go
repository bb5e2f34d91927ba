package lab

import (
	"context"
	"crypto/sha256"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"text/template"
)

//go:embed qemu/*.sh
var qemuScripts embed.FS

// GuestPort is the TCP port on which a real guest takes commands, a line each;
// guest/command.go lists them. The answer's last line begins with "ok" or
// "error:".
const GuestPort = 7777

// GuestReady is in the line that a real guest writes to its console, and so to
// its unit's journal, once it takes commands.
const GuestReady = "guest ready"

const (
	// guestMemoryMin is what a real guest needs to be ready, in MiB.
	guestMemoryMin = 96
	guestDiskMB    = 64
	guestDiskMBMax = 1 << 20
	labNetworkBits = 16
)

// GuestOptions say how a real guest is set up, beyond what its VM says.
type GuestOptions struct {
	// Addr is the guest's on the lab's network, see Host.GuestAddr. It needs a
	// tap. The zero value leaves the guest without one.
	Addr netip.Addr
	// DiskMB is the size of the guest's disk in MiB, sparse in the state
	// directory; default 64.
	DiskMB int
}

// GuestAddr is the address for the host's n-th guest, n from 1 to 250. No other
// host of the lab gives it out.
func (h *Host) GuestAddr(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 77, byte(h.index), byte(n)})
}

// QEMURunner returns a Runner for a real guest: QEMU with a kernel and the lab's
// guest program, which is ready about three seconds after its start where KVM
// works or not. It puts on the host, which may be off, what guests boot from.
// The VM needs at least 96 MiB of memory.
//
//	vm := lab.VM{Name: "web-1", HostName: "web-one", MemoryMB: 128, Taps: []string{"vm-web-1"}}
//	vm.Runner, err = h.QEMURunner(ctx, lab.GuestOptions{Addr: h.GuestAddr(1)})
//	err = h.AddVM(ctx, vm)
func (h *Host) QEMURunner(ctx context.Context, opts GuestOptions) (Runner, error) {
	data, err := h.putGuest(ctx)
	if err != nil {
		return nil, fmt.Errorf("put a real guest on %s: %w", h.name, err)
	}
	return func(vm VM) ([]File, error) { return qemuFiles(data, vm, opts) }, nil
}

// qemuData is what the scripts are filled in with.
type qemuData struct {
	HostName, Machine, Accel       string
	Kernel, Initramfs, CommandLine string
	MemoryMB, VCPUs, DiskMB        int
	Taps                           []qemuTap
}

type qemuTap struct{ ID, Name, MAC string }

// putGuest copies the initramfs to the host; the kernel is in its root file
// system.
func (h *Host) putGuest(ctx context.Context) (_ qemuData, err error) {
	boot, err := openBootFiles(ctx, h.lab.rootfs.Root(), h.lab.progress)
	if err != nil {
		return qemuData{}, err
	}
	defer func() { err = errors.Join(err, boot.Close()) }()
	accel, err := accelerator(ctx, boot, h.lab.progress)
	if err != nil {
		return qemuData{}, err
	}
	switch accel {
	case "kvm":
		// The host's user microvm may be kept from the device.
		accel = "kvm -accel tcg"
	case "tcg":
		// The default takes a gigabyte for translated code.
		accel = "tcg,tb-size=32"
	}
	initramfs := storePath("initrd-guest-"+boot.key) + "/initrd"
	if _, err := h.ReadFile(initramfs); errors.Is(err, fs.ErrNotExist) {
		data, err := os.ReadFile(boot.microVM)
		if err != nil {
			return qemuData{}, err
		}
		if err := h.WriteFile(initramfs, data, 0o444); err != nil {
			return qemuData{}, err
		}
	} else if err != nil {
		return qemuData{}, err
	}
	return qemuData{Machine: q35, Accel: accel, Kernel: "/boot/vmlinuz-" + boot.release, Initramfs: initramfs}, nil
}

// qemuFiles are microvm-run and microvm-shutdown of one VM.
func qemuFiles(data qemuData, vm VM, opts GuestOptions) ([]File, error) {
	if vm.Hypervisor != "qemu" {
		return nil, fmt.Errorf("the real guest runs in qemu, not in %s", vm.Hypervisor)
	}
	if vm.MemoryMB < guestMemoryMin {
		return nil, fmt.Errorf("a real guest needs %d MiB of memory, not %d", guestMemoryMin, vm.MemoryMB)
	}
	if opts.DiskMB == 0 {
		opts.DiskMB = guestDiskMB
	}
	if opts.DiskMB < 1 || opts.DiskMB > guestDiskMBMax {
		return nil, fmt.Errorf("disk of %d MiB: 1 to %d", opts.DiskMB, guestDiskMBMax)
	}
	line := kernelCommandLine + " lab.name=" + vm.HostName
	if opts.Addr.IsValid() {
		if len(vm.Taps) == 0 {
			return nil, errors.New("a guest with an address needs a tap")
		}
		line += fmt.Sprintf(" lab.addr=%s/%d", opts.Addr, labNetworkBits)
	}
	// Shell, QEMU, socat and the kernel each have marks of their own.
	for _, name := range append([]string{vm.HostName}, vm.Taps...) {
		if strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != "" {
			return nil, fmt.Errorf("name %q: only letters, digits and - _ . may be in a real guest's", name)
		}
	}
	data.HostName, data.CommandLine = vm.HostName, quote(line)
	data.MemoryMB, data.VCPUs, data.DiskMB = vm.MemoryMB, vm.VCPUs, opts.DiskMB
	for i, tap := range vm.Taps {
		// The name is unique on the host, the VM's address, if any, in the lab.
		sum := sha256.Sum256([]byte(tap + opts.Addr.String() + vm.build()))
		mac := net.HardwareAddr{0x02, sum[0], sum[1], sum[2], sum[3], sum[4]}
		data.Taps = append(data.Taps, qemuTap{fmt.Sprintf("net%d", i), tap, mac.String()})
	}
	var files []File
	for _, name := range []string{"microvm-run", "microvm-shutdown"} {
		if name == "microvm-shutdown" && vm.NoShutdown {
			continue
		}
		t, err := template.ParseFS(qemuScripts, "qemu/"+name+".sh")
		if err != nil {
			return nil, err
		}
		var text strings.Builder
		if err := t.Execute(&text, data); err != nil {
			return nil, err
		}
		files = append(files, File{Path: "bin/" + name, Data: []byte(text.String()), Mode: 0o555})
	}
	return files, nil
}
