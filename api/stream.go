package api

import (
	"cmp"
	"context"
	"iter"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/blixard/blixard"
)

// stream writes frames to one client. A frame waits for the client at most
// frameTimeout, and nothing is kept for it meanwhile: the Fleet's iterator
// stands still.
type stream[F any] struct {
	s   *server
	rc  *http.ResponseController
	w   http.ResponseWriter
	sse bool
	// index is where to resume after a frame.
	index func(F) uint64
	// idle is the frame that says that the stream lives; ok is false while
	// there is none.
	idle func(last F) (frame F, ok bool)

	// mu guards the writer and what follows.
	mu    sync.Mutex
	last  F
	wrote time.Time
	err   error
}

// serve streams seq until it, the client or the context ends. first, when not
// nil, is sent at once. A client that asks by HEAD gets the headers.
func (st *stream[F]) serve(r *http.Request, first *F, seq func(context.Context) iter.Seq2[F, error]) {
	st.rc = http.NewResponseController(st.w)
	st.sse = strings.Contains(r.Header.Get("Accept"), "text/event-stream")
	contentType := "application/x-ndjson"
	if st.sse {
		contentType = "text/event-stream"
	}
	st.w.Header().Set("Content-Type", contentType)
	st.w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return
	}
	var err error
	if first != nil {
		err = st.send(*first)
	} else {
		err = st.raw(nil)
	}
	if err != nil {
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	var wg sync.WaitGroup
	wg.Go(func() { st.keepAlive(ctx, cancel) })
	defer wg.Wait()
	defer cancel()
	for frame, err := range seq(ctx) {
		if err != nil {
			if ctx.Err() == nil {
				st.fail(st.s.public(err))
			}
			return
		}
		if st.send(frame) != nil {
			return
		}
	}
}

// keepAlive sends the idle frame whenever the stream was silent for a while,
// and ends the stream when the client does not take it.
func (st *stream[F]) keepAlive(ctx context.Context, cancel func()) {
	every := st.s.cfg.KeepAlive
	timer := time.NewTimer(every)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		wait, err := st.nudge(every)
		if err != nil {
			cancel()
			return
		}
		timer.Reset(wait)
	}
}

// nudge sends the idle frame when the last frame is old enough, and returns how
// long to wait for the next look.
func (st *stream[F]) nudge(every time.Duration) (time.Duration, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if silent := time.Since(st.wrote); silent < every {
		return every - silent, nil
	}
	frame, ok := st.idle(st.last)
	if !ok {
		return every, st.write([]byte("\n"))
	}
	b, err := st.encode(frame)
	if err != nil {
		return 0, err
	}
	return every, st.write(b)
}

func (st *stream[F]) encode(frame F) ([]byte, error) {
	b, err := encode(frame)
	if err == nil && st.sse {
		b = event("", strconv.FormatUint(st.index(frame), 10), b)
	}
	return b, err
}

func (st *stream[F]) send(frame F) error {
	b, err := st.encode(frame)
	if err != nil {
		return err
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.last = frame
	return st.write(b)
}

// fail tells the client why the stream ends.
func (st *stream[F]) fail(e *blixard.Error) {
	b, err := encode(errorBody{e})
	if err != nil {
		return
	}
	if st.sse {
		b = event("error", "", b)
	}
	// The stream ends either way.
	_ = st.raw(b)
}

// event frames one line of JSON as a server-sent event.
func event(name, id string, line []byte) []byte {
	var b []byte
	if name != "" {
		b = append(append(append(b, "event: "...), name...), '\n')
	}
	if id != "" {
		b = append(append(append(b, "id: "...), id...), '\n')
	}
	return append(append(append(b, "data: "...), line...), '\n')
}

// raw writes what is no frame.
func (st *stream[F]) raw(b []byte) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.write(b)
}

// write writes and flushes under mu; after an error it writes no more.
func (st *stream[F]) write(b []byte) error {
	if st.err != nil {
		return st.err
	}
	if st.err = st.rc.SetWriteDeadline(time.Now().Add(frameTimeout)); st.err != nil {
		return st.err
	}
	if _, st.err = st.w.Write(b); st.err != nil {
		return st.err
	}
	st.err = st.rc.Flush()
	st.wrote = time.Now()
	return st.err
}

func (s *server) watchVMs(w http.ResponseWriter, r *request) {
	// synced says that the Fleet sent every VM: before it, no frame may.
	var synced atomic.Bool
	st := &stream[blixard.VMFrame]{s: s, w: w,
		index: func(f blixard.VMFrame) uint64 { return f.Index },
		idle: func(last blixard.VMFrame) (blixard.VMFrame, bool) {
			return blixard.VMFrame{Synced: true, Index: last.Index}, synced.Load()
		},
	}
	st.serve(r.Request, nil, func(ctx context.Context) iter.Seq2[blixard.VMFrame, error] {
		return func(yield func(blixard.VMFrame, error) bool) {
			for f, err := range s.cfg.Fleet.WatchVMs(ctx) {
				if f.VM != nil {
					v := *f.VM
					fillVM(&v)
					f.VM = &v
				}
				if !yield(f, err) {
					return
				}
				if f.Synced {
					synced.Store(true)
				}
			}
		}
	})
}

// followEvents streams events. It first asks for the newest one, which gives
// what is wrong with the query a status of its own, and a stream that begins
// now an index to resume from before anything happened.
func (s *server) followEvents(w http.ResponseWriter, r *request, q blixard.EventQuery) error {
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		after, err := strconv.ParseUint(id, 10, 64)
		if err != nil {
			return blixard.Errorf(blixard.CodeInvalid, "Last-Event-ID %q is no index", id)
		}
		q.After = after
	}
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	newest := q
	newest.Limit = 1
	l, err := s.cfg.Fleet.Events(ctx, newest)
	cancel()
	if err != nil {
		return err
	}
	var first *blixard.EventFrame
	if q.After == 0 {
		q.After = l.Index
		first = &blixard.EventFrame{Index: l.Index}
	}
	st := &stream[blixard.EventFrame]{s: s, w: w,
		index: func(f blixard.EventFrame) uint64 { return f.Index },
		idle: func(last blixard.EventFrame) (blixard.EventFrame, bool) {
			// Before the first frame the index is the one that was asked for.
			return blixard.EventFrame{Index: cmp.Or(last.Index, q.After)}, true
		},
	}
	st.serve(r.Request, first, func(ctx context.Context) iter.Seq2[blixard.EventFrame, error] {
		return s.cfg.Fleet.FollowEvents(ctx, q)
	})
	return nil
}
