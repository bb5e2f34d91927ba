package main

import (
	"cmp"
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/api"
)

// followTail is how many events -f shows of the past unless it is told more.
const followTail = 10

// eventFlags select events.
type eventFlags struct {
	listFlags
	follow bool
	since  string
	from   string
	lines  int
}

func (f *eventFlags) register(cmd *cobra.Command) {
	f.listFlags.register(cmd, eventNoun().keys())
	cmd.Flags().BoolVarP(&f.follow, "follow", "f", false, "go on with the events as they happen")
	cmd.Flags().StringVar(&f.since, "since", "", "events of the last `duration`, such as 15m, 2h or 3d")
	cmd.Flags().StringVar(&f.from, "from-index", "", "events after the one with that `index`, 0 for all that are kept")
	cmd.Flags().IntVarP(&f.lines, "lines", "n", 0, "the last `n` of them (default all; with -f alone the last "+strconv.Itoa(followTail)+")")
}

const eventsLong = `

INDEX (-o wide) orders the events and only grows; --from-index resumes after it.
With --follow the command goes on where it was when the daemon comes back after
a restart, and marks a gap where events are no longer kept. In JSON each event is
then one object a line, {"event":…,"index":…}.`

func (a *app) eventsCommand() *cobra.Command {
	var flags eventFlags
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what happened, oldest first",
		Long:  "Show what happened on every node, oldest first." + eventsLong,
		Example: `  blixard events --since 1h
  blixard events -f --filter type=state --filter to=failed`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.events(cmd.Context(), blixard.VMRef{}, &flags)
		},
	}
	flags.register(cmd)
	return cmd
}

// eventNoun is what lists know of events.
func eventNoun() *noun[blixard.Event] {
	return &noun[blixard.Event]{
		fields: []field[blixard.Event]{
			{"index", "INDEX", func(e *blixard.Event) value { return number(e.Index) }},
			{"observed_at", "TIME", func(e *blixard.Event) value { return moment(&e.ObservedAt) }},
			{"committed_at", "COMMITTED", func(e *blixard.Event) value { return moment(&e.CommittedAt) }},
			{"node", "NODE", func(e *blixard.Event) value { return text(e.Node) }},
			{"vm", "VM", eventVM},
			{"manager", "MANAGER", func(e *blixard.Event) value { return text(e.Manager) }},
			{"type", "EVENT", func(e *blixard.Event) value { return text(string(e.Type)) }},
			{"change", "CHANGE", eventChange},
			{"from", "FROM", func(e *blixard.Event) value { return text(e.From) }},
			{"to", "TO", func(e *blixard.Event) value { return text(e.To) }},
			{"count", "COUNT", func(e *blixard.Event) value { return nonzero(int64(e.Count)) }},
			{"detail", "DETAIL", func(e *blixard.Event) value { return text(e.Detail) }},
			{"result", "RESULT", func(e *blixard.Event) value { return text(e.Result) }},
			{"exit_code", "EXIT", func(e *blixard.Event) value { return numberAt(e.ExitCode) }},
			{"exit_signal", "SIGNAL", func(e *blixard.Event) value { return text(e.ExitSignal) }},
			{"invocation_id", "INVOCATION", func(e *blixard.Event) value { return text(e.InvocationID) }},
		},
		table: []string{"observed_at", "node", "vm", "type", "change", "detail"},
		wide:  []string{"index", "observed_at", "committed_at", "node", "vm", "type", "change", "result", "exit_code", "exit_signal", "detail"},
		id:    func(e *blixard.Event) string { return strconv.FormatUint(e.Index, 10) },
		order: func(a, b *blixard.Event) int { return cmp.Compare(a.Index, b.Index) },
	}
}

func eventVM(e *blixard.Event) value {
	out := text(e.VM)
	if e.VM != "" && e.Manager != "" && e.Manager != blixard.SystemManager {
		out.text = e.Manager + "/" + e.VM
	}
	return out
}

func eventChange(e *blixard.Event) value {
	out := text(e.To)
	if e.From != "" {
		out = text(e.From + " -> " + e.To)
	}
	switch e.To {
	case string(blixard.StateFailed), string(blixard.StateCrashlooping), string(blixard.Critical):
		out.tone = bad
	case string(blixard.Degraded), string(blixard.ConfigStale):
		out.tone = warn
	case string(blixard.StateRunning), string(blixard.Healthy):
		out.tone = good
	case string(blixard.StateUnknown):
		out.tone = odd
	}
	return out
}

