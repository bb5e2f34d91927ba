package correlate

import "time"

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

// add counts n restarts at a time not before the last one added.
func (r *restarts) add(at time.Time, n uint32) {
	if n == 0 {
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

// within counts the restarts of the span that ends now.
func (r *restarts) within(now time.Time, span time.Duration) int {
	n := 0
	for i := len(r.entries) - 1; i >= 0 && now.Sub(r.entries[i].at) <= span; i-- {
		n += int(r.entries[i].n)
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
