package api

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/api/apitest"
)

// TestClient_IsFleet holds that what goes through the API is what the Fleet
// says.
func TestClient_IsFleet(t *testing.T) {
	d := newDaemon(t, nil)
	c := d.client(nil)
	ctx := t.Context()
	same := func(what string, want, got any, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
	}
	wantVMs, _ := d.fleet.VMs(ctx)
	vms, err := c.VMs(ctx)
	same("VMs", wantVMs, vms, err)
	ref := blixard.VMRef{Node: "h1", Manager: "user:1000", Name: "web-1"}
	wantVM, _ := d.fleet.VM(ctx, ref)
	vm, err := c.VM(ctx, ref)
	same("VM", wantVM, vm, err)
	q := blixard.EventQuery{VM: blixard.VMRef{Name: "web-1"}, After: 5, Limit: 3}
	wantEvents, _ := d.fleet.Events(ctx, q)
	events, err := c.Events(ctx, q)
	same("Events", wantEvents, events, err)
	wantNodes, _ := d.fleet.Nodes(ctx)
	nodes, err := c.Nodes(ctx)
	same("Nodes", wantNodes, nodes, err)
	wantNode, _ := d.fleet.Node(ctx, "n2")
	node, err := c.Node(ctx, "n2")
	same("Node", wantNode, node, err)
	wantCluster, _ := d.fleet.Cluster(ctx)
	cluster, err := c.Cluster(ctx)
	same("Cluster", wantCluster, cluster, err)
	if v, err := c.Version(ctx); err != nil || v.Version != "0.1.0" {
		t.Errorf("Version: %+v, %v", v, err)
	}

	_, wantErr := d.fleet.VM(ctx, blixard.VMRef{Name: "web-1"})
	_, err = c.VM(ctx, blixard.VMRef{Name: "web-1"})
	same("an ambiguous VM", wantErr, err, nil)

	removed, err := c.RemoveVM(ctx, blixard.VMRef{Node: "h2", Name: "db"})
	if err != nil || len(removed.Items) != 1 || removed.Index != 7004 {
		t.Errorf("RemoveVM: %+v, %v", removed, err)
	}
	if _, err := c.AdoptVM(ctx, blixard.VMRef{Name: "db"}); blixard.ErrorCode(err) != blixard.CodeNotFound {
		t.Errorf("AdoptVM: %v", err)
	}
}

func TestClient_Unreachable(t *testing.T) {
	dir := t.TempDir()
	gone := filepath.Join(dir, "gone")
	dead(t, gone)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, part := range map[string]string{gone: "nobody listens", filepath.Join(dir, "none"): "no socket", file: "nobody listens"} {
		c, err := Dial(ClientConfig{Addr: path})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.VMs(t.Context())
		e, ok := errors.AsType[*blixard.Error](err)
		if !ok || e.Code != blixard.CodeUnavailable || e.Hint != startService || !strings.Contains(e.Message, part) {
			t.Errorf("%s: %+v", path, err)
		}
		for _, err := range c.WatchVMs(t.Context()) {
			if blixard.ErrorCode(err) != blixard.CodeUnavailable {
				t.Errorf("%s: WatchVMs: %v", path, err)
			}
		}
	}
}

