package correlate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/blixard/blixard"
)

// Config holds the Tracker's policy.
type Config struct {
	// Node is the name of the node whose VMs are tracked.
	Node string
	// Adopt registers VMs that are seen and not recorded.
	Adopt bool
	// StaleAfter is how many complete observations in a row must miss a VM
	// until it is stale, at least 1.
	StaleAfter int
	// UnknownAfter is how long a VM's state stands without being confirmed.
	UnknownAfter time.Duration
	// CrashRestarts automatic restarts within CrashWindow are a crash loop.
	CrashRestarts int
	CrashWindow   time.Duration
}

// key identifies a VM on its host.
type key struct{ manager, name string }

// manager is what the Tracker knows of one service manager.
type manager struct {
	// listed is when it last told everything, zero when never.
	listed time.Time
	// lost is when it could not be reached any more, zero while it can.
	lost         time.Time
	reason, hint string
	targetActive bool
}

// vm is what the Tracker knows of one VM.
type vm struct {
	key
	unit string
	// seen says that a manager confirmed the status since the Tracker was made.
	seen   bool
	loaded bool
	row    blixard.Unit
	props  *blixard.UnitProperties
	// jobStop says that a stop job was seen since the unit last started,
	// jobResult how its last start failed before it began.
	jobStop   bool
	jobResult string
	// run is the last run that was seen to be up, runRestarts NRestarts then.
	run         string
	runRestarts uint32
	// stoppedRun is the run that a record says ended by a stop job.
	stoppedRun string
	// installed is the number of the last observation that listed the unit that
	// installs the VM, 0 when the last complete one did not.
	installed uint64
	def       *Definition
	// unreadable says that it is not known whether the files define it.
	unreadable bool
	helpers    map[string]helper
	// turn is the number of the last observation that listed the unit.
	turn uint64

	status     blixard.VMStatus
	definition blixard.VMDefinition
	health     *blixard.VMHealth
	restarts   restarts
	// ended is when it was last seen stopped or failed, or started by hand: the
	// restarts before are no part of a crash loop after.
	ended time.Time
	// lastRestarts is NRestarts as last told.
	lastRestarts *uint32
	// heldRestarts wait to be told in one event while the VM crash loops.
	heldRestarts   uint64
	restartEventAt time.Time

	misses     int
	staleSince *time.Time
	// confirmed is when the status was last confirmed by something other than
	// a complete listing; missing says that such a listing no longer does.
	confirmed time.Time
	missing   bool
	// sighted is the reason why the VM is known to be there but not its state.
	sighted string
	// unverified says that the manager is away for longer than UnknownAfter.
	unverified bool

	// first is what was seen of it before its record could be read; nil when
	// nothing was, and once it is known whether there is one.
	first *firstSight

	// rec is what the store holds or has been told; nil when nothing.
	rec *recorded
	// goneSinceRemoval says that a removed VM was seen to be gone: when it
	// comes back, it is a new one.
	goneSinceRemoval bool

	view  *blixard.VM
	dirty bool
}

// helper is a helper's state and the number of the last observation that listed
// it.
type helper struct {
	blixard.Helper
	turn uint64
}

// recorded is what the store was last told of a VM.
type recorded struct {
	status     blixard.VMStatus
	definition blixard.VMDefinition
	helpers    []blixard.Helper
	health     *blixard.VMHealth
	staleSince *time.Time
	removedAt  *time.Time
	epoch      uint64
}

// Tracker follows the VMs of one host.
type Tracker struct {
	cfg Config
	vms map[key]*vm
	// order is the VMs by name and manager.
	order    []*vm
	managers map[string]*manager
	// turn numbers the observations.
	turn uint64
	// records says that SetRecords was called: before, nothing is written.
	records bool
	// filesComplete says that the last reading of the host's files was whole.
	filesComplete bool
	filesKnown    bool
	filesReason   string

	commands []blixard.Command
	events   []blixard.Event
	// early are the VMs' events that wait for SetRecords, earlyLost how many
	// of them were dropped.
	early     []blixard.Event
	earlyLost uint64
	// touched is the system's VMs whose unit started or stopped.
	touched []string
	changed bool
}

// New makes a Tracker that knows nothing yet.
func New(cfg Config) *Tracker {
	return &Tracker{cfg: cfg, vms: map[key]*vm{}, managers: map[string]*manager{}}
}

// SetPolicy changes the policy from now on.
func (t *Tracker) SetPolicy(cfg Config) { t.cfg = cfg }

// Take hands over what is to be written and forgets it. Before SetRecords there
// are only events of the node: what happens to a VM waits until it is known
// whether the VM is recorded, and what its record says of the time before.
func (t *Tracker) Take() ([]blixard.Command, []blixard.Event) {
	c, e := t.commands, t.events
	t.commands, t.events = nil, nil
	return c, e
}

func (t *Tracker) manager(name string) *manager {
	m := t.managers[name]
	if m == nil {
		m = &manager{}
		t.managers[name] = m
	}
	return m
}

