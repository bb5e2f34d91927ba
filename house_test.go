package blixard_test

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// module is the path of this module.
const module = "github.com/blixard/blixard"

// mayImport is the one table of who may import whom among the folders of this
// module, tests aside. "." is the root; a folder also stands for those below it.
// A folder that is not here is a fault, so that somebody decides.
var mayImport = map[string][]string{
	".":                   {},
	"microvm":             {"."},
	"systemd":             {"."},
	"store":               {"."},
	"api":                 {"."},
	"metrics":             {"."},
	"config":              {"."},
	"correlate":           {"."},
	"monitor":             {".", "correlate"},
	"fleet":               {".", "correlate", "monitor"},
	"cmd/blixard":         {".", "api", "config"},
	"cmd/blixard-monitor": {".", "api", "config", "correlate", "fleet", "metrics", "microvm", "monitor", "store", "systemd"},
	// None of these ships.
	"lab":            {"."},
	"bench":          {".", "api", "lab", "systemd"},
	"internal/tally": {},
	"packaging":      {},
}

// library says which folders may import a library, tests and the lab aside: a
// technology is known in one place.
var library = map[string][]string{
	"github.com/godbus/":           {},
	"github.com/pelletier/":        {"config"},
	"github.com/prometheus/":       {"metrics"},
	"github.com/spf13/cobra":       {"cmd/blixard", "cmd/blixard-monitor"},
	"github.com/vishvananda/":      {},
	"go.etcd.io/":                  {"store"},
	"go.uber.org/zap":              {"store"},
	"google.golang.org/":           {"store"},
	"testing":                      {},
	"net/http":                     {".", "api", "cmd/blixard", "cmd/blixard-monitor", "metrics"},
	"os/exec":                      {"store"},
	"unsafe":                       {"api"},
	"C":                            {},
	"log":                          {},
	"math/rand":                    {},
	"github.com/getkin/":           {},
	"github.com/rogpeppe/":         {},
	"go.uber.org/goleak":           {},
	"pgregory.net/":                {},
	"github.com/google/go-cmp/":    {},
	"github.com/coreos/go-systemd": {"systemd"},
}

// pure are the packages without clock, input, output and goroutines.
var pure = map[string][]string{"correlate": {"os", "net", "net/http", "syscall", "io", "io/fs", "log", "log/slog", "sync", "context", "golang.org/x/sys"}}

// source is a parsed file.
type source struct {
	name, dir string
	text      []byte
	fset      *token.FileSet
	file      *ast.File
	imports   []string
	test      bool
}

// line tells where a node is.
func (s *source) line(n ast.Node) string {
	p := s.fset.Position(n.Pos())
	return s.name + ":" + strconv.Itoa(p.Line)
}

