package monitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/blixard/blixard"
)

// withWriter runs f beside a writer, in a bubble of time of its own.
func withWriter(t *testing.T, f func(t *testing.T, o *outbox, s *fakeStore, w *writer)) {
	synctest.Test(t, func(t *testing.T) {
		o, s := newOutbox(100000), newStore()
		w := &writer{box: o, store: s, meter: fakeMeter{}, log: slog.New(slog.DiscardHandler)}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := w.Run(ctx); err != nil {
				t.Errorf("the writer ended with %v", err)
			}
		}()
		f(t, o, s, w)
		cancel()
		<-done
	})
}

func TestWriter_retriesTheSameBatch(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
	}{
		{"unavailable", blixard.Errorf(blixard.CodeUnavailable, "no leader")},
		{"timeout", blixard.Errorf(blixard.CodeTimeout, "no answer")},
		{"busy", blixard.Errorf(blixard.CodeBusy, "too many requests")},
		{"conflict", blixard.Errorf(blixard.CodeConflict, "lost against another write")},
		{"applied all the same", errApplied},
	} {
		t.Run(c.name, func(t *testing.T) {
			withWriter(t, func(t *testing.T, o *outbox, s *fakeStore, w *writer) {
				s.judge(func(context.Context, blixard.Batch) error { return c.err })
				o.add([]blixard.Command{register("web", 1)}, []blixard.Event{event(1)})
				synctest.Wait()
				if reason, since, _ := w.status(); reason == "" || !since.Equal(time.Now()) {
					t.Errorf("failing: %q since %v", reason, since)
				}
				time.Sleep(time.Minute)
				// More comes while it is away.
				o.add([]blixard.Command{update("web", 2), update("web", 3)}, []blixard.Event{event(2)})
				time.Sleep(time.Minute)
				s.judge(nil)
				time.Sleep(5 * time.Second)
				synctest.Wait()
				if reason, _, _ := w.status(); reason != "" {
					t.Errorf("still failing: %q", reason)
				}
				if len(s.batches) != 2 || s.batches[0].ID == s.batches[1].ID {
					t.Fatalf("%d batches: %+v", len(s.batches), s.batches)
				}
				tries := len(s.attempts)
				for _, id := range s.attempts[:tries-1] {
					if id != s.batches[0].ID {
						t.Fatalf("the attempts had the IDs %v", s.attempts)
					}
				}
				// Pauses of 50 ms to 2 s, and half as much again for jitter.
				if tries < 40 || tries > 150 {
					t.Errorf("%d attempts in two minutes", tries)
				}
				if got, _ := details(s.events); !reflect.DeepEqual(got, []string{"1", "2"}) {
					t.Errorf("events %v", got)
				}
				if r := s.records[id("web")]; r.Status.MainPID != 3 {
					t.Errorf("record %+v", r)
				}
			})
		})
	}
}

// TestWriter_hangs: a store that does not answer holds one attempt no longer
// than its deadline, and the batch is sent again under its ID.
func TestWriter_hangs(t *testing.T) {
	withWriter(t, func(t *testing.T, o *outbox, s *fakeStore, w *writer) {
		s.judge(func(ctx context.Context, _ blixard.Batch) error {
			<-ctx.Done()
			return ctx.Err()
		})
		o.add(nil, []blixard.Event{event(1)})
		time.Sleep(applyTimeout + time.Millisecond)
		if reason, _, _ := w.status(); reason == "" {
			t.Error("a store that hangs is not told as failing")
		}
		s.judge(nil)
		time.Sleep(time.Second)
		synctest.Wait()
		if len(s.batches) != 1 || len(s.attempts) < 2 || s.attempts[0] != s.batches[0].ID {
			t.Errorf("attempts %v", s.attempts)
		}
	})
}

// poison refuses batches that hold a command for a VM named bad, or an event
// whose detail is bad.
func poison(code blixard.Code) func(context.Context, blixard.Batch) error {
	return func(_ context.Context, b blixard.Batch) error {
		for _, c := range b.Commands {
			if strings.HasPrefix(c.Target().Name, "bad") {
				return blixard.Errorf(code, "refused: %s", c.Target())
			}
		}
		for _, e := range b.Events {
			if e.Detail == "bad" {
				return blixard.Errorf(code, "refused: an event")
			}
		}
		return nil
	}
}

