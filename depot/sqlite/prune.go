package sqlite

import (
	"context"
	"database/sql/driver"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// pruneBatch is how many records are deleted at most in one write. Others wait for that.
const pruneBatch = 64

// In these, ?1 is [scep.PruneQuery].Expired, ?2 Denied and ?3 Abandoned, or NULL.
const (
	// pruneKeep says that no other record depends on r. A comparison with NULL is not true.
	pruneKeep = `
		AND NOT EXISTS (SELECT 1 FROM record AS l INDEXED BY record_generation
			WHERE l.trans = r.trans AND l.generation > r.generation AND l.generation > 0
			AND (l.state IN (2, 3, 5) AND l.not_after < ?1 OR l.state = 4 AND l.changed < ?2 OR l.state = 1 AND l.changed < ?3) IS NOT TRUE)
		AND NOT EXISTS (SELECT 1 FROM record AS w INDEXED BY record_renewing
			WHERE w.renews = r.id AND w.renews IS NOT NULL AND (w.state < 3 OR w.unconfirmed <> 0))`

	// A unary plus keeps a condition away from the choice of an index.
	pruneExpired = ` FROM record AS r WHERE r.not_after < ?1 AND +r.state IN (2, 3, 5)` + pruneKeep + `
		AND (r.state = 2 OR NOT EXISTS (SELECT 1 FROM record AS o
			WHERE o.id = r.renews AND (o.not_after < ?1) IS NOT TRUE))`
	pruneDenied    = ` FROM record AS r WHERE r.state = 4 AND r.changed < ?2` + pruneKeep
	pruneAbandoned = ` FROM record AS r WHERE r.state = 1 AND r.changed < ?3` + pruneKeep

	findExpired   = `SELECT r.stored` + pruneExpired + ` ORDER BY r.not_after LIMIT ?4`
	findDenied    = `SELECT r.stored` + pruneDenied + ` ORDER BY r.changed LIMIT ?4`
	findAbandoned = `SELECT r.stored` + pruneAbandoned + ` ORDER BY r.changed LIMIT ?4`

	// In the meantime the record may have changed, or another may have come.
	deleteExpired   = `DELETE` + pruneExpired + ` AND r.stored = ?4`
	deleteDenied    = `DELETE` + pruneDenied + ` AND r.stored = ?4`
	deleteAbandoned = `DELETE` + pruneAbandoned + ` AND r.stored = ?4`
)

// Prune implements [scep.Pruner]. It looks for records while others write, and deletes them 64
// in a commit, with pauses for other processes. The file does not become smaller: what comes later
// uses the room.
func (db *DB) Prune(ctx context.Context, q scep.PruneQuery) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	limit := q.Limit
	if limit <= 0 {
		limit = 1000
	}
	times := []driver.Value{micros(q.Expired), micros(q.Denied), micros(q.Abandoned)}
	total := 0
	for _, kind := range []struct {
		before     time.Time
		find, drop string
	}{
		{q.Expired, findExpired, deleteExpired},
		{q.Denied, findDenied, deleteDenied},
		{q.Abandoned, findAbandoned, deleteAbandoned},
	} {
		for !kind.before.IsZero() && total < limit {
			most := limit - total
			if !q.DryRun {
				most = min(most, 1024)
			}
			n, found, err := db.prune(ctx, kind.find, kind.drop, times, most, q.DryRun)
			total += n
			if err != nil {
				return total, err
			}
			if found < most || n == 0 || q.DryRun {
				break
			}
		}
	}
	return total, nil
}

// prune deletes at most so many records of one kind. It returns how many, and how many it found.
func (db *DB) prune(ctx context.Context, find, drop string, times []driver.Value, most int, dry bool) (n, found int, err error) {
	var rows []int64
	args := append(times[:3:3], int64(most))
	err = db.read(ctx, func(r *reader) error {
		return r.each(ctx, find, 1, args, func(row []driver.Value) error {
			if found++; !dry {
				rows = append(rows, toInt(row[0]))
			}
			return nil
		})
	})
	if err != nil || dry {
		return found, found, err
	}
	for len(rows) > 0 {
		batch := rows[:min(pruneBatch, len(rows))]
		rows = rows[len(batch):]
		begun := time.Now()
		deleted := make(chan int, 1) // the committer's, perhaps after ctx has ended
		err := db.write(ctx, func(w *writer) (answer, err error) {
			s, err := w.pruneStatement(drop)
			if err != nil {
				return nil, err
			}
			sum := 0
			for _, stored := range batch {
				changed, err := s.exec(times[0], times[1], times[2], stored)
				if err != nil {
					return nil, err
				}
				sum += int(changed)
			}
			deleted <- sum
			return nil, nil
		})
		if err != nil {
			return n, found, err
		}
		n += <-deleted
		select { // another process waits for its turn by asking again and again
		case <-time.After(time.Since(begun) / 2):
		case <-ctx.Done():
		case <-db.closing:
		}
	}
	return n, found, nil
}

// pruneStatement prepares a statement when it is first needed.
func (w *writer) pruneStatement(query string) (*statement, error) {
	if s, known := w.prune[query]; known {
		return s, nil
	}
	s, err := w.prepare(query)
	if err != nil {
		return nil, err
	}
	if w.prune == nil {
		w.prune = make(map[string]*statement)
	}
	w.prune[query] = s
	return s, nil
}
