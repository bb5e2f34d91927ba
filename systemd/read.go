package systemd

import (
	"fmt"
	"io"
)

const (
	// startBuffer is the size of the read buffer to begin with, in bytes. It
	// grows to the largest answer and stays, since the next listing needs it
	// again.
	startBuffer = 64 << 10
	// maxErrorText bounds what is kept of an error's message.
	maxErrorText = 1024
)

// read is the reader: it takes in messages until the connection is lost.
func (c *Conn) read() {
	defer close(c.readDone)
	c.fail(c.readMessages())
}

func (c *Conn) readMessages() error {
	buf := make([]byte, startBuffer)
	var r, w int // what was read and not taken in yet is buf[r:w]
	for {
		size := headerSize
		for w-r >= headerSize {
			var kind byte
			var err error
			if kind, size, err = frameSize(buf[r:w]); err != nil {
				return err
			}
			if size > maxSignal && kind != typeReturn && kind != typeError {
				have := min(size, w-r)
				if _, err := io.CopyN(io.Discard, c.nc, int64(size-have)); err != nil {
					return err
				}
				r += have
				c.log.Warn("threw away a message that is too long", "bytes", size)
				c.hints.everything()
				size = headerSize
				continue
			}
			if w-r < size {
				break
			}
			if err := c.message(buf[r : r+size]); err != nil {
				return err
			}
			r += size
			size = headerSize
		}
		switch {
		case r == w:
			r, w = 0, 0
		case r+size > len(buf):
			copy(buf, buf[r:w])
			r, w = 0, w-r
		}
		if size > len(buf) {
			grown := make([]byte, size+size/4)
			copy(grown, buf[:w])
			buf = grown
		}
		n, err := c.nc.Read(buf[w:])
		if err != nil {
			return err
		}
		w += n
	}
}

// message takes in one message.
func (c *Conn) message(frame []byte) error {
	h, body, err := decodeMessage(frame)
	if err != nil {
		return err
	}
	switch h.kind {
	case typeReturn, typeError:
		c.answer(&h, &body)
	case typeSignal:
		c.signal(&h, &body)
	}
	return nil
}

// answer hands an answer to the call that waits for it, if it still does.
func (c *Conn) answer(h *header, d *decoder) {
	c.mu.Lock()
	p := c.calls[h.replySerial]
	delete(c.calls, h.replySerial)
	c.mu.Unlock()
	if p == nil {
		return
	}
	switch {
	case h.kind == typeError:
		e := &CallError{Name: string(h.errorName)}
		if len(h.signature) > 0 && h.signature[0] == 's' {
			text := d.string()
			e.Message = string(text[:min(len(text), maxErrorText)])
		}
		p.err = e
	case string(h.signature) != p.signature:
		p.err = fmt.Errorf("%w: an answer of type %.100q instead of %q", errMalformed, h.signature, p.signature)
	case p.decode != nil:
		p.err = p.decode(d)
	}
	close(p.done)
}

// setOwner takes in which connection to the bus is the manager's, none when
// owner is empty. Only the reader calls it.
func (c *Conn) setOwner(owner string) {
	c.owner = owner
	c.reloading.Store(false)
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.present
	if owner == "" && !isClosed(was) {
		return
	}
	c.present = make(chan struct{})
	if owner != "" {
		close(c.present)
		if !isClosed(was) {
			close(was)
		}
	}
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}
