package main

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/monitor"
	"github.com/blixard/blixard/systemd"
)

// callMeter counts calls to service managers by method.
type callMeter interface {
	BusCall(method string, err error)
}

// bus is a connection to a service manager as the monitor wants it.
type bus struct {
	*systemd.Conn
	meter callMeter
}

// dial connects to a manager. Hints are of units that classify, and of users'
// managers.
func dial(ctx context.Context, manager string, units monitor.Units, meter callMeter) (monitor.Bus, string, error) {
	cfg := systemd.Config{Filter: func(name string) bool {
		_, _, _, ok := units.Classify(manager, name)
		return ok || manager == blixard.SystemManager && monitor.IsUserManager(name)
	}}
	if uid, ok := strings.CutPrefix(manager, "user:"); ok {
		n, err := strconv.ParseUint(uid, 10, 32)
		if err != nil {
			return nil, "", blixard.Errorf(blixard.CodeInvalid, "no manager is named %q", manager)
		}
		u := uint32(n)
		cfg.UID = &u
	}
	conn, err := systemd.Dial(ctx, cfg)
	if err != nil {
		return nil, "", err
	}
	version, err := conn.Version(ctx)
	meter.BusCall("Version", err)
	if err != nil {
		conn.Close()
		return nil, "", err
	}
	return &bus{conn, meter}, version, nil
}

func (b *bus) ListUnits(ctx context.Context, patterns ...string) ([]blixard.Unit, error) {
	units, err := b.Conn.ListUnits(ctx, patterns...)
	b.meter.BusCall("ListUnitsByPatterns", err)
	return units, err
}

func (b *bus) Properties(ctx context.Context, path string) (blixard.UnitProperties, error) {
	p, err := b.Conn.Properties(ctx, path)
	if errors.Is(err, systemd.ErrNoUnit) {
		err = monitor.ErrNoUnit
	}
	b.meter.BusCall("GetAll", err)
	return p, err
}
