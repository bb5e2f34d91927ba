package systemd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"go.uber.org/goleak"

	"github.com/blixard/blixard"
)

// fakeBus stands for a bus with a manager where the real ones cannot be made to
// misbehave. It answers what a Dial asks; handle answers the rest.
type fakeBus struct {
	t      *testing.T
	cfg    Config
	refuse bool
	handle func(b *fakeBus, m *dbus.Message)
	conn   net.Conn
	mu     sync.Mutex // held while a message is written
	ended  chan struct{}
	// subscribed counts calls of Subscribe.
	subscribed atomic.Int32
}

// newFakeBus listens; the bus serves one connection.
func newFakeBus(t *testing.T, handle func(*fakeBus, *dbus.Message)) *fakeBus {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bus")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	b := &fakeBus{t: t, handle: handle, ended: make(chan struct{}), cfg: Config{Address: "unix:path=" + path}}
	go func() {
		defer close(b.ended)
		defer l.Close()
		nc, err := l.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		b.conn = nc
		b.serve(bufio.NewReader(nc))
	}()
	t.Cleanup(func() { l.Close(); <-b.ended })
	return b
}

func (b *fakeBus) serve(r *bufio.Reader) {
	if line, err := r.ReadString('\n'); err != nil || !strings.HasPrefix(line, "\x00AUTH EXTERNAL ") {
		b.t.Errorf("login %q, %v", line, err)
		return
	}
	if b.refuse {
		b.write([]byte("REJECTED EXTERNAL\r\n"))
		return
	}
	b.write([]byte("OK 00112233445566778899aabbccddeeff\r\n"))
	if line, err := r.ReadString('\n'); err != nil || line != "BEGIN\r\n" {
		return
	}
	for {
		m, err := dbus.DecodeMessage(r)
		if err != nil {
			return
		}
		switch m.Headers[dbus.FieldMember].Value() {
		case "Hello":
			b.answer(m, ":1.9")
		case "Subscribe":
			b.subscribed.Add(1)
			b.answer(m)
		case "AddMatch":
			b.answer(m)
		case "GetNameOwner":
			b.answer(m, ":1.2")
		default:
			b.handle(b, m)
		}
	}
}

func (b *fakeBus) answer(m *dbus.Message, body ...any) { b.send(answerMessage(m.Serial(), body...)) }

func (b *fakeBus) send(m *dbus.Message) { b.write(encode(b.t, binary.LittleEndian, m)) }

func (b *fakeBus) write(raw []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	// The other end may be gone by then.
	_, _ = b.conn.Write(raw)
}

func (b *fakeBus) dial() *Conn {
	b.t.Helper()
	c, err := Dial(b.t.Context(), b.cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			b.t.Error(err)
		}
		if err := c.Close(); err != nil {
			b.t.Error(err)
		}
	})
	return c
}

func TestConn_inFlight(t *testing.T) {
	reached := make(chan uint32, 200)
	b := newFakeBus(t, func(_ *fakeBus, m *dbus.Message) { reached <- m.Serial() })
	c := b.dial()
	errs := make(chan error, 100)
	for range 100 {
		go func() { _, err := c.ListUnits(t.Context()); errs <- err }()
	}
	var waiting []uint32
	for range maxInFlight {
		waiting = append(waiting, <-reached)
	}
	// Each answer lets one more through, never two.
	for done := range 100 {
		select {
		case s := <-reached:
			t.Fatalf("call %d is under way beside %d", s, len(waiting))
		default:
		}
		// In any order.
		i := done * 7 % len(waiting)
		b.send(answerMessage(waiting[i], []row{}))
		waiting = slices.Delete(waiting, i, i+1)
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
		if done+maxInFlight < 100 {
			waiting = append(waiting, <-reached)
		}
	}
}

func TestConn_lost(t *testing.T) {
	frame := func(m *dbus.Message) []byte { return encode(t, binary.LittleEndian, m) }
	tooLong := frame(answerMessage(1, "x"))
	binary.LittleEndian.PutUint32(tooLong[4:], maxMessage)
	for name, raw := range map[string][]byte{
		"closed":       nil,
		"no message":   []byte("HTTP/1.1 400 Bad Request\r\n\r\n"),
		"too long":     tooLong,
		"bad header":   append([]byte{'l', 2, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0}, "\x05\x01z\x00\x00\x00\x00\x00"...),
		"half a frame": frame(answerMessage(1, someRows(3)))[:100],
	} {
		t.Run(name, func(t *testing.T) {
			arrived := make(chan bool, 10)
			b := newFakeBus(t, func(*fakeBus, *dbus.Message) { arrived <- true })
			c := b.dial()
			errs := make(chan error, 6)
			for range 5 {
				go func() { _, err := c.ListUnits(t.Context()); errs <- err }()
				<-arrived
			}
			go func() { _, err := c.Hints(t.Context()); errs <- err }()
			began := time.Now()
			b.write(raw)
			if name == "closed" || name == "half a frame" {
				b.conn.Close()
			}
			for range 6 {
				if err := <-errs; err == nil || !strings.Contains(err.Error(), "connection lost") {
					t.Errorf("%v", err)
				}
			}
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("told after %v", took)
			}
			if _, err := c.Properties(t.Context(), "/a"); err == nil {
				t.Error("a lost connection answers")
			}
		})
	}
}

