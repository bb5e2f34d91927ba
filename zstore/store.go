package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/blixard/blixard"
)

const (
	// maxVMs bounds the VMs of one batch, so that a transaction stays below
	// etcd's bound of 128 operations.
	maxVMs = 100
	// maxBatch bounds the bytes of one transaction, below etcd's own 1.5 MiB.
	maxBatch = 1400 << 10
	// maxBatchID bounds a batch's ID in bytes.
	maxBatchID = 64
	// tries is how often a write that lost against another one is made anew.
	tries = 5
	// callTimeout bounds one call to etcd.
	callTimeout = 5 * time.Second
)

// Config says what a Store works with.
type Config struct {
	// Endpoints are where members answer.
	Endpoints []string
	// Node is this node's record, which the Store writes.
	Node blixard.NodeRecord
	// MaxEvents bounds the events that are kept.
	MaxEvents int
	// Supervisor runs this node's member.
	Supervisor *Supervisor
	Logger     *slog.Logger
}

// Store is a client of the replicated store for one node. See the package
// documentation.
type Store struct {
	cfg    Config
	client *clientv3.Client
	codec  *codec
	mirror *mirror
	etcd   etcdStatus

	// mu serialises writes, and guards seq.
	mu sync.Mutex
	// seq is the node's sequence as last known, nil when it must be read.
	seq *sequence
}

// sequence is the node's: how many batches it wrote, and which was the last.
type sequence struct {
	N     uint64 `json:"n"`
	Batch string `json:"batch"`
	// Events is how many events the last batch had.
	Events int `json:"events"`
	// rev is the revision of its key, 0 when there is none.
	rev int64
}

// newClient makes a client that reconnects quickly: members are near.
func newClient(endpoints []string) (*clientv3.Client, error) {
	c, err := clientv3.New(clientv3.Config{
		Endpoints: endpoints,
		Logger:    zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           grpcbackoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: time.Second,
		})},
		DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 5 * time.Second,
		MaxUnaryRetries: 1,
	})
	if err != nil {
		return nil, fmt.Errorf("make store client: %w", err)
	}
	return c, nil
}

// Open makes a Store. It does not wait for a member; Run connects.
func Open(cfg Config) (*Store, error) {
	cdc, err := newCodec()
	if err != nil {
		return nil, err
	}
	client, err := newClient(cfg.Endpoints)
	if err != nil {
		return nil, err
	}
	return &Store{cfg: cfg, client: client, codec: cdc, mirror: newMirror(cdc, cfg.Logger)}, nil
}

// Close ends the connection. Run must have returned.
func (s *Store) Close() error {
	if err := s.client.Close(); err != nil {
		return fmt.Errorf("close store client: %w", err)
	}
	return nil
}

// Apply writes a batch as one transaction, all of it or nothing, and returns
// the index of its last event, or of the revision when it has none. A batch that
// was written already under its ID, and one that changes nothing, writes nothing.
//
// Errors are *blixard.Error: CodeInvalid and CodeTooLarge for a batch that can
// never be written; CodeUnavailable when it was not written; CodeTimeout when it
// is not known whether it was; CodeConflict when others kept writing the same.
// After the last three the same batch may be sent again.
func (s *Store) Apply(ctx context.Context, b blixard.Batch) (uint64, error) {
	targets, err := s.check(&b)
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	fresh := s.seq == nil
	for range tries {
		seq, records, err := s.read(ctx, targets, fresh)
		if err != nil {
			return 0, unavailable(err)
		}
		if seq.Batch == b.ID {
			return blixard.Index(seq.rev, max(0, seq.Events-1)), nil
		}
		txn, err := s.transaction(&b, seq, targets, records)
		if err != nil {
			return 0, err
		}
		if txn == nil {
			return s.Index(), nil
		}
		resp, err := s.client.Txn(ctx).If(txn.compares...).Then(txn.puts...).Commit()
		if err != nil {
			// Whether it was written, the next read of the sequence tells.
			s.seq = nil
			return 0, failed(err)
		}
		if resp.Succeeded {
			txn.seq.rev = resp.Header.Revision
			s.seq = &txn.seq
			return blixard.Index(resp.Header.Revision, max(0, len(b.Events)-1)), nil
		}
		fresh = true
	}
	return 0, blixard.Errorf(blixard.CodeConflict, "others kept writing the same records")
}

