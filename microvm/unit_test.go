package microvm_test

import (
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/microvm"
)

func TestPatterns_Parse(t *testing.T) {
	p := microvm.DefaultPatterns()
	user := blixard.UserManager(1000)
	long := strings.Repeat("x", 300)
	vm := func(name string) microvm.Unit { return microvm.Unit{Kind: microvm.KindVM, VM: name} }
	helper := func(h, name string) microvm.Unit {
		return microvm.Unit{Kind: microvm.KindHelper, VM: name, Helper: h}
	}
	none := microvm.Unit{}
	for _, tt := range []struct {
		manager, name string
		want          microvm.Unit
	}{
		{"system", "microvm@web-1.service", vm("web-1")},
		{"system", `microvm@web\x2d1.service`, vm(`web\x2d1`)},
		{"system", "microvm@a@b.service", vm("a@b")},
		{"system", "microvm@.service.service", vm(".service")},
		{"system", "microvm@...service", vm("..")},
		{"system", "microvm@-rf.service", vm("-rf")},
		{"system", "microvm@a\n\x00\xff\u202e.service", vm("a\n\x00\xff\u202e")},
		{"system", "microvm@" + long + ".service", vm(long)},
		{"system", "microvm@.service", none},
		{"system", "microvm@service", none},
		{"system", "microvm@x.servic", none},
		{"system", "microvm@x.socket", none},
		{"system", "microvm@x.service.d", none},
		{"system", "xmicrovm@x.service", none},
		{"system", "microvm.service", none},
		{"system", "microvm-web.service", none},
		{"system", "microvm-other@web.service", none},
		{"system", "", none},
		{"system", "microvm-tap-interfaces@web-1.service", helper("tap-interfaces", "web-1")},
		{"system", "microvm-macvtap-interfaces@web-1.service", helper("macvtap-interfaces", "web-1")},
		{"system", "microvm-pci-devices@web-1.service", helper("pci-devices", "web-1")},
		{"system", "microvm-virtiofsd@web-1.service", helper("virtiofsd", "web-1")},
		{"system", "microvm-virtiofsd@a@b.service", helper("virtiofsd", "a@b")},
		{"system", "microvm-set-booted@web-1.service", helper("set-booted", "web-1")},
		{"system", "microvm-virtiofsd@.service", none},
		{"system", "microvm-virtiofsd.service", none},
		{"system", "install-microvm-web-1.service", microvm.Unit{Kind: microvm.KindInstall, VM: "web-1"}},
		{"system", "install-microvm-.service", none},
		{"system", "install-microvm-web-1.timer", none},
		{"system", "microvms.target", microvm.Unit{Kind: microvm.KindTarget}},
		{"system", "system-microvm.slice", none},

		{user, "microvm-web-1.service", vm("web-1")},
		{user, "microvm-virtiofsd-too.service", vm("virtiofsd-too")},
		{user, "microvm-virtiofsd.service", none},
		{user, "microvm-virtiofsd@web-1.service", none},
		{user, "microvm-tap-interfaces@x.service", none},
		{user, "microvm-other@x.service", none},
		{user, "microvm-.service", none},
		{user, "microvm-backup.timer", none},
		{user, "microvmd.service", none},
		{user, "microvm@web-1.service", none},
		{user, "microvms.target", none},
		{user, "install-microvm-x.service", none},
	} {
		got, ok := p.Parse(tt.manager, tt.name)
		if ok != (tt.want != none) || ok && got != tt.want {
			t.Errorf("%s %q: %+v, %v; want %+v", tt.manager, tt.name, got, ok, tt.want)
		}
	}

	own := microvm.Patterns{System: []string{"vm-*.service", "kvm@*-guest.service"}, User: []string{"box@*.service"}}
	for _, tt := range []struct {
		manager, name string
		want          microvm.Unit
	}{
		{"system", "vm-a.service", vm("a")},
		{"system", "vm-a@b.service", none},
		{"system", "kvm@a-guest.service", vm("a")},
		{"system", "kvm@-guest.service", none},
		{"system", "microvm@a.service", none},
		{"system", "microvm-virtiofsd@a.service", helper("virtiofsd", "a")},
		{user, "box@a.service", vm("a")},
		{user, "microvm-a.service", none},
	} {
		got, ok := own.Parse(tt.manager, tt.name)
		if ok != (tt.want != none) || ok && got != tt.want {
			t.Errorf("own patterns: %s %q: %+v, %v; want %+v", tt.manager, tt.name, got, ok, tt.want)
		}
	}
}

