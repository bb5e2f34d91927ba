package correlate

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/blixard/blixard"
)

var (
	modelManagers = []string{blixard.SystemManager, blixard.UserManager(1000)}
	modelNames    = []string{"web", "db", "api"}
)

// model is a random world with what a simple observer would know of it.
type model struct {
	*world
	runs int
	// runSeen is the last run of each VM that was told while it was up, with
	// NRestarts then; stopSeen the run whose stop job was told. vague are the
	// VMs of which an earlier life may have known more or less than that.
	runSeen  map[string]string
	nSeen    map[string]uint32
	stopSeen map[string]string
	vague    map[string]bool
	// loaded says that the Tracker has its records.
	loaded bool
	// lives are the numbers of events kept when each life of the monitor began.
	lives []int
}

func newModel() *model {
	return &model{world: newWorld(), runSeen: map[string]string{}, nSeen: map[string]uint32{}, stopSeen: map[string]string{}, vague: map[string]bool{}}
}

func vmOf(t *rapid.T) (manager, name string) {
	return rapid.SampledFrom(modelManagers).Draw(t, "manager"), rapid.SampledFrom(modelNames).Draw(t, "vm")
}

// told notes what the units of a manager said when they were told.
func (m *model) told(manager string, names ...string) {
	for _, name := range names {
		u := m.units[manager+" "+name]
		if u == nil {
			continue
		}
		k := manager + " " + name
		if u.active == "active" || u.active == "activating" && u.sub == "start" {
			m.runSeen[k], m.nSeen[k] = u.inv, u.n
			m.stopSeen[k] = ""
			delete(m.vague, k)
		}
		if u.job == "stop" {
			m.stopSeen[k] = u.inv
		}
	}
}

