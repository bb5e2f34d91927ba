package correlate

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/blixard/blixard"
)

// restartEventEvery is how often the restarts of a crash loop become an event:
// a VM that loops must not push everything else out of the history.
const restartEventEvery = time.Minute

func (v *vm) loadedAndUp() bool {
	return v.loaded && (v.row.ActiveState == "active" || v.row.ActiveState == "reloading")
}

// setLoaded takes in the VM's own unit.
func (v *vm) setLoaded(now time.Time, r *Row) {
	if !v.loaded || v.row != r.Unit {
		v.loaded, v.row, v.dirty = true, r.Unit, true
	}
	v.sighted = ""
	switch {
	case r.Unit.JobType == "stop", r.Unit.JobType == "restart" && r.Unit.ActiveState == "deactivating":
		v.jobStop, v.jobResult = true, ""
	case r.Unit.ActiveState == "activating" && !autoRestart(r.Unit.SubState), r.Unit.ActiveState == "active":
		v.jobStop, v.jobResult = false, ""
	}
	switch {
	case r.Properties != nil:
		v.props, v.dirty = r.Properties, true
		v.countRestarts(now)
		if p := r.Properties; p.Service && (p.ActiveState == "active" || p.ActiveState == "activating" && !autoRestart(p.SubState)) {
			v.run, v.runRestarts = p.InvocationID, p.NRestarts
		}
	case r.Unread && v.props != nil:
		v.props, v.dirty = nil, true
	}
	v.seen = true
}

// setUnloaded takes in that the unit is not loaded: systemd forgets a unit only
// when it is inactive and nothing needs it.
func (v *vm) setUnloaded() {
	v.loaded, v.props, v.row = false, nil, blixard.Unit{}
	if v.seen {
		// A unit that is loaded anew counts from 0.
		v.lastRestarts = new(uint32)
	}
	v.dirty = true
	v.seen = true
}

// setHelper takes in a helper's unit.
func (t *Tracker) setHelper(now time.Time, v *vm, r *Row, absent bool) {
	old, had := v.helpers[r.Helper]
	if absent {
		if had {
			delete(v.helpers, r.Helper)
			v.dirty = true
		}
		return
	}
	h := helper{turn: t.turn, Helper: blixard.Helper{Name: r.Helper, Unit: r.Unit.Name,
		State: HelperState(r.Unit.ActiveState, r.Unit.SubState), Substate: r.Unit.SubState}}
	v.helpers[r.Helper] = h
	if had && old.Helper == h.Helper {
		return
	}
	v.dirty = true
	failed := h.State == blixard.StateFailed || had && old.State == blixard.StateFailed
	if had && old.State != h.State && failed && t.told(v) {
		t.event(blixard.Event{ObservedAt: now, VM: v.name, Manager: v.manager, Type: blixard.EventHelper,
			From: string(old.State), To: string(h.State), Detail: "helper " + r.Helper})
	}
}

// countRestarts takes in NRestarts. systemd sets it back to 0 when the unit is
// started by hand, so a smaller number counts from 0.
func (v *vm) countRestarts(now time.Time) {
	p := v.props
	if !p.Service {
		return
	}
	n := p.NRestarts
	if v.lastRestarts != nil && n != *v.lastRestarts {
		delta := n
		if n > *v.lastRestarts {
			delta = n - *v.lastRestarts
		} else {
			// Started by hand; those counted below come after.
			if at := now.Add(-1); v.ended.Before(at) {
				v.ended = at
			}
		}
		// What happened while nobody watched counts at the earliest time it can
		// have had.
		at := now
		if !v.seen && !v.confirmed.IsZero() {
			at = v.confirmed
		}
		v.restarts.add(now, at, delta)
		v.heldRestarts += uint64(delta)
	}
	v.lastRestarts = &n
}

