package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/scepkit/scepkit/scep"
)

const (
	ofIssuer = `serial IS NOT NULL AND issuer = CASE WHEN $1::bytea IS NULL THEN 0 ELSE (SELECT number FROM issuer WHERE name = $1) END
		AND serial > $3 AND ($2::timestamptz IS NULL OR not_after >= $2)`

	listRevoked = `SELECT serial, revoked, revocation_reason, NULL::timestamptz FROM record WHERE state = 5 AND ` + ofIssuer + `
		ORDER BY serial LIMIT $4`

	// One statement, so that a record that comes back is not found twice. The inner order has the
	// server look for what has changed, which is little: to have the outer one, or because it has no
	// statistics yet, it might read all that is revoked.
	listChangedSince = `(SELECT serial, revoked, revocation_reason, NULL::timestamptz FROM record
		WHERE state = 5 AND changed >= $5 AND ` + ofIssuer + ` ORDER BY changed)
		UNION ALL (SELECT serial, NULL, 0, unrevoked FROM record
		WHERE state = 3 AND unrevoked IS NOT NULL AND unrevoked >= $5 AND ` + ofIssuer + ` ORDER BY unrevoked)
		ORDER BY serial LIMIT $4`
)

// revocationPage is how many revocations are read at once.
const revocationPage = 5000

// Revocations implements [scep.RevocationLister]. It reads an index that has the revoked
// certificates alone, some thousands at once in the order of their serial numbers; meanwhile it
// holds no connection. What changes while it goes on may be seen or not.
func (db *DB) Revocations(ctx context.Context, q scep.RevocationQuery, yield func(scep.Revocation) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	query := listRevoked
	args := []any{blob(q.Issuer), optional(q.NotAfter), []byte{}, int64(revocationPage)}
	if !q.Since.IsZero() {
		query, args = listChangedSince, append(args, q.Since)
	}
	for {
		page, last, err := db.revocations(ctx, query, args)
		if err != nil {
			return err
		}
		for _, r := range page {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := yield(r); err != nil {
				return err
			}
		}
		if len(page) < revocationPage {
			return nil
		}
		args[2] = last
	}
}

// revocations reads one page, and what to go on after.
func (db *DB) revocations(ctx context.Context, query string, args []any) (page []scep.Revocation, last []byte, err error) {
	err = db.do(ctx, call{try: func(ctx context.Context, c *pgx.Conn) error {
		rows, err := c.Query(ctx, query, args...)
		if err != nil {
			return err
		}
		page, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (r scep.Revocation, err error) {
			var revoked, unrevoked *time.Time
			var reason int64
			err = row.Scan(&last, &revoked, &reason, &unrevoked)
			return scep.Revocation{
				Serial: toNumber(last), Revoked: toTime(revoked), Reason: scep.RevocationReason(reason), Unrevoked: toTime(unrevoked),
			}, err
		})
		return err
	}})
	return page, last, err
}
