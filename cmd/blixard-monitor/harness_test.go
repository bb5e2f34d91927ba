package main_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/lab"
)

// programs builds the shipped programs once for all tests.
var programs = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "blixard-programs-")
	if err != nil {
		return "", err
	}
	return dir, lab.BuildBlixard(context.Background(), dir)
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := programs(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// site is a host that runs blixard-monitor under the unit files that ship.
type site struct {
	*lab.Host
	t *testing.T
}

// newSite boots a host with microvm.nix's units and the programs installed; the
// daemon is not started. users brings the drop-in for users' managers.
func newSite(t *testing.T, users bool) *site {
	t.Helper()
	l := lab.New(t)
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	hosts, err := l.Boot(t.Context(), "h1")
	if err != nil {
		t.Fatal(err)
	}
	s := &site{hosts[0], t}
	s.ok(s.InstallMicroVM(t.Context(), lab.MicroVMOptions{}))
	s.ok(s.InstallBlixard(t.Context(), dir, users))
	// Tests do not wait for half a minute.
	s.ok(s.WriteFile("/etc/blixard/config.toml", []byte("interval = \"2s\"\n"), 0o644))
	return s
}

// start starts the daemon; READY means that it serves.
func (s *site) start() {
	s.t.Helper()
	if out, err := s.Exec(s.t.Context(), "systemctl", "start", "blixard-monitor"); err != nil {
		s.t.Fatalf("start blixard-monitor: %v\n%s\n%s", err, out, s.log())
	}
	s.t.Cleanup(func() {
		if s.t.Failed() {
			s.t.Logf("log of blixard-monitor:\n%s", s.log())
		}
	})
}

func (s *site) log() string {
	out, _ := s.Exec(context.Background(), "journalctl", "-u", "blixard-monitor", "-n", "60", "--no-pager", "-o", "short-precise")
	return out
}

func (s *site) ok(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// exec runs a command on the host that must work.
func (s *site) exec(argv ...string) string {
	s.t.Helper()
	out, err := s.Exec(s.t.Context(), argv...)
	if err != nil {
		s.t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return strings.TrimSuffix(out, "\n")
}

// code runs a command on the host and returns its exit code and everything it
// wrote.
func (s *site) code(argv ...string) (int, string) {
	s.t.Helper()
	c := s.Command(s.t.Context(), argv...)
	var out strings.Builder
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return e.ExitCode(), out.String()
	}
	s.ok(err)
	return 0, out.String()
}

// end ends a daemon that was started by hand; it must end in order.
func (s *site) end(c *lab.Cmd) {
	s.t.Helper()
	// The oldest process of that name is the daemon; its member is its child.
	s.exec("pkill", "--oldest", "-TERM", "-x", "blixard-monitor")
	if err := c.Wait(); err != nil {
		s.t.Errorf("the daemon did not end in order: %v", err)
	}
}

// get reads a list through the CLI.
func get[T any](s *site, argv ...string) blixard.List[T] {
	s.t.Helper()
	var l blixard.List[T]
	out := s.exec(append(append([]string{"blixard"}, argv...), "-o", "json")...)
	if err := json.Unmarshal([]byte(out), &l); err != nil {
		s.t.Fatalf("blixard %s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return l
}

// vms are the VMs by address without the node.
func (s *site) vms() map[string]blixard.VM {
	s.t.Helper()
	out := map[string]blixard.VM{}
	for _, vm := range get[blixard.VM](s, "vm", "list").Items {
		out[strings.TrimPrefix(vm.ID, "h1/")] = vm
	}
	return out
}

// cluster is the state of the store; it may be anything but healthy.
func (s *site) cluster() blixard.ClusterStatus {
	s.t.Helper()
	var c blixard.ClusterStatus
	_, out := s.code("sh", "-c", "blixard cluster status -o json 2>/dev/null")
	if err := json.Unmarshal([]byte(out), &c); err != nil {
		s.t.Fatalf("cluster status: %v\n%s", err, out)
	}
	return c
}

// within waits until check returns nil, and fails with its last error when it
// does not within d.
func (s *site) within(d time.Duration, what string, check func() error) {
	s.t.Helper()
	start := time.Now()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Since(start) > d {
			s.t.Fatalf("%s: not within %s: %v", what, d, err)
		}
		select {
		case <-s.t.Context().Done():
			s.t.Fatalf("%s: %v", what, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// awaitState waits until VMs, by address without the node, are in a state.
func (s *site) awaitState(d time.Duration, state blixard.VMState, names ...string) map[string]blixard.VM {
	s.t.Helper()
	var vms map[string]blixard.VM
	s.within(d, fmt.Sprintf("%v %s", names, state), func() error {
		vms = s.vms()
		for _, n := range names {
			if vm, ok := vms[n]; !ok || vm.State != state {
				return fmt.Errorf("%s is %q (%s)", n, vm.State, vm.Substate)
			}
		}
		return nil
	})
	return vms
}

// events are all kept events in order.
func (s *site) events() []blixard.Event {
	s.t.Helper()
	return get[blixard.Event](s, "events").Items
}

// show is what systemd says of a unit.
func (s *site) show(unit string, properties ...string) map[string]string {
	s.t.Helper()
	out := map[string]string{}
	for _, line := range strings.Split(s.exec("systemctl", "show", "-p", strings.Join(properties, ","), "--", unit), "\n") {
		if k, v, ok := strings.Cut(line, "="); ok {
			out[k] = v
		}
	}
	return out
}