// TestWriter_splits: what the store refuses for good is dropped alone; all else
// is written, in order.
func TestWriter_splits(t *testing.T) {
	for _, code := range []blixard.Code{blixard.CodeInvalid, blixard.CodeTooLarge} {
		t.Run(string(code), func(t *testing.T) {
			withWriter(t, func(t *testing.T, o *outbox, s *fakeStore, w *writer) {
				s.judge(poison(code))
				var commands []blixard.Command
				var events []blixard.Event
				var want []string
				for i := range 80 {
					name, e := fmt.Sprintf("vm%d", i), event(i)
					if i == 7 || i == 66 {
						name, e.Detail = fmt.Sprintf("bad%d", i), "bad"
					} else {
						want = append(want, e.Detail)
					}
					commands = append(commands, register(name, 1), update(name, 2))
					events = append(events, e)
				}
				refused, giveUp := o.wait(id("bad7"), func(blixard.Command) bool { return true })
				defer giveUp()
				written, giveUp2 := o.wait(id("vm79"), func(blixard.Command) bool { return true })
				defer giveUp2()
				o.add(commands, events)
				synctest.Wait()
				if got, _ := details(s.events); !reflect.DeepEqual(got, want) {
					t.Errorf("events %v", got)
				}
				for i := range 80 {
					r := s.records[id(fmt.Sprintf("vm%d", i))]
					if (i == 7 || i == 66) != (r == nil) || r != nil && r.Status.MainPID != 2 {
						t.Errorf("record of VM %d: %+v", i, r)
					}
				}
				ids := map[string]bool{}
				for _, b := range s.batches {
					if ids[b.ID] {
						t.Errorf("the ID %s was used for two batches", b.ID)
					}
					ids[b.ID] = true
				}
				select {
				case r := <-written:
					if r.err != nil || r.index == 0 {
						t.Errorf("the waiter of a VM that was written got %+v", r)
					}
				default:
					t.Error("the waiter of a VM that was written was not told")
				}
				select {
				case r := <-refused:
					if blixard.ErrorCode(r.err) != code {
						t.Errorf("the waiter of a VM that was refused got %+v", r)
					}
				default:
					t.Error("the waiter of a VM that was refused was not told")
				}
				if c, e := o.waiting(); c+e != 0 {
					t.Errorf("%d and %d still wait", c, e)
				}
				// A write that is refused says nothing of the next one.
				if reason, _, _ := w.status(); reason != "" {
					t.Errorf("the store takes writes, but: %q", reason)
				}
			})
		})
	}
}

// TestWriter_refusesAlone: the only write is refused.
func TestWriter_refusesAlone(t *testing.T) {
	withWriter(t, func(t *testing.T, o *outbox, s *fakeStore, w *writer) {
		s.judge(poison(blixard.CodeInvalid))
		o.add([]blixard.Command{register("bad", 1)}, nil)
		synctest.Wait()
		if reason, _, _ := w.status(); reason != "" {
			t.Errorf("the store takes writes, but: %q", reason)
		}
		if c, e := o.waiting(); c+e != 0 {
			t.Errorf("%d and %d still wait", c, e)
		}
	})
}

// TestWriter_splitWaits: as long as half of a split batch is not written, it is
// told to wait.
func TestWriter_splitWaits(t *testing.T) {
	withWriter(t, func(t *testing.T, o *outbox, s *fakeStore, w *writer) {
		away := false
		refuse := poison(blixard.CodeInvalid)
		s.judge(func(ctx context.Context, b blixard.Batch) error {
			if away {
				return blixard.Errorf(blixard.CodeUnavailable, "no leader")
			}
			if err := refuse(ctx, b); err != nil {
				return err
			}
			away = true
			return nil
		})
		o.add([]blixard.Command{register("a", 1), register("b", 1), register("bad", 1), register("d", 1)}, nil)
		synctest.Wait()
		if c, _ := o.waiting(); c != 2 {
			t.Errorf("two commands wait, but it says %d", c)
		}
		s.judge(nil)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if c, _ := o.waiting(); c != 0 || len(s.records) != 4 {
			t.Errorf("%d wait, %d records", c, len(s.records))
		}
	})
}

// TestWriter_outstanding: a writer that ends with a store that is away ends, and
// what it did not write was not acknowledged.
func TestWriter_outstanding(t *testing.T) {
	withWriter(t, func(t *testing.T, o *outbox, s *fakeStore, w *writer) {
		s.judge(func(context.Context, blixard.Batch) error { return errors.New("disk on fire") })
		written, giveUp := o.wait(id("web"), func(blixard.Command) bool { return true })
		defer giveUp()
		o.add([]blixard.Command{register("web", 1)}, nil)
		time.Sleep(time.Minute)
		select {
		case r := <-written:
			t.Errorf("acknowledged: %+v", r)
		default:
		}
	})
}
