package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// maxBatch is how many writes share a commit at most.
const maxBatch = 256

// A write is what one caller wants to have in the next commit.
type write struct {
	ctx    context.Context
	queued time.Time
	state  atomic.Int32

	// do makes the change. It runs in the committer, perhaps after the caller has gone,
	// and so touches nothing of the caller's. An answer that is one of the contract's
	// errors means that nothing has changed, or nothing that matters: there is no
	// undoing one write, and the rest of the batch goes on. Any other error ends the
	// whole batch.
	do func(*writer) (answer, err error)

	answer error
	done   chan error
}

// States of a write. Who moves it away from waiting decides whether it happens.
const (
	waiting int32 = iota
	started
	dropped
)

// write has do run in the next commit and waits for that.
func (db *DB) write(ctx context.Context, do func(*writer) (answer, err error)) error {
	op := &write{ctx: ctx, queued: time.Now(), do: do, done: make(chan error, 1)}
	select {
	case <-db.closing:
		return db.errClosed()
	default:
	}
	select {
	case db.queue <- op:
	case <-ctx.Done():
		return fmt.Errorf("sqlite: %s: not written: %w", db.path, ctx.Err())
	case <-db.closing:
		return db.errClosed()
	}
	select {
	case err := <-op.done:
		return err
	case <-ctx.Done():
		if op.state.CompareAndSwap(waiting, dropped) {
			return fmt.Errorf("sqlite: %s: not written: %w", db.path, ctx.Err())
		}
		return fmt.Errorf("sqlite: %s: may or may not have been written: %w", db.path, ctx.Err())
	case <-db.finished:
		// The committer may have answered last thing, or may have gone without seeing op.
		select {
		case err := <-op.done:
			return err
		default:
			return db.errClosed()
		}
	}
}

// commitAll is the committer: the one goroutine of a DB, and the only one that writes.
func (db *DB) commitAll() {
	defer close(db.finished)
	var batch []*write
	for {
		select {
		case op := <-db.queue:
			batch = db.commit(db.writer, append(batch[:0], op))
			clear(batch)
		case <-db.closing:
			return
		}
	}
}

// commit does the writes in batch, and others that come in time, in one transaction, and
// answers them. It returns batch for its memory.
func (db *DB) commit(w *writer, batch []*write) []*write {
	batch, err := db.begin(w, batch)
	if err != nil {
		answer(batch, explain(db.path, err))
		return batch
	}
	runtime.Gosched() // for those who are about to come
	batch = db.gather(batch)
	for _, op := range batch {
		if !op.state.CompareAndSwap(waiting, started) {
			continue // its caller has gone
		}
		if op.answer, err = op.do(w); err != nil {
			break
		}
	}
	if err == nil {
		_, err = w.commit.exec()
	}
	if err != nil {
		w.rollback.exec() // fails if SQLite has done it already
		w.issuers = nil   // those of this batch are gone
		answer(batch, explain(db.path, err))
		return batch
	}
	for _, op := range batch {
		op.done <- op.answer
	}
	return batch
}

// begin begins a transaction. While another process has the file locked it waits, and lets
// go of the writes whose time is up. It returns those that are left.
func (db *DB) begin(w *writer, batch []*write) ([]*write, error) {
	if err := db.checkInPlace(); err != nil {
		return batch, err
	}
	for pause := 500 * time.Microsecond; ; pause = min(2*pause, 5*time.Millisecond) {
		_, err := w.begin.exec()
		if err == nil || !isBusy(err) {
			return batch, err
		}
		select {
		case <-time.After(pause):
		case <-db.closing:
			return batch, errors.New("closed while waiting for another process")
		}
		left := batch[:0]
		for _, op := range db.gather(batch) {
			if op.ctx.Err() != nil {
				continue // its caller sees to itself
			}
			if time.Since(op.queued) > lockWait {
				op.done <- explain(db.path, err)
				continue
			}
			left = append(left, op)
		}
		if batch = left; len(batch) == 0 {
			return nil, errNobody
		}
	}
}

