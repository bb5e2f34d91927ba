package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/lab"
)

// demo is one run.
type demo struct {
	bin         string
	machine     bool
	interactive bool
	start       time.Time
	host        *lab.Host
	guests      []guest
}

// guest is a real VM of the demo.
type guest struct {
	name, hostName string
	addr           netip.Addr
}

func (d *demo) step(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "\n==> [%4.0fs] %s\n", time.Since(d.start).Seconds(), fmt.Sprintf(format, args...))
}

func (d *demo) run(ctx context.Context) (err error) {
	d.step("Preparing a host (the first time this makes a root file system, about a minute)")
	if err := lab.Setup(ctx, os.Stderr); err != nil {
		return err
	}
	l, err := lab.Open(ctx, lab.Config{Progress: os.Stderr})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if err := d.build(ctx, l); err != nil {
		return err
	}
	d.step("What blixard says of the host")
	if err := d.settle(ctx); err != nil {
		return err
	}
	if err := d.show(ctx, "blixard", "vm", "list"); err != nil {
		return err
	}
	if err := d.breakGuest(ctx); err != nil {
		return err
	}
	d.step("The same guest, and the others, now")
	if err := d.show(ctx, "blixard", "vm", "list"); err != nil {
		return err
	}
	if err := d.show(ctx, "blixard", "vm", "events", d.guests[1].name); err != nil {
		return err
	}
	if err := d.show(ctx, "blixard", "cluster", "status"); err != nil {
		return err
	}
	if err := d.check(ctx); err != nil {
		return fmt.Errorf("what was shown is not right: %w", err)
	}
	if !d.interactive {
		d.step("Checked: every VM was found in its right state, and the broken guest's events arrived. Cleaning up")
		return nil
	}
	return d.live(ctx, l.Dir())
}

// build lays down the host: three real guests, one VM that crash loops and one
// that is declared but stopped, under microvm.nix's units.
func (d *demo) build(ctx context.Context, l *lab.Lab) error {
	h, err := l.AddHost("h1")
	if err != nil {
		return err
	}
	d.host = h
	d.step("Booting a host with real systemd, and laying down microVMs as microvm.nix does")
	if err := h.Start(ctx); err != nil {
		return err
	}
	if err := h.InstallMicroVM(ctx, lab.MicroVMOptions{}); err != nil {
		return err
	}
	names := []string{"loop-1"}
	for i, g := range []struct{ name, hostName string }{{"web-1", "web-one"}, {"db-1", "db-one"}, {"cache-2", "cache-two"}} {
		vm := lab.VM{Name: g.name, HostName: g.hostName, MemoryMB: 128, Taps: []string{"vm-" + g.name}, Provenance: lab.Declared}
		addr := h.GuestAddr(i + 1)
		if vm.Runner, err = h.QEMURunner(ctx, lab.GuestOptions{Addr: addr}); err != nil {
			return err
		}
		if err := h.AddVM(ctx, vm); err != nil {
			return err
		}
		d.guests = append(d.guests, guest{g.name, g.hostName, addr})
		names = append(names, g.name)
	}
	for _, vm := range []lab.VM{{Name: "loop-1", ExitCode: 1}, {Name: "batch-7", Provenance: lab.Declared}} {
		if err := h.AddVM(ctx, vm); err != nil {
			return err
		}
	}
	d.step("Starting blixard-monitor under its own unit, then the VMs")
	if err := h.InstallBlixard(ctx, d.bin, true); err != nil {
		return err
	}
	if _, err := h.Exec(ctx, "systemctl", "start", "blixard-monitor"); err != nil {
		return fmt.Errorf("%w\n%s", err, d.journal(ctx))
	}
	// A VM that crash loops makes systemctl wait for nothing and fail.
	_, _ = h.Exec(ctx, append([]string{"systemctl", "start", "--no-block"}, units(names)...)...)
	for _, g := range d.guests {
		if err := d.awaitGuest(ctx, g); err != nil {
			return err
		}
	}
	return nil
}

func units(names []string) []string {
	var out []string
	for _, n := range names {
		out = append(out, "microvm@"+n+".service")
	}
	return out
}

func (d *demo) journal(ctx context.Context) string {
	out, _ := d.host.Exec(ctx, "journalctl", "-u", "blixard-monitor", "-n", "20", "--no-pager", "-o", "cat")
	return out
}

// awaitGuest waits until a guest takes commands.
func (d *demo) awaitGuest(ctx context.Context, g guest) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		if err := d.command(ctx, g, "status"); err == nil {
			fmt.Fprintf(os.Stderr, "    %s is up at %s\n", g.name, g.addr)
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("guest %s did not come up: %w", g.name, ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// command gives a guest one command and waits for its answer.
func (d *demo) command(ctx context.Context, g guest, command string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := d.host.Dial(ctx, "tcp", net.JoinHostPort(g.addr.String(), strconv.Itoa(lab.GuestPort)))
	if err != nil {
		return err
	}
	defer conn.Close()
	end, _ := ctx.Deadline()
	if err := conn.SetDeadline(end); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(conn, command); err != nil {
		return err
	}
	_, err = bufio.NewReader(conn).ReadString('\n')
	return err
}

// show runs a command on the host as a person would and prints both.
func (d *demo) show(ctx context.Context, argv ...string) error {
	fmt.Printf("\n$ %s\n", strings.Join(argv, " "))
	c := d.host.Command(ctx, argv...)
	c.Stdout, c.Stderr = os.Stdout, os.Stdout
	if d.interactive {
		c.Env = []string{"TERM=" + os.Getenv("TERM")}
	}
	if err := c.Run(); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(argv, " "), err)
	}
	return nil
}

