// Scanner reads the state directory of the host it runs on and prints what it
// found as JSON.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/blixard/blixard/microvm"
)

func main() {
	s, err := microvm.NewScanner(microvm.DefaultConfig())
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(s.Scan(context.Background()))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
