package config

import (
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// root is the environment of a daemon that runs as root on the host h1.
var root = Environment{HostName: "h1", Variables: []string{"HOME=/root"}}

func TestDefault(t *testing.T) {
	for _, test := range []struct {
		name                  string
		env                   Environment
		dataDir, socket, file string
	}{
		{"root", root, "/var/lib/blixard", "/run/blixard/blixard.sock", "/etc/blixard/config.toml"},
		{"under the unit", Environment{UID: 990, HostName: "h1", Variables: []string{"STATE_DIRECTORY=/var/lib/blixard", "RUNTIME_DIRECTORY=/run/blixard"}},
			"/var/lib/blixard", "/run/blixard/blixard.sock", "/etc/blixard/config.toml"},
		{"under a unit with several", Environment{UID: 990, HostName: "h1", Variables: []string{"STATE_DIRECTORY=/var/lib/a:/var/lib/b", "RUNTIME_DIRECTORY=/run/a:/run/b"}},
			"/var/lib/a", "/run/a/blixard.sock", "/etc/blixard/config.toml"},
		{"user", Environment{UID: 1000, HostName: "h1", Variables: []string{"HOME=/home/u", "XDG_RUNTIME_DIR=/run/user/1000"}},
			"/home/u/.local/state/blixard", "/run/user/1000/blixard/blixard.sock", "/home/u/.config/blixard/config.toml"},
		{"user with folders of their own", Environment{UID: 1000, HostName: "h1", Variables: []string{"HOME=/home/u", "XDG_STATE_HOME=/s/", "XDG_CONFIG_HOME=/c", "XDG_RUNTIME_DIR=/r"}},
			"/s/blixard", "/r/blixard/blixard.sock", "/c/blixard/config.toml"},
		{"user with relative folders, which do not count", Environment{UID: 1000, HostName: "h1", Variables: []string{"HOME=/home/u", "XDG_STATE_HOME=s", "XDG_CONFIG_HOME=c", "XDG_RUNTIME_DIR=/r"}},
			"/home/u/.local/state/blixard", "/r/blixard/blixard.sock", "/home/u/.config/blixard/config.toml"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := Default(test.env)
			if c.DataDir != test.dataDir || c.API.Socket != test.socket || test.env.file() != test.file {
				t.Errorf("got data %s, socket %s, file %s; want %s, %s, %s", c.DataDir, c.API.Socket, test.env.file(), test.dataDir, test.socket, test.file)
			}
			if err := c.Validate(); err != nil {
				t.Errorf("the default is refused: %v", err)
			}
		})
	}
}

