// Command tally reads what go test -json says and makes it short: a line a
// package, everything of what failed, why tests were skipped, and one closing
// line that counts them.
//
//	go test -json ./... | go run ./internal/tally
//
// It exits with 1 when a test or a package failed, when none ran, and when what
// it reads ends early.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

func main() {
	t := newTally(os.Stdout)
	if err := t.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "tally:", err)
		os.Exit(1)
	}
	if !t.close() {
		os.Exit(1)
	}
}

// event is a line of go test -json.
type event struct {
	Action      string
	Package     string
	ImportPath  string
	Test        string
	Elapsed     float64
	Output      string
	FailedBuild string
}

// key names a test, or with an empty test its package.
type key struct{ pkg, test string }

// tally counts the tests of a run.
type tally struct {
	w io.Writer
	// output is what tests that still run, or failed, have printed.
	output map[key][]string
	// running are the tests that have not ended.
	running map[key]bool
	// builds is what the compiler said of what it could not build.
	builds map[string][]string
	// open are the packages that have not ended.
	open                    map[string]bool
	passed, failed, skipped int
	// failures counts the tests of a package that failed.
	failures map[string]int
	reasons  []string
}

func newTally(w io.Writer) *tally {
	return &tally{w: w, output: map[key][]string{}, running: map[key]bool{}, builds: map[string][]string{}, open: map[string]bool{}, failures: map[string]int{}}
}

// read takes in a whole run.
func (t *tally) read(r io.Reader) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				// What go test itself says, such as a wrong flag, is no event.
				fmt.Fprintf(t.w, "%s", line)
			} else {
				t.take(&e)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read test results: %w", err)
		}
	}
}

func (t *tally) take(e *event) {
	k := key{e.Package, e.Test}
	switch e.Action {
	case "start":
		t.open[e.Package] = true
	case "run":
		t.running[k] = true
	case "output":
		t.output[k] = append(t.output[k], e.Output)
	case "build-output":
		t.builds[e.ImportPath] = append(t.builds[e.ImportPath], e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			t.ended(e)
		} else {
			t.tested(e, k)
		}
	}
}

// tested counts a test.
func (t *tally) tested(e *event, k key) {
	switch e.Action {
	case "pass":
		t.passed++
	case "fail":
		t.failed++
		t.failures[e.Package]++
		fmt.Fprintf(t.w, "--- FAIL: %s %s (%.2fs)\n%s", e.Package, e.Test, e.Elapsed, indent(t.output[k]))
	case "skip":
		t.skipped++
		t.reasons = append(t.reasons, fmt.Sprintf("%s %s: %s", e.Package, e.Test, reason(t.output[k])))
	}
	delete(t.output, k)
	delete(t.running, k)
}

// ended counts a package that failed as a whole: it was not built, crashed, or
// ran out of time. Otherwise its tests have counted.
func (t *tally) ended(e *event) {
	delete(t.open, e.Package)
	k := key{pkg: e.Package}
	switch {
	case e.Action == "fail" && t.failures[e.Package] == 0:
		t.failed++
		fmt.Fprintf(t.w, "FAIL %s (%.2fs)\n%s", e.Package, e.Elapsed, indent(append(t.builds[e.FailedBuild], t.rest(e.Package)...)))
	case e.Action == "fail":
		// A crash after a test failed is told by what the package and the tests
		// that did not end printed.
		fmt.Fprintf(t.w, "FAIL %s (%.2fs)\n%s", e.Package, e.Elapsed, indent(t.rest(e.Package)))
	case e.Action == "pass":
		fmt.Fprintf(t.w, "ok   %s (%.2fs)\n", e.Package, e.Elapsed)
	}
	delete(t.output, k)
}

// rest is what a package and its tests that did not end printed, and which those
// tests are.
func (t *tally) rest(pkg string) []string {
	var out []string
	for k := range t.running {
		if k.pkg == pkg {
			out = append(out, k.test+" did not end\n")
			delete(t.running, k)
		}
	}
	slices.Sort(out)
	for _, k := range slices.SortedFunc(maps.Keys(t.output), func(a, b key) int { return strings.Compare(a.test, b.test) }) {
		if k.pkg == pkg {
			out = append(out, t.output[k]...)
			delete(t.output, k)
		}
	}
	return out
}

// close tells what is left to tell and reports whether all is well.
func (t *tally) close() bool {
	for _, pkg := range slices.Sorted(maps.Keys(t.open)) {
		t.failed++
		fmt.Fprintf(t.w, "FAIL %s: ended without a word\n%s", pkg, indent(t.rest(pkg)))
	}
	if t.skipped > 0 {
		fmt.Fprintf(t.w, "skipped:\n%s", indent(t.reasons))
	}
	if t.passed+t.failed == 0 {
		fmt.Fprintln(t.w, "no test ran")
	}
	fmt.Fprintf(t.w, "%d passed, %d failed, %d skipped\n", t.passed, t.failed, t.skipped)
	return t.failed == 0 && t.passed > 0
}

// reason is what a skipped test said of why.
func reason(output []string) string {
	for _, line := range slices.Backward(output) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "=== ") || strings.HasPrefix(line, "--- ") {
			continue
		}
		if _, said, ok := strings.Cut(line, ": "); ok {
			return said
		}
		return line
	}
	return "no reason given"
}

// indent joins lines, each moved to the right, and leaves out what go test says
// only to mark the way.
func indent(lines []string) string {
	var b strings.Builder
	for _, line := range lines {
		for l := range strings.Lines(line) {
			if !strings.HasPrefix(l, "=== ") && l != "FAIL\n" && !strings.HasPrefix(l, "FAIL\t") {
				fmt.Fprintf(&b, "    %s\n", strings.TrimRight(l, "\n"))
			}
		}
	}
	return b.String()
}
