package blixard

import "time"

// EventType says what happened. The set grows; a reader must pass over types
// it does not know.
type EventType string

// The types.
const (
	// EventRegistered: a VM was seen for the first time, or again after a
	// removal by an explicit registration.
	EventRegistered EventType = "registered"
	// EventState: a VM's state changed; From and To say how.
	EventState EventType = "state"
	// EventRestart: systemd restarted a VM; Count says how often since the
	// last event.
	EventRestart EventType = "restart"
	// EventHealth: a VM's verdict changed.
	EventHealth EventType = "health"
	// EventConfig: a VM's configuration became stale or current.
	EventConfig EventType = "config"
	// EventHelper: a VM's helper changed its state.
	EventHelper EventType = "helper"
	// EventStale: a recorded VM is missing from its host.
	EventStale EventType = "stale"
	// EventReturned: a stale VM was seen again.
	EventReturned EventType = "returned"
	// EventRemoved: somebody removed a VM from the records.
	EventRemoved EventType = "removed"
	// EventMonitorStarted: the daemon began to watch its host.
	EventMonitorStarted EventType = "monitor_started"
	// EventMonitorStopped: the daemon ended in order.
	EventMonitorStopped EventType = "monitor_stopped"
	// EventManagerLost: a service manager could not be reached any more.
	EventManagerLost EventType = "manager_lost"
	// EventManagerReturned: it could be reached again.
	EventManagerReturned EventType = "manager_returned"
	// EventEventsLost: Count events were dropped because the store was away
	// for too long; states are right all the same.
	EventEventsLost EventType = "events_lost"
)

// Event is something that happened, kept in the store up to a bound.
type Event struct {
	// Index orders events and is unique: the store's revision times
	// IndexScale plus the position within it. 0 before it is committed.
	Index uint64 `json:"index"`
	// ObservedAt is when the host saw it, CommittedAt when it proposed the
	// write, both by the host's wall clock.
	ObservedAt  time.Time `json:"observed_at"`
	CommittedAt time.Time `json:"committed_at"`
	Node        string    `json:"node"`
	// VM and Manager are empty for what happened to the node.
	VM      string    `json:"vm,omitempty"`
	Manager string    `json:"manager,omitempty"`
	Type    EventType `json:"type"`
	// From and To are the states, verdicts or configurations of a change.
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
	// Count is how many times it happened, for restarts and lost events.
	Count uint64 `json:"count,omitempty"`
	// Detail is one line for people.
	Detail string `json:"detail,omitempty"`
	// Result, ExitCode, ExitSignal and InvocationID are the VM's at that moment.
	Result       string `json:"result,omitempty"`
	ExitCode     *int32 `json:"exit_code,omitempty"`
	ExitSignal   string `json:"exit_signal,omitempty"`
	InvocationID string `json:"invocation_id,omitempty"`
}

// IndexScale separates a revision from the position within it in an index; a
// batch holds fewer events than this.
const IndexScale = 1000

// Index is the index of the event at a position within a revision of the store.
func Index(revision int64, position int) uint64 {
	return uint64(revision)*IndexScale + uint64(position)
}
