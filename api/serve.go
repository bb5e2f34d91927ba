package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/blixard/blixard"
)

const (
	// maxConns bounds the connections in all, maxConnsPerUser those of one uid,
	// so that no user keeps the others out; root has no bound of its own.
	maxConns        = 512
	maxConnsPerUser = 64
	// headerTimeout is how long a client may take to send its request's
	// headers, idleTimeout how long a connection may be kept for another one.
	headerTimeout = 5 * time.Second
	idleTimeout   = time.Minute
	// writeTimeout is how long a client may take to accept an answer, the time
	// to make it included.
	writeTimeout   = requestTimeout + 20*time.Second
	maxHeaderBytes = 16 << 10
	// drainTimeout is how long requests have to finish when serving ends.
	drainTimeout = 3 * time.Second
)

// Serve serves h on l until ctx ends, with bounds on connections, headers and
// times, and with the peer of each Unix connection in its requests' contexts
// (see PeerFrom). It closes l. Streams end with ctx; other requests get a
// moment to finish. It returns nil when ctx ended it.
func Serve(ctx context.Context, l net.Listener, h http.Handler, logger *slog.Logger) error {
	requests, cancel := context.WithCancel(ctx)
	defer cancel()
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		BaseContext:       func(net.Listener) context.Context { return requests },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if b, ok := c.(*boundConn); ok && b.peer != nil {
				return context.WithValue(ctx, peerKey{}, b.peer)
			}
			return ctx
		},
		// What net/http logs is what clients did wrong.
		ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(&boundListener{Listener: l, logger: logger, perUser: map[uint32]int{}}) }()
	select {
	case err := <-served:
		return errors.Join(fmt.Errorf("serve the API: %w", err), srv.Close())
	case <-ctx.Done():
	}
	drain, stop := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer stop()
	err := srv.Shutdown(drain)
	if errors.Is(err, context.DeadlineExceeded) {
		err = srv.Close()
	}
	if ended := <-served; !errors.Is(ended, http.ErrServerClosed) {
		err = errors.Join(err, ended)
	}
	if err != nil {
		return fmt.Errorf("stop serving the API: %w", err)
	}
	return nil
}

// boundListener accepts no more connections than the bounds allow and learns
// who connects.
type boundListener struct {
	net.Listener
	logger *slog.Logger

	// mu guards the counts of open connections.
	mu      sync.Mutex
	all     int
	perUser map[uint32]int
}

// Accept waits for the next connection within the bounds; one above them is
// told so and closed.
func (l *boundListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		peer, err := peerOf(c)
		if err != nil {
			l.logger.Debug("refuse a connection", "error", err)
			_ = c.Close()
			continue
		}
		if l.take(peer) {
			return &boundConn{Conn: c, peer: peer, free: func() { l.free(peer) }}, nil
		}
		refuse(c)
	}
}

func (l *boundListener) take(p *Peer) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p != nil && p.UID == 0 {
		l.all++
		return true
	}
	if l.all >= maxConns || p != nil && l.perUser[p.UID] >= maxConnsPerUser {
		return false
	}
	l.all++
	if p != nil {
		l.perUser[p.UID]++
	}
	return true
}

func (l *boundListener) free(p *Peer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if p == nil || p.UID == 0 {
		return
	}
	if l.perUser[p.UID]--; l.perUser[p.UID] == 0 {
		delete(l.perUser, p.UID)
	}
}

// refuse answers a connection above the bounds before it asked. The answer fits
// the socket's buffer, so nothing waits: whoever floods must not slow Accept.
func refuse(c net.Conn) {
	defer func() { _ = c.Close() }()
	body, err := encode(errorBody{blixard.Errorf(blixard.CodeBusy, "too many connections").WithHint("close some, or try again later")})
	if err != nil || c.SetWriteDeadline(time.Now().Add(50*time.Millisecond)) != nil {
		return
	}
	status := blixard.CodeBusy.Status()
	_, _ = fmt.Fprintf(c, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		status, http.StatusText(status), len(body), body)
}

// boundConn is a counted connection with its peer.
type boundConn struct {
	net.Conn
	peer *Peer
	once sync.Once
	free func()
}

// Close closes the connection and gives its place back, once.
func (c *boundConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.free)
	return err
}
