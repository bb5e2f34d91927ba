package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/api/apitest"
)

func TestServer_Refuses(t *testing.T) {
	d := newDaemon(t, nil)
	for _, c := range []struct {
		name, method, target string
		header               http.Header
		body                 io.Reader
		status               int
		code                 blixard.Code
	}{
		{"unknown path", "GET", "/v2/vms", nil, nil, 404, blixard.CodeNotFound},
		{"trailing slash", "GET", "/v1/vms/", nil, nil, 404, blixard.CodeNotFound},
		{"too many parts", "GET", "/v1/vms/a/b/c/d", nil, nil, 404, blixard.CodeNotFound},
		{"empty part", "GET", "/v1/vms//web-1", nil, nil, 404, blixard.CodeNotFound},
		{"escaped slash", "GET", "/v1/vms/h1%2Fdb", nil, nil, 400, blixard.CodeInvalid},
		{"method", "POST", "/v1/vms", nil, nil, 405, blixard.CodeInvalid},
		{"odd method", "BREW", "/v1/cluster", nil, nil, 405, blixard.CodeInvalid},
		{"unknown parameter", "GET", "/v1/vms?wathc", nil, nil, 400, blixard.CodeInvalid},
		{"parameter where there is none", "GET", "/v1/cluster?x=1", nil, nil, 400, blixard.CodeInvalid},
		{"parameter twice", "GET", "/v1/events?after=1&after=2", nil, nil, 400, blixard.CodeInvalid},
		{"bad escape", "GET", "/v1/events?vm=%zz", nil, nil, 400, blixard.CodeInvalid},
		{"semicolon", "GET", "/v1/events?vm=a;b", nil, nil, 400, blixard.CodeInvalid},
		{"negative", "GET", "/v1/events?after=-1", nil, nil, 400, blixard.CodeInvalid},
		{"huge limit", "GET", "/v1/events?limit=10001", nil, nil, 400, blixard.CodeInvalid},
		{"bad address", "GET", "/v1/events?vm=a/b/c/d", nil, nil, 400, blixard.CodeInvalid},
		{"long query", "GET", "/v1/events?vm=" + strings.Repeat("a", maxQuery), nil, nil, 413, blixard.CodeTooLarge},
		{"long name", "GET", "/v1/vms/" + strings.Repeat("a", blixard.MaxName+1), nil, nil, 400, blixard.CodeInvalid},
		{"bad Last-Event-ID", "GET", "/v1/events?follow", http.Header{"Last-Event-Id": {"x"}}, nil, 400, blixard.CodeInvalid},
		{"body", "PUT", "/v1/vms/db", nil, strings.NewReader("{}"), 400, blixard.CodeInvalid},
		{"chunked body", "DELETE", "/v1/vms/db", nil, io.MultiReader(strings.NewReader("{}")), 400, blixard.CodeInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			resp, body := d.do(c.method, c.target, c.header, c.body)
			e := decodeError([]byte(body))
			if resp.StatusCode != c.status || e == nil || e.Code != c.code {
				t.Errorf("status %d, want %d: %s", resp.StatusCode, c.status, body)
			}
			if got := resp.Header.Get("Content-Type"); got != "application/json" {
				t.Errorf("Content-Type %q", got)
			}
		})
	}
}

func TestServer_Methods(t *testing.T) {
	d := newDaemon(t, nil)
	resp, body := d.do("OPTIONS", "/v1/vms/db", nil, nil)
	if got := resp.Header.Get("Allow"); resp.StatusCode != http.StatusNoContent || got != "DELETE, GET, HEAD, OPTIONS, PUT" || body != "" {
		t.Errorf("OPTIONS: %d, Allow %q, %q", resp.StatusCode, got, body)
	}
	resp, _ = d.do("DELETE", "/v1/cluster", nil, nil)
	if got := resp.Header.Get("Allow"); got != "GET, HEAD, OPTIONS" {
		t.Errorf("Allow %q", got)
	}
	get, body := d.do("GET", "/v1/cluster", nil, nil)
	head, none := d.do("HEAD", "/v1/cluster", nil, nil)
	if head.StatusCode != 200 || none != "" || head.ContentLength != int64(len(body)) || get.Header.Get("Content-Type") != head.Header.Get("Content-Type") {
		t.Errorf("HEAD: %d, %d bytes announced of %d, %q", head.StatusCode, head.ContentLength, len(body), none)
	}
	for _, target := range []string{"/v1/vms?watch", "/v1/events?follow"} {
		resp, body := d.do("HEAD", target, nil, nil)
		if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/x-ndjson" || body != "" {
			t.Errorf("HEAD %s: %d %q", target, resp.StatusCode, body)
		}
	}
}

// odd are names that a path or a shell may take for something else.
var odd = []string{".", "..", "-rf", "a b", "a@b", `\x2d`, "new\nline", "\x00", "\x1b]0;x\a", "\u202ertl", "%2e", "a%2Fb", "?q", "#f", "a;b", "ü", "\xff\xfe", "system", "user:1000", "+", "&"}

