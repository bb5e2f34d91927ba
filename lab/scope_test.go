package lab_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/blixard/blixard/lab"
)

// TestLab_scope runs a lab on a machine whose own PID 1 is systemd and whose
// cgroup tree has controllers, and kills it there.
func TestLab_scope(t *testing.T) {
	t.Parallel()
	m := lab.NewMachine(t, "m1")
	outer, err := lab.Open(t.Context(), lab.Config{})
	if err != nil {
		t.Fatal(err)
	}
	helper := outer.HelperPath()
	if err := outer.Close(); err != nil {
		t.Fatal(err)
	}
	// The machine's cache is warm: the helper of this one, and for root file
	// system its own root. What the hosts write goes to another file system, as
	// an overlay cannot lie over what holds it.
	const cache = "/var/cache/blixard-lab"
	const program = "/opt/lab.test"
	for source, path := range map[string]string{
		helper:     filepath.Join(cache, filepath.Base(filepath.Dir(helper)), filepath.Base(helper)),
		os.Args[0]: program,
	} {
		if err := m.CopyIn(source, path); err != nil {
			t.Fatal(err)
		}
	}
	onMachine(t, m, "mkdir", "-p", cache+"/"+lab.RootFSName())
	onMachine(t, m, "ln", "-s", "/", cache+"/"+lab.RootFSName()+"/root")
	onMachine(t, m, "mount", "-t", "tmpfs", "tmpfs", "/var/tmp")
	cmd := m.Command(t.Context(), program)
	cmd.Env = []string{childEnv + "=1", "XDG_CACHE_HOME=/var/cache"}
	out, stdout := io.Pipe()
	cmd.Stdout, cmd.Stderr = stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- cmd.Wait()
		stdout.Close()
	}()
	var dir, cgroup string
	var pid, keeper int
	lines := bufio.NewScanner(out)
	for keeper == 0 && lines.Scan() {
		t.Log(lines.Text())
		if rest, ok := strings.CutPrefix(lines.Text(), "CHILD "); ok {
			if _, err := fmt.Sscan(rest, &dir, &cgroup, &pid, &keeper); err != nil {
				t.Error(err)
			}
		}
	}
	if keeper == 0 {
		t.Fatalf("the lab said nothing: %v", <-ended)
	}
	scope := "blixard-lab-" + filepath.Base(dir) + ".scope"
	if want := "/sys/fs/cgroup/system.slice/" + scope + "/"; !strings.HasPrefix(cgroup, want) {
		t.Errorf("the host's cgroup %s is not below %s", cgroup, want)
	}
	if got := onMachine(t, m, "systemctl", "show", "--property=ActiveState,Delegate", "--value", scope); got != "yes\nactive" && got != "active\nyes" {
		t.Errorf("%s: %q", scope, got)
	}
	for _, file := range []string{"memory.current", "cpu.stat", "memory.events"} {
		onMachine(t, m, "cat", cgroup+"/system.slice/dbus.service/"+file)
	}
	if got := onMachine(t, m, "cat", cgroup+"/cgroup.controllers"); !strings.Contains(got, "io") {
		t.Errorf("the host's controllers: %s", got)
	}
	// Its keeper's parent, that is; its own number there it does not tell.
	onMachine(t, m, "sh", "-c", fmt.Sprintf("kill -KILL $(ps -o ppid= -p %d)", keeper))
	if err := <-ended; err == nil {
		t.Error("the lab ended well")
	}
	await(t, func() bool {
		_, err := m.Exec(t.Context(), "test", "!", "-e", dir, "-a", "!", "-e", filepath.Dir(cgroup))
		return err == nil
	})
	await(t, func() bool {
		return onMachine(t, m, "systemctl", "show", "--property=LoadState", "--value", scope) == "not-found"
	})
	if got := onMachine(t, m, "systemctl", "list-units", "--failed", "--plain", "--no-legend"); got != "" {
		t.Errorf("the machine's failed units: %s", got)
	}
}
