package store

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/blixard/blixard"
)

const (
	// leaseSeconds is how long a node counts as alive after its last word.
	leaseSeconds = 30
	// statusEvery is how often etcd is asked how it does.
	statusEvery = 5 * time.Second
	// trimEvery is how often events beyond the bound are looked for.
	trimEvery = 10 * time.Second
	// retryMin and retryMax bound the pause after a failure.
	retryMin = 50 * time.Millisecond
	retryMax = time.Second
	// trimKeys bounds the batches of events removed in one transaction.
	trimKeys = 100
)

// Run follows the store, keeps the node alive in it and trims its events, until
// ctx ends.
func (s *Store) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.again(ctx, s.follow) })
	g.Go(func() error { return s.again(ctx, s.stayAlive) })
	g.Go(func() error { return s.every(ctx, statusEvery, s.askStatus) })
	g.Go(func() error { return s.every(ctx, trimEvery, s.trim) })
	return g.Wait()
}

// again runs f anew whenever it fails, until ctx ends.
func (s *Store) again(ctx context.Context, f func(context.Context) error) error {
	pause := retryMin
	for ctx.Err() == nil {
		began := time.Now()
		err := f(ctx)
		if ctx.Err() != nil {
			break
		}
		s.cfg.Logger.Debug("store connection failed", "err", err)
		if time.Since(began) > retryMax {
			pause = retryMin
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, retryMax)
	}
	return nil
}

// every runs f at once and then every d, until ctx ends.
func (s *Store) every(ctx context.Context, d time.Duration, f func(context.Context)) error {
	tick := time.NewTicker(d)
	defer tick.Stop()
	for {
		f(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// follow lists everything at a revision and then follows the changes from it. It
// returns when it lost them.
func (s *Store) follow(ctx context.Context) error {
	lctx, cancel := context.WithTimeout(ctx, callTimeout)
	resp, err := s.client.Get(lctx, prefix, clientv3.WithPrefix())
	cancel()
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	s.mirror.reset(resp.Header.Revision, resp.Kvs)
	s.askStatus(ctx)
	wctx, stop := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer stop()
	for w := range s.client.Watch(wctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(resp.Header.Revision+1), clientv3.WithProgressNotify()) {
		if err := w.Err(); err != nil {
			return fmt.Errorf("watch: %w", err)
		}
		s.mirror.apply(w.Header.Revision, w.Events)
	}
	return fmt.Errorf("watch ended")
}

// stayAlive writes the node's record and keeps its key under a lease.
func (s *Store) stayAlive(ctx context.Context) error {
	value, err := s.codec.encode(s.cfg.Node)
	if err != nil {
		return err
	}
	cctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	lease, err := s.client.Grant(cctx, leaseSeconds)
	if err != nil {
		return fmt.Errorf("grant lease: %w", err)
	}
	_, err = s.client.Txn(cctx).Then(clientv3.OpPut(nodeKey(s.cfg.Node.ID), string(value)),
		clientv3.OpPut(aliveKey(s.cfg.Node.ID), "", clientv3.WithLease(lease.ID))).Commit()
	if err != nil {
		return fmt.Errorf("write node: %w", err)
	}
	kept, err := s.client.KeepAlive(ctx, lease.ID)
	if err != nil {
		return fmt.Errorf("keep lease: %w", err)
	}
	for range kept {
	}
	return fmt.Errorf("lease lost")
}

// trim removes this node's oldest batches of events beyond the bound, never the
// newest one, and moves the floor with them.
func (s *Store) trim(ctx context.Context) {
	for ctx.Err() == nil {
		keys, floor := s.mirror.surplus(s.cfg.Node.ID, s.cfg.MaxEvents, trimKeys)
		if len(keys) == 0 {
			return
		}
		if err := s.trimOnce(ctx, keys, floor); err != nil {
			s.cfg.Logger.Debug("events not trimmed", "err", err)
			return
		}
	}
}

func (s *Store) trimOnce(ctx context.Context, keys []string, floor uint64) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, floorRev := s.mirror.floorKey()
	value, err := s.codec.encode(floor)
	if err != nil {
		return err
	}
	ops := []clientv3.Op{clientv3.OpPut(floorKey, string(value))}
	for _, k := range keys {
		ops = append(ops, clientv3.OpDelete(k))
	}
	resp, err := s.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(floorKey), "=", floorRev)).Then(ops...).Commit()
	if err != nil {
		return err
	}
	return s.Wait(ctx, blixard.Index(resp.Header.Revision, 0))
}
