package depottest

import (
	"context"
	"errors"
	"fmt"

	"github.com/scepkit/scepkit/scep"
)

// A loader is a depot that can take in many records at once.
type loader interface {
	scep.Depot
	scep.Loader
}

var loadClauses = []clause{{
	name:     "LoadAll",
	contract: "Load creates all of the records as Create does, as version 1.",
	load: func(ctx context.Context, l loader) error {
		if err := l.Load(ctx, nil); err != nil {
			return fmt.Errorf("depot.Load of nothing: %w", err)
		}
		want := []*scep.Record{{ID: id("bare"), Transaction: id("transaction")}}
		for i := range 2 {
			rec := new(scep.Record)
			if err := fill(rec, i+1); err != nil {
				return err
			}
			rec.Version = 0
			want = append(want, rec)
		}
		for i := range 60 {
			rec := record(fmt.Sprint("load ", i))
			rec.Issuer = fmt.Appendf(nil, "issuer %d", i%3)
			want = append(want, rec)
		}
		passed := make([]*scep.Record, len(want))
		for i, rec := range want {
			passed[i] = rec.Clone()
		}
		if err := l.Load(ctx, passed); err != nil {
			return fmt.Errorf("depot.Load: %w", err)
		}
		for i, rec := range want {
			got, err := l.Get(ctx, rec.ID)
			if err := found("Get after Load", got, err, rec.ID); err != nil {
				return err
			}
			if passed[i].Version != 1 {
				return fmt.Errorf("rec.Version is %d", passed[i].Version)
			}
			rec.Version = 1
			if err := same(got, rec); err != nil {
				return fmt.Errorf("after Load: %w", err)
			}
			clear(passed[i].CSR)
			if got, err = l.Latest(ctx, rec.Transaction); err != nil || got == nil || got.Transaction != rec.Transaction {
				return fmt.Errorf("depot.Latest after Load: %v, %w", got, err)
			}
			if rec.Serial == nil {
				continue
			}
			got, err = l.GetSerial(ctx, rec.Issuer, rec.Serial)
			if err := found("GetSerial after Load", got, err, rec.ID); err != nil {
				return err
			}
			if err := same(got, rec); err != nil {
				return fmt.Errorf("what Load was given is not copied: %w", err)
			}
		}
		return nil
	},
}, {
	name:     "LoadNone",
	contract: "If one of the records cannot be created, or two are not apart, Load returns ErrExists and stores nothing.",
	load: func(ctx context.Context, l loader) error {
		there := record("there")
		if err := createAll(ctx, l, there); err != nil {
			return err
		}
		serial, another := record("with its serial number"), record("the last")
		serial.Serial = there.Serial
		another.Serial = record("the first").Serial
		for what, bad := range map[string]*scep.Record{
			"an ID that is there": record("there"), "a serial number that is there": serial,
			"the same ID twice": record("the first"), "the same serial number twice": another,
		} {
			recs := []*scep.Record{record("the first"), record("the second"), bad}
			if err := want("Load of "+what, l.Load(ctx, recs), scep.ErrExists); err != nil {
				return err
			}
			for _, rec := range recs {
				if rec.Version != 0 {
					return fmt.Errorf("depot.Load of %s: refused, but rec.Version became %d", what, rec.Version)
				}
				if rec.ID == there.ID {
					continue
				}
				_, err := l.Get(ctx, rec.ID)
				if err := want("Get after Load of "+what, err, scep.ErrNotFound); err != nil {
					return err
				}
			}
		}
		got, err := l.Get(ctx, there.ID)
		if err := found("Get", got, err, there.ID); err != nil {
			return err
		}
		if err := same(got, there); err != nil {
			return fmt.Errorf("what was there has changed: %w", err)
		}
		return l.Load(ctx, []*scep.Record{record("the first"), record("the second"), record("the last")}) // nothing of it is in the way
	},
}, {
	name:     "LoadTogether",
	contract: "Of concurrent Loads with a record in common one succeeds, and the others store nothing.",
	load: func(ctx context.Context, l loader) error {
		for round := range 4 {
			own := func(worker int) scep.ID { return record(fmt.Sprint("own ", round, worker)).ID }
			errs := together(8, func(worker int) error {
				return l.Load(ctx, []*scep.Record{record(fmt.Sprint("common ", round)), record(fmt.Sprint("own ", round, worker))})
			})
			winners := 0
			for worker, err := range errs {
				_, missing := l.Get(ctx, own(worker))
				if err == nil {
					if winners++; missing != nil {
						return fmt.Errorf("depot.Load returned nil, and of what it was given there is not all: %w", missing)
					}
					continue
				}
				if err := errors.Join(want("Load beside another", err, scep.ErrExists), want("Get of what was refused", missing, scep.ErrNotFound)); err != nil {
					return err
				}
			}
			if winners != 1 {
				return fmt.Errorf("%d of the Loads have succeeded", winners)
			}
		}
		return nil
	},
}, {
	name:     "LoadHostile",
	contract: "An ID that is not valid is an error of Load, and so is a context that has ended; then nothing is stored.",
	load: func(ctx context.Context, l loader) error {
		good := record("good")
		nothing := func() error {
			_, err := l.Get(ctx, good.ID)
			return want("Get after Load", err, scep.ErrNotFound)
		}
		for _, set := range []func(*scep.Record, scep.ID){
			func(rec *scep.Record, bad scep.ID) { rec.ID = bad },
			func(rec *scep.Record, bad scep.ID) { rec.Transaction = bad },
			func(rec *scep.Record, bad scep.ID) { rec.RenewedBy = []scep.ID{bad} },
		} {
			if err := refuses("Load", func(bad scep.ID) error {
				rec := record("bad")
				set(rec, bad)
				return l.Load(ctx, []*scep.Record{good.Clone(), rec})
			}); err != nil {
				return err
			}
		}
		if err := nothing(); err != nil {
			return err
		}
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if l.Load(ended, []*scep.Record{good.Clone()}) == nil {
			return errors.New("depot.Load does as if the context had not ended")
		}
		return nothing()
	},
}}
