package systemd_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/lab"
	"github.com/blixard/blixard/systemd"
)

// vmsOnly lets only VMs' own units through.
func vmsOnly(name string) bool { return strings.HasPrefix(name, "microvm@") }

func TestConn_Hints(t *testing.T) {
	h := bootHost(t)
	addVMs(t, h, lab.VM{Name: "a"}, lab.VM{Name: "b.c_d"})
	cfg := onSystemBus(t, h)
	cfg.Filter = vmsOnly
	c := dial(t, cfg)
	others := 0
	hinted := func(unit string) func(blixard.Hints) bool {
		return func(h blixard.Hints) bool {
			for _, name := range h.Units {
				if !vmsOnly(name) {
					t.Errorf("hint of %s", name)
				}
			}
			others += len(h.Units)
			return slices.Contains(h.Units, unit)
		}
	}
	// Kill: systemd restarts it later.
	exec(t, h, "systemctl", "kill", "--signal=KILL", "microvm@a.service")
	until(t, c, hinted("microvm@a.service"))
	u, err := c.ListUnits(t.Context(), "microvm@a.service")
	if err != nil || len(u) != 1 || u[0].SubState == "running" {
		t.Errorf("after the hint: %+v, %v", u, err)
	}
	// Stop: the unit is unloaded, and the job's result is told.
	var jobs []blixard.JobResult
	exec(t, h, "systemctl", "stop", "microvm@b.c_d.service")
	until(t, c, func(h blixard.Hints) bool {
		jobs = append(jobs, h.Jobs...)
		units, err := c.ListUnits(t.Context(), "microvm@b.c_d.service")
		return err == nil && len(units) == 0 && slices.Contains(jobs, blixard.JobResult{Unit: "microvm@b.c_d.service", Result: "done"})
	})
	// A start that fails with its dependency changes no state: only the job
	// tells.
	if err := h.AddVM(t.Context(), lab.VM{Name: "bad", Taps: []string{"vm-bad"}, HelpersFail: []string{"tap-up"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Exec(t.Context(), "systemctl", "start", "microvm@bad.service"); err == nil {
		t.Fatal("microvm@bad.service started")
	}
	until(t, c, func(h blixard.Hints) bool {
		return slices.Contains(h.Jobs, blixard.JobResult{Unit: "microvm@bad.service", Result: "dependency"})
	})
	// Nothing more: it waits for its context.
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	for {
		if _, err := c.Hints(ctx); err != nil {
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			break
		}
	}
	if others > 20 {
		t.Errorf("%d hints of one kill", others)
	}
}

func TestConn_reload(t *testing.T) {
	h := bootHost(t)
	addVMs(t, h, lab.VM{Name: "a"})
	c := dial(t, onSystemBus(t, h))
	all := func(h blixard.Hints) bool { return h.All }
	for _, verb := range []string{"daemon-reload", "daemon-reexec", "daemon-reexec", "daemon-reload"} {
		// Somebody who asks all the time is answered all the time.
		ctx, cancel := context.WithCancel(t.Context())
		asked := make(chan error, 1)
		n := 0
		go func() {
			for ctx.Err() == nil {
				units, err := c.ListUnits(ctx, "microvm@a.service")
				if ctx.Err() == nil && (err != nil || len(units) != 1 || units[0].ActiveState != "active") {
					asked <- fmt.Errorf("during %s: %+v, %w", verb, units, err)
					return
				}
				n++
			}
			asked <- nil
		}()
		exec(t, h, "systemctl", verb)
		began := time.Now()
		until(t, c, all)
		t.Logf("%s: told after %v", verb, time.Since(began))
		cancel()
		if err := <-asked; err != nil {
			t.Error(err)
		}
		if n == 0 {
			t.Errorf("%s: no listing", verb)
		}
		// And it is subscribed.
		exec(t, h, "systemctl", "kill", "--signal=KILL", "microvm@a.service")
		until(t, c, func(h blixard.Hints) bool { return slices.Contains(h.Units, "microvm@a.service") })
		exec(t, h, "systemctl", "restart", "microvm@a.service")
	}
}

func TestConn_busRestarted(t *testing.T) {
	h := bootHost(t)
	addVMs(t, h, lab.VM{Name: "a"})
	c := dial(t, onSystemBus(t, h))
	exec(t, h, "systemctl", "kill", "--signal=KILL", "dbus.service")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for {
		_, err := c.Hints(ctx)
		if err == nil {
			continue
		}
		if ctx.Err() != nil || !strings.Contains(err.Error(), "connection lost") {
			t.Fatal(err)
		}
		break
	}
	began := time.Now()
	if _, err := c.ListUnits(t.Context()); err == nil || time.Since(began) > time.Second {
		t.Errorf("a call over the lost connection: %v after %v", err, time.Since(began))
	}
	// The manager comes back to the new bus in its own time.
	for {
		again, err := systemd.Dial(ctx, onSystemBus(t, h))
		if err != nil {
			if ctx.Err() != nil {
				t.Fatal(err)
			}
			continue
		}
		defer again.Close()
		t.Logf("dialed again after %v", time.Since(began))
		if units, err := again.ListUnits(ctx, "microvm@*.service"); err != nil || len(units) != 1 {
			t.Errorf("%+v, %v", units, err)
		}
		break
	}
}

// A monitor that follows hints must end up with what is true, whatever happens.
func TestConn_storm(t *testing.T) {
	const n = 200
	h := bootHost(t)
	names, err := h.AddVMs(t.Context(), lab.VM{Name: "vm"}, n)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.StartVMs(t.Context(), names...); err != nil {
		t.Fatal(err)
	}
	cfg := onSystemBus(t, h)
	cfg.Filter = vmsOnly
	// PID 1 is busy with hundreds of jobs: what is tested is what becomes of the
	// hints, not how soon it answers on a loaded machine.
	cfg.Timeout = time.Minute
	c := dial(t, cfg)
	known := map[string]string{} // InvocationID by unit
	read := func(units []blixard.Unit) {
		for _, u := range units {
			p, err := c.Properties(t.Context(), u.Path)
			if err != nil {
				t.Fatal(err)
			}
			known[u.Name] = p.ActiveState + " " + p.InvocationID
		}
	}
	list := func(names ...string) []blixard.Unit {
		t.Helper()
		units, err := c.ListUnits(t.Context(), names...)
		if err != nil {
			t.Fatal(err)
		}
		return units
	}
	read(list("microvm@*.service"))
	before := maps.Clone(known)

	done := make(chan error, 1)
	began := time.Now()
	go func() {
		_, err := h.Exec(t.Context(), "sh", "-c", "systemctl kill --signal=KILL 'microvm@*.service'; systemctl restart 'microvm@*.service'")
		done <- err
	}()
	hints, listings := 0, 0
	for running := true; running; {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		got, err := c.Hints(ctx)
		cancel()
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			select {
			case err := <-done:
				if err != nil {
					t.Fatal(err)
				}
				// What was sent until now is in the next hints.
				list("none.service")
				running = false
			default:
			}
			continue
		case err != nil:
			t.Fatal(err)
		}
		hints++
		listings += len(got.Units)
		if got.All {
			read(list("microvm@*.service"))
		} else if len(got.Units) > 0 {
			read(list(got.Units...))
		}
	}
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		got, err := c.Hints(ctx)
		cancel()
		if err != nil {
			break
		}
		if len(got.Units) > 0 {
			read(list(got.Units...))
		}
	}
	t.Logf("%d restarts in %v: %d wakes, %d hints", n, time.Since(began), hints, listings)
	want := map[string]string{}
	ref := refDial(t, h)
	for _, u := range refList(t, ref, "microvm@*.service") {
		p := refProperties(t, ref, string(u.Path))
		want[u.Name] = p.ActiveState + " " + p.InvocationID
		if known[u.Name] == before[u.Name] {
			t.Errorf("%s was not restarted", u.Name)
		}
	}
	if diff := cmp.Diff(want, known); diff != "" || len(want) != n {
		t.Errorf("%d units (-godbus +hints):\n%s", len(want), diff)
	}
}

func TestConn_strangers(t *testing.T) {
	h := bootHost(t)
	addVMs(t, h, lab.VM{Name: "a"})
	cfg := onSystemBus(t, h)
	cfg.Filter = vmsOnly
	c := dial(t, cfg)
	ref := refDial(t, h)
	var names []string
	if err := ref.BusObject().Call("org.freedesktop.DBus.ListNames", 0).Store(&names); err != nil {
		t.Fatal(err)
	}
	// Everybody on the bus is lied to, so this connection is.
	sent := 0
	for _, name := range names {
		if !strings.HasPrefix(name, ":") || name == ref.Names()[0] {
			continue
		}
		for _, s := range []struct {
			path, iface, member string
			body                []any
		}{
			{"/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager", "UnitRemoved", []any{"microvm@lie.service", dbus.ObjectPath("/x")}},
			{"/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager", "Reloading", []any{true}},
			{"/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager", "JobRemoved", []any{uint32(1), dbus.ObjectPath("/x"), "microvm@lie.service", "failed"}},
			{"/org/freedesktop/systemd1/unit/microvm_40lie_2eservice", "org.freedesktop.DBus.Properties", "PropertiesChanged",
				[]any{"org.freedesktop.systemd1.Unit", map[string]dbus.Variant{}, []string{}}},
			{"/org/freedesktop/DBus", "org.freedesktop.DBus", "NameOwnerChanged", []any{"org.freedesktop.systemd1", ":1.0", ""}},
		} {
			m := &dbus.Message{Type: dbus.TypeSignal, Flags: dbus.FlagNoReplyExpected, Body: s.body, Headers: map[dbus.HeaderField]dbus.Variant{
				dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath(s.path)), dbus.FieldInterface: dbus.MakeVariant(s.iface),
				dbus.FieldMember: dbus.MakeVariant(s.member), dbus.FieldDestination: dbus.MakeVariant(name),
				dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf(s.body...)),
			}}
			ref.Send(m, nil)
			sent++
		}
		// One that is too long is thrown away; it may have been anything.
		ref.Send(&dbus.Message{Type: dbus.TypeSignal, Flags: dbus.FlagNoReplyExpected, Body: []any{strings.Repeat("x", 2<<20)}, Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath("/x")), dbus.FieldInterface: dbus.MakeVariant("x.y"), dbus.FieldMember: dbus.MakeVariant("z"),
			dbus.FieldDestination: dbus.MakeVariant(name), dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf("")),
		}}, nil)
	}
	if sent == 0 {
		t.Fatal("nobody to lie to")
	}
	until(t, c, func(h blixard.Hints) bool {
		if len(h.Units) > 0 || len(h.Jobs) > 0 || h.Reloading {
			t.Errorf("believed: %+v", h)
		}
		return h.All
	})
	if _, err := c.ListUnits(t.Context()); err != nil {
		t.Error(err)
	}
	exec(t, h, "systemctl", "kill", "--signal=KILL", "microvm@a.service")
	until(t, c, func(h blixard.Hints) bool {
		if slices.Contains(h.Units, "microvm@lie.service") || len(h.Jobs) > 0 || h.Reloading {
			t.Errorf("believed: %+v", h)
		}
		return slices.Contains(h.Units, "microvm@a.service")
	})
}

