package metrics

import (
	"slices"

	"github.com/blixard/blixard"
)

// states and statuses are the labels of the state sets, in the order of the
// lists they come from.
var (
	states   = labels("state", blixard.VMStates)
	statuses = labels("status", blixard.HealthStatuses)
)

func labels[T ~string](name string, values []T) [][]byte {
	out := make([][]byte, len(values))
	for i, v := range values {
		out[i] = label(name, string(v))
	}
	return out
}

// vmFamilies writes the series of VMs. They are family by family, as the formats
// want it; each VM's own labels are made once.
func (p *page) vmFamilies(vms []blixard.VM) {
	ends := make([]int, len(vms))
	var all []byte
	for i := range vms {
		all = append(appendLabel(all, "vm", vms[i].Name), ',')
		all = appendLabel(all, "manager", vms[i].Manager)
		ends[i] = len(all)
	}
	each := func(name, kind, help string, sample func(vm *blixard.VM, own []byte)) {
		p.family(name, kind, help)
		start := 0
		for i := range vms {
			sample(&vms[i], all[start:ends[i]])
			start = ends[i]
		}
	}

	var scratch []byte
	each("blixard_vm_info", info, "What a VM is; always 1.", func(vm *blixard.VM, own []byte) {
		scratch = appendLabel(scratch[:0], "unit", vm.Unit)
		n := len(scratch)
		scratch = appendLabel(scratch, "hypervisor", vm.Hypervisor)
		p.sample("blixard_vm_info", 1, own, scratch[:n], scratch[n:])
	})
	each("blixard_vm_state", gauge, "1 for the state that the VM is in, 0 for the others.", func(vm *blixard.VM, own []byte) {
		p.set("blixard_vm_state", slices.Index(blixard.VMStates, vm.State), states, own)
	})
	each("blixard_vm_health", gauge, "1 for the verdict on the VM, 0 for the others; absent while there is none.", func(vm *blixard.VM, own []byte) {
		if vm.Health != nil {
			p.set("blixard_vm_health", slices.Index(blixard.HealthStatuses, vm.Health.Status), statuses, own)
		}
	})
	each("blixard_vm_start_time_seconds", gauge, "When systemd last changed the state of the VM's running service, in seconds since 1970; absent while it does not run.", func(vm *blixard.VM, own []byte) {
		if vm.State == blixard.StateRunning && vm.Since != nil {
			p.sample("blixard_vm_start_time_seconds", unix(*vm.Since), own)
		}
	})
	each("blixard_vm_restarts_total", counter, "Automatic restarts by systemd since the VM was last started by hand; absent while its unit is not loaded.", func(vm *blixard.VM, own []byte) {
		if vm.Restarts != nil {
			p.sample("blixard_vm_restarts_total", float64(*vm.Restarts), own)
		}
	})
	each("blixard_vm_helper_state", gauge, "1 for the state that a unit beside the VM is in; the other states are left out.", func(vm *blixard.VM, own []byte) {
		for _, h := range vm.Helpers {
			if i := slices.Index(blixard.VMStates, h.State); i >= 0 {
				scratch = appendLabel(scratch[:0], "helper", h.Name)
				p.sample("blixard_vm_helper_state", 1, own, scratch, states[i])
			}
		}
	})
	each("blixard_vm_config_pending", gauge, "Whether the VM needs a restart to take up its configuration; absent where that is not known.", func(vm *blixard.VM, own []byte) {
		if vm.Config == blixard.ConfigCurrent || vm.Config == blixard.ConfigStale {
			p.sample("blixard_vm_config_pending", truth(vm.Config == blixard.ConfigStale), own)
		}
	})
	each("blixard_vm_stale", gauge, "Whether the VM is recorded but missing from its host.", func(vm *blixard.VM, own []byte) {
		p.sample("blixard_vm_stale", truth(vm.Stale), own)
	})
	each("blixard_vm_sample_age_seconds", gauge, "Time since the VM's state was last confirmed; absent while it never was.", func(vm *blixard.VM, own []byte) {
		if vm.AgeSeconds != nil {
			p.sample("blixard_vm_sample_age_seconds", *vm.AgeSeconds, own)
		}
	})
}
