package sceptest

import (
	"context"
	"math/big"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// A Spender is what a [Store] has behind it: a depot that keeps one-time challenges, and spends
// them in the step in which it creates a record.
type Spender interface {
	scep.Depot
	scep.ChallengeStore
	scep.Spender
}

// A Store is a [Depot] that keeps one-time challenges too, with faults: a [scep.Depot], a
// [scep.ChallengeStore] and a [scep.Spender]. Give one pointer to it to both scep.Config and
// challenge.OneTime: otherwise challenges are not spent in the step that creates a record.
type Store struct {
	Spender

	// On is told the method and the record, as [Depot].On is. CreateSpending is a "Create". With
	// "PutChallenge" and "GetChallenge" the record is empty; with "SpendChallenge" it has the ID
	// of the one that spends.
	On func(op string, rec *scep.Record) (apply bool, err error)
}

func (s *Store) depot() Depot { return Depot{s.Spender, s.On} }

// Create implements [scep.Depot].
func (s *Store) Create(ctx context.Context, rec *scep.Record) error {
	return s.depot().Create(ctx, rec)
}

// CreateSpending implements [scep.Spender].
func (s *Store) CreateSpending(ctx context.Context, rec *scep.Record, challenge scep.ID, now time.Time) error {
	return s.depot().change("Create", rec, func(rec *scep.Record) error {
		return s.Spender.CreateSpending(ctx, rec, challenge, now)
	})
}

// Update implements [scep.Depot].
func (s *Store) Update(ctx context.Context, rec *scep.Record) error {
	return s.depot().Update(ctx, rec)
}

// Get implements [scep.Depot].
func (s *Store) Get(ctx context.Context, id scep.ID) (*scep.Record, error) {
	return s.depot().Get(ctx, id)
}

// Latest implements [scep.Depot].
func (s *Store) Latest(ctx context.Context, transaction scep.ID) (*scep.Record, error) {
	return s.depot().Latest(ctx, transaction)
}

// GetSerial implements [scep.Depot].
func (s *Store) GetSerial(ctx context.Context, issuer []byte, serial *big.Int) (*scep.Record, error) {
	return s.depot().GetSerial(ctx, issuer, serial)
}

// PutChallenge implements [scep.ChallengeStore].
func (s *Store) PutChallenge(ctx context.Context, c *scep.OneTimeChallenge, now time.Time, limit int) error {
	return fault(s.On, "PutChallenge", &scep.Record{}, func() error { return s.Spender.PutChallenge(ctx, c, now, limit) })
}

// GetChallenge implements [scep.ChallengeStore].
func (s *Store) GetChallenge(ctx context.Context, hash scep.ID) (c *scep.OneTimeChallenge, err error) {
	err = fault(s.On, "GetChallenge", &scep.Record{}, func() (err error) {
		c, err = s.Spender.GetChallenge(ctx, hash)
		return err
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// SpendChallenge implements [scep.ChallengeStore].
func (s *Store) SpendChallenge(ctx context.Context, hash, by scep.ID, now time.Time) (spender scep.ID, err error) {
	err = fault(s.On, "SpendChallenge", &scep.Record{ID: by}, func() (err error) {
		spender, err = s.Spender.SpendChallenge(ctx, hash, by, now)
		return err
	})
	if err != nil {
		return "", err
	}
	return spender, nil
}