func TestConn_frozenBus(t *testing.T) {
	h := bootHost(t)
	cfg := onSystemBus(t, h)
	cfg.Timeout = 300 * time.Millisecond
	c := dial(t, cfg)
	pid := exec(t, h, "systemctl", "show", "--value", "--property=MainPID", "dbus.service")
	exec(t, h, "kill", "-STOP", pid)
	defer func() {
		if _, err := h.Exec(context.WithoutCancel(t.Context()), "kill", "-CONT", pid); err != nil {
			t.Error(err)
		}
	}()
	// More than may be in flight.
	errs := make(chan error)
	began := time.Now()
	for range 100 {
		go func() {
			_, err := c.ListUnits(t.Context())
			errs <- err
		}()
	}
	for range 100 {
		if err := <-errs; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("call: %v", err)
		}
	}
	if took := time.Since(began); took < cfg.Timeout || took > 10*cfg.Timeout {
		t.Errorf("timed out after %v", took)
	}
	if _, err := systemd.Dial(t.Context(), cfg); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	cfg.Timeout = time.Minute
	if _, err := systemd.Dial(ctx, cfg); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial with a context: %v", err)
	}
	// Answers that come too late are nobody's.
	exec(t, h, "kill", "-CONT", pid)
	for range 3 {
		if units, err := c.ListUnits(t.Context(), "dbus.service"); err != nil || len(units) != 1 {
			t.Errorf("thawed: %+v, %v", units, err)
		}
	}
}
