package store

import (
	"context"
	"errors"
	"strings"
	"time"
	"unicode/utf8"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/blixard/blixard"
)

// Bounds of a batch.
const (
	// MaxBatchVMs is how many VMs one batch may be about.
	MaxBatchVMs = 100
	// maxBatchBytes bounds the keys and values of one transaction, a little
	// below what etcd takes.
	maxBatchBytes = maxValue - 32<<10
	maxBatchID    = 64
)

// Bounds of one Apply.
const (
	applyTimeout = 10 * time.Second
	applyTries   = 8
)

// recentBatches is how many other batches of the node may be written before a
// repeated one is no longer known to be.
const recentBatches = 16

// sequence is the value of a node's sequence key: which batches it wrote last.
type sequence struct {
	// Seq counts the node's batches.
	Seq uint64 `json:"seq"`
	// Recent are the last batches, newest first.
	Recent []written `json:"recent"`
}

// written is a batch that was written.
type written struct {
	ID string `json:"id"`
	// Revision is that of the write; 0 for the newest, which is that of the key.
	Revision int64 `json:"revision,omitempty"`
}

// writer is what the node knows of its own writes, which the mirror may not have
// yet.
type writer struct {
	// base is the sequence key as it was last read or written, nil when that is
	// not known.
	base *base
	// recent are the entries written since the mirror was last seen to have
	// everything, up to revision rev.
	recent map[blixard.VMID]*entry
	rev    int64
}

// base is the sequence key at one moment.
type base struct {
	sequence
	mod int64
	bad error
}

// find is the revision at which a batch was written, 0 when it was not.
func (b *base) find(id string) int64 {
	for i, w := range b.Recent {
		if w.ID == id {
			if i == 0 {
				return b.mod
			}
			return w.Revision
		}
	}
	return 0
}

// next is the sequence after one more batch.
func (b *base) next(id string) sequence {
	n := sequence{Seq: b.Seq + 1, Recent: []written{{ID: id}}}
	for i, w := range b.Recent {
		if len(n.Recent) == recentBatches {
			break
		}
		if i == 0 {
			w.Revision = b.mod
		}
		n.Recent = append(n.Recent, w)
	}
	return n
}

// Apply writes a batch as one transaction and returns an index that covers it:
// no event of the batch exceeds it. A batch that was written already, known by
// its ID among the last few of the node, is not written again and has the same
// index; one that changes nothing and has no events writes nothing.
//
// It blocks for 10 s at most, and one after another. Errors are
// *blixard.Error: CodeInvalid and CodeTooLarge before anything is written;
// CodeUnavailable when it is sure that nothing was; CodeTimeout when that is
// not known, and CodeConflict when others wrote again and again. After the last
// three the same batch may be sent again.
func (s *Store) Apply(ctx context.Context, b blixard.Batch) (index uint64, err error) {
	ids, err := s.check(&b)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return 0, blixard.Errorf(blixard.CodeUnavailable, "the store is busy with other writes")
	}
	rev, err := s.apply(ctx, &b, ids)
	if code := blixard.ErrorCode(err); s.health.Load().well() == (code == blixard.CodeUnavailable || code == blixard.CodeTimeout) {
		s.doubtHealth()
	}
	if err != nil || rev == 0 {
		return 0, err
	}
	return blixard.Index(rev, blixard.IndexScale-1), nil
}

// check refuses a batch that can never be written and lists the VMs it is about.
func (s *Store) check(b *blixard.Batch) ([]blixard.VMID, error) {
	if b.ID == "" || len(b.ID) > maxBatchID || !utf8.ValidString(b.ID) {
		return nil, blixard.Errorf(blixard.CodeInvalid, "batch id %.64q: want 1 to %d bytes of text", b.ID, maxBatchID)
	}
	if len(b.Events) >= blixard.IndexScale {
		return nil, blixard.Errorf(blixard.CodeInvalid, "batch of %d events: want fewer than %d", len(b.Events), blixard.IndexScale)
	}
	var ids []blixard.VMID
	seen := map[blixard.VMID]bool{}
	for _, c := range b.Commands {
		if c == nil {
			return nil, blixard.Errorf(blixard.CodeInvalid, "batch with a nil command")
		}
		id := c.Target()
		if seen[id] {
			continue
		}
		if err := s.checkVM(id); err != nil {
			return nil, err
		}
		seen[id] = true
		ids = append(ids, id)
	}
	if len(ids) > MaxBatchVMs {
		return nil, blixard.Errorf(blixard.CodeInvalid, "batch about %d VMs: want %d at most", len(ids), MaxBatchVMs)
	}
	for i := range b.Events {
		e := &b.Events[i]
		switch {
		case e.Node != s.cfg.Node.Name:
			return nil, blixard.Errorf(blixard.CodeInvalid, "event of node %q: this is %q", e.Node, s.cfg.Node.Name)
		case e.Type == "":
			return nil, blixard.Errorf(blixard.CodeInvalid, "event without a type")
		case e.VM != "" || e.Manager != "":
			// What happened to a manager names no VM.
			id := blixard.VMID{Node: e.Node, Manager: e.Manager, Name: e.VM}
			if e.VM == "" {
				id.Name = "-"
			}
			if err := s.checkVM(id); err != nil {
				return nil, err
			}
		}
	}
	return ids, nil
}