// check refuses a batch that can never be written, and returns the VMs it is
// about in order.
func (s *Store) check(b *blixard.Batch) ([]blixard.VMID, error) {
	if b.ID == "" || len(b.ID) > maxBatchID {
		return nil, blixard.Errorf(blixard.CodeInvalid, "batch: an ID has 1 to %d bytes", maxBatchID)
	}
	if len(b.Events) >= blixard.IndexScale {
		return nil, blixard.Errorf(blixard.CodeTooLarge, "batch: %d events, at most %d", len(b.Events), blixard.IndexScale-1)
	}
	seen := map[blixard.VMID]bool{}
	var targets []blixard.VMID
	for _, c := range b.Commands {
		id := c.Target()
		if id.Node != s.cfg.Node.Name {
			return nil, blixard.Errorf(blixard.CodeInvalid, "batch: VM %q is not of node %s", id.String(), s.cfg.Node.Name)
		}
		if err := checkID(id.Manager, id.Name); err != nil {
			return nil, blixard.Errorf(blixard.CodeInvalid, "batch: %v", err)
		}
		if !seen[id] {
			seen[id] = true
			targets = append(targets, id)
		}
	}
	if len(targets) > maxVMs {
		return nil, blixard.Errorf(blixard.CodeTooLarge, "batch: %d VMs, at most %d", len(targets), maxVMs)
	}
	return targets, nil
}

// stored is a record with the revision of its key, 0 for none.
type stored struct {
	rec *blixard.VMRecord
	rev int64
	// err says why the value that is there cannot be read.
	err error
}

// read returns the node's sequence and the records of the targets: from memory
// where the mirror has all that this node wrote, else from etcd.
func (s *Store) read(ctx context.Context, targets []blixard.VMID, fresh bool) (sequence, []stored, error) {
	if !fresh && s.mirror.has(s.seq.rev) {
		out := make([]stored, len(targets))
		for i, id := range targets {
			out[i] = s.mirror.record(s.cfg.Node.ID, id)
		}
		return *s.seq, out, nil
	}
	ops := []clientv3.Op{clientv3.OpGet(seqKey(s.cfg.Node.ID))}
	for _, id := range targets {
		ops = append(ops, clientv3.OpGet(vmKey(s.cfg.Node.ID, id.Manager, id.Name)))
	}
	resp, err := s.client.Txn(ctx).Then(ops...).Commit()
	if err != nil {
		return sequence{}, nil, err
	}
	var seq sequence
	if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
		if err := s.codec.decode(kvs[0].Value, &seq); err != nil {
			return sequence{}, nil, blixard.Errorf(blixard.CodeUnavailable, "the node's sequence cannot be read: %v", err)
		}
		seq.rev = kvs[0].ModRevision
	}
	out := make([]stored, len(targets))
	for i := range targets {
		kvs := resp.Responses[i+1].GetResponseRange().Kvs
		if len(kvs) == 0 {
			continue
		}
		out[i] = decodeRecord(s.codec, kvs[0])
	}
	return seq, out, nil
}

// transaction is one guarded write.
type transaction struct {
	compares []clientv3.Cmp
	puts     []clientv3.Op
	seq      sequence
}

// transaction makes the write of a batch; it is nil when there is nothing to
// write.
func (s *Store) transaction(b *blixard.Batch, seq sequence, targets []blixard.VMID, records []stored) (*transaction, error) {
	now := time.Now().UTC()
	at := make(map[blixard.VMID]int, len(targets))
	for i, id := range targets {
		at[id] = i
	}
	changed := make([]bool, len(targets))
	for _, c := range b.Commands {
		i := at[c.Target()]
		if records[i].err != nil {
			// Quarantined: another version's or damaged, never overwritten.
			continue
		}
		rec, ok := merge(records[i].rec, c, s.cfg.Node.ID)
		records[i].rec = rec
		changed[i] = changed[i] || ok
	}
	t := &transaction{seq: sequence{N: seq.N + 1, Batch: b.ID, Events: len(b.Events)}}
	size := 0
	put := func(key string, v any) error {
		value, err := s.codec.encode(v)
		if err != nil {
			return blixard.Errorf(blixard.CodeTooLarge, "batch: %v", err)
		}
		size += len(key) + len(value)
		t.puts = append(t.puts, clientv3.OpPut(key, string(value)))
		return nil
	}
	t.compares = append(t.compares, clientv3.Compare(clientv3.ModRevision(seqKey(s.cfg.Node.ID)), "=", seq.rev))
	for i, id := range targets {
		if !changed[i] {
			continue
		}
		rec := *records[i].rec
		rec.CommittedAt = now
		key := vmKey(s.cfg.Node.ID, id.Manager, id.Name)
		t.compares = append(t.compares, clientv3.Compare(clientv3.ModRevision(key), "=", records[i].rev))
		if err := put(key, rec); err != nil {
			return nil, err
		}
	}
	if len(b.Events) > 0 {
		events := make([]blixard.Event, len(b.Events))
		copy(events, b.Events)
		for i := range events {
			events[i].CommittedAt, events[i].Index = now, 0
		}
		if err := put(eventsKey(s.cfg.Node.ID, t.seq.N), events); err != nil {
			return nil, err
		}
	}
	if len(t.puts) == 0 {
		return nil, nil
	}
	if err := put(seqKey(s.cfg.Node.ID), t.seq); err != nil {
		return nil, err
	}
	if size > maxBatch {
		return nil, blixard.Errorf(blixard.CodeTooLarge, "batch: %d bytes, at most %d", size, maxBatch)
	}
	return t, nil
}

