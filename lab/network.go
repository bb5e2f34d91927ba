package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// dialTimeout bounds a Dial whose context has no deadline.
const dialTimeout = 10 * time.Second

// cutTimeout bounds one change of the switch.
const cutTimeout = 10 * time.Second

// fabricRules is the switch's filter: frames between two ports named in cut, or
// from or to a port in alone, vanish.
const fabricRules = `table bridge lab {
	set cut { type ifname . ifname; }
	set alone { type ifname; }
	chain forward {
		type filter hook forward priority 0;
		iifname . oifname @cut drop;
		iifname @alone drop;
		oifname @alone drop;
	}
}
`

// fabric is the lab's network: a namespace with a bridge whose ports are the
// hosts. The namespace has no name: it lives as long as the handle to it.
type fabric struct {
	root string // root file system with nft in it
	ns   netns.NsHandle
	file *os.File // the same namespace, to hand to a child
	link *netlink.Handle

	mu sync.Mutex // held while the switch is changed
}

func openFabric(root string) (*fabric, error) {
	ns, err := newNetNS()
	if err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	f := &fabric{root: root, ns: ns, file: os.NewFile(uintptr(ns), "netns")}
	if f.link, err = netlink.NewHandleAt(ns); err != nil {
		return nil, errors.Join(err, f.file.Close())
	}
	if err := f.setUp(); err != nil {
		return nil, errors.Join(err, f.close())
	}
	return f, nil
}

func (f *fabric) setUp() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "br0"
	if err := f.link.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("add bridge: %w", err)
	}
	if err := f.up("lo"); err != nil {
		return err
	}
	if err := f.up("br0"); err != nil {
		return err
	}
	return f.nft(fabricRules)
}

func (f *fabric) up(name string) error { return linkUp(f.link, name) }

func linkUp(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

func (f *fabric) close() error {
	f.link.Close()
	return f.file.Close()
}

// nft feeds rules to the root file system's nft, run in the fabric.
func (f *fabric) nft(rules string) error {
	ctx, cancel := context.WithTimeout(context.Background(), cutTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", "--net=/proc/self/fd/3", "chroot", f.root, "/usr/sbin/nft", "-f", "-")
	cmd.ExtraFiles = []*os.File{f.file}
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("change the switch: %w: %s", err, out)
	}
	return nil
}

// plug gives the host whose PID 1 is pid its network: eth0, a port of the
// lab's switch, in the bridge vmbr, which has the address.
func (f *fabric) plug(h *Host, pid int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = h.port()
	// The last host of that name is dead, but its namespace may still be on the
	// way out.
	if old, err := f.link.LinkByName(attrs.Name); err == nil {
		if err := f.link.LinkDel(old); err != nil {
			return fmt.Errorf("unplug: %w", err)
		}
	}
	if err := f.link.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsPid(pid),
		PeerHardwareAddr: net.HardwareAddr{0x02, 0x1a, 0xb0, 0, 0, byte(h.index)},
	}); err != nil {
		return fmt.Errorf("plug in: %w", err)
	}
	bridge, err := f.link.LinkByName("br0")
	if err != nil {
		return err
	}
	port, err := f.link.LinkByName(attrs.Name)
	if err != nil {
		return err
	}
	if err := f.link.LinkSetMaster(port, bridge); err != nil {
		return fmt.Errorf("plug in: %w", err)
	}
	if err := f.link.LinkSetUp(port); err != nil {
		return fmt.Errorf("plug in: %w", err)
	}
	return h.setUpNetwork(pid)
}