func TestConn_Close(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	arrived := make(chan bool, 1)
	b := newFakeBus(t, func(*fakeBus, *dbus.Message) { arrived <- true })
	c := b.dial()
	errs := make(chan error, 2)
	go func() { _, err := c.ListUnits(t.Context()); errs <- err }()
	go func() { _, err := c.Hints(t.Context()); errs <- err }()
	<-arrived
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := <-errs; !errors.Is(err, errClosed) {
			t.Error(err)
		}
	}
	<-b.ended
	goleak.VerifyNone(t, ignore)
}

func TestConn_answers(t *testing.T) {
	b := newFakeBus(t, func(b *fakeBus, m *dbus.Message) {
		switch m.Headers[dbus.FieldPath].Value().(dbus.ObjectPath) {
		case "/none":
			b.send(errorMessage(m.Serial(), managerName+".NoSuchUnit", "Unit x.service not loaded."))
		case "/denied":
			b.send(errorMessage(m.Serial(), busName+".Error.AccessDenied", strings.Repeat("x", 5000)))
		case "/bare":
			e := answerMessage(m.Serial())
			e.Type = dbus.TypeError
			e.Headers[dbus.FieldErrorName] = dbus.MakeVariant("a.b")
			b.send(e)
		case "/other":
			b.answer(m, "text")
		case "/empty":
			b.answer(m)
		case "/truncated":
			raw := encode(b.t, binary.LittleEndian, answerMessage(m.Serial(), map[string]dbus.Variant{"Id": dbus.MakeVariant("x")}))
			// The string says that it is longer than the message.
			i := bytes.Index(raw, []byte("\x01\x00\x00\x00x\x00"))
			raw[i] = 200
			b.write(raw)
		case "/twice":
			b.answer(m, someProperties())
			b.answer(m, someProperties())
			b.send(answerMessage(m.Serial()+1000, someProperties()))
		default:
			b.answer(m, someProperties())
		}
	})
	c := b.dial()
	for path, want := range map[string]string{
		"/none":      "unit not loaded: Unit x.service not loaded. (org.freedesktop.systemd1.NoSuchUnit)",
		"/denied":    strings.Repeat("x", maxErrorText) + " (org.freedesktop.DBus.Error.AccessDenied)",
		"/bare":      "a.b",
		"/other":     `malformed message: an answer of type "s" instead of "a{sv}"`,
		"/empty":     `malformed message: an answer of type "" instead of "a{sv}"`,
		"/truncated": "malformed message",
	} {
		_, err := c.Properties(t.Context(), path)
		if err == nil || err.Error() != "read properties of "+path+": "+want {
			t.Errorf("%s: %v", path, err)
		}
		if errors.Is(err, ErrNoUnit) != (path == "/none") {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, path := range []string{"/twice", "/fine", "/twice"} {
		if p, err := c.Properties(t.Context(), path); err != nil || p.MainPID != 42 || p.Path != path {
			t.Errorf("%s: %+v, %v", path, p, err)
		}
	}
}

func TestConn_cancel(t *testing.T) {
	arrived := make(chan *dbus.Message, 10)
	b := newFakeBus(t, func(_ *fakeBus, m *dbus.Message) { arrived <- m })
	c := b.dial()
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 1)
	go func() { _, err := c.ListUnits(ctx); errs <- err }()
	m := <-arrived
	cancel()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	b.answer(m, someRows(1))
	go func() { _, err := c.ListUnits(t.Context()); errs <- err }()
	b.answer(<-arrived, someRows(1))
	if err := <-errs; err != nil {
		t.Error(err)
	}
	if len(c.calls) != 0 || len(c.inFlight) != 0 {
		t.Errorf("%d calls are kept", len(c.calls))
	}
	if _, err := c.Hints(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// A manager that said that it reloads may take longer than a call may.
func TestConn_slowReload(t *testing.T) {
	const timeout = 50 * time.Millisecond
	b := newFakeBus(t, func(b *fakeBus, m *dbus.Message) {
		b.send(signalMessage(managerPath, managerIface, "Reloading", true))
		time.AfterFunc(6*timeout, func() {
			b.send(signalMessage(managerPath, managerIface, "Reloading", false))
			b.answer(m, someRows(2))
		})
	})
	b.cfg.Timeout = timeout
	c := b.dial()
	units, err := c.ListUnits(t.Context())
	if err != nil || len(units) != 2 {
		t.Errorf("%+v, %v", units, err)
	}
	// With both told at once, only that it is over matters.
	h, err := c.Hints(t.Context())
	if err != nil || !h.All || h.Reloading {
		t.Errorf("%+v, %v", h, err)
	}
}

// A manager that leaves the bus and comes back is waited for, and knows nothing
// of who had subscribed.
func TestConn_ownerChanged(t *testing.T) {
	owner := func(old, new string) *dbus.Message {
		m := signalMessage(busPath, busIface, "NameOwnerChanged", managerName, old, new)
		m.Headers[dbus.FieldSender] = dbus.MakeVariant(busName)
		return m
	}
	asked := 0
	back := make(chan bool)
	b := newFakeBus(t, func(b *fakeBus, m *dbus.Message) {
		if asked++; asked > 1 {
			b.answer(m, someRows(1))
			return
		}
		// As a bus does when the manager leaves with a call unanswered.
		b.send(owner(":1.2", ""))
		b.send(errorMessage(m.Serial(), busName+".Error.NoReply", "Message recipient disconnected"))
		close(back)
	})
	c := b.dial()
	errs := make(chan error, 1)
	go func() {
		units, err := c.ListUnits(t.Context())
		if err == nil && len(units) != 1 {
			err = fmt.Errorf("%+v", units)
		}
		errs <- err
	}()
	<-back
	b.send(owner("", ":1.7"))
	if err := <-errs; err != nil {
		t.Error(err)
	}
	if h, err := c.Hints(t.Context()); err != nil || !h.All {
		t.Errorf("%+v, %v", h, err)
	}
	if n := b.subscribed.Load(); n != 2 {
		t.Errorf("subscribed %d times", n)
	}
	// Its signals count, and those of the connection it had no more.
	for _, sender := range []string{":1.2", ":1.7"} {
		m := signalMessage(managerPath, managerIface, "UnitNew", "from"+sender, dbus.ObjectPath("/x"))
		m.Headers[dbus.FieldSender] = dbus.MakeVariant(sender)
		b.send(m)
	}
	if h, err := c.Hints(t.Context()); err != nil || !slices.Equal(h.Units, []string{"from:1.7"}) {
		t.Errorf("%+v, %v", h, err)
	}
	// Away for good: calls end after their time, and say why.
	c.timeout = 20 * time.Millisecond
	b.send(owner(":1.7", ""))
	for {
		if _, err := c.ListUnits(t.Context()); err != nil {
			if !errors.Is(err, errAway) {
				t.Error(err)
			}
			break
		}
	}
}

func TestConn_refused(t *testing.T) {
	b := newFakeBus(t, nil)
	b.refuse = true
	if _, err := Dial(t.Context(), b.cfg); !errors.Is(err, errRejected) {
		t.Error(err)
	}
}

// Hints between two calls are bounded, whatever a manager sends, and nothing of
// interest is lost.
func TestHintSet(t *testing.T) {
	c := bare(func(name string) bool { return strings.HasPrefix(name, "microvm@") })
	changed := func(name string) {
		label := strings.NewReplacer("@", "_40", ".", "_2e", "-", "_2d").Replace(name)
		_, d, err := decodeMessage(encode(t, binary.LittleEndian, signalMessage(unitRoot+"/"+label, propsIface, "PropertiesChanged", unitIface, map[string]dbus.Variant{}, []string{})))
		if err != nil {
			t.Fatal(err)
		}
		h, _, _ := decodeMessage(encode(t, binary.LittleEndian, signalMessage(unitRoot+"/"+label, propsIface, "PropertiesChanged", unitIface, map[string]dbus.Variant{}, []string{})))
		c.signal(&h, &d)
	}
	ready := func() bool {
		select {
		case <-c.hints.ready:
			return true
		default:
			return false
		}
	}
	changed("other.service")
	if ready() {
		t.Error("woken for a unit that is of no interest")
	}
	for range 3 {
		changed("microvm@a.service")
		changed("microvm@b.service")
	}
	h, _, ok := c.hints.take()
	slices.Sort(h.Units)
	if !ok || !ready() || !slices.Equal(h.Units, []string{"microvm@a.service", "microvm@b.service"}) || h.All {
		t.Errorf("%+v", h)
	}
	if h, _, ok := c.hints.take(); ok {
		t.Errorf("told twice: %+v", h)
	}
	for i := range maxHints {
		c.hints.unit(fmt.Appendf(nil, "microvm@%d.service", i))
	}
	c.hints.unit([]byte("microvm@0.service"))
	if c.hints.all {
		t.Error("too many, with as many as there may be")
	}
	c.hints.unit([]byte("microvm@one-more.service"))
	for i := range 100_000 {
		c.hints.unit(fmt.Appendf(nil, "microvm@x%d.service", i))
		c.hints.job([]byte("microvm@a.service"), []byte("done"))
	}
	c.hints.job([]byte("other.service"), []byte("failed"))
	c.hints.job([]byte("microvm@a.service"), []byte("failed"))
	h, _, ok = c.hints.take()
	if !ok || !h.All || len(h.Units) != 0 || len(h.Jobs) > maxJobs || h.Jobs[len(h.Jobs)-1] != (blixard.JobResult{Unit: "microvm@a.service", Result: "failed"}) {
		t.Errorf("%d units, %d jobs, all %v", len(h.Units), len(h.Jobs), h.All)
	}
	// A reload is told by itself, after what came before it.
	c.hints.unit([]byte("microvm@a.service"))
	c.hints.reload(true)
	if h, _, ok := c.hints.take(); !ok || h.Reloading || len(h.Units) != 1 {
		t.Errorf("%+v", h)
	}
	if h, _, ok := c.hints.take(); !ok || !h.Reloading || len(h.Units) != 0 || h.All {
		t.Errorf("%+v", h)
	}
	c.hints.reload(false)
	if h, _, ok := c.hints.take(); !ok || h.Reloading || !h.All {
		t.Errorf("%+v", h)
	}
	c.hints.reload(true)
	c.hints.owner()
	if h, resubscribe, ok := c.hints.take(); !ok || !resubscribe || h.Reloading || !h.All {
		t.Errorf("%+v, %v", h, resubscribe)
	}
}

// What a connection keeps does not grow with units that come and go.
func TestNames(t *testing.T) {
	n := names{known: map[string]nameAndPath{}}
	var most int
	for round := range 1000 {
		for i := range 100 {
			name := fmt.Appendf(nil, "unit-%d-%d", round, i)
			got, path := n.get(name, []byte("/x"))
			if got != string(name) || path != "/x" {
				t.Fatal(got, path)
			}
		}
		n.listed(100)
		n.listed(1)
		most = max(most, len(n.known))
	}
	if most > 2*100+namesSlack {
		t.Errorf("%d names kept", most)
	}
	if _, path := n.get([]byte("unit-999-1"), []byte("/y")); path != "/y" {
		t.Errorf("an old path: %s", path)
	}
	w := words{}
	for i := range 10 * maxWords {
		w.get(fmt.Appendf(nil, "%d", i))
	}
	if w.get(bytes.Repeat([]byte("x"), 10*maxWord)); len(w) > maxWords {
		t.Errorf("%d words kept", len(w))
	}
}

func TestConfig(t *testing.T) {
	for address, want := range map[string][]endpoint{
		"unix:path=/run/bus":                         {{path: "/run/bus"}},
		"unix:path=/a%2cb%25,guid=00;":               {{path: "/a,b%"}},
		"unix:abstract=x;unix:path=/systemd/private": {{path: "@x"}, {path: "/systemd/private", direct: true}},
	} {
		got, err := parseAddress(address)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %+v, %v", address, got, err)
		}
		if err := (&Config{Address: address}).Validate(); err != nil {
			t.Error(err)
		}
	}
	for _, address := range []string{";", "tcp:host=x", "unix:", "unix:path=", "unix:path=/a,path=/b", "unix:path=/%", "unix:path=/%0", "unix:path=/%zz", "unix:path=/%00", "unix:dir=/tmp"} {
		if err := (&Config{Address: address}).Validate(); err == nil {
			t.Errorf("%s is accepted", address)
		}
	}
	if err := (&Config{Timeout: -1}).Validate(); err == nil {
		t.Error("a negative timeout is accepted")
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/else")
	if got, err := (&Config{}).endpoints(); err != nil || got[0].path != "/else" {
		t.Errorf("%+v, %v", got, err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "")
	if got, err := (&Config{}).endpoints(); err != nil || got[0].path != "/run/dbus/system_bus_socket" {
		t.Errorf("%+v, %v", got, err)
	}
}

// A large message of a stranger's is not kept in memory.
func TestConn_largeSignal(t *testing.T) {
	b := newFakeBus(t, func(b *fakeBus, m *dbus.Message) { b.answer(m, someRows(1)) })
	c := b.dial()
	raw := encode(t, binary.LittleEndian, signalMessage("/x", "x.y", "Z", strings.Repeat("x", 60<<20)))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	sent := make(chan bool)
	go func() { b.write(raw); close(sent) }()
	h, err := c.Hints(t.Context())
	if err != nil || !h.All {
		t.Errorf("%+v, %v", h, err)
	}
	<-sent
	if units, err := c.ListUnits(t.Context()); err != nil || len(units) != 1 {
		t.Errorf("%+v, %v", units, err)
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 4<<20 {
		t.Errorf("%d bytes were allocated", grown)
	}
}