// TestServer_AnyName asks for VMs of every odd name, with the client and as
// bytes on the wire.
func TestServer_AnyName(t *testing.T) {
	d := newDaemon(t, nil)
	d.fleet.Change(func(s *apitest.Script) {
		s.VMs = nil
		for _, name := range odd {
			id := blixard.VMID{Node: "h1", Manager: blixard.SystemManager, Name: name}
			s.VMs = append(s.VMs, blixard.VM{Name: name, ID: id.String(), Node: "h1", Manager: id.Manager, VMStatus: blixard.VMStatus{State: blixard.StateStopped}})
		}
	})
	c := d.client(nil)
	for _, name := range odd {
		for _, ref := range []blixard.VMRef{{Name: name}, {Node: "h1", Name: name}, {Node: "h1", Manager: "system", Name: name}, {Manager: "system", Name: name}} {
			l, err := c.VM(t.Context(), ref)
			if err != nil {
				t.Errorf("%+q: %v", ref, err)
				continue
			}
			if want := strings.ToValidUTF8(name, "\ufffd"); len(l.Items) != 1 || strings.ReplaceAll(l.Items[0].Name, "\ufffd", "") != strings.ReplaceAll(want, "\ufffd", "") {
				t.Errorf("%+q: got %+q", ref, l.Items[0].Name)
			}
		}
	}
}

func TestServer_Hides(t *testing.T) {
	var log bytes.Buffer
	d := newDaemon(t, nil)
	d.stop()
	d.config.Logger = newLog(&log)
	d.config.Fleet = failing{d.fleet}
	d.start()
	resp, body := d.do("GET", "/v1/nodes", nil, nil)
	if resp.StatusCode != 500 || strings.Contains(body, "secret") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	d.stop()
	if !strings.Contains(log.String(), "secret") {
		t.Errorf("the log does not say why: %s", log.String())
	}
}

func TestEncode(t *testing.T) {
	in := map[string]string{"k": "a\x1b[31m\u009b\u202e\u200b\U000e0041é😀<b>\u2028\x7f\""}
	b, err := encode(in)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"k":"a\u001b[31m\u009b\u202e\u200b\udb40\udc41é😀<b>\u2028\u007f\""}` + "\n"
	if string(b) != want {
		t.Errorf("got  %swant %s", b, want)
	}
}

func FuzzEncode(f *testing.F) {
	for _, s := range odd {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b, err := encode(map[string]string{s: s})
		if err != nil {
			t.Fatal(err)
		}
		if i := bytes.IndexFunc(b[:len(b)-1], func(r rune) bool { return !unicode.IsGraphic(r) }); i >= 0 {
			t.Fatalf("not graphic at %d: %q", i, b)
		}
		var got map[string]string
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		plain, err := json.Marshal(map[string]string{s: s})
		if err != nil {
			t.Fatal(err)
		}
		var want map[string]string
		if err := json.Unmarshal(plain, &want); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatal(diff)
		}
	})
}

// FuzzPath holds that every address survives its way through a path.
func FuzzPath(f *testing.F) {
	for _, s := range odd {
		f.Add("h1", "user:0", s)
	}
	f.Fuzz(func(t *testing.T, node, manager, name string) {
		want, err := blixard.ParseVMRef(refString(blixard.VMRef{Node: node, Manager: manager, Name: name}))
		if err != nil {
			return
		}
		plain, escaped := vmPath(want)
		u, err := url.Parse(target(plain, escaped, "").String())
		if err != nil {
			t.Fatal(err)
		}
		byMethod, params := match(u.EscapedPath())
		if byMethod["GET"] == nil {
			t.Fatalf("%+q: no route for %s", want, escaped)
		}
		got, err := vmRef(params)
		if err != nil || got != want {
			t.Fatalf("%+q became %+q: %v", want, got, err)
		}
	})
}

// FuzzRequest holds that no path and no query makes a server fail.
func FuzzRequest(f *testing.F) {
	f.Add("/v1/vms/%2E%2E", "")
	f.Add("/v1/events", "vm=h1/web-1&after=1&limit=5")
	f.Add("/v1/events", "follow=false")
	f.Add("/v1/nodes/%00", "a=%zz")
	h, err := NewServer(ServerConfig{Fleet: apitest.New(script()), Authorizer: fixed(RoleAdmin), Logger: quiet})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, path, query string) {
		if q, err := parseQuery(query, []string{"vm", "after", "limit", "follow"}); err == nil {
			if eq, follow, err := q.events(); err == nil {
				again, err := parseQuery(encodeEvents(eq, follow), []string{"vm", "after", "limit", "follow"})
				if err != nil {
					t.Fatal(err)
				}
				if eq2, follow2, err := again.events(); err != nil || eq2 != eq || follow2 != follow {
					t.Fatalf("%+v became %+v: %v", eq, eq2, err)
				}
				if follow {
					return
				}
			}
		}
		u := &url.URL{Path: path, RawPath: path, RawQuery: query}
		if p, err := url.PathUnescape(path); err == nil {
			u.Path = p
		}
		w := &answerRecorder{header: http.Header{}}
		h.ServeHTTP(w, (&http.Request{Method: "HEAD", URL: u, Header: http.Header{}}).WithContext(t.Context()))
		if w.status >= 500 || w.status < 200 {
			t.Fatalf("status %d: %s", w.status, w.body.String())
		}
	})
}

type answerRecorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (w *answerRecorder) Header() http.Header         { return w.header }
func (w *answerRecorder) WriteHeader(status int)      { w.status = status }
func (w *answerRecorder) Write(b []byte) (int, error) { return w.body.Write(b) }

func TestServerConfig_Validate(t *testing.T) {
	if _, err := NewServer(ServerConfig{}); err == nil {
		t.Error("a server without a Fleet was made")
	}
	for _, addr := range []string{"", "http://x", "unix://relative", "unix:///" + strings.Repeat("a", 107), "/a\x00b"} {
		if _, err := Dial(ClientConfig{Addr: addr}); blixard.ErrorCode(err) != blixard.CodeInvalid {
			t.Errorf("Dial %q: %v", addr, err)
		}
	}
}

var errSecret = errors.New("secret")
