package monitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/correlate"
	"github.com/cenkalti/backoff/v5"
)

// ErrNoUnit is what Bus.Properties returns for a unit that is not loaded.
var ErrNoUnit = errors.New("unit not loaded")

// Bounds of a watcher.
const (
	// hintUnits is how many hinted units are asked for by name; with more, one
	// listing of all is cheaper.
	hintUnits = 64
	// beatEvery is how often a loop that waits says that it is alive.
	beatEvery = 5 * time.Second
	// redialMin and redialMax bound the pause before a lost manager is dialed
	// again; it heals within 5 s.
	redialMin = 50 * time.Millisecond
	redialMax = 2 * time.Second
	// logoutGrace is how long a user's manager may be away unsaid.
	logoutGrace = 5 * time.Second
)

// watcher follows one service manager.
type watcher struct {
	manager  string
	interval time.Duration
	dial     func(ctx context.Context, manager string, units Units) (Bus, string, error)
	units    Units
	meter    Meter
	log      *slog.Logger
	// deliver hands an observation to the engine and waits until it is taken.
	deliver func(ctx context.Context, f func(now time.Time, t *correlate.Tracker)) error
	// version is told the manager's version at each connect.
	version func(string)
	// sighted, for a user's manager, tells the units that other traces show.
	sighted func() ([]string, error)
	// ended, for a user's manager, says that it is known not to run.
	ended *atomic.Bool
	// users, for the system's manager, is told which users' managers run.
	users func(ctx context.Context, running map[string]bool)
	beat  *beat

	// last is each unit as it was last told; a unit without known properties
	// is not in it.
	last map[string]blixard.Unit
	// awaited are the units whose answers are still to come, by late; renewed
	// those of them that changed meanwhile. wg counts the goroutines of the
	// connection.
	awaited, renewed map[string]bool
	late             chan answer
	wg               *sync.WaitGroup
}

// Run watches until the context ends.
func (w *watcher) Run(ctx context.Context) error {
	delays := backoff.NewExponentialBackOff()
	delays.InitialInterval, delays.MaxInterval = redialMin, redialMax
	var lost time.Time
	for ctx.Err() == nil {
		w.beat.now()
		if w.ended != nil && w.ended.Load() {
			// No manager, no units: an answer as good as a listing.
			w.last = nil
			_ = w.observe(ctx, correlate.Observation{Manager: w.manager, Complete: true})
			w.pause(ctx, w.interval)
			lost = time.Time{}
			continue
		}
		listed, err := w.session(ctx)
		if ctx.Err() != nil {
			break
		}
		if listed {
			delays.Reset()
			lost = time.Now()
		}
		// A user who logs out takes the bus along before the system's manager
		// says that the user's ended, so a user's manager gets a moment.
		if w.ended == nil || lost.IsZero() || time.Since(lost) > logoutGrace {
			w.lost(ctx, err)
		}
		w.pause(ctx, delays.NextBackOff())
	}
	return nil
}

// pause waits in steps that keep the beat, and ends early when a user's manager
// comes or goes.
func (w *watcher) pause(ctx context.Context, d time.Duration) {
	ended := w.ended != nil && w.ended.Load()
	for end := time.Now().Add(d); ctx.Err() == nil; {
		left := time.Until(end)
		if left <= 0 || w.ended != nil && w.ended.Load() != ended {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(min(left, beatEvery)):
		}
		w.beat.now()
	}
}

// lost tells the engine that the manager cannot be reached, and what can be
// seen without it.
func (w *watcher) lost(ctx context.Context, err error) {
	reason, hint := err.Error(), ""
	if e, ok := errors.AsType[*blixard.Error](err); ok {
		reason, hint = e.Message, e.Hint
	}
	reason = strings.ReplaceAll(reason, "\n", "; ")
	var names []string
	if w.sighted != nil {
		units, serr := w.sighted()
		if serr != nil {
			w.log.Debug("cannot look for the user's units", "manager", w.manager, "err", serr)
		}
		for _, u := range units {
			if kind, vm, _, ok := w.units.Classify(w.manager, u); ok && kind == correlate.KindVM {
				names = append(names, vm)
			}
		}
	}
	_ = w.deliver(ctx, func(now time.Time, t *correlate.Tracker) {
		t.Lost(now, w.manager, reason, hint)
		if len(names) > 0 {
			if hint != "" {
				reason += " (" + hint + ")"
			}
			t.Sighted(now, w.manager, names, reason)
		}
	})
}

