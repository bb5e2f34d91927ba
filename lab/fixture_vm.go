package lab

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"
)

// Provenance is how a VM came to a host, as its state directory shows it.
type Provenance string

const (
	// Imperative: made by "microvm -c"; has the file flake.
	Imperative Provenance = "imperative"
	// Declared in the host's configuration: has toplevel, drop-ins, and an
	// install unit.
	Declared Provenance = "declared"
	// Deployed over ssh: has old, the runner before the present one.
	Deployed Provenance = "deployed"
	// Unmarked: has none of these.
	Unmarked Provenance = "unmarked"
)

// VM is a microVM as its runner, state directory and units show it. Only Name is
// needed.
type VM struct {
	// Name is the instance and the folder; taken verbatim.
	Name string
	// HostName is the guest's; default Name, with what no host name can have
	// replaced. Process, socket and store folder are named after it.
	HostName string
	// Hypervisor is microvm.nix's name of the VMM; default qemu.
	Hypervisor string
	// MemoryMB and VCPUs show on the VMM's command line; defaults 512 and 1.
	MemoryMB, VCPUs int
	// Provenance defaults to Imperative.
	Provenance Provenance
	// Flake is the reference an imperative VM was made from.
	Flake string
	// Autostart makes microvms.target want a declared VM.
	Autostart bool
	// Taps are names of tap interfaces, at most 15 bytes each, put on the
	// bridge vmbr by the tap helper.
	Taps []string
	// Macvtaps are made by the macvtap helper.
	Macvtaps []Macvtap
	// Virtiofs are tags of shares, which need the virtiofsd helper.
	Virtiofs []string
	// PCIDevices are addresses for the PCI helper, which here does nothing.
	PCIDevices []string
	// VsockCID is the guest's, 0 for none.
	VsockCID int
	// Revision tells builds of one VM apart: it changes the store path.
	Revision int

	// NoShutdown leaves out microvm-shutdown, as VMs without a socket have it.
	// Hypervisors that never have one need no saying.
	NoShutdown bool
	// Bare leaves out share/microvm/{system,hypervisor}, as a VM with a store
	// disk of before 2026 has it.
	Bare bool
	// Notify makes it Type=notify by drop-in; its readiness is told at once.
	Notify bool
	// ExitCode, if not 0, is what microvm-run ends with after ExitAfter: a crash
	// loop. At once may be before systemd has run ExecStartPost, and then the
	// start itself fails; later it was active for a while.
	ExitCode  int
	ExitAfter time.Duration
	// IdleHelpers gives it all five helpers with nothing to do: units that are
	// active at the cost of a process each, for crowds.
	IdleHelpers bool
	// HelpersFail names helpers whose start fails: "tap-up", "macvtap-up",
	// "pci-setup", "virtiofsd-run".
	HelpersFail []string

	// Runner brings a real VMM; nil means the stand-in. Its files replace those
	// of the same path.
	Runner Runner
}

// Runner makes the files of the store folder that start and stop a VMM.
type Runner func(vm VM) ([]File, error)

// File is a file of a store folder.
type File struct {
	// Path is relative to the folder.
	Path string
	Data []byte
	Mode fs.FileMode
	// Link makes it a symbolic link.
	Link string
}

// Macvtap is one line of share/microvm/macvtap-interfaces.
type Macvtap struct {
	ID, MAC string
	// Link is the interface below, such as vmbr; Mode is private, vepa or
	// bridge.
	Link, Mode string
}

// hypervisor is what a VMM looks like to a host.
type hypervisor struct {
	comm string // base name of its program
	// canShutdown: microvm.nix makes a microvm-shutdown for it.
	canShutdown bool
	args        func(vm *VM) []string
}

