package store

import "github.com/blixard/blixard"

// Bounds of an interner.
const (
	internStrings = 4096
	internLength  = 64
)

// interner keeps one copy of strings that come again and again, such as states
// and names of nodes: with many records that is most of their memory. It is for
// one goroutine.
type interner map[string]string

func (in interner) intern(s *string) {
	if *s == "" || len(*s) > internLength {
		return
	}
	if known, ok := in[*s]; ok {
		*s = known
	} else if len(in) < internStrings {
		in[*s] = *s
	}
}

func (in interner) record(r *blixard.VMRecord) {
	for _, s := range []*string{&r.Node, &r.Manager, &r.NodeID, (*string)(&r.Status.State), &r.Status.Substate, &r.Status.Result,
		&r.Status.ExitSignal, &r.Definition.Hypervisor, (*string)(&r.Definition.Config), (*string)(&r.Definition.Provenance)} {
		in.intern(s)
	}
	for i := range r.Helpers {
		h := &r.Helpers[i]
		in.intern(&h.Name)
		in.intern((*string)(&h.State))
		in.intern(&h.Substate)
	}
	if r.Health != nil {
		in.intern((*string)(&r.Health.Status))
		for i := range r.Health.Checks {
			c := &r.Health.Checks[i]
			in.intern(&c.Name)
			in.intern((*string)(&c.Status))
			in.intern(&c.Message)
		}
	}
}

func (in interner) event(e *blixard.Event) {
	for _, s := range []*string{&e.Node, &e.VM, &e.Manager, (*string)(&e.Type), &e.From, &e.To, &e.Result, &e.ExitSignal} {
		in.intern(s)
	}
}
