// Package store keeps records and history in etcd: the only package that knows
// it. It holds the data directory, the member that runs as a child process, the
// keys and encodings, the guarded operations, and a mirror in memory from which
// everything is read.
//
// It refuses to decide anything: what is written is the caller's, and what
// cannot be read, because it is damaged or of a newer version, is counted,
// listed and left as it is. It never says that a write was done unless etcd
// acknowledged it, and never does one twice.
//
// All methods of Store, View and Supervisor may be called at once, except that
// Run is called once. Views never change after they were published. DESIGN.md
// tells the invariants and why it is built this way.
package store
