// Dialer dials a user's manager from within a lab's host, as the daemon would,
// and prints what came of it as JSON.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/systemd"
)

// Result is what came of it.
type Result struct {
	Code, Message, Hint string
	Version             string
	Unit                blixard.UnitProperties
	Hinted              bool
	Threads             []string // uids of this process's threads
}

func main() {
	uid := flag.Uint("uid", 0, "whose manager")
	address := flag.String("address", "", "where")
	times := flag.Int("times", 1, "how often to dial")
	unit := flag.String("unit", "", "unit to read, and to wait for a hint of")
	flag.Parse()
	var r Result
	if err := run(&r, uint32(*uid), *address, *unit, *times); err != nil {
		r.Code, r.Message = string(blixard.ErrorCode(err)), err.Error()
		if e, ok := err.(*blixard.Error); ok {
			r.Hint = e.Hint
		}
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for _, t := range tasks {
		status, err := os.ReadFile("/proc/self/task/" + t.Name() + "/status")
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(status)) {
			if uids, ok := strings.CutPrefix(line, "Uid:"); ok {
				r.Threads = append(r.Threads, strings.Join(strings.Fields(uids), " "))
			}
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		os.Exit(1)
	}
}

func run(r *Result, uid uint32, address, unit string, times int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cfg := systemd.Config{UID: &uid, Address: address, Filter: func(name string) bool { return name == unit }}
	for range times - 1 {
		c, err := systemd.Dial(ctx, cfg)
		if err != nil {
			return err
		}
		if err := c.Close(); err != nil {
			return err
		}
	}
	c, err := systemd.Dial(ctx, cfg)
	if err != nil {
		return err
	}
	defer c.Close()
	if r.Version, err = c.Version(ctx); err != nil {
		return err
	}
	units, err := c.ListUnits(ctx, unit)
	if err != nil {
		return err
	}
	for _, u := range units {
		if r.Unit, err = c.Properties(ctx, u.Path); err != nil {
			return err
		}
	}
	// From here on somebody changes the unit.
	fmt.Fprintln(os.Stderr, "listening")
	for !r.Hinted {
		h, err := c.Hints(ctx)
		if err != nil {
			return err
		}
		r.Hinted = slices.Contains(h.Units, unit)
	}
	return nil
}
