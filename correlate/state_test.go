package correlate

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/blixard/blixard"
)

// serviceStates is every state of a service in systemd 252 to 257 with the unit
// state it counts as (service.c, state_translation_table), and the VM's state.
var serviceStates = []struct {
	sub, active string
	want        blixard.VMState
}{
	{"dead", "inactive", blixard.StateStopped},
	{"condition", "activating", blixard.StateStarting},
	{"start-pre", "activating", blixard.StateStarting},
	{"start", "activating", blixard.StateStarting},
	{"start-post", "activating", blixard.StateStarting},
	{"running", "active", blixard.StateRunning},
	{"exited", "active", blixard.StateStopped},
	{"reload", "reloading", blixard.StateRunning},
	{"reload-signal", "reloading", blixard.StateRunning},
	{"reload-notify", "reloading", blixard.StateRunning},
	{"mounting", "refreshing", blixard.StateRunning},
	{"refresh-extensions", "refreshing", blixard.StateRunning},
	{"stop", "deactivating", blixard.StateStopping},
	{"stop-watchdog", "deactivating", blixard.StateStopping},
	{"stop-sigterm", "deactivating", blixard.StateStopping},
	{"stop-sigkill", "deactivating", blixard.StateStopping},
	{"stop-post", "deactivating", blixard.StateStopping},
	{"final-watchdog", "deactivating", blixard.StateStopping},
	{"final-sigterm", "deactivating", blixard.StateStopping},
	{"final-sigkill", "deactivating", blixard.StateStopping},
	{"failed", "failed", blixard.StateFailed},
	{"dead-before-auto-restart", "inactive", blixard.StateStarting},
	{"failed-before-auto-restart", "failed", blixard.StateStarting},
	{"dead-resources-pinned", "inactive", blixard.StateStopped},
	{"auto-restart", "activating", blixard.StateStarting},
	{"auto-restart-queued", "activating", blixard.StateStarting},
	{"cleaning", "maintenance", blixard.StateStopped},
}

func TestState(t *testing.T) {
	for _, c := range serviceStates {
		if got := State(c.active, c.sub); got != c.want {
			t.Errorf("%s/%s: got %s, want %s", c.active, c.sub, got, c.want)
		}
	}
}

// TestState_total goes through every pair, those systemd never shows among
// them: each is one of the known states, and what is not systemd's is unknown.
func TestState_total(t *testing.T) {
	actives := []string{"active", "reloading", "inactive", "failed", "activating", "deactivating", "maintenance", "refreshing"}
	subs := []string{"", "plugged", "mounted", "listening", "nonsense", "\x1b[31m", "failed\x00"}
	for _, c := range serviceStates {
		subs = append(subs, c.sub)
	}
	for _, active := range actives {
		for _, sub := range subs {
			got := State(active, sub)
			if got == blixard.StateUnknown || got == blixard.StateCrashlooping || !slices.Contains(blixard.VMStates, got) {
				t.Errorf("%q/%q: got %q", active, sub, got)
			}
		}
	}
	for _, active := range []string{"", "Active", "running", "dead", "activ", "active ", "\x1b]0;active\a", "unknown"} {
		for _, sub := range subs {
			if got := State(active, sub); got != blixard.StateUnknown {
				t.Errorf("%q/%q: got %s, want unknown", active, sub, got)
			}
		}
	}
}

func TestHelperState(t *testing.T) {
	for _, c := range []struct {
		active, sub string
		want        blixard.VMState
	}{
		{"active", "exited", blixard.StateRunning}, // a oneshot that remains
		{"active", "running", blixard.StateRunning},
		{"inactive", "dead", blixard.StateStopped}, // its condition did not hold: normal
		{"failed", "failed", blixard.StateFailed},
		{"activating", "start", blixard.StateStarting},
		{"deactivating", "stop", blixard.StateStopping},
		{"nonsense", "exited", blixard.StateUnknown},
	} {
		if got := HelperState(c.active, c.sub); got != c.want {
			t.Errorf("%s/%s: got %s, want %s", c.active, c.sub, got, c.want)
		}
	}
}

// restarts of systemd: whether a unit with the setting is started again after
// the result, unless it was told to stop (service.c, service_shall_restart).
func shallRestart(setting, result string) bool {
	if result == "exec-condition" {
		return false
	}
	switch setting {
	case "always":
		return true
	case "on-success":
		return result == "success"
	case "on-failure":
		return result != "success"
	case "on-abnormal":
		return result != "success" && result != "exit-code"
	case "on-abort":
		return result == "signal" || result == "core-dump"
	case "on-watchdog":
		return result == "watchdog"
	}
	return false
}

var (
	restartSettings = []string{"no", "always", "on-success", "on-failure", "on-abnormal", "on-abort", "on-watchdog", "nonsense", ""}
	results         = []string{"resources", "protocol", "timeout", "exit-code", "signal", "core-dump", "watchdog",
		"start-limit-hit", "oom-kill", "exec-condition", "nonsense"}
)