func (m *model) actions(t *rapid.T) map[string]func(*rapid.T) {
	up := func(u *unit) bool { return u != nil && u.active == "active" }
	find := func(t *rapid.T) (*unit, string, string) {
		manager, name := vmOf(t)
		return m.units[manager+" "+name], manager, name
	}
	return map[string]func(*rapid.T){
		"start": func(t *rapid.T) {
			u, manager, name := find(t)
			if up(u) || u != nil && u.active == "deactivating" {
				t.Skip()
			}
			u = m.unit(manager, name)
			m.runs++
			u.inv, u.n, u.job = fmt.Sprintf("run%d", m.runs), 0, ""
			u.state("active", "running")
		},
		"crash": func(t *rapid.T) {
			u, _, _ := find(t)
			if !up(u) {
				t.Skip()
			}
			u.state("activating", "auto-restart")
			u.result, u.code, u.exit = "exit-code", exited, 1
		},
		"restart": func(t *rapid.T) {
			u, _, _ := find(t)
			if u == nil || u.sub != "auto-restart" {
				t.Skip()
			}
			m.runs++
			u.inv, u.n = fmt.Sprintf("run%d", m.runs), u.n+1
			u.state("active", "running")
		},
		"start limit": func(t *rapid.T) {
			u, _, _ := find(t)
			if u == nil || u.sub != "auto-restart" {
				t.Skip()
			}
			u.n++
			u.state("failed", "failed")
		},
		"stop begins": func(t *rapid.T) {
			u, _, _ := find(t)
			if !up(u) {
				t.Skip()
			}
			u.state("deactivating", "stop")
			u.job = "stop"
		},
		"stop ends": func(t *rapid.T) {
			u, _, _ := find(t)
			if u == nil || u.active != "deactivating" {
				t.Skip()
			}
			u.job = ""
			if rapid.Bool().Draw(t, "has shutdown") {
				u.state("inactive", "dead")
				return
			}
			u.state("failed", "failed")
			u.result, u.code, u.exit = "exit-code", exited, 1
		},
		"unload": func(t *rapid.T) {
			u, manager, name := find(t)
			if u == nil || u.active != "inactive" {
				t.Skip()
			}
			m.gone(manager, name)
		},
		"helper": func(t *rapid.T) {
			manager, name := vmOf(t)
			h := m.unit(manager, name+":virtiofsd")
			s := rapid.SampledFrom([][2]string{{"active", "running"}, {"failed", "failed"}, {"activating", "start"}, {"inactive", "dead"}}).Draw(t, "state")
			h.state(s[0], s[1])
		},
		"helper unloads": func(t *rapid.T) {
			manager, name := vmOf(t)
			m.gone(manager, name+":virtiofsd")
		},
		"files change": func(t *rapid.T) {
			name := rapid.SampledFrom(modelNames).Draw(t, "vm")
			if rapid.Bool().Draw(t, "gone") {
				delete(m.files, name)
				return
			}
			m.files[name] = Definition{VMDefinition: blixard.VMDefinition{Hypervisor: "qemu",
				Config: rapid.SampledFrom([]blixard.Config{"", blixard.ConfigCurrent, blixard.ConfigStale}).Draw(t, "config")}}
		},
		"read files": func(t *rapid.T) { m.readFiles() },
		"files fail": func(t *rapid.T) {
			m.t.SetDefinitions(m.now, nil, false, "permission denied")
			m.settle()
		},
		"files hang": func(t *rapid.T) {
			m.t.FilesUnknown("no answer")
			m.settle()
		},
		"folder unreadable": func(t *rapid.T) {
			defs := map[string]Definition{}
			for name, d := range m.files {
				d.Unreadable = rapid.Bool().Draw(t, name)
				if d.Unreadable {
					d.VMDefinition = blixard.VMDefinition{}
				}
				defs[name] = d
			}
			m.t.SetDefinitions(m.now, defs, true, "")
			m.settle()
		},
		"hint": func(t *rapid.T) {
			manager, name := vmOf(t)
			refs := []string{name}
			if rapid.Bool().Draw(t, "helper too") {
				refs = append(refs, name+":virtiofsd")
			}
			m.told(manager, name)
			m.hint(manager, refs...)
		},
		"list": func(t *rapid.T) {
			manager := rapid.SampledFrom(modelManagers).Draw(t, "manager")
			m.told(manager, modelNames...)
			m.list(manager)
		},
		"lose": func(t *rapid.T) {
			m.t.Lost(m.now, rapid.SampledFrom(modelManagers).Draw(t, "manager"), "connection reset", "")
			m.settle()
		},
		"time": func(t *rapid.T) {
			m.tick(time.Duration(rapid.IntRange(1, 150).Draw(t, "seconds")) * time.Second)
		},
		"remove": func(t *rapid.T) {
			manager, name := vmOf(t)
			m.t.Remove(m.now, blixard.VMID{Node: "host", Manager: manager, Name: name})
			m.settle()
		},
		"adopt": func(t *rapid.T) {
			manager, name := vmOf(t)
			m.t.Adopt(m.now, blixard.VMID{Node: "host", Manager: manager, Name: name})
			m.settle()
		},
		"restart the monitor": func(t *rapid.T) {
			m.t.Flush(m.now)
			m.settle()
			m.restartTracker()
			m.loaded = false
			m.lives = append(m.lives, len(m.kept))
			for _, manager := range modelManagers {
				for _, name := range modelNames {
					m.vague[manager+" "+name] = true
				}
			}
		},
		"load records": func(t *rapid.T) {
			if m.loaded {
				t.Skip()
			}
			m.loaded = true
			m.records()
		},
		"": func(t *rapid.T) { m.invariants(t) },
	}
}

// invariants hold after every step.
func (m *model) invariants(t *rapid.T) {
	for _, f := range m.faults {
		t.Fatalf("the store: %s", f)
	}
	if n := m.changedViews(); n > 0 {
		t.Fatalf("%d views changed after they were handed out", n)
	}
	lost := map[string]bool{}
	for i, e := range m.kept {
		if slices.Contains(m.lives, i) {
			clear(lost)
		}
		switch e.Type {
		case blixard.EventManagerLost:
			if lost[e.Manager] {
				t.Fatalf("event %d: the %s manager is lost twice", i, e.Manager)
			}
			lost[e.Manager] = true
		case blixard.EventManagerReturned:
			if !lost[e.Manager] {
				t.Fatalf("event %d: the %s manager returned and was not lost", i, e.Manager)
			}
			lost[e.Manager] = false
		}
	}
	for _, manager := range modelManagers {
		for _, name := range modelNames {
			if err := chain(m.kept, manager, name); err != nil {
				t.Fatalf("%v\n%s", err, tell(of(m.kept, manager, name)))
			}
		}
	}
}

