package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// The bounds of commands, so that a slip of the hand asks for nothing absurd.
const (
	secondsMax  = 3600
	transferMax = 65536 // MiB
)

const usage = "status | cpu PERCENT SECONDS | mem MB | free | disk MB | read MB | send MB | log TEXT | panic | poweroff | reboot | hang"

// do carries out one command. The answer is one line that begins with ok; end, if
// not nil, is to be called once the answer is out, and ends the guest.
//
//	status              what the guest did so far
//	cpu PERCENT SECONDS loads the processors, 100 percent each; 0 ends it
//	mem MB              takes and fills that much more memory
//	free                gives it back
//	disk MB             writes to /dev/vda, past the page cache, round and round
//	read MB             reads from it likewise
//	send MB             sends that much text before the answer
//	log TEXT            writes TEXT to the console as it stands; <N> in front is
//	                    its priority in the journal
//	panic               crashes the kernel
//	poweroff, reboot    as a guest of its own will
//	hang                answers nothing from here on, nor heeds the power button
func (g *guest) do(line string, out io.Writer) (answer string, end func() error, err error) {
	verb, rest, _ := strings.Cut(line, " ")
	args := strings.Fields(rest)
	if verb == "log" {
		if err := g.log(rest); err != nil {
			return "", nil, err
		}
		return "ok", nil, nil
	}
	want := map[string]int{"cpu": 2, "mem": 1, "disk": 1, "read": 1, "send": 1}[verb]
	if len(args) != want {
		return "", nil, fmt.Errorf("%q takes %d arguments; commands: %s", verb, want, usage)
	}
	switch verb {
	case "status":
		answer, err = g.status()
	case "cpu":
		err = g.cpu(args[0], args[1])
	case "mem":
		var mb int
		if mb, err = number(args[0], 1, transferMax); err == nil {
			err = g.load.take(mb)
		}
	case "free":
		err = g.load.free()
	case "disk", "read":
		var mb int
		if mb, err = number(args[0], 1, transferMax); err == nil {
			err = g.load.transfer(mb, verb == "disk")
		}
	case "send":
		var mb int
		if mb, err = number(args[0], 1, transferMax); err == nil {
			err = g.load.send(out, mb)
		}
	case "panic":
		end = crashKernel
	case "poweroff":
		end = powerOff
	case "reboot":
		end = reboot
	case "hang":
		g.hang() // This answer is the last.
	default:
		err = fmt.Errorf("no command %q; commands: %s", verb, usage)
	}
	if err != nil {
		return "", nil, err
	}
	return strings.TrimSpace("ok " + answer), end, nil
}

// number reads a whole number within bounds.
func number(text string, low, high int) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < low || n > high {
		return 0, fmt.Errorf("%q is not a number from %d to %d", text, low, high)
	}
	return n, nil
}

func (g *guest) cpu(percent, seconds string) error {
	p, perr := number(percent, 0, 100*g.load.cpus)
	s, serr := number(seconds, 0, secondsMax)
	if err := errors.Join(perr, serr); err != nil {
		return fmt.Errorf("%s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	g.load.burn(p, s)
	return nil
}

func (g *guest) status() (string, error) {
	uptime, err := readUptime()
	if err != nil {
		return "", err
	}
	free, err := memAvailable()
	if err != nil {
		return "", err
	}
	s := g.load.stats()
	return fmt.Sprintf("uptime=%.2f cpus=%d cpu_percent=%d mem_mb=%d mem_available_mb=%d written_mb=%d read_mb=%d sent_mb=%d lines=%d",
		uptime, g.load.cpus, s.percent, s.memMB, free, s.writtenMB, s.readMB, s.sentMB, g.logged()), nil
}
