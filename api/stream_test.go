package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/api/apitest"
)

// open begins a stream as curl does.
func (d *daemon) open(target string, header http.Header) (lines *bufio.Reader, end func()) {
	d.t.Helper()
	ctx, cancel := context.WithCancel(d.t.Context())
	req, err := http.NewRequestWithContext(ctx, "GET", "http://blixard"+target, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	req.Header = header
	resp, err := d.http().Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	if resp.StatusCode != 200 {
		d.t.Fatal(resp.Status)
	}
	return bufio.NewReader(resp.Body), func() { cancel(); _ = resp.Body.Close() }
}

func expect(t *testing.T, r *bufio.Reader, want ...string) {
	t.Helper()
	for _, w := range want {
		line, err := r.ReadString('\n')
		if err != nil || line != w+"\n" {
			t.Fatalf("got %q, %v\nwant %q", line, err, w)
		}
	}
}

func TestStream_NDJSON(t *testing.T) {
	d := newDaemon(t, nil)
	d.fleet.Change(func(s *apitest.Script) { s.VMs = s.VMs[1:2] })
	r, end := d.open("/v1/vms?watch", nil)
	defer end()
	const db = `{"vm":{"name":"db","id":"h2/db","node":"h2","unit":"microvm@db.service","manager":"system","state":"unknown","stale":true,"helpers":[],"health":{"status":"unknown","checks":[]}},"index":7003}`
	expect(t, r, db, `{"synced":true,"index":7003}`)
	d.fleet.Change(func(s *apitest.Script) { s.VMs = nil })
	expect(t, r, `{"gone":"h2/db","index":7003}`)
	d.fleet.Change(func(s *apitest.Script) { s.Error = blixard.Errorf(blixard.CodeUnavailable, "away") })
	expect(t, r, `{"error":{"code":"unavailable","message":"away"}}`)
	if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
		t.Errorf("after the error: %q, %v", rest, err)
	}
}

func TestStream_SSE(t *testing.T) {
	d := newDaemon(t, nil)
	sse := http.Header{"Accept": {"text/event-stream"}, "Last-Event-Id": {"7001"}}
	r, end := d.open("/v1/events?follow&after=5&vm=web-1", sse)
	defer end()
	expect(t, r, "id: 7003")
	if line, err := r.ReadString('\n'); err != nil || !strings.HasPrefix(line, `data: {"event":{"index":7003,`) || !strings.HasSuffix(line, `"index":7003}`+"\n") {
		t.Fatalf("%q, %v", line, err)
	}
	expect(t, r, "")
	d.fleet.Change(func(s *apitest.Script) { s.Error = blixard.Errorf(blixard.CodeDenied, "no more") })
	expect(t, r, "event: error", `data: {"error":{"code":"denied","message":"no more"}}`, "")
}

// TestStream_Validates holds the frames against the document's schemas.
func TestStream_Validates(t *testing.T) {
	doc := document(t)
	d := newDaemon(t, nil)
	d.fleet.Change(func(s *apitest.Script) { s.Trimmed = 7001 })
	for target, c := range map[string]struct {
		schema string
		frames int
	}{"/v1/vms?watch=true": {"VMFrame", 4}, "/v1/events?follow=true&after=1": {"EventFrame", 2}} {
		r, end := d.open(target, nil)
		for range c.frames {
			line, err := r.ReadBytes('\n')
			if err != nil {
				t.Fatal(err)
			}
			var v any
			if err := json.Unmarshal(line, &v); err != nil {
				t.Fatal(err)
			}
			if err := doc.Components.Schemas[c.schema].Value.VisitJSON(v); err != nil {
				t.Errorf("%s: %s: %v", target, line, err)
			}
		}
		end()
	}
}

// TestStream_EndsWithDaemon holds that a stream ends in order when the daemon
// does, and at once.
func TestStream_EndsWithDaemon(t *testing.T) {
	d := newDaemon(t, nil)
	r, end := d.open("/v1/events?follow", nil)
	defer end()
	expect(t, r, `{"index":7003}`)
	start := time.Now()
	d.stop()
	if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
		t.Errorf("%q, %v", rest, err)
	}
	if took := time.Since(start); took > drainTimeout {
		t.Errorf("the daemon took %v to end", took)
	}
}

// TestStream_EndsWithClient holds that nothing is left of a stream whose client
// went.
func TestStream_EndsWithClient(t *testing.T) {
	d := newDaemon(t, nil)
	var ends []func()
	for range 20 {
		r, end := d.open("/v1/vms?watch", nil)
		if _, err := r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, end)
	}
	if err := d.fleet.AwaitStreams(t.Context(), 20); err != nil {
		t.Fatal(err)
	}
	for _, end := range ends {
		end()
	}
	if err := d.fleet.AwaitStreams(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
}

// pipes is a listener whose connections have no buffer and the bubble's clock.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes"} }

func (p *pipes) dial(context.Context, string, string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case p.conns <- there:
		return here, nil
	case <-p.done:
		return nil, errors.New("nobody listens")
	}
}