// TestDefault_Absent holds that what the environment does not give is refused by
// name and not made up.
func TestDefault_Absent(t *testing.T) {
	c := Default(Environment{UID: 1000})
	err := c.Validate()
	want := "node_name: is empty; it has no default here, so set it\n" +
		"data_dir: is empty; it has no default here, so set it\n" +
		"api.socket: is empty; it has no default here, so set it"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestOfProcess(t *testing.T) {
	t.Setenv("BLIXARD_NODE_NAME", "n1")
	e := OfProcess()
	if e.get("BLIXARD_NODE_NAME") != "n1" {
		t.Error("the variables of this process are not in it")
	}
}

func TestConfig_Validate(t *testing.T) {
	for _, test := range []struct {
		break_ func(c *Config)
		want   string
	}{
		{func(c *Config) { c.NodeName = "a b" }, `node_name: node name "a b"`},
		{func(c *Config) { c.DataDir = "var" }, `data_dir: "var": want an absolute path`},
		{func(c *Config) { c.DataDir = "/var/../etc" }, `want an absolute path without //, . or .. in it`},
		{func(c *Config) { c.DataDir = "/a\x00b" }, `without a NUL`},
		{func(c *Config) { c.Interval = time.Second - 1 }, `interval: 999.999999ms is out of bounds; want 1s to 1h`},
		{func(c *Config) { c.Interval = time.Hour + 1 }, `out of bounds`},
		{func(c *Config) { c.API.Socket = "/" + strings.Repeat("a", 107) }, `api.socket: "/aaa`},
		{func(c *Config) { c.API.Group = "a b" }, `api.group: "a b": want the name of a group`},
		{func(c *Config) { c.Discovery.StateDirs = []string{"/a", "/a"} }, `discovery.state_dirs: "/a" stands there twice`},
		{func(c *Config) { c.Discovery.StateDirs = []string{"/a,b"} }, `without commas`},
		{func(c *Config) { c.Discovery.StateDirs = []string{"a"} }, `discovery.state_dirs: "a": want an absolute path`},
		{func(c *Config) { c.Discovery.StateDirs = make([]string, 17) }, `holds 17 paths; want at most 16`},
		{func(c *Config) { c.Discovery.StateDirs = []string{"/var/lib"} }, `data_dir = "/var/lib/blixard": must not lie in "/var/lib" of discovery.state_dirs`},
		{func(c *Config) { c.Discovery.StateDirs = []string{"/"} }, `api.socket = "/run/blixard/blixard.sock": must not lie in "/"`},
		{func(c *Config) { c.Discovery.StoreDir = "" }, `discovery.store_dir: is empty`},
		{func(c *Config) { c.Discovery.SystemUnits = "microvm@*" }, `discovery.system_units: "microvm@*": want`},
		{func(c *Config) { c.Discovery.SystemUnits = "*.service" }, `does not begin with it`},
		{func(c *Config) { c.Discovery.UserUnits = "a*b*.service" }, `exactly one *`},
		{func(c *Config) { c.Discovery.UserUnits = "a[b]*.service" }, `discovery.user_units`},
		{func(c *Config) { c.Tracking.StaleAfter = 0 }, `tracking.stale_after: 0 is out of bounds; want 1 to 1000`},
		{func(c *Config) { c.Tracking.UnknownAfter = 1001 }, `tracking.unknown_after: 1001 is out of bounds`},
		{func(c *Config) { c.Crashloop.Restarts = 1 }, `crashloop.restarts: 1 is out of bounds; want 2 to 1000`},
		{func(c *Config) { c.Crashloop.Window = 0 }, `crashloop.window: 0s is out of bounds; want 10s to 24h`},
		{func(c *Config) { c.Events.Max = 99 }, `events.max: 99 is out of bounds`},
		{func(c *Config) { c.Events.Buffer = 2_000_000 }, `events.buffer: 2000000 is out of bounds`},
		{func(c *Config) { c.Store.Quota = 9 << 30 }, `store.quota: 9GiB is out of bounds; want 64MiB to 8GiB`},
		{func(c *Config) { c.Log.Level = 3 }, `log.level: INFO+3: want debug, info, warn or error`},
		{func(c *Config) { c.Log.Format = "xml" }, `log.format: "xml": want text or json`},
		{func(c *Config) { c.Metrics.Listen = "0.0.0.0:9410" }, `metrics.listen: "0.0.0.0:9410": want a loopback address`},
		{func(c *Config) { c.Metrics.Listen = "example.org:9410" }, `want a loopback address`},
		{func(c *Config) { c.Metrics.Listen = "127.0.0.1:0" }, `want a loopback address`},
		{func(c *Config) { c.Metrics.Listen = "[::ffff:10.0.0.1]:9410" }, `want a loopback address`},
	} {
		c := Default(root)
		test.break_(&c)
		err := c.Validate()
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("got %v, want %q in it", err, test.want)
		}
	}
	for _, listen := range []string{"127.0.0.1:9410", "127.8.8.8:1", "[::1]:65535", "[::ffff:127.0.0.1]:80", ""} {
		c := Default(root)
		c.Metrics.Listen = listen
		if err := c.Validate(); err != nil {
			t.Errorf("metrics.listen %q: %v", listen, err)
		}
	}
}

