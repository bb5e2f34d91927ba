package monitor

import (
	"context"
	"fmt"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/blixard/blixard"
)

func id(name string) blixard.VMID {
	return blixard.VMID{Node: "host", Manager: blixard.SystemManager, Name: name}
}

func register(name string, n uint32) blixard.RegisterVM {
	return blixard.RegisterVM{ID: id(name), Status: blixard.VMStatus{MainPID: n}}
}

func update(name string, n uint32) blixard.UpdateState {
	return blixard.UpdateState{ID: id(name), Status: blixard.VMStatus{MainPID: n}}
}

func verdict(name, message string) blixard.UpdateHealth {
	return blixard.UpdateHealth{ID: id(name), Health: blixard.VMHealth{Checks: []blixard.HealthCheck{{Message: message}}}}
}

func remove(name string) blixard.RemoveVM { return blixard.RemoveVM{ID: id(name)} }

// event is one that may be dropped, last one that may not as long as others wait.
func event(n int) blixard.Event {
	return blixard.Event{Type: blixard.EventRestart, VM: "web", Detail: fmt.Sprint(n)}
}

func last(n int) blixard.Event {
	return blixard.Event{Type: blixard.EventState, VM: "web", To: "failed", Detail: fmt.Sprint(n)}
}

func TestOutbox_lastWriteWins(t *testing.T) {
	for _, c := range []struct {
		name string
		in   []blixard.Command
		want []blixard.Command
	}{
		{"updates",
			[]blixard.Command{update("web", 1), verdict("web", "a"), update("web", 2), verdict("web", "b"), update("web", 3)},
			[]blixard.Command{update("web", 3), verdict("web", "b")}},
		{"two VMs, first come first",
			[]blixard.Command{update("web", 1), update("db", 1), update("web", 2), update("db", 2)},
			[]blixard.Command{update("web", 2), update("db", 2)}},
		{"after a registration",
			[]blixard.Command{register("web", 1), verdict("web", "a"), update("web", 2), update("web", 3)},
			[]blixard.Command{register("web", 1), verdict("web", "a"), update("web", 3)}},
		{"around a removal",
			[]blixard.Command{update("web", 1), verdict("web", "a"), remove("web"), register("web", 2), update("web", 3), update("web", 4), verdict("web", "b")},
			[]blixard.Command{update("web", 1), verdict("web", "a"), remove("web"), register("web", 2), update("web", 4), verdict("web", "b")}},
		{"a removal alone",
			[]blixard.Command{register("web", 1), remove("web")},
			[]blixard.Command{register("web", 1), remove("web")}},
		{"equal names under two managers",
			[]blixard.Command{update("web", 1), blixard.UpdateState{ID: blixard.VMID{Node: "host", Manager: "user:1", Name: "web"}}, update("web", 2)},
			[]blixard.Command{update("web", 2), blixard.UpdateState{ID: blixard.VMID{Node: "host", Manager: "user:1", Name: "web"}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := newOutbox(10)
			for _, in := range c.in {
				o.add([]blixard.Command{in}, nil)
			}
			b, ok := o.take()
			if !ok || !reflect.DeepEqual(b.Commands, c.want) {
				t.Errorf("got %+v\nwant %+v", b.Commands, c.want)
			}
			if _, ok := o.take(); ok {
				t.Error("something was left")
			}
		})
	}
}

// details are the events' numbers, lost the sum of what events_lost tell.
func details(events []blixard.Event) (numbers []string, lost uint64) {
	for _, e := range events {
		if e.Type == blixard.EventEventsLost {
			lost += e.Count
			continue
		}
		numbers = append(numbers, e.Detail)
	}
	return numbers, lost
}

func TestOutbox_shed(t *testing.T) {
	o := newOutbox(4)
	o.add(nil, []blixard.Event{event(1), last(2), event(3), last(4), event(5), event(6), last(7)})
	b, _ := o.take()
	got, lost := details(b.Events)
	if want := []string{"2", "4", "6", "7"}; !reflect.DeepEqual(got, want) || lost != 3 {
		t.Errorf("kept %v and told of %d lost, want %v and 3", got, lost, want)
	}
	if b.Events[0].Type != blixard.EventEventsLost {
		t.Errorf("the loss is not told where it happened: %+v", b.Events)
	}

	// Nothing but ends: the oldest goes.
	o.add(nil, []blixard.Event{last(1), last(2), last(3), last(4), last(5)})
	b, _ = o.take()
	if got, lost := details(b.Events); !reflect.DeepEqual(got, []string{"2", "3", "4", "5"}) || lost != 1 {
		t.Errorf("kept %v and told of %d lost", got, lost)
	}

	// What was told is not told again.
	o.add(nil, []blixard.Event{event(1)})
	b, _ = o.take()
	if got, lost := details(b.Events); !reflect.DeepEqual(got, []string{"1"}) || lost != 0 {
		t.Errorf("kept %v and told of %d lost", got, lost)
	}
}

// TestOutbox_model puts in and takes out at random and compares with a store
// that got everything at once.
func TestOutbox_model(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const bound = 700
		o := newOutbox(bound)
		direct, batched := newStore(), newStore()
		ids := map[string]bool{}
		added, number := uint64(0), 0
		var delivered, lost uint64
		lastSeen := -1
		take := func() bool {
			waits, events := o.waiting()
			b, ok := o.take()
			if ok != (waits+events > 0) {
				t.Fatalf("waiting says %d and %d, take says %v", waits, events, ok)
			}
			if !ok {
				return false
			}
			vms := map[blixard.VMID]bool{}
			for _, c := range b.Commands {
				vms[c.Target()] = true
				batched.apply(c)
			}
			switch {
			case len(vms) > batchVMs:
				t.Fatalf("%d VMs in one batch", len(vms))
			case len(b.Events) >= blixard.IndexScale:
				t.Fatalf("%d events in one batch", len(b.Events))
			case b.ID == "" || len(b.ID) > 64 || ids[b.ID]:
				t.Fatalf("batch ID %q", b.ID)
			}
			ids[b.ID] = true
			for _, e := range b.Events {
				if e.Type == blixard.EventEventsLost {
					lost += e.Count
					continue
				}
				delivered++
				var n int
				if _, err := fmt.Sscan(e.Detail, &n); err != nil || n <= lastSeen {
					t.Fatalf("event %s after %d", e.Detail, lastSeen)
				}
				lastSeen = n
			}
			if waits, _ := o.waiting(); waits < len(b.Commands)+len(b.Events) {
				t.Fatalf("what is in flight does not wait any more")
			}
			o.done(&b, 1, nil)
			return true
		}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			if rapid.IntRange(0, 3).Draw(t, "take") == 0 {
				take()
				continue
			}
			var commands []blixard.Command
			for range rapid.IntRange(0, 30).Draw(t, "commands") {
				name := fmt.Sprintf("vm%d", rapid.IntRange(0, 150).Draw(t, "vm"))
				number++
				var c blixard.Command
				switch rapid.IntRange(0, 7).Draw(t, "kind") {
				default:
					c = update(name, uint32(number))
				case 0:
					c = remove(name)
				case 1, 2:
					c = blixard.RegisterVM{ID: id(name), Readopt: rapid.Bool().Draw(t, "readopt"), Status: blixard.VMStatus{MainPID: uint32(number)}}
				case 3:
					c = verdict(name, fmt.Sprint(number))
				}
				commands = append(commands, c)
				direct.apply(c)
			}
			var events []blixard.Event
			for range rapid.SampledFrom([]int{0, 1, 5, 400}).Draw(t, "events") {
				number++
				e := event(number)
				if rapid.Bool().Draw(t, "end") {
					e = last(number)
				}
				events = append(events, e)
			}
			added += uint64(len(events))
			o.add(commands, events)
		}
		for take() {
		}
		if delivered+lost != added {
			t.Fatalf("%d events delivered and %d told lost of %d", delivered, lost, added)
		}
		if c, e := o.waiting(); c+e != 0 {
			t.Fatalf("all is written, and %d and %d wait", c, e)
		}
		for id, want := range direct.records {
			got := batched.records[id]
			if got == nil || got.Status != want.Status || (got.RemovedAt == nil) != (want.RemovedAt == nil) || !got.Health.Equal(want.Health) {
				t.Fatalf("%s: got %+v, want %+v", id, got, want)
			}
		}
		if len(batched.records) != len(direct.records) {
			t.Fatalf("%d records, want %d", len(batched.records), len(direct.records))
		}
	})
}

