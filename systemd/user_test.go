package systemd_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/lab"
	"github.com/blixard/blixard/systemd"
)

// result is what the program in testdata/dialer prints.
type result struct {
	Code, Message, Hint string
	Version             string
	Unit                blixard.UnitProperties
	Hinted              bool
	Threads             []string
}

// installDialer builds that program and puts it on the host: a manager's private
// socket answers only processes that it can see.
func installDialer(t *testing.T, h *lab.Host) {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "dialer")
	cmd := osexec.CommandContext(t.Context(), "go", "build", "-o", bin, "./testdata/dialer")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := h.CopyIn(bin, "/usr/local/bin/dialer"); err != nil {
		t.Fatal(err)
	}
}

// runDialer runs it; once it listens, change is called.
func runDialer(t *testing.T, h *lab.Host, change func(), argv ...string) result {
	t.Helper()
	cmd := h.Command(t.Context(), argv...)
	var stdout bytes.Buffer
	stderr, in := io.Pipe()
	cmd.Stdout, cmd.Stderr = &stdout, in
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := make(chan string, 1)
	go func() {
		var all bytes.Buffer
		buf := make([]byte, 4096)
		for {
			n, err := stderr.Read(buf)
			all.Write(buf[:n])
			if n > 0 && all.String() == "listening\n" {
				change()
			}
			if err != nil {
				said <- all.String()
				return
			}
		}
	}()
	err := cmd.Wait()
	in.Close()
	text := <-said
	var r result
	if err == nil {
		err = json.Unmarshal(stdout.Bytes(), &r)
	}
	if err != nil {
		t.Fatalf("%q: %v\n%s%s", argv, err, text, stdout.String())
	}
	return r
}

func TestConn_user(t *testing.T) {
	h := bootHost(t)
	installDialer(t, h)
	u, err := h.AddUser(t.Context(), "alice")
	if err != nil {
		t.Fatal(err)
	}
	if err := u.AddVM(t.Context(), lab.VM{Name: "box"}); err != nil {
		t.Fatal(err)
	}
	// It is restarted more often than is usual.
	if err := u.WriteUnit(t.Context(), "microvm-box.service.d/limit.conf", "[Unit]\nStartLimitIntervalSec=0\n"); err != nil {
		t.Fatal(err)
	}
	userctl := func(argv ...string) {
		t.Helper()
		if _, err := u.Exec(t.Context(), append([]string{"systemctl", "--user"}, argv...)...); err != nil {
			t.Error(err)
		}
	}
	// Before anybody else has used the bus: systemd then joins it only now.
	dialer := []string{"dialer", fmt.Sprintf("-uid=%d", u.UID), "-unit=microvm-box.service"}
	private := fmt.Sprintf("-address=unix:path=/run/user/%d/systemd/private", u.UID)
	bus := fmt.Sprintf("-address=unix:path=/run/user/%d/bus", u.UID)
	nobody := []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"}
	// As the daemon runs with the drop-in for users' managers.
	granted := []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=+setuid", "--ambient-caps=+setuid", "--no-new-privs", "--"}
	change := func() { userctl("restart", "microvm-box.service") }
	for _, tt := range []struct {
		name string
		as   []string
		more []string
		uids string
	}{
		{"root", nil, nil, "0 0 0 0"},
		{"root, bus", nil, []string{bus}, "0 0 0 0"},
		{"root, private socket", nil, []string{private, "-times=200"}, "0 0 0 0"},
		{"root, no bus", nil, []string{"-address=unix:path=/none;" + strings.TrimPrefix(private, "-address=")}, "0 0 0 0"},
		{"drop-in", granted, nil, "65534 65534 65534 65534"},
		{"drop-in, private socket", granted, []string{private}, "65534 65534 65534 65534"},
		{"the user", []string{"setpriv", "--reuid=alice", "--regid=alice", "--clear-groups", "--"}, nil, strings.Repeat(fmt.Sprint(" ", u.UID), 4)[1:]},
	} {
		t.Run(tt.name, func(t *testing.T) {
			argv := append(append(append([]string{}, tt.as...), dialer...), tt.more...)
			r := runDialer(t, h, change, argv...)
			if r.Code != "" || !r.Hinted || !strings.HasPrefix(r.Version, "252") {
				t.Fatalf("%+v", r)
			}
			for _, uids := range r.Threads {
				if uids != tt.uids {
					t.Errorf("a thread has the uids %s", uids)
				}
			}
			userctl("start", "microvm-box.service")
			if tt.name == "root" {
				// Not started yet by then.
				return
			}
			if p := r.Unit; !p.Service || p.MainPID == 0 || p.SubState != "running" || !strings.Contains(p.ControlGroup, fmt.Sprintf("/user@%d.service/", u.UID)) {
				t.Errorf("%+v", p)
			}
		})
	}
	for name, more := range map[string]string{"default": "-times=1", "bus": bus, "private socket": private} {
		r := runDialer(t, h, change, append(append(append([]string{}, nobody...), dialer...), more)...)
		if r.Code != string(blixard.CodeDenied) || !strings.Contains(r.Message, fmt.Sprintf("the service manager of user %d cannot be asked", u.UID)) ||
			!strings.Contains(r.Hint, "blixard-monitor.service.d/users.conf") {
			t.Errorf("%s: %+v", name, r)
		}
	}
	// Who has no manager is not denied one.
	r := runDialer(t, h, change, "dialer", "-uid=4000000")
	if r.Code == "" || r.Code == string(blixard.CodeDenied) {
		t.Errorf("nobody's manager: %+v", r)
	}
	// A user's bus lets in nobody else, be it root.
	cfg := systemd.Config{Address: "unix:path=" + socket(t, h, fmt.Sprintf("/run/user/%d/bus", u.UID))}
	if _, err := systemd.Dial(t.Context(), cfg); err == nil {
		t.Error("the user's bus let root in")
	}
}
