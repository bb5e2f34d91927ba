// Package store keeps records and events in a replicated store, etcd, and is the
// only package that knows it: keys, encodings, guarded operations, a mirror in
// memory, and the member as a child process. DESIGN.md says how and why.
//
// Every write is one transaction that compares the node's sequence and the
// revision of each record it touches; to repeat it changes nothing. The package
// refuses to write what it could not read back, and never overwrites a value
// that a newer version wrote.
//
// A Store's methods may be called from many goroutines. Reads are from memory;
// only Apply and Wait block, until their context ends at most.
package store
