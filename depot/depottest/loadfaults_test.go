package depottest

import (
	"context"
	"errors"

	"github.com/scepkit/scepkit/scep"
)

func (b *broken) Load(ctx context.Context, recs []*scep.Record) error {
	if b.load != nil {
		return b.load(b, ctx, recs)
	}
	return b.Memory.Load(ctx, recs)
}

var loadFaults = []fault{
	{"loads one by one", broken{load: func(b *broken, ctx context.Context, recs []*scep.Record) error {
		for _, rec := range recs {
			if err := b.Memory.Create(ctx, rec); err != nil {
				return err
			}
		}
		return nil
	}}, "LoadNone LoadHostile", ""},
	{"loads what is not there", broken{load: func(b *broken, ctx context.Context, recs []*scep.Record) error {
		for _, rec := range recs {
			if err := b.Memory.Create(ctx, rec); err != nil && !errors.Is(err, scep.ErrExists) {
				return err
			}
		}
		return nil
	}}, "LoadNone LoadTogether LoadHostile", ""},
	{"forgets the last", broken{load: func(b *broken, ctx context.Context, recs []*scep.Record) error {
		for _, rec := range recs {
			rec.Version = 1
		}
		return b.Memory.Load(ctx, recs[:max(0, len(recs)-1)])
	}}, "LoadAll LoadNone LoadTogether LoadHostile", ""},
	{"loads into no version", broken{load: func(b *broken, ctx context.Context, recs []*scep.Record) error {
		var clones []*scep.Record
		for _, rec := range recs {
			clones = append(clones, rec.Clone())
		}
		return b.Memory.Load(ctx, clones)
	}}, "LoadAll", ""},
	{"loads for who has gone", broken{load: func(b *broken, ctx context.Context, recs []*scep.Record) error {
		return b.Memory.Load(context.WithoutCancel(ctx), recs)
	}}, "LoadHostile", ""},
	{"loads beside another", broken{load: func(b *broken, ctx context.Context, recs []*scep.Record) error {
		err := b.Memory.Load(ctx, recs)
		if errors.Is(err, scep.ErrExists) && len(recs) == 2 {
			return b.Memory.Load(ctx, recs[1:])
		}
		return err
	}}, "LoadTogether", ""},
}
