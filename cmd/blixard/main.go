// Command blixard shows what the monitors of a fleet of microVMs know, and
// changes their records.
//
// It holds no state and decides nothing: each command asks the daemon over its
// API and prints the answer. It sets up no signal handling: Ctrl-C and a closed
// pipe end it at once, as they end any other program.
package main

import (
	"context"
	"os"
)

// version and commit are set by the linker (-X main.version=… -X main.commit=…).
var (
	version = "dev"
	commit  = ""
)

func main() {
	a := newApp(os.Args[0], os.Getenv, os.Stdout, os.Stderr)
	os.Exit(a.run(context.Background(), os.Args[1:]))
}
