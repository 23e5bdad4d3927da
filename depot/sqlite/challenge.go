package sqlite

import (
	"context"
	"database/sql/driver"
	"fmt"
	"time"

	"github.com/scepkit/scepkit/depot/internal/names"
	"github.com/scepkit/scepkit/scep"
)

const (
	// forgetChallenges deletes a few of those that may be forgotten. Each call makes at
	// most one row, so they become no more.
	forgetChallenges = `DELETE FROM challenge WHERE hash IN
		(SELECT hash FROM challenge WHERE forget <= ? ORDER BY forget LIMIT 8)`

	countChallenges = `SELECT count(*) FROM
		(SELECT 1 FROM challenge WHERE profile = ? AND spent_by IS NULL AND expires > ? LIMIT ?)`

	insertChallenge = `INSERT INTO challenge (hash, profile, subject, san, created, expires, forget)
		VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)`

	spendChallenge = `UPDATE challenge SET spent_by = ?1, spent = ?2, forget = max(expires, ?3)
		WHERE hash = ?4 AND spent_by IS NULL`

	spentBy = `SELECT spent_by FROM challenge WHERE hash = ?`

	getChallenge = `SELECT profile, subject, san, created, expires, spent_by, spent FROM challenge WHERE hash = ?`
)

// PutChallenge implements [scep.ChallengeStore].
func (db *DB) PutChallenge(ctx context.Context, c *scep.OneTimeChallenge, now time.Time, limit int) error {
	if err := checkIDs(ctx, c.Hash); err != nil {
		return err
	}
	if c.SpentBy != "" {
		return fmt.Errorf("sqlite: %s: a challenge that has been spent cannot be put", db.path)
	}
	kept := *c
	return db.write(ctx, func(w *writer) (answer, err error) {
		at := now.UnixMicro()
		if _, err := w.forgetChallenges.exec(at); err != nil {
			return nil, err
		}
		hash := digits(kept.Hash)
		if found, err := w.has(w.spentBy, hash); found || err != nil {
			return scep.ErrExists, err
		}
		if limit > 0 {
			if _, err := w.has(w.countChallenges, kept.Profile, at, int64(limit)); err != nil {
				return nil, err
			}
			if toInt(w.row[0]) >= int64(limit) {
				return scep.ErrLimit, nil
			}
		}
		_, err = w.insertChallenge.exec(hash, kept.Profile, text(kept.Subject), text(kept.SAN),
			micros(kept.Created), kept.Expires.UnixMicro())
		return refused(err)
	})
}

// GetChallenge implements [scep.ChallengeStore].
func (db *DB) GetChallenge(ctx context.Context, hash scep.ID) (*scep.OneTimeChallenge, error) {
	if err := checkIDs(ctx, hash); err != nil {
		return nil, err
	}
	var c *scep.OneTimeChallenge
	err := db.read(ctx, func(r *reader) error {
		return r.each(ctx, getChallenge, 7, []driver.Value{digits(hash)}, func(row []driver.Value) error {
			c = &scep.OneTimeChallenge{
				Hash:    hash,
				Profile: toText(row[0]),
				Subject: toText(row[1]),
				SAN:     toText(row[2]),
				Created: toTime(row[3]),
				Expires: toTime(row[4]),
				SpentBy: toID(row[5]),
				Spent:   toTime(row[6]),
			}
			return nil
		})
	})
	if err == nil && c == nil {
		err = scep.ErrNotFound
	}
	return c, err
}

// SpendChallenge implements [scep.ChallengeStore].
func (db *DB) SpendChallenge(ctx context.Context, hash, by scep.ID, now time.Time) (scep.ID, error) {
	if err := checkIDs(ctx, hash, by); err != nil {
		return "", err
	}
	var spender scep.ID // the committer's until it has answered
	err := db.write(ctx, func(w *writer) (answer, err error) {
		key := digits(hash)
		n, err := w.spendChallenge.exec(digits(by), now.UnixMicro(), now.Add(scep.ChallengeMemory).UnixMicro(), key)
		if err != nil {
			return nil, err
		}
		if n == 1 {
			spender = by
			return nil, nil
		}
		found, err := w.has(w.spentBy, key)
		if err == nil && !found {
			return scep.ErrNotFound, nil
		}
		spender = toID(w.row[0])
		return nil, err
	})
	if err != nil {
		return "", err
	}
	return spender, nil
}

// CreateSpending implements [scep.Spender]. It costs one commit, as Create does.
func (db *DB) CreateSpending(ctx context.Context, rec *scep.Record, challenge scep.ID, now time.Time) error {
	r, err := encode(ctx, rec)
	if err != nil {
		return err
	}
	if err := checkIDs(ctx, challenge); err != nil {
		return err
	}
	subject, san := names.Of(r.Record)
	err = db.write(ctx, func(w *writer) (answer, err error) {
		// There is no undoing one write: what could refuse it comes before what changes.
		key := digits(challenge)
		found, err := w.has(w.spentBy, key)
		if err != nil {
			return nil, err
		}
		by := toID(w.row[0])
		if !found || by != "" && by != r.ID {
			exists, err := w.has(w.hasRecord, r.id)
			switch {
			case err != nil:
				return nil, err
			case exists:
				return scep.ErrExists, nil
			case !found:
				return scep.ErrNotFound, nil
			}
			return fmt.Errorf("%w: %s", scep.ErrSpent, by), nil
		}
		if answer, err := w.create(r, subject, san); answer != nil || err != nil {
			return answer, err
		}
		_, err = w.spendChallenge.exec(r.id, now.UnixMicro(), now.Add(scep.ChallengeMemory).UnixMicro(), key)
		return nil, err
	})
	if err == nil {
		rec.Version = 1
	}
	return err
}
