package blixard

import (
	"context"
	"iter"
)

// APIVersion is the version of the JSON and HTTP contract.
const APIVersion = "v1"

// List is the envelope of every list.
type List[T any] struct {
	APIVersion string `json:"api_version"`
	// Index is the store's at the time of the answer; a stream of events from
	// it misses nothing that the answer does not hold.
	Index uint64 `json:"index"`
	// AgeSeconds is the age of the oldest observation behind the items that
	// are not marked unknown, nil when there is none.
	AgeSeconds *float64 `json:"age_seconds,omitempty"`
	// Problems are the reasons why the answer may be incomplete or old, one
	// line each; empty when it is neither.
	Problems []string `json:"problems,omitempty"`
	Items    []T      `json:"items"`
}

// EventQuery selects events.
type EventQuery struct {
	// VM selects the events of one VM; the zero value selects all.
	VM VMRef
	// After selects events with a greater index.
	After uint64
	// Limit bounds a listing to the newest that many, 0 means MaxEvents.
	Limit int
}

// MaxEvents bounds one listing of events.
const MaxEvents = 10000

// EventFrame is one message of a stream of events.
type EventFrame struct {
	// Event is nil on a frame that only tells the index or a gap.
	Event *Event `json:"event,omitempty"`
	// Gap says that events between the last frame and this one are no longer
	// kept.
	Gap bool `json:"gap,omitempty"`
	// Index is where to resume after this frame.
	Index uint64 `json:"index"`
}

// VMFrame is one message of a stream of VMs: first every VM, then a frame with
// Synced, then each VM as it changes.
type VMFrame struct {
	VM *VM `json:"vm,omitempty"`
	// Gone is the address of a VM that is shown no more.
	Gone string `json:"gone,omitempty"`
	// Synced says that every VM there is has been sent. A frame with Synced
	// and neither VM nor Gone also comes at least every 15 s.
	Synced bool   `json:"synced,omitempty"`
	Index  uint64 `json:"index"`
}

// ClusterStatus is the answer of cluster status.
type ClusterStatus struct {
	APIVersion string `json:"api_version"`
	// Index is as in List.
	Index uint64 `json:"index"`
	// Node is the node that answers.
	Node string `json:"node"`
	// Status is Healthy, Degraded or Critical.
	Status HealthStatus `json:"status"`
	// Problems are the reasons for a status other than Healthy.
	Problems []string    `json:"problems,omitempty"`
	Store    StoreStatus `json:"store"`
	Nodes    []Node      `json:"nodes"`
}

// Fleet is what the API offers. The daemon satisfies it from memory, the HTTP
// client by asking a daemon. Every error is an *Error. All methods may be
// called at once and end with their context.
type Fleet interface {
	// VMs lists every VM.
	VMs(ctx context.Context) (List[VM], error)
	// VM shows one. CodeNotFound and CodeAmbiguous are the expected errors.
	VM(ctx context.Context, ref VMRef) (List[VM], error)
	// WatchVMs streams every VM and then the changes, the newest state of each;
	// states in between may be left out. It ends with an error only.
	WatchVMs(ctx context.Context) iter.Seq2[VMFrame, error]
	// RemoveVM makes the VM's record a tombstone. A VM that runs is shown as
	// removed until it is gone. It returns when the store acknowledged it.
	RemoveVM(ctx context.Context, ref VMRef) (List[VM], error)

	// AdoptVM records a VM that is there but not recorded, or was removed.
	AdoptVM(ctx context.Context, ref VMRef) (List[VM], error)

	// Events lists kept events, oldest first.
	Events(ctx context.Context, q EventQuery) (List[Event], error)
	// FollowEvents streams every event after q.After (0: from now on), each
	// once and in order, with a gap marked where one is. It ends with an error
	// only.
	FollowEvents(ctx context.Context, q EventQuery) iter.Seq2[EventFrame, error]

	// Nodes lists the nodes.
	Nodes(ctx context.Context) (List[Node], error)
	// Node shows one by name or id.
	Node(ctx context.Context, name string) (List[Node], error)
	// Cluster tells the state of the store and of the nodes.
	Cluster(ctx context.Context) (ClusterStatus, error)
}
