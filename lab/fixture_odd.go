package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Planted is something in the state directory that microvm.nix would not put
// there, but the VMMs' user can.
type Planted string

// What Plant can put in the place of a VM's folder or of a file in it.
const (
	// PlantNoCurrent: a folder without the link current.
	PlantNoCurrent Planted = "no-current"
	// PlantDangling: current points to a store path that is gone.
	PlantDangling Planted = "dangling"
	// PlantPasswd: current points to /etc/passwd.
	PlantPasswd Planted = "passwd"
	// PlantEscape: current points to ../../x, where somebody's file is.
	PlantEscape Planted = "escape"
	// PlantStoreEscape: current points to /nix/store/../../etc.
	PlantStoreEscape Planted = "store-escape"
	// PlantLoop: current points to itself, and booted and current to each other.
	PlantLoop Planted = "loop"
	// PlantFolder: current is a folder of the VM's own making, not a link, with
	// a share/microvm that lies.
	PlantFolder Planted = "folder"
	// PlantFIFO: current is good, but flake, old and toplevel are FIFOs.
	PlantFIFO Planted = "fifo"
	// PlantHuge: current is good, but flake is a sparse file of 10 GB.
	PlantHuge Planted = "huge"
	// PlantFile: a file where the folder should be.
	PlantFile Planted = "file"
	// PlantLink: a link to another VM's folder where the folder should be.
	PlantLink Planted = "link"
	// PlantFIFOFolder: a FIFO where the folder should be.
	PlantFIFOFolder Planted = "fifo-folder"
)

// AllPlanted are all kinds of Planted.
func AllPlanted() []Planted {
	return []Planted{PlantNoCurrent, PlantDangling, PlantPasswd, PlantEscape, PlantStoreEscape, PlantLoop,
		PlantFolder, PlantFIFO, PlantHuge, PlantFile, PlantLink, PlantFIFOFolder}
}

// hugeSize is the apparent size of a planted file; it holds nothing.
const hugeSize = 10_000_000_000

// Plant puts something hostile under the name of a VM into the state directory,
// owned by microvm:kvm as if a VMM had.
func (h *Host) Plant(name string, what Planted) error {
	if err := h.plant(name, what); err != nil {
		return fmt.Errorf("plant %s as %q on %s: %w", what, name, h.name, err)
	}
	return nil
}

func (h *Host) plant(name string, what Planted) error {
	all := h.StateDir("")
	if all == "" {
		return errors.New("InstallMicroVM was not called")
	}
	dir := h.StateDir(name)
	switch what {
	case PlantFile:
		return errors.Join(h.put(dir, []byte("not a folder\n"), 0o644), h.chown(dir))
	case PlantLink:
		return errors.Join(h.Symlink("other", dir), h.chown(dir))
	case PlantFIFOFolder:
		return errors.Join(h.Mkfifo(dir, 0o666), h.chown(dir))
	case PlantFIFO, PlantHuge:
		vm := VM{Name: name}
		if _, err := layVM(context.Background(), h, &vm); err != nil {
			return err
		}
	default:
		if err := errors.Join(h.Mkdir(dir, 0o755), h.chown(dir)); err != nil {
			return err
		}
	}
	links := map[string]string{}
	switch what {
	case PlantDangling:
		links["current"] = storePath("microvm-qemu-" + name)
	case PlantPasswd:
		links["current"] = "/etc/passwd"
	case PlantEscape:
		links["current"] = "../../x"
		if err := h.WriteFile("/var/lib/x/share/microvm/hypervisor", []byte("somebody's\n"), 0o644); err != nil {
			return err
		}
	case PlantStoreEscape:
		links["current"] = storeDir + "/../../etc"
	case PlantLoop:
		links["current"], links["booted"] = "booted", "current"
	case PlantFolder:
		path := dir + "/current/share/microvm/hypervisor"
		if err := h.WriteFile(path, []byte("\x1b[31mliar\x1b[0m\n"), 0o644); err != nil {
			return err
		}
		return h.chown(dir+"/current", path)
	case PlantFIFO:
		for _, f := range []string{"flake", "old", "toplevel"} {
			if err := h.Remove(dir + "/" + f); err != nil {
				return err
			}
			if err := errors.Join(h.Mkfifo(dir+"/"+f, 0o666), h.chown(dir+"/"+f)); err != nil {
				return err
			}
		}
	case PlantHuge:
		at, err := h.place(dir + "/flake")
		if err != nil {
			return err
		}
		return os.Truncate(at, hugeSize)
	}
	for link, target := range links {
		if err := errors.Join(h.Symlink(target, dir+"/"+link), h.chown(dir+"/"+link)); err != nil {
			return err
		}
	}
	return nil
}

// Mkfifo makes a FIFO on the host.
func (h *Host) Mkfifo(path string, mode fs.FileMode) error {
	at, err := h.place(path)
	if err != nil {
		return err
	}
	if err := unix.Mkfifo(at, uint32(mode.Perm())); err != nil {
		return fmt.Errorf("make FIFO %s on %s: %w", path, h.name, err)
	}
	return nil
}

