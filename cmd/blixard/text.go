package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// safe is text as it may go to a terminal: what a screen does not show as it is
// (controls, escape sequences, marks of direction, bytes that are no UTF-8) is
// written out as \x1b or \u202e.
func safe(s string) string {
	clean := true
	for _, r := range s {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r < 0x80:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r <= 0xffff:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
		i += n
	}
	return b.String()
}

// span is a duration for people, in its two greatest units: 2s, 3m12s, 5h4m, 6d2h.
func span(d time.Duration) string {
	s := int64(max(0, d) / time.Second)
	two := func(a int64, unit string, b int64, sub string) string {
		if b == 0 {
			return fmt.Sprintf("%d%s", a, unit)
		}
		return fmt.Sprintf("%d%s%d%s", a, unit, b, sub)
	}
	switch {
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return two(s/60, "m", s%60, "s")
	case s < 86400:
		return two(s/3600, "h", s/60%60, "m")
	default:
		return two(s/86400, "d", s/3600%24, "h")
	}
}

// seconds is a number of seconds as a duration; what fits none is the greatest.
func seconds(s float64) time.Duration {
	if !(s < math.MaxInt64/float64(time.Second)) {
		return math.MaxInt64
	}
	return time.Duration(s * float64(time.Second))
}

// clock is a moment for people, in the local time zone.
func clock(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

// size is a number of bytes for people, in powers of 1024: 812M, 2.0G.
func size(n int64) string {
	if n < 1024 {
		return strconv.FormatInt(n, 10)
	}
	f, unit := float64(n), 0
	for f >= 1024 && unit < 5 {
		f, unit = f/1024, unit+1
	}
	if f < 10 {
		return fmt.Sprintf("%.1f%c", f, "BKMGTP"[unit])
	}
	return fmt.Sprintf("%.0f%c", f, "BKMGTP"[unit])
}

// plural is a count with its noun.
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}

// glob reports whether s matches a pattern of * (any text), ? (one character)
// and text as it is.
func glob(pattern, s string) bool {
	// star and mark are where to go on when what followed the last * did not
	// match.
	p, i, star, mark := 0, 0, -1, 0
	pr, sr := []rune(pattern), []rune(s)
	for i < len(sr) {
		switch {
		case p < len(pr) && pr[p] == '*':
			star, mark = p, i
			p++
		case p < len(pr) && (pr[p] == '?' || pr[p] == sr[i]):
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	for p < len(pr) && pr[p] == '*' {
		p++
	}
	return p == len(pr)
}
