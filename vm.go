package blixard

import (
	"fmt"
	"strings"
	"time"
)

// SystemManager is the name of the host's own systemd as a manager of units.
// A user's manager is named "user:UID", see UserManager.
const SystemManager = "system"

// UserManager is the name of the systemd instance of the user with that uid.
func UserManager(uid uint32) string { return fmt.Sprintf("user:%d", uid) }

// VMID identifies a VM: the same name on two nodes, or under the system and a
// user's manager, is two VMs.
type VMID struct {
	// Node is the name of the node that runs it.
	Node string `json:"node"`
	// Manager is "system" or "user:UID".
	Manager string `json:"manager"`
	// Name is the unit's instance, verbatim, never unescaped.
	Name string `json:"name"`
}

// String is the address as a person types it: NODE/NAME under the system's
// manager and NODE/user:UID/NAME under a user's. No part can contain a slash:
// systemd refuses it in unit names and ParseNodeName in node names.
func (id VMID) String() string {
	if id.Manager == SystemManager {
		return id.Node + "/" + id.Name
	}
	return id.Node + "/" + id.Manager + "/" + id.Name
}

// VMRef is an address as typed, [NODE/][MANAGER/]NAME; empty parts match all.
type VMRef struct {
	Node, Manager, Name string
}

// MaxName is the longest unit, VM or node name in bytes, systemd's own bound
// (UNIT_NAME_MAX).
const MaxName = 255

// ParseVMRef reads [NODE/][MANAGER/]NAME. The error is an *Error with
// CodeInvalid.
func ParseVMRef(s string) (VMRef, error) {
	bad := func(why string) (VMRef, error) {
		return VMRef{}, Errorf(CodeInvalid, "VM address %q: %s", s, why).
			WithHint("an address is [NODE/][user:UID/]NAME, as blixard vm list -o name prints it")
	}
	if len(s) > 3*MaxName {
		return bad("too long")
	}
	parts := strings.Split(s, "/")
	var ref VMRef
	switch len(parts) {
	case 1:
		ref.Name = parts[0]
	case 2:
		ref.Name = parts[1]
		if IsManager(parts[0]) {
			ref.Manager = parts[0]
		} else {
			ref.Node = parts[0]
		}
	case 3:
		ref = VMRef{Node: parts[0], Manager: parts[1], Name: parts[2]}
		if !IsManager(ref.Manager) {
			return bad(fmt.Sprintf("%q is no manager", ref.Manager))
		}
	default:
		return bad("too many slashes")
	}
	if ref.Name == "" || len(ref.Name) > MaxName {
		return bad("the name is empty or too long")
	}
	if len(parts) > 1 && parts[0] == "" {
		return bad("a part is empty")
	}
	return ref, nil
}

// Match reports whether the address means this VM.
func (r VMRef) Match(id VMID) bool {
	return r.Name == id.Name && (r.Node == "" || r.Node == id.Node) && (r.Manager == "" || r.Manager == id.Manager)
}

// IsManager reports whether s is "system" or "user:" and a decimal uid.
func IsManager(s string) bool {
	if s == SystemManager {
		return true
	}
	digits, ok := strings.CutPrefix(s, "user:")
	if !ok || digits == "" || len(digits) > 10 {
		return false
	}
	return strings.Trim(digits, "0123456789") == ""
}

// VMState is the state of a VM as its service's manager tells it.
type VMState string

// The states. Each names the states of systemd behind it and its ways out;
// correlate.State holds the whole table.
const (
	// StateStarting: activating, or waiting for an automatic restart.
	// Leads to running, failed, stopped or crashlooping.
	StateStarting VMState = "starting"
	// StateRunning: the VMM's process runs. It says nothing of the guest: see
	// VMStatus.Ready.
	StateRunning VMState = "running"
	// StateStopping: deactivating.
	StateStopping VMState = "stopping"
	// StateStopped: inactive, not loaded although it exists on the host, or
	// ended on purpose, whatever its exit code.
	StateStopped VMState = "stopped"
	// StateFailed: failed, and not because somebody stopped it.
	StateFailed VMState = "failed"
	// StateCrashlooping: restarted by systemd again and again within the
	// configured window; left when the window has passed or it is stopped.
	StateCrashlooping VMState = "crashlooping"
	// StateUnknown: it cannot be told; the reason is in VM.Unavailable.
	StateUnknown VMState = "unknown"
)

