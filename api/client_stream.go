package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"net/http"
	"net/url"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/blixard/blixard"
)

const (
	// silence is how long a client waits for a sign of life on a stream.
	silence = 3 * KeepAlive
	// The pauses between attempts to connect again.
	firstPause = 100 * time.Millisecond
	maxPause   = 5 * time.Second
)

// errSilent is why a stream without a sign of life is dropped.
var errSilent = blixard.Errorf(blixard.CodeTimeout, "the daemon is silent for %v", silence)

// heals reports whether trying again later can change the answer.
func heals(err error) bool {
	switch blixard.ErrorCode(err) {
	case blixard.CodeUnavailable, blixard.CodeTimeout, blixard.CodeBusy, blixard.CodeConflict:
		return true
	}
	return false
}

// WatchVMs streams every VM and then the changes.
func (c *Client) WatchVMs(ctx context.Context) iter.Seq2[blixard.VMFrame, error] {
	return func(yield func(blixard.VMFrame, error) bool) {
		// shown are the VMs the reader knows, fresh those of this connection
		// until it is synced.
		shown, fresh := map[string]bool{}, map[string]bool{}
		synced := false
		connect := func() *url.URL {
			fresh, synced = map[string]bool{}, false
			return target(pathVMs, pathVMs, "watch=true")
		}
		follow(ctx, c, connect, func(f blixard.VMFrame) bool {
			switch {
			case f.VM != nil:
				fresh[f.VM.ID] = true
				shown[f.VM.ID] = true
			case f.Gone != "":
				delete(fresh, f.Gone)
				delete(shown, f.Gone)
			case f.Synced && !synced:
				synced = true
				for id := range shown {
					if fresh[id] {
						continue
					}
					delete(shown, id)
					if !yield(blixard.VMFrame{Gone: id, Index: f.Index}, nil) {
						return false
					}
				}
			}
			return yield(f, nil)
		}, func(err error) { yield(blixard.VMFrame{}, err) })
	}
}

// FollowEvents streams every event after q.After. A gap can lead back: to the
// present index of a store that began anew.
func (c *Client) FollowEvents(ctx context.Context, q blixard.EventQuery) iter.Seq2[blixard.EventFrame, error] {
	return func(yield func(blixard.EventFrame, error) bool) {
		connect := func() *url.URL { return target(pathEvents, pathEvents, encodeEvents(q, true)) }
		follow(ctx, c, connect, func(f blixard.EventFrame) bool {
			switch {
			case f.Gap:
				q.After = f.Index
			case f.Event != nil && f.Index <= q.After:
				// It was told before.
				return true
			default:
				q.After = max(q.After, f.Index)
			}
			return yield(f, nil)
		}, func(err error) { yield(blixard.EventFrame{}, err) })
	}
}

// follow reads a stream line by line, connecting again when it breaks, until
// take says no or there is an error to give up on, which goes to fail.
func follow[F any](ctx context.Context, c *Client, connect func() *url.URL, take func(F) bool, fail func(error)) {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = firstPause, maxPause
	connected, lost := false, false
	for {
		opened := func() {
			if lost {
				c.cfg.OnStream(nil)
			}
			connected, lost = true, false
		}
		err := c.readStream(ctx, connect(), opened, func(line []byte) (bool, error) {
			if e := lineError(line); e != nil {
				return false, e
			}
			var f F
			if err := json.Unmarshal(line, &f); err != nil {
				return false, c.alien("decode a frame: " + err.Error())
			}
			pause.Reset()
			return take(f), nil
		})
		if err == nil {
			return
		}
		err = c.border(ctx, err)
		if ctx.Err() != nil || !connected || !heals(err) {
			fail(err)
			return
		}
		if !lost {
			lost = true
			c.cfg.OnStream(err)
		}
		select {
		case <-ctx.Done():
			fail(c.border(ctx, ctx.Err()))
			return
		case <-time.After(pause.NextBackOff()):
		}
	}
}

// readStream makes one connection, says when it is open, and gives each line of
// it to take, until that says no (nil), or there is an error. A torn line is
// none.
func (c *Client) readStream(ctx context.Context, u *url.URL, opened func(), take func(line []byte) (more bool, err error)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	alarm := time.AfterFunc(c.cfg.Timeout, func() { cancel(context.DeadlineExceeded) })
	defer func() { alarm.Stop() }()
	why := func(err error) error {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	start := time.Now()
	resp, err := c.do(ctx, http.MethodGet, u, "application/x-ndjson")
	if err != nil {
		return why(err)
	}
	defer func() { _ = resp.Body.Close() }()
	c.cfg.Logger.Debug("GET "+u.RequestURI(), "status", resp.StatusCode, "took", time.Since(start).Round(time.Microsecond))
	alarm.Stop()
	opened()
	alarm = time.AfterFunc(silence, func() { cancel(errSilent) })
	lines := bufio.NewReaderSize(resp.Body, 64<<10)
	for {
		line, err := readLine(lines)
		if errors.Is(err, io.EOF) {
			return blixard.Errorf(blixard.CodeUnavailable, "blixard-monitor at %s ended the stream", c.path).WithHint(startService)
		}
		if err != nil {
			return why(err)
		}
		// A reader that takes its time is no silence of the daemon's.
		alarm.Stop()
		if line = bytes.TrimSpace(line); len(line) > 0 {
			if more, err := take(line); !more {
				return err
			}
		}
		alarm.Reset(silence)
	}
}

// readLine reads up to a newline, at most maxLine bytes; a last line without
// one is io.ErrUnexpectedEOF.
func readLine(r *bufio.Reader) ([]byte, error) {
	var long []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(long)+len(part) > maxLine {
			return nil, blixard.Errorf(blixard.CodeTooLarge, "a frame is longer than %d bytes", maxLine)
		}
		switch {
		case err == nil && long == nil:
			return part, nil
		case err == nil:
			return append(long, part...), nil
		case errors.Is(err, bufio.ErrBufferFull):
			long = append(long, part...)
		case errors.Is(err, io.EOF) && len(long)+len(part) > 0:
			return nil, io.ErrUnexpectedEOF
		default:
			return nil, err
		}
	}
}
