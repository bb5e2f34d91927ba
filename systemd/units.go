package systemd

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/blixard/blixard"
)

const (
	managerName  = "org.freedesktop.systemd1"
	managerPath  = "/org/freedesktop/systemd1"
	unitRoot     = managerPath + "/unit"
	managerIface = "org.freedesktop.systemd1.Manager"
	unitIface    = "org.freedesktop.systemd1.Unit"
	propsIface   = "org.freedesktop.DBus.Properties"
)

// ErrNoUnit says that the manager does not have the unit that was asked for.
var ErrNoUnit = errors.New("unit not loaded")

// ListUnits lists the loaded units whose name matches one of the patterns, which
// are globs as in systemctl's; with none, all. The order is the manager's. It
// blocks for one call.
func (c *Conn) ListUnits(ctx context.Context, patterns ...string) ([]blixard.Unit, error) {
	for _, p := range patterns {
		if err := checkString(p); err != nil {
			return nil, fmt.Errorf("list units: %w", err)
		}
	}
	var units []blixard.Unit
	m := method{
		destination: c.destination(), path: managerPath, iface: managerIface, member: "ListUnitsByPatterns",
		signature: "asas", body: appendStrings(appendStrings(nil, nil), patterns),
	}
	err := c.call(ctx, &m, "a(ssssssouso)", func(d *decoder) error {
		units = c.decodeUnits(d)
		return d.err
	})
	if err != nil {
		return nil, fmt.Errorf("list units: %w", err)
	}
	return units, nil
}

// decodeUnits reads the rows of a listing. Strings come from the listing before
// where they are the same. Only the reader calls it.
func (c *Conn) decodeUnits(d *decoder) []blixard.Unit {
	end := d.array(8)
	var units []blixard.Unit
	for d.left(end) {
		d.align(8)
		name := d.string()
		d.skipString() // description
		load, active, sub := d.string(), d.string(), d.string()
		d.skipString() // following
		path := d.string()
		job := d.uint32()
		jobType := d.string()
		d.skipString() // job's path
		if d.err != nil {
			return nil
		}
		if units == nil {
			// The first row tells about how many there are.
			units = make([]blixard.Unit, 0, (end-d.pos)/(d.pos+1)+1)
		}
		u := blixard.Unit{LoadState: c.words.get(load), ActiveState: c.words.get(active), SubState: c.words.get(sub)}
		u.Name, u.Path = c.names.get(name, path)
		if job != 0 {
			u.JobType = c.words.get(jobType)
		}
		units = append(units, u)
	}
	c.names.listed(len(units))
	return units
}

// Properties reads the properties of a unit, of all its interfaces, in one call.
// path is the unit's object path from a listing. ErrNoUnit says that the manager
// does not have it; a unit that it can load from a template it loads to answer.
// JobType and Path are not part of the answer. It blocks for one call.
func (c *Conn) Properties(ctx context.Context, path string) (blixard.UnitProperties, error) {
	if err := checkPath(path); err != nil {
		return blixard.UnitProperties{}, fmt.Errorf("read properties: %w", err)
	}
	var p blixard.UnitProperties
	m := method{
		destination: c.destination(), path: path, iface: propsIface, member: "GetAll",
		signature: "s", body: appendString(nil, ""),
	}
	err := c.call(ctx, &m, "a{sv}", func(d *decoder) error {
		p = c.decodeProperties(d)
		return d.err
	})
	if err != nil {
		if e, ok := errors.AsType[*CallError](err); ok && e.noUnit() {
			err = fmt.Errorf("%w: %w", ErrNoUnit, err)
		}
		return blixard.UnitProperties{}, fmt.Errorf("read properties of %s: %w", path, err)
	}
	if p.LoadState == "not-found" && p.ActiveState == "inactive" {
		// Asked for a unit it does not have, a manager makes one up.
		return blixard.UnitProperties{}, fmt.Errorf("read properties of %s: %w", path, ErrNoUnit)
	}
	p.Path = path
	return p, nil
}

// serviceProperties counts the properties of a service that decodeProperties
// reads: only when all of them came is what they say known.
const serviceProperties = 10