// checkVM refuses a VM that is not this node's or that no address can name.
func (s *Store) checkVM(id blixard.VMID) error {
	switch {
	case id.Node != s.cfg.Node.Name:
		return blixard.Errorf(blixard.CodeInvalid, "VM of node %q: this is %q", id.Node, s.cfg.Node.Name)
	case !blixard.IsManager(id.Manager):
		return blixard.Errorf(blixard.CodeInvalid, "VM %q: %q is no manager", id.Name, id.Manager)
	case id.Name == "" || len(id.Name) > blixard.MaxName || strings.Contains(id.Name, "/") || !utf8.ValidString(id.Name):
		return blixard.Errorf(blixard.CodeInvalid, "VM name %q: want 1 to %d bytes of text without a slash", id.Name, blixard.MaxName)
	}
	return nil
}

// apply writes a batch that was checked and returns its revision. The caller
// has the turn.
func (s *Store) apply(ctx context.Context, b *blixard.Batch, ids []blixard.VMID) (int64, error) {
	w := &s.writer
	known := s.remembered(ids)
	// sent says that a write may be on its way whose outcome is not known.
	sent := false
	for range applyTries {
		if known == nil {
			r, err := s.client.Txn(ctx).Then(s.reads(ids)...).Commit()
			if err != nil {
				return 0, s.failed(ctx, err, sent)
			}
			known = s.learn(r, ids)
		}
		if w.base.bad != nil {
			return 0, blixard.Errorf(blixard.CodeUnavailable, "the sequence of node %s cannot be read: %v", s.cfg.Node.Name, w.base.bad).
				WithHint("run the version of blixard that wrote it")
		}
		if rev := w.base.find(b.ID); rev != 0 {
			return rev, nil
		}
		txn, rev, changed, err := s.transaction(ctx, b, ids, known)
		if err != nil || txn == nil {
			return rev, err
		}
		r, err := txn.Commit()
		switch {
		case err == nil && r.Succeeded:
			next := w.base.next(b.ID)
			w.base = &base{sequence: next, mod: r.Header.Revision}
			w.rev = r.Header.Revision
			for id, rec := range changed {
				w.recent[id] = &entry{rec: *rec, mod: w.rev}
			}
			return w.rev, nil
		case err == nil:
			known = s.learn(r, ids)
		case !mayBeSent(err):
			return 0, s.failed(ctx, err, sent)
		default:
			// Whether it was written is read back.
			sent, known, w.base = true, nil, nil
		}
	}
	return 0, blixard.Errorf(blixard.CodeConflict, "others wrote the same records %d times in between", applyTries)
}

// remembered are the entries of VMs as the mirror and the node's own last
// writes have them, nil when that does not suffice.
func (s *Store) remembered(ids []blixard.VMID) map[blixard.VMID]*entry {
	w, v := &s.writer, s.View()
	if w.base == nil || v.rev == 0 {
		return nil
	}
	if v.rev >= w.rev {
		clear(w.recent)
	}
	out := make(map[blixard.VMID]*entry, len(ids))
	for _, id := range ids {
		e := v.vms.get(id)
		if own := w.recent[id]; own != nil && (e == nil || own.mod > e.mod) {
			e = own
		}
		out[id] = e
	}
	return out
}

// reads read the sequence key and the keys of VMs, in that order.
func (s *Store) reads(ids []blixard.VMID) []clientv3.Op {
	ops := []clientv3.Op{clientv3.OpGet(s.keys.seq(s.cfg.Node.ID))}
	for _, id := range ids {
		ops = append(ops, clientv3.OpGet(s.keys.vm(id)))
	}
	return ops
}

// learn takes in what reads read.
func (s *Store) learn(r *clientv3.TxnResponse, ids []blixard.VMID) map[blixard.VMID]*entry {
	kv := func(i int) *mvccpb.KeyValue {
		if kvs := r.Responses[i].GetResponseRange().GetKvs(); len(kvs) > 0 {
			return kvs[0]
		}
		return nil
	}
	b := &base{}
	if k := kv(0); k != nil {
		b.mod, b.bad = k.ModRevision, s.codec.decode(k.Value, &b.sequence)
	}
	s.writer.base = b
	out := make(map[blixard.VMID]*entry, len(ids))
	for i, id := range ids {
		if k := kv(i + 1); k != nil {
			out[id] = s.codec.decodeVM(k.Value, id, k.ModRevision)
		}
		delete(s.writer.recent, id)
	}
	return out
}

