package depottest

import (
	"context"
	"errors"
	"time"

	"github.com/scepkit/scepkit/scep"
)

func (b *broken) PutChallenge(ctx context.Context, c *scep.OneTimeChallenge, now time.Time, limit int) error {
	if b.put != nil {
		return b.put(b, ctx, c, now, limit)
	}
	return b.Memory.PutChallenge(ctx, c, now, limit)
}

func (b *broken) GetChallenge(ctx context.Context, hash scep.ID) (*scep.OneTimeChallenge, error) {
	if b.find != nil {
		return b.find(b, ctx, hash)
	}
	return b.Memory.GetChallenge(ctx, hash)
}

func (b *broken) SpendChallenge(ctx context.Context, hash, by scep.ID, now time.Time) (scep.ID, error) {
	if b.spend != nil {
		return b.spend(b, ctx, hash, by, now)
	}
	return b.Memory.SpendChallenge(ctx, hash, by, now)
}

func (b *broken) CreateSpending(ctx context.Context, rec *scep.Record, challenge scep.ID, now time.Time) error {
	if b.both != nil {
		return b.both(b, ctx, rec, challenge, now)
	}
	return b.Memory.CreateSpending(ctx, rec, challenge, now)
}

var challengeFaults = []fault{
	{"no limit", broken{put: func(b *broken, ctx context.Context, c *scep.OneTimeChallenge, now time.Time, _ int) error {
		return b.Memory.PutChallenge(ctx, c, now, 0)
	}}, "ChallengeLimit ChallengeLimitRoom", ""},
	{"expired challenges count", broken{put: func(b *broken, ctx context.Context, c *scep.OneTimeChallenge, now time.Time, limit int) error {
		clone := *c
		clone.Expires = clone.Expires.AddDate(1, 0, 0)
		return b.Memory.PutChallenge(ctx, &clone, now, limit)
	}}, "ChallengeLimitRoom ChallengeFields ChallengeTwice ChallengeSpend", ""},
	{"puts over what is there", broken{put: func(b *broken, ctx context.Context, c *scep.OneTimeChallenge, now time.Time, limit int) error {
		if err := b.Memory.PutChallenge(ctx, c, now, limit); !errors.Is(err, scep.ErrExists) {
			return err
		}
		return nil
	}}, "ChallengeTwice", ""},
	{"anybody spends", broken{spend: func(b *broken, ctx context.Context, hash, by scep.ID, now time.Time) (scep.ID, error) {
		if _, err := b.Memory.SpendChallenge(ctx, hash, by, now); err != nil {
			return "", err
		}
		return by, nil
	}}, "ChallengeSpend ChallengeMemory ChallengeReopen", "CreateSpendingForGood CreateSpendingTogether"},
	{"a missing challenge is spent", broken{spend: func(b *broken, ctx context.Context, hash, by scep.ID, now time.Time) (scep.ID, error) {
		got, err := b.Memory.SpendChallenge(ctx, hash, by, now)
		if errors.Is(err, scep.ErrNotFound) {
			return by, nil
		}
		return got, err
	}}, "ChallengeMissing", ""},
	{"takes any hash", broken{find: func(b *broken, ctx context.Context, hash scep.ID) (*scep.OneTimeChallenge, error) {
		if !hash.Valid() {
			return nil, scep.ErrNotFound
		}
		return b.Memory.GetChallenge(ctx, hash)
	}}, "ChallengeHostileIDs", ""},
}

