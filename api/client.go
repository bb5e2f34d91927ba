package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/blixard/blixard"
)

const (
	// DefaultTimeout is how long a client waits for an answer.
	DefaultTimeout = 10 * time.Second
	// maxAnswer bounds an answer, maxLine one frame of a stream, in bytes.
	maxAnswer = 64 << 20
	maxLine   = 4 << 20
	// startService is what to type when the daemon cannot be reached.
	startService = "systemctl status blixard-monitor"
)

// ClientConfig says where the daemon is.
type ClientConfig struct {
	// Addr is unix:///PATH, or the path alone.
	Addr string
	// Timeout bounds each request that is no stream, 0 for DefaultTimeout.
	Timeout time.Duration
	// Logger gets a debug line for each request; nil for none.
	Logger *slog.Logger
	// OnStream is told when a stream lost its daemon, with the reason, and with
	// nil when it goes on. It is called from the stream's goroutine. It may be
	// nil.
	OnStream func(error)
}

// Client asks a daemon. It satisfies blixard.Fleet.
//
// A stream whose daemon goes away connects again, with growing pauses, and goes
// on where it was; it ends only when its context ends, when its first connection
// fails, or on an answer that trying again cannot change. WatchVMs sends every
// VM anew after that, and Gone for those that went meanwhile.
type Client struct {
	cfg  ClientConfig
	path string
	http *http.Client
}

var _ blixard.Fleet = (*Client)(nil)

// Dial makes a Client. It connects with the first request, not before. The
// error is an *Error with CodeInvalid.
func Dial(cfg ClientConfig) (*Client, error) {
	path, ok := strings.CutPrefix(cfg.Addr, "unix://")
	if !ok {
		path = cfg.Addr
	}
	if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
		return nil, blixard.Errorf(blixard.CodeInvalid, "address %q: want unix:///PATH", cfg.Addr)
	}
	if len(path) > maxSocketPath {
		return nil, blixard.Errorf(blixard.CodeInvalid, "address %q: the path is longer than %d bytes", cfg.Addr, maxSocketPath)
	}
	if cfg.Timeout < 0 {
		return nil, blixard.Errorf(blixard.CodeInvalid, "timeout %v: want more than 0", cfg.Timeout)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.OnStream == nil {
		cfg.OnStream = func(error) {}
	}
	c := &Client{cfg: cfg, path: path}
	c.http = &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", path)
			},
			DisableCompression:     true,
			MaxIdleConns:           4,
			IdleConnTimeout:        idleTimeout / 2,
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// Close drops the idle connections. Requests under way are not touched.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// VMs lists every VM.
func (c *Client) VMs(ctx context.Context) (blixard.List[blixard.VM], error) {
	return getList[blixard.VM](ctx, c, http.MethodGet, target(pathVMs, pathVMs, ""))
}

// VM shows one.
func (c *Client) VM(ctx context.Context, ref blixard.VMRef) (blixard.List[blixard.VM], error) {
	return c.oneVM(ctx, http.MethodGet, ref)
}

// AdoptVM records a VM that is there but not recorded, or was removed.
func (c *Client) AdoptVM(ctx context.Context, ref blixard.VMRef) (blixard.List[blixard.VM], error) {
	return c.oneVM(ctx, http.MethodPut, ref)
}

// RemoveVM makes the VM's record a tombstone.
func (c *Client) RemoveVM(ctx context.Context, ref blixard.VMRef) (blixard.List[blixard.VM], error) {
	return c.oneVM(ctx, http.MethodDelete, ref)
}

func (c *Client) oneVM(ctx context.Context, method string, ref blixard.VMRef) (blixard.List[blixard.VM], error) {
	plain, escaped := vmPath(ref)
	return getList[blixard.VM](ctx, c, method, target(plain, escaped, ""))
}

// Events lists kept events, oldest first.
func (c *Client) Events(ctx context.Context, q blixard.EventQuery) (blixard.List[blixard.Event], error) {
	return getList[blixard.Event](ctx, c, http.MethodGet, target(pathEvents, pathEvents, encodeEvents(q, false)))
}

// Nodes lists the nodes.
func (c *Client) Nodes(ctx context.Context) (blixard.List[blixard.Node], error) {
	return getList[blixard.Node](ctx, c, http.MethodGet, target(pathNodes, pathNodes, ""))
}

// Node shows one by name or id.
func (c *Client) Node(ctx context.Context, name string) (blixard.List[blixard.Node], error) {
	plain, escaped := expand(pathNode, name)
	return getList[blixard.Node](ctx, c, http.MethodGet, target(plain, escaped, ""))
}

