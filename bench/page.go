package main

import (
	"fmt"
	"strconv"
	"strings"
)

// page is what a scrape gave: the samples of each series' name.
type page map[string][]sample

// sample is one line of a page; labels are what stood between the braces.
type sample struct {
	labels string
	value  float64
}

// parsePage reads the text format of Prometheus as far as the figures need it:
// samples without timestamps, whose label values hold no brace.
func parsePage(text string) (page, error) {
	p := page{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		i := strings.LastIndexByte(line, ' ')
		if i < 0 {
			return nil, fmt.Errorf("parse metrics: line %q has no value", line)
		}
		value, err := strconv.ParseFloat(line[i+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("parse metrics: line %q: %w", line, err)
		}
		name, labels, _ := strings.Cut(line[:i], "{")
		p[name] = append(p[name], sample{strings.TrimSuffix(labels, "}"), value})
	}
	return p, nil
}

// label is the value of a label without its escapes, empty if it has none.
func (s sample) label(name string) string {
	for rest := s.labels; rest != ""; {
		key, quoted, ok := strings.Cut(rest, `="`)
		if !ok {
			return ""
		}
		end := strings.IndexByte(quoted, '"')
		if end < 0 {
			return ""
		}
		if strings.TrimLeft(key, ",") == name {
			return quoted[:end]
		}
		rest = quoted[end+1:]
	}
	return ""
}

// sum adds up the samples whose label has the value, all of them for an empty
// label.
func (p page) sum(name, label, value string) float64 {
	total := 0.0
	for _, s := range p[name] {
		if label == "" || s.label(label) == value {
			total += s.value
		}
	}
	return total
}

func (p page) value(name string) float64 { return p.sum(name, "", "") }

// histogram is the one whose label has the value, the only one for an empty
// label. It has no samples where the page has no such histogram.
func (p page) histogram(name, label, value string) (histogram, error) {
	h := histogram{sum: p.sum(name+"_sum", label, value), count: uint64(p.sum(name+"_count", label, value))}
	for _, s := range p[name+"_bucket"] {
		if label != "" && s.label(label) != value {
			continue
		}
		bound, err := strconv.ParseFloat(s.label("le"), 64)
		if err != nil {
			return h, fmt.Errorf("parse histogram %s: %w", name, err)
		}
		h.buckets = append(h.buckets, bucket{bound, uint64(s.value)})
	}
	return h, nil
}

// listings counts complete listings of the system's units, readings those of
// the state directory.
func (p page) listings() uint64 { return p.collected("system") }
func (p page) readings() uint64 { return p.collected("files") }

func (p page) collected(source string) uint64 {
	return uint64(p.sum("blixard_collect_duration_seconds_count", "source", source))
}

// busCalls counts all calls to service managers.
func (p page) busCalls() float64 { return p.value("blixard_dbus_calls_total") }
