package main

import (
	"context"
	"fmt"
	"io"
	"time"
)

// measureScrape scrapes again and again between cycles.
func measureScrape(ctx context.Context, b *bench) ([]result, error) {
	const scrapes = 100
	s, err := b.crowd(ctx, b.n)
	if err != nil {
		return nil, err
	}
	if err := s.setInterval(ctx, quietInterval, 1); err != nil {
		return nil, err
	}
	before, err := s.scrape(ctx)
	if err != nil {
		return nil, err
	}
	var took []float64
	var bytes int64
	for range scrapes {
		start := time.Now()
		if bytes, err = s.fetch(ctx, io.Discard); err != nil {
			return nil, err
		}
		took = append(took, milliseconds(time.Since(start)))
	}
	after, err := s.scrape(ctx)
	if err != nil {
		return nil, err
	}
	// The scrape that tells the end counts with those before it.
	garbage := (after.value("go_memstats_alloc_bytes_total") - before.value("go_memstats_alloc_bytes_total")) / (scrapes + 1)
	fmt.Fprintf(b.log, "%d scrapes of %d bytes at %d VMs: p50 %.1f ms, p99 %.1f ms, slowest %.1f ms\n",
		scrapes, bytes, len(s.vms), median(took), quantile(took, 0.99), quantile(took, 1))
	return []result{
		{name: "scrape_dbus_calls", value: after.busCalls() - before.busCalls(), goal: atMost(0)},
		{name: "scrape_p99", value: quantile(took, 0.99), goal: atMost(50), unit: "ms", digits: 1},
		{name: "scrape_garbage", value: garbage / 1e6, goal: atMost(10), unit: "MB", digits: 2},
	}, nil
}

// rssBound is the monitor's bound in bytes: 40 MB and 32 KiB a VM.
func rssBound(vms int) float64 { return 40e6 + float64(vms*32<<10) }

// rss is the monitor's memory as it stands after what was done before.
func (b *bench) rss(ctx context.Context, n int, name string) ([]result, error) {
	s, err := b.crowd(ctx, n)
	if err != nil {
		return nil, err
	}
	// Several cycles and scrapes, however few figures were asked for.
	if err := s.setInterval(ctx, cycleInterval, 5); err != nil {
		return nil, err
	}
	if err := s.setInterval(ctx, quietInterval, 1); err != nil {
		return nil, err
	}
	for range scrapesARound {
		if _, err := s.fetch(ctx, io.Discard); err != nil {
			return nil, err
		}
	}
	m, err := memoryOf(s.procs.monitor)
	if err != nil {
		return nil, err
	}
	p, err := s.scrape(ctx)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(b.log, "monitor with %d VMs: resident %.1f MB, of it anonymous %.1f MB, greatest ever %.1f MB; Go's heap: in use %.1f MB, free but not given back %.1f MB, next collection at %.1f MB\n",
		n, float64(m.resident)/1e6, float64(m.anonymous)/1e6, float64(m.peak)/1e6, p.value("go_memstats_heap_inuse_bytes")/1e6,
		(p.value("go_memstats_heap_idle_bytes")-p.value("go_memstats_heap_released_bytes"))/1e6, p.value("go_memstats_next_gc_bytes")/1e6)
	return []result{{name: name, value: float64(m.resident) / 1e6, goal: atMost(rssBound(n) / 1e6), unit: "MB", digits: 1}}, nil
}

func measureRSS(ctx context.Context, b *bench) ([]result, error) {
	return b.rss(ctx, b.n, "rss_monitor")
}

func measureManyRSS(ctx context.Context, b *bench) ([]result, error) {
	return b.rss(ctx, manyTimes*b.n, "rss_monitor_4000")
}