// decodeProperties reads what UnitProperties holds and skips the rest. A
// property of another type than expected counts as not sent. Only the reader
// calls it.
func (c *Conn) decodeProperties(d *decoder) blixard.UnitProperties {
	var p blixard.UnitProperties
	service := 0
	word := func(to *string) bool {
		if !d.variant("s") {
			return false
		}
		*to = c.words.get(d.string())
		return true
	}
	number := func(to *int32) bool {
		if !d.variant("i") {
			return false
		}
		*to = int32(d.uint32())
		return true
	}
	count := func(to *uint32) bool {
		if !d.variant("u") {
			return false
		}
		*to = d.uint32()
		return true
	}
	text := func(to *string) bool {
		if !d.variant("s") {
			return false
		}
		*to = string(d.string())
		return true
	}
	moment := func(to *time.Time) bool {
		if !d.variant("t") {
			return false
		}
		*to = timestamp(d.uint64())
		return true
	}
	for end := d.array(8); d.left(end); {
		d.align(8)
		var found bool
		switch string(d.string()) {
		case "Id":
			text(&p.Name)
		case "LoadState":
			word(&p.LoadState)
		case "ActiveState":
			word(&p.ActiveState)
		case "SubState":
			word(&p.SubState)
		case "FragmentPath":
			word(&p.FragmentPath)
		case "DropInPaths":
			if d.variant("as") {
				for last := d.array(4); d.left(last); {
					p.DropInPaths = append(p.DropInPaths, c.words.get(d.string()))
				}
			}
		case "InvocationID":
			if d.variant("ay") {
				p.InvocationID = invocationID(d.bytes())
			}
		case "StateChangeTimestamp":
			moment(&p.StateChange)
		case "Job":
			if d.variant("(uo)") {
				d.align(8)
				p.JobQueued = d.uint32() != 0
				d.skipString()
			}
		case "Type":
			found = word(&p.Type)
		case "Restart":
			found = word(&p.Restart)
		case "MainPID":
			found = count(&p.MainPID)
		case "ControlGroup":
			found = text(&p.ControlGroup)
		case "NRestarts":
			found = count(&p.NRestarts)
		case "Result":
			found = word(&p.Result)
		case "ExecMainCode":
			found = number(&p.ExecMainCode)
		case "ExecMainStatus":
			found = number(&p.ExecMainStatus)
		case "ExecMainStartTimestamp":
			found = moment(&p.ExecMainStart)
		case "StatusText":
			found = text(&p.StatusText)
		default:
			d.skipVariant(1)
		}
		if found {
			service++
		}
	}
	p.Service = service == serviceProperties
	if !p.Service {
		// Mounts have a Type and a Result too; what is not a whole service tells
		// nothing of one.
		return blixard.UnitProperties{
			Unit: p.Unit, InvocationID: p.InvocationID, StateChange: p.StateChange, JobQueued: p.JobQueued,
			FragmentPath: p.FragmentPath, DropInPaths: p.DropInPaths,
		}
	}
	return p
}

// timestamp is a moment by the wall clock in µs, zero when there was none.
func timestamp(usec uint64) time.Time {
	if usec == 0 || usec > math.MaxInt64 {
		return time.Time{}
	}
	return time.UnixMicro(int64(usec))
}

// invocationID is the id in hex, empty when there is none.
func invocationID(b []byte) string {
	if len(b) != 16 || [16]byte(b) == [16]byte{} {
		return ""
	}
	return hex.EncodeToString(b)
}

// Version is the manager's version as it gives it, such as 252.39-1. It blocks
// for one call.
func (c *Conn) Version(ctx context.Context) (string, error) {
	var version string
	m := method{
		destination: c.destination(), path: managerPath, iface: propsIface, member: "Get",
		signature: "ss", body: appendString(appendString(nil, managerIface), "Version"),
	}
	err := c.call(ctx, &m, "v", func(d *decoder) error {
		if !d.variant("s") {
			return errMalformed
		}
		version = string(d.string())
		return d.err
	})
	if err != nil {
		return "", fmt.Errorf("read version: %w", err)
	}
	return version, nil
}
