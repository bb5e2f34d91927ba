package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// A value is a version byte, a codec byte and a payload. The version covers the
// payload's fields too: a field that is new needs a new version, since an older
// program would lose it when it writes the value again.
const (
	valueVersion = 1
	codecJSON    = 'j'
	codecZstd    = 'z' // zstd over JSON
)

// Bounds of values in bytes.
const (
	// compressAbove is the size of JSON above which it is compressed.
	compressAbove = 2048
	// maxValue bounds a value as it is stored, maxInflated what it inflates to.
	maxValue    = 1536 << 10
	maxInflated = 8 << 20
)

// ErrNewerVersion says that a value was written by a newer version. It must not
// be written over.
var ErrNewerVersion = errors.New("written by a newer version of blixard")

// errTooLarge says that a value exceeds a bound.
var errTooLarge = errors.New("value too large")

// codec encodes and decodes values. Its methods may be called at once.
type codec struct {
	enc *zstd.Encoder
	dec *zstd.Decoder
}

func newCodec() (*codec, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(256<<10))
	if err != nil {
		return nil, fmt.Errorf("make encoder: %w", err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(maxInflated))
	if err != nil {
		return nil, fmt.Errorf("make decoder: %w", err)
	}
	return &codec{enc, dec}, nil
}

// close lets go of memory; the codec is not used afterwards.
func (c *codec) close() {
	c.dec.Close()
	c.enc.Close()
}

// encode makes a value. errTooLarge says that it would exceed a bound.
func (c *codec) encode(v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode value: %w", err)
	}
	if len(data) > maxInflated {
		return nil, errTooLarge
	}
	out := append(make([]byte, 0, 2+min(len(data), compressAbove)), valueVersion, codecJSON)
	if len(data) <= compressAbove {
		return append(out, data...), nil
	}
	out[1] = codecZstd
	if out = c.enc.EncodeAll(data, out); len(out) > maxValue {
		return nil, errTooLarge
	}
	return out, nil
}

// decode reads a value. ErrNewerVersion, errTooLarge and any other error say
// why it cannot be read. It never needs more than some times maxInflated of
// memory.
func (c *codec) decode(value []byte, v any) error {
	if len(value) > maxValue {
		return errTooLarge
	}
	if len(value) == 0 {
		return errors.New("empty value")
	}
	if value[0] > valueVersion {
		return fmt.Errorf("%w (version %d; this one knows %d)", ErrNewerVersion, value[0], valueVersion)
	}
	if len(value) < 2 || value[0] != valueVersion {
		return errors.New("not a value of blixard")
	}
	data := value[2:]
	switch value[1] {
	case codecJSON:
	case codecZstd:
		var err error
		if data, err = c.dec.DecodeAll(data, nil); err != nil {
			if errors.Is(err, zstd.ErrDecoderSizeExceeded) || errors.Is(err, zstd.ErrWindowSizeExceeded) {
				return errTooLarge
			}
			return fmt.Errorf("inflate value: %w", err)
		}
	default:
		return fmt.Errorf("unknown codec %q", value[1])
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("decode value: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("decode value: something follows it")
	}
	return nil
}
