package main

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/blixard/blixard"
)

func TestResult_String(t *testing.T) {
	for _, tt := range []struct {
		r    result
		want string
	}{
		{result{name: "a", value: 10, goal: atLeast(10), unit: "x", digits: 1}, "a 10.0x >=10.0x ok"},
		{result{name: "a", value: 9.99, goal: atLeast(10), unit: "x", digits: 2}, "a 9.99x >=10.00x short"},
		{result{name: "a", value: 0, goal: atMost(0)}, "a 0 <=0 ok"},
		{result{name: "a", value: 1, goal: atMost(0)}, "a 1 <=0 short"},
		{result{name: "a", value: math.NaN(), goal: atMost(0)}, "a NaN <=0 short"},
		{result{name: "a", value: math.NaN(), goal: atLeast(0)}, "a NaN >=0 short"},
		{result{name: "a", goal: atMost(1), absent: "no peer"}, "a - - absent"},
		{result{name: "a", goal: atMost(1), failed: errors.New("broken")}, "a - - short"},
	} {
		if got := tt.r.String(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

func TestQuantile(t *testing.T) {
	samples := []int{9, 1, 8, 2, 7, 3, 6, 4, 5, 10}
	for q, want := range map[float64]int{0: 1, 0.1: 1, 0.5: 5, 0.51: 6, 0.9: 9, 0.99: 10, 1: 10} {
		if got := quantile(samples, q); got != want {
			t.Errorf("quantile %v is %d, want %d", q, got, want)
		}
	}
	if samples[0] != 9 {
		t.Error("the samples were sorted in place")
	}
	if got := median([]time.Duration(nil)); got != 0 {
		t.Errorf("the median of nothing is %s", got)
	}
}

func TestHistogram(t *testing.T) {
	inf := math.Inf(1)
	before := histogram{buckets: []bucket{{0.001, 5}, {0.01, 10}, {inf, 10}}, sum: 1, count: 10}
	after := histogram{buckets: []bucket{{0.001, 5}, {0.01, 18}, {inf, 20}}, sum: 3, count: 20}
	d, err := after.since(before)
	if err != nil {
		t.Fatal(err)
	}
	want := histogram{buckets: []bucket{{0.001, 0}, {0.01, 8}, {inf, 10}}, sum: 2, count: 10}
	if diff := cmp.Diff(want, d, cmp.AllowUnexported(histogram{}, bucket{})); diff != "" {
		t.Error(diff)
	}
	if after.buckets[1].count != 18 {
		t.Error("the later histogram was changed")
	}
	near := func(what string, got, want float64) {
		if math.Abs(got-want) > 1e-9 {
			t.Errorf("%s is %v, want %v", what, got, want)
		}
	}
	// The fifth of eight in the second bucket.
	near("p50", d.quantile(0.5), 0.001+0.009*5/8)
	near("p99", d.quantile(0.99), 0.01)
	near("mean", d.mean(), 0.2)
	if fresh, err := after.since(histogram{}); err != nil || fresh.count != 20 {
		t.Errorf("since nothing: %v, %v", fresh, err)
	}
	if _, err := before.since(after); err == nil {
		t.Error("a histogram that shrank was compared")
	}
	if got := (histogram{}).quantile(0.5); !math.IsNaN(got) {
		t.Errorf("the median of no samples is %v", got)
	}
}

func TestParsePage(t *testing.T) {
	p, err := parsePage(`# HELP blixard_vm_state x
# TYPE blixard_vm_state gauge
blixard_vm_state{vm="a",manager="system",state="running"} 1
blixard_vm_state{vm="a",manager="system",state="failed"} 0
blixard_vm_state{vm="b",manager="system",state="running"} 1

blixard_vms 2
blixard_collect_duration_seconds_bucket{source="system",le="0.5"} 3
blixard_collect_duration_seconds_bucket{source="system",le="+Inf"} 4
blixard_collect_duration_seconds_sum{source="system"} 1.25e+00
blixard_collect_duration_seconds_count{source="system"} 4
blixard_collect_duration_seconds_count{source="files"} 7
`)
	if err != nil {
		t.Fatal(err)
	}
	if got := p.sum("blixard_vm_state", "state", "running"); got != 2 {
		t.Errorf("%v running", got)
	}
	if got := p.value("blixard_vms"); got != 2 {
		t.Errorf("%v VMs", got)
	}
	if p.listings() != 4 || p.readings() != 7 {
		t.Errorf("%d listings, %d readings", p.listings(), p.readings())
	}
	h, err := p.histogram("blixard_collect_duration_seconds", "source", "system")
	want := histogram{buckets: []bucket{{0.5, 3}, {math.Inf(1), 4}}, sum: 1.25, count: 4}
	if diff := cmp.Diff(want, h, cmp.AllowUnexported(histogram{}, bucket{})); diff != "" || err != nil {
		t.Error(err, diff)
	}
	if h, err := p.histogram("no_such", "", ""); err != nil || h.count != 0 {
		t.Errorf("%v, %v of a histogram that is not there", h, err)
	}
	for _, bad := range []string{"novalue", "name one"} {
		if _, err := parsePage(bad); err == nil {
			t.Errorf("%q was parsed", bad)
		}
	}
}

func TestDifferences(t *testing.T) {
	want, err := parseTruths(`Id=microvm@a.service
ActiveState=active
SubState=running
InvocationID=11
NRestarts=2

Id=microvm@b.service
ActiveState=activating
SubState=auto-restart
InvocationID=22
NRestarts=1
`)
	if err != nil {
		t.Fatal(err)
	}
	if w := (truth{"active", "running", "11", 2}); want["a"] != w {
		t.Fatalf("a is %v, want %v", want["a"], w)
	}
	if got := differences(want, nil); len(got) != 2 {
		t.Errorf("nothing is shown: %q", got)
	}
	delete(want, "b")
	restarts := func(n uint32) *uint32 { return &n }
	for _, tt := range []struct {
		status blixard.VMStatus
		want   string
	}{
		{blixard.VMStatus{State: blixard.StateRunning, Substate: "running", InvocationID: "11", Restarts: restarts(2)}, ""},
		{blixard.VMStatus{State: blixard.StateStarting, Substate: "running", InvocationID: "11", Restarts: restarts(2)}, "shown as starting"},
		{blixard.VMStatus{State: blixard.StateRunning, Substate: "running", InvocationID: "10", Restarts: restarts(2)}, "shown as run 10"},
		{blixard.VMStatus{State: blixard.StateRunning, Substate: "running", InvocationID: "11", Restarts: restarts(1)}, "shown with 1 restarts"},
		{blixard.VMStatus{State: blixard.StateRunning, Substate: "running", InvocationID: "11"}, "shown with unknown restarts"},
	} {
		got := differences(want, map[string]*blixard.VM{"a": {Name: "a", VMStatus: tt.status}})
		if ok := len(got) == 0 && tt.want == "" || len(got) == 1 && tt.want != "" && strings.Contains(got[0], tt.want); !ok {
			t.Errorf("%+v: %q, want %q", tt.status, got, tt.want)
		}
	}
	if got := differences(nil, map[string]*blixard.VM{"z": {}}); len(got) != 1 {
		t.Errorf("a VM too many: %q", got)
	}
}

func TestRSSBound(t *testing.T) {
	if got := rssBound(1000); got != 40e6+1000*32768 {
		t.Errorf("bound of 1000 VMs is %v", got)
	}
}

// A process's clock is compared with what the kernel says of it when it is
// waited for.
func TestCPUTime(t *testing.T) {
	cmd := exec.Command("sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo done; read line")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fscanln(out, new(string)); err != nil {
		t.Fatal(err)
	}
	clock, err := cpuTime(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	m, err := memoryOf(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	in.Close()
	_ = cmd.Wait() // read fails at the end of its input
	used := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	if clock <= 0 || clock > used+10*time.Millisecond || clock < used/2 {
		t.Errorf("the clock says %s, the kernel %s", clock, used)
	}
	if m.resident < int64(os.Getpagesize()) || m.anonymous > m.resident || m.peak < m.resident {
		t.Errorf("memory %+v", m)
	}
	if _, err := cpuTime(cmd.Process.Pid); err == nil {
		t.Error("a process that is gone has a clock")
	}
}

func TestRun_Usage(t *testing.T) {
	for _, args := range [][]string{{"-run", "["}, {"-n", "0"}, {"more"}, {"-run", "no_such_figure"}, {"-x"}} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), args, &out, &errs); code != 2 || out.Len() > 0 || errs.Len() == 0 {
			t.Errorf("%q: code %d, output %q, errors %q", args, code, out.String(), errs.String())
		}
	}
}

func TestSteps(t *testing.T) {
	seen := map[string]int{}
	for _, s := range steps() {
		for _, name := range s.figures {
			seen[name]++
		}
	}
	// Both sizes of the crowd are needed for the one figure.
	if seen["cost_per_vm_4000_over_1000"] != 2 {
		t.Error("cost_per_vm_4000_over_1000 is not measured with both crowds")
	}
	delete(seen, "cost_per_vm_4000_over_1000")
	for name, n := range seen {
		if n != 1 {
			t.Errorf("%s is measured %d times", name, n)
		}
	}
}