// TestTracker_failed puts a unit that ran into failed, for every setting and
// result, with and without a stop job: a stop that was asked for is no failure,
// and nothing else is taken for one.
func TestTracker_failed(t *testing.T) {
	for _, setting := range restartSettings {
		for _, result := range results {
			for _, job := range []bool{false, true} {
				w := newWorld()
				w.records()
				u := w.unit("system", "web")
				u.restart = setting
				u.state("active", "running")
				w.list("system")
				if job {
					u.state("deactivating", "stop-sigterm")
					u.job = "stop"
					w.hint("system", "web")
					u.job = ""
				}
				u.state("failed", "failed")
				u.result = result
				w.list("system")
				got := w.view("system", "web")
				name := fmt.Sprintf("Restart=%s Result=%s stop job %v", setting, result, job)
				intended := got.State == blixard.StateStopped && got.Intended
				if !intended && (got.State != blixard.StateFailed || got.Intended) {
					t.Errorf("%s: got %s, intended %v", name, got.State, got.Intended)
					continue
				}
				switch {
				case result == "start-limit-hit" && intended:
					t.Errorf("%s: taken for an intended stop", name)
				case result != "start-limit-hit" && job && !intended:
					t.Errorf("%s: taken for a failure", name)
				case !job && intended && !shallRestart(setting, result):
					t.Errorf("%s: taken for an intended stop, but systemd leaves such a unit in failed by itself", name)
				case !job && !intended && (setting == "always" || setting == "on-failure") && (result == "exit-code" || result == "signal" || result == "timeout" || result == "core-dump"):
					t.Errorf("%s: a VM without a shutdown command ends like this when it is stopped", name)
				}
				wantHealth := blixard.Critical
				if intended {
					wantHealth = blixard.Healthy
				}
				if got.Health == nil || got.Health.Status != wantHealth {
					t.Errorf("%s: %s and health %v", name, got.State, got.Health)
				}
			}
		}
	}
}

// TestTracker_ended looks at how the end of a run is told.
func TestTracker_ended(t *testing.T) {
	for _, c := range []struct {
		code, status int32
		exit         *int32
		signal       string
	}{
		{0, 0, nil, ""},
		{1, 0, ptr(int32(0)), ""},
		{1, 3, ptr(int32(3)), ""},
		{1, 255, ptr(int32(255)), ""},
		{2, 9, nil, "SIGKILL"},
		{2, 15, nil, "SIGTERM"},
		{3, 11, nil, "SIGSEGV"},
		{3, 6, nil, "SIGABRT"},
		{2, 31, nil, "SIGSYS"},
		{2, 34, nil, "signal 34"},
		{2, 0, nil, "signal 0"},
		{2, -1, nil, "signal -1"},
		{7, 5, nil, ""},
	} {
		w := newWorld()
		w.records()
		u := w.unit("system", "web")
		u.restart = "no"
		u.state("active", "running")
		w.list("system")
		if got := w.view("system", "web"); got.ExitCode != nil || got.ExitSignal != "" || got.Result != "" {
			t.Errorf("a running VM shows the end of a run: %+v", got.VMStatus)
		}
		u.state("failed", "failed")
		u.result, u.code, u.exit = "exit-code", c.code, c.status
		w.list("system")
		got := w.view("system", "web")
		if fmt.Sprint(deref(got.ExitCode)) != fmt.Sprint(deref(c.exit)) || got.ExitSignal != c.signal {
			t.Errorf("code %d status %d: got exit %v signal %q", c.code, c.status, deref(got.ExitCode), got.ExitSignal)
		}
	}
}

// TestTracker_neverRan: systemd says success of a unit that never ran.
func TestTracker_neverRan(t *testing.T) {
	w := newWorld()
	w.records()
	u := w.unit("system", "web")
	u.state("inactive", "dead")
	u.inv, u.started = "", time.Time{}
	w.list("system")
	got := w.view("system", "web")
	if got.State != blixard.StateStopped || got.Result != "" || got.ExitCode != nil || got.Intended {
		t.Errorf("got %+v", got.VMStatus)
	}
}

// TestTracker_ready: only a unit that notifies tells whether the guest is up.
func TestTracker_ready(t *testing.T) {
	for _, c := range []struct {
		typ, active, sub string
		want             *bool
	}{
		{"simple", "active", "running", nil},
		{"exec", "active", "running", nil},
		{"simple", "activating", "start", nil},
		{"notify", "activating", "start", ptr(false)},
		{"notify", "active", "running", ptr(true)},
		{"notify-reload", "active", "running", ptr(true)},
		{"notify-reload", "reloading", "reload-notify", ptr(true)},
		{"notify", "activating", "auto-restart", ptr(false)},
		{"notify", "deactivating", "stop", ptr(false)},
		{"notify", "inactive", "dead", ptr(false)},
	} {
		w := newWorld()
		w.records()
		u := w.unit("system", "web")
		u.typ = c.typ
		u.state(c.active, c.sub)
		w.list("system")
		got := w.view("system", "web")
		if fmt.Sprint(deref(got.Ready)) != fmt.Sprint(deref(c.want)) {
			t.Errorf("%s %s/%s: got ready %v, want %v", c.typ, c.active, c.sub, deref(got.Ready), deref(c.want))
		}
		if _, why := got.Unavailable["ready"]; got.State == blixard.StateRunning && why != (c.want == nil) {
			t.Errorf("%s %s/%s: reason for an absent readiness: %v", c.typ, c.active, c.sub, why)
		}
	}
}

func ptr[T any](v T) *T { return &v }

func deref[T any](p *T) any {
	if p == nil {
		return nil
	}
	return *p
}
