package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/blixard/blixard"
)

// DefaultMaxEvents is how many events are kept.
const DefaultMaxEvents = 10000

// Config says which store to use, and as which node.
type Config struct {
	// Endpoints are where the members serve their clients, as URLs.
	Endpoints []string
	// Prefix is where all keys live; it begins and ends with a slash. Empty
	// means DefaultPrefix.
	Prefix string
	// Node is the node that writes. Its records and events are the only ones
	// that are taken.
	Node blixard.NodeRecord
	// MaxEvents is how many events are kept; when there are more the oldest go.
	// 0 means DefaultMaxEvents.
	MaxEvents int
	// Supervisor runs the node's own member; nil when it has none.
	Supervisor *Supervisor
	Logger     *slog.Logger
}

// Validate refuses a configuration that cannot work.
func (c *Config) Validate() error {
	var errs []error
	if len(c.Endpoints) == 0 {
		errs = append(errs, errors.New("no endpoints"))
	}
	if c.Prefix != "" && (len(c.Prefix) < 2 || !strings.HasPrefix(c.Prefix, "/") || !strings.HasSuffix(c.Prefix, "/")) {
		errs = append(errs, fmt.Errorf("prefix %q does not begin and end with a slash", c.Prefix))
	}
	if c.Node.ID == "" {
		errs = append(errs, errors.New("node without an id"))
	}
	if c.MaxEvents < 0 {
		errs = append(errs, fmt.Errorf("%d events cannot be kept", c.MaxEvents))
	}
	return errors.Join(append(errs, blixard.CheckNodeName(c.Node.Name))...)
}

// Store keeps records and history. Writes go through Apply; everything is read
// from memory, which Run keeps up to date.
type Store struct {
	cfg    Config
	client *clientv3.Client
	keys   keys
	codec  *codec
	mirror *mirror

	// turn has room for one: the Apply that is under way. It guards writer.
	turn   chan struct{}
	writer writer

	health atomic.Pointer[health]
	// doubt has room for one: health is asked for anew.
	doubt chan struct{}
}

// Open makes a store that connects when it is used; it does not block. What it
// reads is empty until Run runs. Close it after Run has returned.
func Open(cfg Config) (*Store, error) {
	if cfg.Prefix == "" {
		cfg.Prefix = DefaultPrefix
	}
	if cfg.MaxEvents == 0 {
		cfg.MaxEvents = DefaultMaxEvents
	}
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	codec, err := newCodec()
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	client, err := newClient(cfg.Endpoints)
	if err != nil {
		codec.close()
		return nil, fmt.Errorf("open store: %w", err)
	}
	k := keys{cfg.Prefix}
	s := &Store{cfg: cfg, client: client, keys: k, codec: codec, mirror: newMirror(client, k, codec), turn: make(chan struct{}, 1), doubt: make(chan struct{}, 1)}
	s.writer = writer{recent: map[blixard.VMID]*entry{}}
	return s, nil
}

// Close lets go of the connection. Nothing is used afterwards but views.
func (s *Store) Close() error {
	defer s.codec.close()
	if err := s.client.Close(); err != nil {
		return fmt.Errorf("close store: %w", err)
	}
	return nil
}

// Run follows the store, keeps the node's lease, trims events and watches over
// the store's health until ctx ends. What fails is tried again.
func (s *Store) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, loop := range []func(context.Context){s.mirror.Run, s.keepLease, s.keepTrimmed, s.watchHealth} {
		wg.Go(func() { loop(ctx) })
	}
	wg.Wait()
	return nil
}

// View is what is known of the store now. It costs nothing.
func (s *Store) View() *View { return s.mirror.view.Load() }

// Index is that of View.
func (s *Store) Index() uint64 { return s.View().Index() }

// Loaded waits until everything was read once and returns the view.
func (s *Store) Loaded(ctx context.Context) (*View, error) {
	v, err := s.mirror.wait(ctx, 1)
	if err != nil {
		return nil, blixard.Errorf(blixard.CodeUnavailable, "the store is not read yet: %s", v.Stale())
	}
	return v, nil
}

// Wait waits until View holds everything up to an index that Apply returned.
// The error is an *blixard.Error with CodeTimeout.
func (s *Store) Wait(ctx context.Context, index uint64) error {
	v, err := s.mirror.wait(ctx, int64(index/blixard.IndexScale))
	if err != nil {
		return blixard.Errorf(blixard.CodeTimeout, "index %d is not in memory yet, which has %d", index, v.Index())
	}
	return nil
}

// Events are the newest kept events that a query selects, oldest first. It does
// not block. The error is an *blixard.Error with CodeUnavailable when nothing
// was read yet.
func (s *Store) Events(q blixard.EventQuery) ([]blixard.Event, error) {
	v := s.View()
	if v.rev == 0 {
		return nil, blixard.Errorf(blixard.CodeUnavailable, "the events are not read yet: %s", v.Stale())
	}
	return v.Events(q), nil
}

// keepAlive is how often a stream says that it lives.
const keepAlive = 15 * time.Second

// FollowEvents streams every event after q.After (0: from now on) that q.VM
// selects, each once and in order. A frame with Gap comes where events are no
// longer kept or cannot be read, and one with only an index at least every 15 s.
// It ends with an error when ctx does.
func (s *Store) FollowEvents(ctx context.Context, q blixard.EventQuery) iter.Seq2[blixard.EventFrame, error] {
	return func(yield func(blixard.EventFrame, error) bool) {
		ended := func() {
			yield(blixard.EventFrame{}, blixard.Errorf(blixard.CodeUnavailable, "the stream ended: %v", context.Cause(ctx)))
		}
		view, err := s.mirror.wait(ctx, 1)
		if err != nil {
			ended()
			return
		}
		after := q.After
		if after == 0 {
			after = view.Index()
		} else if after > view.Index() {
			// It may come from a node that is ahead.
			wctx, cancel := context.WithTimeout(ctx, callTimeout)
			view, _ = s.mirror.wait(wctx, int64(after/blixard.IndexScale))
			cancel()
		}
		for {
			next, ok := followView(view, after, q.VM, yield)
			if !ok {
				return
			}
			after = next
			timer := time.NewTimer(keepAlive)
			select {
			case <-ctx.Done():
				timer.Stop()
				ended()
				return
			case <-view.changed:
			case <-timer.C:
				if !yield(blixard.EventFrame{Index: after}, nil) {
					return
				}
			}
			timer.Stop()
			view = s.View()
		}
	}
}

// followView yields what a view holds after an index and returns where to go
// on; ok is false when yield wants no more.
func followView(v *View, after uint64, ref blixard.VMRef, yield func(blixard.EventFrame, error) bool) (next uint64, ok bool) {
	switch {
	case after > v.Index():
		// The store is not the one that the index came from.
		return v.Index(), yield(blixard.EventFrame{Gap: true, Index: v.Index()}, nil)
	case after < v.floor:
		if after = v.floor; !yield(blixard.EventFrame{Gap: true, Index: after}, nil) {
			return after, false
		}
	}
	for _, b := range v.history.after(after) {
		if b.bad != nil {
			if after = b.last(); !yield(blixard.EventFrame{Gap: true, Index: after}, nil) {
				return after, false
			}
		}
		for i := range b.events {
			e := &b.events[i]
			if e.Index <= after {
				continue
			}
			after = e.Index
			if selects(ref, e) && !yield(blixard.EventFrame{Event: e, Index: after}, nil) {
				return after, false
			}
		}
	}
	return v.Index(), true
}