// bubble runs f with a server and a client of its own in a bubble of time.
func bubble(t *testing.T, fleet blixard.Fleet, f func(t *testing.T, p *pipes, c *Client)) {
	synctest.Test(t, func(t *testing.T) {
		h, err := NewServer(ServerConfig{Fleet: fleet, Authorizer: fixed(RoleAdmin), Logger: quiet})
		if err != nil {
			t.Fatal(err)
		}
		p := newPipes()
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan error, 1)
		go func() { served <- Serve(ctx, p, h, quiet) }()
		c, err := Dial(ClientConfig{Addr: "/pipes"})
		if err != nil {
			t.Fatal(err)
		}
		c.http.Transport.(*http.Transport).DialContext = p.dial
		f(t, p, c)
		c.Close()
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

// still is a Fleet that never says anything.
type still struct {
	blixard.Fleet
	events blixard.List[blixard.Event]
}

func (s still) Events(context.Context, blixard.EventQuery) (blixard.List[blixard.Event], error) {
	return s.events, nil
}

func (s still) FollowEvents(ctx context.Context, _ blixard.EventQuery) iter.Seq2[blixard.EventFrame, error] {
	return func(yield func(blixard.EventFrame, error) bool) {
		<-ctx.Done()
		yield(blixard.EventFrame{}, ctx.Err())
	}
}

func (s still) WatchVMs(ctx context.Context) iter.Seq2[blixard.VMFrame, error] {
	return func(yield func(blixard.VMFrame, error) bool) {
		<-ctx.Done()
		yield(blixard.VMFrame{}, ctx.Err())
	}
}

func (s still) VMs(ctx context.Context) (blixard.List[blixard.VM], error) {
	<-ctx.Done()
	return blixard.List[blixard.VM]{}, ctx.Err()
}

// TestStream_KeepAlive holds that a silent stream says every KeepAlive that it
// lives, and that a client sees nothing wrong with it.
func TestStream_KeepAlive(t *testing.T) {
	bubble(t, still{events: blixard.List[blixard.Event]{Index: 42}}, func(t *testing.T, _ *pipes, c *Client) {
		start, n := time.Now(), 0
		for f, err := range c.FollowEvents(t.Context(), blixard.EventQuery{}) {
			if err != nil || f.Index != 42 {
				t.Fatalf("%+v, %v", f, err)
			}
			if took := time.Since(start); took != time.Duration(n)*KeepAlive {
				t.Errorf("frame %d after %v", n, took)
			}
			if n++; n == 10 {
				break
			}
		}
	})
}

// TestStream_SlowClient holds that a client that does not read is dropped after
// frameTimeout.
func TestStream_SlowClient(t *testing.T) {
	fleet := apitest.New(script())
	bubble(t, fleet, func(t *testing.T, p *pipes, c *Client) {
		slow, err := p.dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if _, err := io.WriteString(slow, "GET /v1/vms?watch HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		// Others are served meanwhile.
		if _, err := c.Nodes(t.Context()); err != nil {
			t.Error(err)
		}
		time.Sleep(frameTimeout + time.Second)
		if b, err := io.ReadAll(slow); err != nil && !errors.Is(err, io.ErrClosedPipe) || strings.Contains(string(b), "synced") {
			t.Errorf("after %v: %q, %v", time.Since(start), b, err)
		}
	})
}

// TestStream_SilentDaemon holds that a client leaves a daemon that hangs.
func TestStream_SilentDaemon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipes()
		var lost []time.Duration
		start := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		c, err := Dial(ClientConfig{Addr: "/pipes", OnStream: func(err error) {
			lost = append(lost, time.Since(start))
			if blixard.ErrorCode(err) != blixard.CodeTimeout {
				t.Error(err)
			}
			cancel()
		}})
		if err != nil {
			t.Fatal(err)
		}
		c.http.Transport.(*http.Transport).DialContext = p.dial
		go func() {
			conn, _ := p.Accept()
			r := bufio.NewReader(conn)
			if _, err := http.ReadRequest(r); err != nil {
				t.Error(err)
			}
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n{\"index\":5}\n")
			// It hangs until the client goes.
			_, _ = io.Copy(io.Discard, conn)
			_ = conn.Close()
		}()
		for _, err := range c.FollowEvents(ctx, blixard.EventQuery{}) {
			if err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
		if len(lost) != 1 || lost[0] != silence {
			t.Errorf("lost after %v, want once after %v", lost, silence)
		}
		c.Close()
		_ = p.Close()
	})
}

// TestServer_Timeouts holds the bounds on times.
func TestServer_Timeouts(t *testing.T) {
	bubble(t, still{}, func(t *testing.T, p *pipes, c *Client) {
		c.cfg.Timeout = time.Minute
		start := time.Now()
		if _, err := c.VMs(t.Context()); blixard.ErrorCode(err) != blixard.CodeTimeout || time.Since(start) != requestTimeout {
			t.Errorf("a Fleet that hangs: %v after %v", err, time.Since(start))
		}
		for name, sent := range map[string]string{"nothing": "", "half a header": "GET /v1/vms HTTP/1.1\r\nHos"} {
			conn, err := p.dial(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			if _, err := io.WriteString(conn, sent); err != nil {
				t.Fatal(err)
			}
			_, _ = io.ReadAll(conn)
			if took := time.Since(start); took != headerTimeout {
				t.Errorf("%s: dropped after %v", name, took)
			}
		}
	})
}

// TestServer_HeaderBound holds the bound on headers.
func TestServer_HeaderBound(t *testing.T) {
	d := newDaemon(t, nil)
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://blixard/v1/version", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X", strings.Repeat("a", 2*maxHeaderBytes))
	resp, err := d.http().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	// The rest of the answer is lost with the rest of the headers.
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("status %d", resp.StatusCode)
	}
}
