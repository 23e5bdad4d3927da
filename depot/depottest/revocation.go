package depottest

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/scepkit/scepkit/scep"
)

var revocationClauses = []clause{{
	name:     "Revocations",
	contract: "Revocations lists what is Revoked, with a serial number and this issuer, once: serial number, time and reason.",
	revoked: func(ctx context.Context, d revoker) error {
		if got, err := revocations(ctx, d, scep.RevocationQuery{Issuer: []byte("issuer")}); err != nil || len(got) != 0 {
			return fmt.Errorf("depot.Revocations of an empty depot: %d, %v", len(got), err)
		}
		var want []scep.Revocation
		for i := range 50 {
			rec := record(fmt.Sprint("revocation ", i))
			rec.State = scep.Pending + scep.State(i%5)
			if rec.State == scep.Revoked {
				rec.Revoked = epoch.Add(-time.Duration(i) * time.Microsecond)
				rec.RevocationReason = []int{0, 1, 6, 9, 10}[i/5%5]
			}
			switch i % 25 {
			case 4:
				rec.Issuer = []byte("Issuer")
			case 9:
				rec.Serial = nil
			}
			if i == 14 {
				rec.Serial = new(big.Int).Lsh(big.NewInt(0xff), 152) // the top bit is set
			}
			if rec.State == scep.Revoked && string(rec.Issuer) == "issuer" && rec.Serial != nil {
				want = append(want, scep.Revocation{Serial: rec.Serial, Revoked: rec.Revoked, Reason: scep.RevocationReason(rec.RevocationReason)})
			}
			if err := createAll(ctx, d, rec); err != nil {
				return err
			}
		}
		if err := sameRevocations(ctx, d, scep.RevocationQuery{Issuer: []byte("issuer")}, want); err != nil {
			return err
		}
		// A certificate comes and goes.
		rec, err := create(ctx, d, record("comes"))
		if err != nil {
			return err
		}
		rec.State, rec.Revoked, rec.RevocationReason, rec.Certificate = scep.Revoked, epoch, 6, []byte("certificate")
		if err := d.Update(ctx, rec); err != nil {
			return fmt.Errorf("depot.Update: %w", err)
		}
		more := append(slices.Clone(want), scep.Revocation{Serial: rec.Serial, Revoked: epoch, Reason: 6})
		if err := sameRevocations(ctx, d, scep.RevocationQuery{Issuer: []byte("issuer")}, more); err != nil {
			return fmt.Errorf("after a revocation: %w", err)
		}
		rec.State, rec.Revoked, rec.RevocationReason, rec.Unrevoked = scep.Issued, time.Time{}, 0, epoch
		if err := d.Update(ctx, rec); err != nil {
			return fmt.Errorf("depot.Update: %w", err)
		}
		if err := sameRevocations(ctx, d, scep.RevocationQuery{Issuer: []byte("issuer")}, want); err != nil {
			return fmt.Errorf("after it was taken back: %w", err)
		}
		return nil
	},
}, {
	name:     "RevocationsNotAfter",
	contract: "With NotAfter, Revocations leaves out certificates that ended before it.",
	revoked: func(ctx context.Context, d revoker) error {
		var want []scep.Revocation
		for i := range 5 {
			rec := record(fmt.Sprint("ends ", i))
			rec.State, rec.Revoked, rec.NotAfter = scep.Revoked, epoch, epoch.Add(time.Duration(i-2)*time.Microsecond)
			if err := createAll(ctx, d, rec); err != nil {
				return err
			}
			if i >= 2 {
				want = append(want, scep.Revocation{Serial: rec.Serial, Revoked: epoch})
			}
		}
		return sameRevocations(ctx, d, scep.RevocationQuery{Issuer: []byte("issuer"), NotAfter: epoch}, want)
	},
}, {
	name:     "RevocationsSince",
	contract: "With Since, Revocations lists what is Revoked and was changed then or later, and what is Issued again and was unrevoked then or later.",
	revoked: func(ctx context.Context, d revoker) error {
		var want []scep.Revocation
		for i := range 5 {
			at := epoch.Add(time.Duration(i-2) * time.Microsecond)
			revoked, back, never := record(fmt.Sprint("revoked ", i)), record(fmt.Sprint("back ", i)), record(fmt.Sprint("never ", i))
			revoked.State, revoked.Revoked, revoked.Changed, revoked.RevocationReason = scep.Revoked, epoch.AddDate(0, 0, -1), at, 1
			back.State, back.Unrevoked, back.Changed = scep.Issued, at, epoch.AddDate(0, 0, 1)
			never.State = scep.Issued
			if err := createAll(ctx, d, revoked, back, never); err != nil {
				return err
			}
			if i >= 2 {
				want = append(want, scep.Revocation{Serial: revoked.Serial, Revoked: revoked.Revoked, Reason: 1},
					scep.Revocation{Serial: back.Serial, Unrevoked: at})
			}
		}
		return sameRevocations(ctx, d, scep.RevocationQuery{Issuer: []byte("issuer"), Since: epoch}, want)
	},
}, {
	name:     "RevocationsOrder",
	contract: "The order of Revocations is the same while nothing changes.",
	revoked: func(ctx context.Context, d revoker) error {
		if err := manyRevoked(ctx, d); err != nil {
			return err
		}
		first, err := revocations(ctx, d, scep.RevocationQuery{Issuer: []byte("issuer")})
		if err != nil {
			return err
		}
		for range 3 {
			again, err := revocations(ctx, d, scep.RevocationQuery{Issuer: []byte("issuer")})
			if err != nil {
				return err
			}
			if !slices.EqualFunc(first, again, func(a, b scep.Revocation) bool { return a.Serial.Cmp(b.Serial) == 0 }) {
				return errors.New("depot.Revocations came in another order")
			}
		}
		return nil
	},
}, {
	name:     "RevocationsEnd",
	contract: "An error of yield ends the listing and is returned as it is; yield may call the depot; a context that has ended is an error.",
	revoked: func(ctx context.Context, d revoker) error {
		if err := manyRevoked(ctx, d); err != nil {
			return err
		}
		enough, n := errors.New("enough"), 0
		err := d.Revocations(ctx, scep.RevocationQuery{Issuer: []byte("issuer")}, func(r scep.Revocation) error {
			n++
			rec, err := d.GetSerial(ctx, []byte("issuer"), r.Serial)
			if err != nil {
				return fmt.Errorf("depot.GetSerial during depot.Revocations: %w", err)
			}
			rec.Remark = "seen"
			if err := d.Update(ctx, rec); err != nil {
				return fmt.Errorf("depot.Update during depot.Revocations: %w", err)
			}
			if n == 3 {
				return enough
			}
			return nil
		})
		if err != enough || n != 3 {
			return fmt.Errorf("depot.Revocations returned %v after %d calls of yield, want the third's error", err, n)
		}
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := revocations(ended, d, scep.RevocationQuery{Issuer: []byte("issuer")}); err == nil {
			return errors.New("depot.Revocations does as if the context had not ended")
		}
		return nil
	},
}}

