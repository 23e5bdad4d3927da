package depot

import (
	"cmp"
	"context"
	"slices"

	"github.com/scepkit/scepkit/scep"
)

var _ scep.Scanner = (*Memory)(nil)

// scanPage is how many records are copied at a time.
const scanPage = 256

// Scan implements [scep.Scanner]. The records come in the order in which they were stored, as they
// were when Scan was called.
func (m *Memory) Scan(ctx context.Context, yield func(all []*scep.Record, done float64) error) error {
	m.mu.RLock()
	found := make([]memoryRecord, 0, len(m.records))
	for _, r := range m.records {
		found = append(found, *r) // a change puts another scep.Record in its place
	}
	m.mu.RUnlock()
	slices.SortFunc(found, func(a, b memoryRecord) int { return cmp.Compare(a.stored, b.stored) })
	read := 0
	for some := range slices.Chunk(found, scanPage) {
		if err := ctx.Err(); err != nil {
			return err
		}
		page := make([]*scep.Record, len(some))
		for i, r := range some {
			page[i] = r.Clone()
		}
		read += len(page)
		if err := yield(page, float64(read)/float64(len(found))); err != nil {
			return err
		}
	}
	return ctx.Err()
}
