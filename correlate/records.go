package correlate

import (
	"slices"
	"time"

	"github.com/blixard/blixard"
)

// maxEarly bounds the VMs' events that wait for SetRecords.
const maxEarly = 10000

// firstSight is what was seen of a VM first, before its record could be read.
type firstSight struct {
	at     time.Time
	status blixard.VMStatus
	// unloaded says that its unit was not loaded.
	unloaded bool
}

// firstSight notes what is seen of a VM first.
func (t *Tracker) firstSight(now time.Time, v *vm) {
	if v.first == nil {
		v.first = &firstSight{at: now, status: v.status, unloaded: !v.loaded}
	}
}

// SetRecords tells what the store holds of this node's VMs, and its recent
// events, once it can be read. What was observed meanwhile is compared with it
// as if the records had come first.
func (t *Tracker) SetRecords(now time.Time, records []blixard.VMRecord, events []blixard.Event) {
	t.records = true
	history := map[key][]restart{}
	for i := range events {
		e := &events[i]
		if e.Type != blixard.EventRestart || e.VM == "" || now.Sub(e.ObservedAt) > hour || e.ObservedAt.After(now) {
			continue
		}
		k := key{e.Manager, e.VM}
		history[k] = append(history[k], restart{e.ObservedAt, uint32(e.Count)})
	}
	early := t.early
	t.early = nil
	var before []blixard.Event
	for i := range records {
		r := &records[i]
		v := t.vm(key{r.Manager, r.Name})
		v.rec = &recorded{status: r.Status, definition: r.Definition, helpers: r.Helpers, health: r.Health,
			staleSince: r.StaleSince, removedAt: r.RemovedAt, epoch: r.Epoch}
		v.unit = r.Unit
		v.dirty = true
		if r.Status.Intended {
			v.stoppedRun = r.Status.InvocationID
		}
		past := history[v.key]
		if v.first != nil {
			before = append(before, t.rebase(now, v, r, past, early)...)
			continue
		}
		v.restarts.before(now, past)
		v.status, v.definition, v.health = r.Status, r.Definition, r.Health
		v.staleSince = r.StaleSince
		v.lastRestarts = r.Status.Restarts
		v.knownRun(&r.Status)
		if ended(r.Status.State) {
			v.ended = r.ObservedAt
		}
		if v.sighted == "" {
			v.confirmed = r.ObservedAt
		}
		for _, h := range r.Helpers {
			v.helpers[h.Name] = helper{Helper: h}
		}
	}
	for i := range early {
		if v := t.vms[key{early[i].Manager, early[i].VM}]; early[i].Type != "" && v != nil && v.rec != nil && v.rec.removedAt == nil {
			before = append(before, early[i])
		}
	}
	slices.SortStableFunc(before, func(a, b blixard.Event) int { return a.ObservedAt.Compare(b.ObservedAt) })
	if t.earlyLost > 0 {
		t.event(blixard.Event{ObservedAt: now, Type: blixard.EventEventsLost, Count: t.earlyLost,
			Detail: "dropped because the records could not be read for too long"})
		t.earlyLost = 0
	}
	t.events = append(t.events, before...)
	for _, v := range t.order {
		if v.first != nil {
			v.first, v.dirty = nil, true
			t.update(now, v)
		}
	}
	t.changed = true
}