// setUpNetwork makes the links and the address inside the host.
func (h *Host) setUpNetwork(pid int) error {
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return fmt.Errorf("open the host's network namespace: %w", err)
	}
	defer ns.Close()
	in, err := netlink.NewHandleAt(ns)
	if err != nil {
		return err
	}
	defer in.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "vmbr"
	attrs.HardwareAddr = net.HardwareAddr{0x02, 0x1a, 0xb0, 0, 1, byte(h.index)}
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := in.LinkAdd(bridge); err != nil {
		return fmt.Errorf("add vmbr: %w", err)
	}
	eth, err := in.LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := in.LinkSetMaster(eth, bridge); err != nil {
		return err
	}
	if err := in.AddrAdd(bridge, &netlink.Addr{IPNet: &net.IPNet{IP: h.addr.AsSlice(), Mask: net.CIDRMask(16, 32)}}); err != nil {
		return fmt.Errorf("add address: %w", err)
	}
	for _, name := range []string{"lo", "eth0", "vmbr"} {
		if err := linkUp(in, name); err != nil {
			return err
		}
	}
	return nil
}

// Cut drops what a and b send each other, guests included, without a word.
func (l *Lab) Cut(a, b *Host) error {
	return l.fabric.change("add element bridge lab cut { %s . %s, %s . %s }\n", a.port(), b.port(), b.port(), a.port())
}

// CutOneWay drops what from sends to to; the other direction works.
func (l *Lab) CutOneWay(from, to *Host) error {
	return l.fabric.change("add element bridge lab cut { %s . %s }\n", from.port(), to.port())
}

// Isolate drops everything from and to the host. Exec and Dial still reach it.
func (l *Lab) Isolate(h *Host) error {
	return l.fabric.change("add element bridge lab alone { %s }\n", h.port())
}

// Heal ends all cuts and isolations of the lab.
func (l *Lab) Heal() error {
	return l.fabric.change("flush set bridge lab cut\nflush set bridge lab alone\n")
}

func (f *fabric) change(format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.nft(fmt.Sprintf(format, args...))
}

// Dial connects to the host from this process, as http.Transport's DialContext
// does. A "unix" address is a path on the host, whose peer sees uid 0; any other
// is dialled from the host's own network namespace, where 127.0.0.1 is the host.
// A host name in addr is looked up among the lab's hosts.
func (h *Host) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	pid, err := h.PID()
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: dialTimeout}
	if strings.HasPrefix(network, "unix") {
		return d.DialContext(ctx, network, fmt.Sprintf("/proc/%d/root%s", pid, addr))
	}
	name, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("dial from %s: %w", h.name, err)
	}
	if _, err := netip.ParseAddr(name); err != nil {
		ip, ok := h.lab.lookup(name)
		if !ok {
			return nil, fmt.Errorf("dial from %s: no host is named %q", h.name, name)
		}
		addr = net.JoinHostPort(ip.String(), port)
	}
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return nil, fmt.Errorf("dial from %s: %w", h.name, err)
	}
	defer ns.Close()
	var conn net.Conn
	err = inNetNS(ns, func() (err error) {
		// The dialer makes the socket of a literal address on this very thread.
		conn, err = d.DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// lookup finds a host's address by name.
func (l *Lab) lookup(name string) (netip.Addr, bool) {
	if name == "localhost" {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), true
	}
	for _, h := range l.Hosts() {
		if h.name == name {
			return h.addr, true
		}
	}
	return netip.Addr{}, false
}

// newNetNS makes a network namespace and returns the one handle to it.
func newNetNS() (netns.NsHandle, error) {
	made := netns.None()
	err := onThread(func() (err error) {
		made, err = netns.New()
		return err
	})
	return made, err
}

// inNetNS runs f on a thread in the namespace.
func inNetNS(ns netns.NsHandle, f func() error) error {
	return onThread(func() error {
		if err := netns.Set(ns); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// onThread runs f on a thread of its own, whose network namespace f may change.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		own, err := netns.Get()
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("open own network namespace: %w", err)
			return
		}
		defer own.Close()
		err = f()
		// A thread that cannot get back ends here, locked, with its goroutine:
		// nobody else must run on it.
		if back := netns.Set(own); back != nil {
			done <- errors.Join(err, fmt.Errorf("leave network namespace: %w", back))
			return
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}