func tell(events []blixard.Event) (out string) {
	for _, e := range events {
		out += fmt.Sprintf("%s %s %s -> %s %s\n", e.ObservedAt.Format("15:04:05"), e.Type, e.From, e.To, e.Detail)
	}
	return out
}

// want is the state that the world's units say, with the second allowed beside
// it.
func (m *model) want(u *unit) (want, or blixard.VMState) {
	k := u.manager + " " + u.vm
	switch {
	case u.active == "active", u.sub == "auto-restart":
		want = State(u.active, u.sub)
		return want, blixard.StateCrashlooping
	case u.active == "deactivating" && m.stopSeen[k] != u.inv:
		return blixard.StateStopping, blixard.StateCrashlooping
	case u.active == "failed":
		switch {
		case m.vague[k]:
			return blixard.StateFailed, blixard.StateStopped
		case m.stopSeen[k] == u.inv:
			return blixard.StateStopped, ""
		case m.runSeen[k] == u.inv && u.n > m.nSeen[k], m.runSeen[k] != u.inv && u.n > 0:
			return blixard.StateFailed, ""
		}
		return blixard.StateStopped, ""
	}
	return State(u.active, u.sub), ""
}

// settled compares everything with the world after complete listings.
func (m *model) settled(t *rapid.T) {
	if !m.loaded {
		m.records()
		m.loaded = true
	}
	for range m.cfg.StaleAfter {
		m.readFiles()
		for _, manager := range modelManagers {
			m.told(manager, modelNames...)
			m.list(manager)
		}
	}
	m.invariants(t)
	for _, manager := range modelManagers {
		for _, name := range modelNames {
			m.compare(t, manager, name)
		}
	}
	// Nothing changed any more, so nothing is written any more.
	before := len(m.kept)
	for _, manager := range modelManagers {
		m.list(manager)
		m.readFiles()
		if len(m.commands) > 0 || len(m.kept) > before {
			t.Fatalf("nothing changed, but: %+v\n%s", m.commands, tell(m.kept[before:]))
		}
	}
}

func (m *model) compare(t *rapid.T, manager, name string) {
	u := m.units[manager+" "+name]
	d, defined := m.files[name]
	defined = defined && manager == blixard.SystemManager
	r := m.store[blixard.VMID{Node: "host", Manager: manager, Name: name}]
	v := m.view(manager, name)
	there := u != nil || defined
	removed := r != nil && r.RemovedAt != nil
	fail := func(format string, args ...any) {
		t.Fatalf("%s %s: %s\nunit %+v\nview %+v\nrecord %+v\n%s", manager, name, fmt.Sprintf(format, args...), u, v, r, tell(of(m.kept, manager, name)))
	}
	if there && r == nil {
		fail("it is there, but not recorded")
	}
	if v == nil {
		if there && !removed || r != nil && !removed {
			fail("not shown")
		}
		if removed && u != nil && (u.active == "active" || u.sub == "auto-restart") {
			fail("removed and running, but not shown")
		}
		return
	}
	switch {
	case !there && r == nil:
		fail("shown, but neither there nor recorded")
	case (v.RemovedAt != nil) != removed:
		fail("removed is %v", removed)
	case v.Stale == there && !removed:
		fail("stale is %v", v.Stale)
	case v.Stale && v.State != blixard.StateUnknown:
		fail("stale, but %s", v.State)
	case u != nil:
		want, or := m.want(u)
		if v.State != want && v.State != or {
			fail("it is %s, want %s", v.State, want)
		}
		if v.Substate != u.sub || v.InvocationID != u.inv || v.Restarts == nil || *v.Restarts != u.n {
			fail("sub-state, run or restarts are wrong")
		}
	case defined && v.State != blixard.StateStopped:
		fail("defined and not loaded, but %s", v.State)
	}
	if there && manager == blixard.SystemManager {
		if v.Config != d.Config || v.Orphan != !defined {
			fail("definition %+v", v.VMDefinition)
		}
	}
	h := m.units[manager+" "+name+":virtiofsd"]
	if (h != nil) != (len(v.Helpers) == 1) || h != nil && v.Helpers[0].State != HelperState(h.active, h.sub) {
		fail("helpers %+v, unit %+v", v.Helpers, h)
	}
	if removed {
		return
	}
	if !r.Status.Equal(v.VMStatus) || r.Definition != v.VMDefinition || !slices.Equal(r.Helpers, v.Helpers) || (r.StaleSince != nil) != v.Stale || !r.Health.Equal(v.Health) {
		fail("the record and the view differ")
	}
}

