package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"unicode"
)

// plainScalar is text that YAML 1.1 and 1.2 read as a string without quotes,
// apart from the words of notString.
var plainScalar = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_./@-]*$`)

var notString = regexp.MustCompile(`^(?i:y|n|yes|no|on|off|true|false|null)$`)

// toYAML writes a JSON value as YAML: the same fields in the same order.
func toYAML(in []byte) ([]byte, error) {
	d := json.NewDecoder(bytes.NewReader(in))
	d.UseNumber()
	var b bytes.Buffer
	if err := yamlValue(&b, d, 0, leadNothing); err != nil {
		return nil, fmt.Errorf("write YAML: %w", err)
	}
	return b.Bytes(), nil
}

// lead is what stands before a value on its line.
type lead int

const (
	leadNothing lead = iota
	leadKey
	leadDash
)

// yamlValue writes the decoder's next value and a newline.
func yamlValue(b *bytes.Buffer, d *json.Decoder, depth int, before lead) error {
	tok, err := d.Token()
	if err != nil {
		return err
	}
	space := func() {
		if before != leadNothing {
			b.WriteByte(' ')
		}
	}
	delim, ok := tok.(json.Delim)
	switch {
	case !ok:
		space()
		b.WriteString(yamlScalar(tok))
		b.WriteByte('\n')
		return nil
	case !d.More():
		space()
		b.WriteString(map[json.Delim]string{'{': "{}\n", '[': "[]\n"}[delim])
		_, err := d.Token()
		return err
	case before == leadDash && delim == '{':
		space()
	case before != leadNothing:
		b.WriteByte('\n')
	}
	for first := true; d.More(); first = false {
		if !first || before != leadDash || delim != '{' {
			b.WriteString(strings.Repeat("  ", depth))
		}
		next := leadDash
		if delim == '[' {
			b.WriteByte('-')
		} else {
			key, err := d.Token()
			if err != nil {
				return err
			}
			b.WriteString(yamlScalar(key) + ":")
			next = leadKey
		}
		if err := yamlValue(b, d, depth+1, next); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err
}

func yamlScalar(tok json.Token) string {
	s, ok := tok.(string)
	if !ok {
		if tok == nil {
			return "null"
		}
		return fmt.Sprint(tok)
	}
	if plainScalar.MatchString(s) && !notString.MatchString(s) {
		return s
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r <= 0xff:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r <= 0xffff:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
