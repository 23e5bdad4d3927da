package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	driversqlite "modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// conn is one connection with its prepared statements. It is below database/sql, which
// costs more per statement than SQLite does. Not for concurrent use.
type conn struct {
	driver.Conn
	statements []*statement
}

// statement is prepared once and keeps its arguments' memory from call to call.
type statement struct {
	driver.Stmt
	args []driver.NamedValue
}

// connect opens a connection to a file that exists. It waits so long for locks.
func connect(path string, wait time.Duration) (*conn, error) {
	slashed := filepath.ToSlash(path)
	if !strings.HasPrefix(slashed, "/") {
		slashed = "/" + slashed // C:/ on Windows
	}
	name := url.URL{Scheme: "file", Path: slashed, RawQuery: url.Values{
		"mode":      {"rw"},
		"_dqs":      {"0"},
		"_error_rc": {"1"},
		"_pragma": {
			fmt.Sprintf("busy_timeout(%d)", wait.Milliseconds()),
			"synchronous(FULL)",
			"foreign_keys(ON)",
			"trusted_schema(OFF)",
			"wal_autocheckpoint(4000)",
			"journal_size_limit(67108864)",
		},
	}.Encode()}
	dc, err := new(driversqlite.Driver).Open(name.String())
	if err != nil {
		return nil, err
	}
	return &conn{Conn: dc}, nil
}

func (c *conn) close() error {
	for _, s := range c.statements {
		s.Close()
	}
	return c.Close()
}

// prepare returns the statement, which is closed with c.
func (c *conn) prepare(query string) (*statement, error) {
	prepared, err := c.Prepare(query)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", query, err)
	}
	s := &statement{Stmt: prepared}
	c.statements = append(c.statements, s)
	return s, nil
}

// once runs a statement that is not worth keeping.
func (c *conn) once(query string, args ...driver.Value) error {
	prepared, err := c.Prepare(query)
	if err != nil {
		return err
	}
	defer prepared.Close()
	s := &statement{Stmt: prepared}
	_, err = s.exec(args...)
	return err
}

// value returns the first column of the first row, or nil.
func (c *conn) value(query string, args ...driver.Value) (driver.Value, error) {
	prepared, err := c.Prepare(query)
	if err != nil {
		return nil, err
	}
	defer prepared.Close()
	s := &statement{Stmt: prepared}
	row := make([]driver.Value, 1)
	_, err = s.first(context.Background(), row, args...)
	return row[0], err
}

// exec runs s and returns how many rows it changed.
func (s *statement) exec(args ...driver.Value) (int64, error) {
	result, err := s.Stmt.(driver.StmtExecContext).ExecContext(context.Background(), s.bind(args))
	s.release()
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

// first fills row from the first row of the answer, if there is one.
func (s *statement) first(ctx context.Context, row []driver.Value, args ...driver.Value) (found bool, err error) {
	err = s.each(ctx, row, args, func() error { found = true; return io.EOF })
	return found, err
}

// each fills row from one row of the answer after the other and calls f, until it returns
// an error; io.EOF means enough.
func (s *statement) each(ctx context.Context, row, args []driver.Value, f func() error) error {
	rows, err := s.Stmt.(driver.StmtQueryContext).QueryContext(ctx, s.bind(args))
	s.release()
	if err != nil {
		return err
	}
	for err == nil {
		if err = rows.Next(row); err == nil {
			err = f()
		}
	}
	if err == io.EOF {
		err = nil
	}
	return errors.Join(err, rows.Close())
}

func (s *statement) bind(args []driver.Value) []driver.NamedValue {
	s.args = s.args[:0]
	for i, a := range args {
		s.args = append(s.args, driver.NamedValue{Ordinal: i + 1, Value: a})
	}
	return s.args
}

// release lets go of the values bound last.
func (s *statement) release() { clear(s.args) }

// code returns SQLite's primary result code, or 0 if err is none of its errors.
func code(err error) int {
	var e *driversqlite.Error
	if !errors.As(err, &e) {
		return 0
	}
	return e.Code() & 0xff
}

func isBusy(err error) bool { return code(err) == sqlite3.SQLITE_BUSY }

// isTaken reports that a uniqueness rule refused a row.
func isTaken(err error) bool {
	var e *driversqlite.Error
	return errors.As(err, &e) &&
		(e.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || e.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
}

// damaged is what a file is that SQLite cannot make sense of. A -wal file that another one has
// left behind makes a good one so.
const damaged = "damaged; restore a backup, and remove what is left beside it ending in -wal and -shm, " +
	"or save what can be read with \"sqlite3 FILE .recover\""

// explain adds the file's name to err, and the way out.
func explain(path string, err error) error {
	if err == nil {
		return nil
	}
	cure := ""
	switch code(err) {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		cure = fmt.Sprintf("locked by another process for more than %v; end that process or its transaction: ", lockWait)
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH:
		cure = "cannot be written; make the file, those beside it ending in -wal and -shm, and the directory writable for this user: "
	case sqlite3.SQLITE_FULL:
		cure = "no space left; free some: "
	case sqlite3.SQLITE_IOERR:
		cure = "the disk or its file system fails or is full: "
	case sqlite3.SQLITE_NOTADB:
		cure = "not an SQLite database; name another file: "
	case sqlite3.SQLITE_CORRUPT:
		cure = damaged + ": "
	}
	return fmt.Errorf("sqlite: %s: %s%w", path, cure, err)
}
