package lab_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/blixard/blixard/lab"
)

// tell gives a real guest one command and returns the answer.
func tell(t *testing.T, h *lab.Host, guest int, command string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	conn, err := h.Dial(ctx, "tcp", fmt.Sprintf("%s:%d", h.GuestAddr(guest), lab.GuestPort))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintln(conn, command); err != nil {
		t.Fatal(err)
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return strings.TrimSpace(answer)
}

// awaitJournal follows the unit's journal until the text was in a line want
// times since the host's boot.
func awaitJournal(t *testing.T, h *lab.Host, unit, text string, want int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	read, write := io.Pipe()
	journal := h.Command(ctx, "journalctl", "--unit="+unit, "--output=cat", "--lines=all", "--follow")
	journal.Stdout = write
	if err := journal.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		write.CloseWithError(journal.Wait())
	}()
	var seen []string
	for lines := bufio.NewScanner(read); want > 0 && lines.Scan(); {
		seen = append(seen, lines.Text())
		if strings.Contains(lines.Text(), text) {
			want--
		}
	}
	cancel()
	read.Close()
	<-ended
	if want > 0 {
		t.Fatalf("%q is missing %d times in the journal of %s:\n%s", text, want, unit, strings.Join(seen, "\n"))
	}
}

func TestQEMURunner(t *testing.T) {
	_, hosts := boot(t, "h1")
	h := hosts[0]
	ctx := t.Context()
	if err := h.InstallMicroVM(ctx, lab.MicroVMOptions{}); err != nil {
		t.Fatal(err)
	}
	names := []string{"web-1", "db"}
	for i, name := range names {
		vm := lab.VM{Name: name, HostName: "guest-" + name, MemoryMB: 128, Taps: []string{"vm-" + name}}
		var err error
		if vm.Runner, err = h.QEMURunner(ctx, lab.GuestOptions{Addr: h.GuestAddr(i + 1)}); err != nil {
			t.Fatal(err)
		}
		if err := h.AddVM(ctx, vm); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	if err := h.StartVMs(ctx, names...); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		awaitJournal(t, h, "microvm@"+name, lab.GuestReady, 1)
	}
	t.Logf("%d guests ready after %v", len(names), time.Since(began).Round(time.Millisecond))

	pid := run(t, h, "systemctl", "show", "--property=MainPID", "--value", "microvm@web-1")
	argv, err := h.ReadFile("/proc/" + pid + "/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	if line := strings.ReplaceAll(string(argv), "\x00", " "); !strings.HasPrefix(line, "microvm@guest-web-1 ") || !strings.Contains(line, " -m 128M ") {
		t.Errorf("command line %q", line)
	}
	if got := run(t, h, "stat", "-c", "%U", "/proc/"+pid); got != "microvm" {
		t.Errorf("QEMU runs as %s", got)
	}
	if got := tell(t, h, 1, "status"); !strings.HasPrefix(got, "ok uptime=") {
		t.Errorf("status: %q", got)
	}
	if got := tell(t, h, 2, "log <3>disk on fire"); got != "ok" {
		t.Errorf("log: %q", got)
	}
	awaitJournal(t, h, "microvm@db", "disk on fire", 1)
	if got := run(t, h, "journalctl", "--unit=microvm@db", "--priority=err..err", "--output=cat", "--grep=disk"); got != "disk on fire" {
		t.Errorf("lines of priority err: %q", got)
	}
	if err := h.StopVMs(ctx, "db"); err != nil {
		t.Fatal(err)
	}
	if got := run(t, h, "systemctl", "show", "--property=ActiveState,Result", "--value", "microvm@db"); got != "success\ninactive" && got != "inactive\nsuccess" {
		t.Errorf("stopped: %q", got)
	}
	if got := tell(t, h, 1, "panic"); got != "ok" {
		t.Errorf("panic: %q", got)
	}
	awaitJournal(t, h, "microvm@web-1", lab.GuestReady, 2)
	if got := run(t, h, "systemctl", "show", "--property=NRestarts", "--value", "microvm@web-1"); got != "1" {
		t.Errorf("NRestarts after a panic: %s", got)
	}
}
