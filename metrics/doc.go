// Package metrics serves what is known in the formats of Prometheus: text 0.0.4
// and OpenMetrics 1.0.
//
// The series of VMs and of the store are written straight from what the Source
// has in memory; only the daemon's own counters go through a registry. A scrape
// makes no call to a service manager and waits for no VM.
//
// The package refuses to invent: a series is absent when its value is not known,
// and it ends with its VM. It takes no text that a guest chose into a label. The
// names of VMs and units are an administrator's, and made harmless all the same.
//
// Only the VMs of the node that answers are told, without a label for the node:
// whoever scrapes many nodes knows them by their addresses.
//
// All methods may be called from many goroutines, and none blocks for longer
// than the Source does.
package metrics
