package sqlite

import (
	"context"
	"database/sql/driver"
	"fmt"
)

// maxReaders is how many may read at once. Each has a connection of its own, and sees what
// had been committed when it began.
const maxReaders = 8

// reader is a connection that reads.
type reader struct {
	*conn
	prepared map[string]*statement
	row      []driver.Value
}

// read has f read from a connection.
func (db *DB) read(ctx context.Context, f func(*reader) error) error {
	select {
	case <-db.closing:
		return db.errClosed()
	default:
	}
	var r *reader
	select {
	case r = <-db.readers:
	case <-ctx.Done():
		return fmt.Errorf("sqlite: %s: not read: %w", db.path, ctx.Err())
	case <-db.closing:
		return db.errClosed()
	}
	// A connection that has seen an error, or a panic of f, is not used again.
	var good *reader
	defer func() {
		if good == nil && r != nil {
			r.close()
		}
		db.readers <- good
	}()
	if r == nil {
		var err error
		if r, err = db.newReader(); err != nil {
			return explain(db.path, err)
		}
	}
	if err := f(r); err != nil {
		if ended := ctx.Err(); ended != nil {
			return fmt.Errorf("sqlite: %s: not read: %w", db.path, ended)
		}
		return explain(db.path, err)
	}
	good = r
	return nil
}

func (db *DB) newReader() (*reader, error) {
	c, err := connect(db.path, lockWait)
	if err != nil {
		return nil, err
	}
	if err := c.once("PRAGMA query_only = ON"); err != nil {
		c.close()
		return nil, err
	}
	return &reader{conn: c, prepared: make(map[string]*statement)}, nil
}

// each calls f with one row of so many columns after the other; f must not keep the slice.
func (r *reader) each(ctx context.Context, query string, columns int, args []driver.Value, f func(row []driver.Value) error) error {
	s, known := r.prepared[query]
	if !known {
		var err error
		if s, err = r.prepare(query); err != nil {
			return err
		}
		r.prepared[query] = s
	}
	if len(r.row) < columns {
		r.row = make([]driver.Value, columns)
	}
	row := r.row[:columns]
	defer clear(row)
	return s.each(ctx, row, args, func() error { return f(row) })
}
