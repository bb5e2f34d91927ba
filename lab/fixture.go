package lab

import (
	"context"
	"embed"
	"errors"
	"fmt"
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
// it. The host may be off; if it runs, systemd is told and starts the target. The
// user microvm and the group kvm are in the root file system already.
func (h *Host) InstallMicroVM(ctx context.Context, opts MicroVMOptions) error {
	return installMicroVM(ctx, h, opts)
}

// installFiles are what microvm.nix's host module puts on a host. opts must be
// complete.
func installFiles(opts MicroVMOptions) ([]entry, error) {
	data := struct {
		StateDir, Scripts           string
		Notify, SetBooted, Machined bool
		TimeoutSec                  int
	}{opts.StateDir, scriptsDir, opts.UseNotifySockets, !opts.BeforeSetBooted, !opts.BeforeMachined, opts.TimeoutSec}
	units, err := fixtureFiles.ReadDir("fixture")
	if err != nil {
		return nil, err
	}
	var files []entry
	for _, u := range units {
		name := u.Name()
		if name == "install-microvm.service" || name == "microvm-set-booted@.service" && opts.BeforeSetBooted {
			continue
		}
		text, err := unitText(name, data)
		if err != nil {
			return nil, err
		}
		files = append(files, textFile(unitDir+"/"+name, 0o644, string(text)))
	}
	files = append(files,
		linkFile(unitDir+"/multi-user.target.wants/microvms.target", "../microvms.target"),
		textFile("/etc/systemd/system.conf.d/accounting.conf", 0o644, "[Manager]\nDefaultIOAccounting=yes\n"),
		textFile(scriptsDir+"/set-booted", 0o555, "#!/bin/sh -e\nrm -f booted\nln -s $(readlink current) booted\n"),
		owned(folder(opts.StateDir, 0o775)))
	// The stand-in under the names of all VMMs: it is the name that a monitor
	// sees. Links to one file: one copy in memory for all.
	program := stubsDir + "/stand-in"
	files = append(files, entry{File: File{Path: program, Data: stubProgram(), Mode: 0o555}})
	for _, name := range stubNames() {
		files = append(files, entry{File: File{Path: stubsDir + "/" + name, Link: program}, hard: true})
	}
	return files, nil
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

// StateDir is the folder of the VM on the host; of all VMs for an empty name.
func (h *Host) StateDir(name string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if name == "" {
		return h.stateDir
	}
	return h.stateDir + "/" + name
}

func (h *Host) setStateDir(dir string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stateDir = dir
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

// AddVM lays down VMs as microvm.nix would: the runner in the store, the state
// directory, and drop-ins if one is declared. It does not start them. The host
// may be off.
func (h *Host) AddVM(ctx context.Context, vms ...VM) error { return addVM(ctx, h, vms) }

// vmFiles are the files of a complete VM on a host with that state directory.
func vmFiles(stateDir string, vm *VM) ([]entry, error) {
	files, err := vm.storeFiles()
	if err != nil {
		return nil, err
	}
	dir := stateDir + "/" + vm.Name
	files = append(files, owned(folder(dir, 0o755)), owned(linkFile(dir+"/current", vm.runner())))
	switch vm.Provenance {
	case Imperative:
		// microvm -c writes it with echo -n.
		files = append(files, owned(textFile(dir+"/flake", 0o644, vm.Flake)))
	case Declared:
		declared, err := declaredFiles(stateDir, vm)
		if err != nil {
			return nil, err
		}
		files = append(append(files, linkFile(dir+"/toplevel", vm.toplevel())), declared...)
	case Deployed:
		old := *vm
		old.Revision--
		files = append(files, linkFile(dir+"/old", old.runner()))
	}
	if vm.Notify {
		drop := fmt.Sprintf("%s/microvm@%s.service.d/notify.conf", unitDir, vm.Name)
		files = append(files, textFile(drop, 0o644, "[Service]\nType=notify\n"))
	}
	return files, nil
}

// declaredFiles are the units that NixOS makes for a VM in its configuration.
func declaredFiles(stateDir string, vm *VM) ([]entry, error) {
	script := storePath("unit-script-install-microvm-"+vm.Name) + "/bin/install-microvm-start"
	install := "install-microvm-" + vm.Name + ".service"
	unit, err := unitText("install-microvm.service", struct{ Name, Script string }{vm.Name, script})
	if err != nil {
		return nil, err
	}
	files := []entry{
		textFile(script, 0o555, fmt.Sprintf("#!/bin/sh -e\nmkdir -p '%[1]s'\ncd '%[1]s'\nln -sTf %[2]s current\nchown -h microvm:kvm . current\nln -sTf %[3]s toplevel\n",
			stateDir+"/"+vm.Name, vm.runner(), vm.toplevel())),
		textFile(unitDir+"/"+install, 0o644, string(unit)),
		linkFile(unitDir+"/microvms.target.wants/"+install, "../"+install),
	}
	if vm.Autostart {
		files = append(files, linkFile(unitDir+"/microvms.target.wants/microvm@"+vm.Name+".service", "../microvm@.service"))
	}
	for _, template := range declaredTemplates {
		text := "[Service]\nX-RestartIfChanged=\nX-RestartIfChanged=true\n"
		if template == "microvm" && !vm.Notify {
			text += "Type=simple\n"
		}
		files = append(files, textFile(fmt.Sprintf("%s/%s@%s.service.d/overrides.conf", unitDir, template, vm.Name), 0o644, text))
	}
	return files, nil
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
	return reload(ctx, h)
}

// Rebuild lays down a changed VM beside the running one: a new runner in the
// store, and current points to it; booted still names the one that runs.
func (h *Host) Rebuild(vm VM) error {
	if vm.Revision == 0 {
		vm.Revision = 1
	}
	if _, err := layVM(context.Background(), h, &vm); err != nil {
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
		changed, err := layVM(ctx, h, &one)
		if err != nil {
			return names, fmt.Errorf("add VM %q on %s: %w", one.Name, h.name, err)
		}
		units = units || changed
		names = append(names, one.Name)
	}
	if units {
		return names, reload(ctx, h)
	}
	return names, nil
}

// storePath is a path in the store for a thing of that name; the same name gives
// the same path.
func storePath(name string) string {
	return path.Join(storeDir, storeHash(name)+"-"+name)
}
