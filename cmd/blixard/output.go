package main

import (
	"bytes"
	"encoding/csv"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/api"
)

// listFlags are the flags of every list.
type listFlags struct {
	columns []string
	filters []string
	sort    string
}

func (f *listFlags) register(cmd *cobra.Command, keys []string) {
	cmd.Flags().StringSliceVar(&f.columns, "columns", nil, "the columns to show, by comma")
	cmd.Flags().StringArrayVar(&f.filters, "filter", nil, "show what matches `FIELD=VALUE` or FIELD!=VALUE; * and ? stand for other text (repeatable)")
	cmd.Flags().StringVar(&f.sort, "sort", "", "sort by `[-]FIELD`")
	must(cmd.RegisterFlagCompletionFunc("columns", cobra.FixedCompletions(keys, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveNoSpace)))
	must(cmd.RegisterFlagCompletionFunc("sort", cobra.FixedCompletions(keys, cobra.ShellCompDirectiveNoFileComp)))
	var eq []string
	for _, k := range keys {
		eq = append(eq, k+"=")
	}
	must(cmd.RegisterFlagCompletionFunc("filter", cobra.FixedCompletions(eq, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveNoSpace)))
}

// view is how a list is shown.
type view[T any] struct {
	noun    *noun[T]
	format  string
	columns []*field[T]
	filters []filter[T]
	// order is nil where the order is the daemon's.
	order func(a, b *T) int
	color bool
}

// newView reads the flags of a list.
func newView[T any](a *app, n *noun[T], flags *listFlags) (*view[T], error) {
	format, err := a.format(formats...)
	if err != nil {
		return nil, err
	}
	v := &view[T]{noun: n, format: format, color: a.color()}
	names := n.table
	switch {
	case len(flags.columns) > 0 && (format == "json" || format == "yaml" || format == "name"):
		return nil, usagef("--columns does not go with -o %s", format).WithHint("it goes with table, wide and csv")
	case len(flags.columns) > 0:
		names = flags.columns
	case format == "csv":
		names = n.keys()
	case format == "wide":
		names = n.wide
	}
	if v.columns, err = n.columns(names); err != nil {
		return nil, err
	}
	if age, err := n.find("age_seconds"); err == nil && format != "csv" && !slices.Contains(v.columns, age) {
		v.columns = append(v.columns, age)
	}
	if v.filters, err = n.filters(flags.filters); err != nil {
		return nil, err
	}
	if flags.sort == "" && (format == "json" || format == "yaml") {
		// The daemon's own answer, in its own order.
		return v, nil
	}
	v.order, err = n.sorter(flags.sort)
	return v, err
}

// human says that the output is for people, not for programs.
func (v *view[T]) human() bool { return v.format == "table" || v.format == "wide" }

// choose filters and sorts.
func (v *view[T]) choose(items []T) []T {
	out := make([]T, 0, len(items))
	for i := range items {
		if keep(&items[i], v.filters) {
			out = append(out, items[i])
		}
	}
	if v.order != nil {
		slices.SortStableFunc(out, func(a, b T) int { return v.order(&a, &b) })
	}
	return out
}

// render is a list, its items chosen already, as it is printed.
func (v *view[T]) render(l blixard.List[T]) ([]byte, error) {
	switch v.format {
	case "json":
		return encoded(l)
	case "yaml":
		return encodedYAML(l)
	case "csv":
		return v.csv(l.Items)
	case "name":
		var b bytes.Buffer
		for i := range l.Items {
			b.WriteString(safe(v.noun.id(&l.Items[i])))
			b.WriteByte('\n')
		}
		return b.Bytes(), nil
	default:
		t := v.newTable()
		for i := range l.Items {
			t.add(v.row(&l.Items[i]))
		}
		return t.bytes(v.color), nil
	}
}

func (v *view[T]) newTable() *table {
	var head []string
	for _, c := range v.columns {
		head = append(head, c.head)
	}
	return newTable(head...)
}

func (v *view[T]) row(item *T) []value {
	row := make([]value, len(v.columns))
	for i, c := range v.columns {
		row[i] = c.get(item)
	}
	return row
}

func encoded(v any) ([]byte, error) {
	var b bytes.Buffer
	err := api.Encode(&b, v)
	return b.Bytes(), err
}

func encodedYAML(v any) ([]byte, error) {
	b, err := encoded(v)
	if err != nil {
		return nil, err
	}
	return toYAML(b)
}

func (v *view[T]) csv(items []T) ([]byte, error) {
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	line := make([]string, len(v.columns))
	for i, c := range v.columns {
		line[i] = c.key
	}
	err := w.Write(line)
	for i := range items {
		for j, c := range v.columns {
			line[j] = csvCell(c.get(&items[i]))
		}
		if err == nil {
			err = w.Write(line)
		}
	}
	w.Flush()
	return b.Bytes(), err
}

// csvCell is a value as a spreadsheet takes it for text: what begins like a
// formula gets a quote in front.
func csvCell(v value) string {
	s := safe(v.raw)
	if !v.numeric && s != "" && strings.ContainsRune("=+-@", rune(s[0])) {
		return "'" + s
	}
	return s
}

// table is text in columns.
type table struct {
	head []string
	rows [][]value
	// width are the columns' widths, which only grow.
	width []int
}

func newTable(head ...string) *table {
	t := &table{head: head, width: make([]int, len(head))}
	for i, h := range head {
		t.width[i] = utf8.RuneCountInString(h)
	}
	return t
}

func (t *table) add(row []value) {
	for i := range row {
		row[i].text = safe(row[i].text)
		if !row[i].here {
			row[i].text = "-"
		}
	}
	t.rows = append(t.rows, row)
}

// bytes are the header and the rows.
func (t *table) bytes(color bool) []byte {
	t.measure()
	var b bytes.Buffer
	head := make([]value, len(t.head))
	for i, h := range t.head {
		head[i] = value{text: h}
	}
	t.line(&b, head, false)
	for _, r := range t.rows {
		t.line(&b, r, color)
	}
	return b.Bytes()
}

func (t *table) measure() {
	for _, r := range t.rows {
		for i := range r {
			t.width[i] = max(t.width[i], utf8.RuneCountInString(r[i].text))
		}
	}
}

func (t *table) line(b *bytes.Buffer, row []value, color bool) {
	for i, v := range row {
		paint(b, v.text, v.tone, color)
		if i < len(row)-1 {
			b.WriteString(strings.Repeat(" ", t.width[i]-utf8.RuneCountInString(v.text)+2))
		}
	}
	b.WriteByte('\n')
}

// paint writes text in the colour of its tone.
func paint(b *bytes.Buffer, s string, t tone, color bool) {
	codes := [...]string{good: "32", warn: "33", bad: "31;1", odd: "35", dim: "2"}
	if !color || t == plain {
		b.WriteString(s)
		return
	}
	b.WriteString("\x1b[" + codes[t] + "m" + s + "\x1b[0m")
}

// next is one more row, under those there are.
func (t *table) next(row []value, color bool) []byte {
	t.rows = nil
	t.add(row)
	t.measure()
	var b bytes.Buffer
	t.line(&b, row, color)
	return b.Bytes()
}
