package systemd

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// errMalformed is a message that breaks the specification or a bound.
var errMalformed = errors.New("malformed message")

// maxDepth bounds nested types and variants, as the specification does.
const maxDepth = 64

// decoder reads values in order from a message or body. After the first fault
// err is set and everything reads as zero. It copies nothing: what it returns is
// valid as long as b is.
type decoder struct {
	b   []byte
	pos int
	big bool
	err error
}

func (d *decoder) fail() { d.err = errMalformed }

// left says that there is more to read before end.
func (d *decoder) left(end int) bool { return d.err == nil && d.pos < end }

func (d *decoder) align(n int) {
	d.pos = (d.pos + n - 1) &^ (n - 1)
}

// take returns the next n bytes, nil on a fault.
func (d *decoder) take(n int) []byte {
	if d.err != nil || n < 0 || d.pos > len(d.b)-n {
		d.fail()
		return nil
	}
	b := d.b[d.pos : d.pos+n]
	d.pos += n
	return b
}

func (d *decoder) byte() byte {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) uint32() uint32 {
	d.align(4)
	b := d.take(4)
	if b == nil {
		return 0
	}
	if d.big {
		return binary.BigEndian.Uint32(b)
	}
	return binary.LittleEndian.Uint32(b)
}

func (d *decoder) uint64() uint64 {
	d.align(8)
	b := d.take(8)
	if b == nil {
		return 0
	}
	if d.big {
		return binary.BigEndian.Uint64(b)
	}
	return binary.LittleEndian.Uint64(b)
}

func (d *decoder) bool() bool {
	v := d.uint32()
	if v > 1 {
		d.fail()
	}
	return v == 1
}

// length reads a length of at most what is left.
func (d *decoder) length() int {
	n := d.uint32()
	if d.err != nil || uint64(n) > uint64(len(d.b)-d.pos) {
		d.fail()
		return 0
	}
	return int(n)
}

// string reads a string or object path.
func (d *decoder) string() []byte {
	n := d.length()
	b := d.take(n + 1)
	if b == nil || bytes.IndexByte(b, 0) != n {
		d.fail()
		return nil
	}
	return b[:n]
}

// skipString passes over a string or object path.
func (d *decoder) skipString() { d.take(d.length() + 1) }

func (d *decoder) signature() []byte {
	n := int(d.byte())
	b := d.take(n + 1)
	if b == nil || bytes.IndexByte(b, 0) != n {
		d.fail()
		return nil
	}
	return b[:n]
}

// array enters an array of elements with that alignment and returns its end.
func (d *decoder) array(align int) (end int) {
	n := d.length()
	d.align(align)
	if d.err != nil || n > len(d.b)-d.pos {
		d.fail()
		return 0
	}
	return d.pos + n
}

// bytes reads an array of bytes.
func (d *decoder) bytes() []byte { return d.take(d.length()) }

// variant enters a variant and reports whether it holds that type; if not, it
// has been passed over.
func (d *decoder) variant(want string) bool {
	sig := d.signature()
	if string(sig) == want {
		return d.err == nil
	}
	d.skipAll(sig, 1)
	return false
}

// skipVariant passes over a variant.
func (d *decoder) skipVariant(depth int) { d.skipAll(d.signature(), depth) }

// skipAll passes over one value, whose type must be the whole of sig.
func (d *decoder) skipAll(sig []byte, depth int) {
	if rest := d.skip(sig, depth); d.err == nil && len(rest) != 0 {
		d.fail()
	}
}

