package systemd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	busName  = "org.freedesktop.DBus"
	busPath  = "/org/freedesktop/DBus"
	busIface = "org.freedesktop.DBus"
)

var (
	// errClosed is what calls get from a connection that Close ended.
	errClosed = errors.New("connection closed")
	// errTimeout is a call that nobody answered in time.
	errTimeout = fmt.Errorf("no answer: %w", context.DeadlineExceeded)
	// errAway is a bus without a manager.
	errAway = errors.New("the manager is not on the bus")
)

// CallError is the error that the other end answered a call with.
type CallError struct {
	// Name is the error's D-Bus name.
	Name string
	// Message is for people; it may be empty.
	Message string
}

func (e *CallError) Error() string {
	if e.Message == "" {
		return e.Name
	}
	return e.Message + " (" + e.Name + ")"
}

// noUnit says that the unit asked for is not there.
func (e *CallError) noUnit() bool {
	switch e.Name {
	case managerName + ".NoSuchUnit", busName + ".Error.UnknownObject":
		return true
	}
	return false
}

// away says that no manager was there to answer.
func (e *CallError) away() bool {
	switch e.Name {
	case busName + ".Error.NameHasNoOwner", busName + ".Error.ServiceUnknown", busName + ".Error.NoReply":
		return true
	}
	return false
}

// Conn is a connection to one manager, see the package documentation. Close it.
type Conn struct {
	nc      *net.UnixConn
	direct  bool
	timeout time.Duration
	log     *slog.Logger

	inFlight chan struct{} // a token for each call that waits
	hints    *hintSet

	// lost is closed when the connection is; lostErr says why from then on.
	lost     chan struct{}
	lostErr  error
	closeErr error
	loseOnce sync.Once
	readDone chan struct{}

	reloading atomic.Bool

	write sync.Mutex // held while a message is written, guards out
	out   []byte

	mu     sync.Mutex // guards what follows
	serial uint32
	calls  map[uint32]*pending
	// present is as manager tells.
	present chan struct{}

	// What follows belongs to the reader.
	words   words
	names   names
	owner   string // the manager's unique name, empty while it is away
	scratch []byte
}

// pending is a call that waits. The reader decodes its answer, so that the
// answer need not be copied, and closes done.
type pending struct {
	signature string
	decode    func(*decoder) error
	err       error
	done      chan struct{}
}

func newConn(nc *net.UnixConn, direct bool, cfg *Config) *Conn {
	c := &Conn{
		nc: nc, direct: direct, timeout: cfg.Timeout, log: cfg.Logger,
		inFlight: make(chan struct{}, maxInFlight),
		hints:    newHintSet(cfg.Filter),
		lost:     make(chan struct{}),
		readDone: make(chan struct{}),
		calls:    map[uint32]*pending{},
		present:  make(chan struct{}),
		words:    words{},
		names:    names{known: map[string]nameAndPath{}},
	}
	go c.read()
	return c
}

// destination is the bus name to send to the manager under.
func (c *Conn) destination() string {
	if c.direct {
		return ""
	}
	return managerName
}

// begin makes the connection ready: known to the bus and told of signals.
func (c *Conn) begin(ctx context.Context) error {
	if c.direct {
		// Behind a private socket every signal is sent to everybody.
		close(c.present)
		return c.subscribe(ctx)
	}
	if err := c.busCall(ctx, "Hello", "s", func(d *decoder) error { d.string(); return d.err }); err != nil {
		return err
	}
	const signal = "type='signal',sender='" + managerName + "',"
	manager := func(member string) string {
		return signal + "path='" + managerPath + "',interface='" + managerIface + "',member='" + member + "'"
	}
	rules := []string{
		"type='signal',sender='" + busName + "',interface='" + busIface + "',member='NameOwnerChanged',arg0='" + managerName + "'",
		signal + "interface='" + propsIface + "',member='PropertiesChanged',path_namespace='" + unitRoot + "',arg0='" + unitIface + "'",
		manager("UnitNew"), manager("UnitRemoved"), manager("JobRemoved"), manager("Reloading"),
	}
	for _, rule := range rules {
		if err := c.busCall(ctx, "AddMatch", "", nil, rule); err != nil {
			return err
		}
	}
	err := c.busCall(ctx, "GetNameOwner", "s", func(d *decoder) error {
		c.setOwner(string(d.string()))
		return d.err
	}, managerName)
	// A user's manager joins the bus a moment after the first who uses it: to
	// subscribe waits for that.
	if e, ok := errors.AsType[*CallError](err); ok && e.away() {
		err = nil
	}
	if err != nil {
		return err
	}
	return c.subscribe(ctx)
}

