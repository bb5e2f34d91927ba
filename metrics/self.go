package metrics

import (
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/blixard/blixard"
)

// Self counts what the daemon does. Its methods do not block and may be called
// from many goroutines.
type Self struct {
	registry *prometheus.Registry

	calls, callErrors       *prometheus.CounterVec
	collects                *prometheus.HistogramVec
	collectErrors           *prometheus.CounterVec
	collected               *prometheus.GaugeVec
	commits                 prometheus.Histogram
	commitErrors, committed *prometheus.CounterVec
	commands                prometheus.Counter
}

// Names of sources in the label "source".
const (
	sourceSystem = "system"
	sourceUser   = "user"
	sourceFiles  = "files"
)

// NewSelf makes the counters of a daemon of that version, each at zero, beside
// those of its process and of the Go runtime.
func NewSelf(version, commit string) *Self {
	registry := prometheus.NewRegistry()
	counters := func(name, help, label string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
		registry.MustRegister(v)
		return v
	}
	s := &Self{
		registry:   registry,
		calls:      counters("blixard_dbus_calls_total", "Calls to service managers.", "method"),
		callErrors: counters("blixard_dbus_call_errors_total", "Calls to service managers that failed.", "method"),
		collects: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "blixard_collect_duration_seconds", Help: "Time that a complete listing of units, or reading of files, took.",
			Buckets: []float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 5, 30},
		}, []string{"source"}),
		collectErrors: counters("blixard_collect_errors_total", "Listings and readings that failed or were incomplete.", "source"),
		collected: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "blixard_collect_last_timestamp_seconds", Help: "When a listing or reading was last complete.",
		}, []string{"source"}),
		commits: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "blixard_store_commit_duration_seconds", Help: "Time that an acknowledged write to the store took.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5, 10},
		}),
		commitErrors: counters("blixard_store_commit_errors_total", "Attempts to write to the store that failed.", "code"),
		committed:    counters("blixard_events_total", "Events that the store acknowledged.", "type"),
		commands: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "blixard_store_commands_total", Help: "Commands that the store acknowledged.",
		}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "blixard_build_info", Help: "What the daemon was built from; always 1.",
		ConstLabels: prometheus.Labels{"version": version, "commit": commit, "go_version": runtime.Version()},
	})
	build.Set(1)
	registry.MustRegister(build, s.collects, s.collected, s.commits, s.commands, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	// So that the first failure is an increase, not a new series.
	for _, source := range []string{sourceSystem, sourceFiles} {
		s.collectErrors.WithLabelValues(source)
	}
	for _, code := range []blixard.Code{blixard.CodeUnavailable, blixard.CodeTimeout} {
		s.commitErrors.WithLabelValues(string(code))
	}
	return s
}

// BusCall counts a call to a service manager. method must come from a small
// fixed set.
func (s *Self) BusCall(method string, err error) {
	s.calls.WithLabelValues(method).Inc()
	if err != nil {
		s.callErrors.WithLabelValues(method).Inc()
	}
}

// Listed counts a complete listing of a manager's units. All users' managers
// count as one.
func (s *Self) Listed(manager string, took time.Duration, err error) {
	source := sourceSystem
	if strings.HasPrefix(manager, "user:") {
		source = sourceUser
	}
	s.collect(source, took, err == nil)
}

// Scanned counts a reading of the host's files.
func (s *Self) Scanned(took time.Duration, complete bool) { s.collect(sourceFiles, took, complete) }

func (s *Self) collect(source string, took time.Duration, complete bool) {
	s.collects.WithLabelValues(source).Observe(took.Seconds())
	if complete {
		s.collected.WithLabelValues(source).SetToCurrentTime()
	} else {
		s.collectErrors.WithLabelValues(source).Inc()
	}
}

// Wrote counts an attempt to write a batch to the store.
func (s *Self) Wrote(b *blixard.Batch, took time.Duration, err error) {
	if err != nil {
		s.commitErrors.WithLabelValues(string(blixard.ErrorCode(err))).Inc()
		return
	}
	s.commits.Observe(took.Seconds())
	s.commands.Add(float64(len(b.Commands)))
	for i := range b.Events {
		s.committed.WithLabelValues(string(b.Events[i].Type)).Inc()
	}
}
