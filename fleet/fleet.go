// Package fleet answers for the fleet from the memory of one node: what the
// node's own monitor sees, with the history that the store keeps.
//
// It holds no state of its own, and every method may be called at once. Answers
// about the node's own VMs never wait for the store: while that is away they
// are as fresh as ever, and say that it is away.
package fleet

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/correlate"
	"github.com/blixard/blixard/monitor"
)

// Host is the monitor of the node that answers.
type Host interface {
	View() *monitor.View
	Status() monitor.Status
	Remove(ctx context.Context, id blixard.VMID) (uint64, error)
	Adopt(ctx context.Context, id blixard.VMID) (uint64, error)
}

// Store is what the replicated store tells from memory.
type Store interface {
	// Index is the newest index that is in memory.
	Index() uint64
	// Wait waits until the index is in memory.
	Wait(ctx context.Context, index uint64) error
	Events(q blixard.EventQuery) ([]blixard.Event, error)
	FollowEvents(ctx context.Context, q blixard.EventQuery) iter.Seq2[blixard.EventFrame, error]
	Status() blixard.StoreStatus
}

// Config holds what a Fleet answers from.
type Config struct {
	Node  blixard.NodeRecord
	Host  Host
	Store Store
}

// Fleet satisfies blixard.Fleet.
type Fleet struct{ cfg Config }

var _ blixard.Fleet = (*Fleet)(nil)

// New makes a Fleet.
func New(cfg Config) *Fleet { return &Fleet{cfg} }

// keepAlive is how often a stream says that it lives.
const keepAlive = 15 * time.Second

// VMs lists every VM.
func (f *Fleet) VMs(ctx context.Context) (blixard.List[blixard.VM], error) {
	return f.list(nil), nil
}

// VM shows the one VM with that address.
func (f *Fleet) VM(ctx context.Context, ref blixard.VMRef) (blixard.List[blixard.VM], error) {
	if err := f.known(ref.Node); err != nil {
		return blixard.List[blixard.VM]{}, err
	}
	ref = f.narrow(ref)
	l := f.list(func(v *blixard.VM) bool { return ref.Match(v.VMID()) })
	switch len(l.Items) {
	case 1:
		return l, nil
	case 0:
		return blixard.List[blixard.VM]{}, blixard.Errorf(blixard.CodeNotFound, "no VM %q", refString(ref)).WithHint("blixard vm list")
	}
	err := blixard.Errorf(blixard.CodeAmbiguous, "%q means more than one VM", refString(ref))
	for i := range l.Items {
		err.Candidates = append(err.Candidates, l.Items[i].ID)
	}
	return blixard.List[blixard.VM]{}, err
}

// narrow has NODE/NAME mean the system's VM where there is one: that is its
// address, and a user's VM of that name has another.
func (f *Fleet) narrow(ref blixard.VMRef) blixard.VMRef {
	if ref.Node == "" || ref.Manager != "" || ref.Name == "" {
		return ref
	}
	system := ref
	system.Manager = blixard.SystemManager
	if slices.ContainsFunc(f.cfg.Host.View().Entries, func(e correlate.Entry) bool { return system.Match(e.VM.VMID()) }) {
		return system
	}
	return ref
}

// known refuses a node that is not there.
func (f *Fleet) known(node string) error {
	if node == "" || node == f.cfg.Node.Name {
		return nil
	}
	return blixard.Errorf(blixard.CodeNotFound, "no node %q", node).WithHint("blixard node list")
}

func refString(r blixard.VMRef) string {
	return strings.Join(slices.DeleteFunc([]string{r.Node, r.Manager, r.Name}, func(s string) bool { return s == "" }), "/")
}

