package microvm_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/microvm"
)

// hash is the first part of a store path's name.
const hash = "0123456789abcdfghijklmnpqrsvwxyz"

// host is a state directory and a store.
type host struct {
	t            testing.TB
	state, store string
}

func newHost(t testing.TB) *host {
	dir := t.TempDir()
	h := &host{t, filepath.Join(dir, "microvms"), filepath.Join(dir, "store")}
	h.mkdir(h.state)
	h.mkdir(h.store)
	return h
}

func (h *host) check(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) mkdir(path string) { h.t.Helper(); h.check(os.MkdirAll(path, 0o755)) }

func (h *host) write(path, text string) {
	h.t.Helper()
	h.mkdir(filepath.Dir(path))
	h.check(os.WriteFile(path, []byte(text), 0o644))
}

// link makes or replaces a link as ln -sfn does.
func (h *host) link(target, path string) {
	h.t.Helper()
	h.mkdir(filepath.Dir(path))
	h.check(os.Symlink(target, path+".new"))
	h.check(os.Rename(path+".new", path))
}

// runner makes a runner in the store and returns its path.
func (h *host) runner(rest string, files map[string]string) string {
	h.t.Helper()
	path := filepath.Join(h.store, hash+"-microvm-"+rest)
	h.mkdir(path)
	for name, text := range files {
		h.write(filepath.Join(path, "share/microvm", name), text)
	}
	return path
}

// scanner reads the host. Its clock is a minute ahead, so that no folder counts
// as changed just now.
func (h *host) scanner() *microvm.Scanner {
	h.t.Helper()
	s := h.freshScanner()
	s.SetClock(func() time.Time { return time.Now().Add(time.Minute) })
	return s
}

func (h *host) freshScanner() *microvm.Scanner {
	h.t.Helper()
	s, err := microvm.NewScanner(microvm.Config{StateDirs: []string{h.state}, StoreDir: h.store})
	h.check(err)
	return s
}

var (
	noBoot  = map[string]string{"config": "the VM is not booted", "provenance": "the folder holds no toplevel, flake or old"}
	tooOld  = "the runner does not tell it, being older than March 2026"
	dontSay = cmpopts.EquateEmpty()
)

// with is a copy of a with b added.
func with(a map[string]string, b ...string) map[string]string {
	out := map[string]string{}
	for k, v := range a {
		out[k] = v
	}
	for i := 0; i < len(b); i += 2 {
		out[b[i]] = b[i+1]
	}
	return out
}