// transaction makes the transaction that writes a batch onto known entries, and
// the records it changes. It is nil when there is nothing to write; then rev is
// a revision that holds all the batch is about.
func (s *Store) transaction(ctx context.Context, b *blixard.Batch, ids []blixard.VMID, known map[blixard.VMID]*entry) (txn clientv3.Txn, rev int64, changed map[blixard.VMID]*blixard.VMRecord, err error) {
	w := &s.writer
	now := time.Now()
	records := make(map[blixard.VMID]*blixard.VMRecord, len(ids))
	rev = w.base.mod
	for id, e := range known {
		if e == nil {
			continue
		}
		if e.bad != nil {
			return nil, 0, nil, blixard.Errorf(blixard.CodeInvalid, "record of VM %s is left as it is: %v", id, e.bad)
		}
		records[id], rev = &e.rec, max(rev, e.mod)
	}
	for _, c := range b.Commands {
		id := c.Target()
		records[id] = merge(records[id], c, s.cfg.Node.ID)
	}
	seqKey := s.keys.seq(s.cfg.Node.ID)
	cmps := []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(seqKey), "=", w.base.mod)}
	puts := make([]clientv3.Op, 0, len(ids)+2)
	size := 0
	put := func(key string, v any) error {
		value, err := s.codec.encode(v)
		if errors.Is(err, errTooLarge) {
			return blixard.Errorf(blixard.CodeTooLarge, "batch: a value exceeds %d bytes", maxValue)
		}
		if err != nil {
			return blixard.Errorf(blixard.CodeInvalid, "batch: %v", err)
		}
		size += len(key) + len(value) + 64
		puts = append(puts, clientv3.OpPut(key, string(value)))
		return nil
	}
	changed = map[blixard.VMID]*blixard.VMRecord{}
	for _, id := range ids {
		key, mod := s.keys.vm(id), int64(0)
		var old *blixard.VMRecord
		if e := known[id]; e != nil {
			old, mod = &e.rec, e.mod
		}
		r := settle(old, records[id], now)
		if r == nil {
			continue
		}
		cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(key), "=", mod))
		if err := put(key, r); err != nil {
			return nil, 0, nil, err
		}
		changed[id] = r
	}
	if len(changed) == 0 && len(b.Events) == 0 {
		return nil, rev, nil, nil
	}
	next := w.base.next(b.ID)
	if len(b.Events) > 0 {
		events := make([]blixard.Event, len(b.Events))
		for i, e := range b.Events {
			e.Index, e.ObservedAt, e.CommittedAt = 0, stamp(e.ObservedAt), stamp(now)
			events[i] = e
		}
		if err := put(s.keys.events(s.cfg.Node.ID, next.Seq), events); err != nil {
			return nil, 0, nil, err
		}
	}
	if err := put(seqKey, next); err != nil {
		return nil, 0, nil, err
	}
	if size > maxBatchBytes {
		return nil, 0, nil, blixard.Errorf(blixard.CodeTooLarge, "batch of %d bytes: want %d at most", size, maxBatchBytes)
	}
	return s.client.Txn(ctx).If(cmps...).Then(puts...).Else(s.reads(ids)...), 0, changed, nil
}

// mayBeSent reports whether a write that failed may be done all the same.
func mayBeSent(err error) bool {
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace), errors.Is(err, rpctypes.ErrRequestTooLarge), errors.Is(err, rpctypes.ErrTooManyOps):
		return false
	}
	return !notConnected(err)
}

// notConnected reports whether a call failed because there is no connection.
func notConnected(err error) bool {
	st, ok := status.FromError(err)
	return ok && st.Code() == codes.Unavailable && strings.Contains(st.Message(), "Error while dialing")
}

// failed makes the error of a write that was not acknowledged. sent says that
// an attempt may have been done.
func (s *Store) failed(ctx context.Context, err error, sent bool) error {
	if notConnected(err) {
		s.mirror.contact.lose("the store is not reached")
	}
	code := blixard.CodeUnavailable
	if sent {
		code = blixard.CodeTimeout
	}
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		return blixard.Errorf(code, "the store takes no writes: its disk is full or its database is at its quota").
			WithHint("free space on the file system of data_dir, or raise store.quota")
	case errors.Is(err, rpctypes.ErrRequestTooLarge), errors.Is(err, rpctypes.ErrTooManyOps):
		return blixard.Errorf(blixard.CodeTooLarge, "the store refuses the batch: %v", err)
	}
	why := err.Error()
	if st, ok := status.FromError(err); ok {
		why = st.Message()
	}
	if ctx.Err() != nil {
		why = "no answer in time"
	}
	if sent {
		return blixard.Errorf(code, "the store did not acknowledge the write, which may be done: %s", why)
	}
	return blixard.Errorf(code, "the store does not answer: %s", why)
}
