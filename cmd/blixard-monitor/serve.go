package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/api"
	"github.com/blixard/blixard/config"
	"github.com/blixard/blixard/correlate"
	"github.com/blixard/blixard/fleet"
	"github.com/blixard/blixard/metrics"
	"github.com/blixard/blixard/microvm"
	"github.com/blixard/blixard/monitor"
	"github.com/blixard/blixard/store"
	"github.com/blixard/blixard/systemd"
)

const (
	// probeEvery is how often the member is asked whether it answers: a member
	// that hangs is found within this and the time it may take, and between
	// cycles nothing else costs as much.
	probeEvery = 5 * time.Second
	// gcPercent trades processor time for memory: what lives is small, and the
	// garbage of a listing or a scrape need not pile up to as much again.
	gcPercent = 50
)

// daemon is the running daemon: what main wires together.
type daemon struct {
	cfg     config.Config
	load    func() (config.Config, error)
	level   *slog.LevelVar
	log     *slog.Logger
	self    *metrics.Self
	store   *store.Store
	member  *store.Supervisor
	monitor *monitor.Monitor
	fleet   *fleet.Fleet
	notify  *systemd.Notifier
}

// serve runs the daemon until ctx ends. load reads the configuration anew.
func serve(ctx context.Context, cfg config.Config, load func() (config.Config, error), stderr io.Writer) (err error) {
	d := &daemon{cfg: cfg, load: load, level: new(slog.LevelVar), notify: systemd.NewNotifier()}
	d.level.Set(cfg.Log.Level)
	d.log = newLogger(stderr, cfg.Log.Format, d.level)
	debug.SetGCPercent(gcPercent)

	dir, err := store.OpenDir(cfg.DataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	socket, err := api.Listen(ctx, cfg.API.Socket)
	if err != nil {
		return err
	}
	defer socket.Close()
	listeners := []net.Listener{socket}
	var loopback net.Listener
	if cfg.Metrics.Listen != "" {
		if loopback, err = net.Listen("tcp", cfg.Metrics.Listen); err != nil {
			return fmt.Errorf("listen for metrics: %w", err)
		}
		defer loopback.Close()
		listeners = append(listeners, loopback)
	}
	if err := d.build(dir); err != nil {
		return err
	}
	d.log.Info("started", "version", version, "node", cfg.NodeName, "id", dir.NodeID(), "data_dir", cfg.DataDir, "socket", cfg.API.Socket)
	return d.run(ctx, listeners)
}

func newLogger(w io.Writer, format string, level slog.Leveler) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level}
	if format == config.FormatJSON {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	if os.Getenv("JOURNAL_STREAM") != "" {
		// The journal has the time already.
		opts.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// build makes the parts, none of which runs yet.
func (d *daemon) build(dir *store.Dir) (err error) {
	node := blixard.NodeRecord{ID: dir.NodeID(), Name: d.cfg.NodeName, Version: version, StartedAt: time.Now()}
	member := store.MemberConfig{Dir: dir.MemberDir(), SocketDir: filepath.Join(filepath.Dir(d.cfg.API.Socket), "member"), QuotaBytes: int64(d.cfg.Store.Quota)}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	d.member = store.NewSupervisor(store.SupervisorConfig{Member: member, Command: append([]string{self, "member"}, member.Args()...),
		ProbeEvery: probeEvery, Logger: d.log.With("part", "member")})
	d.store, err = store.Open(store.Config{Endpoints: []string{member.ClientURL()}, Node: node, MaxEvents: d.cfg.Events.Max,
		Supervisor: d.member, Logger: d.log.With("part", "store")})
	if err != nil {
		return err
	}
	d.self = metrics.NewSelf(version, commit)
	settings, err := settings(&d.cfg)
	if err != nil {
		return err
	}
	d.monitor = monitor.New(monitor.Config{Settings: settings, Node: node, BufferEvents: d.cfg.Events.Buffer,
		Dial: d.dial, Users: cgroups{}, Store: &records{d.store, node.Name}, Meter: d.self, Log: d.log.With("part", "monitor")})
	d.fleet = fleet.New(fleet.Config{Node: node, Host: d.monitor, Store: d.store})
	return nil
}

// dial connects to a manager; what units matter is asked anew each time, since
// the patterns may have been given anew.
func (d *daemon) dial(ctx context.Context, manager string, u monitor.Units) (monitor.Bus, string, error) {
	return dial(ctx, manager, u, d.self)
}

// settings are what of the configuration a running monitor takes up.
func settings(cfg *config.Config) (monitor.Settings, error) {
	scanner, err := microvm.NewScanner(microvm.Config{StateDirs: cfg.Discovery.StateDirs, StoreDir: cfg.Discovery.StoreDir})
	if err != nil {
		return monitor.Settings{}, err
	}
	patterns := microvm.Patterns{System: []string{cfg.Discovery.SystemUnits}, User: []string{cfg.Discovery.UserUnits}}
	if err := patterns.Validate(); err != nil {
		return monitor.Settings{}, err
	}
	return monitor.Settings{
		Interval:     cfg.Interval,
		UserManagers: cfg.Discovery.UserManagers,
		Policy: correlate.Config{Adopt: cfg.Tracking.Adopt, StaleAfter: cfg.Tracking.StaleAfter,
			UnknownAfter:  time.Duration(cfg.Tracking.UnknownAfter) * cfg.Interval,
			CrashRestarts: cfg.Crashloop.Restarts, CrashWindow: cfg.Crashloop.Window},
		Units: &units{patterns},
		Files: &files{scanner},
	}, nil
}

// run runs the parts until ctx ends, then ends them in order: the monitor
// first, which has last things to write, then the store, then its member.
func (d *daemon) run(ctx context.Context, listeners []net.Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var member, st, rest sync.WaitGroup
	memberCtx, stopMember := context.WithCancel(context.WithoutCancel(ctx))
	storeCtx, stopStore := context.WithCancel(context.WithoutCancel(ctx))
	start := func(wg *sync.WaitGroup, name string, f func() error) {
		wg.Go(func() {
			if err := f(); err != nil && !errors.Is(err, context.Canceled) {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	start(&member, "member", func() error { return d.member.Run(memberCtx) })
	start(&st, "store", func() error { return d.store.Run(storeCtx) })
	start(&rest, "monitor", func() error { return d.monitor.Run(ctx) })
	for i, l := range listeners {
		start(&rest, "api", func() error {
			h, err := d.handler(i == 0)
			if err != nil {
				return err
			}
			return api.Serve(ctx, l, h, d.log.With("part", "api"))
		})
	}
	start(&rest, "notify", func() error { return d.tell(ctx) })
	start(&rest, "reload", func() error { return d.reloads(ctx) })

	<-ctx.Done()
	d.told(d.notify.Stopping())
	d.log.Info("ending", "cause", context.Cause(ctx))
	rest.Wait()
	stopStore()
	st.Wait()
	// A member that ends waits for its clients.
	err := d.store.Close()
	stopMember()
	member.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		err = errors.Join(cause, err)
	}
	return err
}

// handler is the whole API on the socket, and the metrics alone elsewhere.
func (d *daemon) handler(whole bool) (http.Handler, error) {
	m := metrics.NewHandler(d.fleet, d.self)
	if !whole {
		mux := http.NewServeMux()
		mux.Handle("GET /metrics", m)
		mux.Handle("GET /healthz", http.HandlerFunc(d.healthz))
		mux.Handle("GET /readyz", http.HandlerFunc(d.readyz))
		return mux, nil
	}
	return api.NewServer(api.ServerConfig{Fleet: d.fleet, Logger: d.log.With("part", "api"), Version: version,
		Authorizer: api.SocketAuthorizer{UID: uint32(os.Getuid()), Group: d.cfg.API.Group},
		Health:     http.HandlerFunc(d.healthz), Ready: http.HandlerFunc(d.readyz), Metrics: m})
}

// healthz says that the daemon's loops move.
func (d *daemon) healthz(w http.ResponseWriter, _ *http.Request) {
	if loop := d.monitor.Stuck(stuckAfter); loop != "" {
		http.Error(w, "the "+loop+" loop does not move", http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

// readyz says that what is served is true: the units were listed, and not too
// long ago.
func (d *daemon) readyz(w http.ResponseWriter, _ *http.Request) {
	m, ok := d.monitor.View().Managers[blixard.SystemManager]
	switch {
	case !ok || m.Listed.IsZero():
		http.Error(w, "the units are not listed yet: "+m.Reason, http.StatusServiceUnavailable)
	case !m.Lost.IsZero():
		http.Error(w, "the system's manager is not reached: "+m.Reason, http.StatusServiceUnavailable)
	default:
		fmt.Fprintln(w, "ok")
	}
}

// reloads reads the configuration again at each SIGHUP. A faulty one changes
// nothing.
func (d *daemon) reloads(ctx context.Context) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
		}
		d.told(d.notify.Reloading())
		if err := d.reload(ctx); err != nil {
			d.log.Error("configuration not taken up; the one before stands", "err", err)
		}
		d.told(d.notify.Ready())
	}
}

func (d *daemon) reload(ctx context.Context) error {
	cfg, err := d.load()
	if err != nil {
		return err
	}
	s, err := settings(&cfg)
	if err != nil {
		return err
	}
	if keys := config.NeedRestart(&d.cfg, &cfg); len(keys) > 0 {
		d.log.Warn("these keys are taken up at the next start only", "keys", keys)
	}
	d.level.Set(cfg.Log.Level)
	if err := d.monitor.Reconfigure(ctx, s); err != nil {
		return err
	}
	d.log.Info("configuration read again")
	return nil
}
