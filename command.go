package blixard

import "time"

// Command is one write to the replicated store: RegisterVM, UpdateState,
// UpdateHealth or RemoveVM. A command is typed, guarded by the VM's epoch and
// idempotent: to repeat it changes nothing.
type Command interface {
	// Target is the VM it is about.
	Target() VMID
	command()
}

// RegisterVM creates the record of a VM, or takes up again one that is stale.
// A record that is there keeps its epoch and RegisteredAt; a tombstone is
// replaced only with Readopt.
type RegisterVM struct {
	ID         VMID
	Unit       string
	Status     VMStatus
	Definition VMDefinition
	Helpers    []Helper
	ObservedAt time.Time
	// Readopt registers a VM again that was removed.
	Readopt bool
}

// UpdateState records what a host saw of a VM's service, files and helpers. On
// a VM that is not registered, or is removed, it changes nothing.
type UpdateState struct {
	ID VMID
	// Epoch is the registration it belongs to, 0 for the present one; a
	// command for another epoch changes nothing.
	Epoch      uint64
	Status     VMStatus
	Definition VMDefinition
	Helpers    []Helper
	ObservedAt time.Time
	// StaleSince is set when the VM is missing, nil when it is there.
	StaleSince *time.Time
}

// UpdateHealth records the verdict on a VM. On a VM that is not registered, or
// is removed, it changes nothing.
type UpdateHealth struct {
	ID VMID
	// Epoch is as in UpdateState.
	Epoch      uint64
	Health     VMHealth
	ObservedAt time.Time
}

// RemoveVM makes a VM's record a tombstone. On a VM that is not registered, or
// is removed already, it changes nothing.
type RemoveVM struct {
	ID        VMID
	RemovedAt time.Time
}

func (c RegisterVM) Target() VMID   { return c.ID }
func (c UpdateState) Target() VMID  { return c.ID }
func (c UpdateHealth) Target() VMID { return c.ID }
func (c RemoveVM) Target() VMID     { return c.ID }
func (RegisterVM) command()         {}
func (UpdateState) command()        {}
func (UpdateHealth) command()       {}
func (RemoveVM) command()           {}

// Batch is what a node writes as one transaction: all of it or nothing.
type Batch struct {
	// ID is unique to the batch, at most 64 bytes. A batch whose outcome is
	// unknown is sent again under its ID: it is applied once.
	ID string
	// Commands are in order; there may be several for one VM.
	Commands []Command
	// Events are in order, fewer than IndexScale.
	Events []Event
}
