package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/scepkit/scepkit/scep"
)

const (
	// lockProfile has those who count wait for each other. It is let go at the commit.
	lockProfile = `SELECT pg_advisory_xact_lock($1)`

	// forgetChallenges deletes a few of those that may be forgotten. Each call makes at
	// most one row, so they become no more.
	forgetChallenges = `DELETE FROM challenge WHERE hash IN
		(SELECT hash FROM challenge WHERE forget <= $1 ORDER BY forget LIMIT 8 FOR UPDATE SKIP LOCKED)`

	// insertChallenge inserts nothing if there are $8 already, or if the hash is taken.
	insertChallenge = `INSERT INTO challenge (hash, profile, subject, san, created, expires, forget)
		SELECT $1, $2::text, $3, $4, $5, $6, $6 WHERE $8::bigint <= 0 OR $8 > (SELECT count(*) FROM
		(SELECT 1 FROM challenge WHERE profile = $2 AND spent_by IS NULL AND expires > $7 LIMIT $8) AS unspent)
		ON CONFLICT DO NOTHING`

	spendChallenge = `UPDATE challenge SET spent_by = $2, spent = $3, forget = greatest(expires, $4)
		WHERE hash = $1 AND spent_by IS NULL`

	// insertSpending inserts nothing if the challenge, $31, is not spent by the record. Without
	// ON CONFLICT, a record that is there is an error, which undoes the spending as well.
	insertSpending = intoRecord + ` SELECT ` + newRecord + ` WHERE EXISTS (SELECT 1 FROM challenge WHERE hash = $31 AND spent_by = $1)`

	getChallenge = `SELECT profile, subject, san, created, expires, spent_by, spent FROM challenge WHERE hash = $1`
)

// PutChallenge implements [scep.ChallengeStore].
func (db *DB) PutChallenge(ctx context.Context, c *scep.OneTimeChallenge, now time.Time, limit int) error {
	if err := checkIDs(ctx, c.Hash); err != nil {
		return err
	}
	if c.SpentBy != "" {
		return fmt.Errorf("postgres: %s: a challenge that has been spent cannot be put", db.name)
	}
	put := *c
	limit = max(limit, 0)
	return db.do(ctx, call{
		try: func(ctx context.Context, conn *pgx.Conn) error {
			if err := prepare(ctx, conn, lockProfile, forgetChallenges, insertChallenge); err != nil {
				return err
			}
			var b pgx.Batch // one transaction, and one round trip
			if limit > 0 {
				b.Queue(lockProfile, lockKey("scepkit challenges", put.Profile))
			}
			b.Queue(forgetChallenges, now)
			b.Queue(insertChallenge, digits(put.Hash), escape(put.Profile), text(put.Subject), text(put.SAN),
				optional(put.Created), put.Expires, now, int64(limit))
			if inserted, err := send(ctx, conn, &b); err != nil || inserted == 1 {
				return err
			}
			switch _, err := readChallenge(ctx, conn, put.Hash); {
			case err == nil:
				return scep.ErrExists
			case !errors.Is(err, scep.ErrNotFound):
				return err
			}
			return scep.ErrLimit
		},
		look: func(ctx context.Context, conn *pgx.Conn) (fate, error) {
			found, err := readChallenge(ctx, conn, put.Hash)
			switch {
			case errors.Is(err, scep.ErrNotFound):
				return absent, nil
			case err != nil:
				return absent, err
			case found.Profile != put.Profile || found.Subject != put.Subject || found.SAN != put.SAN ||
				found.Created.UnixMicro() != put.Created.UnixMicro() || found.Expires.UnixMicro() != put.Expires.UnixMicro():
				return settled, scep.ErrExists
			}
			return settled, nil // hashes are of random text: nobody else has put it
		},
	})
}

