package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/blixard/blixard"
)

// listPage is how many keys are listed at once.
const listPage = 1000

// callTimeout bounds one call that reads.
const callTimeout = 5 * time.Second

// mirror keeps in memory what the store holds. One goroutine, that of Run,
// makes the views; anybody may read them.
type mirror struct {
	client  *clientv3.Client
	keys    keys
	codec   *codec
	contact *contact
	view    atomic.Pointer[View]
	strings interner
}

func newMirror(client *clientv3.Client, k keys, c *codec) *mirror {
	m := &mirror{client: client, keys: k, codec: c, contact: &contact{}, strings: interner{}}
	m.view.Store(&View{vms: newTable(), changed: make(chan struct{}), contact: m.contact})
	return m
}

// errListAgain says that what is in memory cannot be followed on.
var errListAgain = errors.New("the history in between is gone")

// Run follows the store until ctx ends.
func (m *mirror) Run(ctx context.Context) {
	var pause time.Duration
	for relist := true; ctx.Err() == nil; {
		before := m.contact.last()
		err := m.follow(ctx, relist)
		if ctx.Err() != nil {
			return
		}
		relist = m.view.Load().rev == 0 || errors.Is(err, errListAgain)
		if !errors.Is(err, errListAgain) {
			m.contact.lose(fmt.Sprintf("the store is not followed: %v", err))
		}
		if pause = min(max(2*pause, 20*time.Millisecond), 500*time.Millisecond); m.contact.last() != before {
			pause = 20 * time.Millisecond
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// follow lists the store if relist, then takes in changes until that fails.
func (m *mirror) follow(ctx context.Context, relist bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if relist {
		if err := m.list(ctx); err != nil {
			return err
		}
	}
	last := m.view.Load()
	// The call waits until the store has taken the watch.
	giveUp := time.AfterFunc(callTimeout, cancel)
	watch := m.client.Watch(ctx, m.keys.prefix, clientv3.WithPrefix(), clientv3.WithRev(last.rev+1), clientv3.WithCreatedNotify())
	giveUp.Stop()
	sign := time.NewTicker(contactEvery)
	defer sign.Stop()
	opened := time.Now()
	for {
		select {
		case <-ctx.Done():
			return errors.New("no answer")
		case r, ok := <-watch:
			if !ok {
				return errors.New("the watch ended")
			}
			if err := m.take(&r); err != nil {
				return err
			}
		case <-sign.C:
			if heard := m.contact.last(); time.Since(heard) > staleAfter && time.Since(opened) > staleAfter {
				return fmt.Errorf("no answer for %s", time.Since(heard).Round(time.Second))
			}
			sctx, done := context.WithTimeout(ctx, contactEvery/2)
			// Whether it was asked shows by the answer.
			_ = m.client.RequestProgress(sctx)
			done()
		}
	}
}

// take takes in one message of a watch.
func (m *mirror) take(r *clientv3.WatchResponse) error {
	last := m.view.Load()
	switch err := r.Err(); {
	case errors.Is(err, rpctypes.ErrCompacted):
		return errListAgain
	case err != nil:
		return err
	case r.Header.GetClusterId() != last.cluster, r.IsProgressNotify() && r.Header.Revision < last.rev:
		// Another store, or an older copy of it, is in its place.
		return errListAgain
	}
	m.contact.heard()
	switch {
	case len(r.Events) > 0:
		m.publish(m.apply(last, r.Events))
	case r.IsProgressNotify() && r.Header.Revision > last.rev:
		next := *last
		next.rev = r.Header.Revision
		m.publish(&next)
	}
	return nil
}

func (m *mirror) publish(v *View) {
	v.changed = make(chan struct{})
	close(m.view.Swap(v).changed)
}

// list reads everything at one revision.
func (m *mirror) list(ctx context.Context) error {
	d := &draft{tables: newTable().builder(), owned: true,
		View: View{nodes: map[string]blixard.NodeRecord{}, alive: map[string]bool{}, bad: map[string]string{}, contact: m.contact}}
	var batches []*batch
	from, end := m.keys.prefix, clientv3.GetPrefixRangeEnd(m.keys.prefix)
	for {
		cctx, cancel := context.WithTimeout(ctx, callTimeout)
		r, err := m.client.Get(cctx, from, clientv3.WithRange(end), clientv3.WithLimit(listPage), clientv3.WithRev(d.rev))
		cancel()
		if err != nil {
			return fmt.Errorf("list: %w", err)
		}
		m.contact.heard()
		if d.rev == 0 {
			d.rev, d.cluster = r.Header.Revision, r.Header.ClusterId
		}
		for _, kv := range r.Kvs {
			m.put(d, kv, func(b *batch) { batches = append(batches, b) })
		}
		if !r.More {
			break
		}
		from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
	sortBatches(batches)
	for _, b := range batches {
		d.history = d.history.append(b)
	}
	m.publish(d.done())
	return nil
}

// apply makes the view after some changes.
func (m *mirror) apply(last *View, events []*clientv3.Event) *View {
	d := &draft{View: *last, tables: last.vms.builder()}
	for _, e := range events {
		d.rev = max(d.rev, e.Kv.ModRevision)
		if e.Type == mvccpb.Event_DELETE {
			m.delete(d, string(e.Kv.Key))
		} else {
			m.put(d, e.Kv, func(b *batch) { d.history = d.history.append(b) })
		}
	}
	return d.done()
}

// draft is a view in the making.
type draft struct {
	View
	tables *tableBuilder
	// owned says that the maps are no other view's.
	owned bool
}

// own makes the maps the draft's own before they are changed, which is rare.
func (d *draft) own() {
	if !d.owned {
		d.nodes, d.alive, d.bad = maps.Clone(d.nodes), maps.Clone(d.alive), maps.Clone(d.bad)
		d.owned = true
	}
}

func (d *draft) done() *View {
	d.vms = d.tables.t
	return &d.View
}

// put takes in a value. Batches of events are handed to add in the order in
// which they come.
func (m *mirror) put(d *draft, kv *mvccpb.KeyValue, add func(*batch)) {
	name := string(kv.Key)
	k, err := m.keys.parse(name)
	if err == nil {
		switch k.kind {
		case kindNode:
			d.own()
			delete(d.nodes, k.node)
			var n blixard.NodeRecord
			if n, err = m.codec.decodeNode(kv.Value, k.node); err == nil {
				d.nodes[k.node] = n
			}
		case kindAlive:
			d.own()
			d.alive[k.node] = true
		case kindVM:
			e := m.codec.decodeVM(kv.Value, k.vm, kv.ModRevision)
			m.strings.record(&e.rec)
			d.tables.put(e)
			err = e.bad
		case kindEvents:
			b := &batch{key: name, rev: kv.ModRevision}
			b.events, b.bad = m.codec.decodeEvents(kv.Value, kv.ModRevision)
			for i := range b.events {
				m.strings.event(&b.events[i])
			}
			add(b)
			err = b.bad
		case kindFloor:
			var floor uint64
			if err = m.codec.decode(kv.Value, &floor); err == nil {
				d.floor = max(d.floor, floor)
			}
		case kindSeq:
			var s sequence
			err = m.codec.decode(kv.Value, &s)
		}
	}
	if _, was := d.bad[name]; was || err != nil {
		d.own()
		delete(d.bad, name)
		if err != nil {
			d.bad[name] = err.Error()
		}
	}
}

func (m *mirror) delete(d *draft, name string) {
	if _, was := d.bad[name]; was {
		d.own()
		delete(d.bad, name)
	}
	k, err := m.keys.parse(name)
	if err != nil {
		return
	}
	switch k.kind {
	case kindNode:
		d.own()
		delete(d.nodes, k.node)
	case kindAlive:
		d.own()
		delete(d.alive, k.node)
	case kindVM:
		d.tables.delete(k.vm)
	case kindEvents:
		d.history = d.history.remove(name)
	case kindFloor, kindSeq:
	}
}

// decodeNode reads the record of a node.
func (c *codec) decodeNode(value []byte, id string) (blixard.NodeRecord, error) {
	var n blixard.NodeRecord
	if err := c.decode(value, &n); err != nil {
		return n, err
	}
	if n.ID != id {
		return n, fmt.Errorf("record of another node, %q", n.ID)
	}
	return n, nil
}

// decodeVM reads the record of a VM.
func (c *codec) decodeVM(value []byte, id blixard.VMID, mod int64) *entry {
	e := &entry{mod: mod}
	if e.bad = c.decode(value, &e.rec); e.bad == nil && e.rec.VMID != id {
		e.bad = fmt.Errorf("record of another VM, %q", e.rec.VMID)
	}
	if e.bad != nil {
		e.rec = blixard.VMRecord{VMID: id}
	}
	return e
}

// decodeEvents reads the events of a batch and gives them their indices.
func (c *codec) decodeEvents(value []byte, rev int64) ([]blixard.Event, error) {
	var events []blixard.Event
	if err := c.decode(value, &events); err != nil {
		return nil, err
	}
	if len(events) == 0 || len(events) >= blixard.IndexScale {
		return nil, fmt.Errorf("%d events in one value", len(events))
	}
	for i := range events {
		events[i].Index = blixard.Index(rev, i)
	}
	return events, nil
}

// wait waits until the mirror has a revision.
func (m *mirror) wait(ctx context.Context, rev int64) (*View, error) {
	for {
		v := m.view.Load()
		if v.rev >= rev {
			return v, nil
		}
		select {
		case <-v.changed:
		case <-ctx.Done():
			return v, ctx.Err()
		}
	}
}
