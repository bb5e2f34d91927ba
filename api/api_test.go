package api

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/api/apitest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.DiscardHandler)

// fixed lets everybody have one role.
type fixed Role

func (f fixed) Authorize(_ context.Context, need Role) error {
	if Role(f) >= need {
		return nil
	}
	return blixard.Errorf(blixard.CodeDenied, "this needs the role %s", need)
}

func ptr[T any](v T) *T { return &v }

var moment = time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)

// script is a fleet with every field of every noun set somewhere.
func script() *apitest.Script {
	full := blixard.VM{
		Name: "web-1", ID: "h1/web-1", Node: "h1", Unit: "microvm@web-1.service", Manager: "system",
		VMDefinition: blixard.VMDefinition{Hypervisor: "qemu", HostName: "web-one", Config: "stale", Provenance: "declared", Orphan: true, VsockCID: 3},
		VMStatus: blixard.VMStatus{State: "running", Substate: "running", Ready: ptr(true), MainPID: 7, InvocationID: strings.Repeat("0", 32),
			Restarts: ptr(uint32(2)), Result: "success", ExitCode: ptr(int32(0)), ExitSignal: "SIGKILL", Intended: true, Since: &moment, ControlGroup: "/x"},
		RestartsLastHour: ptr(1), RemovedAt: &moment, LastSeen: &moment, AgeSeconds: ptr(1.5),
		Helpers:     []blixard.Helper{{Name: "virtiofsd", Unit: "microvm-virtiofsd@web-1.service", State: "running", Substate: "running"}},
		Health:      &blixard.VMHealth{Status: "healthy", Checks: []blixard.HealthCheck{{Name: "service_state", Status: "healthy", Message: "running", Since: moment}}},
		Unavailable: map[string]string{"vsock_cid": "no file"},
	}
	bare := blixard.VM{Name: "db", ID: "h2/db", Node: "h2", Unit: "microvm@db.service", Manager: "system", VMStatus: blixard.VMStatus{State: "unknown"}, Stale: true,
		Health: &blixard.VMHealth{Status: "unknown"}}
	twin := blixard.VM{Name: "web-1", ID: "h1/user:1000/web-1", Node: "h1", Unit: "microvm-web-1.service", Manager: "user:1000", VMStatus: blixard.VMStatus{State: "stopped"}, AgeSeconds: ptr(4.0)}
	node := blixard.Node{Name: "h1", ID: "n1", Status: "degraded", Problems: []string{"p"}, VMs: 2, Version: "0.1.0", SystemdVersion: "252", StartedAt: &moment,
		LastSeen: &moment, AgeSeconds: ptr(1.0), Managers: []blixard.ManagerStatus{{Name: "system", Connected: true, Reason: "r", Hint: "h", LastListing: &moment}}}
	return &apitest.Script{
		Index: 7003, AgeSeconds: ptr(4.0), Problems: []string{"one"},
		VMs: []blixard.VM{full, bare, twin},
		Events: []blixard.Event{
			{Index: 7001, ObservedAt: moment, CommittedAt: moment, Node: "h1", Type: "monitor_started", Detail: "version 0.1.0"},
			{Index: 7003, ObservedAt: moment, CommittedAt: moment, Node: "h1", VM: "web-1", Manager: "system", Type: "state", From: "running", To: "failed",
				Count: 2, Detail: "d", Result: "exit-code", ExitCode: ptr(int32(1)), ExitSignal: "SIGKILL", InvocationID: "i"},
		},
		Nodes: []blixard.Node{node, {Name: "h2", ID: "n2", Status: "silent", Version: "0.1.0"}},
		Cluster: blixard.ClusterStatus{Node: "h1", Status: "degraded", Problems: []string{"p"}, Nodes: []blixard.Node{node},
			Store: blixard.StoreStatus{ClusterID: "c", Healthy: true, Reason: "r", Revision: 7, Pending: 1, Buffered: 2, Members: []blixard.MemberStatus{
				{Node: "h1", ID: "1a", Leader: true, Term: 2, State: "running", Reason: "r", Restarts: 1, Version: "3", DatabaseBytes: 5, QuotaBytes: 6}}}},
	}
}

// text is a handler that says one line.
type text string

func (s text) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, string(s))
}

// daemon is an API served on a real socket.
type daemon struct {
	t      *testing.T
	fleet  *apitest.Fleet
	path   string
	config ServerConfig
	cancel context.CancelFunc
	served chan error
}

func newDaemon(t *testing.T, change func(*ServerConfig)) *daemon {
	d := &daemon{t: t, fleet: apitest.New(script()), path: filepath.Join(t.TempDir(), "b.sock")}
	d.config = ServerConfig{Fleet: d.fleet, Authorizer: fixed(RoleAdmin), Logger: quiet, Version: "0.1.0",
		Health: text("ok\n"), Ready: text("ok\n"), Metrics: text("# EOF\n")}
	if change != nil {
		change(&d.config)
	}
	d.start()
	t.Cleanup(d.stop)
	return d
}

func (d *daemon) start() {
	d.t.Helper()
	h, err := NewServer(d.config)
	if err != nil {
		d.t.Fatal(err)
	}
	l, err := Listen(d.t.Context(), d.path)
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	d.cancel, d.served = cancel, make(chan error, 1)
	go func() { d.served <- Serve(ctx, l, h, quiet) }()
}

func (d *daemon) stop() {
	d.t.Helper()
	if d.cancel == nil {
		return
	}
	d.cancel()
	d.cancel = nil
	if err := <-d.served; err != nil {
		d.t.Error(err)
	}
}

func (d *daemon) client(change func(*ClientConfig)) *Client {
	d.t.Helper()
	cfg := ClientConfig{Addr: "unix://" + d.path}
	if change != nil {
		change(&cfg)
	}
	c, err := Dial(cfg)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(c.Close)
	return c
}

// http is a plain client of the socket, as curl is one.
func (d *daemon) http() *http.Client {
	t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", d.path)
	}}
	d.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t}
}

// do sends a request of which target is the path and the query as they go over
// the wire.
func (d *daemon) do(method, target string, header http.Header, body io.Reader) (*http.Response, string) {
	d.t.Helper()
	req, err := http.NewRequestWithContext(d.t.Context(), method, "http://blixard"+target, body)
	if err != nil {
		d.t.Fatal(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := d.http().Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp, string(b)
}

// needRoot fails a test that has to be somebody else.
func needRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test needs root: sudo go test ./api")
	}
}
