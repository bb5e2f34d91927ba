package main

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/blixard/blixard"
)

func (a *app) vmShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "show VM",
		Short:             "Show everything known of a VM, and why something is not",
		Args:              args(1, 1, "VM"),
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			format, err := a.format("table", "wide", "json", "yaml")
			if err != nil {
				return err
			}
			ref, err := vmRef(args[0])
			if err != nil {
				return err
			}
			client, err := a.dial(nil)
			if err != nil {
				return err
			}
			defer client.Close()
			l, err := client.VM(cmd.Context(), ref)
			if err != nil {
				return err
			}
			return a.show(format, l, func(p *page) {
				for i := range l.Items {
					p.vm(&l.Items[i], time.Now())
				}
			}, l.Problems)
		},
	}
}

// show prints one thing, as a page or as the daemon's own answer.
func (a *app) show(format string, answer any, draw func(*page), problems []string) error {
	var b []byte
	var err error
	switch format {
	case "json":
		b, err = encoded(answer)
	case "yaml":
		b, err = encodedYAML(answer)
	default:
		p := &page{color: a.color()}
		draw(p)
		b = p.b.Bytes()
		defer a.warnProblems(problems)
	}
	if err != nil {
		return err
	}
	return a.print(b)
}

// page is a readable page of one thing.
type page struct {
	b     bytes.Buffer
	color bool
	// why are the reasons of absent fields, by JSON name.
	why map[string]string
}

// labelWidth is the width of the labels of a page.
const labelWidth = 16

// row writes a label and a value; an absent one with the reason under key.
func (p *page) row(label, key string, v value, more ...string) {
	fmt.Fprintf(&p.b, "%-*s", labelWidth, label)
	if v.here {
		paint(&p.b, safe(v.text), v.tone, p.color)
		for _, m := range more {
			p.b.WriteString(safe(m))
		}
	} else {
		p.b.WriteByte('-')
	}
	if reason := p.why[key]; reason != "" {
		p.b.WriteString("  (" + safe(reason) + ")")
	}
	p.b.WriteByte('\n')
}

func (p *page) section(title string) { p.b.WriteString("\n" + title + "\n") }

// table writes rows in columns, indented.
func (p *page) table(t *table) {
	for line := range bytes.Lines(t.bytes(p.color)) {
		p.b.WriteString("  ")
		p.b.Write(line)
	}
}

func ago(now time.Time, t *time.Time) string {
	if t == nil || t.IsZero() {
		return ""
	}
	return fmt.Sprintf(", since %s (%s)", clock(*t), span(now.Sub(*t)))
}

func (p *page) vm(v *blixard.VM, now time.Time) {
	p.why = v.Unavailable
	p.row("VM", "", text(v.Name))
	p.row("Node", "", text(v.Node))
	p.row("Address", "", text(v.ID))
	p.row("Health", "health", vmHealth(v))
	sub := v.Substate
	if sub == string(v.State) {
		sub = ""
	}
	p.row("State", "state", vmState(v), parens(sub), ago(now, v.Since))
	seen := ageOf(v.AgeSeconds)
	if seen.here {
		seen.text += " ago"
	} else if v.LastSeen != nil {
		seen = moment(v.LastSeen)
		seen.text += ", not since the monitor started"
	}
	p.row("Confirmed", "age_seconds", seen)
	p.row("Guest ready", "ready", yesNo(v.Ready))
	if v.RemovedAt != nil {
		p.row("Removed", "", moment(v.RemovedAt))
	}

	p.section("Service")
	p.row("Unit", "unit", text(v.Unit))
	p.row("Manager", "", text(v.Manager))
	p.row("Main process", "main_pid", nonzero(v.MainPID))
	p.row("Restarts", "restarts", restarts(v))
	p.row("Last end", "result", ending(v))
	p.row("Invocation", "invocation_id", text(v.InvocationID))
	p.row("Control group", "control_group", text(v.ControlGroup))

	p.section("Definition")
	p.row("Configuration", "config", vmConfig(v))
	if v.Config == blixard.ConfigStale {
		fmt.Fprintf(&p.b, "%-*s%s\n", labelWidth, "", "a restart takes up the current one: systemctl restart "+safe(v.Unit))
	}
	p.row("Hypervisor", "hypervisor", text(v.Hypervisor))
	p.row("Guest host name", "host_name", text(v.HostName))
	p.row("Provenance", "provenance", text(string(v.Provenance)))
	if v.Orphan {
		p.row("Orphan", "orphan", text("yes: the host's files no longer define this VM").in(warn))
	}
	p.row("Vsock CID", "vsock_cid", nonzero(v.VsockCID))

	if v.Health != nil && len(v.Health.Checks) > 0 {
		p.section("Checks")
		t := newTable("CHECK", "STATUS", "SINCE", "MESSAGE")
		for _, c := range v.Health.Checks {
			t.add([]value{text(c.Name), healthOf(c.Status), moment(&c.Since), text(c.Message)})
		}
		p.table(t)
	}
	if len(v.Helpers) > 0 {
		p.section("Helpers")
		t := newTable("HELPER", "STATE", "SUBSTATE", "UNIT")
		for _, h := range v.Helpers {
			t.add([]value{text(h.Name), vmState(&blixard.VM{VMStatus: blixard.VMStatus{State: h.State}}), text(h.Substate), text(h.Unit)})
		}
		p.table(t)
	}
}

func parens(s string) string {
	if s == "" {
		return ""
	}
	return " (" + s + ")"
}

func yesNo(b *bool) value {
	switch {
	case b == nil:
		return value{}
	case *b:
		return text("yes").in(good)
	default:
		return text("no").in(warn)
	}
}

// restarts are the automatic ones, since the start by hand and of the last hour.
func restarts(v *blixard.VM) value {
	var parts []string
	if v.Restarts != nil {
		parts = append(parts, fmt.Sprintf("%d since it was last started by hand", *v.Restarts))
	}
	if v.RestartsLastHour != nil {
		parts = append(parts, fmt.Sprintf("%d seen in the last hour", *v.RestartsLastHour))
	}
	return text(strings.Join(parts, ", "))
}

// ending is how the last run ended.
func ending(v *blixard.VM) value {
	s := v.Result
	if v.ExitCode != nil {
		s += fmt.Sprintf(", status %d", *v.ExitCode)
	}
	if v.ExitSignal != "" {
		s += ", " + v.ExitSignal
	}
	if v.Intended {
		s += ", asked for"
	}
	return text(strings.TrimPrefix(s, ", "))
}