// VMStates lists every state, in the order in which pages and metrics show them.
var VMStates = []VMState{StateStarting, StateRunning, StateStopping, StateStopped, StateFailed, StateCrashlooping, StateUnknown}

// VMStatus is what a host saw of a VM's service at one moment.
type VMStatus struct {
	State VMState `json:"state"`
	// Substate is systemd's SubState, empty when the unit is not loaded.
	Substate string `json:"substate,omitempty"`
	// Ready says whether the guest reported that it is up. Nil where the unit
	// has no such channel (Type=simple): a running VMM is not a booted guest.
	Ready *bool `json:"ready,omitempty"`
	// MainPID is the VMM's process, 0 when there is none.
	MainPID uint32 `json:"main_pid,omitempty"`
	// InvocationID is systemd's id of this run, 32 hex digits.
	InvocationID string `json:"invocation_id,omitempty"`
	// Restarts is systemd's count of automatic restarts since the unit was
	// last started by hand (NRestarts). Nil when the unit is not loaded.
	Restarts *uint32 `json:"restarts,omitempty"`
	// Result is systemd's word for how the last run ended: success, exit-code,
	// signal, core-dump, oom-kill, timeout, watchdog, start-limit-hit,
	// resources; or, for a start that never happened, the job's result, such as
	// dependency.
	Result string `json:"result,omitempty"`
	// ExitCode is the exit status of the last run's main process, nil when it
	// runs, never ran or was killed.
	ExitCode *int32 `json:"exit_code,omitempty"`
	// ExitSignal is the name of the signal that ended it, such as SIGKILL.
	ExitSignal string `json:"exit_signal,omitempty"`
	// Intended says that the last end was asked for by a stop job.
	Intended bool `json:"intended,omitempty"`
	// Since is when systemd last changed the unit's state, by the host's wall
	// clock.
	Since *time.Time `json:"since,omitempty"`
	// ControlGroup is the unit's cgroup path, empty when it has none.
	ControlGroup string `json:"control_group,omitempty"`
}

// Equal reports whether two statuses say the same.
func (s VMStatus) Equal(o VMStatus) bool {
	return s.State == o.State && s.Substate == o.Substate && equalPtr(s.Ready, o.Ready) &&
		s.MainPID == o.MainPID && s.InvocationID == o.InvocationID && equalPtr(s.Restarts, o.Restarts) &&
		s.Result == o.Result && equalPtr(s.ExitCode, o.ExitCode) && s.ExitSignal == o.ExitSignal &&
		s.Intended == o.Intended && equalTime(s.Since, o.Since) && s.ControlGroup == o.ControlGroup
}

func equalPtr[T comparable](a, b *T) bool {
	return a == b || a != nil && b != nil && *a == *b
}

func equalTime(a, b *time.Time) bool {
	return a == b || a != nil && b != nil && a.Equal(*b)
}

// Helper is one of the units microvm.nix runs beside a VM, such as its
// virtiofsd. It is never a VM itself.
type Helper struct {
	// Name is the part of the unit before the @, without "microvm-": virtiofsd,
	// tap-interfaces, macvtap-interfaces, pci-devices, set-booted.
	Name string `json:"name"`
	Unit string `json:"unit"`
	// State follows the table of VM states; a oneshot that ran and remains
	// (active, exited) is running, an inactive one stopped.
	State VMState `json:"state"`
	// Substate is systemd's SubState.
	Substate string `json:"substate,omitempty"`
}

// Config says whether a VM runs what its host has configured.
type Config string

// The answers; the empty string means that it is not known.
const (
	// ConfigCurrent: the links booted and current name the same store path.
	ConfigCurrent Config = "current"
	// ConfigStale: they differ; the VM needs a restart to take up its
	// configuration.
	ConfigStale Config = "stale"
)

// Provenance says how a VM came to its host.
type Provenance string

