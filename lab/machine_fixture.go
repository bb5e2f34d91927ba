package lab

import (
	"context"
	"fmt"
)

// machineBridge makes what a host has from its start: the bridge that guests'
// taps are put on, and the device that makes them.
const machineBridge = `modprobe tun
[ -e /sys/class/net/vmbr ] || ip link add name vmbr type bridge
ip link set vmbr up`

// InstallMicroVM is Host.InstallMicroVM for a machine, which must be on. The
// bridge vmbr for guests' taps is made too and lasts until the machine is off.
func (m *Machine) InstallMicroVM(ctx context.Context, opts MicroVMOptions) error {
	if _, err := m.Exec(ctx, "sh", "-ec", machineBridge); err != nil {
		return fmt.Errorf("install microvm.nix on %s: %w", m.name, err)
	}
	return installMicroVM(ctx, m, opts)
}

// AddVM is Host.AddVM for a machine, which must be on. VMMs are stand-ins: a
// guest within a guest would take minutes to boot.
func (m *Machine) AddVM(ctx context.Context, vms ...VM) error { return addVM(ctx, m, vms) }

// StateDir is the folder of the VM on the machine; of all VMs for an empty name.
func (m *Machine) StateDir(name string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if name == "" {
		return m.stateDir
	}
	return m.stateDir + "/" + name
}

func (m *Machine) setStateDir(dir string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stateDir = dir
}