// confirm takes in that the status was confirmed for this VM alone.
func (v *vm) confirm(now time.Time) {
	v.confirmed, v.misses, v.missing = now, 0, false
	if v.unverified {
		v.unverified, v.dirty = false, true
	}
}

// present takes in that the VM is there.
func (v *vm) present() {
	v.misses, v.missing = 0, false
}

// helperList is the helpers by name.
func (v *vm) helperList() []blixard.Helper {
	out := make([]blixard.Helper, 0, len(v.helpers))
	for _, name := range slices.Sorted(maps.Keys(v.helpers)) {
		out = append(out, v.helpers[name].Helper)
	}
	return out
}

// derive makes the status from what is known now.
func (t *Tracker) derive(now time.Time, v *vm) blixard.VMStatus {
	switch {
	case v.sighted != "":
		// What was known of it stands, but is not shown.
		return v.status
	case v.loaded && v.props != nil:
		return t.looping(now, v, status(v.props, v.ending()))
	case v.loaded:
		// Listed, but its properties could not be read.
		return t.looping(now, v, blixard.VMStatus{State: State(v.row.ActiveState, v.row.SubState), Substate: v.row.SubState})
	default:
		s := blixard.VMStatus{State: blixard.StateStopped, Since: v.status.Since}
		if v.status.State == blixard.StateStopped || v.status.State == blixard.StateFailed {
			s.Result, s.ExitCode, s.ExitSignal, s.Intended = v.status.Result, v.status.ExitCode, v.status.ExitSignal, v.status.Intended
		} else {
			s.Since = nil
		}
		if v.jobResult != "" {
			s.Result, s.Intended = v.jobResult, false
		}
		return s
	}
}

// looping takes in whether a VM that is up, or will be, is in a crash loop.
func (t *Tracker) looping(now time.Time, v *vm, s blixard.VMStatus) blixard.VMStatus {
	switch {
	case s.State == blixard.StateRunning, s.State == blixard.StateStarting, s.State == blixard.StateStopping && !v.jobStop:
		// Between two runs a unit that loops stops for a moment unasked.
		// While its manager is away nobody knows whether the loop goes on.
		away := v.status.State == blixard.StateCrashlooping && !t.manager(v.manager).lost.IsZero()
		if away || v.restarts.within(now, t.cfg.CrashWindow, v.ended) >= t.cfg.CrashRestarts {
			s.State = blixard.StateCrashlooping
		}
	case s.State == blixard.StateStopped, s.State == blixard.StateFailed:
		v.ended = now
	}
	return s
}

// ending is what is known of the end of the last run beside the properties.
func (v *vm) ending() end {
	e := end{jobStop: v.jobStop, jobResult: v.jobResult}
	if p := v.props; p != nil {
		var before uint32
		if v.run == p.InvocationID {
			before = v.runRestarts
		}
		e.restarted = p.NRestarts > before
		e.jobStop = e.jobStop || v.stoppedRun != "" && v.stoppedRun == p.InvocationID
	}
	return e
}

// define puts together what files and units say of a VM.
func (t *Tracker) define(v *vm) blixard.VMDefinition {
	var d blixard.VMDefinition
	if v.missing {
		d = v.definition
		d.Orphan = false // an orphan's unit is there
		return d
	}
	if v.def != nil {
		d = v.def.VMDefinition
	} else if v.manager == blixard.SystemManager && !(t.filesKnown && t.filesComplete) {
		// The files cannot be read now: what they said stands, unclaimed.
		return v.definition
	}
	if v.manager != blixard.SystemManager {
		return d
	}
	declared := v.installed != 0
	if v.props != nil {
		for _, p := range v.props.DropInPaths {
			if strings.Contains(p, "/microvm@"+v.name+".service.d/") {
				declared = true
			}
		}
	}
	switch {
	case declared:
		d.Provenance = blixard.ProvenanceDeclared
	case v.def == nil:
		d.Orphan = v.loaded
	case d.Provenance == blixard.ProvenanceDeclared && t.manager(blixard.SystemManager).targetActive && v.props != nil:
		// microvms.target wants every declared VM's install unit, so one that
		// is not loaded beside it is declared no more.
		d.Orphan = true
	}
	return d
}