// subscribe asks the manager to send signals.
func (c *Conn) subscribe(ctx context.Context) error {
	m := method{destination: c.destination(), path: managerPath, iface: managerIface, member: "Subscribe"}
	err := c.call(ctx, &m, "", nil)
	if e, ok := errors.AsType[*CallError](err); ok && e.Name == managerName+".AlreadySubscribed" {
		return nil
	}
	if err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	return nil
}

// busCall calls the bus itself.
func (c *Conn) busCall(ctx context.Context, member, signature string, decode func(*decoder) error, args ...string) error {
	m := method{destination: busName, path: busPath, iface: busIface, member: member}
	for _, arg := range args {
		m.signature += "s"
		m.body = appendString(m.body, arg)
	}
	if err := c.exchange(ctx, &m, signature, decode); err != nil {
		return fmt.Errorf("%s: %w", member, err)
	}
	return nil
}

// call calls the manager. While that is away from the bus, as it is for a moment
// when it re-executes itself, the call waits for it.
func (c *Conn) call(ctx context.Context, m *method, signature string, decode func(*decoder) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, max(c.timeout, reloadTimeout), errTimeout)
	defer cancel()
	for {
		present := c.manager()
		if err := c.await(ctx, present); err != nil {
			return err
		}
		err := c.exchange(ctx, m, signature, decode)
		// The bus tells that the manager left before it says so to callers.
		if e, ok := errors.AsType[*CallError](err); !ok || !e.away() || c.manager() == present {
			return err
		}
	}
}

// manager is a channel that is closed while the manager is on the bus; there is
// another one each time it comes or goes.
func (c *Conn) manager() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.present
}

// await waits for the manager.
func (c *Conn) await(ctx context.Context, present <-chan struct{}) error {
	select {
	case <-present:
		return nil
	default:
	}
	timer := time.NewTimer(c.timeout)
	defer timer.Stop()
	select {
	case <-present:
		return nil
	case <-timer.C:
		return errAway
	case <-c.lost:
		return c.lostErr
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// exchange sends a call and waits until the reader has decoded its answer, which
// must have that signature.
func (c *Conn) exchange(ctx context.Context, m *method, signature string, decode func(*decoder) error) error {
	timer := time.NewTimer(c.timeout)
	defer timer.Stop()
	p := &pending{signature: signature, decode: decode, done: make(chan struct{})}
	select {
	case c.inFlight <- struct{}{}:
	default:
		if err := c.wait(ctx, timer, c.inFlight, nil); err != nil {
			return err
		}
	}
	defer func() { <-c.inFlight }()

	c.mu.Lock()
	c.serial++
	if c.serial == 0 {
		c.serial++
	}
	serial := c.serial
	c.calls[serial] = p
	c.mu.Unlock()
	if err := c.send(serial, m); err != nil {
		return err
	}
	if err := c.wait(ctx, timer, nil, p.done); err != nil {
		c.mu.Lock()
		delete(c.calls, serial)
		c.mu.Unlock()
		return err
	}
	return p.err
}

// wait waits for a place among the calls in flight or for an answer. A manager
// that reloads is given the time it takes.
func (c *Conn) wait(ctx context.Context, timer *time.Timer, place chan<- struct{}, done <-chan struct{}) error {
	for {
		select {
		case place <- struct{}{}:
			return nil
		case <-done:
			return nil
		case <-c.lost:
			return c.lostErr
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
			if !c.reloading.Load() {
				return errTimeout
			}
			timer.Reset(c.timeout)
		}
	}
}

// send writes a call. A failure is the end of the connection, since part of the
// call may have been written.
func (c *Conn) send(serial uint32, m *method) error {
	c.write.Lock()
	defer c.write.Unlock()
	c.out = appendCall(c.out[:0], serial, m)
	err := c.nc.SetWriteDeadline(time.Now().Add(c.timeout))
	if err == nil {
		_, err = c.nc.Write(c.out)
	}
	if err != nil {
		c.fail(err)
		return c.lostErr
	}
	return nil
}

// fail ends the connection; the first reason stays.
func (c *Conn) fail(err error) {
	c.loseOnce.Do(func() {
		c.lostErr = fmt.Errorf("connection lost: %w", err)
		close(c.lost)
		c.closeErr = c.nc.Close()
	})
}

// Close ends the connection, fails the calls that wait, and waits for the reader.
// Closing twice does nothing more.
func (c *Conn) Close() error {
	c.fail(errClosed)
	<-c.readDone
	return c.closeErr
}
