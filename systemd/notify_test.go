package systemd_test

import (
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/blixard/blixard/systemd"
)

func TestNotifier(t *testing.T) {
	t.Setenv("WATCHDOG_USEC", "60000000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	for _, socket := range []string{t.TempDir() + "/n", "@blixard-test-" + strconv.Itoa(os.Getpid())} {
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if err := l.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		t.Setenv("NOTIFY_SOCKET", socket)
		n := systemd.NewNotifier()
		for _, tt := range []struct {
			send func() error
			want string
		}{
			{n.Ready, "READY=1"},
			{n.Watchdog, "WATCHDOG=1"},
			{n.Stopping, "STOPPING=1"},
			{func() error { return n.Status("3 VMs\nREADY=1\x00\xff\x1b") }, "STATUS=3 VMs READY=1 \ufffd "},
			{func() error { return n.Status(strings.Repeat("ü", 600)) }, "STATUS=" + strings.Repeat("ü", 512)},
		} {
			if err := tt.send(); err != nil {
				t.Error(err)
			}
			if got := receive(t, l); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		}
		if err := n.Reloading(); err != nil {
			t.Error(err)
		}
		us, ok := strings.CutPrefix(receive(t, l), "RELOADING=1\nMONOTONIC_USEC=")
		if v, err := strconv.ParseInt(us, 10, 64); !ok || err != nil || v <= 0 {
			t.Errorf("reloading: %q", us)
		}
		if n.WatchdogInterval() != time.Minute {
			t.Errorf("watchdog %v", n.WatchdogInterval())
		}
	}
}

func receive(t *testing.T, l *net.UnixConn) string {
	t.Helper()
	buf := make([]byte, 4096)
	n, err := l.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

func TestNotifier_alone(t *testing.T) {
	for _, env := range [][2]string{{"", ""}, {"60000000", "1"}, {"-1", ""}, {"x", ""}, {"9223372036854775807", ""}} {
		t.Setenv("NOTIFY_SOCKET", "")
		t.Setenv("WATCHDOG_USEC", env[0])
		t.Setenv("WATCHDOG_PID", env[1])
		n := systemd.NewNotifier()
		if n.WatchdogInterval() != 0 {
			t.Errorf("%q: watchdog %v", env, n.WatchdogInterval())
		}
		if err := n.Ready(); err != nil {
			t.Error(err)
		}
	}
	t.Setenv("NOTIFY_SOCKET", t.TempDir()+"/none")
	if err := systemd.NewNotifier().Ready(); err == nil {
		t.Error("nobody listened and it was no error")
	}
}
