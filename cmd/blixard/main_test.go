package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/api"
	"github.com/blixard/blixard/api/apitest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"blixard": main})
}

// daemon is an API served on a real socket from a script.
type daemon struct {
	fleet  *apitest.Fleet
	path   string
	role   api.Role
	cancel context.CancelFunc
	served chan error
}

type daemonKey struct{}

// Authorize lets everybody have the script's role.
func (d *daemon) Authorize(_ context.Context, need api.Role) error {
	if d.role >= need {
		return nil
	}
	return blixard.Errorf(blixard.CodeDenied, "uid 1000 may not do this: it needs the role %s", need).WithHint("join the group")
}

func (d *daemon) start() error {
	h, err := api.NewServer(api.ServerConfig{Fleet: d.fleet, Authorizer: d, Logger: slog.New(slog.DiscardHandler), Version: "0.1.0",
		Health: http.NotFoundHandler()})
	if err != nil {
		return err
	}
	var l net.Listener
	if l, err = api.Listen(context.Background(), d.path); err != nil {
		return err
	}
	var ctx context.Context
	ctx, d.cancel = context.WithCancel(context.Background())
	d.served = make(chan error, 1)
	go func() { d.served <- api.Serve(ctx, l, h, slog.New(slog.DiscardHandler)) }()
	return nil
}

func (d *daemon) stop() error {
	if d.cancel == nil {
		return nil
	}
	d.cancel()
	d.cancel = nil
	return <-d.served
}

// TestCLI runs the scenarios of testdata/script: the CLI itself against a real
// server on a real socket. Beside testscript's own commands they have:
//
//	fleet FILE [viewer|public]   serve the script in FILE
//	away, back                   stop serving, and serve again on the same socket
//	await N                      wait until N streams have sent all there is
//	emit FILE                    commit the events in FILE, a JSON array
//	load FILE                    know what FILE says from now on
//	trim INDEX                   keep no events up to the index
//	fail CODE MESSAGE            answer everything with an error from now on
//	get TARGET                   ask the API itself; the answer is stdout
//	code COMMAND...              run a command; its exit code is stdout
//	full COMMAND...              the same with its output going to a full disk
func TestCLI(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: os.Getenv("UPDATE") != "",
		Setup: func(env *testscript.Env) error {
			d := &daemon{path: filepath.Join(env.WorkDir, "s", "b.sock"), role: api.RoleAdmin}
			env.Values[daemonKey{}] = d
			env.Setenv("BLIXARD_ADDR", "unix://"+d.path)
			env.Setenv("SOCKET", d.path)
			env.Setenv("TZ", "UTC")
			env.Defer(func() {
				if err := d.stop(); err != nil {
					t.Error(err)
				}
			})
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"fleet": func(ts *testscript.TestScript, _ bool, args []string) {
				d := ts.Value(daemonKey{}).(*daemon)
				ts.Check(d.stop())
				d.fleet = apitest.New(readScript(ts, args[0]))
				d.role = api.RoleAdmin
				if len(args) > 1 {
					d.role = map[string]api.Role{"viewer": api.RoleViewer, "public": api.RolePublic}[args[1]]
				}
				ts.Check(d.start())
			},
			"away": func(ts *testscript.TestScript, _ bool, _ []string) { ts.Check(ts.Value(daemonKey{}).(*daemon).stop()) },
			"back": func(ts *testscript.TestScript, _ bool, _ []string) { ts.Check(ts.Value(daemonKey{}).(*daemon).start()) },
			"await": func(ts *testscript.TestScript, _ bool, args []string) {
				n, err := strconv.Atoi(args[0])
				ts.Check(err)
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				defer cancel()
				ts.Check(ts.Value(daemonKey{}).(*daemon).fleet.AwaitStreams(ctx, n))
			},
			"emit": func(ts *testscript.TestScript, _ bool, args []string) {
				var events []blixard.Event
				ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &events))
				ts.Value(daemonKey{}).(*daemon).fleet.Emit(events...)
			},
			"load": func(ts *testscript.TestScript, _ bool, args []string) {
				s := readScript(ts, args[0])
				ts.Value(daemonKey{}).(*daemon).fleet.Change(func(old *apitest.Script) { *old = *s })
			},
			"trim": func(ts *testscript.TestScript, _ bool, args []string) {
				n, err := strconv.ParseUint(args[0], 10, 64)
				ts.Check(err)
				ts.Value(daemonKey{}).(*daemon).fleet.Change(func(s *apitest.Script) { s.Trimmed = n })
			},
			"get":  func(ts *testscript.TestScript, _ bool, args []string) { get(ts, args[0]) },
			"code": func(ts *testscript.TestScript, _ bool, args []string) { code(ts, args, nil) },
			"full": func(ts *testscript.TestScript, _ bool, args []string) {
				f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
				ts.Check(err)
				defer func() { _ = f.Close() }()
				code(ts, args, f)
			},
			"fail": func(ts *testscript.TestScript, _ bool, args []string) {
				e := blixard.Errorf(blixard.Code(args[0]), "%s", args[1])
				ts.Value(daemonKey{}).(*daemon).fleet.Change(func(s *apitest.Script) { s.Error = e })
			},
		},
	})
}

// readScript reads a fleet's script from the scenario or, when it is not there,
// from testdata.
func readScript(ts *testscript.TestScript, name string) *apitest.Script {
	b, err := os.ReadFile(ts.MkAbs(name))
	if os.IsNotExist(err) {
		b, err = os.ReadFile(filepath.Join("testdata", name))
	}
	ts.Check(err)
	s, err := apitest.Parse(b)
	ts.Check(err)
	return s
}

// get asks the API itself.
func get(ts *testscript.TestScript, target string) {
	d := ts.Value(daemonKey{}).(*daemon)
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", d.path)
	}}
	resp, err := (&http.Client{Transport: transport}).Get("http://blixard" + target)
	ts.Check(err)
	b, err := io.ReadAll(resp.Body)
	ts.Check(err)
	ts.Check(resp.Body.Close())
	_, err = ts.Stdout().Write(b)
	ts.Check(err)
}

// code runs a command and prints its exit code in place of its output.
func code(ts *testscript.TestScript, args []string, stdout io.Writer) {
	path, err := exec.LookPath(args[0])
	ts.Check(err)
	cmd := exec.Command(path, args[1:]...)
	cmd.Dir = ts.MkAbs(".")
	for _, v := range []string{"BLIXARD_ADDR", "BLIXARD_OUTPUT", "PATH", "HOME", "TZ"} {
		cmd.Env = append(cmd.Env, v+"="+ts.Getenv(v))
	}
	cmd.Stdout, cmd.Stderr = stdout, ts.Stderr()
	if _, failed := errors.AsType[*exec.ExitError](cmd.Run()); !failed && cmd.ProcessState == nil {
		ts.Fatalf("%v did not run", args)
	}
	_, err = fmt.Fprintln(ts.Stdout(), cmd.ProcessState.ExitCode())
	ts.Check(err)
}