func TestPatterns_Validate(t *testing.T) {
	d := microvm.DefaultPatterns()
	if err := d.Validate(); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{
		"", "microvm@.service", "*.service", "microvm@*", "microvm@**.service", "m*@*.service", "microvm@*.timer",
		"micro vm@*.service", "micro/vm@*.service", "[m]icrovm@*.service", "micr?vm@*.service", "m\n@*.service", "m\xff@*.service",
		"microvm-virtiofsd@*.service", "install-microvm-*.service", strings.Repeat("m", 300) + "@*.service",
	} {
		for _, p := range []microvm.Patterns{{System: []string{bad}}, {User: []string{"ok-*.service", bad}}} {
			if p.Validate() == nil {
				t.Errorf("pattern %q is accepted", bad)
			}
		}
	}
	many := microvm.Patterns{System: slices.Repeat([]string{"microvm@*.service"}, 100)}
	if many.Validate() == nil {
		t.Error("100 patterns are accepted")
	}
}

func TestPatterns_List(t *testing.T) {
	p := microvm.DefaultPatterns()
	if got := p.List(blixard.UserManager(7)); !slices.Equal(got, p.User) {
		t.Errorf("user: %q", got)
	}
	got := p.List(blixard.SystemManager)
	want := []string{"microvm@*.service", "microvm-tap-interfaces@*.service", "microvm-macvtap-interfaces@*.service", "microvm-pci-devices@*.service",
		"microvm-virtiofsd@*.service", "microvm-set-booted@*.service", "install-microvm-*.service", "microvms.target"}
	if !slices.Equal(got, want) {
		t.Errorf("system: %q", got)
	}
	got[0] = "changed"
	if p.System[0] == "changed" {
		t.Error("the list is the patterns' own")
	}
	for _, pattern := range want {
		if u, ok := p.Parse(blixard.SystemManager, strings.Replace(pattern, "*", "x", 1)); !ok {
			t.Errorf("%q is asked for and not known: %+v", pattern, u)
		}
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"web-1": "web-1", `web\x2d1`: `web\x2d1`, "ü": "ü", "": "",
		"a\nb": `a\x0ab`, "\x1b]0;x\a": `\x1b]0;x\x07`, "a\x00": `a\x00`, "\xffa": `\xffa`, "\u202ea": `\u{202e}a`,
		"a\u0085": `a\u{85}`, "\ufffd": "\ufffd", "\u200b": `\u{200b}`, "\x7f": `\x7f`,
	} {
		if got := microvm.Printable(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzPatterns_Parse(f *testing.F) {
	for _, s := range []string{"microvm@web-1.service", "microvm-virtiofsd@x.service", "install-microvm-x.service", "microvms.target", "microvm@\xff\n.service"} {
		f.Add(s, true)
		f.Add(s, false)
	}
	p := microvm.DefaultPatterns()
	f.Fuzz(func(t *testing.T, name string, system bool) {
		manager := blixard.UserManager(1000)
		if system {
			manager = blixard.SystemManager
		}
		u, ok := p.Parse(manager, name)
		if ok {
			want := map[microvm.Kind]string{
				microvm.KindVM: "microvm@" + u.VM + ".service", microvm.KindHelper: "microvm-" + u.Helper + "@" + u.VM + ".service",
				microvm.KindInstall: "install-microvm-" + u.VM + ".service", microvm.KindTarget: "microvms.target",
			}[u.Kind]
			if !system {
				want = "microvm-" + u.VM + ".service"
			}
			if name != want || u.Kind != microvm.KindTarget && u.VM == "" {
				t.Errorf("%q: %+v", name, u)
			}
		}
		out := microvm.Printable(name)
		if !utf8.ValidString(out) {
			t.Errorf("%q becomes %q, which is no UTF-8", name, out)
		}
		for _, r := range out {
			if !unicode.IsPrint(r) {
				t.Errorf("%q becomes %q with %U", name, out, r)
			}
		}
		if out != name && microvm.Printable(out) != out {
			t.Errorf("%q is not printable yet", out)
		}
	})
}
