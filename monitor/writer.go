package monitor

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/blixard/blixard"
)

// applyTimeout bounds one attempt to write a batch.
const applyTimeout = 10 * time.Second

// writer brings the outbox to the store, one batch at a time: what comes while
// one is in flight gathers into the next.
type writer struct {
	box   *outbox
	store Store
	meter Meter
	log   *slog.Logger

	mu sync.Mutex
	// failing is why the last attempt failed, and since when attempts fail.
	failing string
	since   time.Time
	// acknowledged is the greatest index that the store gave a batch.
	acknowledged uint64
}

// Run writes until the context ends.
func (w *writer) Run(ctx context.Context) error {
	for {
		b, err := w.box.next(ctx)
		if err != nil {
			return nil
		}
		if err := w.write(ctx, b); err != nil {
			// What was not written goes with the process; the host says it
			// again after the next start.
			w.log.Warn("ended with writes outstanding", "commands", len(b.Commands), "events", len(b.Events))
			return nil
		}
	}
}

// write sends a batch until the store takes or refuses it. A batch that is
// refused for good is split until the part that is refused stands alone and is
// dropped with an error in the log: it must not hold up the others.
func (w *writer) write(ctx context.Context, b blixard.Batch) error {
	delays := backoff.NewExponentialBackOff()
	delays.InitialInterval, delays.MaxInterval = 50*time.Millisecond, 2*time.Second
	for {
		index, err := w.attempt(ctx, &b)
		if err == nil {
			w.box.done(&b, index, nil)
			return nil
		}
		if refused(err) {
			return w.split(ctx, b, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(delays.NextBackOff()):
		}
	}
}

func (w *writer) attempt(ctx context.Context, b *blixard.Batch) (uint64, error) {
	actx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	start := time.Now()
	index, err := w.store.Apply(actx, *b)
	w.meter.Wrote(b, time.Since(start), err)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil || refused(err) {
		// A store that refuses a write takes others.
		if w.failing != "" {
			w.log.Info("store takes writes again", "after", time.Since(w.since).Round(time.Millisecond))
		}
		w.failing = ""
		w.acknowledged = max(w.acknowledged, index)
		return index, err
	}
	if w.failing == "" && ctx.Err() == nil {
		w.since = start
		w.log.Warn("store takes no writes; they wait in memory", "err", err)
	}
	if ctx.Err() == nil {
		w.failing = err.Error()
	}
	return 0, err
}

// refused reports whether the store will never take the batch as it is.
func refused(err error) bool {
	switch blixard.ErrorCode(err) {
	case blixard.CodeInvalid, blixard.CodeTooLarge:
		return true
	}
	return false
}

// split writes the halves of a batch that was refused whole.
func (w *writer) split(ctx context.Context, b blixard.Batch, cause error) error {
	n, m := len(b.Commands), len(b.Events)
	if n+m <= 1 {
		w.log.Error("store refuses a write; it is dropped", "err", cause, "batch", b)
		w.box.done(&b, 0, cause)
		return nil
	}
	first := blixard.Batch{ID: newBatchID(), Commands: b.Commands[:(n+1)/2], Events: b.Events[:m/2]}
	second := blixard.Batch{ID: newBatchID(), Commands: b.Commands[(n+1)/2:], Events: b.Events[m/2:]}
	if n == 0 {
		first.Events, second.Events = b.Events[:(m+1)/2], b.Events[(m+1)/2:]
	}
	if err := w.write(ctx, first); err != nil {
		return err
	}
	return w.write(ctx, second)
}

// status says why the store takes no writes and since when, "" when it does, and
// the greatest index that it gave a batch.
func (w *writer) status() (reason string, since time.Time, acknowledged uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failing, w.since, w.acknowledged
}
