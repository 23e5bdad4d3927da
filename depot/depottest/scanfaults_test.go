package depottest

import (
	"cmp"
	"context"
	"slices"

	"github.com/scepkit/scepkit/scep"
)

func (b *broken) Scan(ctx context.Context, yield func([]*scep.Record, float64) error) error {
	if b.scan != nil {
		return b.scan(b, ctx, yield)
	}
	return b.Memory.Scan(ctx, yield)
}

// scanBy scans a hundred records at a time in an order that they may change.
func (b *broken) scanBy(ctx context.Context, order func(a, b *scep.Record) int, yield func([]*scep.Record, float64) error) error {
	n := 0
	for last := (*scep.Record)(nil); ; {
		all, err := b.Memory.List(ctx, scep.Query{Limit: 5000})
		if err != nil {
			return err
		}
		slices.SortFunc(all, order)
		left := slices.IndexFunc(all, func(rec *scep.Record) bool { return last == nil || order(rec, last) > 0 })
		if left < 0 {
			return nil
		}
		page := all[left:min(left+100, len(all))]
		last = page[len(page)-1].Clone()
		n = max(n, left+len(page))
		if err := yield(page, float64(n)/float64(len(all))); err != nil {
			return err
		}
	}
}

var scanFaults = []fault{
	{"scans without certificates", broken{scan: func(b *broken, ctx context.Context, yield func([]*scep.Record, float64) error) error {
		return b.Memory.Scan(ctx, func(all []*scep.Record, done float64) error {
			for _, rec := range all {
				rec.Certificate = nil
			}
			return yield(all, done)
		})
	}}, "ScanAll", ""},
	{"scans nothing in one more page", broken{scan: func(b *broken, ctx context.Context, yield func([]*scep.Record, float64) error) error {
		if err := b.Memory.Scan(ctx, yield); err != nil {
			return err
		}
		return yield(nil, 1)
	}}, "ScanAll", "ScanChanges ScanLater ScanEnds ScanCopies"},
	{"scans full pages only", broken{scan: func(b *broken, ctx context.Context, yield func([]*scep.Record, float64) error) error {
		return b.Memory.Scan(ctx, func(all []*scep.Record, done float64) error {
			if len(all) < 256 {
				return nil
			}
			return yield(all, done)
		})
	}}, "ScanAll ScanChanges ScanLater ScanEnds ScanCopies ScanDone", ""},
	{"misses what moves back", broken{scan: func(b *broken, ctx context.Context, yield func([]*scep.Record, float64) error) error {
		return b.scanBy(ctx, func(a, b *scep.Record) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) }, yield)
	}}, "ScanChanges", "ScanEnds"},
	{"scans again what moves ahead", broken{scan: func(b *broken, ctx context.Context, yield func([]*scep.Record, float64) error) error {
		return b.scanBy(ctx, func(a, b *scep.Record) int { return cmp.Or(a.Changed.Compare(b.Changed), cmp.Compare(a.ID, b.ID)) }, yield)
	}}, "ScanChanges", "ScanEnds"},
	{"scans what was there once", broken{scan: func(b *broken, ctx context.Context, yield func([]*scep.Record, float64) error) error {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.kept == nil {
			b.kept = map[scep.ID]*scep.Record{}
		}
		return b.Memory.Scan(ctx, func(all []*scep.Record, done float64) error {
			for i, rec := range all {
				if b.kept[rec.ID] == nil {
					b.kept[rec.ID] = rec.Clone()
					if rec.Version == 2 && len(b.kept) == 1 {
						b.kept[rec.ID].Remark = ""
					}
				}
				all[i] = b.kept[rec.ID].Clone()
			}
			return yield(all, done)
		})
	}}, "ScanLater", ""},
	{"goes on while there is more", broken{scan: func(b *broken, ctx context.Context, yield func([]*scep.Record, float64) error) error {
		seen := map[scep.ID]bool{}
		for more := true; more; {
			more = false
			if err := b.Memory.Scan(ctx, func(all []*scep.Record, done float64) error {
				all = slices.DeleteFunc(all, func(rec *scep.Record) bool { return seen[rec.ID] })
				for _, rec := range all {
					seen[rec.ID] = true
				}
				if len(all) == 0 {
					return nil
				}
				more = true
				return yield(all, done)
			}); err != nil {
				return err
			}
		}
		return nil
	}}, "ScanEnds", ""},
	{"scans into the same records", broken{scan: func(b *broken, ctx context.Context, yield func([]*scep.Record, float64) error) error {
		var mine []*scep.Record
		return b.Memory.Scan(ctx, func(all []*scep.Record, done float64) error {
			for i, rec := range all {
				if i == len(mine) {
					mine = append(mine, new(scep.Record))
				}
				*mine[i] = *rec
			}
			return yield(slices.Clone(mine[:len(all)]), done)
		})
	}}, "ScanCopies", ""},
	{"scans what it keeps", broken{scan: func(b *broken, ctx context.Context, yield func([]*scep.Record, float64) error) error {
		return b.Memory.Scan(ctx, func(all []*scep.Record, done float64) error {
			b.mu.Lock()
			if b.kept == nil {
				b.kept = map[scep.ID]*scep.Record{}
			}
			for i, rec := range all {
				if kept := b.kept[rec.ID]; kept != nil && kept.Version == rec.Version {
					all[i] = kept
				}
				b.kept[rec.ID] = all[i]
			}
			b.mu.Unlock()
			return yield(all, done)
		})
	}}, "ScanCopies", ""},
	{"says nothing of how far it is", broken{scan: func(b *broken, ctx context.Context, yield func([]*scep.Record, float64) error) error {
		return b.Memory.Scan(ctx, func(all []*scep.Record, _ float64) error { return yield(all, 0) })
	}}, "ScanDone", ""},
	{"goes on scanning", broken{scan: func(b *broken, ctx context.Context, yield func([]*scep.Record, float64) error) error {
		return b.Memory.Scan(ctx, func(all []*scep.Record, done float64) error { yield(all, done); return nil })
	}}, "ScanEnd", "ScanAll ScanChanges ScanLater ScanEnds ScanCopies"},
	{"scans for who has gone", broken{scan: func(b *broken, ctx context.Context, yield func([]*scep.Record, float64) error) error {
		return b.Memory.Scan(context.WithoutCancel(ctx), yield)
	}}, "ScanEnd", ""},
	{"stops when the context ends, and says nothing", broken{scan: func(b *broken, ctx context.Context, yield func([]*scep.Record, float64) error) error {
		before := ctx.Err()
		if err := b.Memory.Scan(ctx, yield); ctx.Err() == nil || before != nil {
			return err
		}
		return nil
	}}, "ScanEnd", ""},
}
