package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/blixard/blixard/lab"
)

// stage is the host that the demo shows, of either kind.
type stage interface {
	lab.Node
	InstallMicroVM(ctx context.Context, opts lab.MicroVMOptions) error
	AddVM(ctx context.Context, vms ...lab.VM) error
	InstallBlixard(ctx context.Context, dir string, users bool) error
}

// process is a command on the stage.
type process interface {
	Start() error
	Wait() error
	Run() error
	Signal(sig os.Signal) error
}

// guest is a VM of the demo that runs.
type guest struct {
	name, hostName string
	addr           netip.Addr // where it takes commands; none of a stand-in
}

// setUp makes the stage, and says why it is what it is.
func (d *demo) setUp(ctx context.Context) error {
	var refused error
	if d.machine {
		refused = errors.New("-machine says so")
	} else {
		refused = lab.Refused()
	}
	if refused == nil {
		d.step("Preparing a host (the first time this makes a root file system, one to two minutes)")
		if err := lab.SetupHosts(ctx, os.Stderr); err != nil {
			return err
		}
	} else {
		d.step("Using a QEMU machine: %v", refused)
		fmt.Fprintln(os.Stderr, "    It has a kernel and a systemd of its own. The VMs on it run stand-ins for QEMU, as a guest within")
		fmt.Fprintln(os.Stderr, "    a guest would take minutes to boot. All else is the same.")
		d.step("Preparing the machine (the first time this makes its disk and a snapshot, two to three minutes)")
		if err := lab.SetupMachines(ctx, os.Stderr); err != nil {
			return err
		}
	}
	l, err := lab.Open(ctx, lab.Config{Progress: os.Stderr})
	if err != nil {
		return err
	}
	d.lab = l
	if refused != nil {
		m, err := l.AddMachine(ctx, "h1", lab.MachineOptions{})
		if err != nil {
			return err
		}
		d.stage = m
		return nil
	}
	if d.host, err = l.AddHost("h1"); err != nil {
		return err
	}
	d.stage = d.host
	return nil
}

// build lays down the VMs under microvm.nix's units, three that run, one that
// crash loops and one that is declared but stopped, and starts them.
func (d *demo) build(ctx context.Context) error {
	d.step("Booting %s, with real systemd, and laying down microVMs as microvm.nix does", d.stage.Name())
	if err := d.stage.Start(ctx); err != nil {
		return err
	}
	if err := d.stage.InstallMicroVM(ctx, lab.MicroVMOptions{}); err != nil {
		return err
	}
	vms := []lab.VM{{Name: "loop-1", ExitCode: 1}, {Name: "batch-7", Provenance: lab.Declared}}
	argv := []string{"systemctl", "start", "--no-block", "microvm@loop-1.service"}
	for i, g := range []guest{{name: "web-1", hostName: "web-one"}, {name: "db-1", hostName: "db-one"}, {name: "cache-2", hostName: "cache-two"}} {
		vm := lab.VM{Name: g.name, HostName: g.hostName, MemoryMB: 128, Taps: []string{"vm-" + g.name}, Provenance: lab.Declared}
		if d.host != nil {
			g.addr = d.host.GuestAddr(i + 1)
			var err error
			if vm.Runner, err = d.host.QEMURunner(ctx, lab.GuestOptions{Addr: g.addr}); err != nil {
				return err
			}
		}
		vms = append(vms, vm)
		d.guests = append(d.guests, g)
		argv = append(argv, "microvm@"+g.name+".service")
	}
	if err := d.stage.AddVM(ctx, vms...); err != nil {
		return err
	}
	d.step("Starting blixard-monitor under its own unit, then the VMs")
	if err := d.stage.InstallBlixard(ctx, d.bin, true); err != nil {
		return err
	}
	if _, err := d.stage.Exec(ctx, "systemctl", "start", "blixard-monitor"); err != nil {
		return fmt.Errorf("%w\n%s", err, d.journal(ctx))
	}
	if _, err := d.stage.Exec(ctx, argv...); err != nil {
		return err
	}
	for _, g := range d.guests {
		if err := d.awaitGuest(ctx, g); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) journal(ctx context.Context) string {
	out, err := d.stage.Exec(ctx, "journalctl", "-u", "blixard-monitor", "-n", "20", "--no-pager", "-o", "cat")
	if err != nil {
		return err.Error()
	}
	return out
}

// command prepares a command on the stage with all its output going to out.
func (d *demo) command(ctx context.Context, out io.Writer, argv ...string) process {
	if d.host == nil {
		// One stream there too, so that lines keep their order.
		c := d.stage.(*lab.Machine).Command(ctx, append([]string{"sh", "-c", `exec "$@" 2>&1`, "sh"}, argv...)...)
		c.Stdout, c.Stderr = out, out
		return c
	}
	c := d.host.Command(ctx, argv...)
	c.Stdout, c.Stderr = out, out
	return c
}

// awaitGuest waits until a guest takes commands.
func (d *demo) awaitGuest(ctx context.Context, g guest) error {
	if !g.addr.IsValid() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		if d.tell(ctx, g, "status") == nil {
			fmt.Fprintf(os.Stderr, "    the guest of %s has booted and answers at %s\n", g.name, g.addr)
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("guest %s did not come up: %w", g.name, ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// tell gives a guest one command and waits for its answer.
func (d *demo) tell(ctx context.Context, g guest, command string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := d.stage.Dial(ctx, "tcp", net.JoinHostPort(g.addr.String(), strconv.Itoa(lab.GuestPort)))
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if _, err := fmt.Fprintln(conn, command); err != nil {
		return err
	}
	_, err = bufio.NewReader(conn).ReadString('\n')
	return err
}

// crash brings a guest down as a fault would.
func (d *demo) crash(ctx context.Context, g guest) error {
	if g.addr.IsValid() {
		// Its kernel panics: there is nobody left to answer.
		_ = d.tell(ctx, g, "panic")
		return nil
	}
	_, err := d.stage.Exec(ctx, "systemctl", "kill", "--signal=KILL", "microvm@"+g.name+".service")
	return err
}
