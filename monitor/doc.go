// Package monitor is the service loop of a host: it watches every service
// manager and the host's files, keeps what they say in memory, and hands what
// changed to the store.
//
// Signals are hints and one complete listing an interval is the truth. One
// goroutine, the engine, owns all state and drives a correlate.Tracker; watchers
// (one a manager), the reader of the files and the writer to the store run
// beside it and wait for it, never it for them. So nothing that hangs, be it a
// bus, a file system or the store, delays what is seen elsewhere.
//
// The package talks to the world through the small interfaces below and refuses
// to know what is behind them.
package monitor

import (
	"context"
	"time"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/correlate"
)

// Bus is a connection to one service manager. Every call ends with its context
// or after a deadline of the connection's own. ListUnits, Properties and Hints
// may run at once.
type Bus interface {
	// ListUnits lists the loaded units that match one of the patterns.
	ListUnits(ctx context.Context, patterns ...string) ([]blixard.Unit, error)
	// Properties reads a unit's properties by its object path. ErrNoUnit says
	// that it is not loaded.
	Properties(ctx context.Context, path string) (blixard.UnitProperties, error)
	// Hints waits until something changed. An error means that the connection
	// is lost.
	Hints(ctx context.Context) (blixard.Hints, error)
	Close() error
}

// Files reads what the host's files define.
type Files interface {
	// Scan reads all of it. complete says that nothing else is defined;
	// otherwise reason says why that is not known.
	Scan(ctx context.Context) (defs map[string]correlate.Definition, complete bool, reason string)
	// Refresh reads what defines one VM; ok is false when nothing does or it
	// cannot be read.
	Refresh(ctx context.Context, name string) (d correlate.Definition, ok bool)
}

// Store keeps records and events. It may be away for any time.
type Store interface {
	// Apply writes a batch as one transaction. On CodeUnavailable,
	// CodeTimeout, CodeBusy and CodeConflict the same batch is sent again.
	Apply(ctx context.Context, b blixard.Batch) (index uint64, err error)
	// Load waits until the records of this node and its recent events can be
	// read, and returns them.
	Load(ctx context.Context) ([]blixard.VMRecord, []blixard.Event, error)
}

// Meter is told what the monitor does, for its metrics. It must not block.
type Meter interface {
	// Listed is one complete listing of a manager and how long it took.
	Listed(manager string, took time.Duration, err error)
	// Scanned is one reading of the files.
	Scanned(took time.Duration, complete bool)
	// Wrote is one attempt to write a batch.
	Wrote(b *blixard.Batch, took time.Duration, err error)
}

// Units tells the units of a host apart.
type Units interface {
	// Patterns are what to ask a manager for.
	Patterns(manager string) []string
	// Classify says what a unit is; ok is false for one that does not matter.
	Classify(manager, unit string) (kind correlate.Kind, vm, helper string, ok bool)
}

// Users finds the units of a user whose manager cannot be asked.
type Users interface {
	// Sighted lists the names of the units that a user is seen to run.
	Sighted(uid uint32) ([]string, error)
}