// update derives a VM anew, tells what changed and writes what is to be written.
func (t *Tracker) update(now time.Time, v *vm) {
	if v.manager == blixard.SystemManager && v.def != nil && !v.seen {
		v.seen = !t.manager(blixard.SystemManager).listed.IsZero()
		v.dirty = v.dirty || v.seen
	}
	if !v.seen && v.sighted == "" {
		return
	}
	was, wasDef, wasHealth := v.status, v.definition, v.health
	if v.missing && v.staleSince != nil {
		// Nothing is known of a VM that is missing.
		v.status = blixard.VMStatus{State: blixard.StateUnknown}
	} else {
		v.status = t.derive(now, v)
	}
	v.definition = t.define(v)
	if !v.status.Equal(was) || v.definition != wasDef {
		v.dirty = true
	}
	if v.manager == blixard.SystemManager && (was.State != v.status.State || was.InvocationID != v.status.InvocationID) {
		t.touched = append(t.touched, v.name)
	}
	returned := v.staleSince != nil && !v.missing
	if returned {
		v.staleSince, v.dirty = nil, true
		if t.told(v) {
			t.event(blixard.Event{ObservedAt: now, VM: v.name, Manager: v.manager, Type: blixard.EventReturned, To: string(v.status.State)})
		}
	}
	v.health = judge(now, wasHealth, &v.status, v.helperList(), v.staleSince != nil, returned)
	if !v.health.Equal(wasHealth) {
		v.dirty = true
	}
	if !v.dirty {
		return
	}
	t.changed = true
	if !t.records && v.sighted == "" {
		t.firstSight(now, v)
	}
	if t.told(v) && (v.rec != nil || wasHealth != nil) {
		t.tell(now, v, was, wasDef, wasHealth, returned)
	}
	t.reconcile(now, v)
}

// told says whether what happens to a VM becomes events: when it is recorded,
// and as long as it is not known whether it is.
func (t *Tracker) told(v *vm) bool {
	if v.rec != nil {
		return v.rec.removedAt == nil
	}
	return !t.records
}

// tell makes the events of a change.
func (t *Tracker) tell(now time.Time, v *vm, was blixard.VMStatus, wasDef blixard.VMDefinition, wasHealth *blixard.VMHealth, returned bool) {
	if v.heldRestarts > 0 {
		t.flushRestarts(now, v)
	}
	stale := v.staleSince != nil
	switch {
	case stale || returned:
	case was.State != v.status.State:
		t.stateEvent(now, v, was.State, "")
	case was.State == blixard.StateRunning && was.InvocationID != v.status.InvocationID && was.InvocationID != "" && sameCount(was.Restarts, v.status.Restarts):
		t.stateEvent(now, v, was.State, "started anew, not by systemd itself")
	}
	if !t.records {
		return // SetRecords tells how these differ from the record
	}
	if wasDef.Config != v.definition.Config && wasDef.Config != "" && v.definition.Config != "" {
		t.event(blixard.Event{ObservedAt: now, VM: v.name, Manager: v.manager, Type: blixard.EventConfig,
			From: string(wasDef.Config), To: string(v.definition.Config)})
	}
	if wasHealth != nil && v.health.Status != wasHealth.Status && !stale {
		t.event(blixard.Event{ObservedAt: now, VM: v.name, Manager: v.manager, Type: blixard.EventHealth,
			From: string(wasHealth.Status), To: string(v.health.Status), Detail: v.health.Checks[0].Message})
	}
}

func sameCount(a, b *uint32) bool { return a == b || a != nil && b != nil && *a == *b }

