// Package correlate decides: from what a host observes and what is recorded to
// what each VM's state is, what happened, and what is to be written.
//
// It is pure. It does no I/O, starts no goroutine and has no clock: every time
// is passed in. A Tracker belongs to one goroutine; the values it hands out are
// never changed afterwards and may be read from many.
//
// A failed or partial observation decides nothing about what it does not
// mention: only a complete listing together with a complete reading of the
// host's files can make a VM missing.
package correlate
