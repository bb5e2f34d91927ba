package store

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/blixard/blixard"
)

// TestMain runs the tests, or plays one of the programs they start: the test
// binary is its own member and its own writer.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if role, ok := roles[os.Args[1]]; ok {
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			if err := role(ctx, os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	goleak.VerifyTestMain(m)
}

var roles = map[string]func(ctx context.Context, args []string) error{
	"member": memberRole,
	"host":   hostRole,
	"daemon": daemonRole,
}

// daemonRole runs a member as a daemon does, or another program in its place,
// and prints its process id.
func daemonRole(ctx context.Context, args []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir := args[0]
	m := MemberConfig{Dir: filepath.Join(dir, "member"), SocketDir: filepath.Join(dir, "s")}
	command := args[1:]
	if len(command) == 0 {
		command = append([]string{self, "member"}, m.Args()...)
	}
	s := NewSupervisor(SupervisorConfig{Member: m, Command: command, Logger: slog.New(slog.DiscardHandler)})
	go func() {
		for s.Status().PID == 0 {
			runtime.Gosched()
		}
		fmt.Println(s.Status().PID)
	}()
	return s.Run(ctx)
}

func memberRole(ctx context.Context, args []string) error {
	var cfg MemberConfig
	fs := flag.NewFlagSet("member", flag.ContinueOnError)
	cfg.AddFlags(fs)
	if err := fs.Parse(args); err != nil {
		return err
	}
	return RunMember(ctx, cfg, slog.New(slog.NewTextHandler(os.Stderr, nil)))
}

// testLog passes a log on to a test's.
type testLog struct {
	t  testing.TB
	mu sync.Mutex
}

func (l *testLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.t.Logf("%s", bytes.TrimSuffix(p, []byte("\n")))
	return len(p), nil
}

func logger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(&testLog{t: t}, nil))
}

// shortDir is a folder with a path short enough for sockets.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "bx")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// newMemberConfig is a member of its own in new folders.
func newMemberConfig(t testing.TB) MemberConfig {
	dir := shortDir(t)
	return MemberConfig{Dir: filepath.Join(dir, "member"), SocketDir: filepath.Join(dir, "s")}
}

// supervise runs a member until the test ends or stop is called.
func supervise(t testing.TB, cfg SupervisorConfig) (s *Supervisor, stop func()) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Command == nil {
		cfg.Command = append([]string{self, "member"}, cfg.Member.Args()...)
	}
	if cfg.Logger == nil {
		cfg.Logger = logger(t)
	}
	s = NewSupervisor(cfg)
	return s, running(t, s.Run)
}

// running runs a loop until the test ends or stop is called.
func running(t testing.TB, loop func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- loop(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// memberUp runs a member and waits until it answers.
func memberUp(t testing.TB) (*Supervisor, MemberConfig) {
	t.Helper()
	cfg := newMemberConfig(t)
	s, _ := supervise(t, SupervisorConfig{Member: cfg, HangAfter: 2 * time.Second, ProbeEvery: 200 * time.Millisecond, RestartMax: 200 * time.Millisecond})
	awaitRunning(t, s)
	return s, cfg
}

func awaitRunning(t testing.TB, s *Supervisor) {
	t.Helper()
	await(t, "the member", func() error {
		if st := s.Status(); st.State != MemberRunning {
			return fmt.Errorf("it is %+v", st)
		}
		return nil
	})
}

// await waits until check returns nil, for 30 s at most.
func await(t testing.TB, what string, check func() error) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("await %s: %v", what, err)
		case <-tick.C:
		}
	}
}

// testNode is the node of tests.
var testNode = blixard.NodeRecord{ID: strings.Repeat("0123456789abcdef", 2), Name: "h1", Version: "test", StartedAt: time.Unix(1700000000, 0)}

// openStore opens and runs a store on a member.
func openStore(t testing.TB, member MemberConfig, change func(*Config)) (s *Store, stop func()) {
	t.Helper()
	cfg := Config{Endpoints: []string{member.ClientURL()}, Node: testNode, Logger: logger(t)}
	if change != nil {
		change(&cfg)
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	end := running(t, s.Run)
	stop = sync.OnceFunc(func() {
		end()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return s, stop
}

func vmID(name string) blixard.VMID {
	return blixard.VMID{Node: testNode.Name, Manager: blixard.SystemManager, Name: name}
}

// observedAt is a time for commands.
var observedAt = time.Unix(1700000100, 5).UTC()

func register(name string, state blixard.VMState) blixard.RegisterVM {
	return blixard.RegisterVM{ID: vmID(name), Unit: "microvm@" + name + ".service", Status: blixard.VMStatus{State: state}, ObservedAt: observedAt}
}

func event(name string, typ blixard.EventType) blixard.Event {
	return blixard.Event{ObservedAt: observedAt, Node: testNode.Name, Manager: blixard.SystemManager, VM: name, Type: typ}
}

// mustApply applies a batch and waits until it is in memory.
func mustApply(t testing.TB, s *Store, b blixard.Batch) uint64 {
	t.Helper()
	index, err := s.Apply(t.Context(), b)
	if err != nil {
		t.Fatalf("apply %s: %v", b.ID, err)
	}
	if err := s.Wait(t.Context(), index); err != nil {
		t.Fatal(err)
	}
	return index
}
