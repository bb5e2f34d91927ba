package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unsafe"
)

// linkTimeout bounds the wait for a network interface to appear: its driver was
// loaded before.
const linkTimeout = 5 * time.Second

func ioctl(fd uintptr, request uintptr, arg []byte) error {
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, fd, request, uintptr(unsafe.Pointer(&arg[0]))); e != 0 {
		return e
	}
	return nil
}

// ifreq is struct ifreq of the kernel: a name and a union.
type ifreq [40]byte

func newIfreq(name string) *ifreq {
	var r ifreq
	copy(r[:syscall.IFNAMSIZ-1], name)
	return &r
}

// setAddress puts an IPv4 address as struct sockaddr_in.
func (r *ifreq) setAddress(ip [4]byte) {
	binary.NativeEndian.PutUint16(r[16:], syscall.AF_INET)
	copy(r[20:], ip[:])
}

// setUpLink gives the interface its address, if any, and sets it up. It waits
// for an interface whose driver is still at it.
func setUpLink(name string, prefix netip.Prefix) error {
	if err := awaitLink(name); err != nil {
		return err
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer syscall.Close(fd)
	if prefix.IsValid() {
		r := newIfreq(name)
		r.setAddress(prefix.Addr().As4())
		if err := ioctl(uintptr(fd), syscall.SIOCSIFADDR, r[:]); err != nil {
			return fmt.Errorf("set address of %s: %w", name, err)
		}
		r = newIfreq(name)
		r.setAddress([4]byte(net.CIDRMask(prefix.Bits(), 32)))
		if err := ioctl(uintptr(fd), syscall.SIOCSIFNETMASK, r[:]); err != nil {
			return fmt.Errorf("set netmask of %s: %w", name, err)
		}
	}
	r := newIfreq(name)
	if err := ioctl(uintptr(fd), syscall.SIOCGIFFLAGS, r[:]); err != nil {
		return fmt.Errorf("read flags of %s: %w", name, err)
	}
	flags := binary.NativeEndian.Uint16(r[16:])
	binary.NativeEndian.PutUint16(r[16:], flags|syscall.IFF_UP)
	if err := ioctl(uintptr(fd), syscall.SIOCSIFFLAGS, r[:]); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

func awaitLink(name string) error {
	for deadline := time.Now().Add(linkTimeout); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat("/sys/class/net/" + name); err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no interface %s after %v", name, linkTimeout)
		}
	}
}
