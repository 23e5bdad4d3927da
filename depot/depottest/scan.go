package depottest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// A scanner is a depot that can be scanned.
type scanner interface {
	scep.Depot
	scep.Scanner
}

// So many records are more than a depot passes at a time, or two times, as far as the suite can know.
const (
	twoPages   = 600
	threePages = 1200
)

var scanClauses = []clause{{
	name:     "ScanAll",
	contract: "Scan passes all records, each once and whole, some at a time.",
	scan: func(ctx context.Context, d scanner) error {
		if err := scan(ctx, d, nil, func([]*scep.Record) error { return errors.New("there are no records, and yield was called") }); err != nil {
			return fmt.Errorf("an empty depot: %w", err)
		}
		want, err := fillScan(ctx, d, twoPages)
		if err != nil {
			return err
		}
		for i := range 2 {
			rec := new(scep.Record)
			if err := fill(rec, i+1); err != nil {
				return err
			}
			rec.Version = 0
			if err := createAll(ctx, d, rec); err != nil {
				return err
			}
			want[rec.ID] = rec
		}
		bare := &scep.Record{ID: id("bare"), Transaction: id("transaction")}
		if err := createAll(ctx, d, bare); err != nil {
			return err
		}
		want[bare.ID] = bare
		return scan(ctx, d, want, func(all []*scep.Record) error {
			for _, rec := range all {
				if err := same(rec, want[rec.ID]); err != nil {
					return fmt.Errorf("record %.8s…: %w", rec.ID, err)
				}
			}
			return nil
		})
	},
}, {
	name:     "ScanChanges",
	contract: "What is there when Scan is called, and stays, comes once, as it is then or later, whatever changes meanwhile.",
	scan: func(ctx context.Context, d scanner) error {
		want, err := fillScan(ctx, d, threePages)
		if err != nil {
			return err
		}
		var ids []scep.ID
		for id := range want {
			ids = append(ids, id)
		}
		// Records grow, so that they have to move, those that have come and those that have not.
		changed := 0
		return scan(ctx, d, want, func(all []*scep.Record) error {
			for _, rec := range all {
				if then := rec.Version == 1; then != (rec.Reason == "") || then != (rec.State == scep.Signing) {
					return fmt.Errorf("record %.8s… comes as it never was: version %d, %v, %.10q", rec.ID, rec.Version, rec.State, rec.Reason)
				}
			}
			if changed++; changed > 3 {
				return nil
			}
			return errors.Join(together(8, func(worker int) error {
				for i := worker; i < len(ids); i += 8 {
					if i%5 != changed {
						continue
					}
					rec, err := d.Get(ctx, ids[i])
					if err != nil {
						return fmt.Errorf("depot.Get during depot.Scan: %w", err)
					}
					rec.State, rec.Reason = scep.Issued, strings.Repeat("changed ", 50)
					rec.Changed, rec.Created = rec.Changed.Add(time.Second), rec.Created.Add(-time.Hour)
					if err := d.Update(ctx, rec); err != nil {
						return fmt.Errorf("depot.Update during depot.Scan: %w", err)
					}
				}
				return nil
			})...)
		})
	},
}, {
	name:     "ScanLater",
	contract: "Scan passes what has been written before it is called, not what was there once.",
	scan: func(ctx context.Context, d scanner) error {
		for round := range 3 {
			rec, err := create(ctx, d, record(fmt.Sprint("later ", round)))
			if err != nil {
				return err
			}
			rec.Remark = "written"
			if err := d.Update(ctx, rec); err != nil {
				return fmt.Errorf("depot.Update: %w", err)
			}
			n := 0
			if err := scan(ctx, d, nil, func(all []*scep.Record) error {
				for _, rec := range all {
					if n++; rec.Remark != "written" {
						return fmt.Errorf("record %.8s… comes as it was before it was last changed", rec.ID)
					}
				}
				return nil
			}); err != nil {
				return err
			}
			if n != round+1 {
				return fmt.Errorf("%d records come, want %d", n, round+1)
			}
		}
		return nil
	},
}, {
	name:     "ScanEnds",
	contract: "However much is made meanwhile, Scan ends.",
	scan: func(ctx context.Context, d scanner) error {
		const most = 50
		want, err := fillScan(ctx, d, most)
		if err != nil {
			return err
		}
		made, calls := 0, 0
		return scan(ctx, d, want, func(all []*scep.Record) error {
			if calls++; calls > 2*most {
				return fmt.Errorf("there were %d records, %d were made, and Scan goes on", most, made)
			}
			for range len(all) + 1 {
				made++
				if err := createAll(ctx, d, record(fmt.Sprint("made ", made))); err != nil {
					return err
				}
			}
			return nil
		})
	},
}, {
	name:     "ScanCopies",
	contract: "Records passed to yield are copies, which it may keep.",
	scan: func(ctx context.Context, d scanner) error {
		want, err := fillScan(ctx, d, twoPages)
		if err != nil {
			return err
		}
		var kept []*scep.Record
		if err := scan(ctx, d, want, func(all []*scep.Record) error { kept = append(kept, all...); return nil }); err != nil {
			return err
		}
		for _, rec := range kept {
			if err := same(rec, want[rec.ID]); err != nil {
				return fmt.Errorf("what was kept has changed: %w", err)
			}
			clear(rec.CSR)
			rec.Serial.SetInt64(7)
		}
		return scan(ctx, d, want, func(all []*scep.Record) error {
			for _, rec := range all {
				if err := same(rec, want[rec.ID]); err != nil {
					return fmt.Errorf("the depot sees what becomes of what was kept: %w", err)
				}
			}
			return nil
		})
	},
}, {
	name:     "ScanDone",
	contract: "done is which part has been read, from 0 to 1, never less than the time before.",
	scan: func(ctx context.Context, d scanner) error {
		if _, err := fillScan(ctx, d, twoPages); err != nil {
			return err
		}
		last := 0.0
		err := d.Scan(ctx, func(all []*scep.Record, done float64) error {
			if !(last <= done && 0 < done && done <= 1) {
				return fmt.Errorf("done is %v, and was %v", done, last)
			}
			last = done
			return nil
		})
		if err != nil {
			return fmt.Errorf("depot.Scan: %w", err)
		}
		if last != 1 {
			return fmt.Errorf("done is %v at last, and nothing has been deleted", last)
		}
		return nil
	},
}, {
	name:     "ScanEnd",
	contract: "An error of yield ends the scan and is returned as it is; a context that has ended is an error.",
	scan: func(ctx context.Context, d scanner) error {
		if _, err := fillScan(ctx, d, twoPages); err != nil {
			return err
		}
		enough, n := errors.New("enough"), 0
		if err := d.Scan(ctx, func([]*scep.Record, float64) error { n++; return enough }); err != enough || n != 1 {
			return fmt.Errorf("depot.Scan returned %v after %d calls of yield, want the first's error", err, n)
		}
		ended, cancel := context.WithCancel(ctx)
		defer cancel()
		came := 0
		err := d.Scan(ended, func(all []*scep.Record, _ float64) error { came += len(all); cancel(); return nil })
		if err == nil && came < twoPages {
			return fmt.Errorf("depot.Scan passed %d records of %d when the context ended, and reports no error", came, twoPages)
		}
		if err := d.Scan(ended, func([]*scep.Record, float64) error { return nil }); err == nil {
			return errors.New("depot.Scan does as if the context had not ended before")
		}
		return nil
	},
}}

