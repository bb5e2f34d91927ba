package microvm_test

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/lab"
	"github.com/blixard/blixard/microvm"
)

// bootLab gives a running host with microvm.nix's units, and a function that
// scans it there as a user without rights.
func bootLab(t *testing.T) (*lab.Host, func() *microvm.Scan) {
	t.Helper()
	hosts, err := lab.New(t).Boot(t.Context(), "h1")
	if err != nil {
		t.Fatal(err)
	}
	h := hosts[0]
	if err := h.InstallMicroVM(t.Context(), lab.MicroVMOptions{}); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(t.TempDir(), "scanner")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "./testdata/scanner")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := h.CopyIn(bin, "/usr/local/bin/scanner"); err != nil {
		t.Fatal(err)
	}
	return h, func() *microvm.Scan {
		t.Helper()
		var s microvm.Scan
		if err := json.Unmarshal([]byte(run(t, h, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--", "scanner")), &s); err != nil {
			t.Fatal(err)
		}
		return &s
	}
}

func run(t *testing.T, h *lab.Host, argv ...string) string {
	t.Helper()
	out, err := h.Exec(t.Context(), argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestScanner_lab(t *testing.T) {
	h, scan := bootLab(t)
	if s := scan(); !s.Complete || len(s.Definitions) != 0 || len(s.Missing) != 0 {
		t.Errorf("an empty host: %+v", s)
	}
	if _, err := h.AddZoo(t.Context()); err != nil {
		t.Fatal(err)
	}
	definition := func(s *microvm.Scan, name string) blixard.VMDefinition {
		t.Helper()
		d := s.Definitions[name]
		if d == nil {
			t.Fatalf("%s is not defined: %+v", name, s)
		}
		return d.VMDefinition
	}
	s := scan()
	if len(s.Definitions) != 11 || !s.Complete || s.IgnoredCount != 0 {
		t.Errorf("%d definitions, %+v", len(s.Definitions), s)
	}
	for name, want := range map[string]blixard.VMDefinition{
		"web-1":       {Hypervisor: "qemu", HostName: "web-one", Provenance: blixard.ProvenanceImperative},
		"no-shutdown": {Hypervisor: "kvmtool", HostName: "no-shutdown", Provenance: blixard.ProvenanceImperative},
		"bare":        {Hypervisor: "cloud-hypervisor", HostName: "bare", Provenance: blixard.ProvenanceImperative},
		"notify":      {Hypervisor: "cloud-hypervisor", HostName: "notify", Provenance: blixard.ProvenanceImperative, VsockCID: 42},
		"declared":    {Hypervisor: "qemu", HostName: "declared", Provenance: blixard.ProvenanceDeclared},
		"deployed":    {Hypervisor: "qemu", HostName: "deployed", Provenance: blixard.ProvenanceDeployed},
		"unmarked":    {Hypervisor: "qemu", HostName: "unmarked"},
	} {
		if diff := cmp.Diff(want, definition(s, name)); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
	for _, hv := range lab.Hypervisors() {
		if err := h.AddVM(t.Context(), lab.VM{Name: "on-" + hv, HostName: "guest-on-" + hv, Hypervisor: hv, Bare: true}); err != nil {
			t.Fatal(err)
		}
	}
	s = scan()
	for _, hv := range lab.Hypervisors() {
		want := blixard.VMDefinition{Hypervisor: hv, HostName: "guest-on-" + hv, Provenance: blixard.ProvenanceImperative}
		if diff := cmp.Diff(want, definition(s, "on-"+hv)); diff != "" {
			t.Error(diff)
		}
	}

	// What systemd itself writes and takes away.
	config := func(want blixard.Config) {
		t.Helper()
		if got := definition(scan(), "web-1").Config; got != want {
			t.Errorf("config is %q, want %q", got, want)
		}
	}
	run(t, h, "systemctl", "start", "microvm@web-1")
	config(blixard.ConfigCurrent)
	if err := h.Rebuild(lab.VM{Name: "web-1", HostName: "web-one", Revision: 2}); err != nil {
		t.Fatal(err)
	}
	config(blixard.ConfigStale)
	run(t, h, "systemctl", "restart", "microvm@web-1")
	config(blixard.ConfigCurrent)
	// The helper, which takes booted away, is stopped beside the VM.
	run(t, h, "systemctl", "stop", "microvm@web-1", "microvm-set-booted@web-1")
	config("")
}

func TestScanner_planted(t *testing.T) {
	h, scan := bootLab(t)
	for _, name := range []string{"good", "other"} {
		if err := h.AddVM(t.Context(), lab.VM{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range lab.AllPlanted() {
		if err := h.Plant("p-"+string(p), p); err != nil {
			t.Fatal(err)
		}
	}
	// A folder that is closed to the reader, and one that is none's.
	run(t, h, "sh", "-ec", "cd /var/lib/microvms; mkdir -m 0700 closed lost+found; ln -s x closed/current")
	s := scan()
	if !s.Complete || !slices.Equal(s.Unreadable, []string{"closed"}) || len(s.Reasons) != 1 ||
		s.Reasons[0] != "cannot read /var/lib/microvms/closed: permission denied" {
		t.Errorf("%+v", s)
	}
	ignored := map[string]string{}
	for _, i := range s.Ignored {
		ignored[strings.TrimPrefix(i.Path, "/var/lib/microvms/")] = i.Reason
	}
	if diff := cmp.Diff(map[string]string{
		"p-no-current": "has no link current", "p-folder": "has a current that is no link", "p-file": "is no folder", "p-link": "is no folder",
		"p-fifo-folder": "is no folder", "lost+found": "cannot be in the name of a unit",
	}, ignored); diff != "" {
		t.Errorf("ignored:\n%s", diff)
	}
	names := slices.Sorted(maps.Keys(s.Definitions))
	if diff := cmp.Diff([]string{"good", "other", "p-dangling", "p-escape", "p-fifo", "p-huge", "p-loop", "p-passwd", "p-store-escape"}, names); diff != "" {
		t.Fatalf("definitions:\n%s", diff)
	}
	for name, want := range map[string]blixard.VMDefinition{
		"good": {Hypervisor: "qemu", HostName: "good", Provenance: blixard.ProvenanceImperative},
		// The name of a runner that is gone still tells.
		"p-dangling": {Hypervisor: "qemu", HostName: "p-dangling"},
		"p-escape":   {}, "p-passwd": {}, "p-store-escape": {}, "p-loop": {},
		"p-fifo": {Hypervisor: "qemu", HostName: "p-fifo"},
		"p-huge": {Hypervisor: "qemu", HostName: "p-huge", Provenance: blixard.ProvenanceImperative},
	} {
		if diff := cmp.Diff(want, s.Definitions[name].VMDefinition); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
	// The state directory itself closed: nothing is known.
	run(t, h, "chmod", "0700", "/var/lib/microvms")
	if s := scan(); s.Complete || len(s.Definitions) != 0 || len(s.Reasons) != 1 {
		t.Errorf("closed: %+v", s)
	}
	run(t, h, "rm", "-r", "/var/lib/microvms")
	if s := scan(); !s.Complete || !slices.Equal(s.Missing, []string{"/var/lib/microvms"}) {
		t.Errorf("missing: %+v", s)
	}
}
