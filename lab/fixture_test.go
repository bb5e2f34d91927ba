package lab_test

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/blixard/blixard/lab"
)

// microVMHost is a running host with microvm.nix's units.
func microVMHost(t *testing.T) *lab.Host {
	t.Helper()
	_, hosts := boot(t, "h1")
	if err := hosts[0].InstallMicroVM(t.Context(), lab.MicroVMOptions{}); err != nil {
		t.Fatal(err)
	}
	return hosts[0]
}

// add lays down the VMs and starts them.
func add(t *testing.T, h *lab.Host, vms ...lab.VM) {
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

// properties are some properties of a unit, one a line as systemctl prints them.
func properties(t *testing.T, h *lab.Host, unit string, names ...string) string {
	t.Helper()
	// Sorted by systemctl's own order, not by that of the names.
	lines := strings.Split(run(t, h, "systemctl", "show", "--property="+strings.Join(names, ","), "--", unit), "\n")
	slices.Sort(lines)
	return strings.Join(lines, " ")
}

// listed are the units that systemctl lists, with their active state.
func listed(t *testing.T, h *lab.Host, pattern string) map[string]string {
	t.Helper()
	units := make(map[string]string)
	for line := range strings.Lines(run(t, h, "systemctl", "list-units", "--all", "--plain", "--no-legend", "--no-pager", "--", pattern)) {
		if f := strings.Fields(line); len(f) > 2 {
			units[f[0]] = f[2]
		}
	}
	return units
}

// link is where a symbolic link on the host points.
func link(t *testing.T, h *lab.Host, path string) string {
	t.Helper()
	return run(t, h, "readlink", "--", path)
}

func TestHost_InstallMicroVM_units(t *testing.T) {
	h := microVMHost(t)
	// systemd finds nothing to complain of in the units.
	out := run(t, h, "sh", "-c", `cd /etc/systemd/system && systemd-analyze verify --man=no --recursive-errors=no microvms.target microvm@x.service \
		microvm-tap-interfaces@x.service microvm-macvtap-interfaces@x.service microvm-pci-devices@x.service microvm-virtiofsd@x.service microvm-set-booted@x.service 2>&1 |
		grep -v 'is not executable: No such file'`+" || true")
	if out != "" {
		t.Errorf("systemd-analyze verify: %s", out)
	}
	if got := run(t, h, "systemctl", "is-active", "microvms.target"); got != "active" {
		t.Errorf("microvms.target is %s", got)
	}
	if got := run(t, h, "stat", "-c", "%U:%G %a", "/var/lib/microvms"); got != "microvm:kvm 775" {
		t.Errorf("state directory: %s", got)
	}
	add(t, h, lab.VM{Name: "x"})
	got := properties(t, h, "microvm@x.service", "Type", "Restart", "RestartUSec", "TimeoutStartUSec", "TimeoutStopUSec", "NotifyAccess", "User", "Group", "IOAccounting", "FragmentPath", "Requires")
	for _, want := range []string{
		"Type=simple", "Restart=always", "RestartUSec=5s", "TimeoutStartUSec=2min 30s", "TimeoutStopUSec=2min 30s",
		"NotifyAccess=all", "User=microvm", "Group=kvm", "IOAccounting=yes", "FragmentPath=/etc/systemd/system/microvm@.service",
		"microvm-tap-interfaces@x.service", "microvm-macvtap-interfaces@x.service", "microvm-pci-devices@x.service",
		"microvm-virtiofsd@x.service", "microvm-set-booted@x.service",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in %s", want, got)
		}
	}
}

