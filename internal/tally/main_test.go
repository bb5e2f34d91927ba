package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// run has go test run a module of these files and gives what tally makes of it.
func run(t *testing.T, files map[string]string) (string, bool) {
	t.Helper()
	dir := t.TempDir()
	files["go.mod"] = "module example.org/m\n\ngo 1.26\n"
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "go", "test", "-json", "./...")
	cmd.Dir = dir
	// It fails where tests do.
	out, _ := cmd.CombinedOutput()
	var b bytes.Buffer
	tally := newTally(&b)
	if err := tally.read(bytes.NewReader(out)); err != nil {
		t.Fatal(err)
	}
	ok := tally.close()
	text := regexp.MustCompile(`\d+\.\d+s`).ReplaceAllString(b.String(), "TIME")
	return regexp.MustCompile(`(?s)goroutine \d+.*?\n(FAIL\s|ok\s|\d)`).ReplaceAllString(text, "STACK\n$1"), ok
}

func TestTally(t *testing.T) {
	const head = "package p\nimport \"testing\"\n"
	for _, test := range []struct {
		name, code, want string
		ok               bool
	}{
		{"passed", "func TestA(t *testing.T) { t.Run(\"x\", func(t *testing.T) {}) }", "ok   example.org/m (TIME)\n2 passed, 0 failed, 0 skipped\n", true},
		{"skipped", "func TestA(t *testing.T) { t.Skip(\"no tool: apt-get install tool\") }\nfunc TestB(t *testing.T) {}",
			"ok   example.org/m (TIME)\nskipped:\n    example.org/m TestA: no tool: apt-get install tool\n1 passed, 0 failed, 1 skipped\n", true},
		{"failed", "func TestA(t *testing.T) { t.Error(\"wrong\") }\nfunc TestB(t *testing.T) { t.Log(\"not told\") }",
			"--- FAIL: example.org/m TestA (TIME)\n        a_test.go:3: wrong\n    --- FAIL: TestA (TIME)\nFAIL example.org/m (TIME)\n1 passed, 1 failed, 0 skipped\n", false},
		{"none", "", "ok   example.org/m (TIME)\nno test ran\n0 passed, 0 failed, 0 skipped\n", false},
		{"not built", "func TestA(t *testing.T) { nothing() }",
			"FAIL example.org/m (TIME)\n    # example.org/m [example.org/m.test]\n    ./a_test.go:3:28: undefined: nothing\n0 passed, 1 failed, 0 skipped\n", false},
		{"crashed", "func TestA(t *testing.T) {}\nfunc TestB(t *testing.T) { done := make(chan bool); go func() { panic(\"elsewhere\") }(); <-done }", "panic: elsewhere", false},
		{"exited", "import \"os\"\nfunc TestA(t *testing.T) {}\nfunc TestB(t *testing.T) { os.Exit(3) }", "FAIL example.org/m (TIME)\n    TestB did not end\n", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			code := test.code
			if strings.Contains(code, "import") {
				code = strings.TrimPrefix(code, "import \"os\"\n")
				code = "package p\nimport (\"os\"; \"testing\")\n" + code
			} else if code == "" {
				code = "package p\n"
			} else {
				code = head + code
			}
			got, ok := run(t, map[string]string{"a_test.go": code})
			if ok != test.ok {
				t.Errorf("all is well: %v", ok)
			}
			if test.name == "crashed" || test.name == "exited" {
				if !strings.Contains(got, test.want) || strings.Contains(got, ", 0 failed") {
					t.Errorf("got\n%s", got)
				}
				return
			}
			if d := cmp.Diff(test.want, got); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}
}

// TestTally_Torn holds that a run that ends early is no success.
func TestTally_Torn(t *testing.T) {
	var b bytes.Buffer
	tally := newTally(&b)
	in := `{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestA"}
flag provided but not defined
`
	if err := tally.read(strings.NewReader(in)); err != nil {
		t.Fatal(err)
	}
	if tally.close() {
		t.Error("taken for a success")
	}
	want := "flag provided but not defined\nFAIL p: ended without a word\n1 passed, 1 failed, 0 skipped\n"
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}
