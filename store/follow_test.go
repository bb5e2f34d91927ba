package store

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/blixard/blixard"
)

// follower collects what a stream of events says.
type follower struct {
	mu     sync.Mutex
	frames []blixard.EventFrame
}

func follow(t *testing.T, s *Store, q blixard.EventQuery) *follower {
	f := &follower{}
	running(t, func(ctx context.Context) error {
		var last uint64
		for fr, err := range s.FollowEvents(ctx, q) {
			if err != nil {
				if blixard.ErrorCode(err) != blixard.CodeUnavailable || ctx.Err() == nil {
					return err
				}
				return nil
			}
			if fr.Index < last && !fr.Gap || fr.Event != nil && fr.Event.Index != fr.Index {
				return fmt.Errorf("index %d after %d: %+v", fr.Index, last, fr)
			}
			last = fr.Index
			f.mu.Lock()
			f.frames = append(f.frames, fr)
			f.mu.Unlock()
		}
		return fmt.Errorf("the stream ended without an error")
	})
	return f
}

// told is what came so far: the VMs of events, and GAP.
func (f *follower) told() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, fr := range f.frames {
		if fr.Gap {
			out = append(out, "GAP")
		}
		if fr.Event != nil {
			out = append(out, fr.Event.VM)
		}
	}
	return strings.Join(out, " ")
}

func (f *follower) await(t *testing.T, want string) {
	t.Helper()
	await(t, want, func() error {
		if got := f.told(); got != want {
			return fmt.Errorf("told %q", got)
		}
		return nil
	})
}

func happen(t *testing.T, s *Store, names ...string) uint64 {
	t.Helper()
	b := blixard.Batch{ID: fmt.Sprint(names[0], time.Now().UnixNano())}
	for _, n := range names {
		b.Events = append(b.Events, event(n, blixard.EventState))
	}
	return mustApply(t, s, b)
}

func TestStore_FollowEvents(t *testing.T) {
	t.Parallel()
	_, member := memberUp(t)
	s, _ := openStore(t, member, nil)
	a := happen(t, s, "a", "b")
	all := follow(t, s, blixard.EventQuery{After: 1})
	now := follow(t, s, blixard.EventQuery{})
	one := follow(t, s, blixard.EventQuery{After: 1, VM: blixard.VMRef{Name: "b"}})
	all.await(t, "a b")
	one.await(t, "b")
	middle := follow(t, s, blixard.EventQuery{After: all.frames[0].Index})
	middle.await(t, "b")
	ahead := follow(t, s, blixard.EventQuery{After: a + 5*blixard.IndexScale})
	happen(t, s, "c")
	happen(t, s, "b", "d")
	all.await(t, "a b c b d")
	middle.await(t, "b c b d")
	one.await(t, "b b")
	await(t, "those who began now", func() error {
		if got := now.told(); !strings.HasSuffix("c b d", got) || got == "" {
			return fmt.Errorf("told %q", got)
		}
		return nil
	})
	if got := ahead.told(); strings.Contains(got, "a") || strings.Contains(got, "GAP") {
		t.Errorf("told %q from an index that is yet to come", got)
	}
}

// A stream without events says every 15 s that it lives, and a view that nobody
// confirms becomes stale.
func TestStore_FollowEvents_quiet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMirror(nil, keys{DefaultPrefix}, nil)
		s := &Store{mirror: m}
		if v := s.View(); v.Stale() == "" || !v.LastContact().IsZero() || v.Index() != 0 {
			t.Errorf("before anything was read: %q, %s", v.Stale(), v.LastContact())
		}
		next := *m.view.Load()
		next.rev = 7
		m.publish(&next)
		m.contact.heard()
		ctx, cancel := context.WithTimeout(t.Context(), 3*keepAlive+time.Second)
		defer cancel()
		begin, frames := time.Now(), 0
		for f, err := range s.FollowEvents(ctx, blixard.EventQuery{}) {
			if err != nil {
				if blixard.ErrorCode(err) != blixard.CodeUnavailable || ctx.Err() == nil {
					t.Error(err)
				}
				break
			}
			frames++
			if f.Event != nil || f.Gap || f.Index != s.Index() || time.Since(begin) != time.Duration(frames)*keepAlive {
				t.Errorf("frame %+v after %s", f, time.Since(begin))
			}
			if frames == 1 {
				m.contact.heard()
			} else if s.View().Stale() == "" && frames > 2 {
				t.Error("not stale without a sign of life")
			}
		}
		if frames != 3 {
			t.Errorf("%d frames", frames)
		}
		m.contact.lose("cut")
		if got := s.View().Stale(); got != "cut" {
			t.Errorf("stale: %q", got)
		}
	})
}

