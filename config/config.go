package config

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Config is the configuration of a daemon. What each field means, its bounds and
// its default are in the table of keys and in docs/configuration.md.
type Config struct {
	// NodeName is the name of this node in every address of a VM.
	NodeName string
	// DataDir holds the node's identity and the store.
	DataDir string
	// Interval is the time between complete listings.
	Interval time.Duration

	API       API
	Discovery Discovery
	Tracking  Tracking
	Crashloop Crashloop
	Events    Events
	Store     Store
	Log       Log
	Metrics   Metrics
}

// API is where the daemon answers, and whom.
type API struct {
	// Socket is the path of the Unix socket.
	Socket string
	// Group is whose members may read; empty means nobody but root and the
	// daemon's own user.
	Group string
}

// Discovery is where VMs are looked for.
type Discovery struct {
	StateDirs []string
	// StoreDir is the folder that holds what VMs are started from.
	StoreDir string
	// SystemUnits and UserUnits are the names of VMs' units with one * in the
	// place of the VM's name.
	SystemUnits, UserUnits string
	// UserManagers says to watch users' managers beside the system's.
	UserManagers bool
}

// Tracking is what becomes of VMs that come and go.
type Tracking struct {
	Adopt bool
	// StaleAfter is a number of listings, UnknownAfter of intervals.
	StaleAfter, UnknownAfter int
}

// Crashloop is what counts as one.
type Crashloop struct {
	Restarts int
	Window   time.Duration
}

// Events bounds the history.
type Events struct {
	// Max events are kept in the store, Buffer in memory while it is away.
	Max, Buffer int
}

// Store is about the node's own member.
type Store struct {
	// Quota bounds its database.
	Quota Size
}

// Log is what the daemon logs.
type Log struct {
	Level slog.Level
	// Format is FormatText or FormatJSON.
	Format string
}

// The formats of the log.
const (
	FormatText = "text"
	FormatJSON = "json"
)

// Metrics is where metrics are served beside the API's socket.
type Metrics struct {
	// Listen is a loopback address host:port, empty for none.
	Listen string
}

// Environment is what defaults and the environment's layer are taken from.
type Environment struct {
	// Variables are as from os.Environ.
	Variables []string
	// UID is the effective user id.
	UID int
	// HostName is the name of the host, empty when it is not known.
	HostName string
}

// OfProcess is the environment of this process.
func OfProcess() Environment {
	// Without a host name node_name has no default, and Validate says so.
	name, _ := os.Hostname()
	return Environment{Variables: os.Environ(), UID: os.Geteuid(), HostName: name}
}

// get is the variable's value, "" when it is empty or not set.
func (e *Environment) get(name string) string {
	for _, v := range e.Variables {
		if value, ok := strings.CutPrefix(v, name+"="); ok {
			return value
		}
	}
	return ""
}

// base is a folder that the XDG base directory specification names: the
// variable's value, which must be absolute to count, or a folder in the home.
func (e *Environment) base(variable, inHome string) string {
	if dir := e.get(variable); filepath.IsAbs(dir) {
		return filepath.Clean(dir)
	}
	if home := e.get("HOME"); filepath.IsAbs(home) && inHome != "" {
		return filepath.Join(home, inHome)
	}
	return ""
}

// system reports whether the daemon belongs to the system: it runs as root or
// under a unit that gives it folders.
func (e *Environment) system() bool {
	return e.UID == 0 || e.get("STATE_DIRECTORY") != "" && e.get("RUNTIME_DIRECTORY") != ""
}

// file is the configuration file to read when none is named.
func (e *Environment) file() string {
	if e.system() {
		return "/etc/blixard/config.toml"
	}
	if dir := e.base("XDG_CONFIG_HOME", ".config"); dir != "" {
		return filepath.Join(dir, "blixard/config.toml")
	}
	return ""
}

// Default is the configuration without file, environment and flags. A default
// that the environment does not give (a host name, a home) is empty, and
// Validate refuses it.
func Default(env Environment) Config {
	c := Config{
		NodeName:  env.HostName,
		Interval:  30 * time.Second,
		API:       API{Group: "blixard"},
		Discovery: Discovery{StateDirs: []string{"/var/lib/microvms"}, StoreDir: "/nix/store", SystemUnits: "microvm@*.service", UserUnits: "microvm-*.service", UserManagers: true},
		Tracking:  Tracking{Adopt: true, StaleAfter: 3, UnknownAfter: 3},
		Crashloop: Crashloop{Restarts: 3, Window: 2 * time.Minute},
		Events:    Events{Max: 10000, Buffer: 10000},
		Store:     Store{Quota: 2 << 30},
		Log:       Log{Level: slog.LevelInfo, Format: FormatText},
	}
	runtime := ""
	switch {
	case env.get("STATE_DIRECTORY") != "" && env.get("RUNTIME_DIRECTORY") != "":
		// systemd separates several by colons.
		c.DataDir, _, _ = strings.Cut(env.get("STATE_DIRECTORY"), ":")
		dir, _, _ := strings.Cut(env.get("RUNTIME_DIRECTORY"), ":")
		c.API.Socket = filepath.Join(dir, "blixard.sock")
		return c
	case env.UID == 0:
		c.DataDir, runtime = "/var/lib/blixard", "/run"
	default:
		if state := env.base("XDG_STATE_HOME", ".local/state"); state != "" {
			c.DataDir = filepath.Join(state, "blixard")
		}
		runtime = env.base("XDG_RUNTIME_DIR", "")
	}
	if runtime != "" {
		c.API.Socket = filepath.Join(runtime, "blixard", "blixard.sock")
	}
	return c
}

// Validate refuses values out of bounds and values that exclude each other. The
// error has a line for each, naming key, value and bounds.
func (c *Config) Validate() error {
	var errs []error
	for i := range table {
		if err := table[i].check(c); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", table[i].Name, err))
		}
	}
	if len(errs) == 0 {
		errs = append(errs, c.conflicts()...)
	}
	return errors.Join(errs...)
}

// conflicts are the values that are right each, but not together.
func (c *Config) conflicts() []error {
	var errs []error
	for _, dir := range c.Discovery.StateDirs {
		// VMMs write there, and must reach neither identity nor store.
		for _, own := range []struct{ key, path string }{{"data_dir", c.DataDir}, {"api.socket", c.API.Socket}} {
			if own.path == dir || strings.HasPrefix(own.path, strings.TrimSuffix(dir, "/")+"/") {
				errs = append(errs, fmt.Errorf("%s = %q: must not lie in %q of discovery.state_dirs, which belongs to the VMs", own.key, own.path, dir))
			}
		}
	}
	return errs
}

// NeedRestart lists the keys that differ between two configurations and that a
// running daemon cannot take up, in the order of the table.
func NeedRestart(old, new *Config) []string {
	var out []string
	for i := range table {
		k := &table[i]
		if !k.Reload && k.TOML(old) != k.TOML(new) {
			out = append(out, k.Name)
		}
	}
	return out
}
