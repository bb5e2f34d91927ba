package systemd

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"
)

const (
	// DefaultTimeout bounds a call where Config names no other.
	DefaultTimeout = 5 * time.Second

	// maxInFlight is how many calls wait for an answer at once: a bus refuses
	// more than 128.
	maxInFlight = 64
	// maxMessage bounds an answer, in bytes.
	maxMessage = 64 << 20
	// maxSignal bounds any other message; a longer one is thrown away unread
	// and counts as a hint that everything may have changed.
	maxSignal = 1 << 20
	// maxArgument bounds a string that is sent.
	maxArgument = 64 << 10
	// reloadTimeout is how long a call waits for a manager that said that it
	// reloads: it answers nobody until it is done.
	reloadTimeout = 30 * time.Second

	systemBus = "unix:path=/run/dbus/system_bus_socket"
	// privateSocket is how the path of a manager's private socket ends. Behind
	// it is the manager itself and no bus.
	privateSocket = "/systemd/private"
)

// Config says which manager to dial. The zero value means the system's.
type Config struct {
	// Address is where to connect: D-Bus addresses, of kind unix with a path or
	// an abstract name, separated by semicolons and tried in order. Empty means
	// the system's bus (DBUS_SYSTEM_BUS_ADDRESS, or its usual path) or, with
	// UID, that user's bus and then the private socket of the user's manager.
	Address string
	// UID, if not nil, is the user whose manager to dial. Unless the process
	// runs as that user it needs CAP_SETUID: a user's bus lets only its user in.
	UID *uint32
	// Timeout bounds each call, 0 means DefaultTimeout. A call to a manager that
	// said that it reloads, or that is away from its bus for a moment as when it
	// re-executes itself, may take 30 s.
	Timeout time.Duration
	// Filter says which units' changes to tell, by name; nil means all. It runs
	// in the reader of the connection and must not block.
	Filter func(name string) bool
	// Logger may be nil.
	Logger *slog.Logger
}

// Validate refuses an address that cannot be dialed and a negative timeout.
func (cfg *Config) Validate() error {
	if cfg.Timeout < 0 {
		return fmt.Errorf("timeout %v is negative", cfg.Timeout)
	}
	if cfg.Address != "" {
		_, err := parseAddress(cfg.Address)
		return err
	}
	return nil
}

// endpoints are the sockets to try, in order.
func (cfg *Config) endpoints() ([]endpoint, error) {
	address := cfg.Address
	switch {
	case address != "":
	case cfg.UID != nil:
		dir := fmt.Sprintf("/run/user/%d", *cfg.UID)
		return []endpoint{{path: dir + "/bus"}, {path: dir + privateSocket, direct: true}}, nil
	default:
		if address = os.Getenv("DBUS_SYSTEM_BUS_ADDRESS"); address == "" {
			address = systemBus
		}
	}
	return parseAddress(address)
}

// endpoint is a Unix socket that a bus or a manager listens on.
type endpoint struct {
	// path begins with @ when the socket is an abstract one.
	path string
	// direct says that the manager itself is there.
	direct bool
}

// parseAddress reads D-Bus addresses.
func parseAddress(s string) ([]endpoint, error) {
	var out []endpoint
	for one := range strings.SplitSeq(s, ";") {
		if one == "" {
			continue
		}
		params, ok := strings.CutPrefix(one, "unix:")
		if !ok {
			return nil, fmt.Errorf("address %q: only unix: is supported", one)
		}
		var e endpoint
		for param := range strings.SplitSeq(params, ",") {
			key, value, _ := strings.Cut(param, "=")
			if key != "path" && key != "abstract" {
				continue
			}
			value, err := unescapeAddress(value)
			if err != nil || value == "" || e.path != "" {
				return nil, fmt.Errorf("address %q: want one path= or abstract=", one)
			}
			if e.path = value; key == "abstract" {
				e.path = "@" + value
			} else {
				e.direct = strings.HasSuffix(value, privateSocket)
			}
		}
		if e.path == "" {
			return nil, fmt.Errorf("address %q: want one path= or abstract=", one)
		}
		out = append(out, e)
	}
	if len(out) == 0 {
		return nil, errors.New("address is empty")
	}
	return out, nil
}

// unescapeAddress undoes the %xx of D-Bus addresses.
func unescapeAddress(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b.WriteByte(s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", errors.New("truncated escape")
		}
		low := strings.ToLower(s[i+1 : i+3])
		hi, ok1 := unhex(low[0])
		lo, ok2 := unhex(low[1])
		if !ok1 || !ok2 || hi == 0 && lo == 0 {
			return "", errors.New("bad escape")
		}
		b.WriteByte(hi<<4 | lo)
		i += 2
	}
	return b.String(), nil
}
