package monitor

import (
	"context"
	"sync"
	"time"

	"github.com/blixard/blixard/correlate"
)

// reader reads the host's files: all of them every interval, and those of one
// VM when its service changes. A file system that hangs hangs the reader alone.
type reader struct {
	interval time.Duration
	files    Files
	meter    Meter
	deliver  func(ctx context.Context, f func(now time.Time, t *correlate.Tracker)) error

	mu sync.Mutex
	// again is the VMs to read before the next whole reading.
	again map[string]bool
	// wake has room for one: again is not empty.
	wake chan struct{}
	// started is when the reading under way began, zero when there is none.
	started time.Time
}

func newReader(interval time.Duration, files Files, meter Meter, deliver func(context.Context, func(time.Time, *correlate.Tracker)) error) *reader {
	return &reader{interval: interval, files: files, meter: meter, deliver: deliver, again: map[string]bool{}, wake: make(chan struct{}, 1)}
}

// Run reads until the context ends.
func (r *reader) Run(ctx context.Context) error {
	next := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
			r.all(ctx)
			for !next.After(time.Now()) {
				next = next.Add(r.interval)
			}
			timer.Reset(time.Until(next))
		case <-r.wake:
			r.some(ctx)
		}
	}
}

func (r *reader) all(ctx context.Context) {
	start := time.Now()
	r.mark(start)
	defs, complete, reason := r.files.Scan(ctx)
	r.mark(time.Time{})
	r.meter.Scanned(time.Since(start), complete)
	_ = r.deliver(ctx, func(now time.Time, t *correlate.Tracker) { t.SetDefinitions(now, defs, complete, reason) })
}

func (r *reader) some(ctx context.Context) {
	r.mu.Lock()
	again := r.again
	r.again = map[string]bool{}
	r.mu.Unlock()
	for name := range again {
		r.mark(time.Now())
		d, ok := r.files.Refresh(ctx, name)
		r.mark(time.Time{})
		if ok {
			_ = r.deliver(ctx, func(now time.Time, t *correlate.Tracker) { t.SetDefinition(now, name, d) })
		}
	}
}

// refresh asks for one VM's files to be read soon. It does not block.
func (r *reader) refresh(name string) {
	r.mu.Lock()
	r.again[name] = true
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *reader) mark(started time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.started = started
}

// hangs says for how long the reading under way takes, 0 when there is none.
func (r *reader) hangs(now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.started.IsZero() {
		return 0
	}
	return now.Sub(r.started)
}