// OddNames are VM names that systemd and the file system take and that careless
// code does not: they need escaping in object paths, look like options, are
// unescaped by mistake, or are as long as the longest helper's unit allows.
func OddNames() []string {
	const longestHelper = "microvm-macvtap-interfaces@.service"
	return []string{
		"web-1", "a.b", "x_y", "a:b", "a@b", "-rf", "--help", "_", "...", "0", "UPPER",
		"service.service", "microvm", "tap-interfaces",
		strings.Repeat("n", 255-len(longestHelper)),
	}
}

// Hostile are instances of microvm@ that no state directory knows.
type Hostile struct {
	// Running have a unit file of their own and run.
	Running []string
	// Failed were started by name alone: their set-booted helper failed for want
	// of a folder, and systemd lists the unit as inactive, its Result success.
	Failed []string
	// Refused have a LoadState of bad-setting and are not listed: systemd takes
	// no backslash in the path of a program and no .. in a working directory.
	Refused []string
	// Skipped is the instance ".", whose folder is the state directory itself:
	// its start succeeds, its condition does not hold, and its set-booted helper
	// makes a link booted in the state directory that points to itself.
	Skipped []string
}

// HostileInstances starts units with "systemctl start" and no folder in the state
// directory, under names that climb, look like options or need escaping twice.
func (h *Host) HostileInstances(ctx context.Context) (Hostile, error) {
	hostile := Hostile{
		Running: []string{`..\x2f..\x2fetc`, `tab\x09nul\x00`, `\xff\xfe`, `\xe2\x80\xaertl`, `back\slash`, "-rf-running", "x.service"},
		Failed:  []string{"-rf-nowhere", "a@b@c", "nowhere.service", "nowhere"},
		Refused: []string{"..", `dev\x2dnull`, `..\x2f..`},
		Skipped: []string{"."},
	}
	for _, name := range hostile.Running {
		text := "[Service]\nExecStart=" + stubsDir + "/stand-in\n"
		if err := h.WriteFile(unitDir+"/microvm@"+name+".service", []byte(text), 0o644); err != nil {
			return hostile, err
		}
	}
	if err := reload(ctx, h); err != nil {
		return hostile, err
	}
	for _, name := range slices.Concat(hostile.Running, hostile.Skipped) {
		if _, err := h.Exec(ctx, "systemctl", "start", "--", "microvm@"+name+".service"); err != nil {
			return hostile, err
		}
	}
	for _, name := range slices.Concat(hostile.Failed, hostile.Refused) {
		if _, err := h.Exec(ctx, "systemctl", "start", "--", "microvm@"+name+".service"); err == nil {
			return hostile, fmt.Errorf("microvm@%s.service started, though it has no folder", name)
		}
		if err := ctx.Err(); err != nil {
			return hostile, err
		}
	}
	return hostile, nil
}

// Orphan makes a running VM an orphan: it is taken out of the configuration, and
// if gone is true its state directory is removed under it too.
func (h *Host) Orphan(ctx context.Context, name string, gone bool) error {
	if err := h.Undeclare(ctx, name); err != nil {
		return err
	}
	if gone {
		return h.Remove(h.StateDir(name))
	}
	return nil
}

// Zoo is one VM of each odd kind that microvm.nix itself can bring about, laid
// down by AddZoo.
type Zoo struct {
	// Running are names of VMs that StartVMs can start and that stay up. Looping
	// crash again and again; systemctl start may tell so at once. Failing cannot
	// start.
	Running, Looping, Failing []string
}

// AddZoo lays down VMs of all odd kinds, one each, and starts none.
func (h *Host) AddZoo(ctx context.Context) (Zoo, error) {
	zoo := Zoo{
		Running: []string{"web-1", "no-shutdown", "bare", "notify", "declared", "deployed", "unmarked", "virtiofs"},
		Looping: []string{"crash-loop", "crash-at-once"},
		Failing: []string{"bad-tap"},
	}
	for _, vm := range []VM{
		{Name: "web-1", HostName: "web-one"},
		{Name: "no-shutdown", Hypervisor: "kvmtool"},
		{Name: "bare", Bare: true, Hypervisor: "cloud-hypervisor"},
		{Name: "notify", Notify: true, Hypervisor: "cloud-hypervisor", VsockCID: 42},
		{Name: "declared", Provenance: Declared},
		{Name: "deployed", Provenance: Deployed},
		{Name: "unmarked", Provenance: Unmarked},
		{Name: "virtiofs", Virtiofs: []string{"ro-store", "data"}},
		{Name: "crash-loop", ExitCode: 1, ExitAfter: 300 * time.Millisecond},
		{Name: "crash-at-once", ExitCode: 3},
		{Name: "bad-tap", Taps: []string{"vm-bad"}, HelpersFail: []string{"tap-up"}},
	} {
		if err := h.AddVM(ctx, vm); err != nil {
			return zoo, err
		}
	}
	return zoo, nil
}
