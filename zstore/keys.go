package store

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/blixard/blixard"
)

// prefix is before every key; its version is that of the layout of keys.
const prefix = "/blixard/v1/"

// The keys.
//
//	nodes/<node id>                          a node's record
//	alive/<node id>                          there while the node's lease is
//	microvms/<node id>/<manager>/<name>      a VM's record
//	events/<node id>/<sequence>              the events of one batch
//	seq/<node id>                            the node's sequence
//	floor                                    the newest index that was trimmed
const (
	nodesPrefix  = prefix + "nodes/"
	alivePrefix  = prefix + "alive/"
	vmsPrefix    = prefix + "microvms/"
	eventsPrefix = prefix + "events/"
	seqPrefix    = prefix + "seq/"
	floorKey     = prefix + "floor"
)

func nodeKey(id string) string  { return nodesPrefix + id }
func aliveKey(id string) string { return alivePrefix + id }
func seqKey(id string) string   { return seqPrefix + id }

// vmKey is the key of a VM's record. Its parts are escaped, so that any bytes
// make one segment.
func vmKey(nodeID, manager, name string) string {
	return vmsPrefix + nodeID + "/" + url.PathEscape(manager) + "/" + url.PathEscape(name)
}

// eventsKey is the key of a batch's events; keys of one node sort by sequence.
func eventsKey(nodeID string, seq uint64) string {
	return fmt.Sprintf("%s%s/%016x", eventsPrefix, nodeID, seq)
}

// parseVMKey is vmKey's inverse.
func parseVMKey(key string) (nodeID, manager, name string, err error) {
	parts := strings.Split(strings.TrimPrefix(key, vmsPrefix), "/")
	if !strings.HasPrefix(key, vmsPrefix) || len(parts) != 3 || parts[0] == "" {
		return "", "", "", fmt.Errorf("key %q is no VM's", key)
	}
	if manager, err = url.PathUnescape(parts[1]); err == nil {
		name, err = url.PathUnescape(parts[2])
	}
	switch {
	case err != nil:
		return "", "", "", fmt.Errorf("key %q is no VM's: %w", key, err)
	case vmKey(parts[0], manager, name) != key || checkID(manager, name) != nil:
		return "", "", "", fmt.Errorf("key %q is no VM's", key)
	}
	return parts[0], manager, name, nil
}

// checkID refuses what cannot be the identity of a VM.
func checkID(manager, name string) error {
	if !blixard.IsManager(manager) {
		return fmt.Errorf("%q is no manager", manager)
	}
	if name == "" || len(name) > blixard.MaxName {
		return fmt.Errorf("a VM's name has 1 to %d bytes, not %d", blixard.MaxName, len(name))
	}
	return nil
}
