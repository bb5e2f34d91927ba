package main

import (
	"context"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/store"
)

// records is the store as the monitor of a node wants it.
type records struct {
	*store.Store
	node string
}

// Load waits until the store was read once.
func (r *records) Load(ctx context.Context) ([]blixard.VMRecord, []blixard.Event, error) {
	v, err := r.Loaded(ctx)
	if err != nil {
		return nil, nil, err
	}
	return v.VMs(r.node), v.Events(blixard.EventQuery{}), nil
}
