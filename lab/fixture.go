package lab

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"text/template"
)

//go:embed fixture
var fixtureFiles embed.FS

const (
	// DefaultStateDir is where microvm.nix keeps its VMs.
	DefaultStateDir = "/var/lib/microvms"
	// storeDir is Nix's store.
	storeDir = "/nix/store"
	// unitDir is where NixOS has a host's units.
	unitDir = "/etc/systemd/system"
)

// scriptsDir and stubsDir are store folders shared by all VMs of a host.
var (
	scriptsDir = storePath("unit-script-microvm")
	stubsDir   = storePath("stand-in-vmms")
)

// MicroVMOptions are the options of microvm.nix's host module that show in its
// units. The zero value is its default.
type MicroVMOptions struct {
	// StateDir is microvm.stateDir; default /var/lib/microvms.
	StateDir string
	// UseNotifySockets makes all VMs of Type=notify.
	UseNotifySockets bool
	// TimeoutSec is microvm.host.startupTimeout in seconds; default 150.
	TimeoutSec int
	// BeforeSetBooted gives the units as they were before February 2026: no
	// microvm-set-booted@ helper, the main unit writes the booted link.
	BeforeSetBooted bool
	// BeforeMachined leaves out the hooks that register a VM with
	// systemd-machined, which came in March 2026.
	BeforeMachined bool
}

// InstallMicroVM puts on the host what microvm.nix's host module does: all
// templates, microvms.target, the state directory, IO accounting on as NixOS has
// it. The host may be off; if it runs, systemd is told and starts the target. The user microvm and the
// group kvm are in the root file system already.
func (h *Host) InstallMicroVM(ctx context.Context, opts MicroVMOptions) error {
	if err := h.installMicroVM(ctx, opts); err != nil {
		return fmt.Errorf("install microvm.nix on %s: %w", h.name, err)
	}
	return nil
}

func (h *Host) installMicroVM(ctx context.Context, opts MicroVMOptions) error {
	if opts.StateDir == "" {
		opts.StateDir = DefaultStateDir
	}
	if opts.TimeoutSec == 0 {
		opts.TimeoutSec = 150
	}
	data := struct {
		StateDir, Scripts           string
		Notify, SetBooted, Machined bool
		TimeoutSec                  int
	}{opts.StateDir, scriptsDir, opts.UseNotifySockets, !opts.BeforeSetBooted, !opts.BeforeMachined, opts.TimeoutSec}
	units, err := fixtureFiles.ReadDir("fixture")
	if err != nil {
		return err
	}
	for _, u := range units {
		name := u.Name()
		if name == "install-microvm.service" || name == "microvm-set-booted@.service" && opts.BeforeSetBooted {
			continue
		}
		text, err := unitText(name, data)
		if err != nil {
			return err
		}
		if err := h.WriteFile(unitDir+"/"+name, text, 0o644); err != nil {
			return err
		}
	}
	if err := h.Symlink("../microvms.target", unitDir+"/multi-user.target.wants/microvms.target"); err != nil {
		return err
	}
	if err := h.WriteFile("/etc/systemd/system.conf.d/accounting.conf", []byte("[Manager]\nDefaultIOAccounting=yes\n"), 0o644); err != nil {
		return err
	}
	if err := h.WriteFile(scriptsDir+"/set-booted", []byte("#!/bin/sh -e\nrm -f booted\nln -s $(readlink current) booted\n"), 0o555); err != nil {
		return err
	}
	if err := h.installStubs(); err != nil {
		return err
	}
	if err := h.Mkdir(opts.StateDir, 0o775); err != nil {
		return err
	}
	if err := h.chown(opts.StateDir); err != nil {
		return err
	}
	h.mu.Lock()
	h.stateDir = opts.StateDir
	h.mu.Unlock()
	if err := h.reload(ctx); err != nil || !h.Running() {
		return err
	}
	_, err = h.Exec(ctx, "systemctl", "start", "microvms.target")
	return err
}

