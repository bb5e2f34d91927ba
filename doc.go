// Package blixard holds the nouns of the monitor: VM, Node, Event, Health,
// Unit, Command, Error, and Fleet, the contract that both the daemon and its
// HTTP client satisfy.
//
// The package imports the standard library only and does no I/O. Its types are
// plain values: safe to copy and to read from many goroutines as long as nobody
// writes to them; maps, slices and pointers inside a published value are never
// changed afterwards.
//
// The rule above all others is that unknown stays unknown. A field that could
// not be read is absent (nil, empty or missing from JSON), never zero by
// default, and a value carries the age of the observation behind it.
package blixard