// TestOutbox_bounds: what waits goes out in batches within their bounds, all of
// it, in order.
func TestOutbox_bounds(t *testing.T) {
	const vms, events = 2*batchVMs + 50, 3*batchEvents + 7
	o := newOutbox(events)
	for i := range vms {
		name := fmt.Sprintf("vm%d", i)
		o.add([]blixard.Command{register(name, 1), update(name, 2), verdict(name, "a")}, nil)
	}
	for i := range events {
		o.add(nil, []blixard.Event{event(i)})
	}
	commands, next := 0, 0
	for {
		b, ok := o.take()
		if !ok {
			break
		}
		o.done(&b, 1, nil)
		if len(b.Commands) > 3*batchVMs || len(b.Events) > batchEvents+1 || len(b.Events) >= blixard.IndexScale {
			t.Errorf("a batch of %d commands and %d events", len(b.Commands), len(b.Events))
		}
		commands += len(b.Commands)
		for _, e := range b.Events {
			if e.Detail != fmt.Sprint(next) {
				t.Fatalf("event %s, want %d", e.Detail, next)
			}
			next++
		}
	}
	if commands != 3*vms || next != events {
		t.Errorf("%d commands and %d events came out of %d and %d", commands, next, 3*vms, events)
	}
}

func TestOutbox_next(t *testing.T) {
	o := newOutbox(10)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	got := make(chan blixard.Batch)
	go func() {
		b, err := o.next(ctx)
		if err != nil {
			t.Error(err)
		}
		got <- b
	}()
	o.add(nil, []blixard.Event{event(1)})
	if b := <-got; len(b.Events) != 1 {
		t.Errorf("got %+v", b)
	}
	cancel()
	if b, err := o.next(ctx); err == nil {
		t.Errorf("after the end: %+v", b)
	}
}
