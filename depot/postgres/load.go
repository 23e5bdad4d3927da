package postgres

import (
	"context"
	"errors"
	"math/rand/v2"

	"github.com/jackc/pgx/v5"

	"github.com/scepkit/scepkit/scep"
)

// Load implements [scep.Loader]. It is one transaction, so that a hundred records wait once for the
// disk and three times for the network. All of it must be done within [Config.Timeout].
func (db *DB) Load(ctx context.Context, recs []*scep.Record) error {
	if err := ctx.Err(); err != nil || len(recs) == 0 {
		return err
	}
	token := rand.Int64()
	all := make([][]any, len(recs))
	for i, rec := range recs {
		args, err := encode(ctx, rec, token)
		if err != nil {
			return err
		}
		args[25] = int64(0) // whatever rec.Version is
		all[i] = args
	}
	err := db.do(ctx, call{
		try: func(ctx context.Context, c *pgx.Conn) error { return db.load(ctx, c, all) },
		// What has become of one has become of all.
		look: func(ctx context.Context, c *pgx.Conn) (fate, error) { return created(ctx, c, all[0][0], token) },
	})
	if err != nil {
		return err
	}
	for _, rec := range recs {
		rec.Version = 1
	}
	return nil
}

// load inserts records, or none.
func (db *DB) load(ctx context.Context, c *pgx.Conn, all [][]any) error {
	if err := prepare(ctx, c, insertRecord, insertIssuer); err != nil {
		return err
	}
	for again := false; ; again = true {
		cached := false
		for _, args := range all {
			name, _ := args[26].([]byte)
			if _, known := db.issuers.Load(string(name)); len(name) == 0 || known && !again {
				cached = cached || known
				continue
			}
			if _, err := c.Exec(ctx, insertIssuer, name); err != nil {
				return unsentError{err} // may be done twice
			}
			db.issuers.Store(string(name), true)
		}
		err := loadAll(ctx, c, all)
		switch {
		case code(err) == codeUnique:
			return scep.ErrExists
		case code(err) == codeNotNull && cached && !again: // the server was replaced by one that does not know it
		default:
			return err
		}
	}
}

// loadAll runs the transaction of load. What fails before the commit has not happened.
func loadAll(ctx context.Context, c *pgx.Conn, all [][]any) error {
	tx, err := c.Begin(ctx)
	if err != nil {
		return unsentError{err}
	}
	var b pgx.Batch
	for _, args := range all {
		b.Queue(insertRecord, args...)
	}
	results := tx.SendBatch(ctx, &b)
	exists := false
	for range all {
		tag, failed := results.Exec()
		if err = failed; err != nil {
			break
		}
		exists = exists || tag.RowsAffected() == 0
	}
	if err = errors.Join(err, results.Close()); err == nil && !exists {
		if err := tx.Commit(ctx); err != nil {
			return sentError{err}
		}
		return nil
	}
	undo := tx.Rollback(ctx)
	if err = errors.Join(err, undo); err != nil {
		return unsentError{err}
	}
	return scep.ErrExists
}
