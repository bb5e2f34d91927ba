package systemd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/blixard/blixard"
)

// encode is godbus's encoding of a message.
func encode(t testing.TB, order binary.ByteOrder, m *dbus.Message) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := m.EncodeTo(&b, order); err != nil {
		t.Fatal(err)
	}
	frame := b.Bytes()
	// godbus numbers a message only when it sends it.
	order.PutUint32(frame[8:], 1)
	return frame
}

// answerMessage is an answer with that body.
func answerMessage(serial uint32, body ...any) *dbus.Message {
	m := &dbus.Message{Type: dbus.TypeMethodReply, Body: body, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldReplySerial: dbus.MakeVariant(serial),
		dbus.FieldSender:      dbus.MakeVariant(":1.2"),
	}}
	if len(body) > 0 {
		m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(body...))
	}
	return m
}

func errorMessage(serial uint32, name, text string) *dbus.Message {
	m := answerMessage(serial, text)
	m.Type = dbus.TypeError
	m.Headers[dbus.FieldErrorName] = dbus.MakeVariant(name)
	return m
}

func signalMessage(path, iface, member string, body ...any) *dbus.Message {
	return &dbus.Message{Type: dbus.TypeSignal, Body: body, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath(path)), dbus.FieldInterface: dbus.MakeVariant(iface), dbus.FieldMember: dbus.MakeVariant(member),
		dbus.FieldSender: dbus.MakeVariant(":1.2"), dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf(body...)),
	}}
}

// row is a row of ListUnitsByPatterns.
type row struct {
	Name, Description, Load, Active, Sub, Following string
	Path                                            dbus.ObjectPath
	JobID                                           uint32
	JobType                                         string
	JobPath                                         dbus.ObjectPath
}

func someRows(n int) []row {
	rows := make([]row, n)
	for i := range rows {
		rows[i] = row{fmt.Sprintf("microvm@%d.service", i), "a microVM", "loaded", "active", "running", "",
			dbus.ObjectPath(fmt.Sprintf("/org/freedesktop/systemd1/unit/microvm_40%d_2eservice", i)), 0, "", "/"}
	}
	return rows
}

// someProperties are those of a service and some of each type besides.
func someProperties() map[string]dbus.Variant {
	v := dbus.MakeVariant
	return map[string]dbus.Variant{
		"Id": v("microvm@a.service"), "LoadState": v("loaded"), "ActiveState": v("active"), "SubState": v("running"),
		"FragmentPath": v("/etc/systemd/system/microvm@.service"), "DropInPaths": v([]string{"/a", "/b"}),
		"InvocationID": v([]byte("0123456789abcdef")), "StateChangeTimestamp": v(uint64(1700000000000001)),
		"Job": v(struct {
			ID   uint32
			Path dbus.ObjectPath
		}{7, "/job/7"}),
		"Type": v("notify"), "Restart": v("always"), "MainPID": v(uint32(42)), "ControlGroup": v("/x/y"), "NRestarts": v(uint32(3)),
		"Result": v("success"), "ExecMainCode": v(int32(2)), "ExecMainStatus": v(int32(-9)), "ExecMainStartTimestamp": v(uint64(1700000000000000)),
		"StatusText": v("up\x1b[31m"),
		"y":          v(byte(1)), "n": v(int16(-1)), "q": v(uint16(1)), "x": v(int64(-1)), "d": v(1.5), "b": v(true), "g": v(dbus.ParseSignatureMust("a{sv}")),
		"as": v([]string{"a"}), "ay": v([]byte{}), "a(ss)": v([]struct{ A, B string }{{"a", "b"}}), "v": v(v(v("deep"))),
		"a{sv}": v(map[string]dbus.Variant{"k": v([]any{}), "l": v([]uint64{1, 2})}), "at": v([]uint64{}), "aat": v([][]uint64{{1}, {}}),
		"(yv)": v(struct {
			A byte
			B dbus.Variant
		}{1, v(uint64(2))}),
		"a(sasbttt)": v([]struct {
			A       string
			B       []string
			C       bool
			D, E, F uint64
		}{{"/bin/x", []string{"x", "y"}, true, 1, 2, 3}}),
	}
}

