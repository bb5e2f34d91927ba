package main

import (
	"context"
	"fmt"
	"math"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/blixard/blixard"
)

// sighting is the moment at which somebody first heard that a VM does not run.
type sighting struct {
	name string
	at   time.Time
}

// rawSignals listens to systemd's own signals on the system bus, with no more
// than a D-Bus library in between.
type rawSignals struct {
	conn    *dbus.Conn
	signals chan *dbus.Signal
	// names are the VMs by the paths of their units.
	names map[dbus.ObjectPath]string
}

const (
	busName        = "org.freedesktop.systemd1"
	busManager     = "org.freedesktop.systemd1.Manager"
	busUnit        = "org.freedesktop.systemd1.Unit"
	busProperties  = "org.freedesktop.DBus.Properties"
	signalChanged  = busProperties + ".PropertiesChanged"
	propertyActive = "ActiveState"
)

func listenRaw(ctx context.Context, s *site) (*rawSignals, error) {
	socket, err := s.Dial(ctx, "unix", "/run/dbus/system_bus_socket")
	if err != nil {
		return nil, err
	}
	conn, err := dbus.NewConn(socket, dbus.WithContext(ctx))
	if err != nil {
		socket.Close()
		return nil, fmt.Errorf("listen on the bus: %w", err)
	}
	r := &rawSignals{conn: conn, signals: make(chan *dbus.Signal, 4096), names: map[dbus.ObjectPath]string{}}
	if err := conn.Auth([]dbus.Auth{dbus.AuthExternal("0")}); err != nil {
		conn.Close()
		return nil, fmt.Errorf("listen on the bus: %w", err)
	}
	if err := conn.Hello(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("listen on the bus: %w", err)
	}
	if err := conn.Object(busName, "/org/freedesktop/systemd1").CallWithContext(ctx, busManager+".Subscribe", 0).Err; err != nil {
		conn.Close()
		return nil, fmt.Errorf("subscribe to systemd: %w", err)
	}
	conn.Signal(r.signals)
	return r, nil
}

// watch adds VMs to those heard of.
func (r *rawSignals) watch(ctx context.Context, names []string) error {
	for _, name := range names {
		var path dbus.ObjectPath
		if err := r.conn.Object(busName, "/org/freedesktop/systemd1").CallWithContext(ctx, busManager+".GetUnit", 0, vmUnit(name)).Store(&path); err != nil {
			return fmt.Errorf("find unit of %s: %w", name, err)
		}
		if err := r.conn.AddMatchSignalContext(ctx, dbus.WithMatchSender(busName), dbus.WithMatchObjectPath(path),
			dbus.WithMatchInterface(busProperties), dbus.WithMatchMember("PropertiesChanged"), dbus.WithMatchArg(0, busUnit)); err != nil {
			return fmt.Errorf("match signals of %s: %w", name, err)
		}
		r.names[path] = name
	}
	return nil
}

// calls are the medians of what a monitor must ask after a signal, with nothing
// else going on: the unit's row, which systemd finds by comparing all names, and
// its properties.
func (r *rawSignals) calls(ctx context.Context, name string) (row, properties float64, err error) {
	const times = 20
	manager := r.conn.Object(busName, "/org/freedesktop/systemd1")
	var path dbus.ObjectPath
	if err := manager.CallWithContext(ctx, busManager+".GetUnit", 0, vmUnit(name)).Store(&path); err != nil {
		return 0, 0, fmt.Errorf("find unit of %s: %w", name, err)
	}
	timed := func(call func() *dbus.Call) (float64, error) {
		var took []float64
		for range times {
			start := time.Now()
			if err := call().Err; err != nil {
				return 0, fmt.Errorf("ask about %s: %w", name, err)
			}
			took = append(took, milliseconds(time.Since(start)))
		}
		return median(took), nil
	}
	row, err = timed(func() *dbus.Call {
		return manager.CallWithContext(ctx, busManager+".ListUnitsByPatterns", 0, []string{}, []string{vmUnit(name)})
	})
	if err != nil {
		return 0, 0, err
	}
	properties, err = timed(func() *dbus.Call {
		return r.conn.Object(busName, path).CallWithContext(ctx, busProperties+".GetAll", 0, "")
	})
	return row, properties, err
}

// gone tells of which VM a signal says that it is active no more.
func (r *rawSignals) gone(sig *dbus.Signal) (string, bool) {
	if sig.Name != signalChanged || len(sig.Body) < 2 {
		return "", false
	}
	changed, _ := sig.Body[1].(map[string]dbus.Variant)
	state, ok := changed[propertyActive].Value().(string)
	if !ok || state == "active" {
		return "", false
	}
	name, ok := r.names[sig.Path]
	return name, ok
}

// follow passes on every frame of the API's stream of VMs until ctx ends; synced
// is closed when all VMs there are have come.
func (s *site) follow(ctx context.Context, synced chan<- struct{}, frame func(vm *blixard.VM, at time.Time)) error {
	first := true
	for f, err := range s.client.WatchVMs(ctx) {
		at := time.Now()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("watch VMs: %w", err)
		case f.VM != nil:
			frame(f.VM, at)
		case f.Synced && first:
			first = false
			close(synced)
		}
	}
	return nil
}

