package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/blixard/blixard"
)

// leaseTTL is for how long a node counts as alive after it was last heard, in
// seconds.
const leaseTTL = 30

// pause waits for d; false says that ctx ended before.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// keepLease keeps the node's record and its lease until ctx ends. What fails is
// tried again a second later; the mirror tells that the store is away.
func (s *Store) keepLease(ctx context.Context) {
	registered := false
	var lease clientv3.LeaseID
	for {
		if !registered {
			registered = s.RegisterNode(ctx, s.cfg.Node) == nil
		}
		lease = s.renewLease(ctx, lease)
		next := time.Second
		if registered && lease != 0 {
			next = leaseTTL * time.Second / 3
		}
		if !pause(ctx, next) {
			break
		}
	}
	if lease != 0 {
		// A node that ends in order is not alive; if this fails the lease runs
		// out.
		rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_, _ = s.client.Revoke(rctx, lease)
	}
}

// renewLease renews a lease, or takes a new one when it is 0 or gone. It returns
// 0 when it has none.
func (s *Store) renewLease(ctx context.Context, lease clientv3.LeaseID) clientv3.LeaseID {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if lease != 0 {
		// One request a renewal: a stream kept open for it would hold up the
		// orderly end of a member.
		if _, err := s.client.KeepAliveOnce(ctx, lease); err == nil {
			return lease
		}
	}
	grant, err := s.client.Grant(ctx, leaseTTL)
	if err != nil {
		return 0
	}
	value, err := s.codec.encode(struct{}{})
	if err == nil {
		_, err = s.client.Put(ctx, s.keys.alive(s.cfg.Node.ID), string(value), clientv3.WithLease(grant.ID))
	}
	if err != nil {
		_, _ = s.client.Revoke(ctx, grant.ID)
		return 0
	}
	return grant.ID
}

// RegisterNode writes the record of this node; Run does so once with the one it
// was configured with. One written by a newer version is left as it is.
func (s *Store) RegisterNode(ctx context.Context, n blixard.NodeRecord) error {
	if n.ID != s.cfg.Node.ID {
		return blixard.Errorf(blixard.CodeInvalid, "record of node %q: this is %q", n.ID, s.cfg.Node.ID)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	key := s.keys.node(n.ID)
	r, err := s.client.Get(ctx, key)
	if err != nil {
		return s.failed(ctx, err, false)
	}
	mod := int64(0)
	if len(r.Kvs) > 0 {
		mod = r.Kvs[0].ModRevision
		if _, err := s.codec.decodeNode(r.Kvs[0].Value, n.ID); errors.Is(err, ErrNewerVersion) {
			return blixard.Errorf(blixard.CodeConflict, "record of node %s is left as it is: %v", n.Name, err)
		}
	}
	n.StartedAt = stamp(n.StartedAt)
	value, err := s.codec.encode(n)
	if err != nil {
		return blixard.Errorf(blixard.CodeInvalid, "record of node %s: %v", n.Name, err)
	}
	t, err := s.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", mod)).Then(clientv3.OpPut(key, string(value))).Commit()
	if err != nil {
		return s.failed(ctx, err, mayBeSent(err))
	}
	if !t.Succeeded {
		return blixard.Errorf(blixard.CodeConflict, "record of node %s was written by another", n.Name)
	}
	return nil
}

// trimOps is how many batches one transaction removes.
const trimOps = 100

// keepTrimmed removes the oldest events when there are too many, until ctx ends.
func (s *Store) keepTrimmed(ctx context.Context) {
	for {
		v := s.View()
		if v.history.n > s.cfg.MaxEvents {
			if err := s.trim(ctx, v); err != nil && ctx.Err() == nil {
				s.cfg.Logger.Debug("events not trimmed; tried again", "err", err)
			}
			// The view shows it soon; meanwhile there is nothing to do.
			if !pause(ctx, 50*time.Millisecond) {
				return
			}
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-v.changed:
		}
	}
}

// trim removes the oldest batches of a view with too many events: some more
// than need be, so that it is seldom needed, never the newest. The floor moves
// in the same transaction, guarded against others that trim.
func (s *Store) trim(ctx context.Context, v *View) error {
	keep := s.cfg.MaxEvents - s.cfg.MaxEvents/20
	n, floor := v.history.n, v.floor
	ops := make([]clientv3.Op, 0, trimOps+1)
	for _, b := range v.history.batches[:max(0, len(v.history.batches)-1)] {
		if n <= keep || len(ops) == trimOps {
			break
		}
		if b.bad != nil {
			continue
		}
		ops = append(ops, clientv3.OpDelete(b.key))
		n -= len(b.events)
		floor = max(floor, b.events[len(b.events)-1].Index)
	}
	if len(ops) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	key := s.keys.floor()
	r, err := s.client.Get(ctx, key)
	if err != nil {
		return fmt.Errorf("read floor: %w", err)
	}
	mod := int64(0)
	if len(r.Kvs) > 0 {
		mod = r.Kvs[0].ModRevision
		var there uint64
		if err := s.codec.decode(r.Kvs[0].Value, &there); err != nil {
			return fmt.Errorf("read floor: %w", err)
		}
		floor = max(floor, there)
	}
	value, err := s.codec.encode(floor)
	if err != nil {
		return fmt.Errorf("write floor: %w", err)
	}
	ops = append(ops, clientv3.OpPut(key, string(value)))
	if _, err := s.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", mod)).Then(ops...).Commit(); err != nil {
		return fmt.Errorf("trim events: %w", err)
	}
	return nil
}

