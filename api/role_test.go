package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard"
)

// concrete is a path of a route with something in place of its {…}.
func concrete(r route) string {
	return strings.NewReplacer("{scope}", "h1", "{node}", "h1", "{manager}", "system", "{name}", "web-1").Replace(r.path)
}

// TestRoles_EveryRoute asks every route in every role.
func TestRoles_EveryRoute(t *testing.T) {
	for _, has := range []Role{RolePublic, RoleViewer, RoleAdmin} {
		d := newDaemon(t, func(c *ServerConfig) { c.Authorizer = fixed(has) })
		for _, r := range routes {
			resp, body := d.do(r.method, concrete(r), nil, nil)
			if denied := resp.StatusCode == http.StatusForbidden; denied != (has < r.role) {
				t.Errorf("%s %s as %s: status %d: %s", r.method, r.path, has, resp.StatusCode, body)
			}
		}
	}
}

// as connects to a socket as somebody else. It runs on a thread of its own,
// which changes its identity and ends with its goroutine.
func as(t *testing.T, path string, uid, gid int, groups ...uint32) net.Conn {
	t.Helper()
	needRoot(t)
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread()
		conn, err := connectAs(path, uid, gid, groups)
		done <- result{conn, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { _ = r.conn.Close() })
	return r.conn
}

func connectAs(path string, uid, gid int, groups []uint32) (net.Conn, error) {
	list := unsafe.Pointer(nil)
	if len(groups) > 0 {
		list = unsafe.Pointer(&groups[0])
	}
	for _, c := range [][4]uintptr{
		{unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(list), 0},
		{unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)},
		{unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)},
	} {
		if _, _, errno := unix.RawSyscall(c[0], c[1], c[2], c[3]); errno != 0 {
			return nil, errno
		}
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "socket")
	defer func() { _ = f.Close() }()
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, err
	}
	return net.FileConn(f)
}

// ask sends one request over a connection.
func ask(t *testing.T, c net.Conn, method, target string) (status int, e *blixard.Error) {
	t.Helper()
	if _, err := fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: blixard\r\n\r\n", method, target); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, decodeError(b)
}

// reachable is a daemon whose socket others than root can reach.
func reachable(t *testing.T, a Authorizer) *daemon {
	t.Helper()
	needRoot(t)
	d := newDaemon(t, func(c *ServerConfig) { c.Authorizer = a })
	for dir := d.path; dir != "/tmp" && dir != "/"; {
		dir = dir[:strings.LastIndexByte(dir, '/')]
		if dir == "" || dir == os.TempDir() {
			break
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// TestSocketAuthorizer_Peers asks as real users of a real kernel. The group adm
// (4) stands in for the daemon's.
func TestSocketAuthorizer_Peers(t *testing.T) {
	const own, adm = 1234, 4
	d := reachable(t, SocketAuthorizer{UID: own, Group: "adm"})
	for _, c := range []struct {
		name          string
		uid, gid      int
		groups        []uint32
		viewer, admin bool
	}{
		{"root", 0, 0, nil, true, true},
		{"the daemon's user", own, own, nil, true, true},
		{"a member", 2000, 2000, []uint32{adm}, true, false},
		{"a member by primary group", 2000, adm, nil, true, false},
		{"a member with many groups", 2000, 2000, append(many(3000, 300), adm), true, false},
		{"a stranger", 2000, 2000, many(3000, 3), false, false},
		{"nobody", overflowID, overflowID, []uint32{overflowID}, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, r := range []struct {
				method, target string
				may            bool
			}{{"GET", "/v1/version", true}, {"GET", "/healthz", true}, {"GET", "/v1/vms", c.viewer}, {"PUT", "/v1/vms/db", c.admin}} {
				status, e := ask(t, as(t, d.path, c.uid, c.gid, c.groups...), r.method, r.target)
				if r.may && status != http.StatusOK {
					t.Errorf("%s %s: status %d: %v", r.method, r.target, status, e)
				}
				if !r.may && (status != http.StatusForbidden || e.Code != blixard.CodeDenied || e.Hint == "") {
					t.Errorf("%s %s: status %d: %+v", r.method, r.target, status, e)
				}
			}
		})
	}
}

func many(first, n uint32) []uint32 {
	var out []uint32
	for i := range n {
		out = append(out, first+i)
	}
	return out
}

// TestSocketAuthorizer_Nobody holds that a daemon that runs as nobody, or whose
// group is nobody's, trusts no process of a strange user namespace.
func TestSocketAuthorizer_Nobody(t *testing.T) {
	ctx := context.WithValue(t.Context(), peerKey{}, &Peer{UID: overflowID, Groups: []uint32{overflowID}})
	for _, a := range []SocketAuthorizer{{UID: overflowID}, {UID: 1, Group: "nogroup"}, {UID: 1, Group: "no-such-group"}, {UID: 1}} {
		if err := a.Authorize(ctx, RoleViewer); blixard.ErrorCode(err) != blixard.CodeDenied {
			t.Errorf("%+v: %v", a, err)
		}
	}
	if err := (SocketAuthorizer{}).Authorize(t.Context(), RoleViewer); blixard.ErrorCode(err) != blixard.CodeDenied {
		t.Errorf("no peer: %v", err)
	}
}

// TestServe_Bounds holds that one user cannot keep the others out.
func TestServe_Bounds(t *testing.T) {
	d := reachable(t, SocketAuthorizer{})
	var conns []net.Conn
	for range maxConnsPerUser {
		c := as(t, d.path, 2000, 2000)
		if status, e := ask(t, c, "GET", "/v1/version"); status != http.StatusOK {
			t.Fatal(status, e)
		}
		conns = append(conns, c)
	}
	over := as(t, d.path, 2000, 2000)
	b, err := io.ReadAll(over)
	if err != nil && !errors.Is(err, unix.ECONNRESET) {
		t.Fatal(err)
	}
	_, body, _ := strings.Cut(string(b), "\r\n\r\n")
	var answer errorBody
	if err := json.Unmarshal([]byte(body), &answer); err != nil || answer.Error.Code != blixard.CodeBusy || !strings.HasPrefix(string(b), "HTTP/1.1 429 ") {
		t.Fatalf("above the bound: %q", b)
	}
	for _, uid := range []int{0, 2001} {
		if status, e := ask(t, as(t, d.path, uid, uid), "GET", "/v1/version"); status != http.StatusOK {
			t.Errorf("uid %d beside: %d %v", uid, status, e)
		}
	}
	// A place that is given back is free again.
	if err := conns[0].Close(); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		c := as(t, d.path, 2000, 2000)
		if _, err := io.WriteString(c, "GET /v1/version HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			continue
		}
		if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err == nil && resp.StatusCode == http.StatusOK {
			return
		}
	}
	t.Error("a place that was given back was not free again")
}
