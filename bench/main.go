// Command bench measures what the project promises in figures: how much of a
// host the daemon takes, how soon it knows, and what it costs beside others.
//
// Each figure is one line on standard output,
//
//	name value goal ok|short|absent
//
// and what it was made of is on standard error: the machine, each peer's version
// and flags, counts, and raw numbers. The exit code is 0 if no figure is short,
// 1 if one is, and 2 for an error in the arguments. A figure is absent only
// where a peer's program cannot be had, and short also where it could not be
// measured.
//
//	go run ./bench [-run REGEXP] [-n N] [-programs DIR]
//
// The fixture is a lab host with real systemd, N microVMs with their five
// helpers each, and the daemon under the unit that ships: unprivileged, on the
// system bus. The VMMs are stand-ins. It needs root and takes a quarter of an
// hour; other load on the machine makes latencies worse, while the ratios of CPU
// time, taken in alternating rounds, stand.
//
// CPU time is read from the clocks of the processes themselves, to the
// nanosecond: the monitor, systemd and dbus-daemon together. The store's member
// is told apart.
//
// Nothing here runs concurrently but what waits for an answer.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/blixard/blixard/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// manyTimes is how many times the smaller crowd the larger one is.
const manyTimes = 4

// bench is one run.
type bench struct {
	// n is the size of the smaller crowd.
	n        int
	log      io.Writer
	lab      *lab.Lab
	programs string
	// host has the crowd; nil until a figure wants it.
	host *site
	// fewPerVM is the cost of a cycle for each VM of the smaller crowd.
	fewPerVM time.Duration
}

// step measures one figure or several together.
type step struct {
	figures []string
	measure func(context.Context, *bench) ([]result, error)
}

// steps are all, in order: the crowd only grows, and what disturbs comes last.
func steps() []step {
	return []step{
		{[]string{"start_10000_records"}, measureStart},
		{[]string{"scrape_dbus_calls", "scrape_p99", "scrape_garbage"}, measureScrape},
		{[]string{"list_state_render_vs_node_exporter"}, measurePeer},
		{[]string{"cost_per_vm_4000_over_1000"}, measureFew},
		{[]string{"rss_monitor"}, measureRSS},
		{[]string{"idle_cpu", "member_idle_cpu", "member_rss"}, measureIdle},
		{[]string{"kill_to_watcher_p50"}, measureKill},
		{[]string{"storm_1000_equal"}, measureStorm},
		{[]string{"cost_per_vm_4000_over_1000"}, measureMany},
		{[]string{"rss_monitor_4000"}, measureManyRSS},
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	pattern := flags.String("run", "", "measure only figures whose name matches `REGEXP`")
	programs := flags.String("programs", "", "measure the programs in `DIR`, such as ones made for a profile, instead of building them")
	n := flags.Int("n", 1000, "how many VMs the smaller crowd has; the larger one has four times as many")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	wanted, err := regexp.Compile(*pattern)
	if err != nil || flags.NArg() > 0 || *n < 1 {
		fmt.Fprintf(stderr, "bench: want -run REGEXP and -n 1 or more, and no more arguments (%v)\n", err)
		return 2
	}
	todo := slices.DeleteFunc(steps(), func(s step) bool { return !slices.ContainsFunc(s.figures, wanted.MatchString) })
	if len(todo) == 0 {
		fmt.Fprintf(stderr, "bench: no figure matches %q\n", *pattern)
		return 2
	}
	b := &bench{n: *n, log: stderr, programs: *programs}
	short, err := b.measure(ctx, todo, wanted, stdout)
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	if short {
		return 1
	}
	return 0
}

// measure measures and prints; short tells whether a figure is.
func (b *bench) measure(ctx context.Context, todo []step, wanted *regexp.Regexp, stdout io.Writer) (short bool, err error) {
	if err := lab.Check(); err != nil {
		return false, err
	}
	fmt.Fprintf(b.log, "# %s, %d CPUs, %d VMs\n", runtime.Version(), runtime.NumCPU(), b.n)
	if b.lab, err = lab.Open(ctx, lab.Config{Progress: b.log}); err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, b.lab.Close()) }()
	if b.programs == "" {
		b.programs = b.lab.Dir() + "/programs"
		if err := lab.BuildBlixard(ctx, b.programs); err != nil {
			return false, err
		}
	}
	defer func() {
		if b.host != nil {
			b.host.close()
		}
	}()
	for _, s := range todo {
		start := time.Now()
		results, err := s.measure(ctx, b)
		if ctx.Err() != nil {
			return short, context.Cause(ctx)
		}
		if err != nil {
			results = nil
			for _, name := range s.figures {
				results = append(results, result{name: name, failed: err})
			}
			b.explain(ctx)
		}
		for _, r := range results {
			switch {
			case r.failed != nil:
				fmt.Fprintf(b.log, "%s: not measured: %v\n", r.name, r.failed)
			case r.absent != "":
				fmt.Fprintf(b.log, "%s: %s\n", r.name, r.absent)
			}
			if wanted.MatchString(r.name) {
				fmt.Fprintln(stdout, r)
				short = short || r.verdict() == verdictShort
			}
		}
		fmt.Fprintf(b.log, "# %v took %.0f s\n", s.figures, time.Since(start).Seconds())
	}
	return short, nil
}

// explain tells what the daemon had to say when a measurement broke off.
func (b *bench) explain(ctx context.Context) {
	for _, h := range b.lab.Hosts() {
		if !h.Running() {
			continue
		}
		log, err := h.Exec(ctx, "journalctl", "-u", daemonUnit, "-n", "40", "--no-pager", "-o", "short-precise")
		fmt.Fprintf(b.log, "log of the daemon on %s (%v):\n%s", h.Name(), err, log)
	}
}

// crowd is the host with n VMs that run, all of which the daemon shows.
func (b *bench) crowd(ctx context.Context, n int) (*site, error) {
	if b.host == nil {
		s, err := newSite(ctx, b.lab, "crowd", b.programs, b.log)
		if err != nil {
			return nil, err
		}
		if err := s.describe(ctx); err != nil {
			return nil, err
		}
		// The daemon is there first: journald keeps 4096 streams and turns away
		// what is started after as many VMs and helpers.
		if err := s.startDaemon(ctx, quietInterval); err != nil {
			return nil, err
		}
		b.host = s
	}
	if err := b.host.grow(ctx, n); err != nil {
		return nil, err
	}
	return b.host, b.host.settle(ctx, len(b.host.vms))
}
