package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime is what a process has used of all CPUs since its start, all threads
// and nothing of its children, to the nanosecond.
func cpuTime(pid int) (time.Duration, error) {
	// The clock of a process is its id's complement and the clock's kind, see
	// clock_getcpuclockid(3): 2 is CPUCLOCK_SCHED.
	const sched = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(^int32(pid)<<3|sched, &ts); err != nil {
		return 0, fmt.Errorf("read CPU clock of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// memory is a process's resident memory in bytes.
type memory struct {
	// resident is RssAnon, RssFile and RssShmem together.
	resident, anonymous, peak int64
}

func memoryOf(pid int) (memory, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return memory{}, fmt.Errorf("read memory of process %d: %w", pid, err)
	}
	var m memory
	for key, value := range map[string]*int64{"VmRSS:": &m.resident, "RssAnon:": &m.anonymous, "VmHWM:": &m.peak} {
		_, rest, ok := strings.Cut(string(text), "\n"+key)
		if !ok {
			return memory{}, fmt.Errorf("read memory of process %d: no %s", pid, key)
		}
		kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
		if err != nil {
			return memory{}, fmt.Errorf("read memory of process %d: %w", pid, err)
		}
		*value = kib << 10
	}
	return m, nil
}

// processes are those of the daemon and of what works for it, as this machine
// counts them.
type processes struct{ monitor, member, systemd, bus int }

// cpu is CPU time by process.
type cpu struct{ monitor, member, systemd, bus time.Duration }

// total is what watching costs the host: the monitor and what it makes systemd
// and the bus do. The member is told apart: its cost is by the second, not by
// the cycle.
func (c cpu) total() time.Duration { return c.monitor + c.systemd + c.bus }

func (c cpu) minus(o cpu) cpu {
	return cpu{c.monitor - o.monitor, c.member - o.member, c.systemd - o.systemd, c.bus - o.bus}
}

func (c cpu) String() string {
	return fmt.Sprintf("monitor %s systemd %s dbus-daemon %s, member %s", c.monitor, c.systemd, c.bus, c.member)
}

func (p processes) cpu() (cpu, error) {
	var c cpu
	for pid, t := range map[int]*time.Duration{p.monitor: &c.monitor, p.member: &c.member, p.systemd: &c.systemd, p.bus: &c.bus} {
		d, err := cpuTime(pid)
		if err != nil {
			return cpu{}, err
		}
		*t = d
	}
	return c, nil
}

// processesOf finds the processes of the daemon below a host's cgroup.
func processesOf(cgroup string, systemd int) (processes, error) {
	p := processes{systemd: systemd}
	bus, err := unitProcesses(cgroup, "dbus.service")
	if err != nil {
		return p, err
	}
	for _, pid := range bus {
		if comm(pid) == "dbus-daemon" {
			p.bus = pid
		}
	}
	daemon, err := unitProcesses(cgroup, "blixard-monitor.service")
	if err != nil {
		return p, err
	}
	for _, pid := range daemon {
		argv, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			return p, err
		}
		if args := bytes.Split(argv, []byte{0}); len(args) > 1 && string(args[1]) == "member" {
			p.member = pid
		} else {
			p.monitor = pid
		}
	}
	if p.bus == 0 || p.monitor == 0 || p.member == 0 {
		return p, fmt.Errorf("find processes: dbus-daemon %d, monitor %d, member %d", p.bus, p.monitor, p.member)
	}
	return p, nil
}

// unitProcesses are the processes of a unit directly below system.slice, or of
// an instance given with its slice.
func unitProcesses(cgroup, unit string) ([]int, error) {
	text, err := os.ReadFile(filepath.Join(cgroup, "system.slice", unit, "cgroup.procs"))
	if err != nil {
		return nil, fmt.Errorf("find processes of %s: %w", unit, err)
	}
	var pids []int
	for _, f := range strings.Fields(string(text)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			return nil, fmt.Errorf("find processes of %s: %w", unit, err)
		}
		pids = append(pids, pid)
	}
	if len(pids) == 0 {
		return nil, errors.New("find processes of " + unit + ": there is none")
	}
	return pids, nil
}

func comm(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}
