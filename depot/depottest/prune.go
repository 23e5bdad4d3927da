package depottest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// A pruner is a depot that can forget records.
type pruner interface {
	scep.Depot
	scep.Pruner
}

var pruneClauses = []clause{{
	name:     "PruneSelects",
	contract: "Prune deletes what is Signing, Issued or Revoked by NotAfter, Denied and Pending by Changed, if that is before the time in the query; a zero time selects nothing.",
	prune: func(ctx context.Context, p pruner) error {
		var kept, all []*scep.Record
		q := scep.PruneQuery{Expired: epoch, Denied: epoch.Add(-time.Hour), Abandoned: epoch.Add(-2 * time.Hour)}
		for state, before := range map[scep.State]time.Time{
			scep.Pending: q.Abandoned, scep.Denied: q.Denied, scep.Signing: q.Expired, scep.Issued: q.Expired, scep.Revoked: q.Expired,
		} {
			for i, at := range []time.Time{before.AddDate(-1, 0, 0), before.Add(-time.Microsecond), before, before.Add(time.Microsecond), {}} {
				rec := record(fmt.Sprint(state, i))
				rec.State, rec.Revoked, rec.Created = state, epoch.AddDate(-2, 0, 0), epoch.AddDate(-3, 0, 0)
				if state == scep.Pending || state == scep.Denied {
					rec.Changed, rec.NotAfter = at, epoch.AddDate(-1, 0, 0)
				} else {
					rec.Changed, rec.NotAfter = epoch.AddDate(-2, 0, 0), at
				}
				all = append(all, rec)
				if i >= 2 {
					kept = append(kept, rec)
				}
			}
		}
		if err := createAll(ctx, p, all...); err != nil {
			return err
		}
		if n, err := p.Prune(ctx, scep.PruneQuery{}); n != 0 || err != nil {
			return fmt.Errorf("depot.Prune of nothing: %d, %v", n, err)
		}
		if err := left(ctx, p, all, all); err != nil {
			return err
		}
		if n, err := pruneAll(ctx, p, q); err != nil || n != 10 {
			return fmt.Errorf("depot.Prune deleted %d, %v; want 10", n, err)
		}
		return left(ctx, p, all, kept)
	},
}, {
	name:     "PruneForgets",
	contract: "What has been pruned is as if it had never been: no method finds it, and its ID and serial number are free.",
	prune: func(ctx context.Context, p pruner) error {
		old := expired("old")
		old.Certificate = []byte("certificate")
		other := expired("other")
		other.Transaction, other.Created, other.NotAfter = old.Transaction, old.Created.Add(-time.Hour), epoch.AddDate(1, 0, 0)
		if err := createAll(ctx, p, old.Clone(), other); err != nil {
			return err
		}
		if n, err := p.Prune(ctx, scep.PruneQuery{Expired: epoch}); n != 1 || err != nil {
			return fmt.Errorf("depot.Prune deleted %d, %v; want 1", n, err)
		}
		_, err := p.Get(ctx, old.ID)
		_, err2 := p.GetSerial(ctx, old.Issuer, old.Serial)
		if err := errors.Join(want("Get", err, scep.ErrNotFound), want("GetSerial", err2, scep.ErrNotFound)); err != nil {
			return err
		}
		latest, err := p.Latest(ctx, old.Transaction)
		if err := found("Latest", latest, err, other.ID); err != nil {
			return err
		}
		stale := old.Clone()
		stale.Version = 1
		if err := want("Update", p.Update(ctx, stale), scep.ErrNotFound); err != nil {
			return err
		}
		again := old.Clone()
		again.Certificate = nil
		got, err := create(ctx, p, again)
		if err != nil {
			return err
		}
		again.Version = 1
		return same(got, again)
	},
}, {
	name:     "PruneLimit",
	contract: "Prune deletes at most Limit records, 1000 for 0 or less, the oldest first, and returns how many; 0 when none are left.",
	prune: func(ctx context.Context, p pruner) error {
		var all []*scep.Record
		for i := range 7 {
			rec := expired(fmt.Sprint(i))
			rec.NotAfter = epoch.Add(-time.Duration(10-i) * time.Hour)
			all = append(all, rec)
		}
		for _, i := range []int{4, 2, 6, 1, 3, 5, 0} {
			if err := createAll(ctx, p, all[i]); err != nil {
				return err
			}
		}
		for gone := 0; ; gone += 3 {
			n, err := p.Prune(ctx, scep.PruneQuery{Expired: epoch, Limit: 3})
			if err != nil || n != max(0, min(3, 7-gone)) {
				return fmt.Errorf("depot.Prune of 3 with %d left: %d, %v", 7-gone, n, err)
			}
			if n == 0 {
				break
			}
			if err := left(ctx, p, all, all[min(7, gone+3):]); err != nil {
				return err
			}
		}
		for i := range 1003 {
			if err := createAll(ctx, p, expired(fmt.Sprint("more ", i))); err != nil {
				return err
			}
		}
		for i, want := range []int{1000, 3, 0} {
			if n, err := p.Prune(ctx, scep.PruneQuery{Expired: epoch, Limit: -i}); n != want || err != nil {
				return fmt.Errorf("depot.Prune of 1003 without a limit: call %d: %d, %v; want %d", i+1, n, err, want)
			}
		}
		return nil
	},
}, {
	name:     "PruneGeneration",
	contract: "A record is kept while a later Generation of the same transaction is not selected.",
	prune: func(ctx context.Context, p pruner) error {
		var all []*scep.Record
		for i := range 4 { // the third is not selected
			rec := expired(fmt.Sprint("generation ", i))
			rec.Transaction, rec.Generation = id("transaction"), i
			if i == 2 {
				rec.State, rec.NotAfter = scep.Revoked, epoch.AddDate(1, 0, 0)
			}
			all = append(all, rec)
		}
		denied, pending := expired("denied"), expired("pending")
		denied.State, denied.Transaction = scep.Denied, id("another")
		pending.State, pending.Transaction, pending.Generation, pending.Changed = scep.Pending, id("another"), 1, epoch.AddDate(1, 0, 0)
		all = append(all, denied, pending)
		if err := createAll(ctx, p, all...); err != nil {
			return err
		}
		q := scep.PruneQuery{Expired: epoch, Denied: epoch, Abandoned: epoch}
		if n, err := pruneAll(ctx, p, q); n != 1 || err != nil {
			return fmt.Errorf("depot.Prune deleted %d, %v; want 1: the last of four of which the third is not selected", n, err)
		}
		if err := left(ctx, p, all, append(all[:3:3], denied, pending)); err != nil {
			return err
		}
		q.Expired, q.Abandoned = epoch.AddDate(2, 0, 0), epoch.AddDate(2, 0, 0)
		if n, err := pruneAll(ctx, p, q); n != 5 || err != nil {
			return fmt.Errorf("depot.Prune deleted %d, %v; want 5: all are selected", n, err)
		}
		return nil
	},
}, {
	name:     "PruneRenewing",
	contract: "A record is kept while one that Renews it is Pending, Signing or Unconfirmed.",
	prune: func(ctx context.Context, p pruner) error {
		var all, kept, gone []*scep.Record
		for i, state := range []scep.State{scep.Pending, scep.Signing, scep.Issued, scep.Issued, scep.Denied} {
			old, next := expired(fmt.Sprint("old ", i)), record(fmt.Sprint("next ", i))
			next.State, next.Renews, next.Unconfirmed = state, old.ID, i == 3
			all, kept = append(all, old, next), append(kept, next)
			if i == 2 || i == 4 {
				gone = append(gone, old)
			} else {
				kept = append(kept, old)
			}
		}
		if err := createAll(ctx, p, all...); err != nil {
			return err
		}
		if n, err := pruneAll(ctx, p, scep.PruneQuery{Expired: epoch}); n != len(gone) || err != nil {
			return fmt.Errorf("depot.Prune deleted %d, %v; want %d: those whose renewal has ended", n, err, len(gone))
		}
		if err := left(ctx, p, all, kept); err != nil {
			return err
		}
		for _, rec := range all { // now they end
			if rec.State != scep.Pending && rec.State != scep.Signing && !rec.Unconfirmed {
				continue
			}
			rec.State, rec.Unconfirmed, rec.Certificate = scep.Issued, false, []byte("certificate")
			if err := p.Update(ctx, rec); err != nil {
				return fmt.Errorf("depot.Update: %w", err)
			}
		}
		if n, err := pruneAll(ctx, p, scep.PruneQuery{Expired: epoch}); n != 3 || err != nil {
			return fmt.Errorf("depot.Prune deleted %d, %v; want 3: the renewals have ended", n, err)
		}
		return nil
	},
}, {
	name:     "PruneRenewed",
	contract: "A record that is Issued or Revoked is kept while the record that it Renews is not before Expired.",
	prune: func(ctx context.Context, p pruner) error {
		var all, kept []*scep.Record
		for i, ends := range []time.Time{epoch.AddDate(1, 0, 0), epoch, {}, epoch.Add(-time.Microsecond)} {
			old := expired(fmt.Sprint("old ", i))
			old.NotAfter = ends
			issued, revoked, signing := expired(fmt.Sprint("issued ", i)), expired(fmt.Sprint("revoked ", i)), expired(fmt.Sprint("signing ", i))
			issued.Renews, revoked.Renews, signing.Renews = old.ID, old.ID, old.ID
			revoked.State, signing.State = scep.Revoked, scep.Signing
			all = append(all, old, issued, revoked, signing)
			if i < 3 {
				kept = append(kept, old, issued, revoked)
			}
		}
		if err := createAll(ctx, p, all...); err != nil {
			return err
		}
		if _, err := pruneAll(ctx, p, scep.PruneQuery{Expired: epoch}); err != nil {
			return err
		}
		return left(ctx, p, all, kept)
	},
}, {
	name:     "PruneDryRun",
	contract: "With DryRun, Prune deletes nothing and returns how many records there are, up to Limit.",
	prune: func(ctx context.Context, p pruner) error {
		all := []*scep.Record{expired("a"), expired("b"), expired("c"), record("d")}
		if err := createAll(ctx, p, all...); err != nil {
			return err
		}
		for limit, want := range map[int]int{0: 3, 2: 2, 100: 3} {
			if n, err := p.Prune(ctx, scep.PruneQuery{Expired: epoch, Limit: limit, DryRun: true}); n != want || err != nil {
				return fmt.Errorf("depot.Prune, dry, of at most %d: %d, %v; want %d", limit, n, err, want)
			}
		}
		return left(ctx, p, all, all)
	},
}, {
	name:     "PruneTogether",
	contract: "While records are pruned others can be written, and no other record is lost.",
	prune: func(ctx context.Context, p pruner) error {
		var old, fresh []*scep.Record
		for i := range 200 {
			old, fresh = append(old, expired(fmt.Sprint("old ", i))), append(fresh, record(fmt.Sprint("fresh ", i)))
		}
		if err := createAll(ctx, p, old...); err != nil {
			return err
		}
		var saved *scep.Record // one that is made good in the meantime, or is gone before that
		errs := together(22, func(i int) error {
			switch {
			case i < 20:
				for _, rec := range fresh[10*i : 10*i+10] {
					if err := createAll(ctx, p, rec); err != nil {
						return err
					}
				}
				return nil
			case i == 20:
				_, err := pruneAll(ctx, p, scep.PruneQuery{Expired: epoch, Limit: 7})
				return err
			}
			rec := old[199]
			rec.NotAfter = epoch.AddDate(1, 0, 0)
			err := p.Update(ctx, rec)
			if err == nil {
				saved = rec
			} else if errors.Is(err, scep.ErrNotFound) {
				err = nil
			}
			return err
		})
		if err := errors.Join(errs...); err != nil {
			return err
		}
		if _, err := pruneAll(ctx, p, scep.PruneQuery{Expired: epoch}); err != nil {
			return err
		}
		kept := fresh
		if saved != nil {
			kept = append(kept, saved)
		}
		return left(ctx, p, append(old, fresh...), kept)
	},
}, {
	name:     "PruneCancelled",
	contract: "A context that has ended is an error, and nothing is deleted.",
	prune: func(ctx context.Context, p pruner) error {
		all := []*scep.Record{expired("a")}
		if err := createAll(ctx, p, all...); err != nil {
			return err
		}
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := p.Prune(ended, scep.PruneQuery{Expired: epoch}); err == nil {
			return errors.New("depot.Prune does as if the context had not ended")
		}
		return left(ctx, p, all, all)
	},
}}

