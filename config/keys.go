package config

import (
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/blixard/blixard"
)

// Key is one setting. Its name in the file is Name, its tables separated by
// dots; the names of its environment variable and flag follow from that.
type Key struct {
	Name string
	// Type is string, path, duration, integer, boolean, size, or list of paths.
	Type string
	// Bounds says in words which values are possible.
	Bounds string
	// Default says in words where the default comes from, empty where Default
	// gives the same everywhere.
	Default string
	// Text says what it does, in one or two sentences.
	Text string
	// Reload says that a running daemon takes it up on SIGHUP.
	Reload bool

	// setTOML takes a value as the TOML decoder gives it, setText as it stands
	// in the environment or a flag.
	setTOML func(c *Config, v any) error
	setText func(c *Config, s string) error
	// check refuses what is out of bounds.
	check func(c *Config) error
	value func(c *Config) any
}

// Variable is the name of the key's environment variable.
func (k *Key) Variable() string {
	return variablePrefix + strings.ToUpper(strings.ReplaceAll(k.Name, ".", "_"))
}

// Flag is the name of the key's flag without the dashes before it, for the keys
// that have one.
func (k *Key) Flag() string {
	return strings.NewReplacer(".", "-", "_", "-").Replace(k.Name)
}

// Value is the key's value in a configuration, for JSON: a string, bool, int64
// or []string.
func (k *Key) Value(c *Config) any { return k.value(c) }

// TOML is the key's value in a configuration as it would stand in the file.
func (k *Key) TOML(c *Config) string {
	switch v := k.value(c).(type) {
	case string:
		return quote(v)
	case []string:
		parts := make([]string, len(v))
		for i, s := range v {
			parts[i] = quote(s)
		}
		return "[" + strings.Join(parts, ", ") + "]"
	default:
		return fmt.Sprint(v)
	}
}

// quote writes a basic string of TOML.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < 0x20 || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// Keys are all keys, in the order in which they are shown.
func Keys() []Key { return slices.Clone(table) }

// table is the one table of keys.
var table = []Key{
	named(text("node_name", func(c *Config) *string { return &c.NodeName }, checkNodeName),
		fmt.Sprintf("1 to %d letters, digits, dots, dashes or underscores", blixard.MaxNodeName), "the host's name",
		"The name of this node. It stands in the address of every VM and event. A node keeps its identity when it is renamed."),
	named(path("data_dir", func(c *Config) *string { return &c.DataDir }),
		"an absolute path", "`/var/lib/blixard`; for an ordinary user `$XDG_STATE_HOME/blixard`, else `~/.local/state/blixard`",
		"The folder with the node's identity and the store. One daemon holds it at a time."),
	reload(duration("interval", func(c *Config) *time.Duration { return &c.Interval }, time.Second, time.Hour,
		"The time between two complete listings of units and files. Changes are seen at once; this is how often all is checked.")),

	named(path("api.socket", func(c *Config) *string { return &c.API.Socket }, maxSocket),
		fmt.Sprintf("an absolute path of at most %d bytes", maxSocketPath), "`/run/blixard/blixard.sock`; for an ordinary user `$XDG_RUNTIME_DIR/blixard/blixard.sock`",
		"The Unix socket that the daemon answers on."),
	named(text("api.group", func(c *Config) *string { return &c.API.Group }, checkGroup), "the name of a group, or empty", "",
		"The group whose members may read everything through the socket. With an empty name only root and the daemon's own user may."),

	reload(paths("discovery.state_dirs", func(c *Config) *[]string { return &c.Discovery.StateDirs }, 16,
		"The state directories of microvm.nix (`microvm.stateDir`).")),
	reload(named(path("discovery.store_dir", func(c *Config) *string { return &c.Discovery.StoreDir }), "an absolute path", "",
		"The folder that the links `current` and `booted` of a VM must lead into. Links that lead elsewhere are not followed.")),
	reload(named(text("discovery.system_units", func(c *Config) *string { return &c.Discovery.SystemUnits }, checkPattern), patternBounds, "",
		"The names of VMs' units under the system's manager.")),
	reload(named(text("discovery.user_units", func(c *Config) *string { return &c.Discovery.UserUnits }, checkPattern), patternBounds, "",
		"The names of VMs' units under users' managers.")),
	reload(boolean("discovery.user_managers", func(c *Config) *bool { return &c.Discovery.UserManagers },
		"Watch users' managers beside the system's. The shipped unit reaches them only with the drop-in `users.conf`.")),

	reload(boolean("tracking.adopt", func(c *Config) *bool { return &c.Tracking.Adopt },
		"Record every VM that is seen. Without it a VM is recorded when somebody asks for it.")),
	reload(integer("tracking.stale_after", func(c *Config) *int { return &c.Tracking.StaleAfter }, 1, 1000,
		"How many complete listings in a row must miss a recorded VM until it is stale.")),
	reload(integer("tracking.unknown_after", func(c *Config) *int { return &c.Tracking.UnknownAfter }, 1, 1000,
		"For how many intervals a VM's state stands without being confirmed; then it is unknown.")),

	reload(integer("crashloop.restarts", func(c *Config) *int { return &c.Crashloop.Restarts }, 2, 1000,
		"How many automatic restarts within the window make a VM crashlooping.")),
	reload(duration("crashloop.window", func(c *Config) *time.Duration { return &c.Crashloop.Window }, 10*time.Second, 24*time.Hour,
		"The window in which restarts are counted.")),

	integer("events.max", func(c *Config) *int { return &c.Events.Max }, 100, 1_000_000,
		"How many events the store keeps; the oldest go first."),
	integer("events.buffer", func(c *Config) *int { return &c.Events.Buffer }, 100, 1_000_000,
		"How many events wait in memory while the store is away. Those beyond are dropped and counted."),

	size("store.quota", func(c *Config) *Size { return &c.Store.Quota }, 64<<20, 8<<30,
		"The bound on the database of this node's member of the store. Near it the store takes no more writes."),

	reload(level("log.level", func(c *Config) *slog.Level { return &c.Log.Level },
		"The least level that is logged.")),
	named(text("log.format", func(c *Config) *string { return &c.Log.Format }, oneOf(FormatText, FormatJSON)), "text or json", "",
		"How a line of the log is written."),

	named(text("metrics.listen", func(c *Config) *string { return &c.Metrics.Listen }, checkLoopback), "a loopback address and port such as `127.0.0.1:9410`, or empty", "",
		"Serve metrics here too, to every local user. They are always served at /metrics on the API's socket."),
}