// rebase puts a VM that was observed before its record could be read on top of
// that record, and returns the events of what happened between the two. early
// holds the events since; those of the VM are made to fit.
func (t *Tracker) rebase(now time.Time, v *vm, r *blixard.VMRecord, past []restart, early []blixard.Event) (out []blixard.Event) {
	f := v.first
	missed := missedRestarts(r.Status.Restarts, f.status.Restarts)
	v.restarts.before(now, append(past, restart{r.ObservedAt, missed}))
	if r.RemovedAt != nil {
		return nil
	}
	if v.manager == blixard.SystemManager && v.def == nil && !(t.filesKnown && t.filesComplete) {
		v.definition = r.Definition
	}
	var from time.Time
	if ended(r.Status.State) {
		from = r.ObservedAt
		if v.ended.Before(from) {
			v.ended = from
		}
	}
	is := f.status
	switch {
	case f.unloaded && is.State == blixard.StateStopped && ended(r.Status.State):
		// Nobody but the record knows how its last run ended.
		is.Result, is.ExitCode, is.ExitSignal, is.Intended, is.Since = r.Status.Result, r.Status.ExitCode, r.Status.ExitSignal, r.Status.Intended, r.Status.Since
		if !v.loaded && v.status.Equal(f.status) {
			v.status = is
		}
	case is.State == blixard.StateFailed && v.stoppedRun != "" && is.InvocationID == v.stoppedRun:
		// The stop job was seen in an earlier life.
		is.State = blixard.StateStopped
	default:
		is.State = t.loopedAt(v, f.at, from, is.State)
	}
	v.status.State = t.refit(v, from, is.State, v.status.State, early)

	e := blixard.Event{ObservedAt: f.at, Node: t.cfg.Node, VM: v.name, Manager: v.manager}
	if missed > 0 {
		e := e
		e.Type, e.Count, e.Detail = blixard.EventRestart, uint64(missed), "restarted by systemd while the monitor was away"
		out = append(out, e)
	}
	switch {
	case r.StaleSince != nil:
		e := e
		e.Type, e.To = blixard.EventReturned, string(is.State)
		out = append(out, e)
	case r.Status.State != is.State:
		e := e
		e.Type, e.From, e.To, e.Detail = blixard.EventState, string(r.Status.State), string(is.State), "while the monitor was away"
		e.Result, e.ExitCode, e.ExitSignal, e.InvocationID = is.Result, is.ExitCode, is.ExitSignal, is.InvocationID
		out = append(out, e)
	}
	if was, is := r.Definition.Config, v.definition.Config; was != is && was != "" && is != "" {
		e := e
		e.Type, e.From, e.To = blixard.EventConfig, string(was), string(is)
		out = append(out, e)
	}
	// The verdict goes on from the record's: update judges once more.
	v.health = r.Health
	return out
}

// ended reports whether a VM in the state is down and not about to start.
func ended(s blixard.VMState) bool { return s == blixard.StateStopped || s == blixard.StateFailed }

// loopedAt is what a state was at a time, now that more restarts are known.
func (t *Tracker) loopedAt(v *vm, at, from time.Time, s blixard.VMState) blixard.VMState {
	if (s == blixard.StateRunning || s == blixard.StateStarting) && v.restarts.within(at, t.cfg.CrashWindow, from) >= t.cfg.CrashRestarts {
		return blixard.StateCrashlooping
	}
	return s
}

// refit makes a VM's early changes of state follow one another from the state
// it had first, drops those that were none, and returns the last. The restarts
// before from are no part of a crash loop.
func (t *Tracker) refit(v *vm, from time.Time, first, last blixard.VMState, early []blixard.Event) blixard.VMState {
	at := first
	for i := range early {
		e := &early[i]
		if e.Type != blixard.EventState || e.VM != v.name || e.Manager != v.manager {
			continue
		}
		if ended(at) {
			from = e.ObservedAt
		}
		to := t.loopedAt(v, e.ObservedAt, from, blixard.VMState(e.To))
		if to == at && e.From != e.To {
			*e = blixard.Event{}
			continue
		}
		e.From, e.To = string(at), string(to)
		at = to
	}
	if v.staleSince != nil {
		return last
	}
	return at
}

// knownRun takes in which run a record tells of.
func (v *vm) knownRun(s *blixard.VMStatus) {
	if s.Restarts != nil && s.Substate == "running" {
		v.run, v.runRestarts = s.InvocationID, *s.Restarts
	}
}

// missedRestarts counts the restarts between two values of NRestarts, which
// begins at 0 again when the unit is started by hand.
func missedRestarts(was, is *uint32) uint32 {
	switch {
	case was == nil || is == nil:
		return 0
	case *is >= *was:
		return *is - *was
	default:
		return *is
	}
}
