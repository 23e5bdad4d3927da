package sqlite

import (
	"context"
	"database/sql/driver"

	"github.com/scepkit/scepkit/scep"
)

const (
	listRevoked = `SELECT serial, revoked, revocation_reason, NULL FROM record
		WHERE state = 5 AND serial IS NOT NULL AND issuer = ?1 AND (?2 IS NULL OR coalesce(not_after, -1) >= ?2)
		ORDER BY serial`
	// One statement, so that it sees one state of the file. Each half is in the order of its index.
	listChangedSince = `SELECT serial, revoked, revocation_reason, NULL FROM record
		WHERE state = 5 AND serial IS NOT NULL AND issuer = ?1 AND changed >= ?3 AND (?2 IS NULL OR coalesce(not_after, -1) >= ?2)
		UNION ALL SELECT serial, NULL, 0, unrevoked FROM record
		WHERE state = 3 AND unrevoked IS NOT NULL AND serial IS NOT NULL AND issuer = ?1 AND unrevoked >= ?3
			AND (?2 IS NULL OR coalesce(not_after, -1) >= ?2)`
)

// Revocations implements [scep.RevocationLister]. It reads an index that has the revoked
// certificates alone. What changes while it goes on is not seen.
func (db *DB) Revocations(ctx context.Context, q scep.RevocationQuery, yield func(scep.Revocation) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	name := q.Issuer
	if name == nil {
		name = []byte{} // nil would be NULL
	}
	var failed error // of yield
	err := db.read(ctx, func(r *reader) error {
		var issuer driver.Value
		err := r.each(ctx, findIssuer, 1, []driver.Value{name}, func(row []driver.Value) error {
			issuer = row[0]
			return nil
		})
		if err != nil || issuer == nil {
			return err
		}
		args := []driver.Value{issuer, micros(q.NotAfter)}
		query := listRevoked
		if !q.Since.IsZero() {
			query, args = listChangedSince, append(args, micros(q.Since))
		}
		return r.each(ctx, query, 4, args, func(row []driver.Value) error {
			failed = yield(scep.Revocation{
				Serial: toNumber(row[0]), Revoked: toTime(row[1]), Reason: scep.RevocationReason(toInt(row[2])), Unrevoked: toTime(row[3]),
			})
			return failed
		})
	})
	if failed != nil {
		return failed
	}
	return err
}
