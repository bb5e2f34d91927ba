package config

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// errNotSet is about a value that has no default here and was not given.
var errNotSet = errors.New("is empty; it has no default here, so set it")

// Size is a number of bytes.
type Size int64

// units of a Size, the largest first.
var sizeUnits = []struct {
	name  string
	bytes Size
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

// String writes the size in the largest unit that divides it, such as 2GiB.
func (s Size) String() string {
	for _, u := range sizeUnits {
		if s%u.bytes == 0 && s != 0 {
			return fmt.Sprintf("%d%s", s/u.bytes, u.name)
		}
	}
	return "0B"
}

// parseSize reads a whole number with a unit of bytes.
func parseSize(s string) (Size, error) {
	for _, u := range sizeUnits {
		digits, ok := strings.CutSuffix(s, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
		if err != nil || n < 0 || n > math.MaxInt64/int64(u.bytes) {
			break
		}
		return Size(n) * u.bytes, nil
	}
	return 0, fmt.Errorf("%q is no size; want a whole number and KiB, MiB or GiB, such as 512MiB", s)
}

// parseDuration reads a duration with its unit.
func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("%q is no duration; want a number and its unit, such as 30s, 5m or 1h30m", s)
	}
	return d, nil
}

// formatDuration is Duration.String without units that are zero: 2m, not 2m0s.
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// parseLevel reads a level by the four names that there are.
func parseLevel(s string) (slog.Level, error) {
	for _, l := range levels {
		if levelName(l) == s {
			return l, nil
		}
	}
	return 0, fmt.Errorf("%q is no level; want debug, info, warn or error", s)
}

var levels = []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError}

func levelName(l slog.Level) string { return strings.ToLower(l.String()) }

// kindOf names a value's type in TOML.
func kindOf(v any) string {
	switch v.(type) {
	case string:
		return "a string"
	case int64:
		return "an integer"
	case float64:
		return "a float"
	case bool:
		return "a boolean"
	case []any:
		return "an array"
	case map[string]any:
		return "a table"
	default:
		return "a date or time"
	}
}

// wrongType refuses a value of another type than wanted.
func wrongType(v any, want string) error {
	return fmt.Errorf("is %s; want %s", kindOf(v), want)
}

// fromText makes a key whose value is a string in the file.
func fromText[T any](name, typ string, field func(*Config) *T, parse func(string) (T, error)) Key {
	k := Key{Name: name, Type: typ}
	k.setText = func(c *Config, s string) error {
		v, err := parse(s)
		if err == nil {
			*field(c) = v
		}
		return err
	}
	k.setTOML = func(c *Config, v any) error {
		s, ok := v.(string)
		if !ok {
			return wrongType(v, "a string")
		}
		return k.setText(c, s)
	}
	return k
}

func text(name string, field func(*Config) *string, check func(string) error) Key {
	k := fromText(name, "string", field, func(s string) (string, error) { return s, nil })
	k.check = func(c *Config) error {
		return check(*field(c))
	}
	k.value = func(c *Config) any { return *field(c) }
	return k
}

func path(name string, field func(*Config) *string, also ...func(string) error) Key {
	k := text(name, field, func(s string) error {
		for _, check := range append([]func(string) error{checkPath}, also...) {
			if err := check(s); err != nil {
				return err
			}
		}
		return nil
	})
	k.Type = "path"
	return k
}

func duration(name string, field func(*Config) *time.Duration, low, high time.Duration, words string) Key {
	k := fromText(name, "duration", field, parseDuration)
	k.Text, k.Bounds = words, formatDuration(low)+" to "+formatDuration(high)
	k.check = func(c *Config) error {
		if d := *field(c); d < low || d > high {
			return fmt.Errorf("%s is out of bounds; want %s", formatDuration(d), k.Bounds)
		}
		return nil
	}
	k.value = func(c *Config) any { return formatDuration(*field(c)) }
	return k
}

