package store

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/blixard/blixard"
)

func gone(pid int) error {
	if err := syscall.Kill(pid, 0); err == nil {
		return fmt.Errorf("process %d lives", pid)
	}
	return nil
}

func TestSupervisor_Run(t *testing.T) {
	t.Parallel()
	cfg := newMemberConfig(t)
	s, stop := supervise(t, SupervisorConfig{Member: cfg})
	awaitRunning(t, s)
	st := s.Status()
	if st.Restarts != 0 || st.PID == 0 || st.Reason != "" {
		t.Errorf("status %+v", st)
	}
	begin := time.Now()
	stop()
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("ended in %s", took)
	}
	check(t, gone(st.PID))
	if st := s.Status(); st.State != MemberDown || st.PID != 0 {
		t.Errorf("status %+v", st)
	}
}

// The member serves on sockets that files guard and on nothing else.
func TestSupervisor_sockets(t *testing.T) {
	t.Parallel()
	s, cfg := memberUp(t)
	pid := s.Status().PID
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	check(t, err)
	own := map[string]bool{}
	for _, fd := range fds {
		to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name()))
		if inode, ok := strings.CutPrefix(to, "socket:["); ok && err == nil {
			own[strings.TrimSuffix(inode, "]")] = true
		}
	}
	if len(own) < 2 {
		t.Fatalf("%d sockets found", len(own))
	}
	table := func(name string, inode int) (lines [][]string) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, name))
		check(t, err)
		for _, l := range strings.Split(string(b), "\n")[1:] {
			if f := strings.Fields(l); len(f) > inode && own[f[inode]] {
				lines = append(lines, f)
			}
		}
		return lines
	}
	for _, name := range []string{"tcp", "tcp6", "udp", "udp6"} {
		if l := table(name, 9); len(l) > 0 {
			t.Errorf("%s: %v", name, l)
		}
	}
	for _, f := range table("unix", 6) {
		if len(f) > 7 && !strings.HasPrefix(f[7], cfg.SocketDir+"/") {
			t.Errorf("unix socket %s", f[7])
		}
	}
	if info, err := os.Stat(cfg.SocketDir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("socket folder: %v, %v", info.Mode(), err)
	}
}

func TestSupervisor_restarts(t *testing.T) {
	t.Parallel()
	s, _ := memberUp(t)
	for i := range 3 {
		pid := s.Status().PID
		check(t, syscall.Kill(pid, syscall.SIGKILL))
		await(t, "another process", func() error {
			if st := s.Status(); st.State != MemberRunning || st.PID == pid || st.Restarts != i+1 {
				return fmt.Errorf("it is %+v", st)
			}
			return nil
		})
	}
}

// A member that does not answer is killed and started again, and what was sent
// to it meanwhile is written once.
func TestSupervisor_hang(t *testing.T) {
	t.Parallel()
	s, member := memberUp(t)
	st, _ := openStore(t, member, func(c *Config) { c.Supervisor = s })
	mustApply(t, st, blixard.Batch{ID: "1", Commands: []blixard.Command{register("a", blixard.StateRunning)}})
	pid := s.Status().PID
	check(t, syscall.Kill(pid, syscall.SIGSTOP))
	b := blixard.Batch{ID: "2", Commands: []blixard.Command{register("b", blixard.StateRunning)}, Events: []blixard.Event{event("b", blixard.EventRegistered)}}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	begin := time.Now()
	_, err := st.Apply(ctx, b)
	if code := blixard.ErrorCode(err); code != blixard.CodeTimeout || time.Since(begin) > time.Second {
		t.Errorf("apply: %v (%s) after %s", err, code, time.Since(begin))
	}
	if _, ok := st.View().VM(vmID("a")); !ok {
		t.Error("the record is gone from memory")
	}
	await(t, "the hang to be told", func() error {
		if h := st.Status(); h.Healthy {
			return fmt.Errorf("it is %+v", h)
		}
		return nil
	})
	await(t, "another process", func() error {
		if now := s.Status(); now.State != MemberRunning || now.PID == pid || now.Restarts != 1 {
			return fmt.Errorf("it is %+v", now)
		}
		return nil
	})
	check(t, gone(pid))
	await(t, "the second try", func() error { _, err := st.Apply(t.Context(), b); return err })
	mustApply(t, st, b)
	if events := st.View().Events(blixard.EventQuery{}); len(events) != 1 {
		t.Errorf("events %+v", events)
	}
}