// TestKeys holds the table to the struct: each key is one field, each field has
// one key.
func TestKeys(t *testing.T) {
	samples := map[reflect.Type]string{
		reflect.TypeFor[string]():        "sample",
		reflect.TypeFor[bool]():          "",
		reflect.TypeFor[int]():           "777",
		reflect.TypeFor[time.Duration](): "77s",
		reflect.TypeFor[[]string]():      "/sample",
		reflect.TypeFor[Size]():          "777MiB",
		reflect.TypeFor[slog.Level]():    "error",
	}
	fields := leaves(reflect.ValueOf(Default(root)))
	names := map[string]string{}
	for _, k := range Keys() {
		for _, name := range []string{k.Name, k.Variable(), "--" + k.Flag()} {
			if other, ok := names[name]; ok {
				t.Errorf("%s: the name %s is that of %s too", k.Name, name, other)
			}
			names[name] = k.Name
		}
		if slices.Contains(clientVariables, strings.TrimPrefix(k.Variable(), variablePrefix)) || k.Variable() == fileVariable {
			t.Errorf("%s: its variable is the CLI's", k.Name)
		}
		if k.Text == "" || !strings.HasSuffix(k.Text, ".") || k.Bounds == "" || k.Type == "" {
			t.Errorf("%s: not described", k.Name)
		}
		changed := []string{}
		for field, typ := range fields {
			before, after := Default(root), Default(root)
			sample := samples[typ]
			if typ.Kind() == reflect.Bool {
				sample = map[string]string{"true": "false", "false": "true"}[k.TOML(&before)]
			}
			if k.setText(&after, sample) != nil {
				continue
			}
			if !reflect.DeepEqual(at(before, field), at(after, field)) {
				changed = append(changed, field)
			}
		}
		if len(changed) != 1 {
			t.Errorf("%s: is the fields %v, want one", k.Name, changed)
			continue
		}
		delete(fields, changed[0])
	}
	if len(fields) > 0 {
		t.Errorf("fields without a key: %v", fields)
	}
}

// leaves are the fields of a configuration that hold a value, by their path.
func leaves(v reflect.Value) map[string]reflect.Type {
	out := map[string]reflect.Type{}
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		if v.Field(i).Kind() != reflect.Struct {
			out[name] = v.Field(i).Type()
			continue
		}
		for sub, typ := range leaves(v.Field(i)) {
			out[name+"."+sub] = typ
		}
	}
	return out
}

func at(c Config, field string) any {
	v := reflect.ValueOf(c)
	for name := range strings.SplitSeq(field, ".") {
		v = v.FieldByName(name)
	}
	return v.Interface()
}

func TestKey_TOML(t *testing.T) {
	c := Default(root)
	c.DataDir = "/a\"b\\c\n\x7fé"
	got := map[string]string{}
	for _, k := range Keys() {
		got[k.Name] = k.TOML(&c)
	}
	want := map[string]string{
		"node_name": `"h1"`, "data_dir": `"/a\"b\\c\u000A\u007Fé"`, "interval": `"30s"`,
		"api.socket": `"/run/blixard/blixard.sock"`, "api.group": `"blixard"`,
		"discovery.state_dirs": `["/var/lib/microvms"]`, "discovery.store_dir": `"/nix/store"`,
		"discovery.system_units": `"microvm@*.service"`, "discovery.user_units": `"microvm-*.service"`, "discovery.user_managers": `true`,
		"tracking.adopt": `true`, "tracking.stale_after": `3`, "tracking.unknown_after": `3`,
		"crashloop.restarts": `3`, "crashloop.window": `"2m"`, "events.max": `10000`, "events.buffer": `10000`,
		"store.quota": `"2GiB"`, "log.level": `"info"`, "log.format": `"text"`, "metrics.listen": `""`,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestKey_Value(t *testing.T) {
	c := Default(root)
	for _, k := range Keys() {
		switch v := k.Value(&c).(type) {
		case string, bool, int64:
		case []string:
			v[0] = "changed"
		default:
			t.Errorf("%s: %T", k.Name, v)
		}
	}
	if c.Discovery.StateDirs[0] != "/var/lib/microvms" {
		t.Error("a value that was handed out leads into the configuration")
	}
}

func TestNeedRestart(t *testing.T) {
	old, new := Default(root), Default(root)
	if got := NeedRestart(&old, &new); got != nil {
		t.Errorf("equal configurations: %v", got)
	}
	new.Interval, new.Log.Level, new.Discovery.StateDirs = time.Minute, slog.LevelDebug, nil
	if got := NeedRestart(&old, &new); got != nil {
		t.Errorf("keys that can be taken up: %v", got)
	}
	new.Store.Quota, new.DataDir = 1<<30, "/elsewhere"
	if d := cmp.Diff([]string{"data_dir", "store.quota"}, NeedRestart(&old, &new)); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}
