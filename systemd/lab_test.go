package systemd_test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/lab"
	"github.com/blixard/blixard/systemd"
)

// bootHost gives a running host with microvm.nix's units.
func bootHost(t testing.TB) *lab.Host {
	t.Helper()
	hosts, err := lab.New(t).Boot(t.Context(), "h1")
	if err != nil {
		t.Fatal(err)
	}
	if err := hosts[0].InstallMicroVM(t.Context(), lab.MicroVMOptions{}); err != nil {
		t.Fatal(err)
	}
	return hosts[0]
}

// socket is the path of a socket of the host as this process reaches it.
func socket(t testing.TB, h *lab.Host, path string) string {
	t.Helper()
	pid, err := h.PID()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("/proc/%d/root%s", pid, path)
}

// onSystemBus is the configuration for the host's own manager.
func onSystemBus(t testing.TB, h *lab.Host) systemd.Config {
	return systemd.Config{Address: "unix:path=" + socket(t, h, "/run/dbus/system_bus_socket")}
}

// dial connects, and closes with the test.
func dial(t testing.TB, cfg systemd.Config) *systemd.Conn {
	t.Helper()
	c, err := systemd.Dial(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// exec runs a command on the host.
func exec(t testing.TB, h *lab.Host, argv ...string) string {
	t.Helper()
	out, err := h.Exec(t.Context(), argv...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// addVMs adds VMs and starts them.
func addVMs(t testing.TB, h *lab.Host, vms ...lab.VM) {
	t.Helper()
	var names []string
	for _, vm := range vms {
		if err := h.AddVM(t.Context(), vm); err != nil {
			t.Fatal(err)
		}
		names = append(names, vm.Name)
	}
	if err := h.StartVMs(t.Context(), names...); err != nil {
		t.Fatal(err)
	}
}

// until takes in hints until ok says that all is there. It fails the test after
// ten seconds.
func until(t testing.TB, c *systemd.Conn, ok func(blixard.Hints) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for {
		h, err := c.Hints(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if ok(h) {
			return
		}
	}
}

// refDial connects godbus to the same bus.
func refDial(t testing.TB, h *lab.Host) *dbus.Conn {
	t.Helper()
	ref, err := dbus.Connect("unix:path=" + socket(t, h, "/run/dbus/system_bus_socket"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ref.Close() })
	return ref
}

// refUnit is a row of a listing as godbus stores it.
type refUnit struct {
	Name, Description, Load, Active, Sub, Following string
	Path                                            dbus.ObjectPath
	JobID                                           uint32
	JobType                                         string
	JobPath                                         dbus.ObjectPath
}

func refList(t testing.TB, ref *dbus.Conn, patterns ...string) []refUnit {
	t.Helper()
	var rows []refUnit
	err := ref.Object("org.freedesktop.systemd1", "/org/freedesktop/systemd1").
		Call("org.freedesktop.systemd1.Manager.ListUnitsByPatterns", 0, []string{}, patterns).Store(&rows)
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

func TestConn_ListUnits(t *testing.T) {
	h := bootHost(t)
	addVMs(t, h, lab.VM{Name: "web-1", HostName: "web-one"}, lab.VM{Name: "a.b_c@d:e"})
	// A unit that waits in the queue shows its job.
	exec(t, h, "sh", "-ec", `cat >/run/systemd/system/slow.service <<-E
		[Service]
		Type=oneshot
		ExecStart=sleep 1000
		E
		cat >'/run/systemd/system/microvm@x\x2dy.service' <<-E
		[Service]
		ExecStart=sleep 1000
		E
		systemctl daemon-reload; systemctl start --no-block slow.service; systemctl start 'microvm@x\x2dy.service'`)
	c := dial(t, onSystemBus(t, h))

	got, err := c.ListUnits(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	names := func(units []blixard.Unit) (names []string) {
		for _, u := range units {
			names = append(names, u.Name)
		}
		sort.Strings(names)
		return names
	}
	var want []string
	for line := range strings.Lines(exec(t, h, "systemctl", "list-units", "--all", "--full", "--plain", "--no-legend", "--no-pager")) {
		want = append(want, strings.Fields(line)[0])
	}
	sort.Strings(want)
	if diff := cmp.Diff(want, names(got)); diff != "" {
		t.Errorf("units (-systemctl +Conn):\n%s", diff)
	}
	if len(got) < 50 {
		t.Errorf("only %d units", len(got))
	}

	var ref []blixard.Unit
	for _, r := range refList(t, refDial(t, h)) {
		u := blixard.Unit{Name: r.Name, LoadState: r.Load, ActiveState: r.Active, SubState: r.Sub, Path: string(r.Path)}
		if r.JobID != 0 {
			u.JobType = r.JobType
		}
		ref = append(ref, u)
	}
	// A second listing takes its strings from the first.
	for range 2 {
		if got, err = c.ListUnits(t.Context()); err != nil {
			t.Fatal(err)
		}
		byName := func(a, b blixard.Unit) int { return strings.Compare(a.Name, b.Name) }
		slices.SortFunc(got, byName)
		slices.SortFunc(ref, byName)
		if diff := cmp.Diff(ref, got); diff != "" {
			t.Errorf("units (-godbus +Conn):\n%s", diff)
		}
	}
	i := slices.IndexFunc(got, func(u blixard.Unit) bool { return u.Name == "slow.service" })
	if i < 0 || got[i].JobType != "start" || got[i].ActiveState != "activating" {
		t.Errorf("slow.service: %+v", got)
	}

	some, err := c.ListUnits(t.Context(), "microvm@*.service", "slow.service")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"microvm@a.b_c@d:e.service", "microvm@web-1.service", `microvm@x\x2dy.service`, "slow.service"}, names(some)); diff != "" {
		t.Errorf("by patterns:\n%s", diff)
	}
	// A unit's own name is a pattern that means just it, a backslash too.
	some, err = c.ListUnits(t.Context(), `microvm@x\x2dy.service`)
	if err != nil || len(some) != 1 {
		t.Errorf("by name: %v, %v", some, err)
	}
	some, err = c.ListUnits(t.Context(), "nothing-like-it@*.service")
	if err != nil || len(some) != 0 {
		t.Errorf("no match: %v, %v", some, err)
	}
	// What a bus would hang up for is refused, and the connection lives on.
	for _, bad := range []string{"a\x00b", "\xff", strings.Repeat("x", 1<<20)} {
		if _, err := c.ListUnits(t.Context(), bad); err == nil {
			t.Errorf("pattern %.10q was sent", bad)
		}
	}
	if v, err := c.Version(t.Context()); err != nil || !strings.HasPrefix(v, "252") {
		t.Errorf("version %q, %v", v, err)
	}
}

// refProperties reads a unit's properties with godbus, all interfaces of it one
// by one.
func refProperties(t testing.TB, ref *dbus.Conn, path string) blixard.UnitProperties {
	t.Helper()
	all := map[string]dbus.Variant{}
	for _, iface := range []string{"Unit", "Service"} {
		var m map[string]dbus.Variant
		err := ref.Object("org.freedesktop.systemd1", dbus.ObjectPath(path)).
			Call("org.freedesktop.DBus.Properties.GetAll", 0, "org.freedesktop.systemd1."+iface).Store(&m)
		if err != nil && iface == "Unit" {
			t.Fatal(err)
		}
		for k, v := range m {
			all[k] = v
		}
	}
	p := blixard.UnitProperties{}
	p.Path = path
	store := func(name string, to any) {
		if v, ok := all[name]; ok {
			if err := v.Store(to); err != nil {
				t.Fatal(err)
			}
		}
	}
	moment := func(name string) time.Time {
		var us uint64
		if store(name, &us); us == 0 {
			return time.Time{}
		}
		return time.UnixMicro(int64(us))
	}
	store("Id", &p.Name)
	store("LoadState", &p.LoadState)
	store("ActiveState", &p.ActiveState)
	store("SubState", &p.SubState)
	store("FragmentPath", &p.FragmentPath)
	store("DropInPaths", &p.DropInPaths)
	if len(p.DropInPaths) == 0 {
		p.DropInPaths = nil
	}
	var id []byte
	store("InvocationID", &id)
	p.InvocationID = hex.EncodeToString(id)
	p.StateChange = moment("StateChangeTimestamp")
	var job struct {
		ID   uint32
		Path dbus.ObjectPath
	}
	store("Job", &job)
	p.JobQueued = job.ID != 0
	if _, p.Service = all["MainPID"]; !p.Service {
		return p
	}
	store("Type", &p.Type)
	store("Restart", &p.Restart)
	store("MainPID", &p.MainPID)
	store("ControlGroup", &p.ControlGroup)
	store("NRestarts", &p.NRestarts)
	store("Result", &p.Result)
	store("ExecMainCode", &p.ExecMainCode)
	store("ExecMainStatus", &p.ExecMainStatus)
	p.ExecMainStart = moment("ExecMainStartTimestamp")
	store("StatusText", &p.StatusText)
	return p
}

func TestConn_Properties(t *testing.T) {
	h := bootHost(t)
	addVMs(t, h, lab.VM{Name: "web-1", HostName: "web-one"}, lab.VM{Name: "told", Notify: true, Provenance: lab.Declared})
	exec(t, h, "sh", "-ec", `cat >/run/systemd/system/dies.service <<-E
		[Service]
		ExecStart=sh -c 'kill -SEGV \$\$\$\$'
		E
		cat >/run/systemd/system/fails.service <<-E
		[Service]
		Type=oneshot
		ExecStart=sh -c 'exit 7'
		E
		systemctl daemon-reload; systemctl start dies.service; ! systemctl start fails.service`)
	c := dial(t, onSystemBus(t, h))
	ref := refDial(t, h)
	units, err := c.ListUnits(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	services := 0
	for _, u := range units {
		got, err := c.Properties(t.Context(), u.Path)
		if errors.Is(err, systemd.ErrNoUnit) && u.LoadState == "not-found" {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(refProperties(t, ref, u.Path), got); diff != "" {
			t.Errorf("%s (-godbus +Conn):\n%s", u.Name, diff)
		}
		if got.Service != (strings.HasSuffix(u.Name, ".service")) {
			t.Errorf("%s: Service is %v", u.Name, got.Service)
		}
		if got.Service {
			services++
		}
		switch u.Name {
		case "microvm@web-1.service":
			if got.MainPID == 0 || len(got.InvocationID) != 32 || got.Type != "simple" || got.Restart != "always" ||
				got.ControlGroup != "/system.slice/system-microvm.slice/microvm@web-1.service" || time.Since(got.ExecMainStart) > time.Minute {
				t.Errorf("web-1: %+v", got)
			}
		case "microvm@told.service":
			if got.Type != "notify" || got.StatusText != "guest is up" || len(got.DropInPaths) == 0 {
				t.Errorf("told: %+v", got)
			}
		case "fails.service":
			if got.Result != "exit-code" || got.ExecMainCode != 1 || got.ExecMainStatus != 7 {
				t.Errorf("fails: %+v", got)
			}
		case "dies.service":
			if got.ActiveState == "failed" && (got.ExecMainCode < 2 || got.ExecMainStatus != 11) {
				t.Errorf("dies: %+v", got)
			}
		}
	}
	if services < 5 {
		t.Errorf("only %d services among %d units", services, len(units))
	}

	for _, path := range []string{"/org/freedesktop/systemd1/unit/none_2eservice", "/org/freedesktop/systemd1/none", "/no/such"} {
		if _, err := c.Properties(t.Context(), path); !errors.Is(err, systemd.ErrNoUnit) {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, path := range []string{"/org/freedesktop/systemd1/unit/_ff_00", "", "x", "/a//b", "/a/", "/a-b", "/\xff"} {
		if _, err := c.Properties(t.Context(), path); err == nil || errors.Is(err, systemd.ErrNoUnit) {
			t.Errorf("%q: %v", path, err)
		}
	}
	if _, err := c.ListUnits(t.Context()); err != nil {
		t.Errorf("after refusals: %v", err)
	}
}
