package store

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"

	"go.uber.org/zap/zapcore"
)

// zapCore passes etcd's log on to a slog.Logger, from warnings up.
type zapCore struct {
	log    *slog.Logger
	fields []zapcore.Field
	// quiet is set when nothing more is passed on.
	quiet *atomic.Bool
}

// Enabled says which levels are passed on.
func (c *zapCore) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel && !c.quiet.Load() }

// With returns a core that adds fields to each entry.
func (c *zapCore) With(fields []zapcore.Field) zapcore.Core {
	return &zapCore{c.log, append(c.fields[:len(c.fields):len(c.fields)], fields...), c.quiet}
}

// Check adds the core to those that write an entry.
func (c *zapCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write passes an entry on.
func (c *zapCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := slog.LevelWarn
	if e.Level > zapcore.WarnLevel {
		level = slog.LevelError
	}
	var attrs []slog.Attr
	for _, f := range slices.Concat(c.fields, fields) {
		enc := zapcore.NewMapObjectEncoder()
		f.AddTo(enc)
		for k, v := range enc.Fields {
			attrs = append(attrs, slog.String(k, short(v)))
		}
	}
	c.log.LogAttrs(context.Background(), level, e.Message, attrs...)
	return nil
}

// short is a value of etcd's log, which may be a whole request, cut to a length
// that a line of a log can bear.
func short(v any) string {
	const most = 256
	s := fmt.Sprint(v)
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	return s
}

// Sync has nothing to do: a slog.Logger does not buffer.
func (*zapCore) Sync() error { return nil }