// health is what etcd last said of itself.
type health struct {
	status *pb.StatusResponse
	alarms []pb.AlarmType
	at     time.Time
	err    error
}

// healthEvery is how often etcd is asked for its state.
const healthEvery = 10 * time.Second

// watchHealth asks etcd for its state again and again until ctx ends.
func (s *Store) watchHealth(ctx context.Context) {
	// One connection for all questions: etcd's client makes a new one for each
	// status, which costs more than all else that goes on between cycles.
	var conn *grpc.ClientConn
	defer func() {
		if conn != nil {
			conn.Close()
		}
	}()
	for {
		h := &health{}
		if conn == nil {
			conn, h.err = s.client.Dial(s.cfg.Endpoints[0])
		}
		if h.err == nil {
			h.status, h.alarms, h.err = s.askHealth(ctx, conn)
		}
		h.at = time.Now()
		s.health.Store(h)
		next := healthEvery
		if h.err != nil {
			next = time.Second
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-s.doubt:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// doubtHealth has etcd asked for its state at once: a write told that it is
// another than the one known. It does not block.
func (s *Store) doubtHealth() {
	select {
	case s.doubt <- struct{}{}:
	default:
	}
}

// well reports whether etcd was well when it was last asked.
func (h *health) well() bool { return h != nil && h.err == nil && len(h.alarms) == 0 }

func (s *Store) askHealth(ctx context.Context, conn *grpc.ClientConn) (*pb.StatusResponse, []pb.AlarmType, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	st, err := pb.NewMaintenanceClient(conn).Status(ctx, &pb.StatusRequest{})
	if err != nil {
		return nil, nil, err
	}
	r, err := s.client.AlarmList(ctx)
	if err != nil {
		return nil, nil, err
	}
	var alarms []pb.AlarmType
	for _, a := range r.Alarms {
		alarms = append(alarms, a.Alarm)
	}
	return st, alarms, nil
}

// Status is the state of the store as this node sees it. What is not known now
// is absent. It does not block.
func (s *Store) Status() blixard.StoreStatus {
	v := s.View()
	out := blixard.StoreStatus{Healthy: true, Revision: v.rev, Members: []blixard.MemberStatus{}}
	bad := func(why string) {
		if out.Healthy = false; out.Reason == "" {
			out.Reason = why
		}
	}
	if v.cluster != 0 {
		out.ClusterID = fmt.Sprintf("%x", v.cluster)
	}
	member := blixard.MemberStatus{Node: s.cfg.Node.Name, State: MemberRunning}
	if s.cfg.Supervisor != nil {
		m := s.cfg.Supervisor.Status()
		member.State, member.Reason, member.Restarts = m.State, m.Reason, m.Restarts
		member.QuotaBytes = s.cfg.Supervisor.cfg.Member.QuotaBytes
		if m.State != MemberRunning {
			why := "the member is " + m.State
			if m.Reason != "" {
				why += ": " + m.Reason
			}
			bad(why)
		}
	}
	if why := v.Stale(); why != "" {
		bad(why)
	}
	h := s.health.Load()
	switch {
	case h == nil:
		bad("the store has not told its state yet")
	case h.err != nil:
		bad(fmt.Sprintf("the store does not tell its state: %v", h.err))
	case time.Since(h.at) > 2*healthEvery:
		bad(fmt.Sprintf("the store has not told its state for %s", time.Since(h.at).Round(time.Second)))
	default:
		for _, a := range h.alarms {
			switch a {
			case pb.AlarmType_NOSPACE:
				bad("the store takes no writes: its disk is full or its database is at its quota")
			case pb.AlarmType_CORRUPT:
				bad("the store takes no writes: its data is corrupt")
			case pb.AlarmType_NONE:
			}
		}
		if member.State == MemberRunning {
			st := h.status
			member.ID, member.Term, member.Leader = fmt.Sprintf("%x", st.Header.MemberId), st.RaftTerm, st.Leader == st.Header.MemberId
			member.Version, member.DatabaseBytes = st.Version, st.DbSize
		}
	}
	if s.cfg.Supervisor != nil {
		out.Members = append(out.Members, member)
	}
	return out
}
