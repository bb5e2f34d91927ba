package main

import (
	"fmt"
	"strconv"
)

// goal is the bound a figure must keep.
type goal struct {
	bound float64
	// least says that the figure must be at least the bound; otherwise it must
	// be at most the bound.
	least bool
}

func atLeast(bound float64) goal { return goal{bound, true} }
func atMost(bound float64) goal  { return goal{bound, false} }

func (g goal) met(value float64) bool {
	if g.least {
		return value >= g.bound
	}
	return value <= g.bound
}

// result is one figure as it was measured.
type result struct {
	name  string
	value float64
	goal  goal
	// unit is written behind value and bound; digits are those after the point.
	unit   string
	digits int
	// absent is why a peer's figure could not be had; there is no value then.
	absent string
	// failed is why the measurement broke off; there is no value then.
	failed error
}

// The verdicts.
const (
	verdictOK     = "ok"
	verdictShort  = "short"
	verdictAbsent = "absent"
)

// verdict is ok, absent where a peer is missing, and short otherwise: a figure
// that could not be measured does not reach its goal.
func (r result) verdict() string {
	switch {
	case r.absent != "":
		return verdictAbsent
	case r.failed != nil || !r.goal.met(r.value):
		return verdictShort
	default:
		return verdictOK
	}
}

// String is the figure's line: name value goal verdict. A value that is not
// there is a dash.
func (r result) String() string {
	if r.absent != "" || r.failed != nil {
		return fmt.Sprintf("%s - - %s", r.name, r.verdict())
	}
	sign := "<="
	if r.goal.least {
		sign = ">="
	}
	number := func(v float64) string { return strconv.FormatFloat(v, 'f', r.digits, 64) + r.unit }
	return fmt.Sprintf("%s %s %s%s %s", r.name, number(r.value), sign, number(r.goal.bound), r.verdict())
}
