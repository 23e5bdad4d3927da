package depottest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/scepkit/scepkit/scep"
)

var depotClauses = []clause{{
	name:     "Missing",
	contract: "Get, Latest and GetSerial return ErrNotFound if there is no such record.",
	depot: func(ctx context.Context, d scep.Depot) error {
		look := func(when string) error {
			rec := record("missing")
			_, err := d.Get(ctx, rec.ID)
			_, err2 := d.Latest(ctx, rec.Transaction)
			_, err3 := d.GetSerial(ctx, rec.Issuer, rec.Serial)
			return errors.Join(
				want("Get "+when, err, scep.ErrNotFound),
				want("Latest "+when, err2, scep.ErrNotFound),
				want("GetSerial "+when, err3, scep.ErrNotFound))
		}
		if err := look("from an empty depot"); err != nil {
			return err
		}
		if err := createAll(ctx, d, record("other")); err != nil {
			return err
		}
		return look("beside another record")
	},
}, {
	name:     "CreateOnce",
	contract: "Of concurrent Creates of one ID exactly one succeeds, the others return ErrExists and store nothing.",
	depot: func(ctx context.Context, d scep.Depot) error {
		for round := range 8 {
			name := fmt.Sprint("round ", round)
			errs := together(16, func(i int) error {
				rec := record(name)
				rec.Serial = record(fmt.Sprint(name, i)).Serial // only the ID collides
				rec.Via = fmt.Sprint(i)
				return d.Create(ctx, rec)
			})
			winner := slices.Index(errs, nil)
			if winner < 0 {
				return fmt.Errorf("nobody could create: %w", errs[0])
			}
			for i, err := range errs {
				if i == winner {
					continue
				}
				if err := want("Create beside another", err, scep.ErrExists); err != nil {
					return err
				}
			}
			rec, err := d.Get(ctx, record(name).ID)
			if err := found("Get", rec, err, record(name).ID); err != nil {
				return err
			}
			if rec.Via != fmt.Sprint(winner) {
				return fmt.Errorf("%d was told that its record is stored, but %s's is", winner, rec.Via)
			}
		}
		return nil
	},
}, {
	name:     "CreateVersion",
	contract: "Create stores a record as version 1 and sets rec.Version to 1; if it stores nothing it leaves rec.Version alone.",
	depot: func(ctx context.Context, d scep.Depot) error {
		rec := record("new")
		got, err := create(ctx, d, rec)
		if err != nil {
			return err
		}
		if rec.Version != 1 || got.Version != 1 {
			return fmt.Errorf("rec.Version is %d, and %d is stored", rec.Version, got.Version)
		}
		again := record("new")
		if err := want("Create again", d.Create(ctx, again), scep.ErrExists); err != nil {
			return err
		}
		if again.Version != 0 {
			return fmt.Errorf("refused, but rec.Version became %d", again.Version)
		}
		return nil
	},
}, {
	name:     "CreateSerial",
	contract: "If another record has the same Issuer and Serial, Create returns ErrExists and stores nothing.",
	depot: func(ctx context.Context, d scep.Depot) error {
		first, second := record("first"), record("second")
		second.Serial = first.Serial
		if err := createAll(ctx, d, first); err != nil {
			return err
		}
		if err := want("Create", d.Create(ctx, second), scep.ErrExists); err != nil {
			return err
		}
		_, err := d.Get(ctx, second.ID)
		if err := want("Get of what was refused", err, scep.ErrNotFound); err != nil {
			return err
		}
		rec, err := d.GetSerial(ctx, first.Issuer, first.Serial)
		return found("GetSerial", rec, err, first.ID)
	},
}, {
	name:     "CreateSerialOfAnotherIssuer",
	contract: "A serial number is taken for one Issuer only.",
	depot: func(ctx context.Context, d scep.Depot) error {
		first, second := record("first"), record("second")
		second.Serial, second.Issuer = first.Serial, []byte("another issuer")
		if err := createAll(ctx, d, first, second); err != nil {
			return err
		}
		for _, rec := range []*scep.Record{first, second} {
			got, err := d.GetSerial(ctx, rec.Issuer, rec.Serial)
			if err := found("GetSerial", got, err, rec.ID); err != nil {
				return err
			}
		}
		return nil
	},
}, {
	name:     "CreateNilSerial",
	contract: "A nil Serial never collides.",
	depot: func(ctx context.Context, d scep.Depot) error {
		for i := range 3 {
			for _, issuer := range [][]byte{nil, []byte("issuer")} {
				rec := record(fmt.Sprint(i, string(issuer)))
				rec.Serial, rec.Issuer = nil, issuer
				if err := createAll(ctx, d, rec); err != nil {
					return err
				}
			}
		}
		return nil
	},
}, {
	name:     "UpdateContended",
	contract: "Update replaces a record only if its version is still rec.Version: of concurrent changes none is lost.",
	depot: func(ctx context.Context, d scep.Depot) error {
		const workers, each = 8, 10
		name := id("counter")
		rec := record("counter")
		rec.ID = name
		if err := createAll(ctx, d, rec); err != nil {
			return err
		}
		errs := together(workers, func(int) error {
			for done := 0; done < each; {
				rec, err := d.Get(ctx, name)
				if err := found("Get", rec, err, name); err != nil {
					return err
				}
				rec.Generation++
				err = d.Update(ctx, rec)
				if err == nil {
					done++
				} else if !errors.Is(err, scep.ErrStale) {
					return fmt.Errorf("depot.Update: %w", err)
				}
			}
			return nil
		})
		if err := errors.Join(errs...); err != nil {
			return err
		}
		rec, err := d.Get(ctx, name)
		if err := found("Get", rec, err, name); err != nil {
			return err
		}
		if rec.Generation != workers*each {
			return fmt.Errorf("%d of %d changes are left", rec.Generation, workers*each)
		}
		return nil
	},
}, {
	name:     "UpdateStale",
	contract: "If the record has changed since it was read, Update returns ErrStale and stores nothing.",
	depot: func(ctx context.Context, d scep.Depot) error {
		old, err := create(ctx, d, record("changed"))
		if err != nil {
			return err
		}
		rec := old.Clone()
		rec.Reason = "kept"
		if err := d.Update(ctx, rec); err != nil {
			return fmt.Errorf("depot.Update: %w", err)
		}
		for _, version := range []int64{old.Version, old.Version - 1, old.Version + 100} {
			stale := old.Clone()
			stale.Version, stale.Reason = version, "lost"
			stale.Certificate, stale.Transaction = []byte("lost"), id("lost")
			if err := want(fmt.Sprint("Update of version ", version), d.Update(ctx, stale), scep.ErrStale); err != nil {
				return err
			}
			if stale.Version != version {
				return fmt.Errorf("refused, but rec.Version became %d", stale.Version)
			}
		}
		got, err := d.Get(ctx, old.ID)
		if err != nil {
			return err
		}
		if got.Reason != "kept" || len(got.Certificate) > 0 || got.Transaction != old.Transaction {
			return fmt.Errorf("refused, but stored: %q", got.Reason)
		}
		return nil
	},
}, {
	name:     "UpdateMissing",
	contract: "Update of a record that is not there returns ErrNotFound and stores nothing.",
	depot: func(ctx context.Context, d scep.Depot) error {
		for _, version := range []int64{0, 1} {
			rec := record("missing")
			rec.Version = version
			if err := want("Update", d.Update(ctx, rec), scep.ErrNotFound); err != nil {
				return err
			}
			_, err := d.Get(ctx, rec.ID)
			if err := want("Get", err, scep.ErrNotFound); err != nil {
				return err
			}
		}
		return nil
	},
}, {
	name:     "UpdateSerial",
	contract: "Update returns ErrExists and stores nothing if another record has the same Issuer and Serial.",
	depot: func(ctx context.Context, d scep.Depot) error {
		first, err := create(ctx, d, record("first"))
		if err != nil {
			return err
		}
		pending := record("second")
		pending.Serial = nil
		second, err := create(ctx, d, pending)
		if err != nil {
			return err
		}
		second.Serial, second.Reason = first.Serial, "lost"
		if err := want("Update", d.Update(ctx, second), scep.ErrExists); err != nil {
			return err
		}
		got, err := d.Get(ctx, second.ID)
		if err := found("Get", got, err, second.ID); err != nil {
			return err
		}
		if got.Serial != nil || got.Reason != "" {
			return errors.New("refused, but stored")
		}
		got.Serial = record("second").Serial
		if err := d.Update(ctx, got); err != nil {
			return fmt.Errorf("depot.Update to a serial number that is free: %w", err)
		}
		rec, err := d.GetSerial(ctx, got.Issuer, got.Serial)
		return found("GetSerial", rec, err, got.ID)
	},
}, {
	name:     "UpdateVersion",
	contract: "Update adds one to the version, there and in rec.",
	depot: func(ctx context.Context, d scep.Depot) error {
		rec, err := create(ctx, d, record("changed"))
		if err != nil {
			return err
		}
		for range 3 {
			before := rec.Version
			if err := d.Update(ctx, rec); err != nil {
				return fmt.Errorf("depot.Update: %w", err)
			}
			got, err := d.Get(ctx, rec.ID)
			if err := found("Get", got, err, rec.ID); err != nil {
				return err
			}
			if rec.Version != before+1 || got.Version != before+1 {
				return fmt.Errorf("version was %d; now rec.Version is %d, and %d is stored", before, rec.Version, got.Version)
			}
		}
		return nil
	},
}, {
	name:     "LatestNewest",
	contract: "Latest returns the record of a transaction that was created last, by Created.",
	depot: func(ctx context.Context, d scep.Depot) error {
		transaction := id("transaction")
		var newest scep.ID
		for i, age := range []time.Duration{3, 1, 0, 2, 5} { // in no order
			rec := record(fmt.Sprint(i))
			rec.Transaction = transaction
			rec.Created = epoch.Add(-age * time.Microsecond)
			if age == 0 {
				newest = rec.ID
			}
			if err := createAll(ctx, d, rec, record(fmt.Sprint("of another transaction ", i))); err != nil {
				return err
			}
		}
		rec, err := d.Latest(ctx, transaction)
		if err := found("Latest", rec, err, newest); err != nil {
			return err
		}
		rec.State = scep.Issued
		if err := d.Update(ctx, rec); err != nil {
			return fmt.Errorf("depot.Update: %w", err)
		}
		rec, err = d.Latest(ctx, transaction)
		return found("Latest after Update", rec, err, newest)
	},
}, {
	name:     "LatestTie",
	contract: "Of records with equal Created, Latest returns the one stored last.",
	depot: func(ctx context.Context, d scep.Depot) error {
		transaction := id("transaction")
		for i := range 6 { // so that neither order of IDs looks right by chance
			rec := record(fmt.Sprint(i))
			rec.Transaction = transaction
			if err := createAll(ctx, d, rec); err != nil {
				return err
			}
			got, err := d.Latest(ctx, transaction)
			if err := found("Latest", got, err, rec.ID); err != nil {
				return err
			}
		}
		return nil
	},
}, {
	name:     "HostileIDs",
	contract: "An ID that is not valid is an error: a depot does not sanitise it, and does not look for it.",
	depot: func(ctx context.Context, d scep.Depot) error {
		version := func(set func(*scep.Record, scep.ID), f func(context.Context, *scep.Record) error) func(scep.ID) error {
			return func(bad scep.ID) error {
				rec := record("good")
				set(rec, bad)
				return f(ctx, rec)
			}
		}
		ofID := func(rec *scep.Record, bad scep.ID) { rec.ID = bad }
		ofTransaction := func(rec *scep.Record, bad scep.ID) { rec.Transaction = bad }
		return errors.Join(
			refuses("Create", version(ofID, d.Create)),
			refuses("Create, as transaction,", version(ofTransaction, d.Create)),
			refuses("Update", version(ofID, d.Update)),
			refuses("Update, as transaction,", version(ofTransaction, d.Update)),
			refuses("Get", func(bad scep.ID) error { _, err := d.Get(ctx, bad); return err }),
			refuses("Latest", func(bad scep.ID) error { _, err := d.Latest(ctx, bad); return err }),
		)
	},
}}