var hypervisors = map[string]hypervisor{
	"qemu": {"qemu-system-x86_64", true, func(vm *VM) []string {
		return []string{"-name", vm.HostName, "-M", "microvm,accel=kvm:tcg", "-m", fmt.Sprintf("%dM", vm.MemoryMB),
			"-smp", fmt.Sprint(vm.VCPUs), "-nodefaults", "-no-user-config", "-no-reboot",
			"-qmp", "unix:" + vm.HostName + ".sock,server,nowait"}
	}},
	"cloud-hypervisor": {"cloud-hypervisor", true, func(vm *VM) []string {
		return []string{"--cpus", fmt.Sprintf("boot=%d", vm.VCPUs), "--watchdog",
			"--memory", fmt.Sprintf("mergeable=on,shared=on,size=%dM", vm.MemoryMB), "--api-socket", vm.HostName + ".sock"}
	}},
	"firecracker": {"firecracker", true, func(vm *VM) []string {
		return []string{"--config-file", vm.firecrackerConfig(), "--api-sock", vm.HostName + ".sock"}
	}},
	"crosvm": {"crosvm", true, func(vm *VM) []string {
		return []string{"run", "-m", fmt.Sprint(vm.MemoryMB), "-c", fmt.Sprint(vm.VCPUs),
			"--serial", "type=stdout,console=true,stdin=true", "-s", vm.HostName + ".sock"}
	}},
	"kvmtool": {"lkvm", false, func(vm *VM) []string {
		return []string{"run", "--name", vm.HostName, "-m", fmt.Sprint(vm.MemoryMB), "-c", fmt.Sprint(vm.VCPUs), "--console", "serial"}
	}},
	"stratovirt": {"unbuffer", false, func(vm *VM) []string {
		return []string{stubsDir + "/stratovirt", "-name", vm.HostName, "-machine", "microvm", "-m", fmt.Sprint(vm.MemoryMB), "-smp", fmt.Sprint(vm.VCPUs)}
	}},
	"alioth": {"alioth", false, func(vm *VM) []string {
		return []string{"run", "--memory", fmt.Sprintf("size=%dM,backend=memfd", vm.MemoryMB), "--num-cpu", fmt.Sprint(vm.VCPUs)}
	}},
}