func (t *Tracker) vm(k key) *vm {
	v := t.vms[k]
	if v == nil {
		v = &vm{key: k, helpers: map[string]helper{}, dirty: true,
			status: blixard.VMStatus{State: blixard.StateUnknown}}
		t.vms[k] = v
		i, _ := slices.BinarySearchFunc(t.order, k, compare)
		t.order = slices.Insert(t.order, i, v)
	}
	return v
}

// drop forgets a VM.
func (t *Tracker) drop(v *vm) {
	delete(t.vms, v.key)
	if i, ok := slices.BinarySearchFunc(t.order, v.key, compare); ok {
		t.order = slices.Delete(t.order, i, i+1)
	}
	t.changed = true
}

// compare orders VMs by name, then by manager.
func compare(v *vm, k key) int {
	return cmp.Or(strings.Compare(v.name, k.name), strings.Compare(v.manager, k.manager))
}

// Observe takes in what a manager told.
func (t *Tracker) Observe(now time.Time, o Observation) {
	m := t.manager(o.Manager)
	if !m.lost.IsZero() {
		if !m.listed.IsZero() {
			t.nodeEvent(now, blixard.EventManagerReturned, o.Manager, fmt.Sprintf("%s manager reached again after %s", o.Manager, now.Sub(m.lost).Round(time.Millisecond)))
		}
		m.lost, m.reason, m.hint = time.Time{}, "", ""
	}
	listed := m.listed
	if o.Complete {
		m.listed = now
		m.targetActive = false
	}
	t.turn++
	touched := map[*vm]bool{}
	var installs []*Row
	for i := range o.Rows {
		r := &o.Rows[i]
		switch r.Kind {
		case KindTarget:
			m.targetActive = r.Unit.ActiveState == "active"
			continue
		case KindInstall:
			installs = append(installs, r) // their VMs may come later
			continue
		}
		absent := r.absent()
		k := key{o.Manager, r.VM}
		v := t.vms[k]
		if v == nil {
			if absent {
				continue
			}
			v = t.vm(k)
		}
		switch r.Kind {
		case KindVM:
			v.unit = r.Unit.Name
			if absent {
				v.setUnloaded()
				v.unverified, v.confirmed = false, now
			} else {
				v.setLoaded(now, r)
				v.turn = t.turn
				v.confirm(now)
			}
			touched[v] = true
		case KindHelper:
			t.setHelper(now, v, r, absent)
			touched[v] = true
		}
	}
	for _, r := range installs {
		v := t.vms[key{o.Manager, r.VM}]
		if v == nil {
			continue
		}
		if r.absent() != (v.installed == 0) {
			v.dirty = true
			touched[v] = true
		}
		v.installed = 0
		if !r.absent() {
			v.installed = t.turn
		}
	}
	for name, result := range o.Jobs {
		if v := t.vms[key{o.Manager, name}]; v != nil && !v.loadedAndUp() && v.jobResult != result {
			v.jobResult, v.dirty = result, true
			touched[v] = true
		}
	}
	if o.Complete {
		t.complete(now, o.Manager, listed)
		return
	}
	for _, v := range t.order {
		if touched[v] {
			t.update(now, v)
		}
	}
}

// complete finishes a complete observation: what it did not mention is not
// loaded, and what nothing defines either is missing. before is when the
// manager told everything the last time.
func (t *Tracker) complete(now time.Time, manager string, before time.Time) {
	system := manager == blixard.SystemManager
	for _, v := range slices.Clone(t.order) {
		if v.manager != manager {
			continue
		}
		if v.loaded && v.turn != t.turn {
			v.setUnloaded()
		}
		if v.installed != 0 && v.installed != t.turn {
			v.installed, v.dirty = 0, true
		}
		for name, h := range v.helpers {
			if h.turn != t.turn {
				delete(v.helpers, name)
				v.dirty = true
			}
		}
		v.sighted = ""
		if v.unverified {
			v.unverified, v.dirty = false, true
		}
		switch {
		case v.loaded || system && v.def != nil && !v.unreadable:
			v.present()
			v.confirmed = time.Time{}
			t.update(now, v)
		case system && (v.unreadable || !(t.filesKnown && t.filesComplete)):
			// Its files cannot be read, so it can be said neither to be missing
			// nor to have returned.
			if v.seen && !v.missing {
				v.confirmed = time.Time{}
			}
			t.update(now, v)
		default:
			t.miss(now, v, before)
		}
	}
	t.changed = true
}

// miss counts that a complete observation did not find a VM; before is when
// there was one that may have.
func (t *Tracker) miss(now time.Time, v *vm, before time.Time) {
	if v.rec == nil && t.records {
		// Seen and gone without ever having been recorded.
		t.drop(v)
		return
	}
	if !v.missing {
		v.missing, v.dirty = true, true
		if v.seen && v.confirmed.IsZero() {
			v.confirmed = before
		}
	}
	v.seen = true
	if v.misses < t.cfg.StaleAfter {
		v.misses++
	}
	if v.misses < t.cfg.StaleAfter {
		t.update(now, v)
		return
	}
	if v.rec != nil && v.rec.removedAt != nil {
		v.goneSinceRemoval = true
	}
	if v.staleSince == nil {
		at := now
		v.staleSince = &at
		v.dirty = true
		if v.rec == nil || v.rec.removedAt == nil {
			t.event(blixard.Event{ObservedAt: now, VM: v.name, Manager: v.manager, Type: blixard.EventStale,
				Detail: fmt.Sprintf("missing from its host in %d listings in a row", v.misses)})
		}
	}
	t.update(now, v)
}