const (
	// bursts of killsABurst kills each, killEvery apart: a burst is over before
	// systemd starts its first VM again, after the unit's RestartSec of 5 s.
	bursts      = 3
	killsABurst = 20
	killEvery   = 200 * time.Millisecond
	// killHeard is how long a change may take to be heard of.
	killHeard = 10 * time.Second
)

// measureKill kills VMs one by one, and compares when the API's watchers hear of
// it with when the bus tells.
func measureKill(ctx context.Context, b *bench) ([]result, error) {
	s, err := b.crowd(ctx, b.n)
	if err != nil {
		return nil, err
	}
	if len(s.vms) < bursts*killsABurst {
		return nil, fmt.Errorf("%d VMs to kill are %d VMs at least", bursts*killsABurst, bursts*killsABurst)
	}
	if err := s.setInterval(ctx, shippedInterval, 1); err != nil {
		return nil, err
	}
	before, err := s.commits(ctx)
	if err != nil {
		return nil, err
	}

	ctx, cancel := context.WithCancelCause(ctx)
	raw, err := listenRaw(ctx, s)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	watched := make(chan sighting, 4096)
	synced, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		err := s.follow(ctx, synced, func(vm *blixard.VM, at time.Time) {
			if vm.State != blixard.StateRunning {
				select {
				case watched <- sighting{vm.Name, at}:
				case <-ctx.Done():
				}
			}
		})
		cancel(err)
	}()
	defer func() {
		cancel(nil)
		<-ended
		raw.conn.Close()
	}()
	select {
	case <-synced:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}

	row, properties, err := raw.calls(ctx, s.vms[0])
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(b.log, "asked on the quiet bus for one unit: its row %.2f ms, its properties %.2f ms (p50)\n", row, properties)
	var byAPI, byBus []float64
	for burst := range bursts {
		names := s.vms[burst*killsABurst : (burst+1)*killsABurst]
		if err := raw.watch(ctx, names); err != nil {
			return nil, err
		}
		for _, name := range names {
			api, bus, err := s.kill(ctx, name, raw, watched)
			if err != nil {
				return nil, err
			}
			byAPI, byBus = append(byAPI, milliseconds(api)), append(byBus, milliseconds(bus))
			if err := rest(ctx, killEvery); err != nil {
				return nil, err
			}
		}
		// Until all run again.
		if err := s.settle(ctx, len(s.vms)); err != nil {
			return nil, err
		}
	}
	after, err := s.commits(ctx)
	if err != nil {
		return nil, err
	}
	commits, err := after.since(before)
	if err != nil {
		return nil, err
	}
	commit := 1000 * commits.quantile(0.5)
	if math.IsNaN(commit) {
		return nil, fmt.Errorf("no commit of the store was seen during %d kills", len(byAPI))
	}
	fmt.Fprintf(b.log, "%d kills with %d VMs; at a watcher of the API: p50 %.2f p90 %.2f p99 %.2f ms; raw signal on the bus: p50 %.2f p90 %.2f p99 %.2f ms; %d commits: p50 about %.2f ms, mean %.2f ms\n",
		len(byAPI), len(s.vms), median(byAPI), quantile(byAPI, 0.9), quantile(byAPI, 0.99),
		median(byBus), quantile(byBus, 0.9), quantile(byBus, 0.99), commits.count, commit, 1000*commits.mean())
	return []result{{name: "kill_to_watcher_p50", value: median(byAPI), goal: atMost(median(byBus) + commit + 5), unit: "ms", digits: 2}}, nil
}

// commits are the store's acknowledged writes so far.
func (s *site) commits(ctx context.Context) (histogram, error) {
	p, err := s.scrape(ctx)
	if err != nil {
		return histogram{}, err
	}
	return p.histogram("blixard_store_commit_duration_seconds", "", "")
}

// kill kills a VM's process and tells after what time the API's watcher and the
// listener on the bus heard of it.
func (s *site) kill(ctx context.Context, name string, raw *rawSignals, watched <-chan sighting) (api, bus time.Duration, err error) {
	pid, err := s.vmProcess(name)
	if err != nil {
		return 0, 0, err
	}
	late := time.NewTimer(killHeard)
	defer late.Stop()
	start := time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return 0, 0, fmt.Errorf("kill VM %s: %w", name, err)
	}
	for api == 0 || bus == 0 {
		select {
		case w := <-watched:
			if w.name == name && api == 0 {
				api = w.at.Sub(start)
			}
		case sig := <-raw.signals:
			if heard, ok := raw.gone(sig); ok && heard == name && bus == 0 {
				bus = time.Since(start)
			}
		case <-late.C:
			return 0, 0, fmt.Errorf("kill VM %s: %s later the API's watcher heard of it after %s, the bus after %s (0: not yet)", name, killHeard, api, bus)
		case <-ctx.Done():
			return 0, 0, context.Cause(ctx)
		}
	}
	return api, bus, nil
}