// vms is the list as programs read it.
func (d *demo) vms(ctx context.Context) (map[string]blixard.VM, error) {
	out, err := d.host.Exec(ctx, "blixard", "vm", "list", "-o", "json")
	if err != nil {
		return nil, err
	}
	var l blixard.List[blixard.VM]
	if err := json.Unmarshal([]byte(out), &l); err != nil {
		return nil, fmt.Errorf("read the list: %w", err)
	}
	vms := map[string]blixard.VM{}
	for _, vm := range l.Items {
		vms[vm.Name] = vm
	}
	return vms, nil
}

// await waits until the list is as want says, and says what is missing if not.
func (d *demo) await(ctx context.Context, timeout time.Duration, want func(map[string]blixard.VM) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		vms, err := d.vms(ctx)
		if err == nil {
			if err = want(vms); err == nil {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// right is how the VMs must be shown.
func (d *demo) right(vms map[string]blixard.VM) error {
	want := map[string]blixard.VMState{"loop-1": blixard.StateCrashlooping, "batch-7": blixard.StateStopped}
	for _, g := range d.guests {
		want[g.name] = blixard.StateRunning
	}
	for name, state := range want {
		if vm, ok := vms[name]; !ok || vm.State != state {
			return fmt.Errorf("%s is %q, want %q", name, vm.State, state)
		}
	}
	return nil
}

// settle waits until loop-1 is known to crash loop.
func (d *demo) settle(ctx context.Context) error { return d.await(ctx, time.Minute, d.right) }

// breakGuest crashes a guest's kernel and shows the events as they arrive.
func (d *demo) breakGuest(ctx context.Context) error {
	g := d.guests[1]
	d.step("Crashing the kernel of %s, and following its events", g.name)
	fctx, stop := context.WithCancel(ctx)
	defer stop()
	fmt.Printf("\n$ blixard vm events %s -f\n", g.name)
	follow := d.host.Command(fctx, "blixard", "vm", "events", g.name, "-f")
	events := &waitWriter{out: os.Stdout, want: []byte("running"), seen: make(chan struct{})}
	follow.Stdout, follow.Stderr = events, os.Stdout
	if err := follow.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- follow.Wait() }()
	before, err := d.vms(ctx)
	if err != nil {
		return err
	}
	_ = d.command(ctx, g, "panic") // it answers no more
	err = d.await(ctx, time.Minute, func(vms map[string]blixard.VM) error {
		now := vms[g.name]
		if now.State != blixard.StateRunning || now.InvocationID == before[g.name].InvocationID {
			return fmt.Errorf("%s is %s, not started anew", g.name, now.State)
		}
		return nil
	})
	if err != nil {
		return err
	}
	select {
	case <-events.seen:
	case err := <-ended:
		return fmt.Errorf("following the events ended: %w", err)
	case <-time.After(10 * time.Second):
		return errors.New("the events did not arrive")
	}
	stop()
	_ = <-ended // it was told to end
	return d.awaitGuest(ctx, g)
}

// waitWriter passes on what is written and tells when something was in it.
type waitWriter struct {
	out  io.Writer
	want []byte
	seen chan struct{}
	once sync.Once
}

func (w *waitWriter) Write(p []byte) (int, error) {
	if bytes.Contains(p, w.want) {
		w.once.Do(func() { close(w.seen) })
	}
	return w.out.Write(p)
}

// check holds what was shown against what is.
func (d *demo) check(ctx context.Context) error {
	vms, err := d.vms(ctx)
	if err != nil {
		return err
	}
	if err := d.right(vms); err != nil {
		return err
	}
	for _, g := range d.guests {
		want, err := d.host.Exec(ctx, "systemctl", "show", "-P", "InvocationID", "microvm@"+g.name+".service")
		if err != nil {
			return err
		}
		if got := vms[g.name].InvocationID; got != strings.TrimSpace(want) {
			return fmt.Errorf("%s runs as %s, shown as %s", g.name, strings.TrimSpace(want), got)
		}
	}
	out, err := d.host.Exec(ctx, "blixard", "vm", "events", d.guests[1].name, "-o", "json")
	if err != nil {
		return err
	}
	var events blixard.List[blixard.Event]
	if err := json.Unmarshal([]byte(out), &events); err != nil {
		return err
	}
	restarts := uint64(0)
	for _, e := range events.Items {
		if e.Type == blixard.EventRestart {
			restarts += e.Count
		}
	}
	if restarts != 1 {
		return fmt.Errorf("%s was restarted once, its events say %d times", d.guests[1].name, restarts)
	}
	return nil
}

// live leaves a person at a live view.
func (d *demo) live(ctx context.Context, dir string) error {
	pid, err := d.host.PID()
	if err != nil {
		return err
	}
	link := filepath.Join(dir, "blixard.sock")
	if err := os.Symlink(fmt.Sprintf("/proc/%d/root/run/blixard/blixard.sock", pid), link); err != nil {
		return err
	}
	d.step("A live view. Ctrl-C ends it and cleans up. To try in another terminal, as root:")
	fmt.Fprintf(os.Stderr, `
    export BLIXARD_ADDR=unix://%s
    bin/blixard vm show db-1
    bin/blixard events -f
    bin/blixard vm list -o json
    nsenter -t %d -a systemctl stop microvm@web-1     # a stop on purpose is no failure
    nsenter -t %d -a pkill -KILL -f microvm@cache-two # a crash is
    curl --unix-socket %s http://localhost/metrics

`, link, pid, pid, link)
	c := d.host.Command(ctx, "blixard", "vm", "list", "-w")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.Env = []string{"TERM=" + os.Getenv("TERM")}
	_ = c.Run() // it ends with Ctrl-C
	d.step("Cleaning up")
	return nil
}