// A member that is frozen and goes on may do late what was given up.
func TestSupervisor_frozen(t *testing.T) {
	t.Parallel()
	cfg := newMemberConfig(t)
	s, _ := supervise(t, SupervisorConfig{Member: cfg, HangAfter: time.Minute})
	awaitRunning(t, s)
	st, _ := openStore(t, cfg, nil)
	mustApply(t, st, blixard.Batch{ID: "first", Commands: []blixard.Command{register("a", blixard.StateRunning)}})
	pid := s.Status().PID
	const rounds = 10
	for i := range rounds {
		check(t, syscall.Kill(pid, syscall.SIGSTOP))
		b := blixard.Batch{ID: fmt.Sprint("b", i), Events: []blixard.Event{event(fmt.Sprint("e", i), blixard.EventState)}}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if _, err := st.Apply(ctx, b); blixard.ErrorCode(err) != blixard.CodeTimeout {
			t.Errorf("apply: %v", err)
		}
		cancel()
		check(t, syscall.Kill(pid, syscall.SIGCONT))
		index := mustApply(t, st, b)
		if again := mustApply(t, st, b); again != index {
			t.Errorf("index %d, then %d", index, again)
		}
	}
	if n := len(st.View().Events(blixard.EventQuery{})); n != rounds {
		t.Errorf("%d events, want %d", n, rounds)
	}
}

// A member that cannot run says why.
func TestSupervisor_reasons(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	check(t, err)
	for name, c := range map[string]struct {
		command func(t *testing.T, m *MemberConfig) []string
		want    string
	}{
		"no program": {func(*testing.T, *MemberConfig) []string { return []string{"/nonexistent/program"} }, "no such file"},
		"says why": {func(*testing.T, *MemberConfig) []string {
			return []string{"/bin/sh", "-c", "echo first >&2; echo it cannot >&2; exit 3"}
		}, "exit status 3: it cannot"},
		"panics": {func(*testing.T, *MemberConfig) []string {
			return []string{"/bin/sh", "-c", "echo panic: the disk >&2; echo goroutine 1 >&2; exit 2"}
		}, "exit status 2: panic: the disk"},
		"silent": {func(*testing.T, *MemberConfig) []string { return []string{"/bin/false"} }, "exit status 1"},
		"very loud": {func(*testing.T, *MemberConfig) []string {
			return []string{"/bin/sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x >&2; yes | head -100000 >&2; echo end >&2; exit 1"}
		}, "exit status 1: end"},
		"damaged database": {func(t *testing.T, m *MemberConfig) []string {
			// Its pages are not those of a database.
			snap := filepath.Join(etcdDir(m), "member", "snap")
			check(t, os.MkdirAll(snap, 0o700))
			check(t, os.WriteFile(filepath.Join(snap, "db"), make([]byte, 64<<10), 0o600))
			return append([]string{self, "member"}, m.Args()...)
		}, "invalid database"},
		"damaged log": {func(t *testing.T, m *MemberConfig) []string {
			command := append([]string{self, "member"}, m.Args()...)
			s, stop := supervise(t, SupervisorConfig{Member: *m})
			awaitRunning(t, s)
			raw := rawClient(t, *m)
			for i := range 50 {
				_, err := raw.Put(t.Context(), fmt.Sprint("k", i), strings.Repeat("v", 1000))
				check(t, err)
			}
			stop()
			logs, err := filepath.Glob(filepath.Join(etcdDir(m), "member", "wal", "*.wal"))
			check(t, err)
			f, err := os.OpenFile(logs[0], os.O_RDWR, 0)
			check(t, err)
			defer f.Close()
			_, err = f.WriteAt([]byte("vvvvVvvv"), 30_000)
			check(t, err)
			return command
		}, "its files are damaged: restore them, or stop the daemon and move"},
		"file in place": {func(t *testing.T, m *MemberConfig) []string {
			check(t, os.MkdirAll(m.Dir, 0o700))
			check(t, os.WriteFile(etcdDir(m), nil, 0o600))
			return append([]string{self, "member"}, m.Args()...)
		}, "not a directory"},
		"sockets elsewhere": {func(t *testing.T, m *MemberConfig) []string {
			check(t, os.Symlink("/tmp", m.SocketDir))
			return append([]string{self, "member"}, m.Args()...)
		}, "is not a directory of this user"},
		"small disk": {func(t *testing.T, m *MemberConfig) []string {
			check(t, os.Mkdir(m.Dir, 0o700))
			mountTmpfs(t, m.Dir, "size=100m")
			return append([]string{self, "member"}, m.Args()...)
		}, "are needed; free some space"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMemberConfig(t)
			s, _ := supervise(t, SupervisorConfig{Member: m, Command: c.command(t, &m)})
			await(t, c.want, func() error {
				if st := s.Status(); st.State != MemberDown || !strings.Contains(st.Reason, c.want) {
					return fmt.Errorf("it is %+v", st)
				}
				return nil
			})
		})
	}
}

