package depottest

import (
	"bytes"
	"context"
	"errors"
	"math/big"
	"slices"
	"sync"
	"time"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
)

// broken is depot.Memory, which keeps the contract, with one thing done wrong.
type broken struct {
	depot.Memory
	mu    sync.Mutex
	kept  map[scep.ID]*scep.Record // for faults that need a memory of their own
	count int

	forgets bool // when it is opened again

	create  func(b *broken, ctx context.Context, rec *scep.Record) error
	update  func(b *broken, ctx context.Context, rec *scep.Record) error
	get     func(b *broken, ctx context.Context, id scep.ID) (*scep.Record, error)
	latest  func(b *broken, ctx context.Context, transaction scep.ID) (*scep.Record, error)
	serial  func(b *broken, ctx context.Context, issuer []byte, serial *big.Int) (*scep.Record, error)
	list    func(b *broken, ctx context.Context, q scep.Query) ([]*scep.Record, error)
	revoked func(b *broken, ctx context.Context, q scep.RevocationQuery, yield func(scep.Revocation) error) error
	prune   func(b *broken, ctx context.Context, q scep.PruneQuery) (int, error)
	scan    func(b *broken, ctx context.Context, yield func([]*scep.Record, float64) error) error
	load    func(b *broken, ctx context.Context, recs []*scep.Record) error
	put     func(b *broken, ctx context.Context, c *scep.OneTimeChallenge, now time.Time, limit int) error
	find    func(b *broken, ctx context.Context, hash scep.ID) (*scep.OneTimeChallenge, error)
	spend   func(b *broken, ctx context.Context, hash, by scep.ID, now time.Time) (scep.ID, error)
	both    func(b *broken, ctx context.Context, rec *scep.Record, challenge scep.ID, now time.Time) error
}

func (b *broken) Create(ctx context.Context, rec *scep.Record) error {
	if b.create != nil {
		return b.create(b, ctx, rec)
	}
	return b.Memory.Create(ctx, rec)
}

func (b *broken) Update(ctx context.Context, rec *scep.Record) error {
	if b.update != nil {
		return b.update(b, ctx, rec)
	}
	return b.Memory.Update(ctx, rec)
}

func (b *broken) Get(ctx context.Context, id scep.ID) (*scep.Record, error) {
	if b.get != nil {
		return b.get(b, ctx, id)
	}
	return b.Memory.Get(ctx, id)
}

func (b *broken) Latest(ctx context.Context, transaction scep.ID) (*scep.Record, error) {
	if b.latest != nil {
		return b.latest(b, ctx, transaction)
	}
	return b.Memory.Latest(ctx, transaction)
}

func (b *broken) GetSerial(ctx context.Context, issuer []byte, serial *big.Int) (*scep.Record, error) {
	if b.serial != nil {
		return b.serial(b, ctx, issuer, serial)
	}
	return b.Memory.GetSerial(ctx, issuer, serial)
}

func (b *broken) List(ctx context.Context, q scep.Query) ([]*scep.Record, error) {
	if b.list != nil {
		return b.list(b, ctx, q)
	}
	return b.Memory.List(ctx, q)
}

func (b *broken) Revocations(ctx context.Context, q scep.RevocationQuery, yield func(scep.Revocation) error) error {
	if b.revoked != nil {
		return b.revoked(b, ctx, q, yield)
	}
	return b.Memory.Revocations(ctx, q, yield)
}

// contended is the record that the clause UpdateContended counts with.
var contended = id("counter")

// A fault is named for what the depot does wrong, with the clauses that must find it.
type fault struct {
	name string
	b    broken
	want string // clauses that must fail
	also string // clauses that may fail because of it
}

var faults = slices.Concat(recordFaults, pruneFaults, scanFaults, loadFaults, challengeFaults, spendingFaults)