func size(name string, field func(*Config) *Size, low, high Size, words string) Key {
	k := fromText(name, "size", field, parseSize)
	k.Text, k.Bounds = words, low.String()+" to "+high.String()
	k.check = func(c *Config) error {
		if s := *field(c); s < low || s > high {
			return fmt.Errorf("%s is out of bounds; want %s", s, k.Bounds)
		}
		return nil
	}
	k.value = func(c *Config) any { return field(c).String() }
	return k
}

func level(name string, field func(*Config) *slog.Level, words string) Key {
	k := fromText(name, "string", field, parseLevel)
	k.Text, k.Bounds = words, "debug, info, warn or error"
	k.check = func(c *Config) error {
		if !slices.Contains(levels, *field(c)) {
			return fmt.Errorf("%s: want %s", *field(c), k.Bounds)
		}
		return nil
	}
	k.value = func(c *Config) any { return levelName(*field(c)) }
	return k
}

func integer(name string, field func(*Config) *int, low, high int, words string) Key {
	k := Key{Name: name, Type: "integer", Text: words, Bounds: fmt.Sprintf("%d to %d", low, high)}
	set := func(c *Config, n int64, err error) error {
		if err != nil || n < int64(low) || n > int64(high) {
			return fmt.Errorf("%d is out of bounds; want %s", n, k.Bounds)
		}
		*field(c) = int(n)
		return nil
	}
	k.setTOML = func(c *Config, v any) error {
		n, ok := v.(int64)
		if !ok {
			return wrongType(v, "an integer")
		}
		return set(c, n, nil)
	}
	k.setText = func(c *Config, s string) error {
		n, err := strconv.ParseInt(s, 10, 64)
		if errors.Is(err, strconv.ErrSyntax) {
			return fmt.Errorf("%q is no whole number; want %s", s, k.Bounds)
		}
		return set(c, n, err)
	}
	k.check = func(c *Config) error { return set(&Config{}, int64(*field(c)), nil) }
	k.value = func(c *Config) any { return int64(*field(c)) }
	return k
}

func boolean(name string, field func(*Config) *bool, words string) Key {
	k := Key{Name: name, Type: "boolean", Text: words, Bounds: "true or false"}
	k.setTOML = func(c *Config, v any) error {
		b, ok := v.(bool)
		if !ok {
			return wrongType(v, "true or false")
		}
		*field(c) = b
		return nil
	}
	k.setText = func(c *Config, s string) error {
		if s != "true" && s != "false" {
			return fmt.Errorf("%q: want true or false", s)
		}
		*field(c) = s == "true"
		return nil
	}
	k.check = func(*Config) error { return nil }
	k.value = func(c *Config) any { return *field(c) }
	return k
}

// paths makes a key that holds up to limit paths. In text they are separated by
// commas, so no path of a list may hold one.
func paths(name string, field func(*Config) *[]string, limit int, words string) Key {
	k := Key{Name: name, Type: "list of paths", Text: words,
		Bounds: fmt.Sprintf("at most %d absolute paths without commas, all different; separated by commas in the environment", limit)}
	k.setTOML = func(c *Config, v any) error {
		items, ok := v.([]any)
		if !ok {
			return wrongType(v, "an array of strings")
		}
		out := make([]string, 0, len(items))
		for _, item := range items {
			s, ok := item.(string)
			if !ok {
				return fmt.Errorf("holds %s; want an array of strings", kindOf(item))
			}
			out = append(out, s)
		}
		*field(c) = out
		return nil
	}
	k.setText = func(c *Config, s string) error {
		*field(c) = strings.Split(s, ",")
		return nil
	}
	k.check = func(c *Config) error {
		list := *field(c)
		if len(list) > limit {
			return fmt.Errorf("holds %d paths; want at most %d", len(list), limit)
		}
		for i, s := range list {
			if err := checkPath(s); err != nil {
				return err
			}
			if strings.Contains(s, ",") {
				return fmt.Errorf("%q: want a path without commas", s)
			}
			if slices.Contains(list[:i], s) {
				return fmt.Errorf("%q stands there twice", s)
			}
		}
		return nil
	}
	k.value = func(c *Config) any { return append([]string{}, *field(c)...) }
	return k
}
