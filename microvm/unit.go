package microvm

import (
	"fmt"
	"strings"

	"github.com/blixard/blixard"
)

// Kind tells the units of a host apart.
type Kind int

// The kinds.
const (
	// KindVM is a VM's own unit.
	KindVM Kind = iota + 1
	// KindHelper is the unit of a VM's helper.
	KindHelper
	// KindInstall is the unit that lays down a declared VM.
	KindInstall
	// KindTarget is microvms.target, which wants the VMs that start with the
	// host.
	KindTarget
)

// Unit is what the name of a unit says.
type Unit struct {
	Kind Kind
	// VM is the VM's name, verbatim; empty for KindTarget.
	VM string
	// Helper is the helper's name for KindHelper, as in blixard.Helper.
	Helper string
}

// Helpers are the names of the helpers of microvm.nix; each runs as
// microvm-HELPER@VM.service.
func Helpers() []string {
	return []string{"tap-interfaces", "macvtap-interfaces", "pci-devices", "virtiofsd", "set-booted"}
}

const (
	helperPrefix  = "microvm-"
	installPrefix = "install-microvm-"
	serviceSuffix = ".service"
	target        = "microvms.target"
	// maxPatterns bounds each list of Patterns.
	maxPatterns = 16
)

// Patterns are the names of VMs' units. In each pattern one asterisk stands for
// the VM's name; the rest is literal.
type Patterns struct {
	// System are those of the system's manager.
	System []string
	// User are those of users' managers.
	User []string
}

// DefaultPatterns are those of microvm.nix, and for users' managers the usual
// name of units written by hand.
func DefaultPatterns() Patterns {
	return Patterns{System: []string{"microvm@*.service"}, User: []string{"microvm-*.service"}}
}

// Validate refuses a pattern that has not exactly one asterisk, that is not the
// name of a service, and that names nothing but helpers.
func (p *Patterns) Validate() error {
	for _, list := range [][]string{p.System, p.User} {
		if len(list) > maxPatterns {
			return fmt.Errorf("%d patterns: at most %d", len(list), maxPatterns)
		}
		for _, pattern := range list {
			if err := checkPattern(pattern); err != nil {
				return fmt.Errorf("unit pattern %q: %w", pattern, err)
			}
		}
	}
	return nil
}

func checkPattern(pattern string) error {
	prefix, suffix, ok := strings.Cut(pattern, "*")
	if !ok || strings.Contains(suffix, "*") {
		return fmt.Errorf("want exactly one * for the VM's name")
	}
	if prefix == "" {
		return fmt.Errorf("want something before the *: it would match every service")
	}
	if !strings.HasSuffix(suffix, serviceSuffix) {
		return fmt.Errorf("want %s at the end", serviceSuffix)
	}
	if len(pattern) > blixard.MaxName || !validInstance(prefix+suffix) {
		return fmt.Errorf("no unit can have such a name")
	}
	if _, _, ok := helper(prefix + "x" + suffix); ok || strings.HasPrefix(prefix, installPrefix) {
		return fmt.Errorf("names a helper of microvm.nix")
	}
	return nil
}

// List returns the patterns to ask that manager for: those of VMs and, from the
// system's, those of the units beside them.
func (p *Patterns) List(manager string) []string {
	if manager != blixard.SystemManager {
		return append([]string(nil), p.User...)
	}
	list := append([]string(nil), p.System...)
	for _, h := range Helpers() {
		list = append(list, helperPrefix+h+"@*"+serviceSuffix)
	}
	return append(list, installPrefix+"*"+serviceSuffix, target)
}

// Parse tells what the unit of that name is under that manager; ok is false for
// one that has nothing to do with VMs. The VM's name is taken verbatim and never
// unescaped, and may be anything that the manager takes for a name.
func (p *Patterns) Parse(manager, name string) (u Unit, ok bool) {
	h, vm, isHelper := helper(name)
	if manager != blixard.SystemManager {
		if isHelper {
			return Unit{}, false
		}
		return match(p.User, name)
	}
	if isHelper {
		return Unit{Kind: KindHelper, VM: vm, Helper: h}, vm != ""
	}
	if rest, ok := strings.CutPrefix(name, installPrefix); ok {
		vm, ok := strings.CutSuffix(rest, serviceSuffix)
		return Unit{Kind: KindInstall, VM: vm}, ok && vm != ""
	}
	if name == target {
		return Unit{Kind: KindTarget}, true
	}
	return match(p.System, name)
}

// match finds the first pattern that the name fits.
func match(patterns []string, name string) (Unit, bool) {
	for _, pattern := range patterns {
		prefix, suffix, _ := strings.Cut(pattern, "*")
		if len(name) <= len(prefix)+len(suffix) || !strings.HasPrefix(name, prefix) || !strings.HasSuffix(name, suffix) {
			continue
		}
		vm := name[len(prefix) : len(name)-len(suffix)]
		// An instance of a template is not what a pattern without one means.
		if !strings.Contains(prefix, "@") && strings.Contains(vm, "@") {
			continue
		}
		return Unit{Kind: KindVM, VM: vm}, true
	}
	return Unit{}, false
}

// helper recognises the service of a helper; vm is empty for a template and for
// one named like it without an instance.
func helper(name string) (helper, vm string, ok bool) {
	rest, ok := strings.CutPrefix(name, helperPrefix)
	if !ok {
		return "", "", false
	}
	if rest, ok = strings.CutSuffix(rest, serviceSuffix); !ok {
		return "", "", false
	}
	h, vm, _ := strings.Cut(rest, "@")
	switch h {
	case "tap-interfaces", "macvtap-interfaces", "pci-devices", "virtiofsd", "set-booted":
		return h, vm, true
	}
	return "", "", false
}

// validInstance reports whether all bytes of s may stand in a unit's name.
func validInstance(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case c == ':', c == '-', c == '_', c == '.', c == '\\', c == '@':
		default:
			return false
		}
	}
	return true
}