// manyRevoked stores records that are revoked, in no order of their serial numbers.
func manyRevoked(ctx context.Context, d scep.Depot) error {
	for i := range 20 {
		rec := record(fmt.Sprint("order ", i))
		rec.State, rec.Revoked = scep.Revoked, epoch
		if err := createAll(ctx, d, rec); err != nil {
			return err
		}
	}
	return nil
}

func revocations(ctx context.Context, d scep.RevocationLister, q scep.RevocationQuery) (all []scep.Revocation, err error) {
	err = d.Revocations(ctx, q, func(r scep.Revocation) error {
		all = append(all, r)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("depot.Revocations: %w", err)
	}
	return all, nil
}

// sameRevocations reports how what d lists differs from want, in whatever order.
func sameRevocations(ctx context.Context, d scep.RevocationLister, q scep.RevocationQuery, want []scep.Revocation) error {
	got, err := revocations(ctx, d, q)
	if err != nil {
		return err
	}
	if len(got) != len(want) {
		return fmt.Errorf("depot.Revocations lists %d, want %d", len(got), len(want))
	}
	for _, w := range want {
		i := slices.IndexFunc(got, func(g scep.Revocation) bool { return g.Serial != nil && g.Serial.Cmp(w.Serial) == 0 })
		if i < 0 {
			return fmt.Errorf("depot.Revocations does not list %x", w.Serial)
		}
		if err := same(&got[i], &w); err != nil {
			return fmt.Errorf("depot.Revocations, %x: %w", w.Serial, err)
		}
	}
	return nil
}
