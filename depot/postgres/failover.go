package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Which of several servers is used, and what is asked of it first.

// A server says which it is.
type server struct {
	system   string // is the same for a server and all that were ever copied from it
	timeline string // eight hexadecimal digits; whoever is promoted begins a later one
	started  string // a time
}

// whichServer needs no rights. What is not PostgreSQL may not know it.
const whichServer = `SELECT (SELECT system_identifier FROM pg_control_system()),
	left(pg_walfile_name(pg_current_wal_insert_lsn()), 8), pg_postmaster_start_time()`

// A barrier is a transaction that changes nothing, and yet waits for the synchronous standby, which
// then has everything that was in the server's log before.
const barrier = `SELECT pg_logical_emit_message(true, 'scepkit', '')`

// waitsForStandby tells whether somebody has been waiting for the standby for longer than so
// many seconds.
const waitsForStandby = `SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'
	AND usename = session_user AND query_start < clock_timestamp() - make_interval(secs => $1))`

var (
	errReplaced = errors.New("a standby has been promoted in this server's place, and this one does not have what was written since; " +
		"shut it down, or have it follow the other. If it is the one to use, restart this program")
	errStandbyAway = errors.New("the server waits for its synchronous standby; " +
		"bring that back, or take it out of synchronous_standby_names")
)

// split returns a configuration for each server.
func split(config *pgx.ConnConfig) (all []*pgx.ConnConfig) {
	all = append(all, config.Copy())
	all[0].Fallbacks = nil
	for _, f := range config.Fallbacks {
		last := all[len(all)-1]
		if f.Host != last.Host || f.Port != last.Port { // otherwise it is the same with or without TLS
			last = config.Copy()
			last.Host, last.Port, last.TLSConfig, last.Fallbacks = f.Host, f.Port, f.TLSConfig, nil
			all = append(all, last)
			continue
		}
		last.Fallbacks = append(last.Fallbacks, f)
	}
	return all
}

// dial connects to the server that was used last, or to another. After a loss, and now and then, it
// asks them all, and takes the one that was promoted last. Its errors have neither the password in them nor
// anything it could be got from.
func (p *pool) dial(ctx context.Context) (found *pgx.Conn, err error) {
	p.mu.Lock()
	first, all := p.good, time.Since(p.asked) > lifetime
	p.mu.Unlock()
	var failures []error
	for i := range p.servers {
		n := (first + i) % len(p.servers)
		share := p.share(ctx, len(p.servers)-i)
		if found != nil {
			share = min(share, p.timeout/4)
		}
		one, cancel := context.WithTimeout(context.WithValue(ctx, ourDial{}, true), share)
		c, err := pgx.ConnectConfig(one, p.servers[n])
		cancel()
		if err != nil {
			if errors.Is(err, errReplaced) {
				p.log.Warn("postgres: a server can be written to although another was promoted in its place", "server", nameOf(p.servers[n]))
			}
			failures = append(failures, err)
			continue
		}
		if found != nil {
			if at, was := serverOf(c), serverOf(found); at.system != was.system || at.timeline <= was.timeline {
				goodbye(c)
				continue
			}
			goodbye(found)
		}
		found = c
		p.mu.Lock()
		p.good = n
		p.mu.Unlock()
		if !all {
			break
		}
	}
	if found == nil {
		return nil, dialFailure(ctx, errors.Join(failures...))
	}
	if all {
		p.mu.Lock()
		p.asked = time.Now()
		p.mu.Unlock()
	}
	return found, nil
}

// share is the time for the next of so many servers.
func (p *pool) share(ctx context.Context, n int) time.Duration {
	left := p.timeout
	if end, ok := ctx.Deadline(); ok {
		left = time.Until(end)
	}
	return left / time.Duration(n)
}

// goodbye closes a connection. It waits for nothing.
func goodbye(c *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	c.Close(ctx)
}

func serverOf(c *pgx.Conn) server {
	s, _ := c.PgConn().CustomData()[theServer].(server)
	return s
}

// admit reports that a server is not to be used: that it was replaced, or may show what its
// synchronous standby does not have.
func (p *pool) admit(ctx context.Context, pc *pgconn.PgConn) error {
	r := pc.ExecParams(ctx, whichServer, nil, nil, nil, nil).Read()
	switch {
	case judge(r.Err) == refused || r.Err == nil && len(r.Rows) != 1:
		return nil // not PostgreSQL
	case r.Err != nil:
		return r.Err
	}
	s := server{system: string(r.Rows[0][0]), timeline: string(r.Rows[0][1]), started: string(r.Rows[0][2])}
	pc.CustomData()[theServer] = s

	p.mu.Lock()
	replaced, settled, doubts := s.timeline < p.timelines[s.system], s == p.settled, p.doubts
	if !replaced {
		p.timelines[s.system] = s.timeline
	}
	p.mu.Unlock()
	switch {
	case replaced:
		return errReplaced
	case settled:
		return nil
	}
	// What a server had in its log when it crashed it shows afterwards, even if its standby does
	// not have it.
	if err := waits(ctx, pc, p.timeout); err != nil {
		return err
	}
	switch err := pc.Exec(ctx, barrier).Close(); {
	case pgconn.Timeout(err):
		return fmt.Errorf("the server commits nothing in time; look whether its synchronous standby is away: %w", err)
	case judge(err) == refused:
		return nil // not PostgreSQL, or for a reason that has nothing to do with a standby
	case err != nil:
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if doubts == p.doubts {
		p.settled = s
	}
	return nil
}

// waits reports that a server waits for its synchronous standby.
func waits(ctx context.Context, pc *pgconn.PgConn, timeout time.Duration) error {
	seconds := fmt.Appendf(nil, "%f", (timeout / 3).Seconds())
	r := pc.ExecParams(ctx, waitsForStandby, [][]byte{seconds}, nil, nil, nil).Read()
	switch {
	case judge(r.Err) == refused:
		return nil // not PostgreSQL
	case r.Err != nil:
		return unsentError{r.Err}
	case len(r.Rows) == 1 && string(r.Rows[0][0]) == "t":
		return errStandbyAway
	}
	return nil
}

// flowing reports that a write would wait for a standby, as others do. Each would leave a session
// in the server until the standby is back, and the server has only so many. It asks from the
// first write that is lost until nobody waits.
func (p *pool) flowing(ctx context.Context, l *link) error {
	p.mu.Lock()
	suspect := p.suspect
	p.mu.Unlock()
	if !suspect {
		return nil
	}
	err := waits(ctx, l.PgConn(), p.timeout)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err == nil:
		if p.suspect = false; p.waiting {
			p.log.Info("postgres: synchronous standby is back", "database", p.name)
		}
		p.waiting = false
	case errors.Is(err, errStandbyAway) && !p.waiting:
		p.log.Error("postgres: synchronous standby is away: nothing is written", "database", p.name)
		p.waiting = true
	}
	return err
}

// suspects has the next write ask whether it would wait.
func (p *pool) suspects() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.suspect = true
}

// dialFailure returns the error of a connection that could not be made.
func dialFailure(ctx context.Context, err error) error {
	failure := &dialError{text: "cannot connect: " + strings.NewReplacer("\n\t", " ", "\n", "; ").Replace(err.Error())}
	var e *pgconn.PgError
	if errors.As(err, &e) {
		failure.cause = e
	} else if ctx.Err() != nil {
		failure.cause = ctx.Err()
	}
	return failure
}

// dialError is the text of pgx's error, which holds the configuration.
type dialError struct {
	text  string
	cause error
}

func (e *dialError) Error() string { return e.text }
func (e *dialError) Unwrap() error { return e.cause }
