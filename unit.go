package blixard

import "time"

// Unit is one row of a manager's listing of units.
type Unit struct {
	Name        string
	LoadState   string
	ActiveState string
	SubState    string
	// JobType is the kind of the job queued for the unit, such as start or
	// stop; empty when there is none.
	JobType string
	// Path is the unit's object path as the manager gave it.
	Path string
}

// UnitProperties is what one GetAll tells of a service unit. A field the
// manager did not send is zero.
type UnitProperties struct {
	Unit
	// InvocationID is 32 hex digits, empty when the unit never ran.
	InvocationID string
	// JobQueued says that a job is queued for the unit or runs; GetAll does not
	// tell of what kind.
	JobQueued bool
	// StateChange is when the unit's state last changed, zero when never.
	StateChange time.Time
	// FragmentPath and DropInPaths are the unit's files.
	FragmentPath string
	DropInPaths  []string

	// Service says that the properties of a service came with them; without
	// it those below are not known.
	Service bool
	// Type and Restart are the unit's settings: simple, notify, …; no,
	// always, on-failure, ….
	Type, Restart string
	MainPID       uint32
	ControlGroup  string
	NRestarts     uint32
	Result        string
	// ExecMainCode is the si_code of the main process's end (1 exited, 2
	// killed, 3 dumped), 0 while it runs or never ran; ExecMainStatus its exit
	// status or signal number.
	ExecMainCode, ExecMainStatus int32
	ExecMainStart                time.Time
	// StatusText comes from the guest on a notify unit: hostile.
	StatusText string
}

// Hints tell that something changed at a manager. They may be lost or doubled;
// a listing is the truth.
type Hints struct {
	// Units are the names of units that changed.
	Units []string
	// Jobs are the results of finished jobs on the units.
	Jobs []JobResult
	// All says that hints were lost, or that the manager reloaded or
	// re-executed: list again and read again.
	All bool
	// Reloading says that the manager reloads now; it answers when it is done.
	Reloading bool
}

// JobResult is how a job of a manager ended.
type JobResult struct {
	Unit string
	// Result is done, canceled, timeout, failed, dependency or skipped.
	Result string
}
