package main

import (
	"context"
	"fmt"
	"io"
	"time"
)

const (
	// cycleInterval is the interval while cycles are measured: the shortest, so
	// that what the processes use between cycles weighs little.
	cycleInterval = time.Second
	// cycleWindow is how long cycles are watched in one round.
	cycleWindow = 10 * time.Second
	// scrapesARound are the scrapes of the daemon in one round.
	scrapesARound = 5
	// tail is how long what was asked for may work after the answer.
	tail = 50 * time.Millisecond
)

// cycles measures what one cycle costs: the listing of all units, the reading
// of the state directory and what follows from them. The interval must be
// cycleInterval.
func (s *site) cycles(ctx context.Context) (each time.Duration, spent cpu, n uint64, err error) {
	before, err := s.scrape(ctx)
	if err != nil {
		return 0, spent, 0, err
	}
	if spent, err = s.spend(ctx, cycleWindow); err != nil {
		return 0, spent, 0, err
	}
	after, err := s.scrape(ctx)
	if err != nil {
		return 0, spent, 0, err
	}
	n = after.listings() - before.listings()
	if readings := after.readings() - before.readings(); n == 0 || max(n, readings)-min(n, readings) > 1 {
		return 0, spent, n, fmt.Errorf("measure cycles: %d listings and %d readings of files in %s", n, readings, cycleWindow)
	}
	return spent.total() / time.Duration(n), spent, n, nil
}

// spend is the CPU time that passes while time does.
func (s *site) spend(ctx context.Context, d time.Duration) (cpu, error) {
	before, err := s.procs.cpu()
	if err != nil {
		return cpu{}, err
	}
	if err := rest(ctx, d); err != nil {
		return cpu{}, err
	}
	after, err := s.procs.cpu()
	return after.minus(before), err
}

// renders measures what one scrape of the daemon costs. Nothing else may go on.
func (s *site) renders(ctx context.Context) (each time.Duration, bytes int64, err error) {
	before, err := s.procs.cpu()
	if err != nil {
		return 0, 0, err
	}
	for range scrapesARound {
		if bytes, err = s.fetch(ctx, io.Discard); err != nil {
			return 0, 0, err
		}
	}
	if err := rest(ctx, tail); err != nil {
		return 0, 0, err
	}
	after, err := s.procs.cpu()
	return after.minus(before).total() / scrapesARound, bytes, err
}

// measurePeer compares a cycle and a scrape with a scrape of node_exporter, in
// alternating rounds.
func measurePeer(ctx context.Context, b *bench) ([]result, error) {
	const rounds = 5
	r := result{name: "list_state_render_vs_node_exporter", goal: atLeast(10), unit: "x", digits: 1}
	program, err := findExporter(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		r.absent = "node_exporter cannot be had: " + err.Error()
		return []result{r}, nil
	}
	s, err := b.crowd(ctx, b.n)
	if err != nil {
		return nil, err
	}
	peer, err := installExporter(ctx, s, program)
	if err != nil {
		return nil, err
	}
	var own, cycle, render, plain, full []time.Duration
	for round := range rounds {
		if err := s.setInterval(ctx, cycleInterval, 3); err != nil {
			return nil, err
		}
		c, spent, n, err := s.cycles(ctx)
		if err != nil {
			return nil, err
		}
		if err := s.setInterval(ctx, quietInterval, 1); err != nil {
			return nil, err
		}
		d, bytes, err := s.renders(ctx)
		if err != nil {
			return nil, err
		}
		if err := peer.start(ctx, exporterFlags()); err != nil {
			return nil, err
		}
		p, units, err := peer.both(ctx)
		if err != nil {
			return nil, err
		}
		if want := 6 * len(s.vms); units != want {
			return nil, fmt.Errorf("node_exporter tells of %d active units, want %d", units, want)
		}
		if err := peer.start(ctx, append(exporterFlags(), exporterMore()...)); err != nil {
			return nil, err
		}
		f, _, err := peer.both(ctx)
		if err != nil {
			return nil, err
		}
		if err := peer.stop(ctx); err != nil {
			return nil, err
		}
		own, cycle, render = append(own, c+d), append(cycle, c), append(render, d)
		plain, full = append(plain, p), append(full, f)
		fmt.Fprintf(b.log, "round %d of %d: cycle %s (%d cycles: %s), scrape %s (%d bytes); node_exporter %s for %d units, %s with restarts and start times\n",
			round+1, rounds, c, n, spent, d, bytes, p, units, f)
	}
	ours := median(own)
	r.value = float64(median(plain)) / float64(ours)
	fmt.Fprintf(b.log, "medians at %d VMs: cycle %s, scrape %s, both %s; node_exporter %s; with restarts and start times, as ours tells them, %s: %.1fx\n",
		len(s.vms), median(cycle), median(render), ours, median(plain), median(full), float64(median(full))/float64(ours))
	return []result{r}, nil
}

// both scrapes twice and tells the second time: the first fills caches.
func (e *exporter) both(ctx context.Context) (time.Duration, int, error) {
	if _, _, err := e.scrape(ctx); err != nil {
		return 0, 0, err
	}
	return e.scrape(ctx)
}

// manyRounds are the windows of cycles that the cost per VM is the median of.
const manyRounds = 5

// perVM is the cost of a cycle for each VM.
func (b *bench) perVM(ctx context.Context, n int) (time.Duration, error) {
	s, err := b.crowd(ctx, n)
	if err != nil {
		return 0, err
	}
	if err := s.setInterval(ctx, cycleInterval, 3); err != nil {
		return 0, err
	}
	var costs []time.Duration
	for range manyRounds {
		each, spent, count, err := s.cycles(ctx)
		if err != nil {
			return 0, err
		}
		costs = append(costs, each)
		fmt.Fprintf(b.log, "%d VMs: a cycle costs %s (%d cycles: %s)\n", n, each, count, spent)
	}
	if err := s.setInterval(ctx, quietInterval, 1); err != nil {
		return 0, err
	}
	return median(costs) / time.Duration(n), nil
}

// measureFew measures the cost of a cycle with the smaller crowd, for
// measureMany.
func measureFew(ctx context.Context, b *bench) ([]result, error) {
	var err error
	b.fewPerVM, err = b.perVM(ctx, b.n)
	return nil, err
}

// measureMany compares the cost of a cycle for each VM with few VMs and many.
func measureMany(ctx context.Context, b *bench) ([]result, error) {
	many, err := b.perVM(ctx, manyTimes*b.n)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(b.log, "a cycle costs %s a VM with %d, %s with %d\n", b.fewPerVM, b.n, many, manyTimes*b.n)
	return []result{{name: "cost_per_vm_4000_over_1000", value: float64(many) / float64(b.fewPerVM), goal: atMost(1.25), digits: 2}}, nil
}
