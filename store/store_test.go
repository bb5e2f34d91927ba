package store

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/blixard/blixard"
)

func TestStore_Apply(t *testing.T) {
	t.Parallel()
	_, member := memberUp(t)
	s, _ := openStore(t, member, nil)
	before := time.Now()
	first := mustApply(t, s, blixard.Batch{ID: "a", Commands: []blixard.Command{register("web", blixard.StateRunning)},
		Events: []blixard.Event{event("web", blixard.EventRegistered), event("web", blixard.EventState)}})
	if again := mustApply(t, s, blixard.Batch{ID: "a", Events: []blixard.Event{event("web", blixard.EventState)}}); again != first {
		t.Errorf("repeated: index %d, want %d", again, first)
	}
	r, ok := s.View().VM(vmID("web"))
	want := &blixard.VMRecord{VMID: vmID("web"), NodeID: testNode.ID, Unit: "microvm@web.service", Epoch: 1,
		Status: blixard.VMStatus{State: blixard.StateRunning}, RegisteredAt: observedAt, ObservedAt: observedAt, CommittedAt: r.CommittedAt}
	if d := cmp.Diff(want, r); !ok || d != "" {
		t.Error(d)
	}
	if r.CommittedAt.Before(before) || r.CommittedAt.After(time.Now()) {
		t.Errorf("committed at %s", r.CommittedAt)
	}
	events, err := s.Events(blixard.EventQuery{})
	if err != nil || len(events) != 2 {
		t.Fatalf("events %v, %v", events, err)
	}
	if events[1].Index != events[0].Index+1 || events[1].Index > first || !events[0].CommittedAt.Equal(r.CommittedAt) {
		t.Errorf("events %+v; batch %d", events, first)
	}
	// Nothing changes: nothing is written.
	rev := storeRevision(t, member)
	none := mustApply(t, s, blixard.Batch{ID: "b", Commands: []blixard.Command{register("web", blixard.StateRunning),
		blixard.UpdateState{ID: vmID("other")}, blixard.RemoveVM{ID: vmID("other"), RemovedAt: observedAt}}})
	if none != first || storeRevision(t, member) != rev {
		t.Errorf("index %d, want %d; revision %d, want %d", none, first, storeRevision(t, member), rev)
	}
	if empty := mustApply(t, s, blixard.Batch{ID: "c"}); empty != first {
		t.Errorf("empty batch: index %d, want %d", empty, first)
	}
	// Several commands for one VM, in order; then its tombstone holds.
	mustApply(t, s, blixard.Batch{ID: "d", Commands: []blixard.Command{
		blixard.UpdateState{ID: vmID("web"), Epoch: 1, Status: blixard.VMStatus{State: blixard.StateFailed}, ObservedAt: observedAt},
		blixard.RemoveVM{ID: vmID("web"), RemovedAt: observedAt}, register("db", blixard.StateStarting)}})
	mustApply(t, s, blixard.Batch{ID: "e", Commands: []blixard.Command{register("web", blixard.StateRunning)}})
	vms := s.View().VMs(testNode.Name)
	if len(vms) != 2 || vms[0].Name != "db" || vms[1].RemovedAt == nil || vms[1].Status.State != blixard.StateFailed {
		t.Errorf("records %+v", vms)
	}
	if got := s.View().VMs("h2"); len(got) != 0 {
		t.Errorf("records of another node: %+v", got)
	}
}

