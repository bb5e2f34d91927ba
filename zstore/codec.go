package store

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// A value is a version byte, a codec byte and the payload.
const (
	valueVersion = 1
	codecJSON    = 0
	codecZstd    = 1

	// compressAbove is the size of a payload in bytes above which it is
	// compressed: below, zstd's frame eats the gain.
	compressAbove = 1024
	// maxValue bounds a stored value, maxPayload what it inflates to, in bytes.
	maxValue   = 1 << 20
	maxPayload = 8 << 20
)

// errNewer says that a newer version wrote the value: it must not be overwritten.
var errNewer = errors.New("written by a newer version")

// codec encodes and decodes values. It may be used from many goroutines.
type codec struct {
	enc *zstd.Encoder
	dec *zstd.Decoder
}

func newCodec() (*codec, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(256<<10), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, fmt.Errorf("make encoder: %w", err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxPayload), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, fmt.Errorf("make decoder: %w", err)
	}
	return &codec{enc, dec}, nil
}

// encode makes a value. One that is too large is an error.
func (c *codec) encode(v any) ([]byte, error) {
	payload, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode value: %w", err)
	}
	if len(payload) > maxPayload {
		return nil, fmt.Errorf("encode value: %d bytes, at most %d", len(payload), maxPayload)
	}
	out := []byte{valueVersion, codecJSON}
	if len(payload) > compressAbove {
		out[1] = codecZstd
		out = c.enc.EncodeAll(payload, out)
	} else {
		out = append(out, payload...)
	}
	if len(out) > maxValue {
		return nil, fmt.Errorf("encode value: %d bytes, at most %d", len(out), maxValue)
	}
	return out, nil
}

// decode reads a value into v. errNewer is the error for one of a later version.
func (c *codec) decode(b []byte, v any) error {
	switch {
	case len(b) < 2:
		return fmt.Errorf("decode value: %d bytes", len(b))
	case len(b) > maxValue:
		return fmt.Errorf("decode value: %d bytes, at most %d", len(b), maxValue)
	case b[0] > valueVersion:
		return fmt.Errorf("decode value: version %d: %w", b[0], errNewer)
	case b[0] != valueVersion:
		return fmt.Errorf("decode value: version %d", b[0])
	}
	payload := b[2:]
	switch b[1] {
	case codecJSON:
	case codecZstd:
		var err error
		if payload, err = c.dec.DecodeAll(payload, nil); err != nil {
			return fmt.Errorf("decode value: %w", err)
		}
	default:
		return fmt.Errorf("decode value: codec %d: %w", b[1], errNewer)
	}
	if err := json.Unmarshal(payload, v); err != nil {
		return fmt.Errorf("decode value: %w", err)
	}
	return nil
}
