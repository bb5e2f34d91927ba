package main

import (
	"context"
	"fmt"
	"time"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/lab"
)

// startRecords is how many records the store holds when the daemon's start is
// measured.
const startRecords = 10000

// measureStart measures the daemon's start with a full store, on a host of its
// own: with the folders of all VMs there, and with all of them gone, so that the
// store alone knows of them.
func measureStart(ctx context.Context, b *bench) ([]result, error) {
	s, err := newSite(ctx, b.lab, "records", b.programs, b.log)
	if err != nil {
		return nil, err
	}
	defer s.close()
	model := lab.VM{Name: "model"}
	if err := s.AddVM(ctx, model); err != nil {
		return nil, err
	}
	current, err := s.Exec(ctx, "readlink", s.StateDir(model.Name)+"/current")
	if err != nil {
		return nil, err
	}
	for i := 1; i < startRecords; i++ {
		dir := s.StateDir(fmt.Sprintf("vm-%d", i))
		if err := s.Mkdir(dir, 0o755); err != nil {
			return nil, err
		}
		if err := s.Symlink(current[:len(current)-1], dir+"/current"); err != nil {
			return nil, err
		}
	}
	filled := time.Now()
	if err := s.writeInterval(shippedInterval); err != nil {
		return nil, err
	}
	if err := s.systemctl(ctx, "start", daemonUnit); err != nil {
		return nil, err
	}
	if err := s.recorded(ctx); err != nil {
		return nil, err
	}
	fmt.Fprintf(b.log, "%d records made in %.1f s\n", startRecords, time.Since(filled).Seconds())

	// The median of each kind, of which the slower counts.
	var slower time.Duration
	const starts = 3
	for _, folders := range []bool{true, false} {
		var took []time.Duration
		for range starts {
			if err := s.systemctl(ctx, "stop", daemonUnit); err != nil {
				return nil, err
			}
			if !folders {
				if err := s.Remove(s.StateDir("")); err != nil {
					return nil, err
				}
				if err := s.Mkdir(s.StateDir(""), 0o775); err != nil {
					return nil, err
				}
			}
			ready, listed, err := s.timeStart(ctx)
			if err != nil {
				return nil, err
			}
			took = append(took, listed)
			where := "with their folders"
			if !folders {
				where = "known to the store alone"
			}
			fmt.Fprintf(b.log, "start with %d records %s: ready after %s, listed whole after %s\n",
				startRecords, where, ready.Round(time.Millisecond), listed.Round(time.Millisecond))
		}
		slower = max(slower, median(took))
	}
	return []result{{name: "start_10000_records", value: slower.Seconds(), goal: atMost(3), unit: "s", digits: 2}}, s.Stop(ctx)
}

// recorded waits until the store holds all records.
func (s *site) recorded(ctx context.Context) error {
	return s.await(ctx, fmt.Sprintf("%d records", startRecords), func() (bool, error) {
		m, err := s.scrape(ctx)
		if err != nil {
			return false, err
		}
		return m.value("blixard_vms") == startRecords && m.value("blixard_store_commands_total") >= startRecords &&
			m.value("blixard_store_pending_commands") == 0 && m.value("blixard_store_buffered_events") == 0, nil
	})
}

// timeStart starts the daemon and tells after what time it said READY, and after
// what time it had told all VMs and had no problem to tell with them.
func (s *site) timeStart(ctx context.Context) (ready, listed time.Duration, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	start := time.Now()
	if err := s.systemctl(ctx, "start", daemonUnit); err != nil {
		return 0, 0, err
	}
	ready = time.Since(start)
	// The stream tells of VMs as they come, at no cost to the daemon while none
	// do; the list then says whether it is whole.
	seen := map[string]bool{}
	for f, err := range s.client.WatchVMs(ctx) {
		if err != nil {
			return 0, 0, fmt.Errorf("watch VMs: %w", err)
		}
		if f.VM != nil {
			seen[f.VM.ID] = true
		}
		if len(seen) >= startRecords {
			break
		}
	}
	err = s.await(ctx, "a whole list", func() (bool, error) {
		var l blixard.List[blixard.VM]
		if l, err = s.client.VMs(ctx); err != nil {
			return false, err
		}
		return len(l.Items) == startRecords && len(l.Problems) == 0, nil
	})
	return ready, time.Since(start), err
}