// events lists events, and follows them when asked to.
func (a *app) events(ctx context.Context, vm blixard.VMRef, flags *eventFlags) error {
	v, err := newView(a, eventNoun(), &flags.listFlags)
	if err != nil {
		return err
	}
	q := blixard.EventQuery{VM: vm}
	switch {
	case flags.lines < 0 || flags.lines > blixard.MaxEvents:
		return usagef("--lines %d: want 0 to %d", flags.lines, blixard.MaxEvents)
	case flags.follow && flags.sort != "":
		return usagef("--sort does not go with --follow: events come as they happen")
	case flags.follow && (v.format == "yaml" || v.format == "csv" || v.format == "name"):
		return usagef("--follow does not go with -o %s", v.format).WithHint("it goes with table, wide and json")
	}
	if flags.from != "" {
		if q.After, err = strconv.ParseUint(flags.from, 10, 64); err != nil {
			return usagef("--from-index %q: want an index, as -o wide shows them", flags.from)
		}
	}
	var after time.Time
	if flags.since != "" {
		d, err := parseSince(flags.since)
		if err != nil {
			return err
		}
		after = time.Now().Add(-d)
	}
	// A limit of the daemon's counts events before the filters here see them.
	tail := flags.lines
	if flags.follow && tail == 0 && flags.since == "" && flags.from == "" {
		tail = followTail
	}
	if after.IsZero() && len(v.filters) == 0 {
		q.Limit = tail
	}
	client, err := a.dial(a.streamNews)
	if err != nil {
		return err
	}
	defer client.Close()
	l, err := client.Events(ctx, q)
	if err != nil {
		return err
	}
	l.Items = v.choose(newer(l.Items, after))
	if tail > 0 && len(l.Items) > tail {
		l.Items = l.Items[len(l.Items)-tail:]
	}
	if !flags.follow {
		return printList(a, v, l)
	}
	a.warnProblems(l.Problems)
	q.Limit, q.After = 0, l.Index
	return a.followEvents(ctx, client, v, l.Items, q)
}

// newer are the events observed after a time.
func newer(items []blixard.Event, after time.Time) []blixard.Event {
	var out []blixard.Event
	for _, e := range items {
		if !e.ObservedAt.Before(after) {
			out = append(out, e)
		}
	}
	return out
}

// parseSince reads a duration, also in days.
func parseSince(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, usagef("--since %q: want a duration such as 15m, 2h or 3d", s)
	}
	return d, nil
}

// followEvents prints the events there are and then each as it happens.
func (a *app) followEvents(ctx context.Context, client *api.Client, v *view[blixard.Event], first []blixard.Event, q blixard.EventQuery) error {
	t := v.newTable()
	for i, c := range v.columns {
		// What is to come is not known: room for the usual keeps columns straight.
		t.width[i] = max(t.width[i], map[string]int{"vm": 12, "type": len(blixard.EventManagerReturned), "change": 20}[c.key])
	}
	for i := range first {
		if v.format == "json" {
			if err := a.printJSON(blixard.EventFrame{Event: &first[i], Index: first[i].Index}); err != nil {
				return err
			}
			continue
		}
		t.add(v.row(&first[i]))
	}
	if v.format != "json" {
		if err := a.print(t.bytes(v.color)); err != nil {
			return err
		}
	}
	for frame, err := range client.FollowEvents(ctx, q) {
		if err != nil {
			return err
		}
		if frame.Event != nil && !keep(frame.Event, v.filters) {
			frame.Event = nil
		}
		switch {
		case v.format == "json":
			err = a.printJSON(frame)
		case frame.Gap:
			err = a.print([]byte("--- events between these are no longer kept ---\n"))
		}
		if err == nil && frame.Event != nil && v.format != "json" {
			err = a.print(t.next(v.row(frame.Event), v.color))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (a *app) printJSON(v any) error {
	b, err := encoded(v)
	if err != nil {
		return err
	}
	return a.print(b)
}
