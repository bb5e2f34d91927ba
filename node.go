package blixard

import (
	"regexp"
	"time"
)

// MaxNodeName is the longest node name in bytes, the kernel's own bound on a
// host name.
const MaxNodeName = 64

var nodeName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`)

// CheckNodeName refuses a name that is not letters, digits, dots, dashes and
// underscores, or longer than MaxNodeName, or that reads as a manager. The error is an *Error with
// CodeInvalid.
func CheckNodeName(s string) error {
	if IsManager(s) {
		return Errorf(CodeInvalid, "node name %q: in an address it would mean a manager", s)
	}
	if len(s) > MaxNodeName || !nodeName.MatchString(s) {
		return Errorf(CodeInvalid, "node name %q: want 1 to %d letters, digits, dots, dashes or underscores, beginning and ending with a letter or digit", s, MaxNodeName)
	}
	return nil
}

// NodeStatus says whether a node reports.
type NodeStatus string

// The answers.
const (
	// NodeReady: it reports.
	NodeReady NodeStatus = "ready"
	// NodeDegraded: it reports, but part of it fails; Node.Problems says what.
	NodeDegraded NodeStatus = "degraded"
	// NodeSilent: its reports stopped, and what it last said is unverified.
	NodeSilent NodeStatus = "silent"
)

// NodeRecord is what the store keeps of a node.
type NodeRecord struct {
	// ID is born with the data directory and never reused.
	ID             string    `json:"id"`
	Name           string    `json:"name"`
	Version        string    `json:"version"`
	SystemdVersion string    `json:"systemd_version,omitempty"`
	StartedAt      time.Time `json:"started_at"`
}

// Node is a node as the API shows it.
type Node struct {
	Name   string     `json:"name"`
	ID     string     `json:"id"`
	Status NodeStatus `json:"status"`
	// Problems are the reasons for a status other than ready, one line each.
	Problems []string `json:"problems,omitempty"`
	// VMs counts the VMs the node shows.
	VMs            int        `json:"vms"`
	Version        string     `json:"version"`
	SystemdVersion string     `json:"systemd_version,omitempty"`
	StartedAt      *time.Time `json:"started_at,omitempty"`
	// LastSeen is when the node last completed a cycle.
	LastSeen   *time.Time `json:"last_seen,omitempty"`
	AgeSeconds *float64   `json:"age_seconds,omitempty"`
	// Managers are the service managers the node watches or should watch.
	Managers []ManagerStatus `json:"managers"`
}

// ManagerStatus is the connection to one service manager of a host.
type ManagerStatus struct {
	// Name is "system" or "user:UID".
	Name      string `json:"name"`
	Connected bool   `json:"connected"`
	// Reason says why it is not connected, Hint what to do about it.
	Reason string `json:"reason,omitempty"`
	Hint   string `json:"hint,omitempty"`
	// LastListing is when its units were last listed whole.
	LastListing *time.Time `json:"last_listing,omitempty"`
}

// StoreStatus is the state of the replicated store as one node sees it.
type StoreStatus struct {
	ClusterID string `json:"cluster_id,omitempty"`
	// Healthy says that writes are acknowledged.
	Healthy bool `json:"healthy"`
	// Reason says why not.
	Reason  string         `json:"reason,omitempty"`
	Members []MemberStatus `json:"members"`
	// Revision is the store's as this node has it in memory.
	Revision int64 `json:"revision"`
	// Pending counts the commands that wait to be written, Buffered the events.
	Pending  int `json:"pending"`
	Buffered int `json:"buffered_events"`
}

// MemberStatus is one member of the store.
type MemberStatus struct {
	Node string `json:"node"`
	// ID is the member's id in the store, in hex.
	ID     string `json:"id,omitempty"`
	Leader bool   `json:"leader"`
	Term   uint64 `json:"term,omitempty"`
	// State is running, starting, down or hung.
	State string `json:"state"`
	// Reason says why it is not running.
	Reason string `json:"reason,omitempty"`
	// Restarts counts how often the daemon had to start it anew.
	Restarts int `json:"restarts"`
	// Version is the store's own.
	Version string `json:"version,omitempty"`
	// DatabaseBytes is the size of its database, QuotaBytes the bound.
	DatabaseBytes int64 `json:"database_bytes,omitempty"`
	QuotaBytes    int64 `json:"quota_bytes,omitempty"`
}