// A store that is not the one that the index came from is told as a gap.
func TestStore_FollowEvents_otherStore(t *testing.T) {
	t.Parallel()
	v := &View{rev: 5, history: history{}.append(&batch{rev: 4, events: []blixard.Event{{Index: blixard.Index(4, 0)}}})}
	var got []blixard.EventFrame
	next, ok := followView(v, blixard.Index(900, 0), blixard.VMRef{}, func(f blixard.EventFrame, err error) bool {
		got = append(got, f)
		return true
	})
	if !ok || next != v.Index() || len(got) != 1 || !got[0].Gap || got[0].Index != v.Index() {
		t.Errorf("next %d, frames %+v", next, got)
	}
}

// While a store is cut off, history is compacted: it lists again, and says gap
// only when events are really gone.
func TestStore_FollowEvents_compacted(t *testing.T) {
	t.Parallel()
	_, member := memberUp(t)
	p, url := newProxy(t, member)
	away, _ := openStore(t, member, func(c *Config) {
		c.Endpoints, c.Node.ID, c.Node.Name = []string{url}, strings.Repeat("e", 32), "h2"
	})
	s, _ := openStore(t, member, func(c *Config) { c.MaxEvents = 20 })
	happen(t, s, "a")
	f := follow(t, away, blixard.EventQuery{After: 1})
	f.await(t, "a")
	raw := rawClient(t, member)

	cutOff := func(during func()) {
		p.setAway(true)
		during()
		last := happen(t, s, "end")
		_, err := raw.Compact(t.Context(), int64(last/blixard.IndexScale), clientv3.WithCompactPhysical())
		check(t, err)
		p.setAway(false)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		check(t, away.Wait(ctx, last))
	}
	cutOff(func() { happen(t, s, "b"); happen(t, s, "c") })
	f.await(t, "a b c end")

	cutOff(func() {
		for i := range 30 {
			happen(t, s, fmt.Sprint("x", i))
		}
		await(t, "trimming", func() error {
			if v := s.View(); v.history.n > 20 {
				return fmt.Errorf("%d events", v.history.n)
			}
			return nil
		})
	})
	await(t, "the end", func() error {
		got := f.told()
		rest, ok := strings.CutPrefix(got, "a b c end GAP ")
		if !ok || !strings.HasSuffix(rest, "x28 x29 end") || strings.Contains(rest, "GAP") {
			return fmt.Errorf("told %q", got)
		}
		return nil
	})
	if v := away.View(); v.history.n > 20 || v.Floor() == 0 {
		t.Errorf("%d events, floor %d", v.history.n, v.Floor())
	}
}

func TestStore_trim(t *testing.T) {
	t.Parallel()
	_, member := memberUp(t)
	s, _ := openStore(t, member, func(c *Config) { c.MaxEvents = 100 })
	first := follow(t, s, blixard.EventQuery{After: 1})
	var want []string
	for i := range 60 {
		var names []string
		for j := range 1 + i%7 {
			names = append(names, fmt.Sprint(i, ".", j))
		}
		want = append(want, names...)
		happen(t, s, names...)
	}
	// One batch above the bound stays: the newest is never trimmed.
	big := make([]string, 150)
	for i := range big {
		big[i] = fmt.Sprint("big", i)
	}
	want = append(want, big...)
	happen(t, s, big...)
	await(t, "the bound", func() error {
		if n := s.View().history.n; n != 150 {
			return fmt.Errorf("%d events", n)
		}
		return nil
	})
	v := s.View()
	events := v.Events(blixard.EventQuery{})
	if events[0].VM != "big0" || v.Floor() >= events[0].Index {
		t.Errorf("first %+v, floor %d", events[0], v.Floor())
	}
	want = append(want, "last")
	happen(t, s, "last")
	await(t, "the bound again", func() error {
		if n := s.View().history.n; n != 1 {
			return fmt.Errorf("%d events", n)
		}
		return nil
	})
	// Who follows from the start saw all, in order, but where it was told not to.
	await(t, "the follower", func() error {
		if !strings.HasSuffix(first.told(), " last") {
			return fmt.Errorf("told %q", first.told())
		}
		return nil
	})
	at := 0
	for _, name := range strings.Fields(first.told()) {
		if name == "GAP" {
			continue
		}
		i := slices.Index(want[at:], name)
		if i < 0 {
			t.Fatalf("%s is out of order", name)
		}
		at += i + 1
	}
	// The floor outlives a restart.
	floor := s.View().Floor()
	other, _ := openStore(t, member, nil)
	ov, err := other.Loaded(t.Context())
	check(t, err)
	if ov.Floor() != floor || len(ov.Events(blixard.EventQuery{})) != 1 {
		t.Errorf("floor %d, want %d", ov.Floor(), floor)
	}
}
