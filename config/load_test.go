package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// write puts files into a folder and returns the first one's name.
func write(t testing.TB, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i < len(files); i += 2 {
		name := filepath.Join(dir, files[i])
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(files[i+1]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, files[0])
}

func with(variables ...string) Environment {
	e := root
	e.Variables = append(append([]string{}, e.Variables...), variables...)
	return e
}

func TestLoad_Order(t *testing.T) {
	file := write(t,
		"config.toml", "# five in a row\ninterval = \"1m\"\nnode_name = \"file\"\n\n[crashloop]\nrestarts = 5\nwindow = \"5m\"\n[log]\nlevel = \"debug\"\n",
		"conf.d/20-b.toml", "interval = \"3m\"\nlog = { format = \"json\" }\n",
		"conf.d/10-a.toml", "interval = \"2m\"\ncrashloop.restarts = 7\nnode_name = 'dropin'\n",
		"conf.d/.hidden.toml", "nonsense",
		"conf.d/README", "nonsense",
	)
	env := with("BLIXARD_CONFIG="+file, "BLIXARD_NODE_NAME=env", "BLIXARD_API_GROUP=", "BLIXARD_EVENTS_MAX=500",
		"BLIXARD_DISCOVERY_STATE_DIRS=/a,/b", "BLIXARD_DISCOVERY_USER_MANAGERS=false", "BLIXARD_ADDR=unix:///x", "BLIXARD_EVENTS_MAX=600")
	c, sources, err := Load(LoadOptions{Environment: env, Flags: map[string]string{"node_name": "flag", "events.buffer": "200"}})
	if err != nil {
		t.Fatal(err)
	}
	want := Default(root)
	want.NodeName, want.Interval = "flag", 3*time.Minute
	want.Crashloop = Crashloop{Restarts: 7, Window: 5 * time.Minute}
	want.Log = Log{Level: -4, Format: "json"}
	want.Events = Events{Max: 500, Buffer: 200}
	want.Discovery.StateDirs, want.Discovery.UserManagers = []string{"/a", "/b"}, false
	if d := cmp.Diff(want, c); d != "" {
		t.Errorf("values (-want +got)\n%s", d)
	}
	dir := filepath.Dir(file)
	wantSources := Sources{
		"node_name": "--node-name", "interval": dir + "/conf.d/20-b.toml:1",
		"crashloop.restarts": dir + "/conf.d/10-a.toml:2", "crashloop.window": file + ":7",
		"log.level": file + ":9", "log.format": dir + "/conf.d/20-b.toml:2",
		"events.max": "BLIXARD_EVENTS_MAX", "events.buffer": "--events-buffer",
		"discovery.state_dirs": "BLIXARD_DISCOVERY_STATE_DIRS", "discovery.user_managers": "BLIXARD_DISCOVERY_USER_MANAGERS",
	}
	for _, k := range Keys() {
		if _, ok := wantSources[k.Name]; !ok {
			wantSources[k.Name] = "default"
		}
	}
	if d := cmp.Diff(wantSources, sources); d != "" {
		t.Errorf("sources (-want +got)\n%s", d)
	}
}

// TestLoad_Named holds that a file somebody named must be there, and that the
// option goes before the variable.
func TestLoad_Named(t *testing.T) {
	there := write(t, "config.toml", "node_name = \"there\"")
	missing := filepath.Join(t.TempDir(), "missing.toml")
	c, _, err := Load(LoadOptions{File: there, Environment: with("BLIXARD_CONFIG=" + missing)})
	if err != nil || c.NodeName != "there" {
		t.Errorf("got %q, %v", c.NodeName, err)
	}
	for _, o := range []LoadOptions{{File: missing, Environment: root}, {Environment: with("BLIXARD_CONFIG=" + missing)}} {
		if _, _, err := Load(o); err == nil || !strings.Contains(err.Error(), missing+": no such file") {
			t.Errorf("a named file is missing: got %v", err)
		}
	}
}

// TestLoad_Usual reads the usual file of an ordinary user, which may be missing.
func TestLoad_Usual(t *testing.T) {
	dir := filepath.Dir(write(t, "blixard/conf.d/a.toml", "interval = \"7s\""))
	env := Environment{UID: 1000, HostName: "h1", Variables: []string{"HOME=/home/u", "XDG_RUNTIME_DIR=/r", "XDG_CONFIG_HOME=" + filepath.Dir(filepath.Dir(dir))}}
	c, _, err := Load(LoadOptions{Environment: env})
	if err != nil || c.Interval != 7*time.Second {
		t.Errorf("got interval %s, %v", c.Interval, err)
	}
	c, sources, err := Load(LoadOptions{Environment: Environment{UID: 1000, HostName: "h1", Variables: []string{"XDG_STATE_HOME=/s", "XDG_RUNTIME_DIR=/r"}}})
	if err != nil || sources["interval"] != "default" || c.DataDir != "/s/blixard" {
		t.Errorf("without a home: %+v, %v", c, err)
	}
}

func TestLoad_Faults(t *testing.T) {
	for _, test := range []struct{ file, want string }{
		{"intervall = \"1m\"", `FILE:1: unknown key "intervall"; the nearest is "interval"`},
		{"\n\n[log]\nlevel = \"info\"\nfromat = \"json\"", `FILE:5: unknown key "log.fromat"; the nearest is "log.format"`},
		{"stale_after = 3", `FILE:1: unknown key "stale_after"; the nearest is "tracking.stale_after"`},
		{"[logs]\nlevel = \"info\"", `FILE:1: unknown table "logs"; the nearest is "log"`},
		{"[log.level]\na = 1", `FILE:1: log.level: is a table; want a string`},
		{"[[log]]\nlevel = \"info\"", `FILE:1: log: is an array; want a table`},
		{"log = 1", `FILE:1: log: is an integer; want a table`},
		{"\"log.level\" = \"info\"", `FILE:1: unknown key "log.level"`},
		{"interval = 30", `FILE:1: interval: is an integer; want a string`},
		{"interval = \"30\"", `FILE:1: interval: "30" is no duration; want a number and its unit, such as 30s, 5m or 1h30m`},
		{"node_name = \"h1\"\ninterval = \"500ms\"", `FILE:2: interval: 500ms is out of bounds; want 1s to 1h`},
		{"events.max = 10.5", `FILE:1: events.max: is a float; want an integer`},
		{"events.max = 99999999999", `FILE:1: events.max: 99999999999 is out of bounds; want 100 to 1000000`},
		{"events.max = 99999999999999999999", `FILE: line 1, column 14:`},
		{"tracking.adopt = \"yes\"", `FILE:1: tracking.adopt: is a string; want true or false`},
		{"discovery.state_dirs = \"/a\"", `FILE:1: discovery.state_dirs: is a string; want an array of strings`},
		{"discovery.state_dirs = [\"/a\", 1]", `FILE:1: discovery.state_dirs: holds an integer; want an array of strings`},
		{"data_dir = 1979-05-27", `FILE:1: data_dir: is a date or time; want a string`},
		{"data_dir = \"\"", `FILE:1: data_dir: is empty`},
		{"store.quota = \"2 gigs\"", `FILE:1: store.quota: "2 gigs" is no size; want a whole number and KiB, MiB or GiB, such as 512MiB`},
		{"store.quota = \"9999999999999GiB\"", `is no size`},
		{"store.quota = \"-1GiB\"", `is no size`},
		{"log.level = \"INFO\"", `FILE:1: log.level: "INFO" is no level; want debug, info, warn or error`},
		{"interval = \"1m\"\ninterval = \"2m\"", `FILE: line 2, column 1:`},
		{"[log]\n[log]", `FILE: line 2`},
		{"interval = ", `FILE: line 1, column 11:`},
		{"\xff\xfe", `FILE: line 1, column 1:`},
		{"[api]\nsocket = \"/var/lib/microvms/s\"", `api.socket = "/var/lib/microvms/s": must not lie in "/var/lib/microvms"`},
	} {
		name := write(t, "config.toml", test.file)
		_, _, err := Load(LoadOptions{File: name, Environment: root})
		if err == nil {
			t.Errorf("%q: taken", test.file)
			continue
		}
		if got := strings.ReplaceAll(err.Error(), name, "FILE"); !strings.Contains(got, test.want) {
			t.Errorf("%q:\n got %s\nwant %s", test.file, got, test.want)
		}
	}
}

// TestLoad_AllFaults holds that every fault is told at once, in order.
func TestLoad_AllFaults(t *testing.T) {
	name := write(t, "config.toml", "b = 1\na = 2\ninterval = 3\n", "conf.d/x.toml", "c = 1")
	_, _, err := Load(LoadOptions{File: name, Environment: with("BLIXARD_INTERVAL=4", "BLIXARD_INTERVALL=1m"), Flags: map[string]string{"events.max": "many", "nothing": ""}})
	if err == nil {
		t.Fatal("taken")
	}
	got := strings.Split(strings.ReplaceAll(err.Error(), filepath.Dir(name), "DIR"), "\n")
	for i := range got {
		got[i], _, _ = strings.Cut(got[i], ";")
	}
	want := []string{
		`DIR/config.toml:1: unknown key "b"`, `DIR/config.toml:2: unknown key "a"`, `DIR/config.toml:3: interval: is an integer`,
		`DIR/conf.d/x.toml:1: unknown key "c"`,
		`BLIXARD_INTERVAL: interval: "4" is no duration`,
		`environment: no key has the variable "BLIXARD_INTERVALL"`,
		`--events-max: events.max: "many" is no whole number`,
		`flags: unknown key "nothing"`,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

// TestLoad_OddFiles holds that a file that is none is refused without waiting.
func TestLoad_OddFiles(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	large := filepath.Join(dir, "large")
	if err := os.WriteFile(large, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(large, 10<<30); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{fifo: "is no regular file", dir: "is no regular file", "/dev/zero": "is no regular file", large: "is larger than 256KiB"} {
		if _, _, err := Load(LoadOptions{File: name, Environment: root}); err == nil || !strings.Contains(err.Error(), name+": "+want) {
			t.Errorf("%s: got %v, want %q", name, err, want)
		}
	}
	// Configuration is often a link.
	link := filepath.Join(dir, "link")
	if err := os.Symlink(write(t, "real.toml", "node_name = \"linked\""), link); err != nil {
		t.Fatal(err)
	}
	if c, _, err := Load(LoadOptions{File: link, Environment: root}); err != nil || c.NodeName != "linked" {
		t.Errorf("a link: got %q, %v", c.NodeName, err)
	}
}

func TestLoad_OddDropIns(t *testing.T) {
	name := write(t, "config.toml", "", "conf.d", "")
	if _, _, err := Load(LoadOptions{File: name, Environment: root}); err == nil || !strings.Contains(err.Error(), "conf.d") {
		t.Errorf("conf.d is a file: got %v", err)
	}
	files := []string{"config.toml", ""}
	for i := range maxFiles + 1 {
		files = append(files, fmt.Sprintf("conf.d/%d.toml", i), "")
	}
	name = write(t, files...)
	if _, _, err := Load(LoadOptions{File: name, Environment: root}); err == nil || !strings.Contains(err.Error(), "holds more than 100 files") {
		t.Errorf("too many: got %v", err)
	}
	for i := range maxEntries {
		if err := os.WriteFile(fmt.Sprintf("%s/conf.d/%d", filepath.Dir(name), i), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := Load(LoadOptions{File: name, Environment: root}); err == nil || !strings.Contains(err.Error(), "holds more than 1000 entries") {
		t.Errorf("too many: got %v", err)
	}
}

// FuzzLoad holds that any file is either refused with a reason or gives a
// valid configuration, which written out and read again is the same.
func FuzzLoad(f *testing.F) {
	for _, seed := range []string{"", "interval = \"1m\"", "[log]\nlevel = \"debug\"", "log = {level='warn'}", "discovery.state_dirs = [\"/a\", \"/b\"]",
		"[[log]]", "[a.b.c.d]", "\"\" = 1", "[\"\"]\n\"a.b\"=1", "store.quota = \"1 GiB\"", "x = [[[[[[1]]]]]]", "data_dir = \"/\\u00e9\""} {
		f.Add([]byte(seed), "30s")
	}
	f.Fuzz(func(t *testing.T, data []byte, interval string) {
		name := write(t, "config.toml", string(data))
		o := LoadOptions{File: name, Environment: root}
		if interval != "" && !strings.Contains(interval, "\x00") {
			o.Environment = with("BLIXARD_INTERVAL=" + interval)
		}
		c, sources, err := Load(o)
		if err != nil {
			if err.Error() == "" || !strings.Contains(err.Error(), ":") {
				t.Errorf("an error that says nothing: %q", err)
			}
			return
		}
		if err := c.Validate(); err != nil {
			t.Errorf("taken, but not valid: %v", err)
		}
		if len(sources) != len(table) {
			t.Errorf("sources of %d keys of %d", len(sources), len(table))
		}
		var b strings.Builder
		for _, k := range Keys() {
			fmt.Fprintf(&b, "%s = %s\n", k.Name, k.TOML(&c))
		}
		again, _, err := Load(LoadOptions{File: write(t, "config.toml", b.String()), Environment: root})
		if err != nil {
			t.Fatalf("written out it is refused: %v\n%s", err, b.String())
		}
		if d := cmp.Diff(c, again); d != "" {
			t.Errorf("written out it is another (-first +again)\n%s", d)
		}
	})
}
