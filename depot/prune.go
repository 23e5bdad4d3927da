package depot

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/scepkit/scepkit/scep"
)

var _ scep.Pruner = (*Memory)(nil)

// Prune implements [scep.Pruner]. It looks at every record.
func (m *Memory) Prune(ctx context.Context, q scep.PruneQuery) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	limit := q.Limit
	if limit <= 0 {
		limit = 1000
	}
	m.mu.Lock()
	defer m.mu.Unlock()

	renewing := make(map[scep.ID]bool) // what has a renewal under way
	var found []*memoryRecord
	for _, r := range m.records {
		if r.Renews != "" && (r.State < scep.Issued || r.Unconfirmed) {
			renewing[r.Renews] = true
		}
		if selected(r.Record, q) {
			found = append(found, r)
		}
	}
	found = slices.DeleteFunc(found, func(r *memoryRecord) bool { return renewing[r.ID] || m.needed(r, q) })
	slices.SortFunc(found, func(a, b *memoryRecord) int {
		return cmp.Or(pruneTime(a.Record).Compare(pruneTime(b.Record)), cmp.Compare(a.stored, b.stored))
	})
	found = found[:min(limit, len(found))]
	if q.DryRun {
		return len(found), nil
	}
	for _, r := range found {
		m.remove(r)
	}
	return len(found), nil
}

// selected reports whether the time of r has come.
func selected(r *scep.Record, q scep.PruneQuery) bool {
	var before time.Time
	switch r.State {
	case scep.Signing, scep.Issued, scep.Revoked:
		before = q.Expired
	case scep.Denied:
		before = q.Denied
	case scep.Pending:
		before = q.Abandoned
	}
	at := pruneTime(r)
	return !at.IsZero() && !before.IsZero() && at.Before(before)
}

// pruneTime is what the age of r goes by.
func pruneTime(r *scep.Record) time.Time {
	if r.State == scep.Pending || r.State == scep.Denied {
		return r.Changed
	}
	return r.NotAfter
}

// needed reports whether another record depends on r, which is selected, but for renewals
// under way.
func (m *Memory) needed(r *memoryRecord, q scep.PruneQuery) bool {
	for _, other := range m.transactions[r.Transaction] {
		if other.Generation > r.Generation && !selected(other.Record, q) {
			return true
		}
	}
	if r.State != scep.Issued && r.State != scep.Revoked {
		return false
	}
	old, found := m.records[r.Renews]
	return found && (old.NotAfter.IsZero() || !old.NotAfter.Before(q.Expired))
}
