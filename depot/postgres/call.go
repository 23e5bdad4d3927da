package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// grace is how long a statement that has been sent goes on after its caller has gone. A client
// that hangs up would otherwise cost a connection each time.
const grace = 250 * time.Millisecond

// maxTries is how often a statement is tried that the server refused for reasons that pass.
const maxTries = 5

// A call is one statement, or several that happen together.
type call struct {
	try func(context.Context, *pgx.Conn) error

	// look is nil for a call that only reads. For others it looks, on another connection,
	// what has become of it.
	look func(context.Context, *pgx.Conn) (fate, error)
}

// The fate of a write whose connection was lost.
type fate int

const (
	absent  fate = iota // it has not happened; it may be on its way still
	settled             // the error, or nil, is the answer of the call
	covered             // others have written since: nobody can tell
)

// do makes a call. What happened is never tried again, nor is what may have happened.
func (db *DB) do(ctx context.Context, c call) error {
	end := time.Now().Add(db.timeout)
	wait, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	if err := db.pool.enter(wait); err != nil {
		return db.failed(ctx, c, false, err)
	}
	defer db.pool.leave()
	stay, cancel := outlive(ctx, end)
	defer cancel()
	for tries := 1; ; tries++ {
		l, err := db.pool.take(wait)
		if err != nil {
			return db.failed(ctx, c, false, err)
		}
		// If it hangs there is time left to try again, or to look.
		patience := time.Until(end) * 2 / 3
		try, cancel := context.WithTimeout(stay, patience)
		if c.look != nil {
			err = db.pool.flowing(try, l)
		}
		if err == nil {
			err = c.try(try, l.Conn)
		}
		cancel()
		hung := patience > db.timeout/3
		switch judge(err) {
		case answered:
			db.pool.give(l)
			return err
		case refused:
			if code(err) == codeReadOnly { // it has become a standby
				db.pool.drop(l)
				db.pool.reset(false)
			} else {
				db.pool.give(l)
			}
			if !passing(err) || tries >= maxTries || !pause(wait, time.Duration(tries)*10*time.Millisecond) {
				return db.failed(ctx, c, false, err)
			}
			continue
		case unsent:
			db.lose(ctx, l, hung, err)
			if tries >= maxTries || wait.Err() != nil {
				return db.failed(ctx, c, false, err)
			}
			continue
		}
		db.lose(ctx, l, hung, err)
		if c.look == nil {
			if tries > 1 || wait.Err() != nil {
				return db.failed(ctx, c, false, err)
			}
			continue
		}
		db.pool.suspects()
		if again, answer := db.readBack(ctx, wait, c, l, err); !again || tries >= maxTries {
			return answer
		}
	}
}

// lose drops a connection that is lost, and doubts the others unless the caller is the reason, or
// had waited too long for a place to have time left.
func (db *DB) lose(ctx context.Context, l *link, hung bool, err error) {
	db.pool.drop(l)
	if ctx.Err() == nil && (hung || !pgconn.Timeout(err)) {
		db.pool.reset(pgconn.Timeout(err))
		db.pool.heard(err)
	}
}

// readBack finds out what has become of a write, whose connection l was lost with err. It returns
// the answer of the call, or that it has not happened and never will: again.
func (db *DB) readBack(ctx, wait context.Context, c call, l *link, err error) (again bool, answer error) {
	for rest := 5 * time.Millisecond; wait.Err() == nil; rest = min(2*rest, 200*time.Millisecond) {
		other, dialling := db.pool.take(wait)
		if dialling != nil {
			pause(wait, rest)
			continue
		}
		gone, looking := l.gone(wait, other) // first, or it could write in between
		var found fate
		if looking == nil {
			found, answer = c.look(wait, other.Conn)
			switch {
			case found != settled:
				looking = answer
			case answer == nil: // somebody who ended its session may have made it visible too early
				looking = other.confirm(wait)
			}
		}
		if judge(looking) >= unsent {
			db.pool.drop(other)
		} else {
			db.pool.give(other)
		}
		switch {
		case looking != nil:
		case found == settled:
			return false, answer
		case found == covered:
			return false, db.failed(ctx, c, true, err)
		case gone:
			return true, db.failed(ctx, c, false, err)
		}
		pause(wait, rest)
	}
	return false, db.failed(ctx, c, true, err)
}

// sessionsThere counts the sessions with a certain number, and, to see that there is something to
// be seen, this one.
const sessionsThere = `SELECT count(*) FILTER (WHERE pid = $1), count(*) FILTER (WHERE pid = pg_backend_pid()) FROM pg_stat_activity`

// gone reports that the server's side of l has ended, after which nothing comes of what was sent.
// Another session that has been given its number only makes it look alive, and a server that was
// promoted will not hear from the old one. Through a pooler there is no telling.
func (l *link) gone(ctx context.Context, other *link) (bool, error) {
	if !l.direct || !other.direct {
		return false, nil
	}
	var its, own int
	err := other.QueryRow(ctx, sessionsThere, int64(l.PgConn().PID())).Scan(&its, &own)
	return its == 0 && own == 1, err
}

// confirm waits until the synchronous standby has what is visible.
func (l *link) confirm(ctx context.Context) error {
	err := l.PgConn().Exec(ctx, barrier).Close()
	if judge(err) == refused {
		return nil // not PostgreSQL
	}
	return err
}

// failed is the error of a call. It wraps that of the caller's context, if it has one.
func (db *DB) failed(ctx context.Context, c call, perhaps bool, err error) error {
	what := "not written"
	switch {
	case errors.Is(err, errClosed):
		return fmt.Errorf("postgres: %s: %w", db.name, err)
	case c.look == nil:
		what = "not read"
	case perhaps:
		what = "may or may not have been written"
	}
	if ended := ctx.Err(); ended != nil {
		return fmt.Errorf("postgres: %s: %s: %w", db.name, what, ended)
	}
	return fmt.Errorf("postgres: %s: %s: %w", db.name, what, explain(err))
}

// outlive returns a context that ends at end, or a while after ctx has.
func outlive(ctx context.Context, end time.Time) (context.Context, context.CancelFunc) {
	stay, cancel := context.WithDeadline(context.WithoutCancel(ctx), end)
	stop := context.AfterFunc(ctx, func() {
		pause(stay, grace)
		cancel()
	})
	return stay, func() { stop(); cancel() }
}

// pause waits for about d. It reports whether ctx still goes on.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d/2 + rand.N(d))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// unsentError is what happened before a write was sent.
type unsentError struct{ error }

func (e unsentError) Unwrap() error { return e.error }

// SafeToRetry is asked for by pgconn.SafeToRetry.
func (e unsentError) SafeToRetry() bool { return true }

// sentError is what happened when a write had been sent: pgx may call the connection closed, as if
// it had been so before.
type sentError struct{ error }

func (e sentError) Unwrap() error { return e.error }

// SafeToRetry is asked for by pgconn.SafeToRetry.
func (e sentError) SafeToRetry() bool { return false }

// prepare has the statements ready to be run in one round trip. If that fails, nothing has
// been written: whoever lets pgx prepare a statement as it runs it cannot know.
func prepare(ctx context.Context, c *pgx.Conn, statements ...string) error {
	for _, s := range statements {
		if _, err := c.Prepare(ctx, s, s); err != nil {
			return unsentError{err}
		}
	}
	return nil
}