// bare is a Conn that only decodes.
func bare(filter func(string) bool) *Conn {
	if filter == nil {
		filter = func(string) bool { return true }
	}
	return &Conn{
		words: words{}, names: names{known: map[string]nameAndPath{}}, hints: newHintSet(filter),
		calls: map[uint32]*pending{}, present: make(chan struct{}), owner: ":1.2",
	}
}

func TestAppendCall(t *testing.T) {
	for _, m := range []method{
		{destination: managerName, path: managerPath, iface: managerIface, member: "ListUnitsByPatterns", signature: "asas",
			body: appendStrings(appendStrings(nil, nil), []string{"a*", "", `b\x2d`, "ü"})},
		{path: managerPath, iface: propsIface, member: "Get", signature: "ss", body: appendString(appendString(nil, "abc"), "defg")},
		{path: "/", iface: "a.b", member: "C"},
	} {
		frame := appendCall(nil, 77, &m)
		got, err := dbus.DecodeMessage(bytes.NewReader(frame))
		if err != nil {
			t.Fatal(err)
		}
		if err := got.IsValid(); err != nil || got.Serial() != 77 || got.Type != dbus.TypeMethodCall || got.Flags != dbus.FlagNoAutoStart {
			t.Errorf("%v %v", got, err)
		}
		field := func(f dbus.HeaderField) string {
			v, ok := got.Headers[f]
			if !ok {
				return ""
			}
			if sig, ok := v.Value().(dbus.Signature); ok {
				return sig.String()
			}
			return fmt.Sprint(v.Value())
		}
		if field(dbus.FieldDestination) != m.destination || field(dbus.FieldPath) != m.path || field(dbus.FieldInterface) != m.iface ||
			field(dbus.FieldMember) != m.member || field(dbus.FieldSignature) != m.signature {
			t.Errorf("%+v became %v", m, got)
		}
		if m.signature == "asas" && !reflect.DeepEqual(got.Body, []any{[]string{}, []string{"a*", "", `b\x2d`, "ü"}}) {
			t.Errorf("body %q", got.Body)
		}
		// And the decoder of this package agrees.
		h, _, err := decodeMessage(frame)
		if err != nil || h.kind != typeCall || string(h.member) != m.member || string(h.signature) != m.signature {
			t.Errorf("%+v, %v", h, err)
		}
	}
}

// orders are both byte orders that a sender may use.
var orders = []binary.ByteOrder{binary.LittleEndian, binary.BigEndian}

func TestDecodeUnits(t *testing.T) {
	rows := someRows(3)
	rows[1].JobID, rows[1].JobType, rows[1].JobPath = 5, "restart", "/job/5"
	want := []blixard.Unit{
		{Name: "microvm@0.service", LoadState: "loaded", ActiveState: "active", SubState: "running", Path: string(rows[0].Path)},
		{Name: "microvm@1.service", LoadState: "loaded", ActiveState: "active", SubState: "running", JobType: "restart", Path: string(rows[1].Path)},
		{Name: "microvm@2.service", LoadState: "loaded", ActiveState: "active", SubState: "running", Path: string(rows[2].Path)},
	}
	c := bare(nil)
	for _, order := range orders {
		h, d, err := decodeMessage(encode(t, order, answerMessage(9, rows)))
		if err != nil || string(h.signature) != "a(ssssssouso)" || h.replySerial != 9 || h.kind != typeReturn {
			t.Fatalf("%+v, %v", h, err)
		}
		got := c.decodeUnits(&d)
		if diff := cmp.Diff(want, got); diff != "" || d.err != nil || d.pos != len(d.b) {
			t.Errorf("%v at %d of %d:\n%s", d.err, d.pos, len(d.b), diff)
		}
	}
	_, d, err := decodeMessage(encode(t, binary.LittleEndian, answerMessage(9, []row{})))
	if got := c.decodeUnits(&d); err != nil || len(got) != 0 || d.err != nil {
		t.Errorf("no units: %v, %v, %v", got, d.err, err)
	}
}