// rawClient is a client of its own.
func rawClient(t testing.TB, member MemberConfig) *clientv3.Client {
	t.Helper()
	c, err := newClient([]string{member.ClientURL()})
	check(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func storeRevision(t testing.TB, member MemberConfig) int64 {
	t.Helper()
	// Node and lease are written meanwhile: what counts is the sequence key.
	r, err := rawClient(t, member).Get(t.Context(), keys{DefaultPrefix}.seq(testNode.ID))
	check(t, err)
	if len(r.Kvs) == 0 {
		return 0
	}
	return r.Kvs[0].ModRevision
}

func TestStore_Apply_refuses(t *testing.T) {
	t.Parallel()
	_, member := memberUp(t)
	s, _ := openStore(t, member, nil)
	id := func(change func(*blixard.VMID)) []blixard.Command {
		v := vmID("a")
		change(&v)
		return []blixard.Command{blixard.RemoveVM{ID: v}}
	}
	many := func(n int) (out []blixard.Command) {
		for i := range n {
			out = append(out, register(fmt.Sprint("vm", i), blixard.StateRunning))
		}
		return out
	}
	text := func(n int) string { // that does not compress
		var b strings.Builder
		for i := range uint32(n / 8) {
			fmt.Fprintf(&b, "%08x", i*2654435761)
		}
		return b.String()
	}
	large := register("a", blixard.StateRunning)
	large.Unit = text(6 << 20)
	ev := func(change func(*blixard.Event)) []blixard.Event {
		e := event("a", blixard.EventState)
		change(&e)
		return []blixard.Event{e}
	}
	for name, c := range map[string]struct {
		batch blixard.Batch
		want  blixard.Code
	}{
		"no id":           {blixard.Batch{Commands: many(1)}, blixard.CodeInvalid},
		"long id":         {blixard.Batch{ID: strings.Repeat("x", 65)}, blixard.CodeInvalid},
		"nil command":     {blixard.Batch{ID: "x", Commands: []blixard.Command{nil}}, blixard.CodeInvalid},
		"other node":      {blixard.Batch{ID: "x", Commands: id(func(v *blixard.VMID) { v.Node = "h2" })}, blixard.CodeInvalid},
		"no manager":      {blixard.Batch{ID: "x", Commands: id(func(v *blixard.VMID) { v.Manager = "" })}, blixard.CodeInvalid},
		"odd manager":     {blixard.Batch{ID: "x", Commands: id(func(v *blixard.VMID) { v.Manager = "user:0/../x" })}, blixard.CodeInvalid},
		"no name":         {blixard.Batch{ID: "x", Commands: id(func(v *blixard.VMID) { v.Name = "" })}, blixard.CodeInvalid},
		"slash":           {blixard.Batch{ID: "x", Commands: id(func(v *blixard.VMID) { v.Name = "a/b" })}, blixard.CodeInvalid},
		"no text":         {blixard.Batch{ID: "x", Commands: id(func(v *blixard.VMID) { v.Name = "a\xff" })}, blixard.CodeInvalid},
		"long name":       {blixard.Batch{ID: "x", Commands: id(func(v *blixard.VMID) { v.Name = strings.Repeat("x", 256) })}, blixard.CodeInvalid},
		"101 VMs":         {blixard.Batch{ID: "x", Commands: many(101)}, blixard.CodeInvalid},
		"1000 events":     {blixard.Batch{ID: "x", Events: slices.Repeat(ev(func(*blixard.Event) {}), 1000)}, blixard.CodeInvalid},
		"event elsewhere": {blixard.Batch{ID: "x", Events: ev(func(e *blixard.Event) { e.Node = "h2" })}, blixard.CodeInvalid},
		"event untyped":   {blixard.Batch{ID: "x", Events: ev(func(e *blixard.Event) { e.Type = "" })}, blixard.CodeInvalid},
		"event odd name":  {blixard.Batch{ID: "x", Events: ev(func(e *blixard.Event) { e.VM = "a/b" })}, blixard.CodeInvalid},
		"odd time":        {blixard.Batch{ID: "x", Events: ev(func(e *blixard.Event) { e.ObservedAt = time.Date(99999, 1, 1, 0, 0, 0, 0, time.UTC) })}, blixard.CodeInvalid},
		"large record":    {blixard.Batch{ID: "x", Commands: []blixard.Command{large}}, blixard.CodeTooLarge},
		"large event":     {blixard.Batch{ID: "x", Events: ev(func(e *blixard.Event) { e.Detail = text(9 << 20) })}, blixard.CodeTooLarge},
		"large in sum": {blixard.Batch{ID: "x", Commands: func() (out []blixard.Command) {
			for i := range 10 {
				r := register(fmt.Sprint("vm", i), blixard.StateRunning)
				r.Unit = fmt.Sprint(i) + text(400<<10)
				out = append(out, r)
			}
			return out
		}()}, blixard.CodeTooLarge},
	} {
		_, err := s.Apply(t.Context(), c.batch)
		if got := blixard.ErrorCode(err); err == nil || got != c.want {
			t.Errorf("%s: %v (%s), want %s", name, err, got, c.want)
		}
	}
	if rev := storeRevision(t, member); rev != 0 {
		t.Errorf("something was written at %d", rev)
	}
	// The bounds themselves are taken, and odd names that can be written.
	odd := []blixard.Command{register("-rf", ""), register("..", ""), register(`\x2d`, ""), register("a\nb\x00\u202e", ""), register(strings.Repeat("ü", 127), "")}
	mustApply(t, s, blixard.Batch{ID: "full", Commands: append(odd, many(95)...), Events: slices.Repeat(ev(func(*blixard.Event) {}), 999)})
	if v := s.View(); v.vms.n != 100 || len(v.Events(blixard.EventQuery{})) != 999 || len(v.Quarantined()) != 0 {
		t.Errorf("%d records, %d events, %v", v.vms.n, len(v.Events(blixard.EventQuery{})), v.Quarantined())
	}
}

// Several writers share the node's sequence: all is written, each batch once.
func TestStore_Apply_atOnce(t *testing.T) {
	t.Parallel()
	_, member := memberUp(t)
	s, _ := openStore(t, member, nil)
	// A second store of the same node takes turns by conflicts alone.
	other, _ := openStore(t, member, nil)
	var wg sync.WaitGroup
	for g := range 8 {
		st := []*Store{s, other}[g%2]
		wg.Go(func() {
			for i := range 20 {
				b := blixard.Batch{ID: fmt.Sprint(g, "-", i), Commands: []blixard.Command{register(fmt.Sprint("vm", i), blixard.StateRunning)},
					Events: []blixard.Event{event(fmt.Sprint("w", g, "-", i), blixard.EventState)}}
				for {
					_, err := st.Apply(t.Context(), b)
					if err == nil {
						break
					}
					if blixard.ErrorCode(err) != blixard.CodeConflict {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	await(t, "all events", func() error {
		if n := s.View().history.n; n != 160 {
			return fmt.Errorf("%d events", n)
		}
		return nil
	})
	seen := map[string]bool{}
	for _, e := range s.View().Events(blixard.EventQuery{}) {
		if seen[e.VM] {
			t.Errorf("%s twice", e.VM)
		}
		seen[e.VM] = true
	}
}

// A node that was set up anew has another identity and sequence under the same
// name: the guards of the records alone keep the two from losing writes.
func TestStore_Apply_twoIdentities(t *testing.T) {
	t.Parallel()
	_, member := memberUp(t)
	const rounds = 30
	var wg sync.WaitGroup
	var last *Store
	for g := range 2 {
		s, _ := openStore(t, member, func(c *Config) { c.Node.ID = strings.Repeat(fmt.Sprint(g), 32) })
		last = s
		wg.Go(func() {
			for i := range rounds {
				again := register("a", blixard.StateRunning)
				again.Readopt = true
				b := blixard.Batch{ID: fmt.Sprint("b", i), Commands: []blixard.Command{again, blixard.RemoveVM{ID: vmID("a"), RemovedAt: observedAt}}}
				for {
					_, err := s.Apply(t.Context(), b)
					if err == nil {
						break
					}
					if blixard.ErrorCode(err) != blixard.CodeConflict {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	await(t, "every epoch", func() error {
		if r, ok := last.View().VM(vmID("a")); !ok || r.Epoch != 2*rounds {
			return fmt.Errorf("the record is %+v, want epoch %d", r, 2*rounds)
		}
		return nil
	})
}

// The answer to a write is lost; the same batch sent again is written once.
func TestStore_Apply_lostAnswer(t *testing.T) {
	t.Parallel()
	_, member := memberUp(t)
	p, url := newProxy(t, member)
	s, stop := openStore(t, member, func(c *Config) { c.Endpoints = []string{url} })
	mustApply(t, s, blixard.Batch{ID: "first", Commands: []blixard.Command{register("a", blixard.StateStarting)}})
	outcomes := map[blixard.Code]int{}
	const rounds = 20
	for i := range rounds {
		b := blixard.Batch{ID: fmt.Sprint("b", i), Commands: []blixard.Command{blixard.UpdateState{ID: vmID("a"), Status: blixard.VMStatus{State: blixard.StateRunning, MainPID: uint32(i + 1)}, ObservedAt: observedAt}},
			Events: []blixard.Event{event(fmt.Sprint("e", i), blixard.EventState)}}
		p.setMute(true)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		_, err := s.Apply(ctx, b)
		cancel()
		if err == nil {
			t.Fatal("acknowledged without an answer")
		}
		outcomes[blixard.ErrorCode(err)]++
		p.cut()
		p.setMute(false)
		if i%2 == 1 {
			// The next process sends it again.
			stop()
			s, stop = openStore(t, member, func(c *Config) { c.Endpoints = []string{url} })
		}
		var index uint64
		await(t, "the second try", func() error {
			var err error
			index, err = s.Apply(t.Context(), b)
			return err
		})
		check(t, s.Wait(t.Context(), index))
		if again := mustApply(t, s, b); again != index {
			t.Errorf("index %d, then %d", index, again)
		}
	}
	if outcomes[blixard.CodeTimeout] != rounds {
		t.Errorf("outcomes %v: each was unknown", outcomes)
	}
	var got []string
	for _, e := range s.View().Events(blixard.EventQuery{}) {
		got = append(got, e.VM)
	}
	if len(got) != rounds || !slices.Equal(got, func() (want []string) {
		for i := range rounds {
			want = append(want, fmt.Sprint("e", i))
		}
		return want
	}()) {
		t.Errorf("events %v", got)
	}
}

func TestStore_Apply_away(t *testing.T) {
	t.Parallel()
	_, member := memberUp(t)
	p, url := newProxy(t, member)
	s, _ := openStore(t, member, func(c *Config) { c.Endpoints = []string{url} })
	mustApply(t, s, blixard.Batch{ID: "1", Commands: []blixard.Command{register("a", blixard.StateRunning)}})
	p.l.Close()
	p.setAway(true)
	b := blixard.Batch{ID: "2", Commands: []blixard.Command{register("b", blixard.StateRunning)}}
	var err error
	await(t, "a refusal", func() error {
		if _, err = s.Apply(t.Context(), b); blixard.ErrorCode(err) != blixard.CodeUnavailable {
			return fmt.Errorf("%w (%s)", err, blixard.ErrorCode(err))
		}
		return nil
	})
	if _, ok := s.View().VM(vmID("a")); !ok {
		t.Error("the record is gone from memory")
	}
	last := s.View().LastContact()
	await(t, "health to tell", func() error {
		if st := s.Status(); st.Healthy || st.Reason == "" {
			return fmt.Errorf("it is %+v", st)
		}
		return nil
	})
	if s.View().LastContact() != last {
		t.Errorf("contact moved from %s to %s", last, s.View().LastContact())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := s.Wait(ctx, s.Index()+blixard.IndexScale); blixard.ErrorCode(err) != blixard.CodeTimeout {
		t.Errorf("wait: %v", err)
	}
}

// What cannot be read stays as it is and stops nothing else.
func TestStore_quarantine(t *testing.T) {
	t.Parallel()
	_, member := memberUp(t)
	raw, k := rawClient(t, member), keys{DefaultPrefix}
	bad := map[string]string{
		k.vm(vmID("newer")):        "\x02j{\"future\":true}",
		k.vm(vmID("garbage")):      "\x01jnonsense",
		k.node("other"):            "\x07?",
		k.events("other", 1):       "\x01z????",
		DefaultPrefix + "usage/x":  "whatever",
		DefaultPrefix + "nodes/%2": "x",
	}
	for key, value := range bad {
		_, err := raw.Put(t.Context(), key, value)
		check(t, err)
	}
	s, _ := openStore(t, member, nil)
	mustApply(t, s, blixard.Batch{ID: "1", Commands: []blixard.Command{register("good", blixard.StateRunning)}, Events: []blixard.Event{event("good", blixard.EventRegistered)}})
	for _, name := range []string{"newer", "garbage"} {
		for i, c := range []blixard.Command{register(name, blixard.StateRunning), blixard.RemoveVM{ID: vmID(name), RemovedAt: observedAt}} {
			_, err := s.Apply(t.Context(), blixard.Batch{ID: fmt.Sprint(name, i), Commands: []blixard.Command{c}})
			if blixard.ErrorCode(err) != blixard.CodeInvalid {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, ok := s.View().VM(vmID(name)); ok {
			t.Errorf("%s has a record", name)
		}
	}
	var got []string
	for _, q := range s.View().Quarantined() {
		got = append(got, q.Key)
		if q.Reason == "" {
			t.Errorf("%s without a reason", q.Key)
		}
		r, err := raw.Get(t.Context(), q.Key)
		check(t, err)
		if string(r.Kvs[0].Value) != bad[q.Key] {
			t.Errorf("%s was changed to %q", q.Key, r.Kvs[0].Value)
		}
	}
	if len(got) != len(bad) {
		t.Errorf("quarantined %q, want %d", got, len(bad))
	}
	if vms := s.View().VMs(""); len(vms) != 1 || len(s.View().Events(blixard.EventQuery{})) != 1 {
		t.Errorf("records %+v", vms)
	}
	// One who follows is told that events are missing there.
	for f, err := range s.FollowEvents(t.Context(), blixard.EventQuery{After: 1}) {
		check(t, err)
		if !f.Gap {
			t.Errorf("first frame %+v", f)
		}
		break
	}
	for key := range bad {
		_, err := raw.Delete(t.Context(), key)
		check(t, err)
	}
	await(t, "an empty quarantine", func() error {
		if q := s.View().Quarantined(); len(q) > 0 {
			return fmt.Errorf("it holds %v", q)
		}
		return nil
	})
	// A sequence of a newer version stops writes, and is not written over.
	_, err := raw.Put(t.Context(), k.seq(testNode.ID), "\x02jnew")
	check(t, err)
	_, err = s.Apply(t.Context(), blixard.Batch{ID: "2", Commands: []blixard.Command{register("more", blixard.StateRunning)}})
	if blixard.ErrorCode(err) != blixard.CodeUnavailable {
		t.Errorf("newer sequence: %v", err)
	}
	if r, err := raw.Get(t.Context(), k.seq(testNode.ID)); err != nil || string(r.Kvs[0].Value) != "\x02jnew" {
		t.Errorf("the sequence was changed: %v", err)
	}
}

func TestStore_node(t *testing.T) {
	t.Parallel()
	_, member := memberUp(t)
	s, stop := openStore(t, member, nil)
	await(t, "the node", func() error {
		v := s.View()
		if n := v.Nodes(); len(n) != 1 || n[0].Name != "h1" || !v.Alive(testNode.ID) {
			return fmt.Errorf("nodes %+v, alive %v", n, v.Alive(testNode.ID))
		}
		return nil
	})
	n := testNode
	n.SystemdVersion = "252"
	check(t, s.RegisterNode(t.Context(), n))
	await(t, "its new record", func() error {
		if got := s.View().Nodes()[0].SystemdVersion; got != "252" {
			return fmt.Errorf("systemd %q", got)
		}
		return nil
	})
	n.ID = "other"
	if err := s.RegisterNode(t.Context(), n); blixard.ErrorCode(err) != blixard.CodeInvalid {
		t.Errorf("another node's record: %v", err)
	}
	second, _ := openStore(t, member, func(c *Config) { c.Node.ID, c.Node.Name = strings.Repeat("f", 32), "h2" })
	await(t, "two nodes", func() error {
		if v := second.View(); !v.Alive(testNode.ID) || !v.Alive(second.cfg.Node.ID) {
			return fmt.Errorf("alive %v", v.alive)
		}
		return nil
	})
	// The lease of a node that ends goes at once.
	stop()
	await(t, "the end of the first", func() error {
		if v := second.View(); v.Alive(testNode.ID) || len(v.Nodes()) != 2 {
			return fmt.Errorf("alive %v, nodes %v", v.alive, v.nodes)
		}
		return nil
	})
	if _, err := raw(t, member, keys{DefaultPrefix}.node(second.cfg.Node.ID), "\x02jnew"); err != nil {
		t.Fatal(err)
	}
	if err := second.RegisterNode(t.Context(), second.cfg.Node); blixard.ErrorCode(err) != blixard.CodeConflict {
		t.Errorf("over a newer record: %v", err)
	}
}

func raw(t testing.TB, member MemberConfig, key, value string) (*clientv3.PutResponse, error) {
	return rawClient(t, member).Put(t.Context(), key, value)
}

func TestStore_Status(t *testing.T) {
	t.Parallel()
	sup, member := memberUp(t)
	s, _ := openStore(t, member, func(c *Config) { c.Supervisor = sup })
	await(t, "health", func() error {
		if st := s.Status(); !st.Healthy {
			return fmt.Errorf("it is %+v", st)
		}
		return nil
	})
	mustApply(t, s, blixard.Batch{ID: "1", Commands: []blixard.Command{register("a", blixard.StateRunning)}})
	st := s.Status()
	m := st.Members[0]
	if st.Reason != "" || st.ClusterID == "" || st.Revision < 2 || m.Node != "h1" || !m.Leader || m.Term == 0 || m.State != MemberRunning ||
		m.DatabaseBytes == 0 || m.QuotaBytes != DefaultQuota || !strings.HasPrefix(m.Version, "3.7.") || m.ID == "" || m.Restarts != 0 {
		t.Errorf("status %+v", st)
	}
}

func TestConfig_Validate(t *testing.T) {
	good := Config{Endpoints: []string{"unix:///x"}, Node: testNode}
	check(t, good.Validate())
	for name, change := range map[string]func(*Config){
		"no endpoints": func(c *Config) { c.Endpoints = nil },
		"prefix":       func(c *Config) { c.Prefix = "blixard/" },
		"open prefix":  func(c *Config) { c.Prefix = "/blixard" },
		"slash":        func(c *Config) { c.Prefix = "/" },
		"no id":        func(c *Config) { c.Node.ID = "" },
		"node name":    func(c *Config) { c.Node.Name = "a/b" },
		"events":       func(c *Config) { c.MaxEvents = -1 },
	} {
		c := good
		change(&c)
		if s, err := Open(c); err == nil {
			s.Close()
			t.Errorf("%s: opened", name)
		}
	}
}
