// Package microvm knows what microvm.nix puts on a host: how its units are named,
// and what its state directory and the Nix store tell of a VM.
//
// Patterns tells VMs' units, their helpers and the rest apart by name. A Scanner
// reads the state directory and keeps what it read until a VM's folder changes.
//
// Guests' VMMs can write to the state directory, so nothing in it is trusted:
// links are read and never followed, their targets are looked up inside the store
// only, nothing but short regular files is read, and no read waits for another
// process. What could not be read is said field by field; the package never
// guesses. A directory that could not be listed whole is not an empty one.
//
// The package changes nothing on the host. Functions and Patterns may be used
// from many goroutines as long as nobody writes to the Patterns; so may a
// Scanner, whose calls wait for each other.
package microvm
