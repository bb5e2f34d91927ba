package main

import (
	"context"
	"fmt"
	"time"
)

// measureIdle leaves the host alone for a minute.
func measureIdle(ctx context.Context, b *bench) ([]result, error) {
	const window = time.Minute
	s, err := b.crowd(ctx, b.n)
	if err != nil {
		return nil, err
	}
	if err := s.setInterval(ctx, quietInterval, 1); err != nil {
		return nil, err
	}
	if err := s.settle(ctx, len(s.vms)); err != nil {
		return nil, err
	}
	// What the last listing left to the garbage collector and to the store.
	if err := rest(ctx, 5*time.Second); err != nil {
		return nil, err
	}
	spent, err := s.spend(ctx, window)
	if err != nil {
		return nil, err
	}
	m, err := memoryOf(s.procs.member)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(b.log, "%s between cycles with %d VMs: %s\n", window, len(s.vms), spent)
	fmt.Fprintf(b.log, "member: resident %.1f MB, of it anonymous %.1f MB, greatest ever %.1f MB\n",
		float64(m.resident)/1e6, float64(m.anonymous)/1e6, float64(m.peak)/1e6)
	share := func(d time.Duration) float64 { return 100 * float64(d) / float64(window) }
	return []result{
		{name: "idle_cpu", value: share(spent.monitor), goal: atMost(0.1), unit: "%", digits: 3},
		{name: "member_idle_cpu", value: share(spent.member), goal: atMost(2), unit: "%", digits: 2},
		{name: "member_rss", value: float64(m.resident) / 1e6, goal: atMost(60), unit: "MB", digits: 1},
	}, nil
}
