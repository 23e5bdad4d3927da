package depot

import (
	"context"

	"github.com/scepkit/scepkit/scep"
)

var _ scep.Loader = (*Memory)(nil)

// Load implements [scep.Loader].
func (m *Memory) Load(ctx context.Context, recs []*scep.Record) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	kept := make([]*scep.Record, len(recs))
	for i, rec := range recs {
		var err error
		if kept[i], err = keep(ctx, rec); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, rec := range kept {
		if err := m.create(rec); err != nil {
			for _, created := range kept[:i] {
				m.remove(m.records[created.ID])
			}
			return err
		}
	}
	for _, rec := range recs {
		rec.Version = 1
	}
	return nil
}
