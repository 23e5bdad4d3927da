package depottest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// fresh returns an unspent challenge that is good for an hour.
func fresh(name string) *scep.OneTimeChallenge {
	return &scep.OneTimeChallenge{Hash: id("challenge %s", name), Created: epoch, Expires: epoch.Add(time.Hour)}
}

var challengeClauses = []clause{{
	name:     "ChallengeFields",
	contract: "GetChallenge returns the challenge as PutChallenge stored it, and a copy.",
	challenges: func(ctx context.Context, s scep.ChallengeStore) error {
		c := &scep.OneTimeChallenge{}
		if err := fill(c, 1); err != nil {
			return err
		}
		c.Expires, c.SpentBy, c.Spent = c.Created.Add(time.Hour), "", time.Time{}
		if err := s.PutChallenge(ctx, c, c.Created, 0); err != nil {
			return fmt.Errorf("PutChallenge: %w", err)
		}
		for range 2 {
			got, err := s.GetChallenge(ctx, c.Hash)
			if err != nil {
				return fmt.Errorf("GetChallenge: %w", err)
			}
			if err := same(got, c); err != nil {
				return err
			}
			got.Subject = "changed by the caller"
		}
		return nil
	},
}, {
	name:     "ChallengeMissing",
	contract: "GetChallenge and SpendChallenge return ErrNotFound if there is no such challenge.",
	challenges: func(ctx context.Context, s scep.ChallengeStore) error {
		if err := s.PutChallenge(ctx, fresh("other"), epoch, 0); err != nil {
			return fmt.Errorf("PutChallenge: %w", err)
		}
		_, err := s.GetChallenge(ctx, id("missing"))
		_, err2 := s.SpendChallenge(ctx, id("missing"), id("record"), epoch)
		return errors.Join(
			want("GetChallenge", err, scep.ErrNotFound),
			want("SpendChallenge", err2, scep.ErrNotFound))
	},
}, {
	name:     "ChallengeTwice",
	contract: "PutChallenge returns ErrExists if the hash is taken, and changes nothing.",
	challenges: func(ctx context.Context, s scep.ChallengeStore) error {
		first := fresh("twice")
		if err := s.PutChallenge(ctx, first, epoch, 0); err != nil {
			return fmt.Errorf("PutChallenge: %w", err)
		}
		second := fresh("twice")
		second.Subject = "another"
		if err := want("PutChallenge again", s.PutChallenge(ctx, second, epoch, 0), scep.ErrExists); err != nil {
			return err
		}
		got, err := s.GetChallenge(ctx, first.Hash)
		if err != nil {
			return fmt.Errorf("GetChallenge: %w", err)
		}
		return same(got, first)
	},
}, {
	name:     "ChallengeLimit",
	contract: "PutChallenge returns ErrLimit if limit unspent challenges of the profile have not expired; concurrent calls never exceed it.",
	challenges: func(ctx context.Context, s scep.ChallengeStore) error {
		other := fresh("other")
		other.Profile = "other"
		if err := s.PutChallenge(ctx, other, epoch, 1); err != nil {
			return fmt.Errorf("PutChallenge: %w", err)
		}
		const limit = 10
		errs := together(64, func(i int) error { return s.PutChallenge(ctx, fresh(fmt.Sprint(i)), epoch, limit) })
		made := 0
		for _, err := range errs {
			if err == nil {
				made++
			} else if err := want("PutChallenge over the limit", err, scep.ErrLimit); err != nil {
				return err
			}
		}
		if made != limit {
			return fmt.Errorf("%d challenges of a profile were stored, want %d; another profile has one", made, limit)
		}
		if err := s.PutChallenge(ctx, fresh("without limit"), epoch, 0); err != nil {
			return fmt.Errorf("PutChallenge with limit 0, which is none: %w", err)
		}
		return nil
	},
}, {
	name:     "ChallengeLimitRoom",
	contract: "Challenges that are spent or have expired at now do not count against the limit.",
	challenges: func(ctx context.Context, s scep.ChallengeStore) error {
		for i := range 2 {
			if err := s.PutChallenge(ctx, fresh(fmt.Sprint(i)), epoch, 2); err != nil {
				return fmt.Errorf("PutChallenge: %w", err)
			}
		}
		if err := want("PutChallenge over the limit", s.PutChallenge(ctx, fresh("3"), epoch, 2), scep.ErrLimit); err != nil {
			return err
		}
		if _, err := s.SpendChallenge(ctx, fresh("0").Hash, id("record"), epoch); err != nil {
			return fmt.Errorf("SpendChallenge: %w", err)
		}
		if err := s.PutChallenge(ctx, fresh("4"), epoch, 2); err != nil {
			return fmt.Errorf("PutChallenge after one was spent: %w", err)
		}
		later := fresh("5")
		later.Created, later.Expires = epoch.Add(time.Hour), epoch.Add(2*time.Hour)
		if err := s.PutChallenge(ctx, later, later.Created, 1); err != nil {
			return fmt.Errorf("PutChallenge when the others have expired: %w", err)
		}
		return nil
	},
}, {
	name:     "ChallengeSpend",
	contract: "SpendChallenge returns who has spent the challenge: the first, whoever asks, and as often as they ask.",
	challenges: func(ctx context.Context, s scep.ChallengeStore) error {
		for round := range 4 {
			c := fresh(fmt.Sprint(round))
			if err := s.PutChallenge(ctx, c, epoch, 0); err != nil {
				return fmt.Errorf("PutChallenge: %w", err)
			}
			told := make([]scep.ID, 100)
			for i, err := range together(len(told), func(i int) (err error) {
				told[i], err = s.SpendChallenge(ctx, c.Hash, id("record %d", i), epoch.Add(time.Minute))
				return err
			}) {
				if err != nil {
					return fmt.Errorf("SpendChallenge %d: %w", i, err)
				}
			}
			first := told[0]
			if slices.ContainsFunc(told, func(by scep.ID) bool { return by != first }) {
				return errors.New("two callers were told of different records")
			}
			if !ours(first, len(told)) {
				return fmt.Errorf("all were told of %.8s…, which nobody named", first)
			}
			got, err := s.GetChallenge(ctx, c.Hash)
			if err != nil {
				return fmt.Errorf("GetChallenge: %w", err)
			}
			spent := *c
			spent.SpentBy, spent.Spent = first, epoch.Add(time.Minute)
			if err := same(got, &spent); err != nil {
				return fmt.Errorf("after it was spent: %w", err)
			}
			for _, by := range []scep.ID{first, id("too late")} {
				again, err := s.SpendChallenge(ctx, c.Hash, by, epoch.Add(2*time.Minute))
				if err != nil || again != first {
					return fmt.Errorf("SpendChallenge again: %.8s…, %v; want %.8s…", again, err, first)
				}
			}
			if got, err = s.GetChallenge(ctx, c.Hash); err != nil {
				return fmt.Errorf("GetChallenge: %w", err)
			}
			if err := same(got, &spent); err != nil {
				return fmt.Errorf("after it was asked for again: %w", err)
			}
		}
		return nil
	},
}, {
	name:     "ChallengeMemory",
	contract: "A spent challenge is remembered for ChallengeMemory at least, though it has expired and others are stored.",
	challenges: func(ctx context.Context, s scep.ChallengeStore) error {
		c := fresh("spent")
		if err := s.PutChallenge(ctx, c, epoch, 0); err != nil {
			return fmt.Errorf("PutChallenge: %w", err)
		}
		if _, err := s.SpendChallenge(ctx, c.Hash, id("record"), epoch); err != nil {
			return fmt.Errorf("SpendChallenge: %w", err)
		}
		soon := epoch.Add(scep.ChallengeMemory - time.Minute)
		next := fresh("next")
		next.Created, next.Expires = soon, soon.Add(time.Hour)
		if err := s.PutChallenge(ctx, next, soon, 0); err != nil {
			return fmt.Errorf("PutChallenge: %w", err)
		}
		by, err := s.SpendChallenge(ctx, c.Hash, id("another record"), soon)
		if err != nil || by != id("record") {
			return fmt.Errorf("SpendChallenge: %.8s…, %v; want %.8s…", by, err, id("record"))
		}
		return nil
	},
}, {
	name:     "ChallengeReopen",
	contract: "Challenges, and who has spent them, are as durable as records.",
	reopen: func(ctx context.Context, d scep.Depot, reopen func() scep.Depot) error {
		s, ok := d.(scep.ChallengeStore)
		if !ok {
			return gap(fmt.Sprintf("%T is not a scep.ChallengeStore", d))
		}
		spent, unspent := fresh("spent"), fresh("unspent")
		for _, c := range []*scep.OneTimeChallenge{spent, unspent} {
			if err := s.PutChallenge(ctx, c, epoch, 0); err != nil {
				return fmt.Errorf("PutChallenge: %w", err)
			}
		}
		if _, err := s.SpendChallenge(ctx, spent.Hash, id("record"), epoch); err != nil {
			return fmt.Errorf("SpendChallenge: %w", err)
		}
		again, ok := reopen().(scep.ChallengeStore)
		if !ok {
			return errors.New("reopened, the depot is no scep.ChallengeStore any more")
		}
		for c, want := range map[*scep.OneTimeChallenge]scep.ID{spent: id("record"), unspent: id("another record")} {
			by, err := again.SpendChallenge(ctx, c.Hash, id("another record"), epoch)
			if err != nil || by != want {
				return fmt.Errorf("SpendChallenge after reopening: %.8s…, %v; want %.8s…", by, err, want)
			}
		}
		return nil
	},
}, {
	name:     "ChallengeHostileIDs",
	contract: "A hash or a record's ID that is not Valid is an error.",
	challenges: func(ctx context.Context, s scep.ChallengeStore) error {
		c := fresh("there")
		if err := s.PutChallenge(ctx, c, epoch, 0); err != nil {
			return fmt.Errorf("PutChallenge: %w", err)
		}
		return errors.Join(
			refuses("PutChallenge", func(bad scep.ID) error {
				c := fresh("bad")
				c.Hash = bad
				return s.PutChallenge(ctx, c, epoch, 0)
			}),
			refuses("GetChallenge", func(bad scep.ID) error { _, err := s.GetChallenge(ctx, bad); return err }),
			refuses("SpendChallenge", func(bad scep.ID) error { _, err := s.SpendChallenge(ctx, bad, id("record"), epoch); return err }),
			refuses("SpendChallenge by", func(bad scep.ID) error { _, err := s.SpendChallenge(ctx, c.Hash, bad, epoch); return err }))
	},
}}

// ours reports whether by is one of the first n records that ChallengeSpend names.
func ours(by scep.ID, n int) bool {
	for i := range n {
		if by == id("record %d", i) {
			return true
		}
	}
	return false
}
