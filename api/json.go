package api

import (
	"bytes"
	"encoding/json"
	"io"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/blixard/blixard"
)

// Encode writes v as the API does: one line of JSON. Characters that no screen
// shows as they are (controls, marks of direction, zero-width ones) are written
// as \u escapes, so that an answer can go to a terminal: the value stays the
// same.
func Encode(w io.Writer, v any) error {
	b, err := encode(v)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

func encode(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return escape(buf.Bytes()), nil
}

// escape rewrites the characters that are not graphic. In JSON such characters
// stand inside strings only, apart from the newline at the end.
func escape(in []byte) []byte {
	i := bytes.IndexFunc(in[:len(in)-1], func(r rune) bool { return !unicode.IsGraphic(r) })
	if i < 0 {
		return in
	}
	out := append(make([]byte, 0, len(in)+64), in[:i]...)
	for i < len(in)-1 {
		r, n := utf8.DecodeRune(in[i:])
		switch {
		case unicode.IsGraphic(r):
			out = append(out, in[i:i+n]...)
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			out = appendEscape(appendEscape(out, hi), lo)
		default:
			out = appendEscape(out, r)
		}
		i += n
	}
	return append(out, '\n')
}

func appendEscape(b []byte, r rune) []byte {
	const hex = "0123456789abcdef"
	return append(b, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
}

// listOfVMs makes sure that an array is never null.
func listOfVMs(l blixard.List[blixard.VM]) blixard.List[blixard.VM] {
	items := make([]blixard.VM, len(l.Items))
	copy(items, l.Items)
	for i := range items {
		fillVM(&items[i])
	}
	l.Items = items
	return l
}

func fillVM(v *blixard.VM) {
	if v.Helpers == nil {
		v.Helpers = []blixard.Helper{}
	}
	if v.Health != nil && v.Health.Checks == nil {
		h := *v.Health
		h.Checks = []blixard.HealthCheck{}
		v.Health = &h
	}
}

func listOfEvents(l blixard.List[blixard.Event]) blixard.List[blixard.Event] {
	if l.Items == nil {
		l.Items = []blixard.Event{}
	}
	return l
}

func listOfNodes(l blixard.List[blixard.Node]) blixard.List[blixard.Node] {
	l.Items = fillNodes(l.Items)
	return l
}

func fillNodes(in []blixard.Node) []blixard.Node {
	out := make([]blixard.Node, len(in))
	copy(out, in)
	for i := range out {
		if out[i].Managers == nil {
			out[i].Managers = []blixard.ManagerStatus{}
		}
	}
	return out
}

func cluster(c blixard.ClusterStatus) blixard.ClusterStatus {
	c.Nodes = fillNodes(c.Nodes)
	if c.Store.Members == nil {
		c.Store.Members = []blixard.MemberStatus{}
	}
	return c
}