func TestScanner_Scan(t *testing.T) {
	h := newHost(t)
	want := map[string]*microvm.Definition{}
	expect := func(name string, d blixard.VMDefinition, unavailable map[string]string) {
		want[name] = &microvm.Definition{VMDefinition: d, Name: name, Dir: filepath.Join(h.state, name), Unavailable: unavailable}
	}
	at := func(name, file string) string { return filepath.Join(h.state, name, file) }

	// As microvm.nix lays them down.
	web := h.runner("qemu-web-one", map[string]string{"hypervisor": "qemu\n", "vsock-cid": "10\n"})
	h.link(web, at("web-1", "current"))
	h.link(web, at("web-1", "booted"))
	h.link(h.store+"/"+hash+"-nixos-system", at("web-1", "toplevel"))
	expect("web-1", blixard.VMDefinition{Hypervisor: "qemu", HostName: "web-one", Config: blixard.ConfigCurrent, Provenance: blixard.ProvenanceDeclared, VsockCID: 10}, nil)

	h.link(h.runner("cloud-hypervisor-new", map[string]string{"hypervisor": "cloud-hypervisor\n"}), at("stale", "current"))
	h.link(web, at("stale", "booted"))
	h.write(at("stale", "flake"), "git+file:///etc/nixos")
	expect("stale", blixard.VMDefinition{Hypervisor: "cloud-hypervisor", HostName: "new", Config: blixard.ConfigStale, Provenance: blixard.ProvenanceImperative}, nil)

	h.link(h.runner("kvmtool-bare", nil), at("bare", "current"))
	h.link(web, at("bare", "old"))
	expect("bare", blixard.VMDefinition{Hypervisor: "kvmtool", HostName: "bare", Provenance: blixard.ProvenanceDeployed},
		map[string]string{"config": "the VM is not booted", "vsock_cid": tooOld})

	// A hypervisor nobody knows yet.
	h.link(h.runner("new-vmm-a-b", map[string]string{"hypervisor": "new-vmm"}), at("newer", "current"))
	expect("newer", blixard.VMDefinition{Hypervisor: "new-vmm", HostName: "a-b"}, noBoot)
	h.link(h.runner("odd-vmm-a-b", nil), at("odd", "current"))
	expect("odd", blixard.VMDefinition{}, with(noBoot, "vsock_cid", tooOld,
		"hypervisor", `"`+hash+`-microvm-odd-vmm-a-b" names no known hypervisor`, "host_name", `"`+hash+`-microvm-odd-vmm-a-b" names no known hypervisor`))
	h.link(h.runner("crosvm-x", map[string]string{"hypervisor": "qemu"}), at("at-odds", "current"))
	expect("at-odds", blixard.VMDefinition{Hypervisor: "qemu"}, with(noBoot,
		"host_name", `"`+hash+`-microvm-crosvm-x" is not named after the hypervisor qemu`))

	// Links that stay in the store.
	share := filepath.Join(h.store, hash+"-share")
	h.write(share+"/microvm/hypervisor", "firecracker\n")
	linked := h.runner("firecracker-linked", nil)
	h.link(share, linked+"/share")
	h.link("../"+filepath.Base(share)+"/../"+hash+"-cid", share+"/microvm/vsock-cid")
	h.link("../../"+hash+"-cid", share+"/microvm/vsock-cid")
	h.write(filepath.Join(h.store, hash+"-cid"), "7")
	h.link(linked+"/", at("linked", "current"))
	expect("linked", blixard.VMDefinition{Hypervisor: "firecracker", HostName: "linked", VsockCID: 7}, noBoot)

	// Links that do not.
	outside := "current does not lead to a path of " + h.store
	for name, target := range map[string]string{
		"passwd": "/etc/passwd", "up": "../../x", "loop": "current", "store": h.store, "above": h.store + "/..", "dots": h.store + "/../../etc",
		"deep": web + "/share", "near": h.store + "s/" + filepath.Base(web), "here": ".", "long": strings.Repeat("x", 3000),
	} {
		h.link(target, at(name, "current"))
		expect(name, blixard.VMDefinition{}, with(noBoot, "hypervisor", outside, "host_name", outside, "vsock_cid", outside))
	}
	h.link(h.store+"/gone", at("gone", "current"))
	expect("gone", blixard.VMDefinition{}, with(noBoot, "vsock_cid", "cannot read the runner: no such file or directory",
		"hypervisor", `"gone" is no name of a store path`, "host_name", `"gone" is no name of a store path`))

	// Runners with something else where a file should be.
	planted := func(name string, plant func(path string), hypervisorReason string) {
		runner := h.runner("qemu-"+name, nil)
		h.mkdir(runner + "/share/microvm")
		plant(runner + "/share/microvm/vsock-cid")
		h.link(runner, at(name, "current"))
		expect(name, blixard.VMDefinition{Hypervisor: "qemu", HostName: name}, with(noBoot, "vsock_cid", "share/microvm/vsock-cid: "+hypervisorReason))
	}
	planted("fifo", func(p string) { h.check(unix.Mkfifo(p, 0o666)) }, "is no regular file")
	planted("folder", h.mkdir, "is no regular file")
	planted("huge", func(p string) { h.write(p, "1"); h.check(os.Truncate(p, 10<<30)) }, "is longer than 256 bytes")
	planted("empty", func(p string) { h.write(p, "\n") }, "is empty")
	planted("words", func(p string) { h.write(p, "1 2") }, "is not one word")
	planted("binary", func(p string) { h.write(p, "1\x1b[2J") }, "is not one word")
	planted("host-cid", func(p string) { h.write(p, "2") }, `"2" is no guest's context id`)
	planted("big-cid", func(p string) { h.write(p, "4294967296") }, `"4294967296" is no guest's context id`)
	planted("leads-out", func(p string) { h.link("/etc/passwd", p) }, "leads out of the store")
	planted("leads-up", func(p string) { h.link("../../../../../../../../etc/passwd", p) }, "leads out of the store")
	planted("device", func(p string) { h.link("/dev/zero", p) }, "leads out of the store")
	planted("circle", func(p string) { h.link("vsock-cid", p) }, "too many links")
	planted("behind", func(p string) { h.write(filepath.Dir(p)+"/f", ""); h.link("f/x", p) }, "not a directory")

	// Links of which nobody can tell whether they name the same.
	h.link("/home/a/result", at("own", "current"))
	h.link("/home/a/result", at("own", "booted"))
	expect("own", blixard.VMDefinition{}, with(noBoot, "hypervisor", outside, "host_name", outside, "vsock_cid", outside, "config", outside))
	h.link(web+"/", at("lying", "current"))
	h.link("/etc/passwd", at("lying", "booted"))
	expect("lying", blixard.VMDefinition{Hypervisor: "qemu", HostName: "web-one", VsockCID: 10}, with(noBoot, "config", "booted does not lead to a path of "+h.store))

	// Odd marks.
	h.link(web, at("marks", "current"))
	h.mkdir(at("marks", "booted"))
	h.write(at("marks", "toplevel"), "")
	h.check(unix.Mkfifo(at("marks", "flake"), 0o666))
	h.write(at("marks", "old"), "")
	expect("marks", blixard.VMDefinition{Hypervisor: "qemu", HostName: "web-one", VsockCID: 10},
		map[string]string{"config": "booted: is no link", "provenance": "the folder holds no toplevel, flake or old"})

	// What is no VM.
	ignored := map[string]string{}
	none := func(name, reason string) { ignored[filepath.Join(h.state, name)] = reason }
	h.mkdir(at("nothing", ""))
	none("nothing", "has no link current")
	h.mkdir(at("dir", "current"))
	none("dir", "has a current that is no link")
	h.mkdir(at("pipe", ""))
	h.check(unix.Mkfifo(at("pipe", "current"), 0o666))
	none("pipe", "has a current that is no link")
	h.write(at("file", ""), "")
	none("file", "is no folder")
	h.check(unix.Mkfifo(at("queue", ""), 0o666))
	none("queue", "is no folder")
	h.link("web-1", at("alias", ""))
	none("alias", "is no folder")
	for _, name := range []string{"a b", "lost+found", "a\nb", "\xff\xfe", "\u202e", "*"} {
		h.link(web, at(name, "current"))
		none(name, "cannot be in the name of a unit")
	}
	h.mkdir(at(strings.Repeat("x", 250), ""))
	none(strings.Repeat("x", 250), "is too long for the name of a unit")

	s := h.scanner()
	for range 2 {
		got := s.Scan(t.Context())
		if diff := cmp.Diff(want, got.Definitions, dontSay); diff != "" {
			t.Errorf("definitions (-want +got):\n%s", diff)
		}
		reasons := map[string]string{}
		for _, i := range got.Ignored {
			reasons[i.Path] = i.Reason
		}
		if diff := cmp.Diff(ignored, reasons); diff != "" {
			t.Errorf("ignored (-want +got):\n%s", diff)
		}
		if !got.Complete || got.Reasons != nil || got.Unreadable != nil || got.Missing != nil || got.IgnoredCount != len(ignored) {
			t.Errorf("%+v", got)
		}
	}
	for name, d := range want {
		got, err := s.Refresh(name)
		if err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(d, got, dontSay); diff != "" {
			t.Errorf("Refresh (-want +got):\n%s", diff)
		}
	}
	for path := range ignored {
		if d, err := s.Refresh(filepath.Base(path)); !errors.Is(err, microvm.ErrUndefined) {
			t.Errorf("Refresh of %q: %+v, %v", path, d, err)
		}
	}
	for _, name := range []string{"", ".", "..", "../microvms/web-1", "web-1/", "none", "a\x00"} {
		if d, err := s.Refresh(name); !errors.Is(err, microvm.ErrUndefined) {
			t.Errorf("Refresh of %q: %+v, %v", name, d, err)
		}
	}
}

