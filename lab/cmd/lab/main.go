// Command lab readies this machine for the lab's hosts and cleans up after
// killed ones.
//
//	go run ./lab/cmd/lab setup    install what is missing, make the root file system
//	go run ./lab/cmd/lab check    tell whether anything is missing
//	go run ./lab/cmd/lab sweep    remove what killed runs left
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/blixard/blixard/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: lab setup | check | sweep")
	}
	switch args[0] {
	case "setup":
		return lab.Setup(ctx, os.Stderr)
	case "check":
		return lab.Check()
	case "sweep":
		return lab.Sweep(ctx)
	}
	return fmt.Errorf("unknown command %q; usage: lab setup | check | sweep", args[0])
}
