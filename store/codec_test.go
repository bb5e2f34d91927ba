package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"

	"github.com/blixard/blixard"
)

func testCodec(t testing.TB) *codec {
	c, err := newCodec()
	check(t, err)
	t.Cleanup(c.close)
	return c
}

func TestCodec_roundTrip(t *testing.T) {
	c := testCodec(t)
	for _, n := range []int{0, 1, compressAbove - 2, compressAbove - 1, 100_000, 1 << 20} {
		want := blixard.Event{Detail: strings.Repeat("x", n)}
		value, err := c.encode(want)
		check(t, err)
		if compressed := value[1] == codecZstd; compressed != (n >= compressAbove-2) {
			t.Errorf("%d bytes: codec %q", n, value[1])
		}
		var got blixard.Event
		check(t, c.decode(value, &got))
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%d bytes: %s", n, d)
		}
	}
}

func TestCodec_refusesToEncode(t *testing.T) {
	c := testCodec(t)
	if _, err := c.encode(strings.Repeat("x", maxInflated)); !errors.Is(err, errTooLarge) {
		t.Errorf("large: %v", err)
	}
	if _, err := c.encode(func() {}); err == nil || errors.Is(err, errTooLarge) {
		t.Errorf("function: %v", err)
	}
}

func TestCodec_refusesToDecode(t *testing.T) {
	c := testCodec(t)
	enc, err := zstd.NewWriter(nil)
	check(t, err)
	defer enc.Close()
	value := func(codec byte, payload []byte) []byte { return append([]byte{valueVersion, codec}, payload...) }
	bomb := enc.EncodeAll(bytes.Repeat([]byte(" "), 1<<28), nil)
	for name, b := range map[string]struct {
		value []byte
		want  error // nil for any
	}{
		"nothing":         {nil, nil},
		"version only":    {[]byte{valueVersion}, nil},
		"version 0":       {[]byte("\x00j{}"), nil},
		"newer":           {[]byte{valueVersion + 1}, ErrNewerVersion},
		"much newer":      {[]byte("\xffz whatever"), ErrNewerVersion},
		"plain text":      {[]byte("hello"), ErrNewerVersion}, // its first byte is above any version of ours
		"unknown codec":   {value('x', []byte("{}")), nil},
		"empty JSON":      {value(codecJSON, nil), nil},
		"cut JSON":        {value(codecJSON, []byte(`{"node":"a`)), nil},
		"two values":      {value(codecJSON, []byte(`{} {}`)), nil},
		"unknown field":   {value(codecJSON, []byte(`{"nodes":"a"}`)), nil},
		"other type":      {value(codecJSON, []byte(`[1]`)), nil},
		"no zstd":         {value(codecZstd, []byte("{}")), nil},
		"cut zstd":        {value(codecZstd, enc.EncodeAll([]byte(`{"node":"a"}`), nil)[:8]), nil},
		"bomb":            {value(codecZstd, bomb), errTooLarge},
		"too large value": {value(codecJSON, bytes.Repeat([]byte(" "), maxValue)), errTooLarge},
		"deep":            {value(codecZstd, enc.EncodeAll([]byte(strings.Repeat(`{"node":`, 200_000)), nil)), nil},
	} {
		var e blixard.Event
		err := c.decode(b.value, &e)
		if err == nil || b.want != nil && !errors.Is(err, b.want) {
			t.Errorf("%s: %v, want %v", name, err, b.want)
		}
	}
	if len(bomb) > maxValue {
		t.Errorf("the bomb has %d bytes and would not be stored", len(bomb))
	}
}

