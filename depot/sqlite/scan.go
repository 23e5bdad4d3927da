package sqlite

import (
	"context"
	"database/sql/driver"

	"github.com/scepkit/scepkit/scep"
)

const (
	// Each by itself is found at an end of the table.
	storedBounds = `SELECT (SELECT min(stored) FROM record), (SELECT max(stored) FROM record)`
	scanRecords  = `SELECT ` + ofRecord + `, stored FROM record WHERE stored > ?1 AND stored <= ?2 ORDER BY stored LIMIT ?3`
)

// scanPage is how many records are read at once.
const scanPage = 512

// Scan implements [scep.Scanner]. It reads the file from its beginning to its end, some hundred
// records at once in the order in which they were stored, which never changes; meanwhile it holds
// no transaction.
func (db *DB) Scan(ctx context.Context, yield func(all []*scep.Record, done float64) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var first, last int64
	err := db.read(ctx, func(r *reader) error {
		return r.each(ctx, storedBounds, 2, nil, func(row []driver.Value) error {
			first, last = toInt(row[0]), toInt(row[1])
			return nil
		})
	})
	for at := first - 1; err == nil && at < last; {
		var page []*scep.Record
		err = db.read(ctx, func(r *reader) error {
			page = make([]*scep.Record, 0, scanPage)
			return r.each(ctx, scanRecords, recordColumns+1, []driver.Value{at, last, int64(scanPage)}, func(row []driver.Value) error {
				page, at = append(page, decode(row)), toInt(row[recordColumns])
				return nil
			})
		})
		if err != nil || len(page) == 0 {
			break
		}
		err = yield(page, float64(at-first+1)/float64(last-first+1))
	}
	return err
}