// session is one connection: it returns when that is lost. listed says that it
// got as far as one complete listing.
func (w *watcher) session(ctx context.Context) (listed bool, err error) {
	bus, version, err := w.dial(ctx, w.manager, w.units)
	if err != nil {
		return false, err
	}
	w.version(version)
	sctx, cancel := context.WithCancel(ctx)
	wg := new(sync.WaitGroup)
	w.wg, w.late = wg, make(chan answer)
	w.awaited, w.renewed = map[string]bool{}, map[string]bool{}
	hints := make(chan blixard.Hints)
	var hintsErr error
	wg.Go(func() {
		defer close(hints)
		for {
			h, err := bus.Hints(sctx)
			if err != nil {
				hintsErr = err
				return
			}
			select {
			case hints <- h:
			case <-sctx.Done():
				return
			}
		}
	})
	defer func() {
		cancel()
		bus.Close()
		wg.Wait()
	}()

	w.last = map[string]blixard.Unit{}
	if err := w.list(sctx, bus, nil, nil); err != nil {
		return false, err
	}
	next := time.Now().Add(w.interval)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		w.beat.now()
		timer.Reset(min(time.Until(next), beatEvery))
		select {
		case <-ctx.Done():
			return true, ctx.Err()
		case h, ok := <-hints:
			if !ok {
				return true, hintsErr
			}
			err = w.hinted(sctx, bus, h)
		case a := <-w.late:
			err = w.lateAnswer(sctx, bus, a)
		case <-timer.C:
			if w.ended != nil && w.ended.Load() {
				return true, errors.New("the user's manager ended")
			}
			if time.Now().Before(next) {
				continue
			}
			// The next listing keeps its place; those missed are skipped.
			for !next.After(time.Now()) {
				next = next.Add(w.interval)
			}
			err = w.list(sctx, bus, nil, nil)
		}
		if err != nil {
			return true, err
		}
	}
}

// hinted takes in hints: the named units are read again, or all are listed.
func (w *watcher) hinted(ctx context.Context, bus Bus, h blixard.Hints) error {
	if h.Reloading {
		// The manager answers when it is done; the listing then waits for it.
		return nil
	}
	jobs := w.jobs(h.Jobs)
	if h.All {
		clear(w.last)
		return w.list(ctx, bus, nil, jobs)
	}
	if len(h.Units) > hintUnits || w.users != nil && slices.ContainsFunc(h.Units, IsUserManager) {
		return w.list(ctx, bus, h.Units, jobs)
	}
	if len(h.Units) == 0 {
		if len(jobs) > 0 {
			return w.observe(ctx, correlate.Observation{Manager: w.manager, Jobs: jobs})
		}
		return nil
	}
	units, err := bus.ListUnits(ctx, h.Units...)
	if err != nil {
		return fmt.Errorf("list hinted units: %w", err)
	}
	rows, err := w.rows(ctx, bus, units, h.Units)
	if err != nil {
		return err
	}
	found := map[string]bool{}
	for i := range units {
		found[units[i].Name] = true
	}
	for _, name := range h.Units {
		kind, vm, helper, ok := w.units.Classify(w.manager, name)
		if ok && !found[name] {
			delete(w.last, name)
			rows = append(rows, correlate.Row{Kind: kind, VM: vm, Helper: helper, Unit: blixard.Unit{Name: name}, Gone: true})
		}
	}
	return w.observe(ctx, correlate.Observation{Manager: w.manager, Rows: rows, Jobs: jobs})
}

