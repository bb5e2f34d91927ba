package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// bootGuest starts the microVM's guest by itself, with a disk and a port of this
// machine forwarded to its commands, and returns a connection to them.
func bootGuest(t *testing.T) (*emulator, net.Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	root, err := OpenRootFS(ctx, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	boot, err := openBootFiles(ctx, root.Root(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	accel, err := accelerator(ctx, boot, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 8<<20); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	e, err := startEmulator([]string{
		"-accel", accel, "-M", q35, "-cpu", "max", "-m", "128M", "-kernel", boot.kernel, "-initrd", boot.microVM,
		"-append", kernelCommandLine + " lab.name=direct lab.addr=10.0.2.15/24",
		"-drive", "if=none,id=disk,format=raw,cache=none,file=" + disk, "-device", "virtio-blk-pci,drive=disk",
		"-netdev", "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-:7777", "-device", "virtio-net-pci,netdev=net,romfile=",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.kill(); err != nil {
			t.Error(err)
		}
		if err := boot.Close(); err != nil {
			t.Error(err)
		}
		if err := root.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := e.awaitLine(ctx, "guest ready"); err != nil {
		t.Fatal(err)
	}
	t.Logf("ready after %v with %s", time.Since(began).Round(time.Millisecond), accel)
	port, err := e.forwardedPort()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return e, conn
}

func TestGuest_Commands(t *testing.T) {
	e, conn := bootGuest(t)
	in := bufio.NewReader(conn)
	do := func(command string) string {
		t.Helper()
		if _, err := fmt.Fprintln(conn, command); err != nil {
			t.Fatal(err)
		}
		answer, err := in.ReadString('\n')
		if err != nil {
			t.Fatalf("%s: %v\n%s", command, err, e.console.String())
		}
		return strings.TrimSpace(answer)
	}
	for _, c := range []struct{ command, answer string }{
		{"mem 16", "ok"},
		{"mem 60000", "error: at most"},
		{"mem -1", "error: \"-1\" is not a number"},
		{"disk 12", "ok"},
		{"read 3", "ok"},
		{"cpu 50 600", "ok"},
		{"cpu 101 600", "error: \"101\" is not a number from 0 to 100"},
		{"cpu 50", "error: \"cpu\" takes 2 arguments"},
		{"log <3>a line  with \x1b[31mcolour", "ok"},
		{"format c:", "error: "},
		{strings.Repeat("x", 3000), "error: "},
	} {
		if got := do(c.command); !strings.HasPrefix(got, c.answer) {
			t.Errorf("%s: %q, want %q", c.command, got, c.answer)
		}
	}
	status := do("status")
	for _, want := range []string{" cpu_percent=50 ", " mem_mb=16 ", " written_mb=12 ", " read_mb=3 ", " lines=2"} {
		if !strings.Contains(status+" ", want) {
			t.Errorf("status %q has no %q", status, want)
		}
	}
	if got := do("free"); got != "ok" {
		t.Error(got)
	}
	if got := do("status"); !strings.Contains(got, " mem_mb=0 ") {
		t.Errorf("status after free: %q", got)
	}
	if err := e.awaitLine(t.Context(), "\n<3>a line  with \x1b[31mcolour\n"); err != nil {
		t.Error(err)
	}

	if _, err := fmt.Fprintln(conn, "send 2"); err != nil {
		t.Fatal(err)
	}
	if n, err := io.CopyN(io.Discard, in, 2<<20); err != nil {
		t.Fatalf("send: %d bytes: %v", n, err)
	}
	if answer, err := in.ReadString('\n'); answer != "ok\n" {
		t.Errorf("after the sent text: %q, %v", answer, err)
	}

	if err := e.qmp.ask("system_powerdown", nil, nil); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, e)
	if !strings.Contains(e.console.String(), "power button pressed") {
		t.Errorf("the guest did not notice the power button:\n%s", e.console.String())
	}
}

// awaitEnd waits until QEMU has ended by its guest's will.
func awaitEnd(t *testing.T, e *emulator) {
	t.Helper()
	select {
	case <-e.done:
		if e.err != nil {
			t.Errorf("QEMU: %v\n%s", e.err, e.console.String())
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("QEMU still runs\n%s", e.console.String())
	}
}

func TestGuest_End(t *testing.T) {
	for _, command := range []string{"poweroff", "reboot", "panic"} {
		t.Run(command, func(t *testing.T) {
			e, conn := bootGuest(t)
			if _, err := fmt.Fprintln(conn, command); err != nil {
				t.Fatal(err)
			}
			if answer, err := bufio.NewReader(conn).ReadString('\n'); answer != "ok\n" {
				t.Errorf("answer %q, %v", answer, err)
			}
			conn.Close()
			awaitEnd(t, e)
		})
	}
}

func TestGuest_Hang(t *testing.T) {
	e, conn := bootGuest(t)
	if _, err := fmt.Fprintln(conn, "hang"); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	if answer, err := in.ReadString('\n'); answer != "ok\n" {
		t.Fatalf("answer %q, %v", answer, err)
	}
	if err := e.qmp.ask("system_powerdown", nil, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintln(conn, "status"); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if answer, err := in.ReadString('\n'); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a hung guest answers %q, %v", answer, err)
	}
	if !e.running() {
		t.Error("a hung guest heeds the power button")
	}
}

// orphanEnv makes the test binary the process that TestEmulator_diesWithParent
// kills.
const orphanEnv = "BLIXARD_LAB_TEST_ORPHAN"

func TestEmulator_diesWithParent(t *testing.T) {
	if os.Getenv(orphanEnv) != "" {
		e, err := startEmulator([]string{"-accel", "tcg", "-M", q35, "-m", "64M"})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("pid %d\n", e.cmd.Process.Pid)
		<-e.done
		t.Fatal("QEMU ended first")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(self, "-test.run=^TestEmulator_diesWithParent$")
	child.Env = append(os.Environ(), orphanEnv+"=1")
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		// Killed below already unless the test has failed.
		_ = child.Process.Kill()
		_ = child.Wait()
	}()
	var pid int
	lines := bufio.NewScanner(out)
	for pid == 0 && lines.Scan() {
		_, _ = fmt.Sscanf(lines.Text(), "pid %d", &pid)
	}
	if pid == 0 {
		t.Fatal("the child started no QEMU")
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, 10_000); n != 1 {
		t.Errorf("QEMU outlived its parent's SIGKILL by ten seconds: %v", err)
	}
}