var spendingFaults = []fault{
	{"creates and does not spend", broken{both: func(b *broken, ctx context.Context, rec *scep.Record, challenge scep.ID, now time.Time) error {
		c, err := b.Memory.GetChallenge(ctx, challenge)
		if err == nil && c.SpentBy == "" && rec.Via != "" { // as only that clause has
			return b.Memory.Create(ctx, rec)
		}
		return b.Memory.CreateSpending(ctx, rec, challenge, now)
	}}, "CreateSpending", ""},
	{"creates though another has spent", broken{both: func(b *broken, ctx context.Context, rec *scep.Record, challenge scep.ID, now time.Time) error {
		err := b.Memory.CreateSpending(ctx, rec, challenge, now)
		if errors.Is(err, scep.ErrSpent) {
			if _, err := b.Memory.GetSerial(ctx, rec.Issuer, rec.Serial); err == nil {
				return scep.ErrSpent
			}
			if err := b.Memory.Create(ctx, rec.Clone()); err != nil {
				return err
			}
		}
		return err
	}}, "CreateSpendingSpent CreateSpendingTogether", ""},
	{"creates without a challenge", broken{both: func(b *broken, ctx context.Context, rec *scep.Record, challenge scep.ID, now time.Time) error {
		err := b.Memory.CreateSpending(ctx, rec, challenge, now)
		if errors.Is(err, scep.ErrNotFound) {
			if _, err := b.Memory.GetSerial(ctx, rec.Issuer, rec.Serial); err != nil {
				b.Memory.Create(ctx, rec)
			}
		}
		return err
	}}, "CreateSpendingMissing", ""},
	{"spends first", broken{both: func(b *broken, ctx context.Context, rec *scep.Record, challenge scep.ID, now time.Time) error {
		c, err := b.Memory.GetChallenge(ctx, challenge)
		if err == nil && c.SpentBy == "" && ctx.Err() == nil {
			if _, err := b.Memory.SpendChallenge(ctx, challenge, rec.ID, now); err != nil {
				return err
			}
		}
		return b.Memory.CreateSpending(ctx, rec, challenge, now)
	}}, "CreateSpendingExists", ""},
	{"looks at the challenge first", broken{both: func(b *broken, ctx context.Context, rec *scep.Record, challenge scep.ID, now time.Time) error {
		if _, err := b.Memory.GetChallenge(ctx, challenge); err != nil {
			return err
		}
		return b.Memory.CreateSpending(ctx, rec, challenge, now)
	}}, "CreateSpendingFirstError", ""},
	{"looks at the serial number first", broken{both: func(b *broken, ctx context.Context, rec *scep.Record, challenge scep.ID, now time.Time) error {
		if _, err := b.Memory.GetSerial(ctx, rec.Issuer, rec.Serial); err == nil {
			return scep.ErrExists
		}
		return b.Memory.CreateSpending(ctx, rec, challenge, now)
	}}, "CreateSpendingFirstError", ""},
	{"refuses its own", broken{both: func(b *broken, ctx context.Context, rec *scep.Record, challenge scep.ID, now time.Time) error {
		c, err := b.Memory.GetChallenge(ctx, challenge)
		if err == nil && c.SpentBy == rec.ID {
			if _, err := b.Memory.Get(ctx, rec.ID); err != nil {
				return scep.ErrSpent
			}
		}
		return b.Memory.CreateSpending(ctx, rec, challenge, now)
	}}, "CreateSpendingOwn", ""},
	{"spent by a record, forgotten sooner", broken{
		both: func(b *broken, ctx context.Context, rec *scep.Record, challenge scep.ID, now time.Time) error {
			err := b.Memory.CreateSpending(ctx, rec, challenge, now)
			b.mu.Lock()
			defer b.mu.Unlock()
			if err == nil {
				b.kept = map[scep.ID]*scep.Record{challenge: rec.Clone()}
			}
			return err
		},
		spend: func(b *broken, ctx context.Context, hash, by scep.ID, now time.Time) (scep.ID, error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.kept[hash] != nil && now.After(epoch.AddDate(0, 0, 1)) {
				return "", scep.ErrNotFound
			}
			return b.Memory.SpendChallenge(ctx, hash, by, now)
		},
	}, "CreateSpendingForGood", ""},
	{"tells two that they were first", broken{both: func(b *broken, ctx context.Context, rec *scep.Record, challenge scep.ID, now time.Time) error {
		err := b.Memory.CreateSpending(ctx, rec, challenge, now)
		there, reading := b.Memory.Get(ctx, rec.ID)
		if errors.Is(err, scep.ErrExists) && reading == nil && there.Serial.Cmp(rec.Serial) != 0 && there.State == scep.Signing {
			c, err := b.Memory.GetChallenge(ctx, challenge)
			if err == nil && c.SpentBy == rec.ID {
				rec.Version = 1
				return nil
			}
		}
		return err
	}}, "CreateSpendingTogether", ""},
	{"spends, though the context has ended", broken{both: func(b *broken, ctx context.Context, rec *scep.Record, challenge scep.ID, now time.Time) error {
		if ctx.Err() != nil {
			b.Memory.SpendChallenge(context.WithoutCancel(ctx), challenge, id("nobody"), now)
		}
		return b.Memory.CreateSpending(ctx, rec, challenge, now)
	}}, "CreateSpendingCancelled", ""},
	{"takes any challenge for an ID", broken{both: func(b *broken, ctx context.Context, rec *scep.Record, challenge scep.ID, now time.Time) error {
		if !challenge.Valid() {
			return scep.ErrNotFound
		}
		return b.Memory.CreateSpending(ctx, rec, challenge, now)
	}}, "CreateSpendingHostileIDs", ""},
}