func (t *Tracker) stateEvent(now time.Time, v *vm, from blixard.VMState, detail string) {
	s := &v.status
	if detail == "" && (s.State == blixard.StateFailed || s.State == blixard.StateStarting && s.Result != "" && s.Result != "success") {
		detail = ending(s)
	}
	t.event(blixard.Event{ObservedAt: now, VM: v.name, Manager: v.manager, Type: blixard.EventState,
		From: string(from), To: string(s.State), Detail: detail,
		Result: s.Result, ExitCode: s.ExitCode, ExitSignal: s.ExitSignal, InvocationID: s.InvocationID})
}

// flushRestarts tells of restarts: at once, but in a crash loop only now and
// then.
func (t *Tracker) flushRestarts(now time.Time, v *vm) {
	looping := v.status.State == blixard.StateCrashlooping
	if looping && !v.restartEventAt.IsZero() && now.Sub(v.restartEventAt) < restartEventEvery {
		return
	}
	t.restartEvent(now, v)
}

// restartEvent tells of the restarts that were not told yet.
func (t *Tracker) restartEvent(now time.Time, v *vm) {
	detail := "restarted by systemd"
	if v.heldRestarts > 1 {
		detail = fmt.Sprintf("restarted by systemd %d times", v.heldRestarts)
	}
	t.event(blixard.Event{ObservedAt: now, VM: v.name, Manager: v.manager, Type: blixard.EventRestart,
		Count: v.heldRestarts, Detail: detail, InvocationID: v.status.InvocationID})
	v.heldRestarts = 0
	v.restartEventAt = now
}

// reconcile makes the commands that bring the record to what is known.
func (t *Tracker) reconcile(now time.Time, v *vm) {
	if !t.records {
		return
	}
	switch {
	case v.rec == nil:
		if t.cfg.Adopt && !v.missing {
			t.register(now, v)
		}
		return
	case v.rec.removedAt != nil:
		if t.cfg.Adopt && v.goneSinceRemoval && !v.missing {
			t.register(now, v)
		}
		return
	}
	helpers := v.helperList()
	if !v.rec.status.Equal(v.status) || v.rec.definition != v.definition || !slices.Equal(v.rec.helpers, helpers) || !sameTime(v.rec.staleSince, v.staleSince) {
		v.rec.status, v.rec.definition, v.rec.helpers, v.rec.staleSince = v.status, v.definition, helpers, v.staleSince
		t.commands = append(t.commands, blixard.UpdateState{ID: t.id(v), Epoch: v.rec.epoch, Status: v.status,
			Definition: v.definition, Helpers: helpers, ObservedAt: now, StaleSince: v.staleSince})
	}
	if v.health != nil && !v.health.Equal(v.rec.health) {
		v.rec.health = v.health
		t.commands = append(t.commands, blixard.UpdateHealth{ID: t.id(v), Epoch: v.rec.epoch, Health: *v.health, ObservedAt: now})
	}
}

func sameTime(a, b *time.Time) bool { return a == b || a != nil && b != nil && a.Equal(*b) }

func (t *Tracker) register(now time.Time, v *vm) {
	helpers := v.helperList()
	t.commands = append(t.commands, blixard.RegisterVM{ID: t.id(v), Unit: v.unit, Status: v.status,
		Definition: v.definition, Helpers: helpers, ObservedAt: now, Readopt: v.rec != nil})
	v.rec = &recorded{status: v.status, definition: v.definition, helpers: helpers, staleSince: v.staleSince}
	v.goneSinceRemoval = false
	// What happened before is no part of its history.
	v.heldRestarts, v.restartEventAt = 0, time.Time{}
	v.dirty, t.changed = true, true
	t.event(blixard.Event{ObservedAt: now, VM: v.name, Manager: v.manager, Type: blixard.EventRegistered, To: string(v.status.State)})
	if v.health != nil {
		v.rec.health = v.health
		t.commands = append(t.commands, blixard.UpdateHealth{ID: t.id(v), Health: *v.health, ObservedAt: now})
	}
}
