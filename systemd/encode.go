package systemd

import (
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Message types and header fields of the D-Bus specification.
const (
	typeCall   = 1
	typeReturn = 2
	typeError  = 3
	typeSignal = 4

	fieldPath        = 1
	fieldInterface   = 2
	fieldMember      = 3
	fieldErrorName   = 4
	fieldReplySerial = 5
	fieldDestination = 6
	fieldSender      = 7
	fieldSignature   = 8

	// flagNoAutoStart keeps the bus from trying to start a manager that is away.
	flagNoAutoStart = 2
)

// method is a call of a method, its arguments encoded.
type method struct {
	destination, path, iface, member string
	// signature and body are the arguments'; only strings and lists of strings
	// are ever sent.
	signature string
	body      []byte
}

// appendCall encodes a call in little-endian order to b, which is empty.
func appendCall(b []byte, serial uint32, m *method) []byte {
	b = append(b, 'l', typeCall, flagNoAutoStart, 1)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(m.body)))
	b = binary.LittleEndian.AppendUint32(b, serial)
	b = append(b, 0, 0, 0, 0)
	b = appendField(b, fieldPath, 'o', m.path)
	b = appendField(b, fieldInterface, 's', m.iface)
	b = appendField(b, fieldMember, 's', m.member)
	if m.destination != "" {
		b = appendField(b, fieldDestination, 's', m.destination)
	}
	if m.signature != "" {
		b = appendPad(b, 8)
		b = append(b, fieldSignature, 1, 'g', 0, byte(len(m.signature)))
		b = append(append(b, m.signature...), 0)
	}
	binary.LittleEndian.PutUint32(b[12:], uint32(len(b)-16))
	return append(appendPad(b, 8), m.body...)
}

func appendField(b []byte, field, kind byte, value string) []byte {
	b = append(appendPad(b, 8), field, 1, kind, 0)
	return appendString(b, value)
}

func appendPad(b []byte, align int) []byte {
	for len(b)%align != 0 {
		b = append(b, 0)
	}
	return b
}

// appendString encodes a string to a body or message begun at b[0].
func appendString(b []byte, s string) []byte {
	b = binary.LittleEndian.AppendUint32(appendPad(b, 4), uint32(len(s)))
	return append(append(b, s...), 0)
}

// appendStrings encodes a list of strings.
func appendStrings(b []byte, list []string) []byte {
	b = appendPad(b, 4)
	at := len(b)
	b = append(b, 0, 0, 0, 0)
	for _, s := range list {
		b = appendString(b, s)
	}
	binary.LittleEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	return b
}

// checkString refuses what a bus would close the connection for.
func checkString(s string) error {
	if len(s) > maxArgument || strings.IndexByte(s, 0) >= 0 || !utf8.ValidString(s) {
		return fmt.Errorf("%.300q is not text that a message can hold", s)
	}
	return nil
}

// checkPath refuses what is no object path, for the same reason.
func checkPath(s string) error {
	bad := len(s) > maxArgument || !strings.HasPrefix(s, "/") || s != "/" && strings.HasSuffix(s, "/") || strings.Contains(s, "//")
	for i := 0; i < len(s) && !bad; i++ {
		c := s[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '/'
		bad = !letter
	}
	if bad {
		return fmt.Errorf("%.300q is no object path", s)
	}
	return nil
}