// named gives a key its words.
func named(k Key, bounds, def, text string) Key {
	k.Bounds, k.Default, k.Text = bounds, def, text
	return k
}

// reload marks a key that a running daemon takes up.
func reload(k Key) Key {
	k.Reload = true
	return k
}

// find is the key with that name, nil when there is none.
func find(name string) *Key {
	for i := range table {
		if table[i].Name == name {
			return &table[i]
		}
	}
	return nil
}

// maxSocketPath is the longest path of a socket in bytes: the kernel's bound of
// 107, less the ending under which the API makes it before it takes its place.
const maxSocketPath = 103

func maxSocket(s string) error {
	if len(s) > maxSocketPath {
		return fmt.Errorf("%q: want at most %d bytes", s, maxSocketPath)
	}
	return nil
}

// checkPath holds a path to what the kernel takes and a person can read.
func checkPath(s string) error {
	const maxPath = 4095
	switch {
	case s == "":
		return errNotSet
	case !filepath.IsAbs(s) || filepath.Clean(s) != s:
		return fmt.Errorf("%q: want an absolute path without //, . or .. in it", s)
	case len(s) > maxPath || strings.ContainsRune(s, 0):
		return fmt.Errorf("%.100q…: want a path of at most %d bytes without a NUL", s, maxPath)
	}
	return nil
}

func checkNodeName(s string) error {
	if s == "" {
		return errNotSet
	}
	return blixard.CheckNodeName(s)
}

func checkGroup(s string) error {
	// The grammar that useradd(8) recommends, and capitals.
	if len(s) > 32 || strings.HasPrefix(s, "-") || strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") != "" {
		return fmt.Errorf("%.100q: want the name of a group", s)
	}
	return nil
}

const patternBounds = "a unit's name ending in `.service`, with exactly one `*` for the VM's name"

func checkPattern(s string) error {
	if len(s) > blixard.MaxName || strings.Count(s, "*") != 1 || !strings.HasSuffix(s, ".service") || strings.HasPrefix(s, "*") ||
		strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:-_.@*") != "" {
		return fmt.Errorf("%.300q: want %s, which does not begin with it", s, strings.ReplaceAll(patternBounds, "`", ""))
	}
	return nil
}

func checkLoopback(s string) error {
	if s == "" {
		return nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil || !ap.Addr().Unmap().IsLoopback() || ap.Port() == 0 {
		return fmt.Errorf("%.100q: want a loopback address and port such as 127.0.0.1:9410; metrics are not for the network unprotected", s)
	}
	return nil
}

func oneOf(values ...string) func(string) error {
	return func(s string) error {
		if !slices.Contains(values, s) {
			return fmt.Errorf("%.100q: want %s", s, strings.Join(values, " or "))
		}
		return nil
	}
}