// jobs are the failed starts among finished jobs, by VM.
func (w *watcher) jobs(results []blixard.JobResult) map[string]string {
	var out map[string]string
	for _, j := range results {
		switch j.Result {
		case "failed", "dependency", "timeout", "assert":
		default:
			continue
		}
		kind, vm, _, ok := w.units.Classify(w.manager, j.Unit)
		if !ok || kind != correlate.KindVM {
			continue
		}
		if out == nil {
			out = map[string]string{}
		}
		out[vm] = j.Result
	}
	return out
}

// list lists all units and reads the properties of those that changed or are
// named.
func (w *watcher) list(ctx context.Context, bus Bus, changed []string, jobs map[string]string) error {
	start := time.Now()
	units, err := bus.ListUnits(ctx, w.patterns()...)
	if err != nil {
		w.meter.Listed(w.manager, time.Since(start), err)
		return fmt.Errorf("list units: %w", err)
	}
	rows, err := w.rows(ctx, bus, units, changed)
	if err == nil && len(w.last) > len(units) {
		listed := make(map[string]bool, len(units))
		for i := range units {
			listed[units[i].Name] = true
		}
		for name := range w.last {
			if !listed[name] {
				delete(w.last, name)
			}
		}
	}
	w.meter.Listed(w.manager, time.Since(start), err)
	if err != nil {
		return err
	}
	if w.users != nil {
		w.users(ctx, userManagers(units))
	}
	return w.observe(ctx, correlate.Observation{Manager: w.manager, Complete: true, Rows: rows, Jobs: jobs})
}

func (w *watcher) patterns() []string {
	p := w.units.Patterns(w.manager)
	if w.users != nil {
		p = append(p[:len(p):len(p)], userUnits)
	}
	return p
}

// rows makes rows of units, with the properties of VMs' units that are named
// in changed or differ from what was last told.
func (w *watcher) rows(ctx context.Context, bus Bus, units []blixard.Unit, changed []string) ([]correlate.Row, error) {
	again := make(map[string]bool, len(changed))
	for _, name := range changed {
		again[name] = true
	}
	rows := make([]correlate.Row, 0, len(units))
	var read []int
	for i := range units {
		u := &units[i]
		kind, vm, helper, ok := w.units.Classify(w.manager, u.Name)
		if !ok {
			continue
		}
		row := correlate.Row{Kind: kind, VM: vm, Helper: helper, Unit: *u}
		if kind == correlate.KindVM {
			if last, ok := w.last[u.Name]; !ok || last != *u || again[u.Name] {
				if w.awaited[u.Name] {
					w.renewed[u.Name] = true
					w.await(&row)
				} else {
					read = append(read, len(rows))
				}
			}
		}
		rows = append(rows, row)
	}
	if err := w.properties(ctx, bus, rows, read); err != nil {
		return nil, err
	}
	return rows, nil
}

func (w *watcher) observe(ctx context.Context, o correlate.Observation) error {
	return w.deliver(ctx, func(now time.Time, t *correlate.Tracker) { t.Observe(now, o) })
}

// userUnits is the pattern of the units that run users' managers.
const userUnits = "user@*.service"

// IsUserManager reports whether a unit of the system's manager runs a user's
// manager: a Bus hints of it too.
func IsUserManager(unit string) bool {
	return strings.HasPrefix(unit, "user@") && strings.HasSuffix(unit, ".service")
}

// userManagers finds the users' managers that run in a listing of the system's.
func userManagers(units []blixard.Unit) map[string]bool {
	out := map[string]bool{}
	for i := range units {
		u := &units[i]
		uid, ok := strings.CutPrefix(u.Name, "user@")
		if !ok || u.ActiveState != "active" {
			continue
		}
		uid = strings.TrimSuffix(uid, ".service")
		if n, err := strconv.ParseUint(uid, 10, 32); err == nil {
			out[blixard.UserManager(uint32(n))] = true
		}
	}
	return out
}