// sources parses every Go file of the project.
func sources(t *testing.T) []*source {
	t.Helper()
	var out []*source
	walk(t, func(name string, text []byte) {
		if !strings.HasSuffix(name, ".go") {
			return
		}
		s := &source{name: name, dir: path.Dir(name), text: text, fset: token.NewFileSet(), test: strings.HasSuffix(name, "_test.go")}
		file, err := parser.ParseFile(s.fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		s.file = file
		for _, i := range file.Imports {
			p, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			s.imports = append(s.imports, p)
		}
		out = append(out, s)
	})
	if len(out) < 50 {
		t.Fatalf("found %d Go files", len(out))
	}
	return out
}

// walk goes through the project's own text files.
func walk(t *testing.T, visit func(name string, text []byte)) {
	t.Helper()
	err := fs.WalkDir(os.DirFS("."), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			// What fuzzers found is no text.
			if name == ".git" || name == "bin" || strings.HasSuffix(name, "testdata/fuzz") {
				return fs.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() {
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if !bytes.Contains(text[:min(len(text), 8000)], []byte{0}) {
			visit(name, text)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// owner is the folder of the table that a folder belongs to.
func owner(dir string) (string, bool) {
	for at := dir; ; at = path.Dir(at) {
		if _, ok := mayImport[at]; ok && (at != "." || dir == ".") {
			return at, true
		}
		if at == "." {
			return "", false
		}
	}
}

// ships reports whether a folder is of the programs that ship.
func ships(dir string) bool {
	return dir != "lab" && dir != "bench" && dir != "packaging" && !strings.HasPrefix(dir, "internal/")
}

func TestHouse_Imports(t *testing.T) {
	for _, s := range sources(t) {
		from, ok := owner(s.dir)
		if !ok {
			t.Errorf("%s: house_test.go does not say what its folder may import", s.name)
			continue
		}
		if s.test || strings.Contains(s.dir, "testdata") {
			continue
		}
		for _, imported := range s.imports {
			if imported == module || strings.HasPrefix(imported, module+"/") {
				dir := strings.TrimPrefix(strings.TrimPrefix(imported, module), "/")
				if dir == "" {
					dir = "."
				}
				to, _ := owner(dir)
				if to != from && !slices.Contains(mayImport[from], to) {
					t.Errorf("%s: imports %s, which %s may not", s.name, imported, from)
				}
				continue
			}
			if from == "." && strings.Contains(imported, ".") {
				t.Errorf("%s: imports %s; the root has the standard library only", s.name, imported)
			}
			if !ships(from) {
				continue
			}
			for lib, dirs := range library {
				if matches(imported, lib) && !slices.Contains(dirs, from) {
					t.Errorf("%s: imports %s, which %s may not", s.name, imported, from)
				}
			}
			for _, lib := range pure[from] {
				if matches(imported, lib) {
					t.Errorf("%s: imports %s; %s is pure", s.name, imported, from)
				}
			}
		}
	}
}

// matches reports whether a package is the library or a part of it. A package of the
// standard library stands for itself alone.
func matches(imported, lib string) bool {
	if !strings.Contains(lib, ".") {
		return imported == lib
	}
	lib = strings.TrimSuffix(lib, "/")
	return imported == lib || strings.HasPrefix(imported, lib+"/")
}

// TestHouse_Pure holds that the pure packages take time as an argument and start
// no goroutine.
func TestHouse_Pure(t *testing.T) {
	for _, s := range sources(t) {
		if _, ok := pure[s.dir]; !ok || s.test {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if g, ok := n.(*ast.GoStmt); ok {
				t.Errorf("%s: a goroutine", s.line(g))
			}
			if f := called(n); slices.Contains([]string{"time.Now", "time.Since", "time.Until", "time.Sleep", "time.After", "time.AfterFunc", "time.NewTimer", "time.NewTicker", "time.Tick"}, f) {
				t.Errorf("%s: %s", s.line(n), f)
			}
			return true
		})
	}
}

// called is the selector such as os.Exit that a node is, "" when it is none.
func called(n ast.Node) string {
	sel, ok := n.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	if x, ok := sel.X.(*ast.Ident); ok {
		return x.Name + "." + sel.Sel.Name
	}
	return ""
}

// TestHouse_Exit holds that only main exits, and that nothing runs before it.
func TestHouse_Exit(t *testing.T) {
	for _, s := range sources(t) {
		if strings.Contains(s.dir, "testdata") {
			continue
		}
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			main := f.Recv == nil && (f.Name.Name == "main" && s.file.Name.Name == "main" || f.Name.Name == "TestMain")
			if f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s: init", s.line(f))
			}
			ast.Inspect(f, func(n ast.Node) bool {
				switch name := called(n); name {
				case "os.Exit", "log.Fatal", "log.Fatalf", "log.Fatalln":
					if !main {
						t.Errorf("%s: %s", s.line(n), name)
					}
				}
				return true
			})
		}
	}
}

// TestHouse_Sleep holds that tests wait for what they want, not for a time.
// Inside testing/synctest a sleep is exact and free.
func TestHouse_Sleep(t *testing.T) {
	for _, s := range sources(t) {
		if !s.test || slices.Contains(s.imports, "testing/synctest") {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if called(n) == "time.Sleep" {
				t.Errorf("%s: time.Sleep", s.line(n))
			}
			return true
		})
	}
}

// TestHouse_Comments holds that every package, and every exported thing outside
// of main, says what it is.
func TestHouse_Comments(t *testing.T) {
	documented := map[string]bool{}
	for _, s := range sources(t) {
		if s.test && !documented[s.dir] {
			// A folder of tests only says it there.
			documented[s.dir] = s.file.Doc != nil
			continue
		}
		documented[s.dir] = documented[s.dir] || s.file.Doc != nil
		if s.test || s.file.Name.Name == "main" {
			continue
		}
		for _, d := range s.file.Decls {
			for _, name := range undocumented(d) {
				t.Errorf("%s: %s has no comment", s.line(d), name)
			}
		}
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s: the package has no comment", dir)
		}
	}
}

// undocumented are the exported things of a declaration that nothing is said of.
// Of methods the short ones, which satisfy an interface, need none.
func undocumented(d ast.Decl) []string {
	var out []string
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Recv == nil && d.Name.IsExported() && d.Doc == nil {
			out = append(out, d.Name.Name)
		}
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch spec := spec.(type) {
			case *ast.TypeSpec:
				if spec.Name.IsExported() && d.Doc == nil && spec.Doc == nil {
					out = append(out, spec.Name.Name)
				}
			case *ast.ValueSpec:
				for _, name := range spec.Names {
					if name.IsExported() && d.Doc == nil && spec.Doc == nil && spec.Comment == nil {
						out = append(out, name.Name)
					}
				}
			}
		}
	}
	return out
}

// maxLines is the longest file; a longer one wants to be two.
const maxLines = 600

func TestHouse_Length(t *testing.T) {
	for _, s := range sources(t) {
		if n := bytes.Count(s.text, []byte("\n")); n > maxLines && !ast.IsGenerated(s.file) {
			t.Errorf("%s: %d lines, at most %d", s.name, n, maxLines)
		}
	}
}

// TestHouse_Unfinished holds that nothing is left for later in the code.
func TestHouse_Unfinished(t *testing.T) {
	// Put together, so that this file is not found.
	mark := regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X|HA` + `CK)\b`)
	walk(t, func(name string, text []byte) {
		for i, line := range bytes.Split(text, []byte("\n")) {
			if mark.Match(line) {
				t.Errorf("%s:%d: %s", name, i+1, bytes.TrimSpace(line))
			}
		}
	})
}
