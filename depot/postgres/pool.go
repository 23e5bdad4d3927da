package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	restless = time.Second      // a connection unused for so long is tried before it is relied on
	lifetime = 30 * time.Minute // after that a connection is replaced
)

// pool has so many places, each for one caller and its connection. It has no goroutine.
type pool struct {
	servers []*pgx.ConnConfig
	timeout time.Duration
	sockets *sockets
	name    string
	log     *slog.Logger

	places  chan struct{} // one in it for each that is taken
	closing chan struct{}
	once    sync.Once

	mu   sync.Mutex
	idle []*link // the one used last comes last
	era  int     // connections of an earlier one are not used
	lost bool    // the last that was heard of the database

	good      int               // the server that was used last
	asked     time.Time         // when it was last compared with the others; zero if that is to be done
	timelines map[string]string // the latest that was seen of each system
	settled   server            // its synchronous standby has what it shows
	doubts    int               // counts what made that doubtful
	suspect   bool              // whether writes wait for that standby
	waiting   bool              // that they do
}

// link is a connection.
type link struct {
	*pgx.Conn
	era        int
	born, used time.Time
	direct     bool // its number is that of a session of the server
	at         server
}

func newPool(config *pgx.ConnConfig, n int, timeout time.Duration, name string, log *slog.Logger) *pool {
	s := &sockets{dial: config.DialFunc, open: make(map[*socket]bool)}
	config.DialFunc = s.connect
	p := &pool{
		timeout: timeout, sockets: s, name: name, log: log,
		places: make(chan struct{}, n), closing: make(chan struct{}),
		timelines: make(map[string]string),
	}
	ready := config.ValidateConnect
	config.ValidateConnect = func(ctx context.Context, pc *pgconn.PgConn) error {
		if err := ready(ctx, pc); err != nil {
			return err
		}
		return p.admit(ctx, pc)
	}
	p.servers = split(config)
	return p
}

// errClosed is what every call returns after Close.
var errClosed = errors.New("is closed")

// enter waits for a place.
func (p *pool) enter(ctx context.Context) error {
	select {
	case <-p.closing:
		return errClosed
	default:
	}
	select {
	case p.places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("all %d connections are in use; raise Config.MaxConns or look why the database is slow: %w", cap(p.places), ctx.Err())
	case <-p.closing:
		return errClosed
	}
}

func (p *pool) leave() { <-p.places }

// take returns a connection, for one who has a place.
func (p *pool) take(ctx context.Context) (*link, error) {
	for {
		l := p.pop()
		if l == nil {
			break
		}
		if time.Since(l.used) < restless {
			return l, nil
		}
		err := l.ping(ctx, p.timeout/4)
		if err == nil {
			return l, nil
		}
		p.drop(l)
		if errors.Is(err, errPooled) {
			return nil, err
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		p.reset(pgconn.Timeout(err)) // the others are no better
	}
	p.mu.Lock()
	era := p.era
	p.mu.Unlock()
	c, err := p.dial(ctx)
	if err != nil {
		if ctx.Err() == nil || errors.Is(ctx.Err(), context.DeadlineExceeded) {
			p.heard(err)
		}
		return nil, err
	}
	now := time.Now()
	return &link{Conn: c, era: era, born: now, used: now, direct: c.PgConn().CustomData()[isDirect] != nil, at: serverOf(c)}, nil
}

func (l *link) ping(ctx context.Context, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return alive(ctx, l.PgConn())
}

// checkPooler reports that l does not have a session of its own. A pooler that shares them gives
// another client the one that was just used, or a third one to l.
func (p *pool) checkPooler(ctx context.Context, l *link) error {
	if l.direct {
		return nil
	}
	other, cancel := context.WithTimeout(ctx, p.timeout/4)
	defer cancel()
	if c, err := p.dial(other); err == nil { // otherwise the pooler may have just this one
		goodbye(c)
	}
	return l.ping(ctx, p.timeout/4)
}

// pop returns the connection that was used last and may still be used, or nil.
func (p *pool) pop() *link {
	p.mu.Lock()
	var old []*link
	defer func() {
		p.mu.Unlock()
		for _, l := range old {
			p.drop(l)
		}
	}()
	for n := len(p.idle); n > 0; n-- {
		l := p.idle[n-1]
		p.idle = p.idle[:n-1]
		if l.era == p.era && !l.IsClosed() && time.Since(l.born) < lifetime && l.at.timeline >= p.timelines[l.at.system] {
			return l
		}
		old = append(old, l)
	}
	return nil
}

// give takes a connection back. One that is in the middle of something is closed.
func (p *pool) give(l *link) {
	if l.IsClosed() || l.PgConn().TxStatus() != 'I' {
		p.drop(l)
		return
	}
	p.heard(nil)
	l.used = time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle = append(p.idle, l)
}

// drop closes a connection. It says goodbye, but waits for nothing.
func (p *pool) drop(l *link) { goodbye(l.Conn) }

// reset has all connections that exist now closed before they are used again: if one is lost
// the others are, too. The server may be another afterwards, or have been started again unless
// it only hung.
func (p *pool) reset(hung bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.era++
	p.asked = time.Time{}
	if !hung {
		p.settled = server{}
		p.doubts++
	}
}

// heard logs that the database is lost, or back.
func (p *pool) heard(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err != nil && !p.lost:
		p.log.Error("postgres: database lost", "database", p.name, "err", err)
	case err == nil && p.lost:
		p.log.Info("postgres: database is back", "database", p.name)
	}
	p.lost = err != nil
}

func (p *pool) close() {
	p.once.Do(func() {
		close(p.closing)
		for range cap(p.places) {
			p.places <- struct{}{} // whoever has it is done within the timeout
		}
		for _, l := range p.idle {
			p.drop(l)
		}
		p.sockets.close()
	})
}
