package store

import (
	"cmp"
	"hash/maphash"
	"iter"
	"slices"

	"github.com/blixard/blixard"
)

// tableShards splits a table, so that a change copies a small part of it.
const tableShards = 256

// entry is a record as it is stored. It never changes.
type entry struct {
	rec blixard.VMRecord
	// mod is the revision of the write that made it so.
	mod int64
	// bad is why the value cannot be read; then rec holds the VMID alone.
	bad error
}

// table holds entries by VM. It never changes; a tableBuilder makes the next.
type table struct {
	seed   maphash.Seed
	shards [tableShards]*[]*entry // each in order of compareVM; nil when empty
	n      int
}

func newTable() *table { return &table{seed: maphash.MakeSeed()} }

func compareVM(a, b blixard.VMID) int {
	return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Manager, b.Manager), cmp.Compare(a.Name, b.Name))
}

func (t *table) shard(id blixard.VMID) int {
	return int(maphash.Comparable(t.seed, id) % tableShards)
}

func search(es []*entry, id blixard.VMID) (int, bool) {
	return slices.BinarySearchFunc(es, id, func(e *entry, id blixard.VMID) int { return compareVM(e.rec.VMID, id) })
}

// get is the entry of a VM, nil for none.
func (t *table) get(id blixard.VMID) *entry {
	s := t.shards[t.shard(id)]
	if s == nil {
		return nil
	}
	if i, ok := search(*s, id); ok {
		return (*s)[i]
	}
	return nil
}

// all gives every entry, in no order.
func (t *table) all() iter.Seq[*entry] {
	return func(yield func(*entry) bool) {
		for _, s := range t.shards {
			if s == nil {
				continue
			}
			for _, e := range *s {
				if !yield(e) {
					return
				}
			}
		}
	}
}

// tableBuilder makes a table from another, which stays as it is: a shard is
// copied when it is first changed.
type tableBuilder struct {
	t     *table
	owned [tableShards]bool
}

func (t *table) builder() *tableBuilder {
	c := *t
	return &tableBuilder{t: &c}
}

// own is a shard that may be changed.
func (b *tableBuilder) own(i int) *[]*entry {
	if s := b.t.shards[i]; b.owned[i] {
		return s
	} else if s == nil {
		b.t.shards[i] = new([]*entry)
	} else {
		c := slices.Clone(*s)
		b.t.shards[i] = &c
	}
	b.owned[i] = true
	return b.t.shards[i]
}

func (b *tableBuilder) put(e *entry) {
	s := b.own(b.t.shard(e.rec.VMID))
	i, ok := search(*s, e.rec.VMID)
	if ok {
		(*s)[i] = e
		return
	}
	*s = slices.Insert(*s, i, e)
	b.t.n++
}

func (b *tableBuilder) delete(id blixard.VMID) {
	s := b.own(b.t.shard(id))
	if i, ok := search(*s, id); ok {
		*s = slices.Delete(*s, i, i+1)
		b.t.n--
	}
}
