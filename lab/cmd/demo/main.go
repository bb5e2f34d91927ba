// Command demo shows Blixard at its main job on real input: a host with real
// systemd, real QEMU guests under microvm.nix's units, and blixard-monitor under
// its own. It breaks a guest, shows what is seen of it, and leaves a person at a
// live view. Without a terminal it shows the same, checks what it showed, cleans
// up and ends.
//
// Where root or namespaces are refused, or with -machine, the host is a QEMU
// machine and its VMMs are stand-ins. With -on it runs a command on the machine
// of a demo that is at its live view.
//
//	demo [-bin DIR] [-machine]
//	demo -on SOCKET COMMAND...
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/term"
)

func main() {
	bin := flag.String("bin", "bin", "folder of the built programs")
	machine := flag.Bool("machine", false, "use a QEMU machine even where namespaces would do")
	on := flag.String("on", "", "run a command through the socket of a demo's machine")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code, err := run(ctx, *bin, *machine, *on)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
	}
	os.Exit(code)
}

func run(ctx context.Context, bin string, machine bool, on string) (code int, err error) {
	if on != "" {
		return runOn(ctx, on, flag.Args())
	}
	if bin, err = filepath.Abs(bin); err != nil {
		return 1, err
	}
	d := &demo{bin: bin, machine: machine, interactive: term.IsTerminal(0) && term.IsTerminal(1), start: time.Now()}
	err = d.run(ctx)
	switch {
	case errors.Is(err, errUnclean):
		return 1, err
	case ctx.Err() != nil && d.live:
		// That is how a live view ends.
		return 0, nil
	case ctx.Err() != nil:
		return 130, errors.New("interrupted; everything is cleaned up")
	case err != nil:
		return 1, err
	}
	return 0, nil
}
