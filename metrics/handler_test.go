package metrics_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/metrics"
)

// source tells what it holds.
type source struct {
	vms          []blixard.VM
	cluster      blixard.ClusterStatus
	vmErr, clErr error
}

func (s *source) VMs(context.Context) (blixard.List[blixard.VM], error) {
	return blixard.List[blixard.VM]{Items: s.vms}, s.vmErr
}

func (s *source) Cluster(context.Context) (blixard.ClusterStatus, error) { return s.cluster, s.clErr }

// at is when everything in these tests happened.
var at = time.Date(2026, 3, 1, 12, 0, 0, 250e6, time.UTC)

// full is a VM of which everything is known.
func full(name string) blixard.VM {
	return blixard.VM{
		Name: name, ID: "h1/" + name, Node: "h1", Unit: "microvm@" + name + ".service", Manager: "system",
		VMDefinition: blixard.VMDefinition{Hypervisor: "qemu", Config: blixard.ConfigStale},
		VMStatus:     blixard.VMStatus{State: blixard.StateRunning, Restarts: new(uint32(41)), Since: new(at)},
		Health:       &blixard.VMHealth{Status: blixard.Degraded},
		AgeSeconds:   new(1.5),
		Helpers: []blixard.Helper{{Name: "virtiofsd", State: blixard.StateRunning}, {Name: "tap-interfaces", State: blixard.StateFailed},
			{Name: "macvtap-interfaces", State: blixard.StateStopped}, {Name: "pci-devices", State: blixard.StateStopped}, {Name: "set-booted", State: blixard.StateRunning}},
	}
}

// bare is a VM of which nothing is known but that it is there.
func bare(name string) blixard.VM {
	return blixard.VM{Name: name, Node: "h1", Unit: "microvm@" + name + ".service", Manager: "system", VMStatus: blixard.VMStatus{State: blixard.StateUnknown}}
}

func cluster() blixard.ClusterStatus {
	return blixard.ClusterStatus{
		Node: "h1",
		Nodes: []blixard.Node{{Name: "h2"}, {Name: "h1", ID: "4d1e", SystemdVersion: "252", Managers: []blixard.ManagerStatus{
			{Name: "system", Connected: true, LastListing: new(at)}, {Name: "user:1000", Reason: "denied"}}}},
		Store: blixard.StoreStatus{Healthy: true, Revision: 88213, Pending: 2, Buffered: 3, Members: []blixard.MemberStatus{
			{Node: "h1", State: "running", Leader: true, Restarts: 4, DatabaseBytes: 6 << 20, QuotaBytes: 2 << 30}, {Node: "h2", State: "down"}}},
	}
}

// busy is a daemon that did a little of everything.
func busy() *metrics.Self {
	s := metrics.NewSelf("1.2.3", "abcdef0")
	s.BusCall("GetAll", nil)
	s.BusCall("GetAll", errors.New("away"))
	s.BusCall("ListUnitsByPatterns", nil)
	s.Listed("system", 20*time.Millisecond, nil)
	s.Listed("user:1000", time.Millisecond, nil)
	s.Listed("user:1001", time.Millisecond, errors.New("away"))
	s.Scanned(time.Millisecond, false)
	s.Wrote(&blixard.Batch{Commands: make([]blixard.Command, 3), Events: []blixard.Event{{Type: blixard.EventState}, {Type: blixard.EventState}, {Type: blixard.EventRestart}}}, 4*time.Millisecond, nil)
	s.Wrote(&blixard.Batch{Events: []blixard.Event{{Type: blixard.EventState}}}, time.Second, blixard.Errorf(blixard.CodeTimeout, "late"))
	return s
}

// openMetrics is the Accept header of a reader that prefers OpenMetrics.
const openMetrics = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"

func get(t testing.TB, s metrics.Source, self *metrics.Self, accept string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil)
	r.Header.Set("Accept", accept)
	w := httptest.NewRecorder()
	metrics.NewHandler(s, self).ServeHTTP(w, r)
	return w
}

