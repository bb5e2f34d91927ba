package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/blixard/blixard"
)

func (a *app) vmCommand() *cobra.Command {
	return a.group("vm", "MicroVMs", a.vmListCommand(), a.vmShowCommand(), a.vmEventsCommand(), a.vmAdoptCommand(), a.vmRemoveCommand())
}

// vmNoun is what lists know of VMs.
func vmNoun() *noun[blixard.VM] {
	return &noun[blixard.VM]{
		fields: []field[blixard.VM]{
			{"name", "VM", vmName},
			{"id", "ID", func(v *blixard.VM) value { return text(v.ID) }},
			{"node", "NODE", func(v *blixard.VM) value { return text(v.Node) }},
			{"manager", "MANAGER", func(v *blixard.VM) value { return text(v.Manager) }},
			{"unit", "UNIT", func(v *blixard.VM) value { return text(v.Unit) }},
			{"health", "HEALTH", vmHealth},
			{"state", "STATE", vmState},
			{"substate", "SUBSTATE", func(v *blixard.VM) value { return text(v.Substate) }},
			{"ready", "READY", func(v *blixard.VM) value { return booleanAt(v.Ready) }},
			{"config", "CONFIG", vmConfig},
			{"hypervisor", "HYPERVISOR", func(v *blixard.VM) value { return text(v.Hypervisor) }},
			{"host_name", "GUEST", func(v *blixard.VM) value { return text(v.HostName) }},
			{"provenance", "PROVENANCE", func(v *blixard.VM) value { return text(string(v.Provenance)) }},
			{"orphan", "ORPHAN", func(v *blixard.VM) value { return boolean(v.Orphan) }},
			{"vsock_cid", "CID", func(v *blixard.VM) value { return nonzero(v.VsockCID) }},
			{"main_pid", "PID", func(v *blixard.VM) value { return nonzero(v.MainPID) }},
			{"invocation_id", "INVOCATION", func(v *blixard.VM) value { return text(v.InvocationID) }},
			{"restarts_last_hour", "RESTARTS/1h", func(v *blixard.VM) value { return numberAt(v.RestartsLastHour) }},
			{"restarts", "RESTARTS", func(v *blixard.VM) value { return numberAt(v.Restarts) }},
			{"result", "RESULT", func(v *blixard.VM) value { return text(v.Result) }},
			{"exit_code", "EXIT", func(v *blixard.VM) value { return numberAt(v.ExitCode) }},
			{"exit_signal", "SIGNAL", func(v *blixard.VM) value { return text(v.ExitSignal) }},
			{"intended", "INTENDED", func(v *blixard.VM) value { return boolean(v.Intended) }},
			{"since", "SINCE", func(v *blixard.VM) value { return moment(v.Since) }},
			{"control_group", "CGROUP", func(v *blixard.VM) value { return text(v.ControlGroup) }},
			{"stale", "STALE", func(v *blixard.VM) value { return boolean(v.Stale) }},
			{"removed_at", "REMOVED", func(v *blixard.VM) value { return moment(v.RemovedAt) }},
			{"last_seen", "LAST SEEN", func(v *blixard.VM) value { return moment(v.LastSeen) }},
			{"age_seconds", "AGE", func(v *blixard.VM) value { return ageOf(v.AgeSeconds) }},
		},
		table: []string{"name", "node", "health", "state", "config", "restarts_last_hour", "age_seconds"},
		wide: []string{"name", "node", "health", "state", "substate", "ready", "config", "hypervisor", "main_pid",
			"restarts_last_hour", "restarts", "result", "since", "unit", "age_seconds"},
		id:    func(v *blixard.VM) string { return v.ID },
		order: worstFirst,
	}
}

// worstFirst orders VMs by their verdict, one without is unknown, and then by
// name.
func worstFirst(a, b *blixard.VM) int {
	return cmp.Or(-cmp.Compare(verdict(a).Severity(), verdict(b).Severity()),
		cmp.Compare(a.Name, b.Name), cmp.Compare(a.Node, b.Node), cmp.Compare(a.Manager, b.Manager))
}

func verdict(v *blixard.VM) blixard.HealthStatus {
	if v.Health == nil {
		return blixard.HealthUnknown
	}
	return v.Health.Status
}

// vmName tells a user's VM from the system's of the same name.
func vmName(v *blixard.VM) value {
	out := text(v.Name)
	if v.Manager != blixard.SystemManager {
		out.text = v.Manager + "/" + v.Name
	}
	return out
}

func vmHealth(v *blixard.VM) value {
	if v.Health == nil {
		return value{}
	}
	return healthOf(v.Health.Status)
}

// vmState is the state; people also see that the VM was removed or is missing.
func vmState(v *blixard.VM) value {
	out := text(string(v.State))
	switch v.State {
	case blixard.StateRunning:
		out.tone = good
	case blixard.StateStarting, blixard.StateStopping:
		out.tone = warn
	case blixard.StateFailed, blixard.StateCrashlooping:
		out.tone = bad
	case blixard.StateStopped:
		out.tone = dim
	default:
		out.tone = odd
	}
	if v.RemovedAt != nil {
		out.text = "removed, " + out.text
	}
	if v.Stale {
		out.text += ", missing"
	}
	return out
}

func vmConfig(v *blixard.VM) value {
	out := text(string(v.Config))
	if v.Config == blixard.ConfigStale {
		out.tone = warn
	}
	return out
}

// vmSummary counts the VMs shown by verdict; all is how many there are.
func vmSummary(shown []blixard.VM, all int) string {
	counts := map[blixard.HealthStatus]int{}
	for i := range shown {
		counts[verdict(&shown[i])]++
	}
	var parts []string
	for _, h := range blixard.HealthStatuses {
		if n := counts[h]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, h))
			delete(counts, h)
		}
	}
	for h, n := range counts {
		parts = append(parts, fmt.Sprintf("%d %s", n, safe(string(h))))
	}
	s := plural(all, "VM")
	if len(shown) != all {
		s = fmt.Sprintf("%d of %s", len(shown), s)
	}
	if len(parts) > 0 {
		s += ": " + strings.Join(parts, ", ")
	}
	return s
}

// vmRef reads a VM's address.
func vmRef(s string) (blixard.VMRef, error) { return blixard.ParseVMRef(s) }

// completionTime is how long a shell may wait for names.
const completionTime = 300 * time.Millisecond

// completeVMs offers the names of the VMs, and addresses where a name is not
// enough, if the daemon answers at once.
func (a *app) completeVMs(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	client, err := a.dial(nil)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer client.Close()
	l, err := client.VMs(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	count := map[string]int{}
	for i := range l.Items {
		count[l.Items[i].Name]++
	}
	var out []cobra.Completion
	for i := range l.Items {
		v := &l.Items[i]
		word := v.ID
		if count[v.Name] == 1 && !strings.Contains(prefix, "/") {
			word = v.Name
		}
		if strings.HasPrefix(word, prefix) && word == safe(word) {
			out = append(out, cobra.CompletionWithDesc(word, safe(string(v.State))))
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
