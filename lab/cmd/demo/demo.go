package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/lab"
)

// settleTimeout bounds the way to what is to be shown: some 20 seconds until
// loop-1 has crashed often enough, and as much again where there is no KVM.
const settleTimeout = 2 * time.Minute

// errUnclean tells that the demo left something behind.
var errUnclean = errors.New("clean up")

// demo is one run.
type demo struct {
	bin         string
	machine     bool
	interactive bool
	start       time.Time
	live        bool // the live view was reached

	lab    *lab.Lab
	stage  stage
	host   *lab.Host // the stage, if it is a host
	guests []guest
}

func (d *demo) step(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "\n==> [%4.0fs] %s\n", time.Since(d.start).Seconds(), fmt.Sprintf(format, args...))
}

func (d *demo) run(ctx context.Context) (err error) {
	defer func() {
		if d.lab == nil {
			return
		}
		d.step("Cleaning up")
		if dirty := d.lab.Close(); dirty != nil {
			err = errors.Join(err, fmt.Errorf("%w: %w", errUnclean, dirty))
		}
	}()
	if err := d.setUp(ctx); err != nil {
		return err
	}
	if err := d.build(ctx); err != nil {
		return err
	}
	d.step("What blixard says of the host, once loop-1 has crashed often enough to be called a crash loop")
	fmt.Fprintln(os.Stderr, "    Three VMs run. loop-1 fails at every start. batch-7 is declared but was never started: no failure.")
	if err := d.await(ctx, d.right); err != nil {
		return err
	}
	if err := d.show(ctx, "blixard", "vm", "list"); err != nil {
		return err
	}
	if err := d.breakGuest(ctx); err != nil {
		return err
	}
	d.step("All VMs now, the events of the broken one, and the whole in a word")
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
	d.step("Checked: every VM was found in its right state, and the broken one's events arrived")
	if !d.interactive {
		return nil
	}
	return d.liveView(ctx)
}

// show runs a command on the stage as a person would and prints both.
func (d *demo) show(ctx context.Context, argv ...string) error {
	fmt.Printf("\n$ %s\n", strings.Join(argv, " "))
	if err := d.command(ctx, os.Stdout, argv...).Run(); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(argv, " "), err)
	}
	return nil
}

// vms is the list as programs read it.
func (d *demo) vms(ctx context.Context) (map[string]blixard.VM, error) {
	out, err := d.stage.Exec(ctx, "blixard", "vm", "list", "-o", "json")
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
func (d *demo) await(ctx context.Context, want func(map[string]blixard.VM) error) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
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

// breakGuest crashes a guest and shows the events as they arrive.
func (d *demo) breakGuest(ctx context.Context) error {
	g := d.guests[1]
	if g.addr.IsValid() {
		d.step("Crashing the kernel in the guest of %s, and following its events; systemd starts it anew after 5 s", g.name)
	} else {
		d.step("Killing the VMM of %s, and following its events; systemd starts it anew after 5 s", g.name)
	}
	before, err := d.vms(ctx)
	if err != nil {
		return err
	}
	fctx, stop := context.WithCancel(ctx)
	defer stop()
	fmt.Printf("\n$ blixard vm events %s -f\n", g.name)
	events := &waitWriter{out: os.Stdout, want: []byte("running"), seen: make(chan struct{})}
	follow := d.command(fctx, events, "blixard", "vm", "events", g.name, "-f")
	if err := follow.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		// It is told to end; that it ended before is noticed without this.
		_ = follow.Wait()
	}()
	err = d.followed(ctx, g, before[g.name].InvocationID, events, ended)
	stop()
	<-ended
	if err != nil {
		return err
	}
	return d.awaitGuest(ctx, g)
}

// followed crashes the guest and waits until it runs anew and its events have
// said so.
func (d *demo) followed(ctx context.Context, g guest, before string, events *waitWriter, ended <-chan struct{}) error {
	if err := d.crash(ctx, g); err != nil {
		return err
	}
	err := d.await(ctx, func(vms map[string]blixard.VM) error {
		now := vms[g.name]
		if now.State != blixard.StateRunning || now.InvocationID == before {
			return fmt.Errorf("%s is %s, not started anew", g.name, now.State)
		}
		return nil
	})
	if err != nil {
		return err
	}
	select {
	case <-events.seen:
		return nil
	case <-ended:
		return errors.New("following the events ended")
	case <-time.After(10 * time.Second):
		return errors.New("the events did not arrive")
	}
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
		want, err := d.stage.Exec(ctx, "systemctl", "show", "-P", "InvocationID", "microvm@"+g.name+".service")
		if err != nil {
			return err
		}
		if got := vms[g.name].InvocationID; got != strings.TrimSpace(want) {
			return fmt.Errorf("%s runs as %s, shown as %s", g.name, strings.TrimSpace(want), got)
		}
	}
	broken := d.guests[1].name
	out, err := d.stage.Exec(ctx, "blixard", "vm", "events", broken, "-o", "json")
	if err != nil {
		return err
	}
	var events blixard.List[blixard.Event]
	if err := json.Unmarshal([]byte(out), &events); err != nil {
		return fmt.Errorf("read the events: %w", err)
	}
	restarts := uint64(0)
	for _, e := range events.Items {
		if e.Type == blixard.EventRestart {
			restarts += e.Count
		}
	}
	if restarts != 1 {
		return fmt.Errorf("%s was restarted once, its events say %d times", broken, restarts)
	}
	return nil
}
