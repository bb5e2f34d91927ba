package lab_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/blixard/blixard/lab"
)

// boot opens a lab with running hosts of these names.
func boot(t *testing.T, names ...string) (*lab.Lab, []*lab.Host) {
	t.Helper()
	l := lab.New(t)
	hosts, err := l.Boot(t.Context(), names...)
	if err != nil {
		t.Fatal(err)
	}
	return l, hosts
}

// run executes a command on the host and fails the test if that fails.
func run(t *testing.T, h *lab.Host, argv ...string) string {
	t.Helper()
	out, err := h.Exec(t.Context(), argv...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func TestHost_Start(t *testing.T) {
	began := time.Now()
	_, hosts := boot(t, "h1")
	h := hosts[0]
	t.Logf("up after %v", time.Since(began).Round(time.Millisecond))
	if got := run(t, h, "cat", "/proc/1/comm"); got != "systemd" {
		t.Errorf("PID 1 is %q", got)
	}
	if got := run(t, h, "hostname"); got != "h1" {
		t.Errorf("host name %q", got)
	}
	if got := run(t, h, "systemctl", "list-units", "--failed", "--no-legend", "--plain"); got != "" {
		t.Errorf("failed units: %s", got)
	}
	if got := run(t, h, "systemctl", "--version"); !strings.HasPrefix(got, "systemd 252 ") {
		t.Errorf("systemctl --version: %s", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := h.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if h.Running() {
		t.Error("it runs after Stop")
	}
}
