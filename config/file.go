package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

const (
	// maxFile bounds a file in bytes.
	maxFile = 256 << 10
	// maxFiles bounds the files of conf.d.
	maxFiles = 100
	// maxEntries bounds what else may lie there.
	maxEntries = 1000
)

// files takes in the configuration file and those of conf.d beside it.
func (l *loader) files(o LoadOptions) {
	file, required := o.File, true
	if file == "" {
		file = o.Environment.get(fileVariable)
	}
	if file == "" {
		file, required = o.Environment.file(), false
	}
	if file == "" {
		return
	}
	l.file(file, required)
	names, err := dropIns(filepath.Join(filepath.Dir(file), "conf.d"))
	if err != nil {
		l.errs = append(l.errs, err)
		return
	}
	for _, name := range names {
		l.file(name, true)
	}
}

// dropIns lists the files of conf.d in the order in which they count.
func dropIns(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(maxEntries + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	if len(names) > maxEntries {
		return nil, fmt.Errorf("%s: holds more than %d entries", dir, maxEntries)
	}
	// Hidden files are editors' and package managers'.
	names = slices.DeleteFunc(names, func(n string) bool { return n[0] == '.' || !strings.HasSuffix(n, ".toml") })
	if len(names) > maxFiles {
		return nil, fmt.Errorf("%s: holds more than %d files", dir, maxFiles)
	}
	slices.Sort(names)
	for i := range names {
		names[i] = filepath.Join(dir, names[i])
	}
	return names, nil
}

// file takes in one file.
func (l *loader) file(name string, required bool) {
	data, err := readFile(name)
	if errors.Is(err, fs.ErrNotExist) && !required {
		return
	}
	if err != nil {
		l.errs = append(l.errs, err)
		return
	}
	var tree map[string]any
	if err := toml.Unmarshal(data, &tree); err != nil {
		if at, ok := errors.AsType[*toml.DecodeError](err); ok {
			line, column := at.Position()
			err = fmt.Errorf("line %d, column %d: %s", line, column, strings.TrimPrefix(at.Error(), "toml: "))
		}
		l.fault("%s: %w", name, err)
		return
	}
	l.tree(name, lines(data), "", tree)
}

// readFile reads a regular file of bounded size. Opened without blocking, a FIFO
// cannot hold up the start.
func readFile(name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: is no regular file", name)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s: is larger than %s", name, Size(maxFile))
	}
	return data, nil
}

// tree takes in a decoded table. It goes no deeper than known tables do.
func (l *loader) tree(file string, at map[string]int, prefix string, tree map[string]any) {
	names := make([]string, 0, len(tree))
	for name := range tree {
		names = append(names, name)
	}
	// In the order of the file, so that faults are told from the top.
	slices.SortFunc(names, func(a, b string) int {
		if d := at[prefix+a] - at[prefix+b]; d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	for _, name := range names {
		full := prefix + name
		source := fmt.Sprintf("%s:%d", file, at[full])
		if k := find(full); k != nil && !strings.Contains(name, ".") {
			l.took(k, source, k.setTOML(&l.cfg, tree[name]))
			continue
		}
		sub, isTable := tree[name].(map[string]any)
		switch known := tables(); {
		case slices.Contains(known, full) && isTable:
			l.tree(file, at, full+".", sub)
		case slices.Contains(known, full):
			l.fault("%s: %s: is %s; want a table", source, full, kindOf(tree[name]))
		case isTable && prefix == "":
			l.fault("%s: unknown table %q%s", source, full, didYouMean(full, known))
		default:
			l.fault("%s: unknown key %q%s", source, full, didYouMean(full, keyNames()))
		}
	}
}

func keyNames() []string {
	out := make([]string, len(table))
	for i := range table {
		out[i] = table[i].Name
	}
	return out
}

// tables are the names of the tables that keys are in.
func tables() []string {
	var out []string
	for i := range table {
		if t, _, ok := strings.Cut(table[i].Name, "."); ok && !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	return out
}

// lines finds the line on which each key of a valid document first stands, by
// its name with dots.
func lines(data []byte) map[string]int {
	at := map[string]int{}
	line, offset := 1, 0
	note := func(parts []string, raw unstable.Range) {
		// Expressions come in order, so that every line is counted once.
		for ; offset < int(raw.Offset); offset++ {
			if data[offset] == '\n' {
				line++
			}
		}
		for n := range min(len(parts), maxDepth) {
			name := strings.Join(parts[:n+1], ".")
			if _, ok := at[name]; !ok {
				at[name] = line
			}
		}
	}
	var p unstable.Parser
	p.Reset(data)
	var prefix []string
	for p.NextExpression() {
		e := p.Expression()
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			var raw unstable.Range
			prefix, raw = below(nil, e)
			note(prefix, raw)
		case unstable.KeyValue:
			name, raw := below(prefix, e)
			note(name, raw)
			if e.Value().Kind != unstable.InlineTable {
				continue
			}
			for it := e.Value().Children(); it.Next(); {
				note(below(name, it.Node()))
			}
		}
	}
	return at
}

// maxDepth is how deep keys lie: a table and the key in it.
const maxDepth = 2

// below is the key of an expression in a table, no longer than matters, and
// where it begins.
func below(prefix []string, e *unstable.Node) ([]string, unstable.Range) {
	parts := slices.Clone(prefix)
	var raw unstable.Range
	for it := e.Key(); it.Next(); {
		if raw == (unstable.Range{}) {
			raw = it.Node().Raw
		}
		if len(parts) < maxDepth {
			parts = append(parts, string(it.Node().Data))
		}
	}
	return parts, raw
}
