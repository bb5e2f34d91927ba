package monitor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/correlate"
)

const (
	// calls is how many units a watcher reads at once.
	calls = 16
	// patience is how long a watcher waits for the next answer, before it goes
	// on without those that are still to come.
	patience = time.Second
)

// answer is what the reading of a unit gave.
type answer struct {
	// at is the unit's place among the rows, row what it says there.
	at    int
	row   correlate.Row
	props blixard.UnitProperties
	err   error
}

// properties reads the properties of the rows at some places into them. It
// waits for a unit that does not answer no longer than for patience: then the
// row says what was known of it before, if anything was, and its answer comes
// by late. Only the end of the context and the loss of the connection are
// errors.
func (w *watcher) properties(ctx context.Context, bus Bus, rows []correlate.Row, places []int) error {
	if len(places) == 0 {
		return nil
	}
	next := make(chan answer, len(places))
	for _, at := range places {
		next <- answer{at: at, row: rows[at]}
	}
	close(next)
	answers := make(chan answer, len(places))
	var readers sync.WaitGroup
	for range min(calls, len(places)) {
		readers.Add(1)
		w.wg.Go(func() {
			defer readers.Done()
			for a := range next {
				a.props, a.err = bus.Properties(ctx, a.row.Unit.Path)
				answers <- a
			}
		})
	}
	pending := make(map[int]bool, len(places))
	for _, at := range places {
		pending[at] = true
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for len(pending) > 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case a := <-answers:
			timer.Reset(patience)
			delete(pending, a.at)
			if err := w.answered(ctx, bus, &a); err != nil {
				return err
			}
			rows[a.at] = a.row
		case <-timer.C:
			for at := range pending {
				w.await(&rows[at])
			}
			w.wg.Go(func() {
				readers.Wait()
				close(answers)
			})
			w.wg.Go(func() { w.forward(ctx, answers) })
			return nil
		}
	}
	return nil
}

// answered puts the answer into its row. A unit that cannot be read is told
// without properties, and read again the next time.
func (w *watcher) answered(ctx context.Context, bus Bus, a *answer) error {
	r := &a.row
	delete(w.last, r.Unit.Name)
	switch {
	case a.err == nil:
		// The properties are newer than the row, but lack the job.
		a.props.JobType, a.props.Path = r.Unit.JobType, r.Unit.Path
		r.Unit, r.Properties = a.props.Unit, &a.props
		w.last[r.Unit.Name] = r.Unit
	case errors.Is(a.err, ErrNoUnit):
		r.Gone = true
	case ctx.Err() != nil:
		return ctx.Err()
	default:
		// Is it the unit, or the connection?
		if _, err := bus.ListUnits(ctx, r.Unit.Name); err != nil {
			return fmt.Errorf("read a unit: %w", err)
		}
		r.Unread = true
		w.log.Warn("cannot read a unit", "unit", r.Unit.Name, "err", a.err)
	}
	return nil
}

// await notes that a unit's answer is still to come, and makes its row say what
// is known without.
func (w *watcher) await(r *correlate.Row) {
	w.awaited[r.Unit.Name] = true
	if last, ok := w.last[r.Unit.Name]; ok {
		r.Unit = last
	} else {
		r.Unread = true
	}
}

// forward hands late answers to the watcher.
func (w *watcher) forward(ctx context.Context, answers <-chan answer) {
	for a := range answers {
		select {
		case w.late <- a:
		case <-ctx.Done():
			return
		}
	}
}

// lateAnswer takes in an answer that was not waited for. What changed meanwhile
// is read again.
func (w *watcher) lateAnswer(ctx context.Context, bus Bus, a answer) error {
	name := a.row.Unit.Name
	delete(w.awaited, name)
	if err := w.answered(ctx, bus, &a); err != nil {
		return err
	}
	if err := w.observe(ctx, correlate.Observation{Manager: w.manager, Rows: []correlate.Row{a.row}}); err != nil {
		return err
	}
	if !w.renewed[name] {
		return nil
	}
	delete(w.renewed, name)
	return w.hinted(ctx, bus, blixard.Hints{Units: []string{name}})
}
