package store

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/blixard/blixard"
)

// View is what the store held at one revision. It never changes; only Stale and
// LastContact tell of the present.
type View struct {
	rev     int64
	cluster uint64
	vms     *table
	nodes   map[string]blixard.NodeRecord
	alive   map[string]bool
	history history
	floor   uint64
	bad     map[string]string
	changed chan struct{}
	contact *contact
}

// Quarantined is a value that cannot be read. It is left as it is.
type Quarantined struct {
	Key    string
	Reason string
}

// Revision is the store's, 0 before anything was read.
func (v *View) Revision() int64 { return v.rev }

// Index is an index that no event in the view exceeds and every later one does.
func (v *View) Index() uint64 {
	if v.rev == 0 {
		return 0
	}
	return blixard.Index(v.rev, blixard.IndexScale-1)
}

// Changed is closed when there is a newer view.
func (v *View) Changed() <-chan struct{} { return v.changed }

// VM is the record of a VM. It is shared: it must not be changed.
func (v *View) VM(id blixard.VMID) (*blixard.VMRecord, bool) {
	if e := v.vms.get(id); e != nil && e.bad == nil {
		return &e.rec, true
	}
	return nil, false
}

// VMs are the records of a node's VMs, tombstones too, by manager and name;
// those of all nodes when node is empty.
func (v *View) VMs(node string) []blixard.VMRecord {
	var out []blixard.VMRecord
	for e := range v.vms.all() {
		if e.bad == nil && (node == "" || e.rec.Node == node) {
			out = append(out, e.rec)
		}
	}
	slices.SortFunc(out, func(a, b blixard.VMRecord) int { return compareVM(a.VMID, b.VMID) })
	return out
}

// Nodes are the records of the nodes by name.
func (v *View) Nodes() []blixard.NodeRecord {
	return slices.SortedFunc(maps.Values(v.nodes), func(a, b blixard.NodeRecord) int {
		return strings.Compare(a.Name+"/"+a.ID, b.Name+"/"+b.ID)
	})
}

// Alive reports whether a node keeps its lease: a hint that it lives.
func (v *View) Alive(nodeID string) bool { return v.alive[nodeID] }

// Events are the newest events that a query selects, oldest first.
func (v *View) Events(q blixard.EventQuery) []blixard.Event { return v.history.newest(q) }

// Floor is the highest index of an event that is no longer kept, 0 when all are.
func (v *View) Floor() uint64 { return v.floor }

// Quarantined are the values that cannot be read, by key.
func (v *View) Quarantined() []Quarantined {
	var out []Quarantined
	for _, k := range slices.Sorted(maps.Keys(v.bad)) {
		out = append(out, Quarantined{Key: k, Reason: v.bad[k]})
	}
	return out
}

// LastContact is when the store last answered, with the monotonic clock; zero
// when it never did.
func (v *View) LastContact() time.Time { return v.contact.last() }

// Stale is why the view may be older than what the store holds, "" when it is
// not: the store has not answered for some seconds, or never.
func (v *View) Stale() string { return v.contact.stale() }

// staleAfter is the silence after which a view counts as stale; the store is
// asked for a sign of life several times as often.
const (
	staleAfter   = 15 * time.Second
	contactEvery = 5 * time.Second
)

// contact is when the store was last heard of.
type contact struct {
	mu   sync.Mutex
	at   time.Time
	lost string // why it is known to be away, "" when it is not
}

func (c *contact) heard() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at, c.lost = time.Now(), ""
}

func (c *contact) lose(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lost = reason
}

func (c *contact) last() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *contact) stale() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.lost != "":
		return c.lost
	case c.at.IsZero():
		return "the store has not answered yet"
	case time.Since(c.at) > staleAfter:
		return "the store has not answered for " + time.Since(c.at).Round(time.Second).String()
	}
	return ""
}
