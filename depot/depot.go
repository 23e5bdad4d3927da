// Package depot keeps requests and certificates in memory, for tests, for trying things
// out, and for certificates that are not worth remembering. What a [Memory] knows is gone
// when the process ends: a device that polls afterwards is unknown, a certificate cannot be
// renewed, and a spent challenge is good again if it is put again.
//
// For service use depot/sqlite, one file on one machine, or depot/postgres, for several machines.
// To write another depot, implement [scep.Depot] (and [scep.Lister], [scep.RevocationLister],
// [scep.Pruner], [scep.Scanner], [scep.Loader], and [scep.ChallengeStore] with [scep.Spender], if
// there is to be an approval queue, a CRL, an end to old records, a quick export, a quick import, and
// one-time challenges) and run depot/depottest over it. Package depot/transfer moves records from
// one depot to another.
package depot

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math/big"
	"slices"
	"sync"
	"time"

	"github.com/scepkit/scepkit/scep"
)

var (
	_ scep.Depot            = (*Memory)(nil)
	_ scep.Lister           = (*Memory)(nil)
	_ scep.RevocationLister = (*Memory)(nil)
	_ scep.ChallengeStore   = (*Memory)(nil)
	_ scep.Spender          = (*Memory)(nil)
)

// Memory is a [scep.Depot], a [scep.Lister], a [scep.RevocationLister], a [scep.Pruner], a
// [scep.Scanner], a [scep.Loader], a [scep.ChallengeStore] and a [scep.Spender]. Its zero value is
// empty and ready; it must not be copied after first use. Times are kept to the microsecond and in
// UTC, as a database would.
type Memory struct {
	mu           sync.RWMutex
	stored       int64 // counts what was created, to tell equal Created apart
	records      map[scep.ID]*memoryRecord
	transactions map[scep.ID][]*memoryRecord // in the order of Created, then stored
	serials      map[memorySerial]scep.ID

	challenges memoryChallenges
}

type memoryRecord struct {
	*scep.Record
	stored int64
}

// memorySerial is a certificate's name: issuer as DER, serial number in hexadecimal.
type memorySerial struct{ issuer, serial string }

// Create implements [scep.Depot].
func (m *Memory) Create(ctx context.Context, rec *scep.Record) error {
	kept, err := keep(ctx, rec)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.create(kept); err != nil {
		return err
	}
	rec.Version = 1
	return nil
}

// create stores kept, which is m's from now on.
func (m *Memory) create(kept *scep.Record) error {
	serial, named := serialOf(kept)
	if _, taken := m.records[kept.ID]; taken {
		return scep.ErrExists
	}
	if _, taken := m.serials[serial]; named && taken {
		return scep.ErrExists
	}
	if m.records == nil {
		m.records = make(map[scep.ID]*memoryRecord)
		m.transactions = make(map[scep.ID][]*memoryRecord)
		m.serials = make(map[memorySerial]scep.ID)
	}
	kept.Version = 1
	m.stored++
	r := &memoryRecord{kept, m.stored}
	m.records[kept.ID] = r
	m.file(r)
	if named {
		m.serials[serial] = kept.ID
	}
	return nil
}

// Update implements [scep.Depot].
func (m *Memory) Update(ctx context.Context, rec *scep.Record) error {
	kept, err := keep(ctx, rec)
	if err != nil {
		return err
	}
	kept.Version++

	m.mu.Lock()
	defer m.mu.Unlock()
	r, found := m.records[kept.ID]
	if !found {
		return scep.ErrNotFound
	}
	if r.Version != rec.Version {
		return scep.ErrStale
	}
	serial, named := serialOf(kept)
	if by, taken := m.serials[serial]; named && taken && by != kept.ID {
		return scep.ErrExists
	}
	if old, named := serialOf(r.Record); named {
		delete(m.serials, old)
	}
	if named {
		m.serials[serial] = kept.ID
	}
	if kept.Transaction == r.Transaction && kept.Created.Equal(r.Created) {
		r.Record = kept
	} else {
		m.unfile(r)
		r.Record = kept
		m.file(r)
	}
	rec.Version = kept.Version
	return nil
}

// Get implements [scep.Depot].
func (m *Memory) Get(ctx context.Context, id scep.ID) (*scep.Record, error) {
	if err := checkIDs(ctx, id); err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	r, found := m.records[id]
	if !found {
		return nil, scep.ErrNotFound
	}
	return r.Clone(), nil
}

// Latest implements [scep.Depot].
func (m *Memory) Latest(ctx context.Context, transaction scep.ID) (*scep.Record, error) {
	if err := checkIDs(ctx, transaction); err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	all := m.transactions[transaction]
	if len(all) == 0 {
		return nil, scep.ErrNotFound
	}
	return all[len(all)-1].Clone(), nil
}