// installStubs puts the stand-in under the names of all VMMs: it is the name
// that a monitor sees.
func (h *Host) installStubs() error {
	program := stubsDir + "/stand-in"
	if err := h.WriteFile(program, stubProgram(), 0o555); err != nil {
		return err
	}
	from, err := h.place(program)
	if err != nil {
		return err
	}
	for _, name := range stubNames() {
		// Links to one file: one copy in memory for all.
		if err := os.Link(from, filepath.Join(filepath.Dir(from), name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// unitText fills in an embedded unit.
func unitText(name string, data any) ([]byte, error) {
	t, err := template.ParseFS(fixtureFiles, "fixture/"+name)
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	if err := t.Execute(&b, data); err != nil {
		return nil, err
	}
	return []byte(b.String()), nil
}

// reload tells a running systemd that units changed.
func (h *Host) reload(ctx context.Context) error {
	if !h.Running() {
		return nil
	}
	_, err := h.Exec(ctx, "systemctl", "daemon-reload")
	return err
}

// StateDir is the folder of the VM on the host; of all VMs for an empty name.
func (h *Host) StateDir(name string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if name == "" {
		return h.stateDir
	}
	return h.stateDir + "/" + name
}

// MicroVMIDs are the ids of the user microvm and the group kvm on all hosts.
func (l *Lab) MicroVMIDs() (uid, gid int, err error) {
	text, err := os.ReadFile(filepath.Join(l.rootfs.Root(), "etc/passwd"))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "microvm:"); ok {
			_, err := fmt.Sscanf(rest, "x:%d:%d:", &uid, &gid)
			return uid, gid, err
		}
	}
	return 0, 0, errors.New("the root file system has no user microvm")
}

// chown gives files on the host to microvm:kvm, links themselves.
func (h *Host) chown(paths ...string) error {
	uid, gid, err := h.lab.MicroVMIDs()
	if err != nil {
		return err
	}
	for _, p := range paths {
		target, err := h.place(p)
		if err != nil {
			return err
		}
		if err := os.Lchown(target, uid, gid); err != nil {
			return err
		}
	}
	return nil
}

// AddVM lays down one VM as microvm.nix would: the runner in the store, the
// state directory, and drop-ins if it is declared. It does not start it. The
// host may be off.
func (h *Host) AddVM(ctx context.Context, vm VM) error {
	reload, err := h.addVM(&vm)
	if err != nil {
		return fmt.Errorf("add VM %q on %s: %w", vm.Name, h.name, err)
	}
	if reload {
		return h.reload(ctx)
	}
	return nil
}

// addVM writes the VM's files; reload tells whether units are among them.
func (h *Host) addVM(vm *VM) (reload bool, err error) {
	if h.StateDir("") == "" {
		return false, errors.New("InstallMicroVM was not called")
	}
	if err := vm.complete(); err != nil {
		return false, err
	}
	runner, err := h.putStore(vm)
	if err != nil {
		return false, err
	}
	dir := h.StateDir(vm.Name)
	if err := h.Mkdir(dir, 0o755); err != nil {
		return false, err
	}
	if err := h.Symlink(runner, dir+"/current"); err != nil {
		return false, err
	}
	owned := []string{dir, dir + "/current"}
	switch vm.Provenance {
	case Imperative:
		// microvm -c writes it with echo -n.
		if err := h.put(dir+"/flake", []byte(vm.Flake), 0o644); err != nil {
			return false, err
		}
		owned = append(owned, dir+"/flake")
	case Declared:
		if err := h.Symlink(vm.toplevel(), dir+"/toplevel"); err != nil {
			return false, err
		}
		if err := h.declare(vm, runner); err != nil {
			return false, err
		}
		reload = true
	case Deployed:
		old := *vm
		old.Revision--
		if err := h.Symlink(old.runner(), dir+"/old"); err != nil {
			return false, err
		}
	}
	if vm.Notify {
		drop := fmt.Sprintf("%s/microvm@%s.service.d/notify.conf", unitDir, vm.Name)
		if err := h.WriteFile(drop, []byte("[Service]\nType=notify\n"), 0o644); err != nil {
			return false, err
		}
		reload = true
	}
	return reload, h.chown(owned...)
}

// declare writes the units that NixOS makes for a VM in its configuration.
func (h *Host) declare(vm *VM, runner string) error {
	script := storePath("unit-script-install-microvm-"+vm.Name) + "/bin/install-microvm-start"
	text := fmt.Sprintf("#!/bin/sh -e\nmkdir -p '%[1]s'\ncd '%[1]s'\nln -sTf %[2]s current\nchown -h microvm:kvm . current\nln -sTf %[3]s toplevel\n",
		h.StateDir(vm.Name), runner, vm.toplevel())
	if err := h.WriteFile(script, []byte(text), 0o555); err != nil {
		return err
	}
	install := "install-microvm-" + vm.Name + ".service"
	unit, err := unitText("install-microvm.service", struct{ Name, Script string }{vm.Name, script})
	if err != nil {
		return err
	}
	if err := h.WriteFile(unitDir+"/"+install, unit, 0o644); err != nil {
		return err
	}
	wants := []string{install}
	if vm.Autostart {
		wants = append(wants, "microvm@"+vm.Name+".service")
	}
	for _, u := range wants {
		target := "../" + u
		if strings.HasPrefix(u, "microvm@") {
			target = "../microvm@.service"
		}
		if err := h.Symlink(target, unitDir+"/microvms.target.wants/"+u); err != nil {
			return err
		}
	}
	for _, template := range declaredTemplates {
		text := "[Service]\nX-RestartIfChanged=\nX-RestartIfChanged=true\n"
		if template == "microvm" && !vm.Notify {
			text += "Type=simple\n"
		}
		path := fmt.Sprintf("%s/%s@%s.service.d/overrides.conf", unitDir, template, vm.Name)
		if err := h.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// declaredTemplates are those for which NixOS writes a drop-in for each declared
// VM.
var declaredTemplates = []string{"microvm", "microvm-tap-interfaces", "microvm-pci-devices", "microvm-virtiofsd"}

// Undeclare takes the VM out of the host's configuration: its drop-ins and its
// install unit go, the state directory and a running VM stay, as after a
// nixos-rebuild.
func (h *Host) Undeclare(ctx context.Context, name string) error {
	paths := []string{
		unitDir + "/install-microvm-" + name + ".service",
		unitDir + "/microvms.target.wants/install-microvm-" + name + ".service",
		unitDir + "/microvms.target.wants/microvm@" + name + ".service",
	}
	for _, template := range declaredTemplates {
		paths = append(paths, fmt.Sprintf("%s/%s@%s.service.d", unitDir, template, name))
	}
	for _, p := range paths {
		if err := h.Remove(p); err != nil {
			return fmt.Errorf("undeclare %q: %w", name, err)
		}
	}
	return h.reload(ctx)
}

// Rebuild lays down a changed VM beside the running one: a new runner in the
// store, and current points to it; booted still names the one that runs.
func (h *Host) Rebuild(vm VM) error {
	if vm.Revision == 0 {
		vm.Revision = 1
	}
	if _, err := h.addVM(&vm); err != nil {
		return fmt.Errorf("rebuild VM %q on %s: %w", vm.Name, h.name, err)
	}
	return nil
}

// StartVMs starts the VMs of these names, a bounded number at a time, and waits
// for each batch.
func (h *Host) StartVMs(ctx context.Context, names ...string) error {
	return h.batches(ctx, "start", names)
}

// StopVMs is StartVMs' opposite.
func (h *Host) StopVMs(ctx context.Context, names ...string) error {
	return h.batches(ctx, "stop", names)
}

func (h *Host) batches(ctx context.Context, verb string, names []string) error {
	// More in one call gains nothing and a command line has an end.
	const batch = 100
	for len(names) > 0 {
		n := min(batch, len(names))
		argv := []string{"systemctl", verb, "--"}
		for _, name := range names[:n] {
			argv = append(argv, "microvm@"+name+".service")
		}
		if _, err := h.Exec(ctx, argv...); err != nil {
			return err
		}
		names = names[n:]
	}
	return nil
}

// AddVMs lays down n VMs of one kind, named after vm.Name with a number from 1,
// and returns their names. vm's taps and host name are numbered too.
func (h *Host) AddVMs(ctx context.Context, vm VM, n int) ([]string, error) {
	names := make([]string, 0, n)
	units := false
	for i := 1; i <= n; i++ {
		one := vm
		one.Name = fmt.Sprintf("%s%d", vm.Name, i)
		if vm.HostName != "" {
			one.HostName = fmt.Sprintf("%s%d", vm.HostName, i)
		}
		one.Taps = nil
		for _, tap := range vm.Taps {
			one.Taps = append(one.Taps, fmt.Sprintf("%s%d", tap, i))
		}
		if err := ctx.Err(); err != nil {
			return names, err
		}
		reload, err := h.addVM(&one)
		if err != nil {
			return names, fmt.Errorf("add VM %q on %s: %w", one.Name, h.name, err)
		}
		units = units || reload
		names = append(names, one.Name)
	}
	if units {
		return names, h.reload(ctx)
	}
	return names, nil
}

// storePath is a path in the store for a thing of that name; the same name gives
// the same path.
func storePath(name string) string {
	return path.Join(storeDir, storeHash(name)+"-"+name)
}
