package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/scepkit/scepkit/scep"
)

const (
	storedBounds = `SELECT coalesce(min(stored), 0), coalesce(max(stored), 0) FROM record`
	scanRecords  = `SELECT ` + ofRecord + `, stored FROM record WHERE stored > $1 AND stored <= $2 ORDER BY stored LIMIT $3`
)

// scanPage is how many records are read at once.
const scanPage = 512

// Scan implements [scep.Scanner]. It reads the tables from their beginning to their end, some
// hundred records at once in the order in which they were stored, which never changes; meanwhile it
// holds neither a transaction nor a connection, and if the database is lost it goes on where it was.
func (db *DB) Scan(ctx context.Context, yield func(all []*scep.Record, done float64) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var first, last int64
	err := db.do(ctx, call{try: func(ctx context.Context, c *pgx.Conn) error {
		return c.QueryRow(ctx, storedBounds).Scan(&first, &last)
	}})
	for at := first - 1; err == nil && at < last; {
		var page []*scep.Record
		if page, at, err = db.stored(ctx, at, last); err != nil || len(page) == 0 {
			break
		}
		err = yield(page, float64(at-first+1)/float64(last-first+1))
	}
	return err
}

// stored reads a page of the records that were stored after one, up to another, and returns which
// of them was stored last.
func (db *DB) stored(ctx context.Context, after, last int64) (page []*scep.Record, at int64, err error) {
	err = db.do(ctx, call{try: func(ctx context.Context, c *pgx.Conn) error {
		rows, err := c.Query(ctx, scanRecords, after, last, int64(scanPage))
		if err != nil {
			return err
		}
		page, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (*scep.Record, error) { return decodeWith(row, &at) })
		return err
	}})
	if err != nil {
		return nil, 0, err
	}
	return page, at, nil
}
