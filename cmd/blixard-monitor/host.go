package main

import (
	"context"
	"strings"

	"github.com/blixard/blixard/correlate"
	"github.com/blixard/blixard/microvm"
)

// units tells units apart as the monitor wants it.
type units struct{ patterns microvm.Patterns }

func (u *units) Patterns(manager string) []string { return u.patterns.List(manager) }

func (u *units) Classify(manager, unit string) (kind correlate.Kind, vm, helper string, ok bool) {
	p, ok := u.patterns.Parse(manager, unit)
	if !ok {
		return 0, "", "", false
	}
	switch p.Kind {
	case microvm.KindVM:
		kind = correlate.KindVM
	case microvm.KindHelper:
		kind = correlate.KindHelper
	case microvm.KindInstall:
		kind = correlate.KindInstall
	case microvm.KindTarget:
		kind = correlate.KindTarget
	default:
		return 0, "", "", false
	}
	return kind, p.VM, p.Helper, true
}

// files reads the host's files as the monitor wants it.
type files struct{ scanner *microvm.Scanner }

func (f *files) Scan(ctx context.Context) (map[string]correlate.Definition, bool, string) {
	s := f.scanner.Scan(ctx)
	defs := make(map[string]correlate.Definition, len(s.Definitions)+len(s.Unreadable))
	for name, d := range s.Definitions {
		defs[name] = correlate.Definition{VMDefinition: d.VMDefinition, Unavailable: d.Unavailable}
	}
	for _, name := range s.Unreadable {
		defs[name] = correlate.Definition{Unreadable: true}
	}
	return defs, s.Complete, strings.Join(s.Reasons, "; ")
}

func (f *files) Refresh(_ context.Context, name string) (correlate.Definition, bool) {
	d, err := f.scanner.Refresh(name)
	if err != nil {
		// What it means that a folder is gone, the next whole reading tells.
		return correlate.Definition{}, false
	}
	return correlate.Definition{VMDefinition: d.VMDefinition, Unavailable: d.Unavailable}, true
}