// skip passes over a value of the first complete type of sig and returns the
// rest of sig.
func (d *decoder) skip(sig []byte, depth int) []byte {
	if d.err != nil || len(sig) == 0 || depth > maxDepth {
		d.fail()
		return nil
	}
	kind, rest := sig[0], sig[1:]
	switch kind {
	case 'y':
		d.take(1)
	case 'n', 'q':
		d.align(2)
		d.take(2)
	case 'b', 'i', 'u', 'h':
		d.align(4)
		d.take(4)
	case 'x', 't', 'd':
		d.align(8)
		d.take(8)
	case 's', 'o':
		d.skipString()
	case 'g':
		d.signature()
	case 'v':
		d.skipVariant(depth + 1)
	case '(', '{':
		d.align(8)
		end := byte(')')
		if kind == '{' {
			end = '}'
		}
		for len(rest) > 0 && rest[0] != end {
			if rest = d.skip(rest, depth+1); d.err != nil {
				return nil
			}
		}
		if len(rest) == 0 {
			d.fail()
			return nil
		}
		return rest[1:]
	case 'a':
		elem := rest
		if rest = typeEnd(elem, depth+1); rest == nil {
			d.fail()
			return nil
		}
		end := d.array(alignment(elem[0]))
		if d.err == nil {
			d.pos = end
		}
	default:
		d.fail()
	}
	if d.err != nil {
		return nil
	}
	return rest
}

// typeEnd returns what follows the first complete type of sig, nil when there
// is none. What follows the last one is empty, not nil.
func typeEnd(sig []byte, depth int) []byte {
	if len(sig) == 0 || depth > maxDepth {
		return nil
	}
	rest := sig[1:]
	switch sig[0] {
	case 'a':
		return typeEnd(rest, depth+1)
	case '(', '{':
		end := byte(')')
		if sig[0] == '{' {
			end = '}'
		}
		for len(rest) > 0 && rest[0] != end {
			if rest = typeEnd(rest, depth+1); rest == nil {
				return nil
			}
		}
		if len(rest) == 0 {
			return nil
		}
		return rest[1:]
	case ')', '}':
		return nil
	}
	return rest
}

// alignment is that of a type by its first letter.
func alignment(kind byte) int {
	switch kind {
	case 'y', 'g', 'v':
		return 1
	case 'n', 'q':
		return 2
	case 'x', 't', 'd', '(', '{':
		return 8
	}
	return 4
}

// headerSize is the fixed part of a message, up to the header's fields.
const headerSize = 16

// header is what a message says of itself. Its slices are valid as long as the
// message is.
type header struct {
	kind                                   byte
	replySerial                            uint32
	path, iface, member, errorName, sender []byte
	signature                              []byte
}

// frameSize tells the size of a message from its first 16 bytes.
func frameSize(b []byte) (kind byte, size int, err error) {
	var order binary.ByteOrder = binary.LittleEndian
	switch b[0] {
	case 'l':
	case 'B':
		order = binary.BigEndian
	default:
		return 0, 0, errMalformed
	}
	fields, body := order.Uint32(b[12:]), order.Uint32(b[4:])
	if b[3] != 1 || fields > maxMessage || body > maxMessage {
		return 0, 0, errMalformed
	}
	size = headerSize + int(fields+7)&^7 + int(body)
	if size > maxMessage {
		return 0, 0, errMalformed
	}
	return b[1], size, nil
}

// decodeMessage splits a whole message into its header and its body.
func decodeMessage(frame []byte) (h header, body decoder, err error) {
	kind, size, err := frameSize(frame)
	if err != nil || size != len(frame) {
		return header{}, decoder{}, errMalformed
	}
	h.kind = kind
	d := decoder{b: frame, pos: 12, big: frame[0] == 'B'}
	end := d.array(8)
	for d.left(end) {
		d.align(8)
		field := d.byte()
		var to *[]byte
		switch field {
		case fieldPath:
			to = &h.path
		case fieldInterface:
			to = &h.iface
		case fieldMember:
			to = &h.member
		case fieldErrorName:
			to = &h.errorName
		case fieldSender:
			to = &h.sender
		case fieldSignature:
			if d.variant("g") {
				h.signature = d.signature()
			}
			continue
		case fieldReplySerial:
			if d.variant("u") {
				h.replySerial = d.uint32()
			}
			continue
		default:
			d.skipVariant(1)
			continue
		}
		if sig := d.signature(); len(sig) != 1 || sig[0] != 's' && sig[0] != 'o' {
			d.fail()
			break
		}
		*to = d.string()
	}
	if d.err != nil || d.pos != end {
		return header{}, decoder{}, errMalformed
	}
	d.align(8)
	if d.pos > len(frame) {
		return header{}, decoder{}, errMalformed
	}
	return h, decoder{b: frame[d.pos:], big: d.big}, nil
}
