package correlate

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/blixard/blixard"
)

var rewrite = flag.Bool("rewrite", false, "write what the scenarios give into their files; read the difference before you keep it")

// TestTracker_scenarios runs testdata/*.txt; testdata/README tells the language.
func TestTracker_scenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			in, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := &script{world: newWorld(), records: true}
			out := s.run(t, string(in))
			for _, f := range s.world.faults {
				t.Errorf("the store: %s", f)
			}
			if n := s.world.changedViews(); n > 0 {
				t.Errorf("%d views changed after they were handed out", n)
			}
			if *rewrite {
				if err := os.WriteFile(file, []byte(out), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// script runs one scenario.
type script struct {
	world *world
	// records says that the Tracker has its records.
	records bool
}

// run runs every step, compares what it gives with what the file says, and
// returns the file with what it gives.
func (s *script) run(t *testing.T, in string) string {
	var out strings.Builder
	lines := strings.Split(strings.TrimRight(in, "\n"), "\n")
	s.world.records()
	for i := 0; i < len(lines); i++ {
		line := lines[i]
		if line == "" || strings.HasPrefix(line, "#") {
			out.WriteString(line + "\n")
			continue
		}
		at, start := i+1, i
		for i < len(lines) && lines[i] != "----" {
			i++
		}
		if i == len(lines) {
			t.Fatalf("line %d: the step has no ----", at)
		}
		step := lines[start:i]
		var want []string
		for i++; i < len(lines) && lines[i] != ""; i++ {
			want = append(want, lines[i])
		}
		got, err := s.step(step)
		if err != nil {
			t.Fatalf("line %d: %v", at, err)
		}
		if len(got) == 0 {
			got = []string{"nothing"}
		}
		if !slices.Equal(got, want) && !*rewrite {
			t.Errorf("line %d: %s\ngot:\n  %s\nwant:\n  %s", at, step[0], strings.Join(got, "\n  "), strings.Join(want, "\n  "))
		}
		out.WriteString(strings.Join(step, "\n") + "\n----\n" + strings.Join(got, "\n") + "\n")
		if i < len(lines) {
			out.WriteString("\n")
		}
	}
	return out.String()
}

// step runs one step and returns what it gave, a line each.
func (s *script) step(lines []string) ([]string, error) {
	w := s.world
	verb, rest, _ := strings.Cut(lines[0], " ")
	manager := blixard.SystemManager
	if rest != "" {
		manager = rest
	}
	body := lines[1:]
	if verb != "view" && verb != "events" {
		w.commands, w.events = nil, nil
	}
	switch verb {
	case "policy":
		return nil, s.policy(strings.Fields(rest))
	case "list", "unit", "set":
		refs, jobs, err := s.units(manager, body)
		switch {
		case err != nil:
			return nil, err
		case verb == "list":
			w.list(manager)
		case verb == "unit":
			w.hintJobs(manager, jobs, refs...)
		default:
			return nil, nil
		}
	case "files":
		for _, l := range body {
			f := strings.Fields(l)
			if len(f) == 2 && f[1] == "gone" {
				delete(w.files, f[0])
				continue
			}
			d, err := definition(f[1:])
			if err != nil {
				return nil, err
			}
			w.files[f[0]] = d
		}
		if rest == "" {
			w.readFiles()
			break
		}
		w.t.SetDefinitions(w.now, nil, false, rest)
		w.settle()
	case "file":
		f := strings.Fields(rest)
		d, err := definition(f[1:])
		if err != nil {
			return nil, err
		}
		w.files[f[0]] = d
		w.t.SetDefinition(w.now, f[0], d)
		w.settle()
	case "files-hang":
		w.t.FilesUnknown(rest)
		w.settle()
	case "lost":
		name, reason, _ := strings.Cut(rest, " ")
		w.t.Lost(w.now, name, reason, "")
		w.settle()
	case "sighted":
		name, reason, _ := strings.Cut(rest, " ")
		w.t.Sighted(w.now, name, body, reason)
		w.settle()
	case "tick":
		d, err := time.ParseDuration(rest)
		if err != nil {
			return nil, err
		}
		w.tick(d)
	case "restart-monitor":
		w.restartTracker()
	case "records":
		w.records()
	case "remove", "adopt":
		ref, err := blixard.ParseVMRef(rest)
		if err != nil {
			return nil, err
		}
		if ref.Manager == "" {
			ref.Manager = blixard.SystemManager
		}
		id := blixard.VMID{Node: w.cfg.Node, Manager: ref.Manager, Name: ref.Name}
		do := w.t.Remove
		if verb == "adopt" {
			do = w.t.Adopt
		}
		if !do(w.now, id) {
			return []string{"refused"}, nil
		}
		w.settle()
	case "view":
		return s.show(), nil
	default:
		return nil, fmt.Errorf("no such step: %s", verb)
	}
	return s.gave(), nil
}

func (s *script) policy(fields []string) (err error) {
	cfg := &s.world.cfg
	for _, f := range fields {
		k, v, _ := strings.Cut(f, "=")
		switch k {
		case "adopt":
			cfg.Adopt = v == "on"
		case "stale":
			cfg.StaleAfter, err = strconv.Atoi(v)
		case "unknown":
			cfg.UnknownAfter, err = time.ParseDuration(v)
		case "crash":
			n, d, _ := strings.Cut(v, "/")
			if cfg.CrashRestarts, err = strconv.Atoi(n); err == nil {
				cfg.CrashWindow, err = time.ParseDuration(d)
			}
		default:
			err = fmt.Errorf("no such policy: %s", k)
		}
		if err != nil {
			return err
		}
	}
	s.world.t.SetPolicy(*cfg)
	return nil
}

// units changes the units that the lines name; "jobs:" lines are results of
// jobs.
func (s *script) units(manager string, lines []string) (refs []string, jobs map[string]string, err error) {
	w := s.world
	for _, l := range lines {
		f := strings.Fields(l)
		if f[0] == "job" {
			if jobs == nil {
				jobs = map[string]string{}
			}
			jobs[f[1]] = f[2]
			continue
		}
		refs = append(refs, f[0])
		if len(f) > 1 && f[1] == "gone" {
			w.gone(manager, f[0])
			continue
		}
		u := w.unit(manager, f[0])
		u.job, u.unreadable = "", false
		for _, a := range f[1:] {
			if err := u.set(a); err != nil {
				return nil, nil, fmt.Errorf("%s: %w", l, err)
			}
		}
	}
	return refs, jobs, nil
}

// set changes one property: ACTIVE/SUB or KEY=VALUE.
func (u *unit) set(a string) (err error) {
	if active, sub, ok := strings.Cut(a, "/"); ok && !strings.Contains(active, "=") {
		u.state(active, sub)
		return nil
	}
	k, v, _ := strings.Cut(a, "=")
	number := func(set func(int64)) {
		var n int64
		n, err = strconv.ParseInt(v, 10, 32)
		set(n)
	}
	switch k {
	case "load":
		u.load = v
	case "job":
		u.job = v
	case "inv":
		u.inv = v
	case "restart":
		u.restart = v
	case "type":
		u.typ = v
	case "result":
		u.result = v
	case "drop-in":
		u.dropIns = nil
		if v != "none" {
			u.dropIns = []string{"/etc/systemd/system/microvm@" + u.vm + ".service.d/" + v}
		}
	case "n":
		number(func(n int64) { u.n = uint32(n) })
	case "pid":
		number(func(n int64) { u.pid = uint32(n) })
	case "exit":
		number(func(n int64) { u.code, u.exit = exited, int32(n) })
	case "signal":
		number(func(n int64) { u.code, u.exit = killed, int32(n) })
	case "unreadable":
		u.unreadable = true
	default:
		return fmt.Errorf("no such property: %s", k)
	}
	return err
}

func definition(fields []string) (Definition, error) {
	var d Definition
	for _, a := range fields {
		k, v, _ := strings.Cut(a, "=")
		switch k {
		case "config":
			d.Config = blixard.Config(v)
		case "provenance":
			d.Provenance = blixard.Provenance(v)
		case "hypervisor":
			d.Hypervisor = v
		case "unreadable":
			d.Unreadable = true
		case "cannot":
			f, why, _ := strings.Cut(v, ":")
			d.Unavailable = map[string]string{f: why}
		default:
			return d, fmt.Errorf("no such field of a definition: %s", k)
		}
	}
	return d, nil
}

// gave tells what the last step had to write: > are commands, ! are events.
func (s *script) gave() []string {
	var out []string
	for _, c := range s.world.commands {
		switch c := c.(type) {
		case blixard.RegisterVM:
			verb := "register"
			if c.Readopt {
				verb = "register again"
			}
			out = append(out, fmt.Sprintf("> %s %s: %s", verb, name(c.ID), describe(&c.Status, &c.Definition, c.Helpers)))
		case blixard.UpdateState:
			line := fmt.Sprintf("> state %s: %s", name(c.ID), describe(&c.Status, &c.Definition, c.Helpers))
			if c.StaleSince != nil {
				line += " stale"
			}
			out = append(out, line)
		case blixard.UpdateHealth:
			out = append(out, fmt.Sprintf("> health %s: %s", name(c.ID), verdict(&c.Health)))
		case blixard.RemoveVM:
			out = append(out, "> remove "+name(c.ID))
		}
	}
	for _, e := range s.world.events {
		line := "! " + string(e.Type)
		if e.VM != "" {
			line += " " + name(blixard.VMID{Manager: e.Manager, Name: e.VM})
		}
		if e.From != "" {
			line += " " + e.From + " ->"
		}
		if e.To != "" {
			line += " " + e.To
		}
		if e.Count != 0 {
			line += fmt.Sprintf(" count %d", e.Count)
		}
		if e.Detail != "" {
			line += " (" + e.Detail + ")"
		}
		out = append(out, line)
	}
	return out
}

// name leaves out what is the same everywhere in a scenario.
func name(id blixard.VMID) string {
	if id.Manager == blixard.SystemManager {
		return id.Name
	}
	return id.Manager + "/" + id.Name
}

func verdict(h *blixard.VMHealth) string {
	if h == nil {
		return "none"
	}
	var out []string
	for _, c := range h.Checks {
		out = append(out, c.Message)
	}
	return fmt.Sprintf("%s (%s)", h.Status, strings.Join(out, "; "))
}

// describe tells a status, what the files say, and the helpers.
func describe(s *blixard.VMStatus, d *blixard.VMDefinition, helpers []blixard.Helper) string {
	out := string(s.State)
	add := func(format string, args ...any) { out += " " + fmt.Sprintf(format, args...) }
	if s.Intended {
		add("on purpose")
	}
	if s.Substate != "" {
		add("%s", s.Substate)
	}
	if s.Ready != nil {
		add("ready=%v", *s.Ready)
	}
	if s.InvocationID != "" {
		add("inv=%s", s.InvocationID)
	}
	if s.Restarts != nil {
		add("n=%d", *s.Restarts)
	}
	if s.Result != "" {
		add("result=%s", s.Result)
	}
	if s.ExitCode != nil {
		add("exit=%d", *s.ExitCode)
	}
	if s.ExitSignal != "" {
		add("%s", s.ExitSignal)
	}
	if d.Hypervisor != "" {
		add("%s", d.Hypervisor)
	}
	if d.Config != "" {
		add("config=%s", d.Config)
	}
	if d.Provenance != "" {
		add("%s", d.Provenance)
	}
	if d.Orphan {
		add("orphan")
	}
	for _, h := range helpers {
		add("%s:%s", h.Name, h.State)
	}
	return out
}

// show tells the view.
func (s *script) show() []string {
	var out []string
	entries, managers := s.world.t.View()
	for _, e := range entries {
		v := e.VM
		line := name(v.VMID()) + ": " + describe(&v.VMStatus, &v.VMDefinition, v.Helpers)
		if v.RestartsLastHour != nil && *v.RestartsLastHour > 0 {
			line += fmt.Sprintf(" last-hour=%d", *v.RestartsLastHour)
		}
		if v.Stale {
			line += " stale"
		}
		if v.RemovedAt != nil {
			line += " removed"
		}
		if v.Health != nil {
			line += ", " + string(v.Health.Status)
		}
		out = append(out, line)
		for _, k := range slices.Sorted(maps.Keys(v.Unavailable)) {
			if k != "ready" {
				out = append(out, "  no "+k+": "+v.Unavailable[k])
			}
		}
	}
	for _, k := range slices.Sorted(maps.Keys(managers)) {
		if m := managers[k]; !m.Lost.IsZero() {
			out = append(out, "lost "+k+": "+m.Reason)
		}
	}
	if r := s.world.t.FilesReason(); r != "" {
		out = append(out, "files: "+r)
	}
	return out
}
