package depottest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// A spender is a depot that spends a challenge in the step in which it creates a record.
type spender interface {
	scep.Depot
	scep.ChallengeStore
	scep.Spender
}

var spendingClauses = []clause{{
	name:     "CreateSpending",
	contract: "CreateSpending creates the record as Create does, sets rec.Version to 1, and its challenge is spent by it at now.",
	spending: func(ctx context.Context, s spender) error {
		c, rec := fresh("good"), new(scep.Record)
		if err := fill(rec, 1); err != nil {
			return err
		}
		rec.Version = 0
		if err := putAll(ctx, s, c); err != nil {
			return err
		}
		passed := rec.Clone()
		if err := s.CreateSpending(ctx, passed, c.Hash, epoch.Add(time.Minute)); err != nil {
			return fmt.Errorf("CreateSpending: %w", err)
		}
		if passed.Version != 1 {
			return fmt.Errorf("rec.Version is %d", passed.Version)
		}
		for what, get := range map[string]func() (*scep.Record, error){
			"Get":       func() (*scep.Record, error) { return s.Get(ctx, rec.ID) },
			"Latest":    func() (*scep.Record, error) { return s.Latest(ctx, rec.Transaction) },
			"GetSerial": func() (*scep.Record, error) { return s.GetSerial(ctx, rec.Issuer, rec.Serial) },
		} {
			got, err := get()
			if err := found(what, got, err, rec.ID); err != nil {
				return err
			}
			if err := same(got, passed); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
		}
		return spentBy(ctx, s, c, rec.ID, epoch.Add(time.Minute))
	},
}, {
	name:     "CreateSpendingSpent",
	contract: "If another record has spent the challenge, CreateSpending returns ErrSpent, stores nothing and leaves rec.Version alone.",
	spending: func(ctx context.Context, s spender) error {
		c := fresh("spent")
		if err := putAll(ctx, s, c); err != nil {
			return err
		}
		if _, err := s.SpendChallenge(ctx, c.Hash, id("another"), epoch); err != nil {
			return fmt.Errorf("SpendChallenge: %w", err)
		}
		rec := record("late")
		if err := want("CreateSpending", s.CreateSpending(ctx, rec, c.Hash, epoch.Add(time.Minute)), scep.ErrSpent); err != nil {
			return err
		}
		_, err := s.Get(ctx, rec.ID)
		if err := want("Get of what was refused", err, scep.ErrNotFound); err != nil {
			return err
		}
		if rec.Version != 0 {
			return fmt.Errorf("refused, but rec.Version became %d", rec.Version)
		}
		return spentBy(ctx, s, c, id("another"), epoch)
	},
}, {
	name:     "CreateSpendingMissing",
	contract: "If there is no such challenge, CreateSpending returns ErrNotFound and stores nothing.",
	spending: func(ctx context.Context, s spender) error {
		if err := putAll(ctx, s, fresh("other")); err != nil {
			return err
		}
		rec := record("new")
		if err := want("CreateSpending", s.CreateSpending(ctx, rec, fresh("missing").Hash, epoch), scep.ErrNotFound); err != nil {
			return err
		}
		_, err := s.Get(ctx, rec.ID)
		return want("Get of what was refused", err, scep.ErrNotFound)
	},
}, {
	name:     "CreateSpendingExists",
	contract: "If a record has the ID, or the same Issuer and Serial, CreateSpending returns ErrExists, stores nothing and spends nothing.",
	spending: func(ctx context.Context, s spender) error {
		c, there := fresh("unspent"), record("there")
		if err := putAll(ctx, s, c); err != nil {
			return err
		}
		if err := createAll(ctx, s, there.Clone()); err != nil {
			return err
		}
		sameID, sameSerial := record("there"), record("new")
		sameID.Serial, sameSerial.Serial = sameSerial.Serial, there.Serial
		for what, rec := range map[string]*scep.Record{"ID": sameID, "serial number": sameSerial} {
			if err := want("CreateSpending of an "+what+" that is taken", s.CreateSpending(ctx, rec, c.Hash, epoch), scep.ErrExists); err != nil {
				return err
			}
			if rec.Version != 0 {
				return fmt.Errorf("refused, but rec.Version became %d", rec.Version)
			}
			if err := spentBy(ctx, s, c, "", time.Time{}); err != nil {
				return fmt.Errorf("after an %s was taken: %w", what, err)
			}
		}
		_, err := s.Get(ctx, sameSerial.ID)
		if err := want("Get of what was refused", err, scep.ErrNotFound); err != nil {
			return err
		}
		got, err := s.Get(ctx, there.ID)
		if err := found("Get", got, err, there.ID); err != nil {
			return err
		}
		there.Version = 1
		return same(got, there)
	},
}, {
	name:     "CreateSpendingFirstError",
	contract: "CreateSpending returns ErrExists for an ID that is taken, whatever has become of the challenge, and what is wrong with the challenge before it looks at the serial number.",
	spending: func(ctx context.Context, s spender) error {
		spent, own, there, next := fresh("spent"), fresh("own"), record("there"), record("next")
		if err := putAll(ctx, s, spent, own); err != nil {
			return err
		}
		if err := s.CreateSpending(ctx, there.Clone(), own.Hash, epoch); err != nil {
			return fmt.Errorf("CreateSpending: %w", err)
		}
		if _, err := s.SpendChallenge(ctx, spent.Hash, id("another"), epoch); err != nil {
			return fmt.Errorf("SpendChallenge: %w", err)
		}
		next.Serial = there.Serial
		create := func(rec *scep.Record, challenge scep.ID) error {
			return s.CreateSpending(ctx, rec.Clone(), challenge, epoch)
		}
		return errors.Join(
			want("CreateSpending again", create(there, own.Hash), scep.ErrExists),
			want("CreateSpending again, with a challenge that another record has spent", create(there, spent.Hash), scep.ErrExists),
			want("CreateSpending again, with a challenge that is missing", create(there, fresh("missing").Hash), scep.ErrExists),
			want("CreateSpending of a serial number that is taken, with a challenge that another record has spent", create(next, spent.Hash), scep.ErrSpent),
			want("CreateSpending of a serial number that is taken, with a challenge that is missing", create(next, fresh("missing").Hash), scep.ErrNotFound))
	},
}, {
	name:     "CreateSpendingOwn",
	contract: "A challenge that rec.ID has spent before is good for CreateSpending, and stays spent as it was.",
	spending: func(ctx context.Context, s spender) error {
		c, rec := fresh("own"), record("new")
		if err := putAll(ctx, s, c); err != nil {
			return err
		}
		if _, err := s.SpendChallenge(ctx, c.Hash, rec.ID, epoch); err != nil {
			return fmt.Errorf("SpendChallenge: %w", err)
		}
		if err := s.CreateSpending(ctx, rec, c.Hash, epoch.Add(time.Minute)); err != nil {
			return fmt.Errorf("CreateSpending: %w", err)
		}
		got, err := s.Get(ctx, rec.ID)
		if err := found("Get", got, err, rec.ID); err != nil {
			return err
		}
		return spentBy(ctx, s, c, rec.ID, epoch)
	},
}, {
	name:     "CreateSpendingForGood",
	contract: "What CreateSpending has spent no longer counts against the limit, and is remembered for ChallengeMemory at least.",
	spending: func(ctx context.Context, s spender) error {
		c, rec := fresh("spent"), record("new")
		if err := s.PutChallenge(ctx, c, epoch, 1); err != nil {
			return fmt.Errorf("PutChallenge: %w", err)
		}
		if err := s.CreateSpending(ctx, rec, c.Hash, epoch); err != nil {
			return fmt.Errorf("CreateSpending: %w", err)
		}
		if err := s.PutChallenge(ctx, fresh("another"), epoch, 1); err != nil {
			return fmt.Errorf("PutChallenge after one was spent: %w", err)
		}
		soon := epoch.Add(scep.ChallengeMemory - time.Minute)
		next := fresh("next")
		next.Created, next.Expires = soon, soon.Add(time.Hour)
		if err := s.PutChallenge(ctx, next, soon, 0); err != nil {
			return fmt.Errorf("PutChallenge: %w", err)
		}
		by, err := s.SpendChallenge(ctx, c.Hash, id("another record"), soon)
		if err != nil || by != rec.ID {
			return fmt.Errorf("SpendChallenge: %.8s…, %v; want %.8s…", by, err, rec.ID)
		}
		return nil
	},
}, {
	name:     "CreateSpendingTogether",
	contract: "Of concurrent CreateSpendings of one challenge, and of SpendChallenges beside them, one succeeds, and the others store nothing.",
	spending: func(ctx context.Context, s spender) error {
		const n = 24
		for round := range 6 {
			c := fresh(fmt.Sprint("round ", round))
			if err := putAll(ctx, s, c); err != nil {
				return err
			}
			// Three callers of each record, and for one record in four they only spend.
			name := func(i int) string { return fmt.Sprint("round ", round, " record ", i%(n/3)) }
			spends := func(i int) bool { return i%(n/3)%4 == 3 }
			told := make([]scep.ID, n)
			errs := together(n, func(i int) (err error) {
				if spends(i) {
					told[i], err = s.SpendChallenge(ctx, c.Hash, id("%s", name(i)), epoch)
					return err
				}
				rec := record(name(i))
				rec.Serial = record(fmt.Sprint(name(i), i)).Serial
				return s.CreateSpending(ctx, rec, c.Hash, epoch)
			})
			got, err := s.GetChallenge(ctx, c.Hash)
			if err != nil {
				return fmt.Errorf("GetChallenge: %w", err)
			}
			winners := 0
			for i, err := range errs {
				won := got.SpentBy == id("%s", name(i))
				switch {
				case spends(i):
					if err != nil || told[i] != got.SpentBy {
						return fmt.Errorf("SpendChallenge: %.8s…, %v; the challenge was spent by %.8s…", told[i], err, got.SpentBy)
					}
					if won {
						winners = 1
					}
				case won && err == nil:
					winners++
				case won:
					if err := want("CreateSpending beside another of the same record", err, scep.ErrExists); err != nil {
						return err
					}
				default:
					if err := want("CreateSpending of a challenge that another record has spent", err, scep.ErrSpent); err != nil {
						return err
					}
				}
				_, err = s.Get(ctx, id("%s", name(i)))
				if err != nil && !errors.Is(err, scep.ErrNotFound) {
					return fmt.Errorf("depot.Get: %w", err)
				}
				if there := err == nil; there != (won && !spends(i)) {
					return fmt.Errorf("the record of caller %d is there: %t; it has spent the challenge: %t", i, there, won)
				}
			}
			if winners != 1 {
				return fmt.Errorf("%d callers were told that they have created the record, want 1", winners)
			}
		}
		return nil
	},
}, {
	name:     "CreateSpendingCancelled",
	contract: "When the context has ended, CreateSpending returns an error; at whatever moment it ends, the challenge is spent if and only if the record exists.",
	spending: func(ctx context.Context, s spender) error {
		const n = 33
		for i := range n {
			if err := putAll(ctx, s, fresh(fmt.Sprint(i))); err != nil {
				return err
			}
		}
		return errors.Join(together(n, func(i int) error {
			patience := time.Duration(rand.IntN(2000)) * time.Microsecond
			if i == 0 {
				patience = -1
			}
			ending, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			c, rec := fresh(fmt.Sprint(i)), record(fmt.Sprint(i))
			told := s.CreateSpending(ending, rec.Clone(), c.Hash, epoch)
			if i == 0 && told == nil {
				return errors.New("CreateSpending does as if the context had not ended")
			}
			if told != nil {
				// If it was still to happen, it must not collide with doing it again.
				if err := s.CreateSpending(ctx, rec.Clone(), c.Hash, epoch); err != nil && !errors.Is(err, scep.ErrExists) {
					return fmt.Errorf("CreateSpending again: %w", err)
				}
			}
			got, err := s.Get(ctx, rec.ID)
			if err := found("Get", got, err, rec.ID); err != nil {
				return err
			}
			return spentBy(ctx, s, c, rec.ID, epoch)
		})...)
	},
}, {
	name:     "CreateSpendingReopen",
	contract: "When CreateSpending returns nil, the record and who spent the challenge survive a crash.",
	reopen: func(ctx context.Context, d scep.Depot, reopen func() scep.Depot) error {
		s, err := asSpender(d)
		if err != nil {
			return err
		}
		c, rec := fresh("spent"), record("new")
		if err := putAll(ctx, s, c); err != nil {
			return err
		}
		if err := s.CreateSpending(ctx, rec, c.Hash, epoch); err != nil {
			return fmt.Errorf("CreateSpending: %w", err)
		}
		again, err := asSpender(reopen())
		if err != nil {
			return fmt.Errorf("reopened: %v", err)
		}
		got, err := again.Get(ctx, rec.ID)
		if err := found("Get after reopening", got, err, rec.ID); err != nil {
			return err
		}
		return spentBy(ctx, again, c, rec.ID, epoch)
	},
}, {
	name:     "CreateSpendingHostileIDs",
	contract: "An ID of a record or a challenge that is not Valid is an error of CreateSpending.",
	spending: func(ctx context.Context, s spender) error {
		c := fresh("there")
		if err := putAll(ctx, s, c); err != nil {
			return err
		}
		return errors.Join(
			refuses("CreateSpending", func(bad scep.ID) error {
				rec := record("bad")
				rec.ID = bad
				return s.CreateSpending(ctx, rec, c.Hash, epoch)
			}),
			refuses("CreateSpending, of a challenge,", func(bad scep.ID) error { return s.CreateSpending(ctx, record("good"), bad, epoch) }),
			spentBy(ctx, s, c, "", time.Time{}))
	},
}}