// GetChallenge implements [scep.ChallengeStore].
func (db *DB) GetChallenge(ctx context.Context, hash scep.ID) (*scep.OneTimeChallenge, error) {
	if err := checkIDs(ctx, hash); err != nil {
		return nil, err
	}
	var c *scep.OneTimeChallenge
	err := db.do(ctx, call{try: func(ctx context.Context, conn *pgx.Conn) (err error) {
		c, err = readChallenge(ctx, conn, hash)
		return err
	}})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// SpendChallenge implements [scep.ChallengeStore].
func (db *DB) SpendChallenge(ctx context.Context, hash, by scep.ID, now time.Time) (scep.ID, error) {
	if err := checkIDs(ctx, hash, by); err != nil {
		return "", err
	}
	spender := by
	err := db.do(ctx, call{
		try: func(ctx context.Context, conn *pgx.Conn) error {
			if err := prepare(ctx, conn, spendChallenge); err != nil {
				return err
			}
			tag, err := conn.Exec(ctx, spendChallenge, digits(hash), digits(by), now, now.Add(scep.ChallengeMemory))
			if err != nil || tag.RowsAffected() == 1 {
				return err
			}
			found, err := readChallenge(ctx, conn, hash)
			if err == nil {
				spender = found.SpentBy
			}
			return err
		},
		look: func(ctx context.Context, conn *pgx.Conn) (fate, error) {
			found, err := readChallenge(ctx, conn, hash)
			switch {
			case errors.Is(err, scep.ErrNotFound):
				return settled, err
			case err != nil || found.SpentBy == "":
				return absent, err
			}
			spender = found.SpentBy
			return settled, nil
		},
	})
	if err != nil {
		return "", err
	}
	return spender, nil
}

// CreateSpending implements [scep.Spender]. It is one transaction and one round trip.
//
// Whatever takes locks on more than one of them takes that of PutChallenge first, challenges next
// and records last.
func (db *DB) CreateSpending(ctx context.Context, rec *scep.Record, challenge scep.ID, now time.Time) error {
	token := rand.Int64()
	args, err := encode(ctx, rec, token)
	if err != nil {
		return err
	}
	if err := checkIDs(ctx, challenge); err != nil {
		return err
	}
	args[25] = int64(0) // whatever rec.Version is
	args = append(args, digits(challenge))
	by := rec.ID
	spend := []any{digits(challenge), digits(by), now, now.Add(scep.ChallengeMemory)}
	err = db.do(ctx, call{
		try: func(ctx context.Context, c *pgx.Conn) error {
			n, err := db.write(ctx, c, insertSpending, args, spend)
			if err != nil || n == 1 {
				return err
			}
			// Nothing has changed.
			switch _, _, _, err := writer(ctx, c, args[0]); {
			case err == nil:
				return scep.ErrExists
			case !errors.Is(err, scep.ErrNotFound):
				return err
			}
			if err := spendable(ctx, c, challenge, by); err != nil {
				return err
			}
			return scep.ErrNotFound // it has been put since
		},
		look: func(ctx context.Context, c *pgx.Conn) (fate, error) {
			found, err := created(ctx, c, args[0], token)
			if found != absent || err != nil {
				return found, err
			}
			switch err := spendable(ctx, c, challenge, by); {
			case errors.Is(err, scep.ErrNotFound), errors.Is(err, scep.ErrSpent):
				return settled, err // which keeps this one out, wherever it is
			default:
				return absent, err
			}
		},
	})
	if err == nil {
		rec.Version = 1
	}
	return err
}

// spendable reports that a record can not, or no longer, spend a challenge.
func spendable(ctx context.Context, conn *pgx.Conn, hash, by scep.ID) error {
	found, err := readChallenge(ctx, conn, hash)
	if err == nil && found.SpentBy != "" && found.SpentBy != by {
		return fmt.Errorf("%w: %s", scep.ErrSpent, found.SpentBy)
	}
	return err
}

// readChallenge reads a challenge.
func readChallenge(ctx context.Context, conn *pgx.Conn, hash scep.ID) (*scep.OneTimeChallenge, error) {
	var profile string
	var subject, san *string
	var created, spent *time.Time
	var expires time.Time
	var spentBy []byte
	err := conn.QueryRow(ctx, getChallenge, digits(hash)).Scan(&profile, &subject, &san, &created, &expires, &spentBy, &spent)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, scep.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	return &scep.OneTimeChallenge{
		Hash: hash, Profile: unescape(profile), Subject: toText(subject), SAN: toText(san),
		Created: toTime(created), Expires: expires.UTC(), SpentBy: toID(spentBy), Spent: toTime(spent),
	}, nil
}
