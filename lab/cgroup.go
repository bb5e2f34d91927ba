package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// cgroupMount is where this machine mounts the cgroup2 tree.
func cgroupMount() (string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("find cgroup2: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		before, after, ok := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if ok && len(fields) > 4 && strings.HasPrefix(after, "cgroup2 ") {
			return fields[4], nil
		}
	}
	return "", errors.New("no cgroup2 is mounted; type: mount -t cgroup2 cgroup2 /sys/fs/cgroup")
}

// machineHasSystemd tells whether this machine's own PID 1 is systemd, which
// then owns the cgroup tree.
func machineHasSystemd() bool {
	_, err := os.Stat("/run/systemd/system")
	return err == nil
}

// makeCgroup makes the cgroup under which all hosts live and leaves its path to
// the keeper.
func (l *Lab) makeCgroup(ctx context.Context) error {
	parent, err := cgroupMount()
	if err != nil {
		return err
	}
	if machineHasSystemd() {
		if parent, err = l.openScope(ctx, parent); err != nil {
			return err
		}
	}
	path := filepath.Join(parent, "blixard-lab-"+l.id)
	// Told before it exists: whoever dies in between leaves nothing unknown.
	if err := os.WriteFile(filepath.Join(l.dir, "cgroup"), []byte(path+"\n"), 0o600); err != nil {
		return err
	}
	passControllers(parent)
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	passControllers(path)
	l.cgroup = path
	return nil
}

// openScope asks the machine's systemd for a scope with its cgroup delegated and
// returns that. The keeper moves into it: it holds the scope for as long as there
// is something to keep, and a systemd that ends the session or the service of
// this process does not end it.
func (l *Lab) openScope(ctx context.Context, mount string) (_ string, err error) {
	unit := "blixard-lab-" + l.id + ".scope"
	cmd := exec.CommandContext(ctx, "systemd-run", "--quiet", "--scope", "--collect", "--unit="+unit, "--property=Delegate=yes",
		"--description=Blixard test lab", "--", l.helper, "hold")
	var log strings.Builder
	cmd.Stderr = &log
	in, err := cmd.StdinPipe()
	if err != nil {
		return "", err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("start a delegated scope: %w", err)
	}
	defer func() {
		in.Close()
		if wait := cmd.Wait(); wait != nil {
			err = errors.Join(err, fmt.Errorf("start a delegated scope: %w: %s", wait, log.String()))
		}
	}()
	// systemd-run becomes the command once the scope is up.
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return "", err
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", cmd.Process.Pid))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		scope := filepath.Join(mount, path)
		// A cgroup that passes controllers on may hold no process itself.
		leaf := filepath.Join(scope, "keeper")
		if err := os.Mkdir(leaf, 0o755); err != nil {
			return "", err
		}
		for _, pid := range []int{l.keeper.Process.Pid, cmd.Process.Pid} {
			if err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), fmt.Append(nil, pid), 0); err != nil {
				return "", fmt.Errorf("move the keeper into its scope: %w", err)
			}
		}
		return scope, nil
	}
	return "", fmt.Errorf("%s has no cgroup2", unit)
}

// passControllers enables for the children of a cgroup what the cgroup has. Each
// on its own, and whatever is refused stays off: hosts live with what there is,
// as Controllers tells.
func passControllers(path string) {
	text, err := os.ReadFile(filepath.Join(path, "cgroup.controllers"))
	if err != nil {
		return
	}
	for _, c := range strings.Fields(string(text)) {
		_ = os.WriteFile(filepath.Join(path, "cgroup.subtree_control"), []byte("+"+c), 0)
	}
}

// awaitCgroup waits until cgroup.events holds want, for example "populated 0".
func awaitCgroup(ctx context.Context, path, want string) error {
	f, err := os.Open(filepath.Join(path, "cgroup.events"))
	if err != nil {
		return err
	}
	defer f.Close()
	text := make([]byte, 4096)
	for {
		n, err := unix.Pread(int(f.Fd()), text, 0)
		if err != nil {
			return fmt.Errorf("read %s: %w", f.Name(), err)
		}
		if strings.Contains(string(text[:n]), want) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("wait for %q of %s: %w", want, path, err)
		}
		// The kernel raises POLLPRI at each change; the bound is for ctx alone.
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(fds, 50); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("poll %s: %w", f.Name(), err)
		}
	}
}

// killCgroup kills what is in the cgroup, waits for its end and removes it. A
// cgroup that is not there is no error.
func killCgroup(path string) error {
	if err := os.WriteFile(filepath.Join(path, "cgroup.kill"), []byte("1"), 0); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("kill %s: %w", path, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	if err := awaitCgroup(ctx, path, "populated 0"); err != nil {
		return err
	}
	return removeCgroup(path)
}

// removeCgroup removes a cgroup and those below it, deepest first.
func removeCgroup(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(path, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	return nil
}