// list lists the VMs that are wanted, all for nil.
func (f *Fleet) list(want func(*blixard.VM) bool) blixard.List[blixard.VM] {
	now := time.Now()
	view := f.cfg.Host.View()
	l := blixard.List[blixard.VM]{APIVersion: blixard.APIVersion, Index: f.cfg.Store.Index(), Items: []blixard.VM{},
		Problems: f.problems(now, view)}
	if want == nil {
		// Grown step by step it would leave several times its size as garbage.
		l.Items = make([]blixard.VM, 0, len(view.Entries))
	}
	for i := range view.Entries {
		if want != nil && !want(view.Entries[i].VM) {
			continue
		}
		v := aged(now, view, &view.Entries[i])
		if v.State != blixard.StateUnknown && v.AgeSeconds != nil && (l.AgeSeconds == nil || *v.AgeSeconds > *l.AgeSeconds) {
			l.AgeSeconds = v.AgeSeconds
		}
		l.Items = append(l.Items, v)
	}
	return l
}

// aged is the VM of an entry with its age as it is now.
func aged(now time.Time, view *monitor.View, e *correlate.Entry) blixard.VM {
	v := *e.VM
	at := e.Confirmed
	if at.IsZero() {
		at = view.Managers[v.Manager].Listed
	}
	if at.IsZero() {
		return v
	}
	utc := at.UTC()
	v.LastSeen = &utc
	if e.Seen {
		v.AgeSeconds = age(now, at)
	}
	return v
}

// age is the time since then in seconds, to the millisecond.
func age(now, then time.Time) *float64 {
	s := max(0, now.Sub(then).Round(time.Millisecond).Seconds())
	return &s
}

// problems are the reasons why what this node says may be incomplete or old.
func (f *Fleet) problems(now time.Time, view *monitor.View) []string {
	var out []string
	for _, m := range managers(view) {
		if !m.Lost.IsZero() && f.matters(view, m) {
			out = append(out, fmt.Sprintf("%s: %s manager not reached for %s: %s", f.cfg.Node.Name, m.Name, now.Sub(m.Lost).Round(time.Second), m.Reason))
		}
	}
	if _, ok := view.Managers[blixard.SystemManager]; !ok {
		out = append(out, f.cfg.Node.Name+": the units are not listed yet")
	}
	if view.FilesReason != "" {
		out = append(out, f.cfg.Node.Name+": "+view.FilesReason)
	}
	s := f.cfg.Host.Status()
	switch {
	case s.StoreFailing != "":
		out = append(out, fmt.Sprintf("%s: the store takes no writes for %s (%s); %d commands and %d events wait", f.cfg.Node.Name,
			now.Sub(s.StoreSince).Round(time.Second), s.StoreFailing, s.Commands, s.Events))
	case !s.Loaded:
		out = append(out, f.cfg.Node.Name+": the records are not loaded yet")
	default:
		if st := f.cfg.Store.Status(); !st.Healthy {
			out = append(out, f.cfg.Node.Name+": store: "+st.Reason)
		}
	}
	return out
}

// matters says whether a lost manager keeps something from being seen: a user's
// manager that was never reached and shows no VM does not.
func (f *Fleet) matters(view *monitor.View, m correlate.ManagerView) bool {
	if m.Name == blixard.SystemManager || !m.Listed.IsZero() {
		return true
	}
	return slices.ContainsFunc(view.Entries, func(e correlate.Entry) bool { return e.VM.Manager == m.Name })
}