// Cluster tells the state of the store and of the nodes.
func (c *Client) Cluster(ctx context.Context) (blixard.ClusterStatus, error) {
	return get(ctx, c, http.MethodGet, target(pathCluster, pathCluster, ""), func(s *blixard.ClusterStatus) string { return s.APIVersion })
}

// Version is the daemon's.
func (c *Client) Version(ctx context.Context) (Version, error) {
	return get(ctx, c, http.MethodGet, target(pathVersion, pathVersion, ""), func(v *Version) string { return v.APIVersion })
}

func target(plain, escaped, query string) *url.URL {
	return &url.URL{Scheme: "http", Host: "blixard", Path: plain, RawPath: escaped, RawQuery: query}
}

func getList[T any](ctx context.Context, c *Client, method string, u *url.URL) (blixard.List[T], error) {
	return get(ctx, c, method, u, func(l *blixard.List[T]) string { return l.APIVersion })
}

// get makes one request under the client's deadline and reads its answer whole.
func get[T any](ctx context.Context, c *Client, method string, u *url.URL, version func(*T) string) (v T, err error) {
	parent := ctx
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	start := time.Now()
	resp, err := c.do(ctx, method, u, "application/json")
	if err != nil {
		return v, c.border(parent, err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return v, c.border(parent, err)
	}
	c.cfg.Logger.Debug(method+" "+u.RequestURI(), "status", resp.StatusCode, "bytes", len(b), "took", time.Since(start).Round(time.Microsecond))
	if len(b) > maxAnswer {
		return v, blixard.Errorf(blixard.CodeTooLarge, "the daemon's answer is longer than %d bytes", maxAnswer)
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return v, c.alien("decode its answer: " + err.Error())
	}
	if got := version(&v); got != blixard.APIVersion {
		return v, c.alien(fmt.Sprintf("its answer says api_version %q, not %q", got, blixard.APIVersion))
	}
	return v, nil
}

// alien is the error of an answer that no daemon of this API gives.
func (c *Client) alien(what string) error {
	return blixard.Errorf(blixard.CodeInternal, "the daemon at %s does not speak the API %s: %s", c.path, blixard.APIVersion, what).
		WithHint("blixard and blixard-monitor should be of the same version: blixard version")
}

// do sends a request and returns an answer of success, its body unread.
func (c *Client) do(ctx context.Context, method string, u *url.URL, accept string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, blixard.Errorf(blixard.CodeInvalid, "make request: %v", err)
	}
	req.Header.Set("Accept", accept)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	got, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	if resp.StatusCode == http.StatusOK && got == accept {
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return nil, err
	}
	if e := decodeError(b); e != nil {
		return nil, e
	}
	return nil, c.alien(fmt.Sprintf("it answers %s with %s", resp.Status, resp.Header.Get("Content-Type")))
}

// decodeError reads an answer that is an error, nil when it is none.
func decodeError(b []byte) *blixard.Error {
	var body errorBody
	if json.Unmarshal(b, &body) != nil || body.Error == nil || body.Error.Code == "" {
		return nil
	}
	return body.Error
}

// errorPrefix begins a line of a stream that says why it ends.
var errorPrefix = []byte(`{"error":`)

// lineError is the error that a line of a stream is, nil when it is a frame.
func lineError(line []byte) *blixard.Error {
	if !bytes.HasPrefix(line, errorPrefix) {
		return nil
	}
	return decodeError(line)
}

// border makes an *Error of what went wrong on the way; parent is the caller's
// context.
func (c *Client) border(parent context.Context, err error) error {
	if e, ok := errors.AsType[*blixard.Error](err); ok {
		return e
	}
	switch {
	case parent.Err() != nil && errors.Is(parent.Err(), context.Canceled):
		return blixard.Errorf(blixard.CodeUnavailable, "canceled")
	case errors.Is(err, context.DeadlineExceeded):
		return blixard.Errorf(blixard.CodeTimeout, "no answer from blixard-monitor at %s in time", c.path).
			WithHint("give it more time with --timeout, or see: " + startService)
	case errors.Is(err, fs.ErrPermission):
		return blixard.Errorf(blixard.CodeDenied, "connect to %s: permission denied", c.path).
			WithHint("see who may reach it: ls -l " + c.path)
	case errors.Is(err, fs.ErrNotExist):
		return blixard.Errorf(blixard.CodeUnavailable, "cannot reach blixard-monitor: there is no socket %s", c.path).WithHint(startService)
	case errors.Is(err, syscall.ECONNREFUSED):
		return blixard.Errorf(blixard.CodeUnavailable, "cannot reach blixard-monitor: nobody listens on %s", c.path).WithHint(startService)
	}
	// What the transport wraps around it names sockets nobody typed.
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err
	}
	return blixard.Errorf(blixard.CodeUnavailable, "talk to blixard-monitor at %s: %v", c.path, err).WithHint(startService)
}
