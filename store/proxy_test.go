package store

import (
	"errors"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
)

// proxy stands between a store and its member and can lose what passes.
type proxy struct {
	target string
	l      net.Listener

	mu    sync.Mutex
	conns map[net.Conn]bool
	// mute keeps answers from passing.
	mute bool
	// away refuses connections.
	away bool
}

// newProxy makes a proxy to a member and returns the URL to use in its place.
func newProxy(t testing.TB, member MemberConfig) (*proxy, string) {
	t.Helper()
	path := filepath.Join(shortDir(t), "p")
	l, err := net.Listen("unix", path)
	check(t, err)
	p := &proxy{target: member.socket(clientSocket), l: l, conns: map[net.Conn]bool{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.cut()
		wg.Wait()
	})
	return p, "unix://" + path
}

func (p *proxy) serve(c net.Conn) {
	defer c.Close()
	m, err := net.Dial("unix", p.target)
	if err != nil {
		return
	}
	defer m.Close()
	p.mu.Lock()
	if p.away {
		p.mu.Unlock()
		return
	}
	p.conns[c], p.conns[m] = true, true
	p.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(m, c) // cut, it fails
		m.Close()
		c.Close()
	})
	b := make([]byte, 64<<10)
	for {
		n, err := m.Read(b)
		if n > 0 && !p.muted() {
			if _, werr := c.Write(b[:n]); werr != nil {
				err = errors.Join(err, werr)
			}
		}
		if err != nil {
			break
		}
	}
	m.Close()
	c.Close()
	wg.Wait()
	p.mu.Lock()
	delete(p.conns, c)
	delete(p.conns, m)
	p.mu.Unlock()
}

func (p *proxy) muted() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mute
}

// setMute says whether answers are lost.
func (p *proxy) setMute(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mute = on
}

// setAway cuts all connections and refuses new ones, or takes them again.
func (p *proxy) setAway(on bool) {
	p.mu.Lock()
	p.away = on
	p.mu.Unlock()
	if on {
		p.cut()
	}
}

// cut breaks all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}
