package depottest

import (
	"context"
	"slices"
	"time"

	"github.com/scepkit/scepkit/scep"
)

func (b *broken) Prune(ctx context.Context, q scep.PruneQuery) (int, error) {
	if b.prune != nil {
		return b.prune(b, ctx, q)
	}
	return b.Memory.Prune(ctx, q)
}

// alone prunes record by record, so that none is kept for another's sake if blind says so.
func (b *broken) alone(ctx context.Context, q scep.PruneQuery, blind func(*scep.Record)) (int, error) {
	all, err := b.Memory.List(ctx, scep.Query{Limit: 5000})
	if err != nil {
		return 0, err
	}
	changed := map[scep.ID]*scep.Record{}
	for _, rec := range all {
		was := rec.Clone()
		blind(rec)
		if rec.Generation != was.Generation || rec.Renews != was.Renews {
			if err := b.Memory.Update(ctx, rec); err != nil {
				return 0, err
			}
			changed[rec.ID] = was
		}
	}
	n, err := b.Memory.Prune(ctx, q)
	for id, was := range changed {
		if rec, err := b.Memory.Get(ctx, id); err == nil {
			was.Version = rec.Version
			if err := b.Memory.Update(ctx, was); err != nil {
				return n, err
			}
		}
	}
	return n, err
}

var pruneFaults = []fault{
	{"prunes at the time itself", broken{prune: func(b *broken, ctx context.Context, q scep.PruneQuery) (int, error) {
		for _, t := range []*time.Time{&q.Expired, &q.Denied, &q.Abandoned} {
			if !t.IsZero() {
				*t = t.Add(time.Microsecond)
			}
		}
		return b.Memory.Prune(ctx, q)
	}}, "PruneSelects", "PruneRenewed"},
	{"prunes the young", broken{prune: func(b *broken, ctx context.Context, q scep.PruneQuery) (int, error) {
		if !q.Expired.IsZero() && !q.DryRun {
			q.Expired = q.Expired.AddDate(5, 0, 0)
		}
		return b.Memory.Prune(ctx, q)
	}}, "PruneTogether PruneSelects", "PruneForgets PruneGeneration PruneRenewing PruneRenewed"},
	{"prunes dry records too", broken{prune: func(b *broken, ctx context.Context, q scep.PruneQuery) (int, error) {
		q.DryRun = false
		return b.Memory.Prune(ctx, q)
	}}, "PruneDryRun", ""},
	{"prunes all at once", broken{prune: func(b *broken, ctx context.Context, q scep.PruneQuery) (int, error) {
		q.Limit = 10000
		return b.Memory.Prune(ctx, q)
	}}, "PruneLimit PruneDryRun", ""},
	{"prunes ended contexts", broken{prune: func(b *broken, ctx context.Context, q scep.PruneQuery) (int, error) {
		return b.Memory.Prune(context.WithoutCancel(ctx), q)
	}}, "PruneCancelled", ""},
	{"prunes, and remembers", broken{get: func(b *broken, ctx context.Context, id scep.ID) (*scep.Record, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		rec, err := b.Memory.Get(ctx, id)
		if err == nil && rec.NotAfter.Before(epoch) && rec.State == scep.Issued && len(rec.Certificate) > 0 {
			if b.kept == nil {
				b.kept = map[scep.ID]*scep.Record{}
			}
			b.kept[id] = rec
		} else if err != nil && b.kept[id] != nil {
			return b.kept[id].Clone(), nil
		}
		return rec, err
	}, prune: func(b *broken, ctx context.Context, q scep.PruneQuery) (int, error) {
		all, err := b.Memory.List(ctx, scep.Query{Limit: 5000})
		for _, rec := range all {
			b.Get(ctx, rec.ID)
		}
		if err != nil {
			return 0, err
		}
		return b.Memory.Prune(ctx, q)
	}}, "PruneForgets", "PruneSelects PruneLimit PruneGeneration PruneRenewing PruneRenewed PruneTogether"},
	{"prunes in no order", broken{prune: func(b *broken, ctx context.Context, q scep.PruneQuery) (int, error) {
		if q.Limit != 3 {
			return b.Memory.Prune(ctx, q)
		}
		all, err := b.Memory.List(ctx, scep.Query{})
		if err != nil || len(all) == 0 {
			return 0, err
		}
		slices.SortFunc(all, func(a, b *scep.Record) int { return b.NotAfter.Compare(a.NotAfter) })
		n := min(3, len(all))
		for _, rec := range all[n:] {
			defer func() {
				rec.Version = 0
				b.Memory.Create(ctx, rec)
			}()
		}
		q.Limit = 100
		_, err = b.Memory.Prune(ctx, q)
		return n, err
	}}, "PruneLimit", ""},
	{"prunes whatever the generation", broken{prune: func(b *broken, ctx context.Context, q scep.PruneQuery) (int, error) {
		return b.alone(ctx, q, func(rec *scep.Record) { rec.Generation = 0 })
	}}, "PruneGeneration", "PruneTogether"},
	{"prunes what is being renewed", broken{prune: func(b *broken, ctx context.Context, q scep.PruneQuery) (int, error) {
		return b.alone(ctx, q, func(rec *scep.Record) {
			if rec.State < scep.Issued || rec.Unconfirmed {
				rec.Renews = ""
			}
		})
	}}, "PruneRenewing", "PruneTogether"},
	{"prunes what frees a renewal", broken{prune: func(b *broken, ctx context.Context, q scep.PruneQuery) (int, error) {
		return b.alone(ctx, q, func(rec *scep.Record) {
			if rec.State >= scep.Issued && !rec.Unconfirmed {
				rec.Renews = ""
			}
		})
	}}, "PruneRenewed", "PruneTogether"},
}
