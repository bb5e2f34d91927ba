package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/blixard/blixard"
)

const (
	// statusEvery is how often systemd is told the status, if it changed.
	statusEvery = 5 * time.Second
	// stuckAfter is the silence of a loop after which it counts as stuck. A
	// loop says every 5 s that it waits; while it works, each of its calls has
	// a deadline of its own.
	stuckAfter = 45 * time.Second
)

// tell tells systemd that the daemon is ready, how it does, and that it moves:
// the watchdog is fed only while every loop does.
func (d *daemon) tell(ctx context.Context) error {
	first := make(chan struct{})
	go func() {
		defer close(first)
		d.awaitFirst(ctx)
	}()
	defer func() { <-first }()
	ready := first
	feed := d.notify.WatchdogInterval() / 3
	if feed <= 0 {
		feed = statusEvery
	}
	watchdog := time.NewTicker(feed)
	defer watchdog.Stop()
	status := time.NewTicker(statusEvery)
	defer status.Stop()
	var told string
	say := func() {
		if s := d.status(); s != told {
			d.told(d.notify.Status(s))
			told = s
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ready:
			ready = nil
			d.told(d.notify.Ready())
			say()
		case <-status.C:
			say()
		case <-watchdog.C:
			if loop := d.monitor.Stuck(stuckAfter); loop != "" {
				d.log.Error("a loop does not move; the watchdog is not fed", "loop", loop)
				continue
			}
			d.told(d.notify.Watchdog())
		}
	}
}

// told logs that systemd could not be told something: it is told again soon, or
// acts on its silence.
func (d *daemon) told(err error) {
	if err != nil {
		d.log.Warn("systemd is not told", "err", err)
	}
}

// awaitFirst waits until it is known what the host runs, or why that cannot be
// known now: then there is something true to serve.
func (d *daemon) awaitFirst(ctx context.Context) {
	for {
		view := d.monitor.View()
		if m, ok := view.Managers[blixard.SystemManager]; ok && (!m.Listed.IsZero() || m.Reason != "") {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-view.Changed():
		}
	}
}

// counted says how many VMs there are.
func counted(all, running int) string {
	if all == 1 {
		return fmt.Sprintf("1 VM, %d running", running)
	}
	return fmt.Sprintf("%d VMs, %d running", all, running)
}

// status is the daemon's in one line.
func (d *daemon) status() string {
	view := d.monitor.View()
	running := 0
	for i := range view.Entries {
		if view.Entries[i].VM.State == blixard.StateRunning {
			running++
		}
	}
	parts := []string{counted(len(view.Entries), running)}
	if m, ok := view.Managers[blixard.SystemManager]; !ok || !m.Lost.IsZero() {
		parts = append(parts, "systemd not reached: "+m.Reason)
	}
	if s := d.monitor.Status(); s.StoreFailing != "" {
		parts = append(parts, fmt.Sprintf("store away, %d commands and %d events wait", s.Commands, s.Events))
	}
	return strings.Join(parts, "; ")
}
