package correlate

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/blixard/blixard"
)

// epoch is when every world begins.
var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// unit is one unit of a world as its manager holds it.
type unit struct {
	w       *world
	manager string
	kind    Kind
	vm      string
	helper  string
	name    string

	load, active, sub, job string
	// unreadable says that its properties cannot be read now.
	unreadable bool

	restart, typ, inv, result string
	n, pid                    uint32
	code, exit                int32
	started, changed          time.Time
	dropIns                   []string
	last                      blixard.UnitProperties
}

// state moves the unit.
func (u *unit) state(active, sub string) {
	if u.active != active || u.sub != sub {
		u.changed = u.w.now
	}
	u.active, u.sub = active, sub
	if active == "active" || active == "activating" && !autoRestart(sub) {
		u.result, u.code, u.exit = "success", 0, 0
		u.started = u.w.now
	}
}

func (u *unit) unit() blixard.Unit {
	return blixard.Unit{Name: u.name, LoadState: u.load, ActiveState: u.active, SubState: u.sub, JobType: u.job, Path: "/unit/" + u.name}
}

func (u *unit) properties() *blixard.UnitProperties {
	return &blixard.UnitProperties{Unit: u.unit(), InvocationID: u.inv, StateChange: u.changed, Service: true, Type: u.typ,
		Restart: u.restart, NRestarts: u.n, Result: u.result, ExecMainCode: u.code, ExecMainStatus: u.exit, MainPID: u.pid,
		ExecMainStart: u.started, DropInPaths: u.dropIns}
}

// row is the unit as a watcher tells it: with its properties if they changed.
func (u *unit) row() Row {
	r := Row{Kind: u.kind, VM: u.vm, Helper: u.helper, Unit: u.unit()}
	if u.kind != KindVM {
		return r
	}
	if u.unreadable {
		r.Unread = true
		u.last = blixard.UnitProperties{}
		return r
	}
	p := u.properties()
	if fmt.Sprintf("%+v", *p) != fmt.Sprintf("%+v", u.last) {
		u.last, r.Properties = *p, p
	}
	return r
}

// world is a host with its managers, files and records, and the Tracker that
// follows it.
type world struct {
	cfg   Config
	now   time.Time
	t     *Tracker
	units map[string]*unit
	files map[string]Definition
	// store is what the commands made of the records.
	store map[blixard.VMID]*blixard.VMRecord
	// kept are the events of every life of the Tracker.
	kept []blixard.Event
	// commands are those of the last step, events its events.
	commands []blixard.Command
	events   []blixard.Event
	epochs   uint64
	// faults are the rules that a step broke.
	faults []string
	// snapshots are views with what they said when they were made.
	snapshots []snapshot
}

type snapshot struct {
	entries []Entry
	text    string
}

func newWorld() *world {
	w := &world{now: epoch, units: map[string]*unit{}, files: map[string]Definition{}, store: map[blixard.VMID]*blixard.VMRecord{},
		cfg: Config{Node: "host", Adopt: true, StaleAfter: 3, UnknownAfter: 90 * time.Second, CrashRestarts: 3, CrashWindow: 2 * time.Minute}}
	w.t = New(w.cfg)
	return w
}

// unit finds or makes a unit by VM[:HELPER], install:VM or target.
func (w *world) unit(manager, ref string) *unit {
	k := manager + " " + ref
	if u := w.units[k]; u != nil {
		return u
	}
	u := &unit{w: w, manager: manager, load: "loaded", restart: "always", typ: "simple", result: "success", changed: w.now}
	vm, helper, isHelper := strings.Cut(ref, ":")
	switch {
	case ref == "target":
		u.kind, u.name = KindTarget, "microvms.target"
	case vm == "install" && isHelper:
		u.kind, u.vm, u.name = KindInstall, helper, "install-microvm-"+helper+".service"
	case isHelper:
		u.kind, u.vm, u.helper, u.name = KindHelper, vm, helper, "microvm-"+helper+"@"+vm+".service"
	case manager == blixard.SystemManager:
		u.kind, u.vm, u.name = KindVM, vm, "microvm@"+vm+".service"
	default:
		u.kind, u.vm, u.name = KindVM, vm, "microvm-"+vm+".service"
	}
	w.units[k] = u
	return u
}

func (w *world) gone(manager, ref string) { delete(w.units, manager+" "+ref) }

// restartTracker ends the Tracker and makes another, as when the daemon is
// started again.
func (w *world) restartTracker() {
	w.t = New(w.cfg)
	for _, u := range w.units {
		u.last = blixard.UnitProperties{}
	}
}

// list has a manager tell everything.
func (w *world) list(manager string) {
	o := Observation{Manager: manager, Complete: true}
	for _, k := range slices.Sorted(maps.Keys(w.units)) {
		if u := w.units[k]; u.manager == manager {
			o.Rows = append(o.Rows, u.row())
		}
	}
	w.t.Observe(w.now, o)
	w.settle()
}

// hint has a manager tell some units; one that is not there is gone.
func (w *world) hint(manager string, refs ...string) { w.hintJobs(manager, nil, refs...) }

func (w *world) hintJobs(manager string, jobs map[string]string, refs ...string) {
	o := Observation{Manager: manager, Jobs: jobs}
	for _, ref := range refs {
		if u := w.units[manager+" "+ref]; u != nil {
			if u.kind == KindVM {
				u.last = blixard.UnitProperties{} // hinted units are always read
			}
			o.Rows = append(o.Rows, u.row())
			continue
		}
		u := w.unit(manager, ref)
		w.gone(manager, ref)
		o.Rows = append(o.Rows, Row{Kind: u.kind, VM: u.vm, Helper: u.helper, Unit: blixard.Unit{Name: u.name}, Gone: true})
	}
	w.t.Observe(w.now, o)
	w.settle()
}

