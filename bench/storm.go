package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/blixard/blixard"
)

// truth is what systemd says of a VM's unit.
type truth struct {
	active, sub, invocation string
	restarts                uint32
}

// truths asks systemd for the units of all VMs.
func (s *site) truths(ctx context.Context) (map[string]truth, error) {
	out, err := s.Exec(ctx, "systemctl", "show", "-p", "Id,ActiveState,SubState,InvocationID,NRestarts", "microvm@*.service")
	if err != nil {
		return nil, err
	}
	return parseTruths(out)
}

func parseTruths(text string) (map[string]truth, error) {
	all := map[string]truth{}
	for block := range strings.SplitSeq(strings.TrimSpace(text), "\n\n") {
		var name string
		var t truth
		for line := range strings.Lines(block) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			switch key {
			case "Id":
				name = strings.TrimSuffix(strings.TrimPrefix(value, "microvm@"), ".service")
			case "ActiveState":
				t.active = value
			case "SubState":
				t.sub = value
			case "InvocationID":
				t.invocation = value
			case "NRestarts":
				n, err := strconv.ParseUint(value, 10, 32)
				if err != nil {
					return nil, fmt.Errorf("parse systemctl show: %w", err)
				}
				t.restarts = uint32(n)
			}
		}
		if name == "" {
			return nil, fmt.Errorf("parse systemctl show: no Id in %q", block)
		}
		all[name] = t
	}
	return all, nil
}

// differences are the VMs of which the API says something else than systemd:
// state, run or count of restarts, one line each.
func differences(want map[string]truth, have map[string]*blixard.VM) []string {
	var out []string
	for name, w := range want {
		vm := have[name]
		switch {
		case vm == nil:
			out = append(out, name+": not shown")
		case w.active != "active" || w.sub != "running":
			out = append(out, fmt.Sprintf("%s: systemd says %s (%s), which is not at rest", name, w.active, w.sub))
		case vm.State != blixard.StateRunning || vm.Substate != w.sub:
			out = append(out, fmt.Sprintf("%s: shown as %s (%s), systemd says %s (%s)", name, vm.State, vm.Substate, w.active, w.sub))
		case vm.InvocationID != w.invocation:
			out = append(out, fmt.Sprintf("%s: shown as run %s, systemd says %s", name, vm.InvocationID, w.invocation))
		case vm.Restarts == nil || *vm.Restarts != w.restarts:
			out = append(out, fmt.Sprintf("%s: shown with %s restarts, systemd says %d", name, number(vm.Restarts), w.restarts))
		}
	}
	for name := range have {
		if _, ok := want[name]; !ok {
			out = append(out, name+": shown, but systemd does not list it")
		}
	}
	return out
}

func number(n *uint32) string {
	if n == nil {
		return "unknown"
	}
	return strconv.FormatUint(uint64(*n), 10)
}

// measureStorm kills all VMs at once and compares what the API says with what
// systemd says when it has started them all again. No listing by interval helps.
func measureStorm(ctx context.Context, b *bench) ([]result, error) {
	// caughtUp is how long after systemd the daemon may settle.
	const caughtUp = 5 * time.Second
	s, err := b.crowd(ctx, b.n)
	if err != nil {
		return nil, err
	}
	if err := s.setInterval(ctx, quietInterval, 1); err != nil {
		return nil, err
	}
	before, err := s.truths(ctx)
	if err != nil {
		return nil, err
	}
	pids := make([]int, 0, len(s.vms))
	for _, name := range s.vms {
		pid, err := s.vmProcess(name)
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	spent, err := s.procs.cpu()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return nil, fmt.Errorf("kill all VMs: %w", err)
		}
	}
	want, err := s.restarted(ctx, before)
	if err != nil {
		return nil, err
	}
	settled := time.Now()
	var diff []string
	for {
		have, err := s.list(ctx)
		if err != nil {
			return nil, err
		}
		if diff = differences(want, have); len(diff) == 0 || time.Since(settled) > caughtUp {
			break
		}
		if err := rest(ctx, pollEvery); err != nil {
			return nil, err
		}
	}
	caught := time.Since(settled)
	now, err := s.procs.cpu()
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(b.log, "%d VMs killed at once: all ran again after %s, the daemon had it all %s later; CPU: %s\n",
		len(pids), settled.Sub(start).Round(time.Millisecond), caught.Round(time.Millisecond), now.minus(spent))
	for i, d := range diff {
		if i == 20 {
			fmt.Fprintf(b.log, "and %d more\n", len(diff)-i)
			break
		}
		fmt.Fprintln(b.log, d)
	}
	// What is written must not hold up the next figure.
	if err := s.settle(ctx, len(s.vms)); err != nil {
		return nil, err
	}
	return []result{{name: "storm_1000_equal", value: float64(len(diff)), goal: atMost(0)}}, nil
}

// restarted waits until systemd has started all VMs again and has nothing to do,
// and returns what it says of them then.
func (s *site) restarted(ctx context.Context, before map[string]truth) (map[string]truth, error) {
	var now map[string]truth
	err := s.await(ctx, "all VMs to run again", func() (bool, error) {
		jobs, err := s.Exec(ctx, "systemctl", "show", "-p", "NJobs")
		if err != nil || strings.TrimSpace(jobs) != "NJobs=0" {
			return false, err
		}
		// Asking for all of them costs systemd a while: its own count first.
		units, err := s.Exec(ctx, "systemctl", "list-units", "--plain", "--no-legend", "--state=running", "microvm@*.service")
		if err != nil || strings.Count(units, "\n") != len(before) {
			return false, err
		}
		if now, err = s.truths(ctx); err != nil {
			return false, err
		}
		for name, b := range before {
			if t := now[name]; t.active != "active" || t.sub != "running" || t.restarts <= b.restarts {
				return false, nil
			}
		}
		return true, nil
	})
	return now, err
}
