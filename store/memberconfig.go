package store

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// DefaultQuota bounds a member's database in bytes.
const DefaultQuota = 1 << 30

// DefaultCompactAfter is how long a member keeps the history of its keys.
const DefaultCompactAfter = 5 * time.Minute

// maxSocketPath is the longest path of a Unix socket in bytes: sun_path without
// its final NUL.
const maxSocketPath = 107

// MemberConfig says how a member of the store runs.
type MemberConfig struct {
	// Dir is the member's folder, an absolute path. It is made when it is not
	// there.
	Dir string
	// SocketDir is the folder for the member's sockets, an absolute path. It is
	// made when it is not there, and must be its user's alone.
	SocketDir string
	// QuotaBytes bounds the database; at the bound only reads go on. 0 means
	// DefaultQuota.
	QuotaBytes int64
	// CompactAfter is how long the history of keys is kept, for watchers that
	// were away, 1 s at least. 0 means DefaultCompactAfter.
	CompactAfter time.Duration
}

// FlagSet is what AddFlags needs of a set of flags.
type FlagSet interface {
	StringVar(p *string, name, value, usage string)
	Int64Var(p *int64, name string, value int64, usage string)
	DurationVar(p *time.Duration, name string, value time.Duration, usage string)
}

// AddFlags has a set of flags fill the configuration. Args is its counterpart.
func (c *MemberConfig) AddFlags(fs FlagSet) {
	fs.StringVar(&c.Dir, "dir", "", "the member's folder")
	fs.StringVar(&c.SocketDir, "socket-dir", "", "the folder for its sockets")
	fs.Int64Var(&c.QuotaBytes, "quota-bytes", DefaultQuota, "the bound of its database")
	fs.DurationVar(&c.CompactAfter, "compact-after", DefaultCompactAfter, "how long the history of keys is kept")
}

// Args are the arguments that have AddFlags fill an equal configuration.
func (c *MemberConfig) Args() []string {
	n := c.normal()
	return []string{"--dir=" + n.Dir, "--socket-dir=" + n.SocketDir,
		"--quota-bytes=" + strconv.FormatInt(n.QuotaBytes, 10), "--compact-after=" + n.CompactAfter.String()}
}

// normal is the configuration with its defaults filled in.
func (c *MemberConfig) normal() MemberConfig {
	n := *c
	if n.QuotaBytes == 0 {
		n.QuotaBytes = DefaultQuota
	}
	if n.CompactAfter == 0 {
		n.CompactAfter = DefaultCompactAfter
	}
	return n
}

// Validate refuses a configuration with which no member can run.
func (c *MemberConfig) Validate() error {
	n := c.normal()
	var errs []error
	if !filepath.IsAbs(n.Dir) {
		errs = append(errs, fmt.Errorf("member folder %q is not an absolute path", n.Dir))
	}
	if n.QuotaBytes < 16<<20 || n.QuotaBytes > 8<<30 {
		errs = append(errs, fmt.Errorf("quota of %d bytes is out of bounds; want 16 MiB to 8 GiB", n.QuotaBytes))
	}
	if n.CompactAfter < time.Second {
		errs = append(errs, fmt.Errorf("history of %s is too short; want 1s at least", n.CompactAfter))
	}
	switch longest := n.socket(httpSocket); {
	case !filepath.IsAbs(n.SocketDir) || filepath.Clean(n.SocketDir) != n.SocketDir:
		errs = append(errs, fmt.Errorf("socket folder %q is not a clean absolute path", n.SocketDir))
	case len(longest) > maxSocketPath:
		errs = append(errs, fmt.Errorf("socket path %s has %d bytes and the system allows %d; choose a shorter socket folder", longest, len(longest), maxSocketPath))
	case strings.ContainsFunc(n.SocketDir, notPlain):
		errs = append(errs, fmt.Errorf("socket folder %q has other characters than letters, digits and /._-; choose another", n.SocketDir))
	}
	return errors.Join(errs...)
}

// notPlain reports whether a character may not be in a socket's URL: etcd
// splits its lists at some, and its client and server quote others differently.
func notPlain(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-", r))
}

// The member's sockets. The last serves etcd's own /metrics and /health.
const (
	clientSocket = "client.sock"
	peerSocket   = "peer.sock"
	httpSocket   = "http.sock"
)

func (c *MemberConfig) socket(name string) string { return filepath.Join(c.SocketDir, name) }

func (c *MemberConfig) socketURL(name string) url.URL {
	return url.URL{Scheme: "unix", Path: c.socket(name)}
}

// ClientURL is where the member serves its clients.
func (c *MemberConfig) ClientURL() string { return "unix://" + c.socket(clientSocket) }