// managers are the managers of a view, the system's first.
func managers(view *monitor.View) []correlate.ManagerView {
	out := make([]correlate.ManagerView, 0, len(view.Managers))
	for _, m := range view.Managers {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b correlate.ManagerView) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// RemoveVM makes the VM's record a tombstone.
func (f *Fleet) RemoveVM(ctx context.Context, ref blixard.VMRef) (blixard.List[blixard.VM], error) {
	return f.change(ctx, ref, f.cfg.Host.Remove)
}

// AdoptVM records a VM that is there but not recorded, or was removed.
func (f *Fleet) AdoptVM(ctx context.Context, ref blixard.VMRef) (blixard.List[blixard.VM], error) {
	return f.change(ctx, ref, f.cfg.Host.Adopt)
}

func (f *Fleet) change(ctx context.Context, ref blixard.VMRef, do func(context.Context, blixard.VMID) (uint64, error)) (blixard.List[blixard.VM], error) {
	l, err := f.VM(ctx, ref)
	if err != nil {
		return l, err
	}
	id := l.Items[0].VMID()
	index, err := do(ctx, id)
	if err != nil {
		return blixard.List[blixard.VM]{}, err
	}
	if err := f.cfg.Store.Wait(ctx, index); err != nil {
		return blixard.List[blixard.VM]{}, err
	}
	after := f.list(func(v *blixard.VM) bool { return v.VMID() == id })
	if len(after.Items) == 0 {
		after.Items = l.Items
	}
	after.Index = max(after.Index, index)
	return after, nil
}

// WatchVMs streams every VM and then the changes.
func (f *Fleet) WatchVMs(ctx context.Context) iter.Seq2[blixard.VMFrame, error] {
	return func(yield func(blixard.VMFrame, error) bool) {
		view := f.cfg.Host.View()
		last := &monitor.View{}
		for first := true; ; first = false {
			now := time.Now()
			index := f.cfg.Store.Index()
			for e, gone := range diff(last, view) {
				frame := blixard.VMFrame{Index: index}
				if gone {
					frame.Gone = e.VM.ID
				} else {
					v := aged(now, view, e)
					frame.VM = &v
				}
				if !yield(frame, nil) {
					return
				}
			}
			if first && !yield(blixard.VMFrame{Synced: true, Index: index}, nil) {
				return
			}
			last = view
			timer := time.NewTimer(keepAlive)
			select {
			case <-ctx.Done():
				timer.Stop()
				yield(blixard.VMFrame{}, ended(ctx))
				return
			case <-view.Changed():
			case <-timer.C:
				if !yield(blixard.VMFrame{Synced: true, Index: f.cfg.Store.Index()}, nil) {
					return
				}
			}
			timer.Stop()
			view = f.cfg.Host.View()
		}
	}
}

// ended is the error of a stream whose context ended.
func ended(ctx context.Context) error {
	return blixard.Errorf(blixard.CodeUnavailable, "the stream ended: %v", context.Cause(ctx))
}

// diff walks two views, both in order, and gives the entries that are new or
// changed, and those that are gone.
func diff(old, new *monitor.View) iter.Seq2[*correlate.Entry, bool] {
	return func(yield func(*correlate.Entry, bool) bool) {
		i, j := 0, 0
		for i < len(old.Entries) || j < len(new.Entries) {
			var c int
			switch {
			case i == len(old.Entries):
				c = 1
			case j == len(new.Entries):
				c = -1
			default:
				a, b := old.Entries[i].VM, new.Entries[j].VM
				if c = strings.Compare(a.Name, b.Name); c == 0 {
					c = strings.Compare(a.Manager, b.Manager)
				}
			}
			switch {
			case c < 0:
				if !yield(&old.Entries[i], true) {
					return
				}
				i++
			case c > 0:
				if !yield(&new.Entries[j], false) {
					return
				}
				j++
			default:
				if old.Entries[i].VM != new.Entries[j].VM && !yield(&new.Entries[j], false) {
					return
				}
				i, j = i+1, j+1
			}
		}
	}
}

// Events lists kept events, oldest first.
func (f *Fleet) Events(ctx context.Context, q blixard.EventQuery) (blixard.List[blixard.Event], error) {
	if err := f.known(q.VM.Node); err != nil {
		return blixard.List[blixard.Event]{}, err
	}
	q.VM = f.narrow(q.VM)
	var behind []string
	if err := f.caughtUp(ctx); err != nil {
		behind = []string{f.cfg.Node.Name + ": the newest events are written, but not in memory yet: " + err.Error()}
	}
	l := blixard.List[blixard.Event]{APIVersion: blixard.APIVersion, Index: f.cfg.Store.Index(),
		Problems: append(f.problems(time.Now(), f.cfg.Host.View()), behind...)}
	var err error
	l.Items, err = f.cfg.Store.Events(q)
	if l.Items == nil {
		l.Items = []blixard.Event{}
	}
	return l, err
}

// catchUp is how long a reader waits for what this node wrote itself.
const catchUp = time.Second

// caughtUp waits until what this node's monitor wrote is in memory: after a
// member was away, the store takes writes a moment before its events arrive.
func (f *Fleet) caughtUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, catchUp)
	defer cancel()
	return f.cfg.Store.Wait(ctx, f.cfg.Host.Status().Acknowledged)
}

