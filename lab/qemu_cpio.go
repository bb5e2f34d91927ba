package lab

import (
	"bufio"
	"fmt"
	"io"
)

// cpioWriter writes an archive in the newc format, which the kernel unpacks as
// its first root file system. The first error sticks and close returns it.
type cpioWriter struct {
	w     *bufio.Writer
	inode int
	err   error
}

func newCPIO(w io.Writer) *cpioWriter { return &cpioWriter{w: bufio.NewWriter(w)} }

func (c *cpioWriter) dir(name string) { c.entry(name, 0o040755, nil) }

func (c *cpioWriter) file(name string, mode int, data []byte) { c.entry(name, 0o100000|mode, data) }

// entry writes the header of thirteen hexadecimal fields, the name and the data,
// each padded to four bytes. Owner and time are 0.
func (c *cpioWriter) entry(name string, mode int, data []byte) {
	c.inode++
	c.printf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		c.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	const headerSize = 110
	c.printf("%s\x00", name)
	c.pad(headerSize + len(name) + 1)
	if c.err == nil {
		_, c.err = c.w.Write(data)
	}
	c.pad(len(data))
}

func (c *cpioWriter) printf(format string, args ...any) {
	if c.err == nil {
		_, c.err = fmt.Fprintf(c.w, format, args...)
	}
}

func (c *cpioWriter) pad(written int) {
	if c.err == nil {
		_, c.err = c.w.Write(make([]byte, -written&3))
	}
}

func (c *cpioWriter) close() error {
	c.entry("TRAILER!!!", 0, nil)
	if c.err == nil {
		c.err = c.w.Flush()
	}
	return c.err
}