func TestScanner_unchanged(t *testing.T) {
	h := newHost(t)
	one := h.runner("qemu-one", map[string]string{"hypervisor": "qemu"})
	two := h.runner("qemu-two", map[string]string{"hypervisor": "qemu"})
	vm := filepath.Join(h.state, "vm")
	s := h.scanner()
	scan := func() *microvm.Definition {
		t.Helper()
		got := s.Scan(t.Context())
		if !got.Complete {
			t.Fatalf("%+v", got)
		}
		return got.Definitions["vm"]
	}
	// step makes a change and has it seen; before it, nothing is read anew.
	step := func(what string, change func(), ok func(*microvm.Definition) bool) {
		t.Helper()
		before := scan()
		if scan() != before {
			t.Errorf("%s: the folder was read anew though nothing had changed", what)
		}
		change()
		after := scan()
		if after == before && after != nil {
			t.Errorf("%s: the folder was not read anew", what)
		}
		if !ok(after) {
			t.Errorf("%s: %+v", what, after)
		}
	}
	step("made", func() { h.link(one, vm+"/current") }, func(d *microvm.Definition) bool { return d.HostName == "one" })
	step("booted", func() { h.link(one, vm+"/booted") }, func(d *microvm.Definition) bool { return d.Config == blixard.ConfigCurrent })
	step("rebuilt", func() { h.link(two, vm+"/current") }, func(d *microvm.Definition) bool {
		return d.Config == blixard.ConfigStale && d.HostName == "two"
	})
	step("booted again", func() { h.check(os.Remove(vm + "/booted")); h.link(two, vm+"/booted") }, func(d *microvm.Definition) bool {
		return d.Config == blixard.ConfigCurrent
	})
	step("stopped", func() { h.check(os.Remove(vm + "/booted")) }, func(d *microvm.Definition) bool { return d.Config == "" })
	step("marked", func() { h.write(vm+"/flake", "x") }, func(d *microvm.Definition) bool { return d.Provenance == blixard.ProvenanceImperative })
	step("not there yet", func() { h.link(h.store+"/"+hash+"-microvm-qemu-three", vm+"/current") }, func(d *microvm.Definition) bool {
		return d.HostName == "three" && d.Unavailable["vsock_cid"] != ""
	})
	// The folder does not tell that its runner came: it is read until it did.
	h.runner("qemu-three", map[string]string{"hypervisor": "qemu", "vsock-cid": "33"})
	if d := scan(); d.VsockCID != 33 {
		t.Errorf("runner that came late: %+v", d)
	}
	step("swapped", func() {
		h.check(os.Rename(vm, h.state+"/was"))
		h.link(one, h.state+"/other/current")
		h.check(os.Rename(h.state+"/other", vm))
	}, func(d *microvm.Definition) bool { return d.HostName == "one" && d.Provenance == "" })
	step("gone", func() { h.check(os.RemoveAll(vm)) }, func(d *microvm.Definition) bool { return d == nil })
	step("back", func() { h.check(os.Rename(h.state+"/was", vm)) }, func(d *microvm.Definition) bool { return d.HostName == "three" })

	before := scan()
	d, err := s.Refresh("vm")
	if err != nil || d == before {
		t.Errorf("Refresh: %+v, %v", d, err)
	}
	if scan() != d {
		t.Error("what Refresh read is not kept")
	}
}