// FollowEvents streams every event after q.After.
func (f *Fleet) FollowEvents(ctx context.Context, q blixard.EventQuery) iter.Seq2[blixard.EventFrame, error] {
	if err := f.known(q.VM.Node); err != nil {
		return func(yield func(blixard.EventFrame, error) bool) { yield(blixard.EventFrame{}, err) }
	}
	q.VM = f.narrow(q.VM)
	return f.cfg.Store.FollowEvents(ctx, q)
}

// Nodes lists the nodes.
func (f *Fleet) Nodes(ctx context.Context) (blixard.List[blixard.Node], error) {
	now := time.Now()
	view := f.cfg.Host.View()
	n := f.node(now, view)
	return blixard.List[blixard.Node]{APIVersion: blixard.APIVersion, Index: f.cfg.Store.Index(), AgeSeconds: n.AgeSeconds,
		Problems: f.problems(now, view), Items: []blixard.Node{n}}, nil
}

// Node shows one node by name or id.
func (f *Fleet) Node(ctx context.Context, name string) (blixard.List[blixard.Node], error) {
	if name != f.cfg.Node.ID {
		if err := f.known(name); err != nil {
			return blixard.List[blixard.Node]{}, err
		}
	}
	return f.Nodes(ctx)
}

func (f *Fleet) node(now time.Time, view *monitor.View) blixard.Node {
	status := f.cfg.Host.Status()
	started := f.cfg.Node.StartedAt.UTC()
	n := blixard.Node{Name: f.cfg.Node.Name, ID: f.cfg.Node.ID, Status: blixard.NodeReady, VMs: len(view.Entries),
		Version: f.cfg.Node.Version, SystemdVersion: status.SystemdVersion, StartedAt: &started,
		Problems: f.problems(now, view), Managers: []blixard.ManagerStatus{}}
	if len(n.Problems) > 0 {
		n.Status = blixard.NodeDegraded
	}
	for _, m := range managers(view) {
		ms := blixard.ManagerStatus{Name: m.Name, Connected: m.Lost.IsZero(), Reason: m.Reason, Hint: m.Hint}
		if !m.Listed.IsZero() {
			t := m.Listed.UTC()
			ms.LastListing = &t
			if m.Name == blixard.SystemManager {
				n.LastSeen, n.AgeSeconds = &t, age(now, m.Listed)
			}
		}
		n.Managers = append(n.Managers, ms)
	}
	return n
}

// Cluster tells the state of the store and of the nodes.
func (f *Fleet) Cluster(ctx context.Context) (blixard.ClusterStatus, error) {
	now := time.Now()
	view := f.cfg.Host.View()
	n := f.node(now, view)
	status := f.cfg.Host.Status()
	c := blixard.ClusterStatus{APIVersion: blixard.APIVersion, Index: f.cfg.Store.Index(), Node: n.Name, Status: blixard.Healthy,
		Problems: n.Problems, Store: f.cfg.Store.Status(), Nodes: []blixard.Node{n}}
	c.Store.Pending, c.Store.Buffered = status.Commands, status.Events
	if status.StoreFailing != "" && c.Store.Healthy {
		c.Store.Healthy, c.Store.Reason = false, status.StoreFailing
	}
	if len(c.Problems) > 0 {
		c.Status = blixard.Degraded
	}
	if m := view.Managers[blixard.SystemManager]; !m.Lost.IsZero() && now.Sub(m.Lost) > status.UnknownAfter {
		c.Status = blixard.Critical
	}
	return c, nil
}