// Hypervisors are the names that VM.Hypervisor may have, sorted.
func Hypervisors() []string {
	var names []string
	for name := range hypervisors {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// stubNames are the program names under which the stand-in is installed.
func stubNames() []string {
	names := []string{"stratovirt", "supervisord", "virtiofsd"}
	for _, hv := range hypervisors {
		names = append(names, hv.comm)
	}
	return names
}

// complete fills in defaults and refuses what no host could have.
func (vm *VM) complete() error {
	if vm.Name == "" || vm.Name == "." || vm.Name == ".." || strings.ContainsAny(vm.Name, "/\x00") || len(vm.Name) > 255 {
		return errors.New("no folder can have that name")
	}
	if vm.HostName == "" {
		vm.HostName = hostNameOf(vm.Name)
	}
	if vm.Hypervisor == "" {
		vm.Hypervisor = "qemu"
	}
	if _, ok := hypervisors[vm.Hypervisor]; !ok {
		return fmt.Errorf("unknown hypervisor %q: one of %s", vm.Hypervisor, strings.Join(Hypervisors(), ", "))
	}
	if vm.MemoryMB == 0 {
		vm.MemoryMB = 512
	}
	if vm.VCPUs == 0 {
		vm.VCPUs = 1
	}
	if vm.Provenance == "" {
		vm.Provenance = Imperative
	}
	if vm.Flake == "" {
		vm.Flake = "git+file:///etc/nixos"
	}
	for _, tap := range vm.Taps {
		if tap == "" || len(tap) > 15 {
			return fmt.Errorf("tap %q: 1 to 15 bytes", tap)
		}
	}
	return nil
}

// hostNameOf makes a host name of a VM's.
func hostNameOf(name string) string {
	const maxHostName = 63
	name = strings.Map(func(r rune) rune {
		if r == '-' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' {
			return r
		}
		return '-'
	}, name)
	if name[0] == '-' {
		name = "x" + name
	}
	return name[:min(maxHostName, len(name))]
}

// build tells this build of this VM from all others.
func (vm *VM) build() string { return fmt.Sprintf("%s %s %d", vm.Name, vm.HostName, vm.Revision) }

// runner is the store folder that current points to.
func (vm *VM) runner() string {
	name := fmt.Sprintf("microvm-%s-%s", vm.Hypervisor, vm.HostName)
	return path.Join(storeDir, storeHash(vm.build()+name)+"-"+name)
}

// toplevel is the guest's system.
func (vm *VM) toplevel() string {
	name := "nixos-system-" + vm.HostName + "-26.05"
	return path.Join(storeDir, storeHash(vm.build()+name)+"-"+name)
}

// firecrackerConfig is the file that firecracker is told all in.
func (vm *VM) firecrackerConfig() string {
	name := "firecracker-" + vm.HostName + ".json"
	return path.Join(storeDir, storeHash(vm.build()+name)+"-"+name)
}

// storeHash is 32 characters of Nix's alphabet.
func storeHash(of string) string {
	const alphabet = "0123456789abcdfghijklmnpqrsvwxyz"
	sum := sha256.Sum256([]byte(of))
	b := make([]byte, 32)
	for i := range b {
		b[i] = alphabet[sum[i]%32]
	}
	return string(b)
}

// quote makes s one word of a shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// storeFiles are those of the VM in the store.
func (vm *VM) storeFiles() ([]entry, error) {
	files := vm.files()
	if vm.Runner != nil {
		own, err := vm.Runner(*vm)
		if err != nil {
			return nil, fmt.Errorf("make runner: %w", err)
		}
		for _, f := range own {
			files = slices.DeleteFunc(files, func(have File) bool { return have.Path == f.Path })
		}
		files = append(files, own...)
	}
	entries := make([]entry, 0, len(files)+1)
	for _, f := range files {
		f.Path = path.Join(vm.runner(), f.Path)
		entries = append(entries, entry{File: f})
	}
	if vm.Hypervisor == "firecracker" {
		entries = append(entries, textFile(vm.firecrackerConfig(), 0o444, fmt.Sprintf(
			`{"boot-source":{"kernel_image_path":"vmlinux"},"machine-config":{"vcpu_count":%d,"mem_size_mib":%d}}`, vm.VCPUs, vm.MemoryMB)))
	}
	return entries, nil
}

// files are those of the store folder with the stand-in as VMM.
func (vm *VM) files() []File {
	var files []File
	script := func(name, text string) {
		if slices.Contains(vm.HelpersFail, name) {
			text = "echo 'made to fail' >&2\nexit 1\n"
		}
		files = append(files, File{Path: "bin/" + name, Data: []byte("#!/bin/bash\n" + text), Mode: 0o555})
	}
	share := func(name, text string) {
		files = append(files, File{Path: "share/microvm/" + name, Data: []byte(text), Mode: 0o444})
	}
	script("microvm-run", vm.runScript())
	if hypervisors[vm.Hypervisor].canShutdown && !vm.NoShutdown {
		// As the real ones: ask, then wait for the process to go.
		script("microvm-shutdown", "kill -USR1 $MAINPID\nwhile kill -0 $MAINPID 2>/dev/null; do sleep 0.02; done\n")
	}
	if len(vm.Taps) > 0 {
		up, down := "set -eu\n", ""
		for _, tap := range vm.Taps {
			id := quote(tap)
			up += fmt.Sprintf("[ ! -e /sys/class/net/%[1]s ] || ip link delete %[1]s\nip tuntap add name %[1]s mode tap user microvm vnet_hdr\nip link set %[1]s master vmbr up\n", id)
			down += fmt.Sprintf("ip link delete %s\n", id)
		}
		script("tap-up", up)
		script("tap-down", down)
		share("tap-interfaces", strings.Join(vm.Taps, "\n")+"\n")
	}
	if len(vm.Macvtaps) > 0 {
		up, down, lines := "set -eu\n", "", ""
		for _, m := range vm.Macvtaps {
			// Without udev nobody makes the device file: the last two lines do.
			up += fmt.Sprintf("[ ! -e /sys/class/net/%[1]s ] || ip link delete %[1]s\n"+
				"ip link add link %[2]s name %[1]s address %[3]s type macvtap mode %[4]s\nip link set %[1]s up\n"+
				"IFS=: read -r major minor < <(cat /sys/class/net/%[1]s/tap*/dev)\n"+
				"t=/dev/tap$(</sys/class/net/%[1]s/ifindex); rm -f $t; mknod $t c $major $minor; chown microvm:kvm $t\n",
				quote(m.ID), quote(m.Link), quote(m.MAC), quote(m.Mode))
			down += fmt.Sprintf("ip link delete %s\n", quote(m.ID))
			lines += fmt.Sprintf("%s %s %s %s\n", m.ID, m.MAC, m.Link, m.Mode)
		}
		script("macvtap-up", up)
		script("macvtap-down", down)
		share("macvtap-interfaces", lines)
	}
	if len(vm.PCIDevices) > 0 {
		script("pci-setup", "true\n")
		share("pci-devices", strings.Join(vm.PCIDevices, "\n")+"\n")
	}
	if len(vm.Virtiofs) > 0 {
		script("virtiofsd-run", vm.virtiofsdScript())
		for _, tag := range vm.Virtiofs {
			share("virtiofs/"+tag+"/socket", fmt.Sprintf("%s-virtiofs-%s.sock\n", vm.HostName, tag))
			share("virtiofs/"+tag+"/source", "/srv/"+tag+"\n")
		}
	}
	if vm.IdleHelpers {
		for _, name := range []string{"tap-up", "tap-down", "macvtap-up", "macvtap-down", "pci-setup"} {
			files = append(files, File{Path: "bin/" + name, Link: "/bin/true"})
		}
		script("virtiofsd-run", vm.virtiofsdScript())
	}
	share("tap-flags", "vnet_hdr\n")
	if vm.VsockCID != 0 {
		share("vsock-cid", fmt.Sprintf("%d\n", vm.VsockCID))
	}
	if !vm.Bare {
		share("hypervisor", vm.Hypervisor+"\n")
		files = append(files, File{Path: "share/microvm/system", Link: vm.toplevel()})
	}
	return files
}

// runScript starts the stand-in as the runner starts the VMM: the shell becomes
// it, under the name microvm@<hostName>.
func (vm *VM) runScript() string {
	if vm.ExitCode != 0 {
		return fmt.Sprintf("echo 'made to fail' >&2\nsleep %.3f\nexit %d\n", vm.ExitAfter.Seconds(), vm.ExitCode)
	}
	var b strings.Builder
	if vm.Notify {
		b.WriteString("systemd-notify --ready --status='guest is up'\n")
	}
	hv := hypervisors[vm.Hypervisor]
	program := stubsDir + "/" + hv.comm
	if vm.Hypervisor == "stratovirt" {
		// unbuffer keeps the VMM as its child.
		fmt.Fprintf(&b, "%s/stratovirt &\n", stubsDir)
	}
	fmt.Fprintf(&b, "exec -a %s %s", quote("microvm@"+vm.HostName), program)
	for _, arg := range hv.args(vm) {
		b.WriteString(" " + quote(arg))
	}
	return b.String() + "\n"
}

// virtiofsdScript starts one stand-in for each share and becomes their
// supervisor.
func (vm *VM) virtiofsdScript() string {
	var b strings.Builder
	for _, tag := range vm.Virtiofs {
		fmt.Fprintf(&b, "%s/virtiofsd --socket-path=%s --shared-dir=%s &\n", stubsDir,
			quote(vm.HostName+"-virtiofs-"+tag+".sock"), quote("/srv/"+tag))
	}
	b.WriteString("systemd-notify --ready\n")
	fmt.Fprintf(&b, "exec %s/supervisord --configuration %s\n", stubsDir,
		quote(storePath(vm.HostName+"-virtiofsd-supervisord.conf")))
	return b.String()
}