// fillScan stores so many records, in no order of their IDs, and returns them.
func fillScan(ctx context.Context, d scep.Depot, n int) (map[scep.ID]*scep.Record, error) {
	all := make([]*scep.Record, n)
	errs := together(16, func(worker int) error {
		for i := worker; i < n; i += 16 {
			all[i] = record(fmt.Sprint("scan ", i))
			if err := createAll(ctx, d, all[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	byID := make(map[scep.ID]*scep.Record)
	for _, rec := range all {
		rec.Version = 1
		byID[rec.ID] = rec
	}
	return byID, nil
}

// scan scans d, and reports which records of want do not come, and which come twice.
func scan(ctx context.Context, d scanner, want map[scep.ID]*scep.Record, yield func([]*scep.Record) error) error {
	came := make(map[scep.ID]bool)
	err := d.Scan(ctx, func(all []*scep.Record, _ float64) error {
		if len(all) == 0 || slices.Contains(all, nil) {
			return errors.New("yield is called without a record")
		}
		for _, rec := range all {
			if came[rec.ID] {
				return fmt.Errorf("record %.8s… comes twice", rec.ID)
			}
			came[rec.ID] = true
		}
		return yield(all)
	})
	if err != nil {
		return fmt.Errorf("depot.Scan: %w", err)
	}
	missed := 0
	for id := range want {
		if !came[id] {
			missed++
		}
	}
	if missed > 0 {
		return fmt.Errorf("depot.Scan: %d of %d records do not come", missed, len(want))
	}
	return nil
}
