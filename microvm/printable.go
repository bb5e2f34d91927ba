package microvm

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Printable makes a name fit for people: bytes that are no UTF-8 and characters
// that cannot be seen or that change the direction of text are written as \xff
// and \u{202e}. A backslash stays, since many names have one; so the result may
// be the same for two names and is not for programs.
func Printable(name string) string {
	clean := true
	for _, r := range name {
		if r == utf8.RuneError || !strconv.IsPrint(r) {
			clean = false
			break
		}
	}
	if clean {
		return name
	}
	var b strings.Builder
	for i := 0; i < len(name); {
		r, size := utf8.DecodeRuneInString(name[i:])
		switch {
		case r == utf8.RuneError && size == 1, r < utf8.RuneSelf && !strconv.IsPrint(r):
			fmt.Fprintf(&b, `\x%02x`, name[i])
		case !strconv.IsPrint(r):
			fmt.Fprintf(&b, `\u{%x}`, r)
		default:
			b.WriteRune(r)
		}
		i += size
	}
	return b.String()
}
