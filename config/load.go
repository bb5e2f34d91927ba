package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// variablePrefix begins the names of environment variables.
const variablePrefix = "BLIXARD_"

// fileVariable names the configuration file.
const fileVariable = variablePrefix + "CONFIG"

// clientVariables are the CLI's; they are not looked at here.
var clientVariables = []string{"ADDR", "CACERT", "CLIENT_CERT", "CLIENT_KEY", "OUTPUT", "TOKEN_FILE"}

// LoadOptions say where the configuration comes from.
type LoadOptions struct {
	// File is the configuration file, empty for the one that the variable
	// BLIXARD_CONFIG names, or else the usual one. Only the usual one may be
	// missing.
	File        string
	Environment Environment
	// Flags holds the values of flags that were given, by the name of the key.
	Flags map[string]string
}

// Sources tells by the name of the key where its value comes from: "default",
// FILE:LINE, the name of an environment variable, or a flag with its dashes.
type Sources map[string]string

// fromDefault is the source of a value that nobody gave.
const fromDefault = "default"

// Load reads the configuration and validates it. It blocks for as long as
// reading the files takes. The error names the faults, one a line and maxFaults at
// most, each with its source; the configuration is then of no use.
func Load(o LoadOptions) (Config, Sources, error) {
	l := loader{cfg: Default(o.Environment), sources: Sources{}}
	for i := range table {
		l.sources[table[i].Name] = fromDefault
	}
	l.files(o)
	l.environment(o.Environment.Variables)
	l.flags(o.Flags)
	if len(l.errs) == 0 {
		l.validate()
	}
	if err := errors.Join(l.errs...); err != nil {
		return Config{}, nil, err
	}
	return l.cfg, l.sources, nil
}

// loader gathers values layer by layer, and every fault on the way.
type loader struct {
	cfg     Config
	sources Sources
	errs    []error
}

// maxFaults bounds the faults that are told at once.
const maxFaults = 20

func (l *loader) fault(format string, args ...any) {
	if len(l.errs) < maxFaults {
		l.errs = append(l.errs, fmt.Errorf(format, args...))
	}
}

// took notes where a key's value was taken from, or why it was not.
func (l *loader) took(k *Key, source string, err error) {
	if err != nil {
		l.fault("%s: %s: %w", source, k.Name, err)
		return
	}
	l.sources[k.Name] = source
}

// environment takes in the variables of keys. An empty one counts as not set.
func (l *loader) environment(variables []string) {
	seen := map[string]bool{}
	for _, v := range variables {
		name, value, _ := strings.Cut(v, "=")
		rest, ours := strings.CutPrefix(name, variablePrefix)
		// The first of two counts, as for every Go program.
		if !ours || seen[name] || value == "" || name == fileVariable || slices.Contains(clientVariables, rest) {
			continue
		}
		seen[name] = true
		if i := slices.IndexFunc(table, func(k Key) bool { return k.Variable() == name }); i >= 0 {
			l.took(&table[i], name, table[i].setText(&l.cfg, value))
			continue
		}
		known := make([]string, len(table))
		for i := range table {
			known[i] = table[i].Variable()
		}
		l.fault("environment: no key has the variable %q%s", name, didYouMean(name, known))
	}
}

// flags takes in the flags that were given.
func (l *loader) flags(flags map[string]string) {
	for i := range table {
		k := &table[i]
		if value, ok := flags[k.Name]; ok {
			l.took(k, "--"+k.Flag(), k.setText(&l.cfg, value))
		}
	}
	for name := range flags {
		if find(name) == nil {
			l.fault("flags: unknown key %q", name)
		}
	}
}

// validate checks bounds, naming the source of what is out of them.
func (l *loader) validate() {
	for i := range table {
		k := &table[i]
		if err := k.check(&l.cfg); err != nil {
			l.fault("%s: %s: %w", l.sources[k.Name], k.Name, err)
		}
	}
	if len(l.errs) == 0 {
		l.errs = l.cfg.conflicts()
	}
}

// didYouMean suggests the known name that is nearest to what was written, if one
// is near.
func didYouMean(written string, known []string) string {
	best, least := "", 0
	for _, k := range known {
		d := distance(written, k)
		// A key in the wrong table, or in none, is a likely mistake.
		if leaf := k[strings.LastIndex(k, ".")+1:]; leaf != k {
			d = min(d, 1+distance(written[strings.LastIndex(written, ".")+1:], leaf))
		}
		if best == "" || d < least {
			best, least = k, d
		}
	}
	if least > max(2, len(written)/2) {
		return "; blixard config show lists all"
	}
	return fmt.Sprintf("; the nearest is %q", best)
}

// maxCompared bounds the names whose distance is measured, in bytes.
const maxCompared = 100

// distance is the number of bytes to insert, remove or replace to make b of a
// (Levenshtein's).
func distance(a, b string) int {
	a, b = a[:min(len(a), maxCompared)], b[:min(len(b), maxCompared)]
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			next := diagonal
			if a[i] != b[j] {
				next = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}