// readFiles reads all files.
func (w *world) readFiles() {
	w.t.SetDefinitions(w.now, maps.Clone(w.files), true, "")
	w.settle()
}

// tick lets time pass in the engine's steps.
func (w *world) tick(d time.Duration) {
	var commands []blixard.Command
	var events []blixard.Event
	for end := w.now.Add(d); w.now.Before(end); {
		w.now = w.now.Add(min(time.Second, end.Sub(w.now)))
		w.t.Tick(w.now)
		w.settle()
		commands, events = append(commands, w.commands...), append(events, w.events...)
	}
	w.commands, w.events = commands, events
}

// records loads what the store holds.
func (w *world) records() {
	var rs []blixard.VMRecord
	for _, r := range w.store {
		rs = append(rs, *r)
	}
	slices.SortFunc(rs, func(a, b blixard.VMRecord) int { return strings.Compare(a.VMID.String(), b.VMID.String()) })
	w.t.SetRecords(w.now, rs, slices.Clone(w.kept))
	w.settle()
}

// settle takes what the Tracker has to write, and writes it.
func (w *world) settle() {
	w.commands, w.events = w.t.Take()
	for _, c := range w.commands {
		w.apply(c)
	}
	w.kept = append(w.kept, w.events...)
	for i := range w.events {
		if w.events[i].Node != w.cfg.Node {
			w.fault("an event of node %q", w.events[i].Node)
		}
	}
	w.look()
}

func (w *world) fault(format string, args ...any) {
	w.faults = append(w.faults, fmt.Sprintf(format, args...))
}

// look takes a view and keeps what it says.
func (w *world) look() {
	entries, _ := w.t.View()
	w.snapshots = append(w.snapshots, snapshot{entries, text(entries)})
	if len(w.snapshots) > 64 {
		w.snapshots = w.snapshots[1:]
	}
}

// changedViews counts the views that do not say any more what they said.
func (w *world) changedViews() int {
	n := 0
	for _, s := range w.snapshots {
		if text(s.entries) != s.text {
			n++
		}
	}
	return n
}

func text(entries []Entry) string {
	b, err := json.Marshal(entries)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// apply is the store, by what command.go says of each command.
func (w *world) apply(c blixard.Command) {
	id := c.Target()
	r := w.store[id]
	if r != nil && r.RemovedAt != nil {
		if reg, ok := c.(blixard.RegisterVM); !ok || !reg.Readopt {
			w.fault("%T for the removed VM %s", c, id)
			return
		}
	}
	switch c := c.(type) {
	case blixard.RegisterVM:
		if r == nil || r.RemovedAt != nil {
			w.epochs++
			r = &blixard.VMRecord{VMID: id, Epoch: w.epochs, RegisteredAt: c.ObservedAt}
			w.store[id] = r
		} else {
			w.fault("RegisterVM for the recorded VM %s", id)
		}
		r.Unit, r.Status, r.Definition, r.Helpers, r.ObservedAt, r.StaleSince = c.Unit, c.Status, c.Definition, c.Helpers, c.ObservedAt, nil
	case blixard.UpdateState:
		if r == nil || c.Epoch != 0 && c.Epoch != r.Epoch {
			w.fault("UpdateState for %s, which has no such registration (epoch %d)", id, c.Epoch)
			return
		}
		r.Status, r.Definition, r.Helpers, r.ObservedAt, r.StaleSince = c.Status, c.Definition, c.Helpers, c.ObservedAt, c.StaleSince
	case blixard.UpdateHealth:
		if r == nil || c.Epoch != 0 && c.Epoch != r.Epoch {
			w.fault("UpdateHealth for %s, which has no such registration (epoch %d)", id, c.Epoch)
			return
		}
		r.Health = &c.Health
	case blixard.RemoveVM:
		if r == nil {
			w.fault("RemoveVM for %s, which is not recorded", id)
			return
		}
		r.RemovedAt = &c.RemovedAt
	default:
		w.fault("command %T", c)
	}
}

// view finds a VM in the view; nil when it is not shown.
func (w *world) view(manager, name string) *blixard.VM {
	entries, _ := w.t.View()
	for i := range entries {
		if v := entries[i].VM; v.Manager == manager && v.Name == name {
			return v
		}
	}
	return nil
}

// of keeps the events of one VM of the given types, all types when none is.
func of(events []blixard.Event, manager, name string, types ...blixard.EventType) []blixard.Event {
	var out []blixard.Event
	for _, e := range events {
		if e.VM == name && e.Manager == manager && (len(types) == 0 || slices.Contains(types, e.Type)) {
			out = append(out, e)
		}
	}
	return out
}

// restartsTold sums the counts of a VM's restart events.
func restartsTold(events []blixard.Event, manager, name string) (n uint64) {
	for _, e := range of(events, manager, name, blixard.EventRestart) {
		n += e.Count
	}
	return n
}

// chain follows a VM's events: what each state event says it was before is what
// the one before said it became.
func chain(events []blixard.Event, manager, name string) error {
	at, known := "", false
	for i, e := range of(events, manager, name) {
		switch e.Type {
		case blixard.EventRegistered, blixard.EventReturned:
			at, known = e.To, true
		case blixard.EventStale:
			at, known = string(blixard.StateUnknown), true
		case blixard.EventRemoved:
			known = false
		case blixard.EventState:
			if known && e.From != at {
				return fmt.Errorf("event %d of %s: from %s, but it was %s", i, name, e.From, at)
			}
			if e.From == e.To && e.Detail == "" {
				return fmt.Errorf("event %d of %s: from %s to itself", i, name, e.From)
			}
			at, known = e.To, true
		}
	}
	return nil
}
