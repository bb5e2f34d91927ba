// Command demo shows Blixard at its main job on real input: a host with real
// systemd, real QEMU guests under microvm.nix's units, and blixard-monitor under
// its own. It breaks a guest, shows what is seen of it, and leaves a person at a
// live view. Without a terminal it shows the same, checks what it showed, cleans
// up and ends.
//
//	go run ./lab/cmd/demo [-bin DIR] [-machine]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/term"
)

func main() {
	bin := flag.String("bin", "bin", "folder of the built programs")
	machine := flag.Bool("machine", false, "use a QEMU machine even where namespaces would do")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	d := &demo{bin: *bin, machine: *machine, interactive: term.IsTerminal(0) && term.IsTerminal(1), start: time.Now()}
	err := d.run(ctx)
	switch {
	case err == nil:
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		fmt.Fprintln(os.Stderr, "\ndemo: interrupted; everything is cleaned up")
		stop()
		os.Exit(130)
	default:
		fmt.Fprintln(os.Stderr, "demo:", err)
		stop()
		os.Exit(1)
	}
}
