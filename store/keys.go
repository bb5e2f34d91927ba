package store

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/blixard/blixard"
)

// DefaultPrefix is where all keys live.
const DefaultPrefix = "/blixard/v1/"

// keys makes and reads the keys under one prefix, which begins and ends with a
// slash.
type keys struct{ prefix string }

func (k keys) node(id string) string  { return k.prefix + "nodes/" + escape(id) }
func (k keys) alive(id string) string { return k.prefix + "alive/" + escape(id) }
func (k keys) seq(id string) string   { return k.prefix + "seq/" + escape(id) }
func (k keys) floor() string          { return k.prefix + "floor" }

func (k keys) vm(id blixard.VMID) string {
	return k.prefix + "microvms/" + escape(id.Node) + "/" + escape(id.Manager) + "/" + escape(id.Name)
}

func (k keys) events(node string, seq uint64) string {
	return k.prefix + "events/" + escape(node) + "/" + fmt.Sprintf("%016x", seq)
}

// kind says what a key holds.
type kind int

// The kinds, each with the fields of a key that it sets.
const (
	kindNode   kind = iota + 1 // node
	kindAlive                  // node
	kindVM                     // vm
	kindEvents                 // node and seq
	kindSeq                    // node
	kindFloor
)

// key is a key that was read.
type key struct {
	kind kind
	node string
	vm   blixard.VMID
	seq  uint64
}

// errKey says that a key is none of ours.
var errKey = errors.New("not a key of this version")

// parse reads a key. Only what the functions above make is read; anything else
// is errKey.
func (k keys) parse(raw string) (key, error) {
	rest, ok := strings.CutPrefix(raw, k.prefix)
	if !ok {
		return key{}, errKey
	}
	parts := strings.Split(rest, "/")
	values := make([]string, len(parts))
	for i, p := range parts[1:] {
		v, ok := unescape(p)
		if !ok {
			return key{}, errKey
		}
		values[i+1] = v
	}
	switch {
	case parts[0] == "floor" && len(parts) == 1:
		return key{kind: kindFloor}, nil
	case parts[0] == "nodes" && len(parts) == 2:
		return key{kind: kindNode, node: values[1]}, nil
	case parts[0] == "alive" && len(parts) == 2:
		return key{kind: kindAlive, node: values[1]}, nil
	case parts[0] == "seq" && len(parts) == 2:
		return key{kind: kindSeq, node: values[1]}, nil
	case parts[0] == "microvms" && len(parts) == 4:
		return key{kind: kindVM, vm: blixard.VMID{Node: values[1], Manager: values[2], Name: values[3]}}, nil
	case parts[0] == "events" && len(parts) == 3 && len(parts[2]) == 16:
		seq, err := strconv.ParseUint(parts[2], 16, 64)
		if err != nil || strings.ToLower(parts[2]) != parts[2] {
			return key{}, errKey
		}
		return key{kind: kindEvents, node: values[1], seq: seq}, nil
	}
	return key{}, errKey
}

// plain reports whether a byte stands for itself in a segment.
func plain(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
		c == '-' || c == '_' || c == '.' || c == ':' || c == '@'
}

const hexDigits = "0123456789ABCDEF"

// escape makes a segment of a key from any string: other bytes than plain ones
// become %XX, and the empty string a lone %. Two strings never make the same
// segment, and strings of plain bytes keep their order.
func escape(s string) string {
	if s == "" {
		return "%"
	}
	n := 0
	for i := range len(s) {
		if !plain(s[i]) {
			n++
		}
	}
	if n == 0 {
		return s
	}
	out := make([]byte, 0, len(s)+2*n)
	for i := range len(s) {
		if c := s[i]; plain(c) {
			out = append(out, c)
		} else {
			out = append(out, '%', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return string(out)
}

// unescape undoes escape; ok is false for what escape does not make.
func unescape(s string) (out string, ok bool) {
	if s == "%" {
		return "", true
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		if plain(c) {
			b.WriteByte(c)
			continue
		}
		if c != '%' || i+2 >= len(s) {
			return "", false
		}
		hi, lo := strings.IndexByte(hexDigits, s[i+1]), strings.IndexByte(hexDigits, s[i+2])
		if hi < 0 || lo < 0 || plain(byte(hi<<4|lo)) {
			return "", false
		}
		b.WriteByte(byte(hi<<4 | lo))
		i += 2
	}
	return b.String(), b.Len() > 0
}