// TestTracker_model drives a random world: units, files and managers change,
// hints are lost, records come late, the monitor is started again. In the end,
// after complete listings, everything shown and recorded is as it is.
func TestTracker_model(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel()
		t.Repeat(m.actions(t))
		m.settled(t)
	})
}

// TestTracker_restartsCounted restarts a VM in every rhythm. No count is lost,
// none is told twice, a crash loop is one exactly as long as its window says,
// and while it lasts there is one restart event a minute at most.
func TestTracker_restartsCounted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		w.cfg.CrashRestarts = rapid.IntRange(1, 5).Draw(t, "restarts")
		w.cfg.CrashWindow = time.Duration(rapid.IntRange(10, 300).Draw(t, "window")) * time.Second
		w.restartTracker()
		w.records()
		u := w.unit("system", "web")
		u.inv = "run0"
		u.state("active", "running")
		w.list("system")

		var truth, runs uint64
		var seen []restart
		looping := func() bool {
			n := 0
			for _, r := range seen {
				if w.now.Sub(r.at) <= w.cfg.CrashWindow {
					n += int(r.n)
				}
			}
			return n >= w.cfg.CrashRestarts
		}
		// look compares the state and counts the time in the loop.
		var inLoop bool
		var loopEvents []time.Time
		look := func() {
			v := w.view("system", "web")
			want := blixard.StateRunning
			if looping() {
				want = blixard.StateCrashlooping
			}
			if v.State != want {
				t.Fatalf("%s: got %s, want %s: %v", w.now.Format(time.TimeOnly), v.State, want, seen)
			}
			for _, e := range of(w.events, "system", "web", blixard.EventRestart) {
				if inLoop && want == blixard.StateCrashlooping {
					loopEvents = append(loopEvents, e.ObservedAt)
				}
			}
			if inLoop = want == blixard.StateCrashlooping; !inLoop {
				loopEvents = nil
			}
			for i := 1; i < len(loopEvents); i++ {
				if loopEvents[i].Sub(loopEvents[i-1]) < time.Minute {
					t.Fatalf("two restart events within a minute of a crash loop: %v", loopEvents)
				}
			}
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			default:
				k := uint32(rapid.IntRange(1, 3).Draw(t, "k"))
				runs++
				u.n, u.inv = u.n+k, fmt.Sprintf("run%d", runs)
				truth += uint64(k)
				seen = append(seen, restart{w.now, k})
				w.hint("system", "web")
				look()
			case 0:
				// Started by hand, and perhaps restarted before anybody looks.
				w.tick(time.Second)
				runs++
				u.n, u.inv = 0, fmt.Sprintf("run%d", runs)
				seen = nil
				w.hint("system", "web")
				look()
			case 1:
				// Nothing else happens for long.
				w.tick(time.Duration(rapid.IntRange(60, 400).Draw(t, "pause")) * time.Second)
				look()
			}
			for range rapid.SampledFrom([]int{1, 5, 5, 5, 7, 40}).Draw(t, "seconds") {
				w.tick(time.Second)
				look()
			}
			recent := 0
			for _, r := range seen {
				if w.now.Sub(r.at) <= time.Hour {
					recent += int(r.n)
				}
			}
			if v := w.view("system", "web"); v.RestartsLastHour == nil || *v.RestartsLastHour < recent {
				t.Fatalf("restarts of the last hour: %v, at least %d", deref(v.RestartsLastHour), recent)
			}
		}
		w.t.Flush(w.now)
		w.settle()
		if got := restartsTold(w.kept, "system", "web"); got != truth {
			t.Fatalf("told of %d restarts, there were %d", got, truth)
		}
	})
}