// asSpender returns d, or that it is none.
func asSpender(d scep.Depot) (spender, error) {
	s, ok := d.(spender)
	if !ok {
		return nil, gap(fmt.Sprintf("%T is not a scep.Spender with a scep.ChallengeStore", d))
	}
	return s, nil
}

// putAll stores challenges.
func putAll(ctx context.Context, s scep.ChallengeStore, all ...*scep.OneTimeChallenge) error {
	for _, c := range all {
		if err := s.PutChallenge(ctx, c, epoch, 0); err != nil {
			return fmt.Errorf("PutChallenge: %w", err)
		}
	}
	return nil
}

// spentBy reports that a challenge was spent by another, or at another time.
func spentBy(ctx context.Context, s scep.ChallengeStore, c *scep.OneTimeChallenge, by scep.ID, at time.Time) error {
	got, err := s.GetChallenge(ctx, c.Hash)
	switch {
	case err != nil:
		return fmt.Errorf("GetChallenge: %w", err)
	case got.SpentBy != by:
		return fmt.Errorf("the challenge was spent by %.8q, want %.8q", got.SpentBy, by)
	case !got.Spent.Truncate(time.Microsecond).Equal(at):
		return fmt.Errorf("the challenge was spent at %v, want %v", got.Spent, at)
	}
	return nil
}