func parse(t testing.TB, text string) map[string]*dto.MetricFamily {
	t.Helper()
	p := expfmt.NewTextParser(model.LegacyValidation)
	families, err := p.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatalf("cannot be read back: %v", err)
	}
	return families
}

// samples are the samples that begin with a prefix, in the page's order.
func samples(text, prefix string) []string {
	var out []string
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, prefix) {
			out = append(out, strings.TrimSuffix(line, "\n"))
		}
	}
	return out
}

func TestHandler_VMs(t *testing.T) {
	w := get(t, &source{vms: []blixard.VM{full("web-1"), bare("db-1"), {Name: "u", Node: "h1", Manager: "user:1000", Unit: "microvm-u.service",
		VMDefinition: blixard.VMDefinition{Config: blixard.ConfigCurrent}, VMStatus: blixard.VMStatus{State: blixard.StateStopped, Since: new(at)}, Stale: true}}, cluster: cluster()}, busy(), "")
	if w.Code != 200 || w.Header().Get("Content-Type") != "text/plain; version=0.0.4; charset=utf-8" {
		t.Errorf("status %d, type %s", w.Code, w.Header().Get("Content-Type"))
	}
	want := []string{
		`blixard_vm_info{vm="web-1",manager="system",unit="microvm@web-1.service",hypervisor="qemu"} 1`,
		`blixard_vm_info{vm="db-1",manager="system",unit="microvm@db-1.service"} 1`,
		`blixard_vm_info{vm="u",manager="user:1000",unit="microvm-u.service"} 1`,
	}
	for _, vm := range []struct{ labels, state string }{{`vm="web-1",manager="system"`, "running"}, {`vm="db-1",manager="system"`, "unknown"}, {`vm="u",manager="user:1000"`, "stopped"}} {
		for _, state := range []string{"starting", "running", "stopping", "stopped", "failed", "crashlooping", "unknown"} {
			value := 0
			if state == vm.state {
				value = 1
			}
			want = append(want, fmt.Sprintf(`blixard_vm_state{%s,state="%s"} %d`, vm.labels, state, value))
		}
	}
	want = append(want,
		`blixard_vm_health{vm="web-1",manager="system",status="healthy"} 0`,
		`blixard_vm_health{vm="web-1",manager="system",status="degraded"} 1`,
		`blixard_vm_health{vm="web-1",manager="system",status="critical"} 0`,
		`blixard_vm_health{vm="web-1",manager="system",status="unknown"} 0`,
		`blixard_vm_start_time_seconds{vm="web-1",manager="system"} 1772366400.25`,
		`blixard_vm_restarts_total{vm="web-1",manager="system"} 41`,
		`blixard_vm_helper_state{vm="web-1",manager="system",helper="virtiofsd",state="running"} 1`,
		`blixard_vm_helper_state{vm="web-1",manager="system",helper="tap-interfaces",state="failed"} 1`,
		`blixard_vm_helper_state{vm="web-1",manager="system",helper="macvtap-interfaces",state="stopped"} 1`,
		`blixard_vm_helper_state{vm="web-1",manager="system",helper="pci-devices",state="stopped"} 1`,
		`blixard_vm_helper_state{vm="web-1",manager="system",helper="set-booted",state="running"} 1`,
		`blixard_vm_config_pending{vm="web-1",manager="system"} 1`,
		`blixard_vm_config_pending{vm="u",manager="user:1000"} 0`,
		`blixard_vm_stale{vm="web-1",manager="system"} 0`,
		`blixard_vm_stale{vm="db-1",manager="system"} 0`,
		`blixard_vm_stale{vm="u",manager="user:1000"} 1`,
		`blixard_vm_sample_age_seconds{vm="web-1",manager="system"} 1.5`,
	)
	if d := cmp.Diff(want, samples(w.Body.String(), "blixard_vm_")); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

// TestHandler_OtherNodes holds that only the answering node's VMs are told: two
// nodes may have VMs of one name, and their series would be the same.
func TestHandler_OtherNodes(t *testing.T) {
	other := full("web-1")
	other.Node = "h2"
	text := get(t, &source{vms: []blixard.VM{other, full("web-1")}, cluster: cluster()}, busy(), "").Body.String()
	if got := samples(text, "blixard_vm_info"); len(got) != 1 {
		t.Errorf("got %v", got)
	}
	if got := samples(text, "blixard_vms"); !slices.Equal(got, []string{"blixard_vms 1"}) {
		t.Errorf("got %v", got)
	}
}

func TestHandler_Node(t *testing.T) {
	text := get(t, &source{cluster: cluster()}, busy(), "").Body.String()
	want := []string{
		`blixard_node_info{node="h1",id="4d1e",systemd_version="252"} 1`,
		`blixard_manager_connected{manager="system"} 1`,
		`blixard_manager_connected{manager="user:1000"} 0`,
		`blixard_manager_last_listing_timestamp_seconds{manager="system"} 1772366400.25`,
		`blixard_vms 0`,
		`blixard_store_healthy 1`,
		`blixard_store_revision 88213`,
		`blixard_store_pending_commands 2`,
		`blixard_store_buffered_events 3`,
		`blixard_store_member_state{member="h1",state="running"} 1`,
		`blixard_store_member_state{member="h1",state="starting"} 0`,
		`blixard_store_member_state{member="h1",state="down"} 0`,
		`blixard_store_member_state{member="h1",state="hung"} 0`,
		`blixard_store_member_state{member="h2",state="running"} 0`,
		`blixard_store_member_state{member="h2",state="starting"} 0`,
		`blixard_store_member_state{member="h2",state="down"} 1`,
		`blixard_store_member_state{member="h2",state="hung"} 0`,
		`blixard_store_member_leader{member="h1"} 1`,
		`blixard_store_member_leader{member="h2"} 0`,
		`blixard_store_member_restarts_total{member="h1"} 4`,
		`blixard_store_member_restarts_total{member="h2"} 0`,
		`blixard_store_member_database_bytes{member="h1"} 6291456`,
		`blixard_store_member_quota_bytes{member="h1"} 2147483648`,
	}
	got := append(samples(text, "blixard_node_"), samples(text, "blixard_manager_")...)
	got = append(append(got, samples(text, "blixard_vms")...), slices.DeleteFunc(samples(text, "blixard_store_"), func(s string) bool {
		return strings.HasPrefix(s, "blixard_store_com") // the daemon's own counters
	})...)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestSelf(t *testing.T) {
	text := get(t, &source{cluster: cluster()}, busy(), "").Body.String()
	want := []string{
		`blixard_dbus_calls_total{method="GetAll"} 2`,
		`blixard_dbus_calls_total{method="ListUnitsByPatterns"} 1`,
		`blixard_dbus_call_errors_total{method="GetAll"} 1`,
		`blixard_collect_duration_seconds_count{source="system"} 1`,
		`blixard_collect_duration_seconds_sum{source="system"} 0.02`,
		`blixard_collect_duration_seconds_bucket{source="system",le="0.01"} 0`,
		`blixard_collect_duration_seconds_bucket{source="system",le="0.025"} 1`,
		`blixard_collect_duration_seconds_count{source="user"} 2`,
		`blixard_collect_duration_seconds_count{source="files"} 1`,
		`blixard_collect_errors_total{source="system"} 0`,
		`blixard_collect_errors_total{source="user"} 1`,
		`blixard_collect_errors_total{source="files"} 1`,
		`blixard_store_commit_duration_seconds_count 1`,
		`blixard_store_commit_errors_total{code="timeout"} 1`,
		`blixard_store_commit_errors_total{code="unavailable"} 0`,
		`blixard_store_commands_total 3`,
		`blixard_events_total{type="state"} 2`,
		`blixard_events_total{type="restart"} 1`,
	}
	got := samples(text, "blixard_")
	for _, w := range want {
		if !slices.Contains(got, w) {
			t.Errorf("no %s", w)
		}
	}
	families := parse(t, text)
	last := families["blixard_collect_last_timestamp_seconds"].GetMetric()
	if len(last) != 2 { // the reading of files was not complete
		t.Errorf("times of complete collections: %v", last)
	}
	for _, m := range last {
		if age := time.Since(time.UnixMilli(int64(m.GetGauge().GetValue() * 1000))); age < 0 || age > time.Minute {
			t.Errorf("collected %s ago", age)
		}
	}
	if b := samples(text, "blixard_build_info"); len(b) != 1 || !strings.Contains(b[0], `commit="abcdef0"`) || !strings.Contains(b[0], `version="1.2.3"`) {
		t.Errorf("build: %v", b)
	}
	for _, name := range []string{"go_goroutines", "process_open_fds", "process_resident_memory_bytes"} {
		if families[name] == nil {
			t.Errorf("no %s", name)
		}
	}
}

// TestHandler_Lint holds the page to Prometheus' own rules for names and help.
func TestHandler_Lint(t *testing.T) {
	w := get(t, &source{vms: []blixard.VM{full("web-1")}, cluster: cluster()}, busy(), "")
	problems, err := promlint.New(w.Body).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// hostile are names as a hostile administrator might choose them.
var hostile = []string{
	`a"b`, `a\b`, `a\`, "a\nb", "a\r\nblixard_vm_state 1", "\x1b[31m", "a\xffb", "a\x00b", "é", "名", "\u202egnp.exe", "\u2028", `\x2d`, "{}", "#", "a b", "😀",
	strings.Repeat("x", 255), strings.Repeat("é", 127), strings.Repeat("\xff", 255), strings.Repeat("\xff", 254) + "\xfe", strings.Repeat("名", 500),
}

func TestHandler_HostileNames(t *testing.T) {
	s := &source{cluster: cluster()}
	for _, name := range hostile {
		s.vms = append(s.vms, full(name))
	}
	for _, accept := range []string{"", openMetrics} {
		text := get(t, s, busy(), accept).Body.String()
		if strings.ContainsFunc(text, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) {
			t.Errorf("%q: a character that does not print", accept)
		}
	}
	text := get(t, s, busy(), "").Body.String()
	seen := map[string]bool{}
	for _, m := range parse(t, text)["blixard_vm_info"].GetMetric() {
		for _, l := range m.GetLabel() {
			if len(l.GetValue()) > 255 {
				t.Errorf("label %s of %d bytes", l.GetName(), len(l.GetValue()))
			}
			if l.GetName() == "vm" {
				seen[l.GetValue()] = true
			}
		}
	}
	if len(seen) != len(hostile) {
		t.Errorf("%d VMs have %d names", len(hostile), len(seen))
	}
	for _, plain := range []string{`a"b`, `a\b`, `a\`, "é", "名", `\x2d`, "{}", "a b", "😀", strings.Repeat("x", 255)} {
		if !seen[plain] {
			t.Errorf("%q is not told as it is", plain)
		}
	}
}

// TestHandler_OpenMetrics compares both formats: they say the same.
func TestHandler_OpenMetrics(t *testing.T) {
	s := &source{vms: []blixard.VM{full("web-1"), bare("db-1")}, cluster: cluster()}
	self := busy()
	w := get(t, s, self, openMetrics)
	if got := w.Header().Get("Content-Type"); !strings.HasPrefix(got, "application/openmetrics-text; version=1.0.0") {
		t.Errorf("type %s", got)
	}
	text := w.Body.String()
	if !strings.HasSuffix(text, "\n# EOF\n") || strings.Count(text, "# EOF") != 1 {
		t.Error("does not end as it must")
	}
	if got, want := samples(text, "blixard_vm_"), samples(get(t, s, self, "").Body.String(), "blixard_vm_"); !slices.Equal(got, want) {
		t.Errorf("VMs differ: %s", cmp.Diff(want, got))
	}
	checkOpenMetrics(t, text)
}

// checkOpenMetrics holds a page to what OpenMetrics demands beyond the text
// format: each family in one piece behind its head, and suffixes by type.
func checkOpenMetrics(t *testing.T, text string) {
	t.Helper()
	head := regexp.MustCompile(`^# (HELP|TYPE|UNIT) ([a-z0-9_]+) (.+)$`)
	sample := regexp.MustCompile(`^([a-z0-9_]+)(?:\{(?:[a-z_]+="(?:[^"\\]|\\.)*",?)*\})? \S+( # .*)?$`)
	suffixes := map[string][]string{"gauge": {""}, "unknown": {""}, "counter": {"_total", "_created"}, "info": {"_info"},
		"histogram": {"_bucket", "_count", "_sum", "_created"}, "summary": {"", "_count", "_sum", "_created"}}
	types := map[string]string{}
	family := ""
	for line := range strings.Lines(strings.TrimSuffix(text, "# EOF\n")) {
		line = strings.TrimSuffix(line, "\n")
		if m := head.FindStringSubmatch(line); m != nil {
			if m[2] != family && types[m[2]] != "" {
				t.Errorf("%s: in two pieces", m[2])
			}
			family = m[2]
			if m[1] == "TYPE" {
				types[family] = m[3]
			}
			continue
		}
		m := sample.FindStringSubmatch(line)
		if m == nil {
			t.Errorf("no sample: %s", line)
			continue
		}
		if rest, ok := strings.CutPrefix(m[1], family); !ok || !slices.Contains(suffixes[types[family]], rest) {
			t.Errorf("%s: not of the family %s of type %s", line, family, types[family])
		}
	}
}

func TestHandler_Errors(t *testing.T) {
	for _, s := range []*source{
		{cluster: cluster(), vmErr: blixard.Errorf(blixard.CodeUnavailable, "not yet")},
		{clErr: blixard.Errorf(blixard.CodeUnavailable, "not yet")},
	} {
		w := get(t, s, busy(), "")
		if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "not yet") || strings.Contains(w.Body.String(), "blixard_") {
			t.Errorf("status %d: %s", w.Code, w.Body)
		}
	}
}

// TestHandler_Empty holds that a node that knows nothing yet says so.
func TestHandler_Empty(t *testing.T) {
	text := get(t, &source{cluster: blixard.ClusterStatus{Node: "h1"}}, metrics.NewSelf("dev", ""), "").Body.String()
	for _, absent := range []string{"blixard_node_info", "blixard_manager_", "blixard_vm_", "blixard_store_member_", "blixard_store_revision", "blixard_collect_last"} {
		if got := samples(text, absent); got != nil {
			t.Errorf("%v", got)
		}
	}
	if got := samples(text, "blixard_store_healthy"); !slices.Equal(got, []string{"blixard_store_healthy 0"}) {
		t.Errorf("got %v", got)
	}
	parse(t, text)
}

// TestHandler_Concurrent reads from many at once; pages must not mix.
func TestHandler_Concurrent(t *testing.T) {
	s := &source{cluster: cluster()}
	for i := range 50 {
		s.vms = append(s.vms, full(fmt.Sprintf("vm-%d", i)))
	}
	self := busy()
	h := metrics.NewHandler(s, self)
	want := samples(get(t, s, self, "").Body.String(), "blixard_vm_")
	done := make(chan []string)
	const readers = 8
	for range readers {
		go func() {
			var got []string
			for range 20 {
				w := httptest.NewRecorder()
				h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
				if got = samples(w.Body.String(), "blixard_vm_"); !slices.Equal(got, want) {
					break
				}
				self.BusCall("GetAll", nil)
			}
			done <- got
		}()
	}
	for range readers {
		if got := <-done; !slices.Equal(got, want) {
			t.Error("a page differs")
		}
	}
}

// thousand is a node with a thousand VMs and their helpers.
func thousand() *source {
	s := &source{cluster: cluster()}
	for i := range 1000 {
		s.vms = append(s.vms, full(fmt.Sprintf("tenant-%d-web-%d", i%20, i)))
	}
	return s
}

// discard is a response that is thrown away.
type discard struct {
	header http.Header
	bytes  int
}

func (d *discard) Header() http.Header { return d.header }
func (d *discard) WriteHeader(int)     {}
func (d *discard) Write(b []byte) (int, error) {
	d.bytes += len(b)
	return len(b), nil
}

// TestHandler_Garbage holds the bound on what a scrape of a thousand VMs leaves
// to collect.
func TestHandler_Garbage(t *testing.T) {
	r := testing.Benchmark(BenchmarkHandler_1000VMs)
	if got := r.AllocedBytesPerOp(); got > 10<<20 {
		t.Errorf("%d bytes of garbage a scrape, want at most 10 MiB", got)
	}
	t.Logf("%d VMs: %s, %d bytes of garbage a scrape", 1000, time.Duration(r.NsPerOp()), r.AllocedBytesPerOp())
}

func BenchmarkHandler_1000VMs(b *testing.B) {
	h := metrics.NewHandler(thousand(), busy())
	r := httptest.NewRequestWithContext(b.Context(), http.MethodGet, "/metrics", nil)
	w := &discard{header: http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		w.bytes = 0
		h.ServeHTTP(w, r)
	}
	b.ReportMetric(float64(w.bytes), "bytes/page")
}

// FuzzLabels holds that no name, unit or hypervisor breaks the page.
func FuzzLabels(f *testing.F) {
	for _, name := range hostile {
		f.Add(name, name, "qemu")
	}
	f.Fuzz(func(t *testing.T, name, unit, hypervisor string) {
		if name == "" {
			return // no unit has an empty name
		}
		vm := full(name)
		vm.Unit, vm.Hypervisor = unit, hypervisor
		other := full(name + "-")
		text := get(t, &source{vms: []blixard.VM{vm, other}, cluster: cluster()}, metrics.NewSelf("dev", ""), "").Body.String()
		names := map[string]bool{}
		for _, m := range parse(t, text)["blixard_vm_info"].GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "vm" {
					names[l.GetValue()] = true
				}
				if len(l.GetValue()) > 255 {
					t.Errorf("label of %d bytes", len(l.GetValue()))
				}
			}
		}
		if len(names) != 2 {
			t.Errorf("two VMs have the names %v", names)
		}
		if !bytes.HasSuffix([]byte(text), []byte("\n")) {
			t.Error("the last line does not end")
		}
	})
}

