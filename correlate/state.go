package correlate

import (
	"fmt"

	"github.com/blixard/blixard"
)

// State is the table from systemd's states of a service to a VM's. It is total:
// what it does not know is StateUnknown. The names are those of systemd's
// unit-def.c (UnitActiveState, ServiceState).
//
//	active      running, reload*, refresh*, start-post …  running
//	active      exited                                    stopped: the VMM has ended
//	reloading   any                                       running
//	refreshing  any                                       running
//	activating  any, auto-restart among them              starting
//	deactivating any                                      stopping
//	inactive    dead-before-auto-restart                  starting
//	inactive    any other                                 stopped
//	failed      failed-before-auto-restart                starting
//	failed      any other                                 failed
//	maintenance any (systemctl clean)                     stopped
func State(active, sub string) blixard.VMState {
	switch active {
	case "active":
		if sub == "exited" {
			return blixard.StateStopped
		}
		return blixard.StateRunning
	case "reloading", "refreshing":
		return blixard.StateRunning
	case "activating":
		return blixard.StateStarting
	case "deactivating":
		return blixard.StateStopping
	case "inactive":
		if sub == "dead-before-auto-restart" {
			return blixard.StateStarting
		}
		return blixard.StateStopped
	case "failed":
		if sub == "failed-before-auto-restart" {
			return blixard.StateStarting
		}
		return blixard.StateFailed
	case "maintenance":
		return blixard.StateStopped
	default:
		return blixard.StateUnknown
	}
}

// HelperState is State for a helper: a oneshot that ran and remains is running.
func HelperState(active, sub string) blixard.VMState {
	if active == "active" {
		return blixard.StateRunning
	}
	return State(active, sub)
}

// autoRestart reports whether systemd waits to restart the unit by itself.
func autoRestart(sub string) bool {
	switch sub {
	case "auto-restart", "auto-restart-queued", "dead-before-auto-restart", "failed-before-auto-restart":
		return true
	}
	return false
}

// stopAsked reports whether a unit that ended in failed did so because it was
// told to stop. systemd does not restart such a unit, so a unit in failed whose
// Restart= setting covers its Result was stopped on purpose (service.c,
// service_shall_restart), unless it reached the start limit: see status. A VM without a
// shutdown command ends like this at every stop.
func stopAsked(restart, result string) bool {
	switch result {
	case "success", "start-limit-hit", "resources", "exec-condition", "":
		return false
	}
	switch restart {
	case "always", "on-failure":
		return true
	case "on-abnormal":
		return result == "signal" || result == "core-dump" || result == "timeout" || result == "watchdog"
	case "on-abort":
		return result == "signal" || result == "core-dump"
	case "on-watchdog":
		return result == "watchdog"
	}
	return false
}

// starts reports whether a unit that is down is about to be started: a job waits
// for its helpers, as at each automatic restart. The kind of the job comes with
// a listing, and may be missing when the job is younger than that; only a start
// makes a unit that is down wait.
func starts(p *blixard.UnitProperties) bool {
	switch p.JobType {
	case "start", "restart", "verify-active":
		return true
	case "":
		return p.JobQueued
	}
	return false
}

// The values of ExecMainCode, waitid's si_code.
const (
	exited = 1
	killed = 2
	dumped = 3
)

// end is what is known of the end of a unit's last run beside its properties.
type end struct {
	// jobStop says that a stop job of the unit was seen since it last started.
	jobStop bool
	// jobResult is how a job that should have started it failed, "" for none.
	jobResult string
	// restarted says that systemd counted a restart since the last run that is
	// known, or may have.
	restarted bool
}

// status derives a VM's status from its unit's properties.
func status(p *blixard.UnitProperties, e end) blixard.VMStatus {
	s := blixard.VMStatus{
		State:        State(p.ActiveState, p.SubState),
		Substate:     p.SubState,
		InvocationID: p.InvocationID,
	}
	if !p.StateChange.IsZero() {
		t := p.StateChange
		s.Since = &t
	}
	if !p.Service {
		return s
	}
	if (s.State == blixard.StateStopped || s.State == blixard.StateFailed) && starts(p) {
		s.State = blixard.StateStarting
	}
	s.MainPID = p.MainPID
	s.ControlGroup = p.ControlGroup
	n := p.NRestarts
	s.Restarts = &n
	if p.Type == "notify" || p.Type == "notify-reload" {
		ready := s.State == blixard.StateRunning
		s.Ready = &ready
	}
	if s.State == blixard.StateRunning || p.ActiveState == "activating" && !autoRestart(p.SubState) {
		return s
	}
	if p.Result != "success" || !p.ExecMainStart.IsZero() {
		// systemd says success of a unit that never ran.
		s.Result = p.Result
	}
	switch p.ExecMainCode {
	case exited:
		code := p.ExecMainStatus
		s.ExitCode = &code
	case killed, dumped:
		s.ExitSignal = signalName(p.ExecMainStatus)
	}
	// At the start limit systemd keeps the result of the run before, counts the
	// restart, and fails its job: the unit was restarted once too often, not
	// stopped.
	limit := s.Result == "start-limit-hit" || e.restarted || e.jobResult != ""
	if s.State == blixard.StateFailed && s.Result != "start-limit-hit" && (e.jobStop || !limit && stopAsked(p.Restart, p.Result)) {
		s.State = blixard.StateStopped
		s.Intended = true
	}
	if s.State == blixard.StateStopped && e.jobStop {
		s.Intended = true
	}
	if s.State == blixard.StateStopped && e.jobResult != "" {
		s.Result, s.Intended = e.jobResult, false
	}
	return s
}

// signals are the names of Linux's signals by number, from 1 (signal(7)).
var signals = [...]string{
	"HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
	"STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
}

func signalName(n int32) string {
	if n >= 1 && int(n) <= len(signals) {
		return "SIG" + signals[n-1]
	}
	return fmt.Sprintf("signal %d", n)
}