// unavailable is the error of a call that wrote nothing.
func unavailable(err error) error {
	if e, ok := errors.AsType[*blixard.Error](err); ok {
		return e
	}
	return blixard.Errorf(blixard.CodeUnavailable, "the store does not answer: %v", plain(err))
}

// failed is the error of a write: what etcd refused was not written, of anything
// else it is not known.
func failed(err error) error {
	switch status.Code(err) {
	case codes.ResourceExhausted:
		return blixard.Errorf(blixard.CodeUnavailable, "the store refuses writes: %v", plain(err))
	case codes.InvalidArgument:
		return blixard.Errorf(blixard.CodeInvalid, "the store refuses the write: %v", plain(err))
	}
	return blixard.Errorf(blixard.CodeTimeout, "the store did not acknowledge the write: %v", plain(err))
}

// plain is an error of gRPC without its wrapping.
func plain(err error) string {
	if st, ok := status.FromError(err); ok && st.Code() != codes.Unknown {
		return st.Message()
	}
	return err.Error()
}

// Index is the newest index that is in memory; it is 0 before any is.
func (s *Store) Index() uint64 {
	rev := s.mirror.revision()
	if rev == 0 {
		return 0
	}
	return blixard.Index(rev, blixard.IndexScale-1)
}

// Wait waits until the index is in memory.
func (s *Store) Wait(ctx context.Context, index uint64) error {
	for {
		rev, changed := s.mirror.watch()
		if uint64(rev) >= index/blixard.IndexScale {
			return nil
		}
		select {
		case <-ctx.Done():
			return blixard.Errorf(blixard.CodeTimeout, "written, but not yet visible here")
		case <-changed:
		}
	}
}

// Load waits until records and events can be read, and returns this node's
// records and all kept events.
func (s *Store) Load(ctx context.Context) ([]blixard.VMRecord, []blixard.Event, error) {
	for {
		rev, changed := s.mirror.watch()
		if rev > 0 {
			events, err := s.Events(blixard.EventQuery{})
			return s.mirror.records(s.cfg.Node.ID, s.cfg.Node.Name), events, err
		}
		select {
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		case <-changed:
		}
	}
}

// etcdStatus is what etcd last said of itself.
type etcdStatus struct {
	mu     sync.Mutex
	member blixard.MemberStatus
	// cluster is the cluster's id in hex; known says that etcd answers.
	cluster string
	known   bool
	reason  string
}

// Status is the state of the store as this node sees it.
func (s *Store) Status() blixard.StoreStatus {
	m := s.cfg.Supervisor.member(s.cfg.Node.Name)
	s.etcd.mu.Lock()
	defer s.etcd.mu.Unlock()
	st := blixard.StoreStatus{ClusterID: s.etcd.cluster, Revision: s.mirror.revision()}
	e := &s.etcd.member
	if s.etcd.known && m.State == memberRunning {
		m.ID, m.Leader, m.Term, m.Version, m.DatabaseBytes = e.ID, e.Leader, e.Term, e.Version, e.DatabaseBytes
		st.Healthy = true
	} else {
		st.Reason = "the member is " + m.State
		if m.Reason != "" {
			st.Reason += ": " + m.Reason
		} else if s.etcd.reason != "" {
			st.Reason += ": " + s.etcd.reason
		}
	}
	st.Members = []blixard.MemberStatus{m}
	return st
}

// askStatus asks etcd how it does.
func (s *Store) askStatus(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := s.client.Status(ctx, s.cfg.Endpoints[0])
	s.etcd.mu.Lock()
	defer s.etcd.mu.Unlock()
	if s.etcd.known = err == nil; !s.etcd.known {
		s.etcd.reason = plain(err)
		return
	}
	s.etcd.reason = ""
	s.etcd.cluster = strconv.FormatUint(r.Header.ClusterId, 16)
	s.etcd.member = blixard.MemberStatus{ID: strconv.FormatUint(r.Header.MemberId, 16), Leader: r.Leader == r.Header.MemberId,
		Term: r.RaftTerm, Version: r.Version, DatabaseBytes: r.DbSize}
}