var update = flag.Bool("update", false, "write docs/metrics.md")

// TestDocs holds docs/metrics.md to what is served.
func TestDocs(t *testing.T) {
	families := parse(t, get(t, &source{vms: []blixard.VM{full("web-1")}, cluster: cluster()}, busy(), "").Body.String())
	var b strings.Builder
	b.WriteString("<!-- Made from what is served: go test ./metrics -run TestDocs -update -->\n" +
		"# Metrics\n\n`GET /metrics` on the daemon's socket, and on the address of `metrics.listen` if there\nis one, in Prometheus' text format and in OpenMetrics:\n\n" +
		"```\ncurl --unix-socket /run/blixard/blixard.sock http://localhost/metrics\n```\n\n" +
		"A series is absent when its value is not known, and ends with its VM. Beside these\nare the usual `go_` and `process_` series of the daemon.\n\n" +
		"| series | type | what it tells |\n|---|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(families)) {
		if !strings.HasPrefix(name, "blixard_") {
			continue
		}
		f := families[name]
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", strings.TrimSuffix(name+"{"+strings.Join(labels, ",")+"}", "{}"), strings.ToLower(f.GetType().String()), f.GetHelp())
	}
	const file = "../docs/metrics.md"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(b.String(), string(got)); d != "" {
		t.Errorf("%s does not tell what is served; write it anew with\n\tgo test ./metrics -run TestDocs -update\n(-want +got)\n%s", file, d)
	}
}
