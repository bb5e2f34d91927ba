package store

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
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

// kills is how often the monitor's side and the member are killed each.
const kills = 100

// killVMs is how many VMs the writer's batches go round.
const killVMs = 20

// killBatch is the n-th batch of the writer: it says n in a record and an event.
func killBatch(n int) blixard.Batch {
	name := fmt.Sprintf("vm-%d", n%killVMs)
	count := uint32(n)
	c := register(name, blixard.StateRunning)
	c.Status.Restarts = &count
	e := event(name, blixard.EventRestart)
	e.Detail = strconv.Itoa(n)
	return blixard.Batch{ID: "batch-" + strconv.Itoa(n), Commands: []blixard.Command{c}, Events: []blixard.Event{e}}
}

// hostRole is what the daemon does with the store: it runs a member, and writes
// batch after batch, each again under its ID until it is acknowledged. It says
// the member's process, and each acknowledged batch with its index.
func hostRole(ctx context.Context, args []string) error {
	var member MemberConfig
	fs := flag.NewFlagSet("host", flag.ContinueOnError)
	from := fs.Int("from", 1, "")
	member.AddFlags(fs)
	if err := fs.Parse(args); err != nil {
		return err
	}
	log := slog.New(slog.DiscardHandler)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	sup := NewSupervisor(SupervisorConfig{Member: member, Command: append([]string{self, "member"}, member.Args()...), Logger: log, RestartMax: 100 * time.Millisecond})
	s, err := Open(Config{Endpoints: []string{member.ClientURL()}, Node: testNode, Supervisor: sup, MaxEvents: 1 << 20, Logger: log})
	if err != nil {
		return err
	}
	ended := make(chan error, 2)
	go func() { ended <- sup.Run(ctx) }()
	go func() { ended <- s.Run(ctx) }()
	pid := 0
	for n := *from; ctx.Err() == nil; {
		if now := sup.Status().PID; now != pid && now != 0 {
			pid = now
			fmt.Println("member", pid)
		}
		index, err := s.Apply(ctx, killBatch(n))
		switch blixard.ErrorCode(err) {
		case blixard.CodeUnavailable, blixard.CodeTimeout, blixard.CodeConflict:
			pause(ctx, 5*time.Millisecond)
			continue
		}
		if err != nil {
			return err
		}
		fmt.Println("ack", n, index)
		n++
	}
	return errors.Join(<-ended, <-ended, s.Close())
}

// killed is a running host role.
type killed struct {
	cmd    *exec.Cmd
	lines  *bufio.Scanner
	member int
}

func startHost(t *testing.T, member MemberConfig, from int) *killed {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	k := &killed{cmd: exec.Command(self, append([]string{"host", "--from", strconv.Itoa(from)}, member.Args()...)...)}
	k.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	k.cmd.Stderr = os.Stderr
	out, err := k.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	k.lines = bufio.NewScanner(out)
	if err := k.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return k
}

// acks reads until n more batches are acknowledged, or the end for n < 0.
func (k *killed) acks(t *testing.T, n int, acked map[int]uint64) {
	t.Helper()
	for n != 0 && k.lines.Scan() {
		f := strings.Fields(k.lines.Text())
		switch {
		case len(f) == 2 && f[0] == "member":
			k.member, _ = strconv.Atoi(f[1])
		case len(f) == 3 && f[0] == "ack":
			batch, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			index, err := strconv.ParseUint(f[2], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			acked[batch] = index
			n--
		}
	}
	if n > 0 {
		t.Fatalf("the writer ended by itself: %v", errors.Join(k.lines.Err(), k.cmd.Wait()))
	}
}

// kill ends it as a power cut would, and takes in what it still said.
func (k *killed) kill(t *testing.T, acked map[int]uint64) {
	t.Helper()
	if err := k.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	k.acks(t, -1, acked)
	if err := k.cmd.Wait(); err == nil {
		t.Fatal("the writer was not killed")
	}
}

// TestStore_killed kills the monitor's side and the member a hundred times each
// while batches are written: every acknowledged one is there under its index,
// none is there twice, and they are in order.
func TestStore_killed(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	member := MemberConfig{Dir: filepath.Join(dir, "member"), SocketDir: filepath.Join(dir, "s"), QuotaBytes: DefaultQuota, CompactAfter: DefaultCompactAfter}
	acked := map[int]uint64{}
	k := startHost(t, member, 1)
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	for range kills {
		k.acks(t, 1+rng.IntN(5), acked)
		if err := syscall.Kill(k.member, syscall.SIGKILL); err != nil {
			t.Fatalf("kill member %d: %v", k.member, err)
		}
		k.acks(t, 1+rng.IntN(5), acked)
		k.kill(t, acked)
		// What was in flight is sent again under its ID, as by a daemon that
		// kept it.
		k = startHost(t, member, len(acked)+1)
	}
	k.acks(t, 1, acked)
	k.kill(t, acked)

	sup, _ := supervise(t, SupervisorConfig{Member: member})
	awaitRunning(t, sup)
	s, _ := openStore(t, member, func(c *Config) { c.MaxEvents = 1 << 20 })
	v, err := s.Loaded(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	newest := map[string]int{}
	last := 0
	for _, e := range v.Events(blixard.EventQuery{Limit: blixard.MaxEvents}) {
		n, err := strconv.Atoi(e.Detail)
		if err != nil || n != last+1 {
			t.Fatalf("event %q after %d", e.Detail, last)
		}
		if index, ok := acked[n]; ok && index/blixard.IndexScale != e.Index/blixard.IndexScale {
			t.Errorf("batch %d was acknowledged at index %d and is at %d", n, index, e.Index)
		}
		last = n
		newest[e.VM] = n
	}
	if last < len(acked) {
		t.Errorf("%d batches were acknowledged, %d are there", len(acked), last)
	}
	for name, n := range newest {
		r, ok := v.VM(vmID(name))
		if !ok || r.Status.Restarts == nil || int(*r.Status.Restarts) != n {
			t.Errorf("the record of %s is %+v, want batch %d", name, r, n)
		}
	}
	t.Logf("%d batches acknowledged over %d kills of either side", len(acked), kills)
}
