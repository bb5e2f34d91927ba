package correlate

import (
	"maps"
	"time"

	"github.com/blixard/blixard"
)

// Entry is a VM to show. Its VM lacks LastSeen and AgeSeconds, which depend on
// when one looks: see Confirmed.
type Entry struct {
	VM *blixard.VM
	// Confirmed is when the status was last confirmed for this VM alone, zero
	// when a complete listing of its manager does it.
	Confirmed time.Time
	// Seen says that it was confirmed since the Tracker was made; otherwise
	// Confirmed is the recorded time, of an earlier life's wall clock.
	Seen bool
}

// ManagerView is what is known of a manager.
type ManagerView struct {
	Name string
	// Listed is when it last told everything, zero when never.
	Listed time.Time
	// Lost is when it was lost, zero while it is there.
	Lost         time.Time
	Reason, Hint string
}

// Changed reports whether View would differ from the last one.
func (t *Tracker) Changed() bool { return t.changed }

// View returns every VM to show, by name, and every manager. What it returns is
// never changed afterwards.
func (t *Tracker) View() ([]Entry, map[string]ManagerView) {
	t.changed = false
	out := make([]Entry, 0, len(t.vms))
	for _, v := range t.order {
		if !t.visible(v) {
			continue
		}
		if v.dirty || v.view == nil {
			v.view = t.show(v)
			v.dirty = false
		}
		out = append(out, Entry{VM: v.view, Confirmed: v.confirmed, Seen: v.seen || v.sighted != ""})
	}
	managers := make(map[string]ManagerView, len(t.managers))
	for name, m := range t.managers {
		managers[name] = ManagerView{Name: name, Listed: m.listed, Lost: m.lost, Reason: m.reason, Hint: m.hint}
	}
	return out, managers
}

// FilesReason is why the host's files are not known whole, "" when they are.
func (t *Tracker) FilesReason() string {
	if t.filesComplete {
		return ""
	}
	return t.filesReason
}

// visible says whether a VM is shown: a removed one only while it runs.
func (t *Tracker) visible(v *vm) bool {
	if v.rec != nil && v.rec.removedAt != nil {
		switch v.status.State {
		case blixard.StateStopped, blixard.StateUnknown:
			return false
		}
		return v.seen
	}
	return v.seen || v.rec != nil || v.sighted != ""
}

func (t *Tracker) show(v *vm) *blixard.VM {
	id := t.id(v)
	out := &blixard.VM{
		Name: v.name, ID: id.String(), Node: id.Node, Unit: v.unit, Manager: v.manager,
		VMDefinition: v.definition, VMStatus: v.status, Stale: v.staleSince != nil,
		Helpers: v.helperList(), Health: v.health,
	}
	missing := map[string]string{}
	if v.def != nil {
		maps.Copy(missing, v.def.Unavailable)
	}
	if absent := v.manager == blixard.SystemManager && v.def == nil && t.filesKnown && !t.filesComplete; (v.unreadable || absent) && v.staleSince == nil {
		out.Config = ""
		missing["config"] = "the VM's folder cannot be read"
		if !t.filesComplete && t.filesReason != "" {
			missing["config"] = t.filesReason
		}
	}
	unknown := func(reason string) {
		out.VMStatus = blixard.VMStatus{State: blixard.StateUnknown}
		for i := range out.Helpers {
			out.Helpers[i].State, out.Helpers[i].Substate = blixard.StateUnknown, ""
		}
		out.Health = &blixard.VMHealth{Status: blixard.HealthUnknown}
		missing["state"], missing["health"] = reason, reason
	}
	m := t.manager(v.manager)
	switch {
	case !v.seen && v.sighted == "":
		reason := "not confirmed since the monitor started"
		if m.reason != "" {
			reason = m.reason
		}
		unknown(reason)
	case v.unverified:
		unknown("not confirmed for too long: " + m.reason)
	case v.sighted != "":
		unknown(v.sighted)
	case v.staleSince != nil:
		missing["state"] = "missing from its host"
	case v.loaded && v.props == nil:
		missing["restarts"] = "the unit's properties could not be read"
	}
	if v.loaded && v.props != nil {
		n := v.restarts.count()
		out.RestartsLastHour = &n
	}
	if out.Ready == nil && out.State == blixard.StateRunning && missing["ready"] == "" {
		missing["ready"] = "the unit reports no readiness (Type= is not notify)"
	}
	if v.rec != nil {
		out.RemovedAt = v.rec.removedAt
	}
	if len(missing) > 0 {
		out.Unavailable = missing
	}
	return out
}