func TestDecodeProperties(t *testing.T) {
	all := someProperties()
	want := blixard.UnitProperties{
		Unit:         blixard.Unit{Name: "microvm@a.service", LoadState: "loaded", ActiveState: "active", SubState: "running"},
		InvocationID: "30313233343536373839616263646566", StateChange: time.UnixMicro(1700000000000001),
		FragmentPath: "/etc/systemd/system/microvm@.service", DropInPaths: []string{"/a", "/b"}, JobQueued: true,
		Service: true, Type: "notify", Restart: "always", MainPID: 42, ControlGroup: "/x/y", NRestarts: 3, Result: "success",
		ExecMainCode: 2, ExecMainStatus: -9, ExecMainStart: time.UnixMicro(1700000000000000), StatusText: "up\x1b[31m",
	}
	decode := func(order binary.ByteOrder, m map[string]dbus.Variant) blixard.UnitProperties {
		t.Helper()
		_, d, err := decodeMessage(encode(t, order, answerMessage(9, m)))
		if err != nil {
			t.Fatal(err)
		}
		got := bare(nil).decodeProperties(&d)
		if d.err != nil || d.pos != len(d.b) {
			t.Errorf("%v at %d of %d", d.err, d.pos, len(d.b))
		}
		return got
	}
	for _, order := range orders {
		if diff := cmp.Diff(want, decode(order, all)); diff != "" {
			t.Errorf("%v:\n%s", order, diff)
		}
	}
	// One property of a service that is missing or of another type: nothing of
	// the service is known.
	base := blixard.UnitProperties{Unit: want.Unit, InvocationID: want.InvocationID, StateChange: want.StateChange,
		FragmentPath: want.FragmentPath, DropInPaths: want.DropInPaths, JobQueued: true}
	for _, name := range []string{"Type", "Restart", "MainPID", "ControlGroup", "NRestarts", "Result", "ExecMainCode", "ExecMainStatus", "ExecMainStartTimestamp", "StatusText"} {
		for _, other := range []any{nil, []string{"x"}} {
			some := someProperties()
			if delete(some, name); other != nil {
				some[name] = dbus.MakeVariant(other)
			}
			if diff := cmp.Diff(base, decode(binary.LittleEndian, some)); diff != "" {
				t.Errorf("%s is %v:\n%s", name, other, diff)
			}
		}
	}
	for _, id := range [][]byte{nil, make([]byte, 16), []byte("short")} {
		all["InvocationID"] = dbus.MakeVariant(id)
		all["StateChangeTimestamp"] = dbus.MakeVariant(uint64(0))
		if p := decode(binary.LittleEndian, all); p.InvocationID != "" || !p.StateChange.IsZero() {
			t.Errorf("%+v", p)
		}
	}
}

// Every prefix of a message, and every message with one byte changed, is refused
// or read; none may do worse.
func TestDecodeMessage_damaged(t *testing.T) {
	for _, m := range []*dbus.Message{
		answerMessage(9, someRows(2)), answerMessage(9, someProperties()), errorMessage(9, "a.b", "text"),
		signalMessage(unitRoot+"/a", propsIface, "PropertiesChanged", unitIface, someProperties(), []string{}),
		signalMessage(managerPath, managerIface, "JobRemoved", uint32(1), dbus.ObjectPath("/j"), "a.service", "done"),
	} {
		whole := encode(t, binary.LittleEndian, m)
		for n := range whole {
			if n >= headerSize {
				if _, _, err := decodeMessage(whole[:n]); err == nil {
					t.Fatalf("%d of %d bytes are a message", n, len(whole))
				}
			}
			frame := bytes.Clone(whole)
			for _, b := range []byte{0, 0xff, whole[n] ^ 1, whole[n] ^ 0x80} {
				frame[n] = b
				digest(frame)
			}
		}
	}
}

