package metrics

import (
	"crypto/sha256"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/blixard/blixard"
)

// page is a page of series being written. The samples of a family follow its
// head.
type page struct {
	buf []byte
	// open says that it is written as OpenMetrics.
	open bool
}

// kinds of families.
const (
	gauge   = "gauge"
	counter = "counter"
	info    = "info"
)

// family begins a family. The names of counters end in _total, those of infos in
// _info: OpenMetrics names the family without that.
func (p *page) family(name, kind, help string) {
	if p.open {
		name = strings.TrimSuffix(strings.TrimSuffix(name, "_total"), "_info")
	} else if kind == info {
		kind = gauge
	}
	p.buf = fmt.Appendf(p.buf, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

// sample writes one sample. labels are written ones, without braces.
func (p *page) sample(name string, value float64, labels ...[]byte) {
	p.buf = append(p.buf, name...)
	sep := byte('{')
	for _, l := range labels {
		if len(l) == 0 {
			continue
		}
		p.buf = append(append(p.buf, sep), l...)
		sep = ','
	}
	if sep == ',' {
		p.buf = append(p.buf, '}')
	}
	p.buf = append(p.buf, ' ')
	if value == math.Trunc(value) && math.Abs(value) < 1<<53 {
		p.buf = strconv.AppendInt(p.buf, int64(value), 10)
	} else {
		p.buf = strconv.AppendFloat(p.buf, value, 'f', -1, 64)
	}
	p.buf = append(p.buf, '\n')
}

// set writes the samples of a state set: 1 for what is, 0 for all else.
func (p *page) set(name string, is int, all [][]byte, labels ...[]byte) {
	labels = append(labels, nil)
	for i, l := range all {
		labels[len(labels)-1] = l
		value := 0.0
		if i == is {
			value = 1
		}
		p.sample(name, value, labels...)
	}
}

// appendLabel writes name="value" with the value made harmless. An empty value,
// which is no label at all, writes nothing.
func appendLabel(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	b = append(append(b, name...), '=', '"')
	for _, c := range []byte(harmless(value)) {
		switch c {
		case '\\', '"':
			b = append(b, '\\', c)
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}

func label(name, value string) []byte { return appendLabel(nil, name, value) }

// harmless is a text of at most blixard.MaxName bytes that can be shown, and
// different for different values. A value that is one stays as it is. Of another
// the unprintable is escaped, and a slash, which no name of a unit holds, and a
// part of its hash keep it apart from all others.
func harmless(value string) string {
	if len(value) <= blixard.MaxName && utf8.ValidString(value) && strings.IndexFunc(value, unprintable) < 0 {
		return value
	}
	sum := sha256.Sum256([]byte(value))
	tail := fmt.Sprintf("/%x", sum[:8])
	shown := strconv.Quote(value[:min(len(value), blixard.MaxName)])
	shown = shown[1 : len(shown)-1]
	shown = shown[:min(len(shown), blixard.MaxName-len(tail))]
	// The cut may have split a rune.
	return strings.ToValidUTF8(shown, "") + tail
}

func unprintable(r rune) bool { return !unicode.IsPrint(r) }

// unix is a time in seconds, to the millisecond.
func unix(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
