// Package systemd talks to a service manager over D-Bus: it lists units, reads
// a unit's properties, and tells what changed. It also speaks the daemon's own
// side of the notify protocol, see Notifier.
//
// A Conn is one connection to one manager: the system's over the system bus, or
// a user's over that user's bus or, where there is none, the manager's private
// socket. It speaks the few messages it needs by itself, because a listing of
// thousands of units is decoded every cycle: frames are read into one reused
// buffer, fields nobody asked for are skipped, and repeated strings are shared.
//
// Signals are hints. They are gathered in a bounded set; beyond the bound the
// set says that everything may have changed. A listing is the truth.
//
// The package refuses to start, stop or change any unit: it holds no call that
// could. It answers no calls of others and takes no file descriptors. Signals
// count only from the manager itself, since anyone on a bus may send one to
// anyone.
//
// All methods of a Conn may be called from many goroutines, Hints from one at a
// time. A lost connection fails all calls at once and is not repaired: dial
// again.
package systemd