func FuzzCodec_decode(f *testing.F) {
	c := testCodec(f)
	for _, v := range []any{blixard.Event{Node: "a", Detail: strings.Repeat("y", 5000)}, blixard.VMRecord{VMID: vmID("a")}, []blixard.Event{event("a", blixard.EventState)}, sequence{Seq: 1}, 7} {
		value, err := c.encode(v)
		check(f, err)
		f.Add(value)
	}
	f.Add([]byte("\x02j{}"))
	f.Fuzz(func(t *testing.T, value []byte) {
		e := c.decodeVM(value, vmID("a"), 1)
		if e.rec.VMID != vmID("a") {
			t.Errorf("record of %q", e.rec.VMID)
		}
		if e.bad != nil && e.rec.Epoch+uint64(len(e.rec.Unit)+len(e.rec.Helpers)) != 0 {
			t.Errorf("taken from a value that cannot be read: %+v", e.rec)
		}
		if e.bad == nil {
			again, err := c.encode(e.rec)
			if err != nil {
				t.Fatal(err)
			}
			if f := c.decodeVM(again, vmID("a"), 1); f.bad != nil || !sameRecord(&e.rec, &f.rec) {
				t.Errorf("encoded again: %v, %+v", f.bad, f.rec)
			}
		}
		if events, err := c.decodeEvents(value, 7); err == nil {
			again, err := c.encode(events)
			if err != nil && !errors.Is(err, errTooLarge) {
				t.Fatal(err)
			}
			if err == nil {
				if _, err := c.decodeEvents(again, 7); err != nil {
					t.Fatal(err)
				}
			}
		}
		// Whatever these say, they end.
		_ = c.decode(value, &sequence{})
		_ = c.decode(value, new(uint64))
		_, _ = c.decodeNode(value, testNode.ID)
	})
}

func TestKeys_roundTrip(t *testing.T) {
	k := keys{DefaultPrefix}
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.SliceOf(rapid.Byte())
		str := func(name string) string { return string(s.Draw(t, name)) }
		id := blixard.VMID{Node: str("node"), Manager: str("manager"), Name: str("name")}
		seq := rapid.Uint64().Draw(t, "seq")
		for made, want := range map[string]key{
			k.vm(id):               {kind: kindVM, vm: id},
			k.node(id.Node):        {kind: kindNode, node: id.Node},
			k.alive(id.Node):       {kind: kindAlive, node: id.Node},
			k.seq(id.Node):         {kind: kindSeq, node: id.Node},
			k.events(id.Node, seq): {kind: kindEvents, node: id.Node, seq: seq},
			k.floor():              {kind: kindFloor},
		} {
			if got, err := k.parse(made); err != nil || got != want {
				t.Fatalf("%q is %+v, %v; want %+v", made, got, err, want)
			}
			if strings.Trim(made, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:@%/") != "" {
				t.Fatalf("%q has other bytes", made)
			}
		}
		if a, b := k.events("n", seq), k.events("n", seq+1); seq+1 != 0 && a >= b {
			t.Fatalf("%q not before %q", a, b)
		}
	})
}

func FuzzKeys_parse(f *testing.F) {
	k := keys{DefaultPrefix}
	for _, s := range []string{k.vm(vmID("a/b\x00\xff")), k.events("n", 77), k.floor(), DefaultPrefix + "microvms/a/b/%2f", DefaultPrefix + "nodes/%41", DefaultPrefix + "events/n/000000000000000G", "/x", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		got, err := k.parse(raw)
		if err != nil {
			return
		}
		// Whatever is read is exactly what would be made.
		made := map[kind]string{kindNode: k.node(got.node), kindAlive: k.alive(got.node), kindSeq: k.seq(got.node),
			kindVM: k.vm(got.vm), kindEvents: k.events(got.node, got.seq), kindFloor: k.floor()}[got.kind]
		if made != raw {
			t.Errorf("%q is read as %+v, which makes %q", raw, got, made)
		}
	})
}

// What JSON cannot carry must not make two names one.
func TestCodec_badUTF8(t *testing.T) {
	data, err := json.Marshal(blixard.VMRecord{VMID: vmID("a\xff")})
	check(t, err)
	value := append([]byte{valueVersion, codecJSON}, data...)
	c := testCodec(t)
	if e := c.decodeVM(value, vmID("a\xff"), 1); e.bad == nil {
		t.Error("a record whose name was changed by its encoding is taken")
	}
}
