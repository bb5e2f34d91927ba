package config

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/configuration.md")

// TestDocs holds docs/configuration.md to the table of keys.
func TestDocs(t *testing.T) {
	const name = "../docs/configuration.md"
	want := markdown()
	if *update {
		if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s does not tell what the keys are; write it anew with\n\tgo test ./config -run TestDocs -update", name)
	}
}

const preface = `<!-- Made from the table of keys in config/keys.go:
     go test ./config -run TestDocs -update -->
# Configuration

` + "`blixard-monitor`" + ` works without any configuration. What there is is read in this
order, and the later counts:

1. the defaults below;
2. ` + "`/etc/blixard/config.toml`" + `, in [TOML](https://toml.io);
3. ` + "`/etc/blixard/conf.d/*.toml`" + `, in the order of their names, hidden files left out;
4. the environment;
5. the flags of ` + "`blixard-monitor`" + `.

An ordinary user's daemon reads ` + "`$XDG_CONFIG_HOME/blixard/config.toml`" + ` (else
` + "`~/.config/blixard/config.toml`" + `) in place of the one in ` + "`/etc`" + `. The flag ` + "`--config`" + ` or
the variable ` + "`BLIXARD_CONFIG`" + ` names another file; ` + "`conf.d`" + ` is always looked for beside
it. A file that was named must be there, the usual one may be missing. A list in
a later place replaces the whole list.

Every key has an environment variable: ` + "`BLIXARD_`" + ` and the key in capitals, its dots
underscores. An empty variable counts as not set.

An unknown key, a value of another type or out of its bounds, an unknown variable
that begins with ` + "`BLIXARD_`" + `: each is an error that says where it stands, and the
daemon does not start. ` + "`blixard config validate`" + ` tells before, ` + "`blixard config show`" + `
prints every key with its value and where that comes from.

On SIGHUP (` + "`systemctl reload blixard-monitor`" + `) the daemon reads everything anew and
takes up the keys marked so; the others need a restart. A configuration that is
refused then changes nothing.

Types: a *duration* is a string such as ` + "`\"30s\"`, `\"5m\"` or `\"1h30m\"`" + `; a *size* one such as
` + "`\"512MiB\"`" + ` or ` + "`\"2GiB\"`" + `; a *path* is absolute.
`

// markdown is the page of all keys.
func markdown() string {
	var b strings.Builder
	b.WriteString(preface)
	c := Default(Environment{HostName: "h1"})
	section := "-"
	for _, k := range Keys() {
		table, _, ok := strings.Cut(k.Name, ".")
		if !ok {
			table = ""
		}
		if table != section {
			section = table
			if table == "" {
				b.WriteString("\n## Outside any table\n")
			} else {
				fmt.Fprintf(&b, "\n## [%s]\n", table)
			}
		}
		def := k.Default
		if def == "" {
			def = "`" + k.TOML(&c) + "`"
		}
		fmt.Fprintf(&b, "\n### %s\n%s\n\n", strings.TrimPrefix(k.Name, table+"."), k.Text)
		fmt.Fprintf(&b, "- Type: %s\n- Possible: %s\n- Default: %s\n- Environment: `%s`\n", k.Type, k.Bounds, def, k.Variable())
		if k.Reload {
			b.WriteString("- Taken up on SIGHUP\n")
		}
	}
	return b.String()
}