var recordFaults = []fault{
	{"nothing", broken{}, "", ""},
	{"missing is no error", broken{get: func(b *broken, ctx context.Context, id scep.ID) (*scep.Record, error) {
		rec, err := b.Memory.Get(ctx, id)
		if errors.Is(err, scep.ErrNotFound) {
			return nil, nil
		}
		return rec, err
	}}, "Missing", "CreateSerial UpdateMissing Cancelled PruneSelects PruneForgets PruneLimit PruneGeneration PruneRenewing PruneRenewed PruneTogether CreateSpendingSpent CreateSpendingMissing CreateSpendingExists CreateSpendingTogether LoadNone LoadTogether LoadHostile"},
	{"overwrites", broken{create: func(b *broken, ctx context.Context, rec *scep.Record) error {
		err := b.Memory.Create(ctx, rec)
		if !errors.Is(err, scep.ErrExists) {
			return err
		}
		there, err := b.Memory.Get(ctx, rec.ID)
		if err != nil {
			return scep.ErrExists // it was the serial number
		}
		rec.Version = there.Version
		if err := b.Memory.Update(ctx, rec); err != nil {
			return err
		}
		rec.Version = 1
		return nil
	}}, "CreateOnce", "CreateVersion Reopen"},
	{"sets no version", broken{create: func(b *broken, ctx context.Context, rec *scep.Record) error {
		return b.Memory.Create(ctx, rec.Clone())
	}}, "CreateVersion", "PruneRenewing PruneTogether ScanAll LoadNone"},
	{"serial numbers twice", broken{create: func(b *broken, ctx context.Context, rec *scep.Record) error {
		clone := rec.Clone()
		if clone.Serial != nil {
			if _, err := b.Memory.GetSerial(ctx, rec.Issuer, rec.Serial); err == nil {
				if _, err := b.Memory.Get(ctx, rec.ID); err != nil {
					clone.Serial = nil
				}
			}
		}
		if err := b.Memory.Create(ctx, clone); err != nil {
			return err
		}
		rec.Version = clone.Version
		return nil
	}}, "CreateSerial", ""},
	{"serial numbers without issuer", broken{create: func(b *broken, ctx context.Context, rec *scep.Record) error {
		if rec.Serial != nil && string(rec.Issuer) != "issuer" {
			if _, err := b.Memory.GetSerial(ctx, []byte("issuer"), rec.Serial); err == nil {
				return scep.ErrExists
			}
		}
		return b.Memory.Create(ctx, rec)
	}}, "CreateSerialOfAnotherIssuer", ""},
	{"nil is a serial number", broken{create: func(b *broken, ctx context.Context, rec *scep.Record) error {
		b.mu.Lock()
		defer b.mu.Unlock()
		if rec.Serial == nil {
			if b.count++; b.count > 1 {
				return scep.ErrExists
			}
		}
		return b.Memory.Create(ctx, rec)
	}}, "CreateNilSerial", "Revocations"},
	{"ignores versions", broken{update: func(b *broken, ctx context.Context, rec *scep.Record) error {
		there, err := b.Memory.Get(ctx, rec.ID)
		if err != nil {
			return err
		}
		rec.Version = there.Version
		return b.Memory.Update(ctx, rec)
	}}, "UpdateStale", "HostileIDs UpdateContended"},
	{"loses a change now and then", broken{update: func(b *broken, ctx context.Context, rec *scep.Record) error {
		b.mu.Lock()
		b.count++
		lose := b.count%40 == 0
		b.mu.Unlock()
		if lose {
			rec.Version++
			return nil
		}
		return b.Memory.Update(ctx, rec)
	}}, "UpdateContended", ""},
	{"update creates", broken{update: func(b *broken, ctx context.Context, rec *scep.Record) error {
		err := b.Memory.Update(ctx, rec)
		if errors.Is(err, scep.ErrNotFound) {
			rec.Version = 0
			return b.Memory.Create(ctx, rec)
		}
		return err
	}}, "UpdateMissing", "PruneForgets PruneTogether"},
	{"update leaves the caller's version", broken{update: func(b *broken, ctx context.Context, rec *scep.Record) error {
		return b.Memory.Update(ctx, rec.Clone())
	}}, "UpdateVersion", "UpdateContended Revocations"},
	{"the oldest is the latest", broken{
		create: func(b *broken, ctx context.Context, rec *scep.Record) error {
			err := b.Memory.Create(ctx, rec)
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.kept == nil {
				b.kept = map[scep.ID]*scep.Record{}
			}
			if err == nil && b.kept[rec.Transaction] == nil {
				b.kept[rec.Transaction] = rec.Clone()
			}
			return err
		},
		latest: func(b *broken, ctx context.Context, transaction scep.ID) (*scep.Record, error) {
			if _, err := b.Memory.Latest(ctx, transaction); err != nil {
				return nil, err
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.Memory.Get(ctx, b.kept[transaction].ID)
		},
	}, "LatestNewest LatestTie", "Fields PruneForgets CreateSpending LoadAll"},
	{"sanitises IDs", broken{get: func(b *broken, ctx context.Context, bad scep.ID) (*scep.Record, error) {
		if !bad.Valid() {
			bad = id("sanitised")
		}
		return b.Memory.Get(ctx, bad)
	}}, "HostileIDs", ""},
	{"keeps what it was given", broken{
		create: func(b *broken, ctx context.Context, rec *scep.Record) error {
			err := b.Memory.Create(ctx, rec)
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.kept == nil {
				b.kept = map[scep.ID]*scep.Record{}
			}
			if err == nil {
				b.kept[rec.ID] = rec
			}
			return err
		},
		get: func(b *broken, ctx context.Context, id scep.ID) (*scep.Record, error) {
			rec, err := b.Memory.Get(ctx, id)
			b.mu.Lock()
			defer b.mu.Unlock()
			if kept := b.kept[id]; err == nil && kept != nil && rec.Version == 1 {
				return kept.Clone(), nil
			}
			return rec, err
		},
	}, "CopiesIn", ""},
	{"hands out what it keeps", broken{
		get: func(b *broken, ctx context.Context, id scep.ID) (*scep.Record, error) {
			rec, err := b.Memory.Get(ctx, id)
			if err != nil || rec.Generation > 0 || rec.ID == contended { // where it would be a data race
				return rec, err
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.kept == nil {
				b.kept = map[scep.ID]*scep.Record{}
			}
			if kept := b.kept[id]; kept != nil && kept.Version == rec.Version {
				return kept, nil
			}
			b.kept[id] = rec
			return rec, nil
		},
	}, "CopiesOut", "UpdateSerial ListCopies ListState"},
	{"forgets a field", broken{create: func(b *broken, ctx context.Context, rec *scep.Record) error {
		clone := rec.Clone()
		clone.Via = ""
		err := b.Memory.Create(ctx, clone)
		rec.Version = clone.Version
		return err
	}}, "Fields", "CreateOnce ScanAll"},
	{"seconds", broken{create: func(b *broken, ctx context.Context, rec *scep.Record) error {
		clone := rec.Clone()
		clone.NotAfter = clone.NotAfter.Truncate(time.Second)
		err := b.Memory.Create(ctx, clone)
		rec.Version = clone.Version
		return err
	}}, "Times", "Fields CopiesIn CopiesOut Cancelled Reopen RevocationsNotAfter PruneSelects PruneForgets PruneRenewed CreateSpendingExists ScanAll ScanCopies LoadNone"},
	{"issuers in small letters", broken{serial: func(b *broken, ctx context.Context, issuer []byte, serial *big.Int) (*scep.Record, error) {
		rec, err := b.Memory.GetSerial(ctx, issuer, serial)
		if errors.Is(err, scep.ErrNotFound) {
			return b.Memory.GetSerial(ctx, bytes.TrimRight(issuer, "\x00 "), serial)
		}
		return rec, err
	}}, "IssuerBytes", ""},
	{"serial numbers of 64 bits", broken{serial: func(b *broken, ctx context.Context, issuer []byte, serial *big.Int) (*scep.Record, error) {
		if serial != nil && serial.BitLen() > 64 {
			serial = new(big.Int).SetUint64(serial.Uint64())
		}
		return b.Memory.GetSerial(ctx, issuer, serial)
	}}, "Serials", "LoadAll CopiesOut CreateSerial CreateSerialOfAnotherIssuer IssuerBytes RevocationsEnd UpdateSerial"},
	{"ignores the context", broken{get: func(b *broken, ctx context.Context, id scep.ID) (*scep.Record, error) {
		return b.Memory.Get(context.WithoutCancel(ctx), id)
	}}, "Cancelled", ""},
	{"lists in no order", broken{list: func(b *broken, ctx context.Context, q scep.Query) ([]*scep.Record, error) {
		got, err := b.Memory.List(ctx, q)
		slices.Reverse(got)
		return got, err
	}}, "ListPages ListState ListProfile", ""},
	{"lists all", broken{list: func(b *broken, ctx context.Context, q scep.Query) ([]*scep.Record, error) {
		q.Limit = 1000
		return b.Memory.List(ctx, q)
	}}, "ListPages ListDefault", ""},
	{"lists other states", broken{list: func(b *broken, ctx context.Context, q scep.Query) ([]*scep.Record, error) {
		q.State = 0
		return b.Memory.List(ctx, q)
	}}, "ListState ListProfile", ""},
	{"lists other profiles", broken{list: func(b *broken, ctx context.Context, q scep.Query) ([]*scep.Record, error) {
		q.Profile = nil
		return b.Memory.List(ctx, q)
	}}, "ListProfile", ""},
	{"an empty list is not found", broken{list: func(b *broken, ctx context.Context, q scep.Query) ([]*scep.Record, error) {
		got, err := b.Memory.List(ctx, q)
		if err == nil && len(got) == 0 {
			err = scep.ErrNotFound
		}
		return got, err
	}}, "ListEmpty ListPages ListProfile", ""},
	{"lists what it keeps", broken{list: func(b *broken, ctx context.Context, q scep.Query) ([]*scep.Record, error) {
		got, err := b.Memory.List(ctx, q)
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.kept == nil {
			b.kept = map[scep.ID]*scep.Record{}
		}
		for i, rec := range got {
			if kept := b.kept[rec.ID]; kept != nil && kept.Version == rec.Version {
				got[i] = kept
			}
			b.kept[rec.ID] = got[i]
		}
		return got, err
	}}, "ListCopies", ""},
	{"lists no reasons", broken{revoked: func(b *broken, ctx context.Context, q scep.RevocationQuery, yield func(scep.Revocation) error) error {
		return b.Memory.Revocations(ctx, q, func(r scep.Revocation) error { r.Reason = 0; return yield(r) })
	}}, "Revocations", "RevocationsSince"},
	{"lists expired certificates", broken{revoked: func(b *broken, ctx context.Context, q scep.RevocationQuery, yield func(scep.Revocation) error) error {
		q.NotAfter = time.Time{}
		return b.Memory.Revocations(ctx, q, yield)
	}}, "RevocationsNotAfter", ""},
	{"lists all revocations", broken{revoked: func(b *broken, ctx context.Context, q scep.RevocationQuery, yield func(scep.Revocation) error) error {
		q.Since = time.Time{}
		return b.Memory.Revocations(ctx, q, yield)
	}}, "RevocationsSince", ""},
	{"goes on listing", broken{revoked: func(b *broken, ctx context.Context, q scep.RevocationQuery, yield func(scep.Revocation) error) error {
		return b.Memory.Revocations(ctx, q, func(r scep.Revocation) error { yield(r); return nil })
	}}, "RevocationsEnd", ""},
	{"lists in any order", broken{revoked: func(b *broken, ctx context.Context, q scep.RevocationQuery, yield func(scep.Revocation) error) error {
		var all []scep.Revocation
		if err := b.Memory.Revocations(ctx, q, func(r scep.Revocation) error { all = append(all, r); return nil }); err != nil {
			return err
		}
		b.mu.Lock()
		if b.count++; b.count%2 == 0 {
			slices.Reverse(all)
		}
		b.mu.Unlock()
		for _, r := range all {
			if err := yield(r); err != nil {
				return err
			}
		}
		return nil
	}}, "RevocationsOrder", ""},
	{"forgets", broken{forgets: true}, "Reopen ChallengeReopen CreateSpendingReopen", ""},
	{"keeps what is set to nothing", broken{update: func(b *broken, ctx context.Context, rec *scep.Record) error {
		clone := rec.Clone()
		if there, err := b.Memory.Get(ctx, rec.ID); err == nil && clone.Certificate == nil {
			clone.Certificate = there.Certificate
		}
		err := b.Memory.Update(ctx, clone)
		rec.Version = clone.Version
		return err
	}}, "EmptyFields", ""},
	{"update says nothing of a serial number that is taken", broken{update: func(b *broken, ctx context.Context, rec *scep.Record) error {
		if err := b.Memory.Update(ctx, rec); !errors.Is(err, scep.ErrExists) {
			return err
		}
		return nil
	}}, "UpdateSerial", ""},
}
