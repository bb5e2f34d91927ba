#!/bin/bash
# Presses the guest's power button and waits for the guest to heed it.
{
	echo '{"execute":"qmp_capabilities"}'
	echo '{"execute":"system_powerdown"}'
	while kill -0 "$MAINPID" 2>/dev/null; do sleep 0.05; done
} | socat STDIO,shut-none UNIX:{{.HostName}}.sock
