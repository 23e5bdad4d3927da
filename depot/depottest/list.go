package depottest

import (
	"context"
	"fmt"
	"slices"

	"github.com/scepkit/scepkit/scep"
)

var listClauses = []clause{{
	name:     "ListEmpty",
	contract: "List returns none, and no error, if no record matches.",
	lister: func(ctx context.Context, l lister) error {
		for _, q := range []scep.Query{{}, {State: scep.Pending}, {After: id("x")}, {Profile: new(string)}} {
			got, err := l.List(ctx, q)
			if err != nil || len(got) != 0 {
				return fmt.Errorf("depot.List %+v of an empty depot: %d records, %v", q, len(got), err)
			}
		}
		return nil
	},
}, {
	name:     "ListPages",
	contract: "List returns the records in the order of their IDs, at most Limit of them, only those whose ID sorts after After.",
	lister: func(ctx context.Context, l lister) error {
		all, err := fifty(ctx, l)
		if err != nil {
			return err
		}
		for _, limit := range []int{1, 7, 50, 51, 0, -1} {
			var last scep.ID
			var got []*scep.Record
			for {
				page, err := l.List(ctx, scep.Query{After: last, Limit: limit})
				if err != nil {
					return fmt.Errorf("depot.List: %w", err)
				}
				if limit > 0 && len(page) > limit {
					return fmt.Errorf("a page has %d records, want at most %d", len(page), limit)
				}
				if len(page) == 0 {
					break
				}
				if got = append(got, page...); len(got) > len(all) {
					break
				}
				last = page[len(page)-1].ID
			}
			if err := equal(got, all); err != nil {
				return fmt.Errorf("pages of %d: %w", limit, err)
			}
		}
		return nil
	},
}, {
	name:     "ListDefault",
	contract: "Limit 0 or less stands for 100.",
	lister: func(ctx context.Context, l lister) error {
		var all []*scep.Record
		for i := range 103 {
			all = append(all, record(fmt.Sprint("default ", i)))
		}
		if err := createAll(ctx, l, all...); err != nil {
			return err
		}
		for _, limit := range []int{0, -1} {
			if got, err := l.List(ctx, scep.Query{Limit: limit}); err != nil || len(got) != 100 {
				return fmt.Errorf("limit %d of 103: %d records, %v", limit, len(got), err)
			}
		}
		return nil
	},
}, {
	name:     "ListState",
	contract: "With State, List returns only records in that state.",
	lister: func(ctx context.Context, l lister) error {
		all, err := fifty(ctx, l)
		if err != nil {
			return err
		}
		for _, state := range []scep.State{scep.Pending, scep.Signing, scep.Issued, scep.Denied, scep.Revoked} {
			got, err := l.List(ctx, scep.Query{State: state})
			if err != nil {
				return fmt.Errorf("depot.List %v: %w", state, err)
			}
			if err := equal(got, only(all, func(r *scep.Record) bool { return r.State == state })); err != nil {
				return fmt.Errorf("%v: %w", state, err)
			}
		}
		// A record moves from one list to the other.
		rec := only(all, func(r *scep.Record) bool { return r.State == scep.Pending })[0]
		rec.State = scep.Denied
		changed, err := l.Get(ctx, rec.ID)
		if err != nil {
			return fmt.Errorf("depot.Get: %w", err)
		}
		changed.State = scep.Denied
		if err := l.Update(ctx, changed); err != nil {
			return fmt.Errorf("depot.Update: %w", err)
		}
		for _, state := range []scep.State{scep.Pending, scep.Denied} {
			got, err := l.List(ctx, scep.Query{State: state})
			if err != nil {
				return fmt.Errorf("depot.List %v: %w", state, err)
			}
			if err := equal(got, only(all, func(r *scep.Record) bool { return r.State == state })); err != nil {
				return fmt.Errorf("%v after an update: %w", state, err)
			}
		}
		return nil
	},
}, {
	name:     "ListProfile",
	contract: "With Profile, List returns only records of that profile, the empty one too.",
	lister: func(ctx context.Context, l lister) error {
		all, err := fifty(ctx, l)
		if err != nil {
			return err
		}
		for _, profile := range []string{"", "a", "b", "c"} {
			for _, state := range []scep.State{0, scep.Pending} {
				got, err := l.List(ctx, scep.Query{Profile: &profile, State: state})
				if err != nil {
					return fmt.Errorf("depot.List: %w", err)
				}
				want := only(all, func(r *scep.Record) bool { return r.Profile == profile && (state == 0 || r.State == state) })
				if err := equal(got, want); err != nil {
					return fmt.Errorf("profile %q, state %v: %w", profile, state, err)
				}
			}
		}
		return nil
	},
}, {
	name:     "ListCopies",
	contract: "Records passed out are copies.",
	lister: func(ctx context.Context, l lister) error {
		want, err := create(ctx, l, record("copy"))
		if err != nil {
			return err
		}
		got, err := l.List(ctx, scep.Query{})
		if err != nil || len(got) != 1 {
			return fmt.Errorf("depot.List: %d records, %v", len(got), err)
		}
		got[0].CSR[0] = '!'
		got[0].Serial.SetInt64(7)
		again, err := l.List(ctx, scep.Query{})
		if err != nil || len(again) != 1 {
			return fmt.Errorf("depot.List: %d records, %v", len(again), err)
		}
		return same(again[0], want)
	},
}}

// fifty stores records of three profiles in all states and returns them as List should.
func fifty(ctx context.Context, l lister) ([]*scep.Record, error) {
	var all []*scep.Record
	for i := range 50 {
		rec := record(fmt.Sprint("list ", i))
		rec.Profile = []string{"", "a", "b"}[i%3]
		rec.State = scep.Pending + scep.State(i%5)
		all = append(all, rec)
	}
	if err := createAll(ctx, l, all...); err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b *scep.Record) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	return all, nil
}

func only(all []*scep.Record, match func(*scep.Record) bool) []*scep.Record {
	var some []*scep.Record
	for _, rec := range all {
		if match(rec) {
			some = append(some, rec)
		}
	}
	return some
}

// equal reports how two lists of records differ.
func equal(got, want []*scep.Record) error {
	if len(got) != len(want) {
		return fmt.Errorf("%d records, want %d", len(got), len(want))
	}
	for i := range want {
		if got[i].ID != want[i].ID {
			return fmt.Errorf("record %d is %.8s…, want %.8s…", i, got[i].ID, want[i].ID)
		}
		if got[i].State != want[i].State || got[i].Profile != want[i].Profile {
			return fmt.Errorf("record %d is %v of profile %q, want %v of %q", i, got[i].State, got[i].Profile, want[i].State, want[i].Profile)
		}
	}
	return nil
}
