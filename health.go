package blixard

import "time"

// HealthStatus is a verdict, on one check or on a whole VM.
type HealthStatus string

// The verdicts, from good to bad; unknown is beside them, not among them.
const (
	// Healthy: what was asked could be told and is well. A VM that was stopped
	// on purpose is healthy: it is as somebody wants it.
	Healthy HealthStatus = "healthy"
	// Degraded: it works, with trouble that wants a look.
	Degraded HealthStatus = "degraded"
	// Critical: it does not do its work.
	Critical HealthStatus = "critical"
	// HealthUnknown: it cannot be told.
	HealthUnknown HealthStatus = "unknown"
)

// HealthStatuses lists every verdict in the order in which metrics show them.
var HealthStatuses = []HealthStatus{Healthy, Degraded, Critical, HealthUnknown}

// Severity orders verdicts for sorting, worst highest; unknown stands between
// degraded and critical.
func (s HealthStatus) Severity() int {
	switch s {
	case Healthy:
		return 0
	case Degraded:
		return 1
	case Critical:
		return 3
	default:
		return 2
	}
}

// The names of the checks.
const (
	// CheckServiceState judges the VM's service and its helpers' states.
	CheckServiceState = "service_state"
)

// VMHealth is the verdict on a VM.
type VMHealth struct {
	Status HealthStatus  `json:"status"`
	Checks []HealthCheck `json:"checks"`
}

// HealthCheck is the result of one check.
type HealthCheck struct {
	Name   string       `json:"name"`
	Status HealthStatus `json:"status"`
	// Message is the reason in one line.
	Message string `json:"message"`
	// Since is when the status last changed.
	Since time.Time `json:"since"`
}

// Equal reports whether two verdicts say the same; nil equals only nil.
func (h *VMHealth) Equal(o *VMHealth) bool {
	if h == nil || o == nil {
		return h == o
	}
	if h.Status != o.Status || len(h.Checks) != len(o.Checks) {
		return false
	}
	for i, c := range h.Checks {
		d := o.Checks[i]
		if c.Name != d.Name || c.Status != d.Status || c.Message != d.Message || !c.Since.Equal(d.Since) {
			return false
		}
	}
	return true
}
