package correlate

import "github.com/blixard/blixard"

// Kind tells the units of a listing apart.
type Kind int

// The kinds.
const (
	// KindVM is a VM's own unit.
	KindVM Kind = iota
	// KindHelper is a helper's unit.
	KindHelper
	// KindInstall is the unit that installs a declared VM.
	KindInstall
	// KindTarget is microvms.target.
	KindTarget
)

// Row is one unit as a manager told it.
type Row struct {
	Kind Kind
	// VM is the VM's name, Helper the helper's for KindHelper.
	VM, Helper string
	Unit       blixard.Unit
	// Properties is nil when they did not change since they were last told,
	// and for every kind but KindVM.
	Properties *blixard.UnitProperties
	// Unread says that they may have changed and could not be read.
	Unread bool
	// Gone says that the unit is not loaded any more (incomplete observations).
	Gone bool
}

// absent reports whether the unit is not loaded. One that others only refer to
// is none either: systemd lists it as not found.
func (r *Row) absent() bool {
	return r.Gone || r.Unit.LoadState == "not-found" && r.Unit.ActiveState == "inactive"
}

// Observation is what one manager told at one moment.
type Observation struct {
	// Manager is "system" or "user:UID".
	Manager string
	// Complete says that Rows holds every unit of the manager that matters:
	// what is not in it is not loaded.
	Complete bool
	Rows     []Row
	// Jobs are failed jobs on VMs' units, by VM name.
	Jobs map[string]string
}
