package store

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/blixard/blixard"
)

func TestMerge(t *testing.T) {
	var (
		t0        = observedAt
		t1, t2    = t0.Add(time.Minute), t0.Add(2 * time.Minute)
		committed = t0.Add(time.Hour)
		helpers   = []blixard.Helper{{Name: "virtiofsd", Unit: "microvm-virtiofsd@a.service", State: blixard.StateRunning}}
		health    = blixard.VMHealth{Status: blixard.Healthy, Checks: []blixard.HealthCheck{{Name: blixard.CheckServiceState, Status: blixard.Healthy, Since: t0}}}
		running   = blixard.VMStatus{State: blixard.StateRunning, MainPID: 7}
		failed    = blixard.VMStatus{State: blixard.StateFailed, Result: "exit-code"}
	)
	there := func(change func(*blixard.VMRecord)) *blixard.VMRecord {
		r := &blixard.VMRecord{VMID: vmID("a"), NodeID: testNode.ID, Unit: "u", Epoch: 3, Status: running, Helpers: helpers, Health: &health,
			RegisteredAt: t0, ObservedAt: t0, CommittedAt: t0}
		if change != nil {
			change(r)
		}
		return r
	}
	tombstone := func(r *blixard.VMRecord) { r.RemovedAt = &t1 }
	stale := func(r *blixard.VMRecord) { r.StaleSince = &t1 }
	reg := blixard.RegisterVM{ID: vmID("a"), Unit: "u2", Status: failed, ObservedAt: t2}
	readopt := reg
	readopt.Readopt = true
	state := blixard.UpdateState{ID: vmID("a"), Status: failed, ObservedAt: t2}
	epoch := func(n uint64) blixard.UpdateState { c := state; c.Epoch = n; return c }
	gone := blixard.UpdateState{ID: vmID("a"), Epoch: 3, Status: running, Helpers: helpers, ObservedAt: t2, StaleSince: &t1}
	worse := blixard.VMHealth{Status: blixard.Critical}
	for name, c := range map[string]struct {
		old     *blixard.VMRecord
		command blixard.Command
		// want is nil for no change.
		want *blixard.VMRecord
	}{
		"register new": {nil, reg, &blixard.VMRecord{VMID: vmID("a"), NodeID: testNode.ID, Unit: "u2", Epoch: 1, Status: failed,
			RegisteredAt: t2, ObservedAt: t2}},
		"register again keeps epoch, date and health": {there(stale), reg, there(func(r *blixard.VMRecord) {
			r.Unit, r.Status, r.Helpers, r.ObservedAt = "u2", failed, nil, t2
		})},
		"register removed": {there(tombstone), reg, nil},
		"readopt removed": {there(tombstone), readopt, &blixard.VMRecord{VMID: vmID("a"), NodeID: testNode.ID, Unit: "u2", Epoch: 4,
			Status: failed, RegisteredAt: t2, ObservedAt: t2}},
		"readopt what is there": {there(nil), readopt, there(func(r *blixard.VMRecord) {
			r.Unit, r.Status, r.Helpers, r.ObservedAt = "u2", failed, nil, t2
		})},
		"update none":          {nil, state, nil},
		"update removed":       {there(tombstone), state, nil},
		"update other epoch":   {there(nil), epoch(2), nil},
		"update later epoch":   {there(nil), epoch(4), nil},
		"update this epoch":    {there(nil), epoch(3), there(func(r *blixard.VMRecord) { r.Status, r.Helpers, r.ObservedAt = failed, nil, t2 })},
		"update any epoch":     {there(stale), state, there(func(r *blixard.VMRecord) { r.Status, r.Helpers, r.ObservedAt = failed, nil, t2 })},
		"missing":              {there(nil), gone, there(func(r *blixard.VMRecord) { r.ObservedAt, r.StaleSince = t2, &t1 })},
		"health of none":       {nil, blixard.UpdateHealth{ID: vmID("a"), Health: worse}, nil},
		"health of removed":    {there(tombstone), blixard.UpdateHealth{ID: vmID("a"), Health: worse}, nil},
		"health other epoch":   {there(nil), blixard.UpdateHealth{ID: vmID("a"), Epoch: 1, Health: worse}, nil},
		"health keeps the age": {there(nil), blixard.UpdateHealth{ID: vmID("a"), Health: worse, ObservedAt: t2}, there(func(r *blixard.VMRecord) { r.Health = &worse })},
		"same health":          {there(nil), blixard.UpdateHealth{ID: vmID("a"), Health: health, ObservedAt: t2}, nil},
		"remove none":          {nil, blixard.RemoveVM{ID: vmID("a"), RemovedAt: t2}, nil},
		"remove removed":       {there(tombstone), blixard.RemoveVM{ID: vmID("a"), RemovedAt: t2}, nil},
		"remove":               {there(nil), blixard.RemoveVM{ID: vmID("a"), RemovedAt: t1}, there(tombstone)},
	} {
		var before blixard.VMRecord
		if c.old != nil {
			before = *c.old
		}
		step := func(old *blixard.VMRecord, committed time.Time) *blixard.VMRecord {
			if r := settle(old, merge(old, c.command, testNode.ID), committed); r != nil {
				return r
			}
			return old
		}
		got := step(c.old, committed)
		want := c.want
		if want == nil {
			want = c.old
			if got != c.old {
				t.Errorf("%s: a new record", name)
			}
		} else {
			want.CommittedAt = committed
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		if c.old != nil {
			if d := cmp.Diff(before, *c.old); d != "" {
				t.Errorf("%s changed the old record: %s", name, d)
			}
		}
		if c.want == nil {
			continue
		}
		_, removes := c.command.(blixard.RemoveVM)
		if again := step(got, committed.Add(time.Hour)); again != got {
			t.Errorf("%s: repeated, it changes %s", name, cmp.Diff(got, again))
		} else if removes && again.RemovedAt == nil {
			t.Errorf("%s: not removed", name)
		}
	}
}

func TestTable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		current, model := newTable(), map[blixard.VMID]int64{}
		type version struct {
			t *table
			m map[blixard.VMID]int64
		}
		var old []version
		for range rapid.IntRange(1, 20).Draw(t, "views") {
			old = append(old, version{current, maps.Clone(model)})
			b := current.builder()
			for range rapid.IntRange(0, 30).Draw(t, "changes") {
				id := vmID(rapid.StringMatching(`[a-d]{1,3}`).Draw(t, "name"))
				if rapid.IntRange(0, 3).Draw(t, "kind") == 0 {
					b.delete(id)
					delete(model, id)
					continue
				}
				mod := rapid.Int64().Draw(t, "mod")
				b.put(&entry{rec: blixard.VMRecord{VMID: id}, mod: mod})
				model[id] = mod
			}
			current = b.t
		}
		for _, v := range append(old, version{current, model}) {
			got := map[blixard.VMID]int64{}
			for e := range v.t.all() {
				got[e.rec.VMID] = e.mod
				if v.t.get(e.rec.VMID) != e {
					t.Fatalf("%v is not found", e.rec.VMID)
				}
			}
			if d := cmp.Diff(v.m, got); d != "" || v.t.n != len(v.m) {
				t.Fatalf("n %d: %s", v.t.n, d)
			}
			if v.t.get(vmID("none")) != nil {
				t.Fatal("found what is not there")
			}
		}
	})
}

