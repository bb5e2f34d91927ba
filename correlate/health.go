package correlate

import (
	"fmt"
	"strings"
	"time"

	"github.com/blixard/blixard"
)

// serviceState judges a VM by its service and its helpers. held means that the
// moment says nothing (it starts or stops in order): the verdict before stands.
func serviceState(s *blixard.VMStatus, helpers []blixard.Helper, stale bool) (status blixard.HealthStatus, message string, held bool) {
	if stale {
		return blixard.HealthUnknown, "missing from its host", false
	}
	switch s.State {
	case blixard.StateRunning:
		var failed []string
		for _, h := range helpers {
			if h.State == blixard.StateFailed {
				failed = append(failed, h.Name)
			}
		}
		if len(failed) > 0 {
			return blixard.Degraded, "running, helper failed: " + strings.Join(failed, ", "), false
		}
		return blixard.Healthy, "running", false
	case blixard.StateStarting:
		if s.Result != "" && s.Result != "success" {
			return blixard.Degraded, "waiting to be restarted after " + ending(s), false
		}
		return blixard.HealthUnknown, "starting", true
	case blixard.StateStopping:
		return blixard.HealthUnknown, "stopping", true
	case blixard.StateStopped:
		switch s.Result {
		case "dependency", "failed", "timeout", "assert":
			if !s.Intended {
				return blixard.Critical, "could not be started: " + s.Result, false
			}
		}
		if s.Intended {
			return blixard.Healthy, "stopped on purpose", false
		}
		return blixard.Healthy, "stopped", false
	case blixard.StateFailed:
		return blixard.Critical, "failed: " + ending(s), false
	case blixard.StateCrashlooping:
		return blixard.Critical, "crash looping", false
	default:
		return blixard.HealthUnknown, "state unknown", false
	}
}

// ending says in words how the last run of a service ended.
func ending(s *blixard.VMStatus) string {
	switch {
	case s.ExitSignal != "":
		return s.Result + ", " + s.ExitSignal
	case s.ExitCode != nil:
		return fmt.Sprintf("%s, status %d", s.Result, *s.ExitCode)
	case s.Result != "":
		return s.Result
	default:
		return "an unknown end"
	}
}

// judge makes the VM's verdict anew from its checks; prev is the one before,
// which says nothing of a VM that has just returned.
func judge(now time.Time, prev *blixard.VMHealth, s *blixard.VMStatus, helpers []blixard.Helper, stale, returned bool) *blixard.VMHealth {
	status, message, held := serviceState(s, helpers, stale)
	if held && prev != nil && !returned {
		return prev
	}
	c := blixard.HealthCheck{Name: blixard.CheckServiceState, Status: status, Message: message, Since: now}
	if prev != nil {
		for _, p := range prev.Checks {
			if p.Name == c.Name && p.Status == status {
				c.Since = p.Since
			}
		}
	}
	return &blixard.VMHealth{Status: status, Checks: []blixard.HealthCheck{c}}
}