// TestTracker_restartsAway restarts a VM while no monitor runs, with the records
// there before or after the first look.
func TestTracker_restartsAway(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		w.records()
		u := w.unit("system", "web")
		u.inv = "run0"
		u.state("active", "running")
		w.list("system")
		var truth uint64
		for i := range rapid.IntRange(1, 8).Draw(t, "lives") {
			restart := func(label string) {
				n := rapid.IntRange(0, 4).Draw(t, label)
				if n > 0 {
					u.n, u.inv = u.n+uint32(n), fmt.Sprintf("%s%d", label, i)
					truth += uint64(n)
				}
			}
			restart("watched")
			w.hint("system", "web")
			w.tick(time.Duration(rapid.IntRange(0, 90).Draw(t, "seconds")) * time.Second)
			w.t.Flush(w.now)
			w.settle()
			w.restartTracker()
			restart("away")
			w.now = w.now.Add(time.Duration(rapid.IntRange(0, 90).Draw(t, "away seconds")) * time.Second)
			first := rapid.Bool().Draw(t, "records first")
			if first {
				w.records()
			}
			w.list("system")
			if !first {
				w.tick(time.Second)
				restart("early")
				w.hint("system", "web")
				w.tick(time.Second)
				w.records()
			}
		}
		w.t.Flush(w.now)
		w.settle()
		if got := restartsTold(w.kept, "system", "web"); got != truth {
			t.Fatalf("told of %d restarts, there were %d\n%s", got, truth, tell(w.kept))
		}
		if err := chain(w.kept, "system", "web"); err != nil {
			t.Fatalf("%v\n%s", err, tell(w.kept))
		}
		if v := w.view("system", "web"); uint64(*v.RestartsLastHour) != truth {
			t.Fatalf("%d restarts in the last hour, there were %d", *v.RestartsLastHour, truth)
		}
		for _, f := range w.faults {
			t.Fatal(f)
		}
	})
}

// TestRestarts_bounded: a history stays within its bound and loses no count.
func TestRestarts_bounded(t *testing.T) {
	var r restarts
	for i := range 5 * maxEntries {
		r.add(epoch.Add(time.Duration(i)*time.Millisecond), epoch.Add(time.Duration(i)*time.Millisecond), 1)
	}
	if len(r.entries) > maxEntries || r.count() != 5*maxEntries {
		t.Errorf("%d entries count %d", len(r.entries), r.count())
	}
	r.before(epoch.Add(time.Minute), []restart{{epoch.Add(-time.Minute), 7}})
	if len(r.entries) > maxEntries || r.count() != 5*maxEntries+7 {
		t.Errorf("with an earlier life %d entries count %d", len(r.entries), r.count())
	}
	if !slices.IsSortedFunc(r.entries, func(a, b restart) int { return a.at.Compare(b.at) }) {
		t.Error("not in order")
	}
	r.prune(epoch.Add(2 * time.Hour))
	if r.count() != 0 {
		t.Errorf("after an hour it still counts %d", r.count())
	}
	// A clock of an earlier life may have been wrong.
	r.add(epoch, epoch.Add(time.Hour), 1)
	if got := r.within(epoch, time.Minute, time.Time{}); got != 1 {
		t.Errorf("a restart of the future counts %d times", got)
	}
}