func TestSupervisor_waitsForPredecessor(t *testing.T) {
	t.Parallel()
	cfg := newMemberConfig(t)
	check(t, os.MkdirAll(cfg.Dir, 0o700))
	lock, err := tryLock(filepath.Join(cfg.Dir, lockFile))
	check(t, err)
	s, _ := supervise(t, SupervisorConfig{Member: cfg})
	await(t, "the wait to be told", func() error {
		want := fmt.Sprintf("waits for process %d", os.Getpid())
		if st := s.Status(); st.State != MemberStarting || !strings.Contains(st.Reason, want) {
			return fmt.Errorf("it is %+v", st)
		}
		return nil
	})
	check(t, lock.Close())
	awaitRunning(t, s)
	if n := s.Status().Restarts; n != 0 {
		t.Errorf("%d restarts", n)
	}
}

// A member that does not end in order is killed.
func TestSupervisor_stopKills(t *testing.T) {
	t.Parallel()
	cfg := newMemberConfig(t)
	s, stop := supervise(t, SupervisorConfig{Member: cfg, StopWithin: 200 * time.Millisecond})
	awaitRunning(t, s)
	pid := s.Status().PID
	check(t, syscall.Kill(pid, syscall.SIGSTOP))
	stop()
	check(t, gone(pid))
}

// A member ends when its standard input does, and when its parent is killed.
func TestRunMember_neverOutlives(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	check(t, err)
	t.Run("standard input", func(t *testing.T) {
		cfg := newMemberConfig(t)
		cmd := exec.Command(self, append([]string{"member"}, cfg.Args()...)...)
		stdin, err := cmd.StdinPipe()
		check(t, err)
		check(t, cmd.Start())
		await(t, "its socket", func() error { _, err := os.Stat(cfg.socket(clientSocket)); return err })
		check(t, stdin.Close())
		check(t, cmd.Wait())
	})
	for name, c := range map[string]struct {
		command []string
		frozen  bool
	}{
		"parent killed": {},
		// One that sees nothing of it.
		"frozen, parent killed": {frozen: true},
		"deaf, parent killed":   {command: []string{"/bin/sh", "-c", "trap '' HUP INT TERM; exec sleep 600"}},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(self, append([]string{"daemon", shortDir(t)}, c.command...)...)
			out, err := cmd.StdoutPipe()
			check(t, err)
			check(t, cmd.Start())
			line, err := bufio.NewReader(out).ReadString('\n')
			check(t, err)
			pid, err := strconv.Atoi(strings.TrimSpace(line))
			check(t, err)
			if c.frozen {
				check(t, syscall.Kill(pid, syscall.SIGSTOP))
			}
			check(t, cmd.Process.Kill())
			if err := cmd.Wait(); err == nil {
				t.Fatal("it was not killed")
			}
			await(t, "its end", func() error { return gone(pid) })
		})
	}
}

func TestMemberConfig_Validate(t *testing.T) {
	good := MemberConfig{Dir: "/var/lib/blixard/member", SocketDir: "/run/blixard/member"}
	check(t, good.Validate())
	for name, c := range map[string]struct {
		change func(*MemberConfig)
		want   string
	}{
		"no folder":       {func(c *MemberConfig) { c.Dir = "" }, "not an absolute path"},
		"relative folder": {func(c *MemberConfig) { c.Dir = "member" }, "not an absolute path"},
		"relative socket": {func(c *MemberConfig) { c.SocketDir = "run" }, "not a clean absolute path"},
		"long socket":     {func(c *MemberConfig) { c.SocketDir = "/" + strings.Repeat("x", 97) }, "has 108 bytes and the system allows 107; choose a shorter"},
		"odd socket":      {func(c *MemberConfig) { c.SocketDir = "/run/a,b=c" }, "other characters"},
		"small quota":     {func(c *MemberConfig) { c.QuotaBytes = 1 << 20 }, "out of bounds"},
		"short history":   {func(c *MemberConfig) { c.CompactAfter = time.Millisecond }, "too short"},
	} {
		m := good
		c.change(&m)
		if err := m.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if err := RunMember(t.Context(), m, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("run, %s: %v", name, err)
		}
	}
	longest := good
	longest.SocketDir = "/" + strings.Repeat("x", 96)
	if err := longest.Validate(); err != nil {
		t.Error(err)
	}
}