// Lost tells that a manager cannot be reached; hint may say what to do.
func (t *Tracker) Lost(now time.Time, name, reason, hint string) {
	m := t.manager(name)
	if m.lost.IsZero() {
		m.lost = now
		if !m.listed.IsZero() {
			t.nodeEvent(now, blixard.EventManagerLost, name, name+" manager: "+reason)
		}
	}
	if m.reason != reason || m.hint != hint {
		m.reason, m.hint = reason, hint
		for _, v := range t.vms {
			if v.manager == name {
				v.dirty = true
			}
		}
	}
	t.changed = true
}

// Sighted tells that VMs are there under a manager that cannot be asked, such
// as a user's, by what else shows them. Their state is unknown.
func (t *Tracker) Sighted(now time.Time, manager string, names []string, reason string) {
	for _, name := range names {
		v := t.vm(key{manager, name})
		if v.seen && v.sighted == "" {
			continue // its state was told before; Tick lets it age
		}
		if v.sighted != reason {
			v.sighted, v.dirty = reason, true
		}
		v.unit = "microvm-" + name + ".service"
		v.confirm(now)
		v.present()
		t.update(now, v)
	}
}

// Touched returns the names of the system's VMs whose files are worth reading
// again, since their service was started or stopped, and forgets them.
func (t *Tracker) Touched() []string {
	names := t.touched
	t.touched = nil
	return names
}

// Tick lets time pass: windows close and what is not confirmed becomes unknown.
func (t *Tracker) Tick(now time.Time) {
	for _, v := range t.order {
		if v.restarts.prune(now) {
			v.dirty, t.changed = true, true
		}
		if v.status.State == blixard.StateCrashlooping && v.seen && t.manager(v.manager).lost.IsZero() {
			t.update(now, v)
		}
		if v.heldRestarts > 0 && t.told(v) {
			t.flushRestarts(now, v)
		}
	}
	for name, m := range t.managers {
		if m.lost.IsZero() {
			continue
		}
		for _, v := range t.vms {
			last := m.listed
			if v.confirmed.After(last) {
				last = v.confirmed
			}
			if v.manager == name && !v.unverified && v.sighted == "" && now.Sub(last) >= t.cfg.UnknownAfter {
				v.unverified, v.dirty, t.changed = true, true, true
			}
		}
	}
}

// Flush makes the events that were held back, as before the end.
func (t *Tracker) Flush(now time.Time) {
	for _, v := range t.order {
		if v.heldRestarts > 0 && t.told(v) {
			t.restartEvent(now, v)
		}
	}
}

// Remove tells that somebody removed a VM, and records it. It returns false
// when the VM is not recorded or is removed already.
func (t *Tracker) Remove(now time.Time, id blixard.VMID) bool {
	v := t.vms[key{id.Manager, id.Name}]
	if v == nil || v.rec == nil || v.rec.removedAt != nil {
		return false
	}
	if v.heldRestarts > 0 {
		t.restartEvent(now, v)
	}
	at := now
	v.rec.removedAt = &at
	v.dirty, t.changed = true, true
	t.commands = append(t.commands, blixard.RemoveVM{ID: t.id(v), RemovedAt: now})
	t.event(blixard.Event{ObservedAt: now, VM: v.name, Manager: v.manager, Type: blixard.EventRemoved})
	return true
}

// Adopt tells that somebody wants a VM recorded that is there but is not, or
// was removed. It returns false when it is not there or is recorded already.
func (t *Tracker) Adopt(now time.Time, id blixard.VMID) bool {
	v := t.vms[key{id.Manager, id.Name}]
	if v == nil || !v.seen || v.missing || !t.records || v.rec != nil && v.rec.removedAt == nil {
		return false
	}
	t.register(now, v)
	return true
}

func (t *Tracker) id(v *vm) blixard.VMID {
	return blixard.VMID{Node: t.cfg.Node, Manager: v.manager, Name: v.name}
}

func (t *Tracker) event(e blixard.Event) {
	e.Node = t.cfg.Node
	if e.VM != "" && !t.records {
		if len(t.early) == maxEarly {
			t.early = append(t.early[:0], t.early[1:]...)
			t.earlyLost++
		}
		t.early = append(t.early, e)
		return
	}
	t.events = append(t.events, e)
}

func (t *Tracker) nodeEvent(now time.Time, typ blixard.EventType, manager, detail string) {
	t.event(blixard.Event{ObservedAt: now, Manager: manager, Type: typ, Detail: detail})
}