// expired returns a record of a certificate that ended two days before epoch.
func expired(name string) *scep.Record {
	rec := record(name)
	rec.State, rec.Certificate = scep.Issued, []byte("certificate of "+name)
	rec.NotAfter, rec.Changed, rec.Created = epoch.AddDate(0, 0, -2), epoch.AddDate(0, 0, -3), epoch.AddDate(0, 0, -3)
	return rec
}

// pruneAll prunes until there are none left.
func pruneAll(ctx context.Context, p scep.Pruner, q scep.PruneQuery) (total int, err error) {
	for {
		n, err := p.Prune(ctx, q)
		if err != nil {
			return total, fmt.Errorf("depot.Prune: %w", err)
		}
		if n == 0 {
			return total, nil
		}
		if total += n; total > 100000 {
			return total, errors.New("depot.Prune never returns 0")
		}
	}
}

// left reports that of all records others than kept are in the depot.
func left(ctx context.Context, d scep.Depot, all, kept []*scep.Record) error {
	want := map[scep.ID]bool{}
	for _, rec := range kept {
		want[rec.ID] = true
	}
	for _, rec := range all {
		_, err := d.Get(ctx, rec.ID)
		what := fmt.Sprintf("%s, %v, generation %d, not after %v, changed %v", rec.TransactionID, rec.State, rec.Generation, rec.NotAfter, rec.Changed)
		switch {
		case err == nil && !want[rec.ID]:
			return fmt.Errorf("is left, and should not be: %s", what)
		case errors.Is(err, scep.ErrNotFound) && want[rec.ID]:
			return fmt.Errorf("is gone, and should not be: %s", what)
		case err != nil && !errors.Is(err, scep.ErrNotFound):
			return fmt.Errorf("depot.Get: %w", err)
		}
	}
	return nil
}