func TestHost_AddVM_everything(t *testing.T) {
	h := microVMHost(t)
	add(t, h, lab.VM{
		Name: "web-1", HostName: "web-one", Taps: []string{"vm-web-1"}, Virtiofs: []string{"data"}, PCIDevices: []string{"0000:00:1f.0"},
		Macvtaps: []lab.Macvtap{{ID: "mv-web-1", MAC: "02:00:00:00:00:01", Link: "vmbr", Mode: "bridge"}}, VsockCID: 7,
	}, lab.VM{Name: "plain"})
	for _, unit := range []string{"microvm", "microvm-tap-interfaces", "microvm-macvtap-interfaces", "microvm-pci-devices", "microvm-virtiofsd", "microvm-set-booted"} {
		if got := properties(t, h, unit+"@web-1.service", "ActiveState"); got != "ActiveState=active" {
			t.Errorf("%s@web-1: %s", unit, got)
		}
	}
	// A helper with nothing to do is inactive because of its condition.
	if got := properties(t, h, "microvm-tap-interfaces@plain.service", "ActiveState", "ConditionResult"); got != "ActiveState=inactive ConditionResult=no" {
		t.Errorf("tap helper of a VM without taps: %s", got)
	}
	dir := "/var/lib/microvms/web-1"
	current := link(t, h, dir+"/current")
	if !strings.HasSuffix(current, "-microvm-qemu-web-one") || path.Dir(current) != "/nix/store" || len(path.Base(current)) != 32+len("-microvm-qemu-web-one") {
		t.Errorf("current is %s", current)
	}
	if got := link(t, h, dir+"/booted"); got != current {
		t.Errorf("booted is %s, current %s", got, current)
	}
	share := dir + "/current/share/microvm/"
	for file, want := range map[string]string{
		"hypervisor": "qemu", "vsock-cid": "7", "tap-flags": "vnet_hdr", "tap-interfaces": "vm-web-1",
		"macvtap-interfaces": "mv-web-1 02:00:00:00:00:01 vmbr bridge", "virtiofs/data/socket": "web-one-virtiofs-data.sock",
		"virtiofs/data/source": "/srv/data", "pci-devices": "0000:00:1f.0",
	} {
		if got := run(t, h, "cat", share+file); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	if got := link(t, h, share+"system"); !strings.HasPrefix(got, "/nix/store/") {
		t.Errorf("system is %s", got)
	}
	for _, name := range []string{"vm-web-1", "mv-web-1"} {
		run(t, h, "cat", "/sys/class/net/"+name+"/statistics/rx_bytes")
	}
	if got := run(t, h, "sh", "-c", "stat -c %U:%G /dev/tap$(cat /sys/class/net/mv-web-1/ifindex)"); got != "microvm:kvm" {
		t.Errorf("macvtap's device: %s", got)
	}
	virtiofsd := run(t, h, "sh", "-c", "cat /sys/fs/cgroup$(systemctl show --value -p ControlGroup microvm-virtiofsd@web-1)/cgroup.procs | xargs -I{} cat /proc/{}/comm | sort")
	if virtiofsd != "supervisord\nvirtiofsd" {
		t.Errorf("virtiofsd's cgroup holds %q", virtiofsd)
	}
	if got := properties(t, h, "microvm@web-1.service", "ControlGroup"); got != "ControlGroup=/system.slice/system-microvm.slice/microvm@web-1.service" {
		t.Error(got)
	}
	// A restart makes the tap anew and its counters start at 0.
	before := run(t, h, "cat", "/sys/class/net/vm-web-1/ifindex")
	run(t, h, "systemctl", "restart", "microvm@web-1")
	if after := run(t, h, "cat", "/sys/class/net/vm-web-1/ifindex"); after == before {
		t.Errorf("the tap is still interface %s", after)
	}
	// A stopped VM that nothing wants leaves the list.
	if err := h.StopVMs(t.Context(), "web-1", "plain"); err != nil {
		t.Fatal(err)
	}
	// The helpers stop after it, and it leaves with the last.
	await(t, func() bool { return len(listed(t, h, "microvm*@*")) == 0 })
	if got := run(t, h, "ls", "/sys/class/net"); strings.Contains(got, "web-1") {
		t.Errorf("links after stop: %s", got)
	}
}

func TestHost_AddVM_hypervisors(t *testing.T) {
	h := microVMHost(t)
	comms := map[string]string{
		"qemu": "qemu-system-x86", "cloud-hypervisor": "cloud-hyperviso", "firecracker": "firecracker", "crosvm": "crosvm",
		"kvmtool": "lkvm", "stratovirt": "unbuffer", "alioth": "alioth",
	}
	memory := map[string]string{
		"qemu": "-m 768M -smp 3", "cloud-hypervisor": "size=768M", "crosvm": "-m 768 -c 3", "kvmtool": "-m 768 -c 3",
		"stratovirt": "-m 768 -smp 3", "alioth": "size=768M,backend=memfd --num-cpu 3", "firecracker": "--config-file /nix/store/",
	}
	var vms []lab.VM
	for _, hv := range lab.Hypervisors() {
		vms = append(vms, lab.VM{Name: hv, HostName: "guest-" + hv, Hypervisor: hv, MemoryMB: 768, VCPUs: 3})
	}
	add(t, h, vms...)
	for _, hv := range lab.Hypervisors() {
		unit := "microvm@" + hv + ".service"
		pid := strings.TrimPrefix(properties(t, h, unit, "MainPID"), "MainPID=")
		await(t, func() bool { return run(t, h, "cat", "/proc/"+pid+"/comm") != "bash" })
		if got := run(t, h, "cat", "/proc/"+pid+"/comm"); got != comms[hv] {
			t.Errorf("%s: comm %q, want %q", hv, got, comms[hv])
		}
		raw, err := h.ReadFile("/proc/" + pid + "/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		cmdline := strings.ReplaceAll(string(raw), "\x00", " ")
		if !strings.HasPrefix(cmdline, "microvm@guest-"+hv+" ") || !strings.Contains(cmdline, memory[hv]) {
			t.Errorf("%s: command line %q", hv, cmdline)
		}
		if hv == "firecracker" {
			if got := run(t, h, "sh", "-c", `tr '\0' '\n' < /proc/$1/cmdline | grep '^/nix' | xargs cat`, "sh", pid); !strings.Contains(got, `"mem_size_mib":768`) {
				t.Errorf("firecracker's configuration: %s", got)
			}
		}
		run(t, h, "systemctl", "stop", unit)
	}
	// Where there is no microvm-shutdown a plain stop ends in failure; systemd
	// keeps failed units only.
	want := map[string]string{"microvm@kvmtool.service": "failed", "microvm@stratovirt.service": "failed", "microvm@alioth.service": "failed"}
	got := listed(t, h, "microvm@*")
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("after stop: %v, want %v", got, want)
	}
	if got := properties(t, h, "microvm@kvmtool.service", "Result"); got != "Result=exit-code" {
		t.Error(got)
	}
}

func TestHost_AddZoo(t *testing.T) {
	t.Parallel() // It waits, mostly.
	h := microVMHost(t)
	zoo, err := h.AddZoo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := h.StartVMs(t.Context(), zoo.Running...); err != nil {
		t.Fatal(err)
	}
	for _, name := range zoo.Looping {
		// Whether the start of what crashes at once fails is a race with systemd.
		if _, err := h.Exec(t.Context(), "systemctl", "start", "microvm@"+name); err != nil && name != "crash-at-once" {
			t.Error(err)
		}
	}
	for _, name := range zoo.Failing {
		_, err := h.Exec(t.Context(), "systemctl", "start", "microvm@"+name)
		if err == nil || !strings.Contains(err.Error(), "dependency") {
			t.Errorf("%s: %v, want a failed dependency", name, err)
		}
	}
	for _, name := range zoo.Running {
		if got := properties(t, h, "microvm@"+name+".service", "ActiveState", "SubState"); got != "ActiveState=active SubState=running" {
			t.Errorf("%s: %s", name, got)
		}
	}
	if got := properties(t, h, "microvm@notify.service", "Type", "StatusText"); got != "StatusText=guest is up Type=notify" {
		t.Error(got)
	}
	if out := run(t, h, "ls", "/var/lib/microvms/bare/current/share/microvm"); out != "tap-flags" {
		t.Errorf("bare shares %q", out)
	}
	if got := run(t, h, "cat", "/var/lib/microvms/web-1/flake"); got != "git+file:///etc/nixos" {
		t.Errorf("flake %q", got)
	}
	if old, now := link(t, h, "/var/lib/microvms/deployed/old"), link(t, h, "/var/lib/microvms/deployed/current"); old == now || !strings.HasSuffix(old, "-microvm-qemu-deployed") {
		t.Errorf("old %s, current %s", old, now)
	}
	// A crash loop does not get to failed: it waits out its five seconds, starts
	// and crashes again.
	run(t, h, "sh", "-c", "journalctl --follow --lines=all --unit=microvm@crash-at-once | grep -m1 'restart counter is at 1'")
	for _, name := range zoo.Looping {
		unit := "microvm@" + name + ".service"
		await(t, func() bool {
			return properties(t, h, unit, "ActiveState", "SubState", "NRestarts", "Result") == "ActiveState=activating NRestarts=1 Result=exit-code SubState=auto-restart"
		})
	}
}

func TestHost_declared(t *testing.T) {
	h := microVMHost(t)
	// Off, as the definition comes with the boot.
	if err := h.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, vm := range []lab.VM{
		{Name: "auto", Provenance: lab.Declared, Autostart: true},
		{Name: "manual", Provenance: lab.Declared},
		{Name: "made", Provenance: lab.Imperative},
	} {
		if err := h.AddVM(t.Context(), vm); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := run(t, h, "systemctl", "is-active", "microvms.target", "microvm@auto"); got != "active\nactive" {
		t.Error(got)
	}
	// The install units ran, are done, and are listed because the target wants
	// them; and their ordering has loaded the VM that is not started.
	for unit, want := range map[string]string{
		"install-microvm-auto.service": "inactive", "install-microvm-manual.service": "inactive",
		"microvm@auto.service": "active", "microvm@manual.service": "inactive", "microvm@made.service": "",
	} {
		if got := listed(t, h, unit)[unit]; got != want {
			t.Errorf("%s is %q, want %q", unit, got, want)
		}
	}
	if got := properties(t, h, "install-microvm-manual.service", "Result", "ExecMainStatus", "Type"); got != "ExecMainStatus=0 Result=success Type=oneshot" {
		t.Error(got)
	}
	if got := properties(t, h, "microvm@auto.service", "DropInPaths"); got != "DropInPaths=/etc/systemd/system/microvm@auto.service.d/overrides.conf" {
		t.Error(got)
	}
	link(t, h, "/var/lib/microvms/auto/toplevel")
	// Rebuilt: another current, the same booted.
	if err := h.Rebuild(lab.VM{Name: "auto", Provenance: lab.Declared, Autostart: true}); err != nil {
		t.Fatal(err)
	}
	if current, booted := link(t, h, "/var/lib/microvms/auto/current"), link(t, h, "/var/lib/microvms/auto/booted"); current == booted {
		t.Errorf("current and booted are both %s", current)
	}
	// No longer declared, then its folder gone too: it runs on.
	if err := h.Orphan(t.Context(), "auto", false); err != nil {
		t.Fatal(err)
	}
	if got := listed(t, h, "*microvm*auto*"); got["microvm@auto.service"] != "active" || got["install-microvm-auto.service"] != "" {
		t.Errorf("units of the orphan: %v", got)
	}
	if got := properties(t, h, "microvm@auto.service", "DropInPaths"); got != "DropInPaths=" {
		t.Error(got)
	}
	if err := h.Orphan(t.Context(), "auto", true); err != nil {
		t.Fatal(err)
	}
	if got := listed(t, h, "microvm@auto.service"); got["microvm@auto.service"] != "active" {
		t.Errorf("the orphan without a folder: %v", got)
	}
}

func TestHost_InstallMicroVM_options(t *testing.T) {
	_, hosts := boot(t, "h1")
	h := hosts[0]
	if err := h.InstallMicroVM(t.Context(), lab.MicroVMOptions{
		StateDir: "/srv/vms", UseNotifySockets: true, TimeoutSec: 7, BeforeSetBooted: true, BeforeMachined: true,
	}); err != nil {
		t.Fatal(err)
	}
	add(t, h, lab.VM{Name: "a", Notify: true, Revision: 3})
	if got := properties(t, h, "microvm@a.service", "Type", "TimeoutStartUSec", "WorkingDirectory"); got != "TimeoutStartUSec=7s Type=notify WorkingDirectory=/srv/vms/a" {
		t.Error(got)
	}
	if link(t, h, "/srv/vms/a/booted") != link(t, h, "/srv/vms/a/current") {
		t.Error("booted is not current")
	}
	if got := listed(t, h, "microvm-set-booted@*"); len(got) != 0 {
		t.Errorf("set-booted helpers: %v", got)
	}
	if err := h.StopVMs(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Exec(t.Context(), "readlink", "/srv/vms/a/booted"); err == nil {
		t.Error("booted outlives the VM")
	}
}

func TestHost_oddNames(t *testing.T) {
	h := microVMHost(t)
	var vms []lab.VM
	for _, name := range lab.OddNames() {
		vms = append(vms, lab.VM{Name: name})
	}
	add(t, h, vms...)
	got := listed(t, h, "microvm@*")
	for _, name := range lab.OddNames() {
		if got["microvm@"+name+".service"] != "active" {
			t.Errorf("%q is %q", name, got["microvm@"+name+".service"])
		}
	}
	if len(got) != len(vms) {
		t.Errorf("%d units for %d VMs: %v", len(got), len(vms), got)
	}
}

func TestHost_HostileInstances(t *testing.T) {
	h := microVMHost(t)
	hostile, err := h.HostileInstances(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	units := listed(t, h, "microvm*@*")
	for _, tc := range []struct {
		names  []string
		prefix string
		want   string
	}{
		{hostile.Running, "microvm@", "active"},
		{hostile.Failed, "microvm@", "inactive"},
		{hostile.Failed, "microvm-set-booted@", "failed"},
		{hostile.Refused, "microvm@", ""},
		{hostile.Skipped, "microvm@", "inactive"},
		{hostile.Skipped, "microvm-set-booted@", "active"},
	} {
		for _, name := range tc.names {
			if got := units[tc.prefix+name+".service"]; got != tc.want {
				t.Errorf("%s%s.service is %q, want %q", tc.prefix, name, got, tc.want)
			}
		}
	}
	for _, name := range hostile.Refused {
		if got := properties(t, h, "microvm@"+name+".service", "LoadState"); got != "LoadState=bad-setting" {
			t.Errorf("%s: %s", name, got)
		}
	}
	if got := link(t, h, "/var/lib/microvms/booted"); got != "booted" {
		t.Errorf("booted of the state directory itself is %q", got)
	}
}

func TestHost_Plant(t *testing.T) {
	h := microVMHost(t)
	for _, what := range lab.AllPlanted() {
		if err := h.Plant(string(what), what); err != nil {
			t.Fatal(err)
		}
	}
	dir := "/var/lib/microvms/"
	for command, want := range map[string]string{
		"stat -c %F " + dir + "file":                               "regular file",
		"stat -c %F " + dir + "link":                               "symbolic link",
		"stat -c %F " + dir + "fifo-folder":                        "fifo",
		"stat -c %F " + dir + "fifo/flake":                         "fifo",
		"stat -c %F " + dir + "folder/current":                     "directory",
		"stat -c %s:%b " + dir + "huge/flake":                      "10000000000:8",
		"readlink " + dir + "passwd/current":                       "/etc/passwd",
		"readlink " + dir + "escape/current":                       "../../x",
		"cat " + dir + "escape/../../x/share/microvm/hypervisor":   "somebody's",
		"readlink " + dir + "store-escape/current":                 "/nix/store/../../etc",
		"readlink " + dir + "loop/current":                         "booted",
		"ls -A " + dir + "no-current":                              "",
		"find " + dir + " -mindepth 1 -maxdepth 2 ! -user microvm": "",
	} {
		if got := run(t, h, strings.Fields(command)...); got != want {
			t.Errorf("%s: %q, want %q", command, got, want)
		}
	}
}

func TestHost_AddVMs(t *testing.T) {
	h := microVMHost(t)
	const n = 120
	names, err := h.AddVMs(t.Context(), lab.VM{Name: "c-", HostName: "crowd-", Taps: []string{"tap-c"}}, n)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := h.StartVMs(t.Context(), names[:20]...); err != nil {
		t.Fatal(err)
	}
	t.Logf("started 20 with a tap each in %v", time.Since(began).Round(time.Millisecond))
	if got := listed(t, h, "microvm@*"); len(got) != 20 {
		t.Errorf("%d units", len(got))
	}
	if got := run(t, h, "cat", "/var/lib/microvms/c-120/current/share/microvm/tap-interfaces"); got != "tap-c120" {
		t.Errorf("tap %q", got)
	}
	idle, err := h.AddVMs(t.Context(), lab.VM{Name: "idle", IdleHelpers: true}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.StartVMs(t.Context(), idle...); err != nil {
		t.Fatal(err)
	}
	if got := listed(t, h, "microvm*@idle1.service"); len(got) != 6 {
		t.Errorf("units of a VM with idle helpers: %v", got)
	}
}

func TestHost_AddUser(t *testing.T) {
	h := microVMHost(t)
	u, err := h.AddUser(t.Context(), "alice")
	if err != nil {
		t.Fatal(err)
	}
	if err := u.AddVM(t.Context(), lab.VM{Name: "dev"}); err != nil {
		t.Fatal(err)
	}
	if err := u.AddVM(t.Context(), lab.VM{Name: "loop", ExitCode: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Exec(t.Context(), "systemctl", "--user", "start", "microvm-dev", "microvm-loop"); err != nil {
		t.Fatal(err)
	}
	alike, err := u.AddLookAlikes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, err := u.Exec(t.Context(), append([]string{"systemctl", "--user", "is-active", "microvm-dev.service"}, alike...)...)
	if err != nil || got != strings.Repeat("active\n", 1+len(alike)) {
		t.Errorf("%q, %v", got, err)
	}
	// Root may talk to the user's manager over its private socket.
	conn, err := h.Dial(t.Context(), "unix", fmt.Sprintf("/run/user/%d/systemd/private", u.UID))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if got := listed(t, h, "microvm-*"); len(got) != 0 {
		t.Errorf("the system manager lists %v", got)
	}
}

func TestStandIn_signals(t *testing.T) {
	h := microVMHost(t)
	add(t, h, lab.VM{Name: "a"}, lab.VM{Name: "b"})
	for name, tc := range map[string]struct{ signal, want string }{
		"a": {"USR1", "ExecMainCode=1 ExecMainStatus=0"},
		"b": {"USR2", "ExecMainCode=1 ExecMainStatus=2"},
	} {
		unit := "microvm@" + name + ".service"
		await(t, func() bool {
			pid := strings.TrimPrefix(properties(t, h, unit, "MainPID"), "MainPID=")
			return run(t, h, "cat", "/proc/"+pid+"/comm") != "bash"
		})
		run(t, h, "systemctl", "kill", "--signal="+tc.signal, unit)
		await(t, func() bool { return strings.Contains(properties(t, h, unit, "SubState"), "auto-restart") })
		if got := properties(t, h, unit, "ExecMainCode", "ExecMainStatus"); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.signal, got, tc.want)
		}
	}
}
