package correlate

import (
	"maps"
	"time"

	"github.com/blixard/blixard"
)

// Definition is what the host's files say of a VM.
type Definition struct {
	blixard.VMDefinition
	// Unavailable gives the reason for each field that could not be read.
	Unavailable map[string]string
	// Unreadable says that it is not known whether the files define the VM: a
	// VM that is known is not missing for it, and none comes to be.
	Unreadable bool
}

// Equal reports whether two definitions say the same.
func (d *Definition) Equal(o *Definition) bool {
	if d == nil || o == nil {
		return d == o
	}
	return d.VMDefinition == o.VMDefinition && maps.Equal(d.Unavailable, o.Unavailable)
}

// SetDefinitions tells what the host's files define, for the system's manager.
// complete says that nothing else is defined; otherwise reason says why it is
// not known.
func (t *Tracker) SetDefinitions(now time.Time, defs map[string]Definition, complete bool, reason string) {
	t.filesKnown, t.filesComplete, t.filesReason = true, complete, reason
	for name, d := range defs {
		if !d.Unreadable {
			t.vm(key{blixard.SystemManager, name})
		}
	}
	listed := !t.manager(blixard.SystemManager).listed.IsZero()
	for _, v := range t.order {
		if v.manager != blixard.SystemManager {
			continue
		}
		d, ok := defs[v.name]
		t.setUnreadable(v, d.Unreadable || !ok && !complete)
		switch {
		case v.unreadable:
		case ok:
			if !v.def.Equal(&d) {
				v.def = &d
				v.dirty = true
			}
		case complete && v.def != nil:
			v.def = nil
			v.dirty = true
		}
		if v.unit == "" {
			v.unit = "microvm@" + v.name + ".service"
		}
		if listed && (v.dirty || t.define(v) != v.definition) {
			t.update(now, v)
		}
	}
	t.changed = true
}

// FilesUnknown tells that the host's files cannot be read: what they said last
// stands, and nothing can be said to be missing.
func (t *Tracker) FilesUnknown(reason string) {
	if t.filesComplete || t.filesReason != reason {
		t.filesKnown, t.filesComplete, t.filesReason = true, false, reason
		t.changed = true
		for _, v := range t.order {
			if v.manager == blixard.SystemManager {
				t.setUnreadable(v, true)
				v.dirty = true // the reason changed
			}
		}
	}
}

// setUnreadable takes in whether it is known what the files say of a VM: what
// they said before stands in the records, and is not shown as if it were now.
func (t *Tracker) setUnreadable(v *vm, unreadable bool) {
	if v.unreadable != unreadable {
		v.unreadable, v.dirty, t.changed = unreadable, true, true
	}
}

// SetDefinition tells what the host's files define of one VM now.
func (t *Tracker) SetDefinition(now time.Time, name string, d Definition) {
	v := t.vm(key{blixard.SystemManager, name})
	t.setUnreadable(v, false)
	if v.def.Equal(&d) {
		return
	}
	v.def = &d
	v.dirty = true
	if !t.manager(blixard.SystemManager).listed.IsZero() {
		t.update(now, v)
	}
}
