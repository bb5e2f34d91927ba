package store

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/blixard/blixard"
)

// noise is text that does not compress.
func noise(n, seed int) string {
	b := make([]byte, n)
	x := uint32(seed)*2654435761 + 1
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+-"[x>>26]
	}
	return string(b)
}

// The disk gets full: writes are refused, reads go on, a restart of both sides
// changes nothing, and when there is space again it heals by itself.
func TestStore_diskFull(t *testing.T) {
	t.Parallel()
	cfg := newMemberConfig(t)
	check(t, os.Mkdir(cfg.Dir, 0o700))
	mountTmpfs(t, cfg.Dir, "size=240m")
	sup, _ := supervise(t, SupervisorConfig{Member: cfg, HangAfter: 2 * time.Second, ProbeEvery: 100 * time.Millisecond, RestartMax: 200 * time.Millisecond})
	awaitRunning(t, sup)
	s, stop := openStore(t, cfg, func(c *Config) { c.Supervisor = sup })
	n := 0
	apply := func() error {
		b := blixard.Batch{ID: fmt.Sprint("b", n), Commands: []blixard.Command{register(fmt.Sprint("vm", n), blixard.StateRunning)},
			Events: []blixard.Event{event(fmt.Sprint("vm", n), blixard.EventRegistered)}}
		index, err := s.Apply(t.Context(), b)
		if err == nil {
			n++
			check(t, s.Wait(t.Context(), index))
		}
		return err
	}
	check(t, apply())
	filler := filepath.Join(cfg.Dir, "filler")
	for round, leave := range []int64{MinFree / 2, 0} {
		fill(t, filler, leave)
		await(t, "writes to be refused", func() error {
			err := apply()
			if err == nil {
				return fmt.Errorf("it takes them")
			}
			if code := blixard.ErrorCode(err); code != blixard.CodeUnavailable && code != blixard.CodeTimeout {
				t.Fatalf("apply: %v", err)
			}
			return nil
		})
		// The batch that was refused is kept by its writer; others may follow
		// under other names, so the model stays simple with one.
		await(t, "the state to be told", func() error {
			if st := s.Status(); st.Healthy || !strings.Contains(st.Reason, "disk is full") && st.Members[0].State == MemberRunning {
				return fmt.Errorf("it is %+v", st)
			}
			return nil
		})
		if got := len(s.View().VMs("")); got != n {
			t.Errorf("round %d: %d records, want %d", round, got, n)
		}
		if round == 0 {
			// A restart while it is full; the store reads what was written.
			pid := sup.Status().PID
			check(t, syscall.Kill(pid, syscall.SIGKILL))
			await(t, "another process", func() error {
				if st := sup.Status(); st.State != MemberRunning || st.PID == pid {
					return fmt.Errorf("it is %+v", st)
				}
				return nil
			})
			stop()
			s, stop = openStore(t, cfg, func(c *Config) { c.Supervisor = sup })
			v, err := s.Loaded(t.Context())
			check(t, err)
			if got := len(v.VMs("")); got != n {
				t.Errorf("%d records after a restart, want %d", got, n)
			}
		}
		check(t, os.Remove(filler))
		await(t, "writes to be taken", apply)
		await(t, "health", func() error {
			if st := s.Status(); !st.Healthy {
				return fmt.Errorf("it is %+v", st)
			}
			return nil
		})
	}
	v := s.View()
	if got := len(v.VMs("")); got != n || v.history.n != n {
		t.Errorf("%d records and %d events, want %d", got, v.history.n, n)
	}
}

// The database reaches its quota by history alone: it is written anew, and
// takes writes again.
func TestStore_quota(t *testing.T) {
	t.Parallel()
	cfg := newMemberConfig(t)
	cfg.QuotaBytes, cfg.CompactAfter = 16<<20, time.Hour
	sup, _ := supervise(t, SupervisorConfig{Member: cfg, ProbeEvery: 100 * time.Millisecond, RestartMax: 200 * time.Millisecond})
	awaitRunning(t, sup)
	s, _ := openStore(t, cfg, func(c *Config) { c.Supervisor = sup; c.MaxEvents = 10 })
	refused, written := false, 0
	for i := 0; written < 60; i++ {
		e := event("a", blixard.EventState)
		e.Detail = noise(400<<10, i)
		b := blixard.Batch{ID: fmt.Sprint("b", i), Commands: []blixard.Command{register("a", blixard.StateRunning)}, Events: []blixard.Event{e}}
		await(t, "a write", func() error {
			index, err := s.Apply(t.Context(), b)
			if err != nil {
				refused = refused || strings.Contains(err.Error(), "quota")
				return err
			}
			return s.Wait(t.Context(), index)
		})
		written++
	}
	if !refused {
		t.Error("the quota was never reached")
	}
	if n := sup.Status().Restarts; n == 0 {
		t.Error("it was never written anew")
	}
	await(t, "health and few events", func() error {
		if st := s.Status(); !st.Healthy || s.View().history.n > 10 {
			return fmt.Errorf("it is %+v with %d events", st, s.View().history.n)
		}
		return nil
	})
}
