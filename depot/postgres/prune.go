package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/scepkit/scepkit/scep"
)

// pruneBatch is how many records are deleted at most in one transaction. Whoever changes one of
// them waits for that.
const pruneBatch = 64

// In these, $1 is [scep.PruneQuery].Expired, $2 Denied and $3 Abandoned, or NULL. A comparison
// with NULL is not true.
const (
	// pruneKeep says that no other record depends on r. Each is looked up by itself: EXISTS the
	// planner may turn into a join, with all records of a kind for each of those that are found.
	pruneKeep = `
		AND (SELECT true FROM record AS l WHERE l.trans = r.trans AND l.generation > r.generation AND l.generation > 0
			AND (l.state IN (2, 3, 5) AND l.not_after < $1 OR l.state = 4 AND l.changed < $2 OR l.state = 1 AND l.changed < $3) IS NOT TRUE
			LIMIT 1) IS NULL
		AND (SELECT true FROM record AS w WHERE w.renews = r.id AND w.renews IS NOT NULL AND (w.state < 3 OR w.unconfirmed) LIMIT 1) IS NULL`

	pruneExpired = ` FROM record AS r WHERE r.not_after < $1 AND r.not_after IS NOT NULL AND r.state IN (2, 3, 5)` + pruneKeep + `
		AND (r.state = 2 OR (SELECT true FROM record AS o WHERE o.id = r.renews AND (o.not_after < $1) IS NOT TRUE LIMIT 1) IS NULL)
		ORDER BY r.not_after LIMIT $4`
	pruneDenied    = ` FROM record AS r WHERE r.state = 4 AND r.changed < $2` + pruneKeep + ` ORDER BY r.changed LIMIT $4`
	pruneAbandoned = ` FROM record AS r WHERE r.state = 1 AND r.changed < $3` + pruneKeep + ` ORDER BY r.changed LIMIT $4`

	countExpired   = `SELECT count(*) FROM (SELECT 1` + pruneExpired + `) AS found`
	countDenied    = `SELECT count(*) FROM (SELECT 1` + pruneDenied + `) AS found`
	countAbandoned = `SELECT count(*) FROM (SELECT 1` + pruneAbandoned + `) AS found`

	// A record that is being changed is waited for, and looked at again.
	deleteExpired   = `DELETE FROM record WHERE id = ANY (ARRAY(SELECT r.id` + pruneExpired + ` FOR UPDATE OF r))`
	deleteDenied    = `DELETE FROM record WHERE id = ANY (ARRAY(SELECT r.id` + pruneDenied + ` FOR UPDATE OF r))`
	deleteAbandoned = `DELETE FROM record WHERE id = ANY (ARRAY(SELECT r.id` + pruneAbandoned + ` FOR UPDATE OF r))`
)

// Prune implements [scep.Pruner]. It deletes 64 records in a transaction; beside an error it
// returns how many are known to have been deleted. The tables do not become smaller: what comes
// later uses the room.
func (db *DB) Prune(ctx context.Context, q scep.PruneQuery) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	limit := q.Limit
	if limit <= 0 {
		limit = 1000
	}
	total := 0
	for _, kind := range []struct {
		before      time.Time
		count, drop string
	}{
		{q.Expired, countExpired, deleteExpired},
		{q.Denied, countDenied, deleteDenied},
		{q.Abandoned, countAbandoned, deleteAbandoned},
	} {
		for !kind.before.IsZero() && total < limit {
			most, statement := limit-total, kind.count
			if !q.DryRun {
				most, statement = min(most, pruneBatch), kind.drop
			}
			n, err := db.prune(ctx, statement, most, q)
			total += n
			if err != nil {
				return total, err
			}
			if n < most || q.DryRun {
				break
			}
		}
	}
	return total, nil
}

// prune deletes, or counts, at most so many records of one kind.
func (db *DB) prune(ctx context.Context, statement string, most int, q scep.PruneQuery) (n int, err error) {
	args := []any{optional(q.Expired), optional(q.Denied), optional(q.Abandoned), int64(most)}
	if q.DryRun {
		err = db.do(ctx, call{try: func(ctx context.Context, c *pgx.Conn) error {
			return c.QueryRow(ctx, statement, args...).Scan(&n)
		}})
		return n, err
	}
	err = db.do(ctx, call{
		try: func(ctx context.Context, c *pgx.Conn) error {
			if err := prepare(ctx, c, statement); err != nil {
				return err
			}
			tag, err := c.Exec(ctx, statement, args...)
			n = int(tag.RowsAffected())
			return err
		},
		look: func(context.Context, *pgx.Conn) (fate, error) { return covered, nil },
	})
	if err != nil {
		return 0, err
	}
	return n, nil
}