// alien serves one answer to everything.
func alien(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "b.sock")
	l, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, l, h, quiet) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	c, err := Dial(ClientConfig{Addr: path, Timeout: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// TestClient_Alien holds that the client takes nothing for an answer that is
// none.
func TestClient_Alien(t *testing.T) {
	type answer struct {
		status      int
		contentType string
		body        string
		code        blixard.Code
	}
	for name, a := range map[string]answer{
		"html":            {200, "text/html", "<html>", blixard.CodeInternal},
		"error as html":   {502, "text/html", "<html>", blixard.CodeInternal},
		"redirect":        {302, "application/json", "{}", blixard.CodeInternal},
		"no JSON":         {200, "application/json", "nope", blixard.CodeInternal},
		"two values":      {200, "application/json", `{"api_version":"v1"}{}`, blixard.CodeInternal},
		"another version": {200, "application/json", `{"api_version":"v2","items":[]}`, blixard.CodeInternal},
		"wrong type":      {200, "application/json", `{"api_version":"v1","index":"7"}`, blixard.CodeInternal},
		"torn":            {200, "application/json", `{"api_version":"v1"`, blixard.CodeInternal},
		"error":           {503, "application/json", `{"error":{"code":"unavailable","message":"no leader"}}`, blixard.CodeUnavailable},
		"newer code":      {418, "application/json", `{"error":{"code":"teapot","message":"short and stout"}}`, "teapot"},
		"empty error":     {500, "application/json", `{"error":{}}`, blixard.CodeInternal},
	} {
		t.Run(name, func(t *testing.T) {
			c := alien(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", a.contentType)
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(a.status)
				_, _ = io.WriteString(w, a.body)
			})
			if l, err := c.VMs(t.Context()); blixard.ErrorCode(err) != a.code {
				t.Errorf("%+v, %v", l, err)
			}
		})
	}
}

func TestClient_ToleratesNewer(t *testing.T) {
	c := alien(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"api_version":"v1","index":7,"novelty":1,"items":[{"name":"a","state":"levitating","usage":{"cpu":1}}]}`)
	})
	l, err := c.VMs(t.Context())
	if err != nil || len(l.Items) != 1 || l.Items[0].State != "levitating" {
		t.Errorf("%+v, %v", l, err)
	}
}

func TestClient_BoundsAnswers(t *testing.T) {
	c := alien(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		block := strings.Repeat(" ", 1<<20)
		for range maxAnswer>>20 + 1 {
			if _, err := io.WriteString(w, block); err != nil {
				return
			}
		}
	})
	c.cfg.Timeout = time.Minute
	if _, err := c.VMs(t.Context()); blixard.ErrorCode(err) != blixard.CodeTooLarge {
		t.Error(err)
	}
	c = alien(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/x-ndjson")
		block := strings.Repeat(" ", 1<<20)
		for range maxLine>>20 + 2 {
			if _, err := io.WriteString(w, block); err != nil {
				return
			}
		}
	})
	for _, err := range c.WatchVMs(t.Context()) {
		if blixard.ErrorCode(err) != blixard.CodeTooLarge {
			t.Error(err)
		}
	}
}

func TestClient_Deadline(t *testing.T) {
	path := filepath.Join(t.TempDir(), "b.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	c, err := Dial(ClientConfig{Addr: path, Timeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.VMs(t.Context()); blixard.ErrorCode(err) != blixard.CodeTimeout {
		t.Errorf("VMs: %v", err)
	}
	for _, err := range c.WatchVMs(t.Context()) {
		if blixard.ErrorCode(err) != blixard.CodeTimeout {
			t.Errorf("WatchVMs: %v", err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.VMs(ctx); blixard.ErrorCode(err) != blixard.CodeUnavailable {
		t.Errorf("canceled: %v", err)
	}
}

// news collects what OnStream is told.
type news chan error

func (n news) lost(t *testing.T) {
	t.Helper()
	if err := <-n; err == nil {
		t.Error("the stream goes on before it was lost")
	}
}

func (n news) back(t *testing.T) {
	t.Helper()
	if err := <-n; err != nil {
		t.Errorf("the stream does not go on: %v", err)
	}
}

// TestClient_FollowResumes restarts the daemon under a follower: every event
// comes once and in order.
func TestClient_FollowResumes(t *testing.T) {
	d := newDaemon(t, nil)
	told := make(news, 16)
	c := d.client(func(cfg *ClientConfig) { cfg.OnStream = func(err error) { told <- err } })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	got := make(chan uint64)
	ended := make(chan error, 1)
	go func() {
		for f, err := range c.FollowEvents(ctx, blixard.EventQuery{}) {
			if err != nil {
				ended <- err
				return
			}
			if f.Gap {
				t.Error("a gap")
			}
			if f.Event != nil {
				got <- f.Event.Index
			}
		}
	}()
	if err := d.fleet.AwaitStreams(ctx, 1); err != nil {
		t.Fatal(err)
	}
	next := uint64(7004)
	for round := range 5 {
		if round > 0 {
			d.stop()
			told.lost(t)
		}
		// What happens while nobody serves comes afterwards.
		d.fleet.Emit(make([]blixard.Event, 3)...)
		if round > 0 {
			d.start()
			told.back(t)
		}
		for range 3 {
			if i := <-got; i != next {
				t.Fatalf("event %d, want %d", i, next)
			}
			next++
		}
	}
	cancel()
	if err := <-ended; blixard.ErrorCode(err) != blixard.CodeUnavailable {
		t.Error(err)
	}
}

// TestClient_FollowStoreAnew gives the daemon a store that knows nothing of the
// index to resume from.
func TestClient_FollowStoreAnew(t *testing.T) {
	d := newDaemon(t, nil)
	c := d.client(nil)
	frames := make(chan blixard.EventFrame)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for f, err := range c.FollowEvents(ctx, blixard.EventQuery{After: 7003}) {
			if err != nil {
				return
			}
			select {
			case frames <- f:
			case <-ctx.Done():
			}
		}
	}()
	d.fleet.Emit(blixard.Event{Type: blixard.EventState})
	if f := <-frames; f.Index != 7004 || f.Event == nil {
		t.Fatalf("%+v", f)
	}
	d.stop()
	d.fleet.Change(func(s *apitest.Script) { s.Index, s.Events = 1000, nil })
	d.start()
	if f := <-frames; !f.Gap || f.Index != 1000 {
		t.Fatalf("no gap: %+v", f)
	}
	d.fleet.Emit(blixard.Event{Type: blixard.EventState})
	if f := <-frames; f.Event == nil || f.Event.Index != 1001 {
		t.Fatalf("%+v", f)
	}
	cancel()
	<-ended
}

// TestClient_WatchResumes holds that a VM that went while nobody served is told
// to be gone.
func TestClient_WatchResumes(t *testing.T) {
	d := newDaemon(t, nil)
	told := make(news, 16)
	c := d.client(func(cfg *ClientConfig) { cfg.OnStream = func(err error) { told <- err } })
	ctx, cancel := context.WithCancel(t.Context())
	frames := make(chan blixard.VMFrame)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for f, err := range c.WatchVMs(ctx) {
			if err != nil {
				return
			}
			select {
			case frames <- f:
			case <-ctx.Done():
			}
		}
	}()
	seen := map[string]bool{}
	sync := func() {
		for f := range frames {
			switch {
			case f.VM != nil:
				seen[f.VM.ID] = true
			case f.Gone != "":
				delete(seen, f.Gone)
			case f.Synced:
				return
			}
		}
	}
	sync()
	if len(seen) != 3 {
		t.Fatal(seen)
	}
	d.fleet.Change(func(s *apitest.Script) { s.VMs = s.VMs[1:] })
	if f := <-frames; f.Gone != "h1/web-1" {
		t.Fatalf("%+v", f)
	}
	delete(seen, "h1/web-1")
	d.stop()
	told.lost(t)
	d.fleet.Change(func(s *apitest.Script) { s.VMs = s.VMs[:1] })
	d.start()
	told.back(t)
	sync()
	if len(seen) != 1 || !seen["h2/db"] {
		t.Errorf("%v", seen)
	}
	cancel()
	<-ended
}

// TestClient_GivesUp holds that a stream ends on what trying again cannot heal.
func TestClient_GivesUp(t *testing.T) {
	d := newDaemon(t, nil)
	c := d.client(nil)
	for _, code := range []blixard.Code{blixard.CodeDenied, blixard.CodeInvalid, blixard.CodeInternal} {
		first := true
		for f, err := range c.FollowEvents(t.Context(), blixard.EventQuery{}) {
			if first {
				first = false
				if err != nil {
					t.Fatal(err)
				}
				d.fleet.Change(func(s *apitest.Script) { s.Error = blixard.Errorf(code, "the end") })
				continue
			}
			if blixard.ErrorCode(err) != code {
				t.Errorf("%s: %+v, %v", code, f, err)
			}
		}
		d.fleet.Change(func(s *apitest.Script) { s.Error = nil })
	}
}