// Two changes within one step of the file system's clock may leave the same
// times, so a folder that changed just now is read again.
func TestScanner_quickChanges(t *testing.T) {
	h := newHost(t)
	s := h.freshScanner()
	h.link(h.runner("qemu-x", nil), h.state+"/x/current")
	if a, b := s.Scan(t.Context()), s.Scan(t.Context()); a.Definitions["x"] == b.Definitions["x"] {
		t.Error("a folder that changed just now was not read again")
	}
	var runners [2]string
	for i := range runners {
		runners[i] = h.runner(fmt.Sprintf("qemu-r%d", i), map[string]string{"hypervisor": "qemu"})
	}
	for i := range 500 {
		h.link(runners[i%2], h.state+"/vm/current")
		got := s.Scan(t.Context())
		if d := got.Definitions["vm"]; d == nil || d.HostName != fmt.Sprintf("r%d", i%2) {
			t.Fatalf("change %d was not seen: %+v", i, d)
		}
	}
}

func TestScanner_incomplete(t *testing.T) {
	h := newHost(t)
	h.link(h.runner("qemu-a", nil), h.state+"/a/current")
	scan := func(dirs ...string) *microvm.Scan {
		s, err := microvm.NewScanner(microvm.Config{StateDirs: dirs, StoreDir: h.store})
		h.check(err)
		return s.Scan(t.Context())
	}
	if got := scan(h.state + "/none"); !got.Complete || len(got.Definitions) != 0 || !cmp.Equal(got.Missing, []string{h.state + "/none"}) {
		t.Errorf("missing directory: %+v", got)
	}
	h.write(h.state+"/file", "")
	h.check(unix.Mkfifo(h.state+"/fifo", 0o666))
	for _, bad := range []string{h.state + "/file", h.state + "/fifo", h.state + "/file/x"} {
		got := scan(bad, h.state)
		if got.Complete || len(got.Reasons) != 1 || !strings.Contains(got.Reasons[0], "not a directory") {
			t.Errorf("%s: %+v", bad, got)
		}
		if got.Definitions["a"] == nil {
			t.Errorf("%s: the other directory was not read", bad)
		}
	}
	// A second directory with the same VM.
	h.link(h.runner("qemu-b", nil), h.state+"/more/a/current")
	h.link(h.runner("qemu-b", nil), h.state+"/more/b/current")
	got := scan(h.state, h.state+"/more")
	if d := got.Definitions["a"]; d == nil || d.HostName != "a" || got.Definitions["b"] == nil || len(got.Definitions) != 2 {
		t.Errorf("two directories: %+v", got)
	}
	if !cmp.Equal(got.Ignored[len(got.Ignored)-1], microvm.Ignored{Path: h.state + "/more/a", Reason: "is the same VM as " + h.state + "/a"}) {
		t.Errorf("two directories: %+v", got.Ignored)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := h.scanner()
	if got := s.Scan(ctx); got.Complete || len(got.Reasons) != 1 {
		t.Errorf("cancelled: %+v", got)
	}
	// Too many entries.
	for i := range 32769 {
		h.check(unix.Mknod(fmt.Sprintf("%s/n%d", h.state, i), unix.S_IFREG|0o600, 0))
	}
	if got := s.Scan(t.Context()); got.Complete || len(got.Reasons) != 1 || len(got.Ignored) > 100 {
		t.Errorf("too many entries: %+v", got.Reasons)
	}
}

func TestConfig_Validate(t *testing.T) {
	c := microvm.DefaultConfig()
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	for _, bad := range []microvm.Config{
		{StateDirs: []string{"/a"}}, {StateDirs: []string{""}, StoreDir: "/s"}, {StateDirs: []string{"a"}, StoreDir: "/s"},
		{StateDirs: []string{"/a/"}, StoreDir: "/s"}, {StateDirs: []string{"/a/../b"}, StoreDir: "/s"},
		{StateDirs: []string{"/a", "/a"}, StoreDir: "/s"}, {StateDirs: []string{"/s"}, StoreDir: "/s"}, {StateDirs: []string{"/" + strings.Repeat("x", 5000)}, StoreDir: "/s"},
	} {
		if bad.Validate() == nil {
			t.Errorf("%.100v is accepted", bad)
		}
		if _, err := microvm.NewScanner(bad); err == nil {
			t.Errorf("%.100v makes a scanner", bad)
		}
	}
}

// While somebody moves everything about, a scan never waits, never fails whole
// and never follows.
func TestScanner_race(t *testing.T) {
	h := newHost(t)
	web := h.runner("qemu-web", map[string]string{"hypervisor": "qemu"})
	h.mkdir(h.state + "/vm")
	h.check(os.Symlink("/etc", h.state+"/decoy"))
	s := h.freshScanner()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			// Errors are races of the mover with itself.
			switch i % 6 {
			case 0:
				_ = os.Symlink(web, h.state+"/vm/current")
			case 1:
				_ = unix.Renameat2(unix.AT_FDCWD, h.state+"/vm", unix.AT_FDCWD, h.state+"/decoy", unix.RENAME_EXCHANGE)
			case 2:
				_ = unix.Renameat2(unix.AT_FDCWD, h.state+"/vm", unix.AT_FDCWD, h.state+"/decoy", unix.RENAME_EXCHANGE)
			case 3:
				_ = os.Remove(h.state + "/vm/current")
			case 4:
				_ = unix.Mkfifo(h.state+"/vm/current", 0o666)
			case 5:
				_ = os.Remove(h.state + "/vm/current")
			}
		}
	})
	defer wg.Wait()
	defer close(stop)
	seen := map[bool]int{}
	began := time.Now()
	for n := 0; n < 3000 || seen[true] == 0 || seen[false] == 0; n++ {
		if time.Since(began) > time.Minute {
			t.Fatalf("nothing moves: %v", seen)
		}
		got := s.Scan(t.Context())
		if !got.Complete {
			t.Fatalf("%+v", got)
		}
		for name, d := range got.Definitions {
			if d.HostName != "web" {
				t.Fatalf("%s: %+v", name, d)
			}
		}
		seen[len(got.Definitions) > 0]++
		if _, err := s.Refresh("vm"); err != nil && !errors.Is(err, microvm.ErrUndefined) {
			t.Fatal(err)
		}
	}
}
