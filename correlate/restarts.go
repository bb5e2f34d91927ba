package correlate

import (
	"slices"
	"time"
)

// hour is the span that RestartsLastHour covers.
const hour = time.Hour

// maxEntries bounds the memory of one VM's history; beyond it the two oldest
// entries are put together at the later one's time.
const maxEntries = 1024

// restarts is the history of a VM's automatic restarts over the last hour.
type restarts struct {
	entries []restart
}

type restart struct {
	at time.Time
	n  uint32
}

// add counts n restarts at a time, which is taken to be neither before the last
// one added nor in the future: it may be of an earlier life's clock.
func (r *restarts) add(now, at time.Time, n uint32) {
	if last := len(r.entries) - 1; last >= 0 && at.Before(r.entries[last].at) {
		at = r.entries[last].at
	}
	if at.After(now) {
		at = now
	}
	if n == 0 || now.Sub(at) > hour {
		return
	}
	if len(r.entries) == maxEntries {
		r.entries[1].n += r.entries[0].n
		r.entries = append(r.entries[:0], r.entries[1:]...)
	}
	r.entries = append(r.entries, restart{at, n})
}

// prune forgets what is older than an hour and reports whether it forgot any.
func (r *restarts) prune(now time.Time) bool {
	i := 0
	for i < len(r.entries) && now.Sub(r.entries[i].at) > hour {
		i++
	}
	r.entries = append(r.entries[:0], r.entries[i:]...)
	return i > 0
}

// within counts the restarts of the span that ends now, but only those after
// from.
func (r *restarts) within(now time.Time, span time.Duration, from time.Time) int {
	n := 0
	for i := len(r.entries) - 1; i >= 0 && now.Sub(r.entries[i].at) <= span && r.entries[i].at.After(from); i-- {
		if !r.entries[i].at.After(now) {
			n += int(r.entries[i].n)
		}
	}
	return n
}

// count counts what is kept, which prune limits to the last hour.
func (r *restarts) count() int {
	n := 0
	for _, e := range r.entries {
		n += int(e.n)
	}
	return n
}

// before puts the restarts of an earlier life before those that are known.
func (r *restarts) before(now time.Time, past []restart) {
	known := r.entries
	r.entries = nil
	for _, e := range slices.Concat(past, known) {
		r.add(now, e.at, e.n)
	}
}