// digest has a message decoded in every way there is.
func digest(frame []byte) {
	if len(frame) < headerSize {
		return
	}
	_, size, err := frameSize(frame)
	if err != nil || size != len(frame) {
		return
	}
	h, body, err := decodeMessage(frame)
	if err != nil {
		return
	}
	c := bare(func(name string) bool { return strings.HasPrefix(name, "microvm") })
	for _, decode := range []func(*decoder){
		func(d *decoder) { c.decodeUnits(d) },
		func(d *decoder) { c.decodeProperties(d) },
		func(d *decoder) { c.signal(&h, d) },
		func(d *decoder) { c.answer(&h, d) },
		func(d *decoder) { d.skipAll(h.signature, 0) },
	} {
		d := body
		decode(&d)
		if d.err == nil && d.pos > len(d.b) {
			panic("read beyond the end")
		}
	}
}

func TestDecoder_skip(t *testing.T) {
	for _, order := range orders {
		for name, v := range someProperties() {
			_, d, err := decodeMessage(encode(t, order, answerMessage(1, v, v.Value(), uint32(0xfeedbeef))))
			if err != nil {
				t.Fatal(err)
			}
			d.skipVariant(0)
			d.skipAll([]byte(v.Signature().String()), 0)
			if got := d.uint32(); got != 0xfeedbeef || d.err != nil || d.pos != len(d.b) {
				t.Errorf("%s: %x, %v", name, got, d.err)
			}
		}
	}
	deep := strings.Repeat("(", 100) + "y" + strings.Repeat(")", 100)
	for _, sig := range []string{"", "z", "(", ")", "(y", "a", "a)", "a(", "{", "}", "yy", deep, strings.Repeat("a", 200) + "y"} {
		d := decoder{b: make([]byte, 64)}
		if d.skipAll([]byte(sig), 0); d.err == nil {
			t.Errorf("type %.20q was passed over", sig)
		}
	}
	// A variant in a variant in a variant.
	d := decoder{b: bytes.Repeat([]byte{1, 'v', 0}, 1000)}
	if d.skipVariant(0); d.err == nil {
		t.Error("endless variants were passed over")
	}
}

func TestUnescapeLabel(t *testing.T) {
	for in, want := range map[string]string{
		"microvm_40web_2d1_2eservice": "microvm@web-1.service", "_": "", "a_5fb": "a_b", "_5f": "_", "microvm_40_5cx2d_2eservice": `microvm@\x2d.service`,
		"a_": "a_", "a_5": "a_5", "a_zz": "a_zz", "_ff_00": "\xff\x00", "": "",
	} {
		if got := string(unescapeLabel(nil, []byte(in))); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzDecodeMessage(f *testing.F) {
	for _, order := range orders {
		for _, m := range []*dbus.Message{
			answerMessage(1, someRows(2)), answerMessage(1, someProperties()), errorMessage(1, "a.b", "c"),
			signalMessage(unitRoot+"/microvm_40a_2eservice", propsIface, "PropertiesChanged", unitIface, someProperties(), []string{}),
			signalMessage(managerPath, managerIface, "UnitNew", "microvm@a.service", dbus.ObjectPath("/a")),
			signalMessage(managerPath, managerIface, "JobRemoved", uint32(1), dbus.ObjectPath("/j"), "microvm@a.service", "done"),
			signalMessage(managerPath, managerIface, "Reloading", true),
			signalMessage(busPath, busIface, "NameOwnerChanged", managerName, ":1.2", ""),
		} {
			f.Add(encode(f, order, m))
		}
	}
	f.Fuzz(func(_ *testing.T, frame []byte) { digest(frame) })
}