// errNobody says that all who wanted something have gone.
var errNobody = errors.New("nobody is waiting any more")

// gather adds what is in the queue to batch.
func (db *DB) gather(batch []*write) []*write {
	for len(batch) < maxBatch {
		select {
		case op := <-db.queue:
			batch = append(batch, op)
		default:
			return batch
		}
	}
	return batch
}

func answer(batch []*write, err error) {
	for _, op := range batch {
		op.done <- err
	}
}

// checkInPlace reports that somebody has taken the files away. SQLite would go on writing
// to what no longer has a name, and all of it would be gone with the process. Without the
// -shm file, processes would not see each other's locks, and write over one another.
func (db *DB) checkInPlace() error {
	for _, f := range db.files {
		if info, err := os.Stat(f.path); err != nil || !os.SameFile(info, f.opened) {
			return fmt.Errorf("%s was removed or replaced while in use; put the right file in place and restart", f.path)
		}
	}
	return nil
}

// writer is the connection that writes. Only the committer uses it; Close closes it after that.
type writer struct {
	*conn
	begin, commit, rollback *statement

	insertRecord, updateRecord, replaceRecord, hasRecord *statement
	putCertificate, dropCertificate                      *statement
	insertIssuer, findIssuer                             *statement

	forgetChallenges, countChallenges, insertChallenge *statement
	spendChallenge, spentBy                            *statement

	prune map[string]*statement

	issuers map[string]int64 // numbers of those that are in the file
	row     []driver.Value   // for one value
}

func newWriter(c *conn) (*writer, error) {
	// From now on it is begin that waits for locks.
	if _, err := c.value("PRAGMA busy_timeout = 0"); err != nil {
		return nil, err
	}
	if err := c.once("PRAGMA cache_size = -8192"); err != nil {
		return nil, err
	}
	w := &writer{conn: c, row: make([]driver.Value, 1)}
	for query, s := range map[string]**statement{
		"BEGIN IMMEDIATE": &w.begin,
		"COMMIT":          &w.commit,
		"ROLLBACK":        &w.rollback,

		insertRecord:  &w.insertRecord,
		updateRecord:  &w.updateRecord,
		replaceRecord: &w.replaceRecord,
		hasRecord:     &w.hasRecord,
		insertIssuer:  &w.insertIssuer,
		findIssuer:    &w.findIssuer,

		putCertificate:  &w.putCertificate,
		dropCertificate: &w.dropCertificate,

		forgetChallenges: &w.forgetChallenges,
		countChallenges:  &w.countChallenges,
		insertChallenge:  &w.insertChallenge,
		spendChallenge:   &w.spendChallenge,
		spentBy:          &w.spentBy,
	} {
		var err error
		if *s, err = c.prepare(query); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// has reports whether s has an answer; it is in w.row.
func (w *writer) has(s *statement, args ...driver.Value) (bool, error) {
	return s.first(context.Background(), w.row, args...)
}

const (
	insertIssuer = `INSERT INTO issuer (name) VALUES (?)`
	findIssuer   = `SELECT number FROM issuer WHERE name = ?`
)

// issuer returns the number of an issuer's name, which it writes down the first time. A
// name that is left over from a write that was then refused does no harm.
func (w *writer) issuer(name []byte) (int64, error) {
	if n, known := w.issuers[string(name)]; known {
		return n, nil
	}
	found, err := w.has(w.findIssuer, name)
	if err == nil && !found {
		if _, err = w.insertIssuer.exec(name); err == nil {
			_, err = w.has(w.findIssuer, name)
		}
	}
	if err != nil {
		return 0, err
	}
	n, _ := w.row[0].(int64)
	if w.issuers == nil || len(w.issuers) > 1000 {
		w.issuers = make(map[string]int64)
	}
	w.issuers[string(name)] = n
	return n, nil
}

// refused turns the error of a statement that changes something into an answer.
func refused(err error) (answer, failure error) {
	if isTaken(err) {
		return scep.ErrExists, nil
	}
	return nil, err
}
