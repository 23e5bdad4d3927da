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
	ids, serials := make(map[scep.ID]bool), make(map[memorySerial]bool)
	exists := false
	for i, rec := range recs {
		var err error
		if kept[i], err = keep(ctx, rec); err != nil {
			return err
		}
		serial, named := serialOf(rec)
		exists = exists || ids[rec.ID] || named && serials[serial]
		ids[rec.ID] = true
		if named {
			serials[serial] = true
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, rec := range kept {
		serial, named := serialOf(rec)
		_, id := m.records[rec.ID]
		_, number := m.serials[serial]
		exists = exists || id || named && number
	}
	if exists {
		return scep.ErrExists
	}
	for i, rec := range kept {
		if err := m.create(rec); err != nil {
			return err
		}
		recs[i].Version = 1
	}
	return nil
}
