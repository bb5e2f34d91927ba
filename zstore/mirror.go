package store

import (
	"cmp"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/blixard/blixard"
)

// mirror is what the store holds, in memory as of a revision.
type mirror struct {
	codec *codec
	log   *slog.Logger

	mu  sync.RWMutex
	rev int64
	// changed is closed at the next change.
	changed chan struct{}
	vms     map[string]stored
	// batches are the events by the revision of their batch.
	batches []batch
	events  int
	// floor is the newest index that was trimmed, floorRev its key's revision.
	floor    uint64
	floorRev int64
	// life counts how often the store turned out to be another one, older than
	// what was seen: its indices begin anew.
	life int
}

// batch is the events of one transaction.
type batch struct {
	key    string
	rev    int64
	events []blixard.Event
}

func newMirror(c *codec, log *slog.Logger) *mirror {
	return &mirror{codec: c, log: log, changed: make(chan struct{}), vms: map[string]stored{}}
}

// reset replaces everything by a listing.
func (m *mirror) reset(rev int64, kvs []*mvccpb.KeyValue) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if rev < m.rev {
		m.life++
	}
	m.vms = make(map[string]stored, len(m.vms))
	m.batches, m.events, m.floor, m.floorRev = nil, 0, 0, 0
	for _, kv := range kvs {
		m.put(kv)
	}
	slices.SortFunc(m.batches, func(a, b batch) int { return cmp.Compare(a.rev, b.rev) })
	m.moved(rev)
}

// apply takes in the changes of a watch up to a revision.
func (m *mirror) apply(rev int64, events []*clientv3.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range events {
		if e.Type == mvccpb.DELETE {
			m.remove(string(e.Kv.Key))
		} else {
			m.put(e.Kv)
		}
	}
	if rev > m.rev {
		m.moved(rev)
	}
}

// moved tells that there is a new revision. The caller holds mu.
func (m *mirror) moved(rev int64) {
	m.rev = rev
	close(m.changed)
	m.changed = make(chan struct{})
}

// put takes in a key. The caller holds mu.
func (m *mirror) put(kv *mvccpb.KeyValue) {
	key := string(kv.Key)
	switch {
	case strings.HasPrefix(key, vmsPrefix):
		s := decodeRecord(m.codec, kv)
		if s.err != nil {
			m.log.Error("a record cannot be read and is left alone", "key", key, "err", s.err)
		}
		m.vms[key] = s
	case strings.HasPrefix(key, eventsPrefix):
		var events []blixard.Event
		if err := m.codec.decode(kv.Value, &events); err != nil {
			m.log.Error("events cannot be read and are left out", "key", key, "err", err)
			return
		}
		for i := range events {
			events[i].Index = blixard.Index(kv.ModRevision, i)
		}
		m.batches = append(m.batches, batch{key, kv.ModRevision, events})
		m.events += len(events)
	case key == floorKey:
		var floor uint64
		if err := m.codec.decode(kv.Value, &floor); err != nil {
			m.log.Error("the floor of events cannot be read", "err", err)
		}
		m.floor, m.floorRev = floor, kv.ModRevision
	}
}

// remove takes in that a key is gone. The caller holds mu.
func (m *mirror) remove(key string) {
	delete(m.vms, key)
	if !strings.HasPrefix(key, eventsPrefix) {
		return
	}
	for i := range m.batches {
		if m.batches[i].key == key {
			m.events -= len(m.batches[i].events)
			m.batches = slices.Delete(m.batches, i, i+1)
			return
		}
	}
}

// decodeRecord reads a VM's record and refuses one that is under another's key.
func decodeRecord(c *codec, kv *mvccpb.KeyValue) stored {
	s := stored{rev: kv.ModRevision}
	node, manager, name, err := parseVMKey(string(kv.Key))
	if err == nil {
		var r blixard.VMRecord
		if err = c.decode(kv.Value, &r); err == nil {
			r.NodeID, r.Manager, r.Name = node, manager, name
			s.rec = &r
		}
	}
	s.err = err
	return s
}

func (m *mirror) revision() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.rev
}

// watch returns the revision and a channel that is closed at the next one.
func (m *mirror) watch() (int64, <-chan struct{}) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.rev, m.changed
}

// has reports whether everything up to a revision is in memory.
func (m *mirror) has(rev int64) bool { return rev > 0 && m.revision() >= rev }

// record is a VM's record as it is in memory.
func (m *mirror) record(nodeID string, id blixard.VMID) stored {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.vms[vmKey(nodeID, id.Manager, id.Name)]
}

// records are the readable records of a node, which has that name now.
func (m *mirror) records(nodeID, name string) []blixard.VMRecord {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var out []blixard.VMRecord
	for _, s := range m.vms {
		if s.rec != nil && s.rec.NodeID == nodeID {
			r := *s.rec
			r.Node = name
			out = append(out, r)
		}
	}
	return out
}

func (m *mirror) floorKey() (floor uint64, rev int64) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.floor, m.floorRev
}

// surplus is a node's oldest batches beyond a bound on all events, at most n
// and never the newest, and the index of the last event in them.
func (m *mirror) surplus(nodeID string, maxEvents, n int) (keys []string, floor uint64) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	excess := m.events - maxEvents
	own := eventsPrefix + nodeID + "/"
	for i := 0; i < len(m.batches)-1 && excess > 0 && len(keys) < n; i++ {
		b := &m.batches[i]
		if !strings.HasPrefix(b.key, own) {
			continue
		}
		keys = append(keys, b.key)
		excess -= len(b.events)
		floor = blixard.Index(b.rev, max(0, len(b.events)-1))
	}
	return keys, floor
}

// after returns the kept events behind an index, at most n (0: all), with the
// channel of the next change, whether some that were there are gone, and the
// store's life.
func (m *mirror) after(index uint64, n int) (events []blixard.Event, rev int64, changed <-chan struct{}, gap bool, life int) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	i, _ := slices.BinarySearchFunc(m.batches, index, func(b batch, index uint64) int {
		return cmp.Compare(blixard.Index(b.rev, len(b.events)), index)
	})
	for ; i < len(m.batches); i++ {
		for _, e := range m.batches[i].events {
			if e.Index > index {
				events = append(events, e)
			}
		}
		if n > 0 && len(events) >= n {
			break
		}
	}
	return events, m.rev, m.changed, index < m.floor, m.life
}
