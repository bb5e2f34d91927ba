package lab_test

import (
	"strings"
	"testing"

	"github.com/blixard/blixard/lab"
)

// property is one property of a unit on the host.
func property(t *testing.T, h *lab.Host, unit, name string) string {
	t.Helper()
	return run(t, h, "systemctl", "show", "--value", "--property="+name, "--", unit)
}

func TestHost_AddVM(t *testing.T) {
	_, hosts := boot(t, "h1")
	h := hosts[0]
	if err := h.InstallMicroVM(t.Context(), lab.MicroVMOptions{}); err != nil {
		t.Fatal(err)
	}
	vms := []lab.VM{
		{Name: "web-1", HostName: "web-one", Taps: []string{"vm-web-1"}, Virtiofs: []string{"data"}, PCIDevices: []string{"0000:00:1f.0"},
			Macvtaps: []lab.Macvtap{{ID: "mv-web-1", MAC: "02:00:00:00:00:01", Link: "vmbr", Mode: "bridge"}}},
		{Name: "notified", Notify: true, Provenance: lab.Declared},
	}
	for _, hv := range lab.Hypervisors() {
		vms = append(vms, lab.VM{Name: "on-" + hv, Hypervisor: hv})
	}
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
	for _, name := range names {
		if got := property(t, h, "microvm@"+name+".service", "ActiveState"); got != "active" {
			t.Errorf("%s is %s", name, got)
		}
	}
	pid := property(t, h, "microvm@web-1.service", "MainPID")
	if got := run(t, h, "cat", "/proc/"+pid+"/comm"); got != "qemu-system-x86" {
		t.Errorf("comm is %q", got)
	}
	cmdline, err := h.ReadFile("/proc/" + pid + "/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.ReplaceAll(string(cmdline), "\x00", " "); !strings.HasPrefix(got, "microvm@web-one -name web-one ") || !strings.Contains(got, " -m 512M ") {
		t.Errorf("command line %q", got)
	}
}