// GetSerial implements [scep.Depot].
func (m *Memory) GetSerial(ctx context.Context, issuer []byte, serial *big.Int) (*scep.Record, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	name, named := serialOf(&scep.Record{Issuer: issuer, Serial: serial})
	m.mu.RLock()
	defer m.mu.RUnlock()
	id, found := m.serials[name]
	if !named || !found {
		return nil, scep.ErrNotFound
	}
	return m.records[id].Clone(), nil
}

// List implements [scep.Lister]. It looks at every record.
func (m *Memory) List(ctx context.Context, q scep.Query) ([]*scep.Record, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if q.After != "" && !q.After.Valid() {
		return nil, invalid(q.After)
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	var found []*scep.Record
	for _, r := range m.records {
		if r.ID > q.After && (q.State == 0 || r.State == q.State) && (q.Profile == nil || r.Profile == *q.Profile) {
			found = append(found, r.Record)
		}
	}
	slices.SortFunc(found, func(a, b *scep.Record) int { return cmp.Compare(a.ID, b.ID) })
	limit := q.Limit
	if limit <= 0 {
		limit = 100
	}
	found = slices.Clone(found[:min(limit, len(found))])
	for i, r := range found {
		found[i] = r.Clone()
	}
	return found, nil
}

// Revocations implements [scep.RevocationLister]. It looks at every record.
func (m *Memory) Revocations(ctx context.Context, q scep.RevocationQuery, yield func(scep.Revocation) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	q.Since = q.Since.Truncate(time.Microsecond) // as Changed is
	var found []scep.Revocation
	m.mu.RLock()
	for _, r := range m.records {
		if r.Serial == nil || !bytes.Equal(r.Issuer, q.Issuer) || r.NotAfter.Before(q.NotAfter) {
			continue
		}
		switch {
		case r.State == scep.Revoked && !r.Changed.Before(q.Since):
			found = append(found, scep.Revocation{Serial: r.Serial, Revoked: r.Revoked, Reason: scep.RevocationReason(r.RevocationReason)})
		case r.State == scep.Issued && !q.Since.IsZero() && !r.Unrevoked.Before(q.Since):
			found = append(found, scep.Revocation{Serial: r.Serial, Unrevoked: r.Unrevoked})
		}
	}
	m.mu.RUnlock()
	slices.SortFunc(found, func(a, b scep.Revocation) int { return a.Serial.Cmp(b.Serial) })
	for _, r := range found {
		if err := ctx.Err(); err != nil {
			return err
		}
		r.Serial = new(big.Int).Set(r.Serial)
		if err := yield(r); err != nil {
			return err
		}
	}
	return nil
}

// file puts r among those of its transaction.
func (m *Memory) file(r *memoryRecord) {
	all := m.transactions[r.Transaction]
	i, _ := slices.BinarySearchFunc(all, r, byAge)
	m.transactions[r.Transaction] = slices.Insert(all, i, r)
}

// unfile takes r from among those of its transaction.
func (m *Memory) unfile(r *memoryRecord) {
	all := m.transactions[r.Transaction]
	if i, found := slices.BinarySearchFunc(all, r, byAge); found {
		all = slices.Delete(all, i, i+1)
	}
	if len(all) == 0 {
		delete(m.transactions, r.Transaction)
	} else {
		m.transactions[r.Transaction] = all
	}
}

// remove forgets r.
func (m *Memory) remove(r *memoryRecord) {
	if serial, named := serialOf(r.Record); named {
		delete(m.serials, serial)
	}
	m.unfile(r)
	delete(m.records, r.ID)
}

func byAge(a, b *memoryRecord) int {
	return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.stored, b.stored))
}

// keep returns the copy of rec that is stored.
func keep(ctx context.Context, rec *scep.Record) (*scep.Record, error) {
	if err := checkIDs(ctx, rec.ID, rec.Transaction); err != nil {
		return nil, err
	}
	if rec.Renews != "" && !rec.Renews.Valid() {
		return nil, invalid(rec.Renews)
	}
	if err := checkIDs(ctx, rec.RenewedBy...); err != nil {
		return nil, err
	}
	kept := rec.Clone()
	for _, t := range []*time.Time{&kept.NotAfter, &kept.Revoked, &kept.Unrevoked, &kept.Created, &kept.Changed} {
		*t = t.UTC().Truncate(time.Microsecond)
	}
	return kept, nil
}

// serialOf returns the name of the certificate, unless it has none yet.
func serialOf(rec *scep.Record) (memorySerial, bool) {
	if rec.Serial == nil {
		return memorySerial{}, false
	}
	return memorySerial{string(rec.Issuer), rec.Serial.Text(16)}, true
}

// checkIDs reports that ctx has ended, or which ID is not one.
func checkIDs(ctx context.Context, ids ...scep.ID) error {
	for _, id := range ids {
		if !id.Valid() {
			return invalid(id)
		}
	}
	return ctx.Err()
}

func invalid(id scep.ID) error {
	return fmt.Errorf("depot: %.80q is not an ID; want 64 lower-case hexadecimal digits", string(id))
}