func TestHistory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var current history
		var model []*batch
		type version struct {
			h history
			m []*batch
		}
		var old []version
		rev := int64(1)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			old = append(old, version{current, slices.Clone(model)})
			if len(model) > 0 && rapid.IntRange(0, 2).Draw(t, "kind") == 0 {
				i := 0
				if rapid.Bool().Draw(t, "anywhere") {
					i = rapid.IntRange(0, len(model)-1).Draw(t, "which")
				}
				current, model = current.remove(model[i].key), slices.Delete(slices.Clone(model), i, i+1)
				continue
			}
			rev += int64(rapid.IntRange(1, 3).Draw(t, "step"))
			b := &batch{key: keys{"/"}.events("n", uint64(rev)), rev: rev}
			for i := range rapid.IntRange(1, 4).Draw(t, "events") {
				b.events = append(b.events, blixard.Event{Index: blixard.Index(rev, i), VM: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "vm")})
			}
			current, model = current.append(b), append(model, b)
		}
		for _, v := range append(old, version{current, model}) {
			q := blixard.EventQuery{After: rapid.Uint64Range(0, uint64(rev+1)*blixard.IndexScale).Draw(t, "after"),
				Limit: rapid.IntRange(0, 5).Draw(t, "limit"), VM: blixard.VMRef{Name: rapid.SampledFrom([]string{"", "a"}).Draw(t, "ref")}}
			var all, want []uint64
			n := 0
			for _, b := range v.m {
				n += len(b.events)
				for _, e := range b.events {
					if e.Index > q.After && (q.VM.Name == "" || q.VM.Name == e.VM) {
						all = append(all, e.Index)
					}
				}
			}
			want = all
			if q.Limit > 0 {
				want = all[max(0, len(all)-q.Limit):]
			}
			var got []uint64
			for _, e := range v.h.newest(q) {
				got = append(got, e.Index)
			}
			if !slices.Equal(got, want) || v.h.n != n {
				t.Fatalf("%+v: %v, want %v; n %d, want %d", q, got, want, v.h.n, n)
			}
		}
	})
}
