package api

import (
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/blixard/blixard"
)

// maxQuery bounds a query string in bytes: three names, escaped, and the rest.
const maxQuery = 4096

// query is a query string that was read: every parameter is known and stands
// there once.
type query map[string]string

// parseQuery reads a query string. The error is an *Error with CodeInvalid, or
// CodeTooLarge above maxQuery.
func parseQuery(raw string, known []string) (query, error) {
	if len(raw) > maxQuery {
		return nil, blixard.Errorf(blixard.CodeTooLarge, "the query is longer than %d bytes", maxQuery)
	}
	values, err := url.ParseQuery(raw)
	if err != nil {
		return nil, blixard.Errorf(blixard.CodeInvalid, "read query: %v", err)
	}
	q := make(query, len(values))
	for name, v := range values {
		if !slices.Contains(known, name) {
			e := blixard.Errorf(blixard.CodeInvalid, "unknown query parameter %q", name)
			if len(known) > 0 {
				return nil, e.WithHint("known are " + strings.Join(known, ", "))
			}
			return nil, e.WithHint("this path takes none")
		}
		if len(v) != 1 {
			return nil, blixard.Errorf(blixard.CodeInvalid, "query parameter %q stands there %d times", name, len(v))
		}
		q[name] = v[0]
	}
	return q, nil
}

// flag reads a parameter that is on by being there, or by true or false.
func (q query) flag(name string) (bool, error) {
	v, ok := q[name]
	if !ok {
		return false, nil
	}
	switch v {
	case "", "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, blixard.Errorf(blixard.CodeInvalid, "%s=%q: want true or false", name, v)
}

// number reads a parameter between lo and hi; absent is 0.
func (q query) number(name string, lo, hi uint64) (uint64, error) {
	v, ok := q[name]
	if !ok {
		return 0, nil
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil || n < lo || n > hi {
		return 0, blixard.Errorf(blixard.CodeInvalid, "%s=%q: want a number between %d and %d", name, v, lo, hi)
	}
	return n, nil
}

// events reads the query of a listing or a stream of events.
func (q query) events() (eq blixard.EventQuery, follow bool, err error) {
	if v, ok := q["vm"]; ok {
		if eq.VM, err = blixard.ParseVMRef(v); err != nil {
			return eq, false, err
		}
	}
	if eq.After, err = q.number("after", 0, 1<<64-1); err != nil {
		return eq, false, err
	}
	limit, err := q.number("limit", 1, blixard.MaxEvents)
	if err != nil {
		return eq, false, err
	}
	eq.Limit = int(limit)
	if follow, err = q.flag("follow"); err != nil {
		return eq, false, err
	}
	if follow && eq.Limit != 0 {
		return eq, false, blixard.Errorf(blixard.CodeInvalid, "limit bounds a listing; it does not go with follow")
	}
	return eq, follow, nil
}

// encodeEvents is the query string of an EventQuery.
func encodeEvents(q blixard.EventQuery, follow bool) string {
	v := url.Values{}
	if q.VM != (blixard.VMRef{}) {
		v.Set("vm", refString(q.VM))
	}
	if q.After != 0 {
		v.Set("after", strconv.FormatUint(q.After, 10))
	}
	if q.Limit != 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	if follow {
		v.Set("follow", "true")
	}
	return v.Encode()
}

// refString is the address as ParseVMRef reads it.
func refString(r blixard.VMRef) string {
	return strings.Join(slices.DeleteFunc([]string{r.Node, r.Manager, r.Name}, func(s string) bool { return s == "" }), "/")
}
