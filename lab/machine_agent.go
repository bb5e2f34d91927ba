package lab

import (
	"fmt"
	"strings"
)

// forwardedPort is the port of this machine's loopback that QEMU forwards into
// the guest.
func (e *emulator) forwardedPort() (int, error) {
	var text string
	if err := e.qmp.ask("human-monitor-command", map[string]string{"command-line": "info usernet"}, &text); err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		// TCP[HOST_FORWARD]  fd  source address  port  destination address  port …
		fields := strings.Fields(line)
		if len(fields) > 3 && fields[0] == "TCP[HOST_FORWARD]" {
			var port int
			if _, err := fmt.Sscan(fields[3], &port); err != nil {
				return 0, fmt.Errorf("read forwarded port: %w", err)
			}
			return port, nil
		}
	}
	return 0, fmt.Errorf("QEMU forwards no port: %s", text)
}
