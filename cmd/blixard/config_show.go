package main

import (
	"cmp"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/config"
)

// setting is one key with its value.
type setting struct {
	Key    string `json:"key"`
	Value  any    `json:"value"`
	Source string `json:"source"`
	// toml is the value as it stands in the file.
	toml string
	key  config.Key
	// place is its place in the table of keys.
	place int
}

func settingNoun() *noun[setting] {
	return &noun[setting]{
		fields: []field[setting]{
			{"key", "KEY", func(s *setting) value { return text(s.Key) }},
			{"value", "VALUE", func(s *setting) value {
				v := text(fmt.Sprint(s.Value))
				v.text, v.here = s.toml, true
				return v
			}},
			{"source", "SOURCE", func(s *setting) value { return text(s.Source) }},
			{"variable", "VARIABLE", func(s *setting) value { return text(s.key.Variable()) }},
			{"type", "TYPE", func(s *setting) value { return text(s.key.Type) }},
			{"bounds", "BOUNDS", func(s *setting) value { return text(s.key.Bounds) }},
			{"reload", "RELOAD", func(s *setting) value { return boolean(s.key.Reload) }},
		},
		table: []string{"key", "value", "source"},
		wide:  []string{"key", "value", "source", "variable", "type", "reload", "bounds"},
		id:    func(s *setting) string { return s.Key },
		order: func(a, b *setting) int { return cmp.Compare(a.place, b.place) },
	}
}

func (a *app) configShowCommand() *cobra.Command {
	var flags listFlags
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show every setting and where it comes from",
		Long: `Show every setting as a daemon started by you would read it now, and where it comes
from: the file and its line, an environment variable, or the default. The settings
of a unit come from the unit's environment too; run it as root for the system's
defaults.`,
		Args: args(0, 0, ""),
	}
	file := configFlag(cmd)
	flags.register(cmd, settingNoun().keys())
	cmd.RunE = func(*cobra.Command, []string) error {
		v, err := newView(a, settingNoun(), &flags)
		if err != nil {
			return err
		}
		cfg, sources, err := loadConfig(*file)
		if err != nil {
			return err
		}
		var items []setting
		for i, k := range config.Keys() {
			items = append(items, setting{Key: k.Name, Value: k.Value(&cfg), Source: sources[k.Name], toml: k.TOML(&cfg), key: k, place: i})
		}
		items = v.choose(items)
		var b []byte
		switch answer := struct {
			Items []setting `json:"items"`
		}{items}; v.format {
		case "json":
			b, err = encoded(answer)
		case "yaml":
			b, err = encodedYAML(answer)
		default:
			b, err = v.render(blixard.List[setting]{Items: items})
		}
		if err != nil {
			return err
		}
		return a.print(b)
	}
	return cmd
}
