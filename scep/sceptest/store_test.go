package sceptest_test

import (
	"context"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

var (
	_ scep.Depot          = (*sceptest.Store)(nil)
	_ scep.ChallengeStore = (*sceptest.Store)(nil)
	_ scep.Spender        = (*sceptest.Store)(nil)
)

// TestStore breaks each method, with and without what it does having happened.
func TestStore(t *testing.T) {
	t.Parallel()
	ctx, now, broken := t.Context(), time.Now(), errors.New("broken")
	there := scep.ID("00000000000000000000000000000000000000000000000000000000000000aa")
	next := scep.ID("00000000000000000000000000000000000000000000000000000000000000bb")
	challengeOf := func(hash scep.ID) *scep.OneTimeChallenge {
		return &scep.OneTimeChallenge{Hash: hash, Created: now, Expires: now.Add(time.Hour)}
	}
	recordOf := func(id scep.ID) *scep.Record {
		rec := &scep.Record{ID: id, Transaction: id}
		if id == there {
			rec.Issuer, rec.Serial = []byte{0x30, 0}, big.NewInt(1)
		}
		return rec
	}
	created := func(m *depot.Memory) bool { _, err := m.Get(ctx, next); return err == nil }
	spentBy := func(m *depot.Memory) scep.ID {
		c, err := m.GetChallenge(ctx, there)
		if err != nil {
			t.Error(err)
			return ""
		}
		return c.SpentBy
	}
	for _, tt := range []struct {
		name, op string
		of       scep.ID
		call     func(ctx context.Context, s *sceptest.Store) error
		happened func(m *depot.Memory) bool // nil if it only reads
	}{
		{"Create", "Create", next, func(ctx context.Context, s *sceptest.Store) error { return s.Create(ctx, recordOf(next)) }, created},
		{"CreateSpending", "Create", next, func(ctx context.Context, s *sceptest.Store) error {
			rec := recordOf(next)
			err := s.CreateSpending(ctx, rec, there, now)
			if (err == nil) != (rec.Version == 1) {
				t.Errorf("CreateSpending: %v, version %d", err, rec.Version)
			}
			return err
		}, func(m *depot.Memory) bool {
			if created(m) != (spentBy(m) == next) {
				t.Errorf("the record is there: %t; the challenge was spent by %.8q", created(m), spentBy(m))
			}
			return created(m)
		}},
		{"Update", "Update", there, func(ctx context.Context, s *sceptest.Store) error {
			rec := recordOf(there)
			rec.Version, rec.State = 1, scep.Issued
			return s.Update(ctx, rec)
		}, func(m *depot.Memory) bool {
			rec, err := m.Get(ctx, there)
			return err == nil && rec.State == scep.Issued
		}},
		{"Get", "Get", there, func(ctx context.Context, s *sceptest.Store) error { _, err := s.Get(ctx, there); return err }, nil},
		{"Latest", "Latest", "", func(ctx context.Context, s *sceptest.Store) error { _, err := s.Latest(ctx, there); return err }, nil},
		{"GetSerial", "GetSerial", "", func(ctx context.Context, s *sceptest.Store) error {
			_, err := s.GetSerial(ctx, []byte{0x30, 0}, big.NewInt(1))
			return err
		}, nil},
		{"PutChallenge", "PutChallenge", "", func(ctx context.Context, s *sceptest.Store) error {
			return s.PutChallenge(ctx, challengeOf(next), now, 0)
		}, func(m *depot.Memory) bool { _, err := m.GetChallenge(ctx, next); return err == nil }},
		{"GetChallenge", "GetChallenge", "", func(ctx context.Context, s *sceptest.Store) error {
			_, err := s.GetChallenge(ctx, there)
			return err
		}, nil},
		{"SpendChallenge", "SpendChallenge", next, func(ctx context.Context, s *sceptest.Store) error {
			by, err := s.SpendChallenge(ctx, there, next, now)
			if err == nil && by != next {
				t.Errorf("SpendChallenge: %.8q", by)
			}
			return err
		}, func(m *depot.Memory) bool { return spentBy(m) == next }},
	} {
		for _, apply := range []bool{false, true} {
			memory := new(depot.Memory)
			if err := errors.Join(memory.Create(ctx, recordOf(there)), memory.PutChallenge(ctx, challengeOf(there), now, 0)); err != nil {
				t.Fatal(err)
			}
			told := 0
			s := &sceptest.Store{Spender: memory, On: func(op string, rec *scep.Record) (bool, error) {
				if told++; op != tt.op || rec.ID != tt.of {
					t.Errorf("%s: told %s of %.8q", tt.name, op, rec.ID)
				}
				return apply, broken
			}}
			if err := tt.call(ctx, s); err != broken || told != 1 {
				t.Errorf("%s: %v, told %d times", tt.name, err, told)
			}
			if tt.happened != nil && tt.happened(memory) != apply {
				t.Errorf("%s: apply is %t, and it has happened: %t", tt.name, apply, !apply)
			}
			if s.On = nil; !apply {
				if err := tt.call(ctx, s); err != nil || tt.happened != nil && !tt.happened(memory) {
					t.Errorf("%s without faults: %v", tt.name, err)
				}
			}
		}
	}
}
