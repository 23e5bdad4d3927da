package postgres

import (
	"context"

	"github.com/scepkit/scepkit/scep"
)

const (
	listRecords = selectRecord + ` WHERE id > $1 AND ($2::text IS NULL OR profile = $2) ORDER BY id LIMIT $3`
	listIssued  = selectRecord + ` WHERE state = 3 AND id > $1 AND ($2::text IS NULL OR profile = $2) ORDER BY id LIMIT $3`
	listState   = selectRecord + ` WHERE state <> 3 AND state = $4 AND id > $1 AND ($2::text IS NULL OR profile = $2) ORDER BY id LIMIT $3`
)

// List implements [scep.Lister]. By state it is quick except for Issued, and so it is without
// any condition; records of another profile that lie between are read and skipped.
func (db *DB) List(ctx context.Context, q scep.Query) ([]*scep.Record, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	after := []byte{}
	if q.After != "" {
		if err := checkIDs(ctx, q.After); err != nil {
			return nil, err
		}
		after = digits(q.After)
	}
	limit := int64(100)
	if q.Limit > 0 {
		limit = int64(q.Limit)
	}
	var profile *string
	if q.Profile != nil {
		p := escape(*q.Profile)
		profile = &p
	}
	switch q.State {
	case 0:
		return db.records(ctx, listRecords, after, profile, limit)
	case scep.Issued:
		return db.records(ctx, listIssued, after, profile, limit)
	}
	return db.records(ctx, listState, after, profile, limit, int16(q.State))
}
