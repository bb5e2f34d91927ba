package main

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/blixard/blixard"
)

// tone is how a value is coloured; its text says the same without.
type tone int

const (
	plain tone = iota
	good
	warn
	bad
	odd
	dim
)

// value is one field of one item. The zero value is an absent one.
type value struct {
	// text is for people, raw for filters, CSV and sorting.
	text, raw string
	// num is the number to sort by when numeric is set.
	num     float64
	numeric bool
	tone    tone
	here    bool
}

func text(s string) value {
	if s == "" {
		return value{}
	}
	return value{text: s, raw: s, here: true}
}

func (v value) in(t tone) value { v.tone = t; return v }

func number[T int | int32 | uint32 | uint64 | int64](n T) value {
	s := strconv.FormatInt(int64(n), 10)
	return value{text: s, raw: s, num: float64(n), numeric: true, here: true}
}

func numberAt[T int | int32 | uint32 | uint64](n *T) value {
	if n == nil {
		return value{}
	}
	return number(*n)
}

// nonzero is a number for which 0 means that it is not known.
func nonzero[T int | uint32 | int64](n T) value {
	if n == 0 {
		return value{}
	}
	return number(n)
}

func boolean(b bool) value { return text(strconv.FormatBool(b)) }

func booleanAt(b *bool) value {
	if b == nil {
		return value{}
	}
	return boolean(*b)
}

func moment(t *time.Time) value {
	if t == nil || t.IsZero() {
		return value{}
	}
	return value{text: clock(*t), raw: t.UTC().Format(time.RFC3339Nano), num: float64(t.UnixNano()), numeric: true, here: true}
}

// ageOf is an age in seconds.
func ageOf(s *float64) value {
	if s == nil {
		return value{}
	}
	return value{text: span(seconds(*s)), raw: strconv.FormatFloat(*s, 'f', -1, 64), num: *s, numeric: true, here: true}
}

func healthOf(h blixard.HealthStatus) value {
	v := text(string(h))
	switch h {
	case blixard.Healthy:
		v.tone = good
	case blixard.Degraded:
		v.tone = warn
	case blixard.Critical:
		v.tone = bad
	default:
		v.tone = odd
	}
	v.num, v.numeric = float64(h.Severity()), true
	return v
}

// field is one field of a noun: a column, something to filter and sort by.
type field[T any] struct {
	// key is its name, that of the JSON where there is one.
	key string
	// head is the column's header.
	head string
	get  func(*T) value
}

// noun is what lists know of a kind of things.
type noun[T any] struct {
	fields []field[T]
	// table and wide are the keys of the columns.
	table, wide []string
	// id is the name that other commands take.
	id func(*T) string
	// order is the order without --sort.
	order func(a, b *T) int
}

// find finds a field by its key or its header.
func (n *noun[T]) find(name string) (*field[T], error) {
	for i := range n.fields {
		if f := &n.fields[i]; f.key == name || strings.EqualFold(f.head, name) {
			return f, nil
		}
	}
	return nil, usagef("there is no field %q", name).WithHint("there are " + strings.Join(n.keys(), ", "))
}

func (n *noun[T]) keys() []string {
	keys := make([]string, len(n.fields))
	for i, f := range n.fields {
		keys[i] = f.key
	}
	return keys
}

func (n *noun[T]) columns(names []string) ([]*field[T], error) {
	out := make([]*field[T], 0, len(names))
	for _, name := range names {
		f, err := n.find(strings.TrimSpace(name))
		if err != nil {
			return nil, err
		}
		if !slices.Contains(out, f) {
			out = append(out, f)
		}
	}
	return out, nil
}

// filter keeps the items that match.
type filter[T any] struct {
	field  *field[T]
	glob   string
	negate bool
}

// filters reads FIELD=GLOB and FIELD!=GLOB.
func (n *noun[T]) filters(texts []string) ([]filter[T], error) {
	var out []filter[T]
	for _, t := range texts {
		name, pattern, ok := strings.Cut(t, "=")
		if !ok {
			return nil, usagef("--filter %q: want FIELD=VALUE or FIELD!=VALUE", t).WithHint("fields are " + strings.Join(n.keys(), ", "))
		}
		name, negate := strings.CutSuffix(name, "!")
		f, err := n.find(name)
		if err != nil {
			return nil, err
		}
		out = append(out, filter[T]{f, pattern, negate})
	}
	return out, nil
}

func keep[T any](item *T, filters []filter[T]) bool {
	for _, f := range filters {
		if glob(f.glob, f.field.get(item).raw) == f.negate {
			return false
		}
	}
	return true
}

// sorter reads [-]FIELD. Absent values come last either way.
func (n *noun[T]) sorter(by string) (func(a, b *T) int, error) {
	if by == "" {
		return n.order, nil
	}
	name, down := strings.CutPrefix(by, "-")
	f, err := n.find(name)
	if err != nil {
		return nil, err
	}
	return func(a, b *T) int {
		x, y := f.get(a), f.get(b)
		if x.here != y.here {
			if x.here {
				return -1
			}
			return 1
		}
		c := cmp.Compare(x.raw, y.raw)
		if x.numeric && y.numeric {
			c = cmp.Compare(x.num, y.num)
		}
		if down {
			c = -c
		}
		return cmp.Or(c, n.order(a, b))
	}, nil
}