// The ways microvm.nix knows; the empty string means that it is not known.
const (
	// ProvenanceDeclared: by the host's own NixOS configuration.
	ProvenanceDeclared Provenance = "declared"
	// ProvenanceImperative: by the microvm command, from a flake.
	ProvenanceImperative Provenance = "imperative"
	// ProvenanceDeployed: copied to the host over ssh.
	ProvenanceDeployed Provenance = "deployed"
)

// VMDefinition is what the host's files say of a VM, beside its service.
type VMDefinition struct {
	// Hypervisor is microvm.nix's name of the VMM, empty when not known.
	Hypervisor string `json:"hypervisor,omitempty"`
	// HostName is the guest's host name as the store path gives it; it may
	// differ from the VM's name.
	HostName   string     `json:"host_name,omitempty"`
	Config     Config     `json:"config,omitempty"`
	Provenance Provenance `json:"provenance,omitempty"`
	// Orphan says that the unit exists although the host's files no longer
	// define the VM.
	Orphan bool `json:"orphan,omitempty"`
	// VsockCID is the guest's vsock context id, 0 when it has none or it is not
	// known.
	VsockCID uint32 `json:"vsock_cid,omitempty"`
}

// VMRecord is what the store keeps of a VM. One host writes it: the one it
// names. Times are of that host's wall clock.
type VMRecord struct {
	VMID
	// NodeID is the identity of the node, which outlives its name.
	NodeID string `json:"node_id"`
	Unit   string `json:"unit"`
	// Epoch counts the registrations of this VM; a new one starts after a
	// removal. A command for another epoch changes nothing.
	Epoch      uint64       `json:"epoch"`
	Status     VMStatus     `json:"status"`
	Definition VMDefinition `json:"definition"`
	Helpers    []Helper     `json:"helpers,omitempty"`
	Health     *VMHealth    `json:"health,omitempty"`
	// RegisteredAt is when the VM was first recorded in this epoch.
	RegisteredAt time.Time `json:"registered_at"`
	// ObservedAt is when the host saw what the record says.
	ObservedAt time.Time `json:"observed_at"`
	// CommittedAt is when the write was proposed to the store.
	CommittedAt time.Time `json:"committed_at"`
	// StaleSince is set while the VM is missing from its host.
	StaleSince *time.Time `json:"stale_since,omitempty"`
	// RemovedAt makes the record a tombstone: somebody removed the VM, and it
	// is not registered again by being seen.
	RemovedAt *time.Time `json:"removed_at,omitempty"`
}

// VM is a VM as the API shows it: its record with what is known now.
type VM struct {
	Name string `json:"name"`
	// ID is the VM's address, NODE/[user:UID/]NAME.
	ID      string `json:"id"`
	Node    string `json:"node"`
	Unit    string `json:"unit"`
	Manager string `json:"manager"`
	VMDefinition
	VMStatus
	// RestartsLastHour counts the automatic restarts the monitor saw within the
	// last hour. Nil when it has seen none of the VM's service yet.
	RestartsLastHour *int `json:"restarts_last_hour,omitempty"`
	// Stale says that the VM is recorded but missing from its host.
	Stale bool `json:"stale"`
	// RemovedAt is when the VM was removed from the records; it is shown all
	// the same while its unit runs.
	RemovedAt *time.Time `json:"removed_at,omitempty"`
	// LastSeen is when the host last confirmed the state, by its wall clock.
	LastSeen *time.Time `json:"last_seen,omitempty"`
	// AgeSeconds is the time since then by the monotonic clock of whoever
	// answers. Nil when the state was never confirmed since the daemon's start.
	AgeSeconds *float64  `json:"age_seconds,omitempty"`
	Helpers    []Helper  `json:"helpers"`
	Health     *VMHealth `json:"health,omitempty"`
	// Unavailable gives the reason for each absent field, by JSON name.
	Unavailable map[string]string `json:"unavailable,omitempty"`
}

// VMID is the VM's identity.
func (v *VM) VMID() VMID { return VMID{Node: v.Node, Manager: v.Manager, Name: v.Name} }
