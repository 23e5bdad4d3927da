package sqlite_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
)

// TestPruneLikeMemory prunes records that depend on each other at random, here and in memory.
func TestPruneLikeMemory(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(seed, 1))
			at := func() time.Time {
				if random.IntN(8) == 0 {
					return time.Time{}
				}
				return time.Unix(int64(random.IntN(10)), 0)
			}
			db, memory := open(t, filepath.Join(t.TempDir(), "scep.db")), new(depot.Memory)
			var all []scep.ID
			for i := range 300 {
				rec := record(fmt.Sprint(i))
				rec.State = scep.Pending + scep.State(random.IntN(5))
				rec.NotAfter, rec.Changed = at(), at()
				if random.IntN(2) == 0 {
					rec.Transaction = record(fmt.Sprint(random.IntN(20))).ID
					rec.Generation = random.IntN(5)
				}
				if random.IntN(2) == 0 {
					rec.Renews = record(fmt.Sprint(random.IntN(300))).ID
				}
				rec.Unconfirmed = random.IntN(10) == 0
				all = append(all, rec.ID)
				if err := errors.Join(memory.Create(t.Context(), rec.Clone()), db.Create(t.Context(), rec)); err != nil {
					t.Fatal(err)
				}
			}
			for range 5 {
				q := scep.PruneQuery{Expired: at(), Denied: at(), Abandoned: at(), Limit: 1 + random.IntN(40)}
				dry := q
				dry.DryRun = true
				a, err := db.Prune(t.Context(), dry)
				b, err2 := memory.Prune(t.Context(), dry)
				if a != b || err != nil || err2 != nil {
					t.Errorf("dry run: %d, %v; in memory %d, %v", a, err, b, err2)
				}
				for _, p := range []scep.Pruner{db, memory} {
					for {
						if n, err := p.Prune(t.Context(), q); err != nil {
							t.Fatal(err)
						} else if n == 0 {
							break
						}
					}
				}
				for i, id := range all {
					_, err := db.Get(t.Context(), id)
					_, err2 := memory.Get(t.Context(), id)
					if (err == nil) != (err2 == nil) {
						t.Errorf("record %d: %v; in memory %v", i, err, err2)
					}
				}
			}
		})
	}
}

// TestPruneHoldsUpNobody has writers go on while thousands of records are deleted.
func TestPruneHoldsUpNobody(t *testing.T) {
	const old, writers = 4000, 8
	db := open(t, filepath.Join(t.TempDir(), "scep.db"))
	var group sync.WaitGroup
	for i := range 64 {
		group.Go(func() {
			for n := i; n < old; n += 64 {
				rec := record(fmt.Sprint("old ", n))
				rec.State, rec.NotAfter, rec.Certificate = scep.Issued, time.Unix(int64(n), 0), make([]byte, 2000)
				if err := db.Create(t.Context(), rec); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()

	ctx, cancel := context.WithCancel(t.Context())
	var written, longest atomic.Int64
	for i := range writers {
		group.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				rec := record(fmt.Sprint("new ", i, n))
				rec.NotAfter = time.Now().AddDate(1, 0, 0)
				start := time.Now()
				err := db.Create(t.Context(), rec)
				if err == nil {
					rec.State, rec.Certificate = scep.Issued, make([]byte, 1000)
					err = db.Update(t.Context(), rec)
				}
				if err != nil {
					t.Error(err)
				}
				written.Add(1)
				for took := int64(time.Since(start)); ; {
					if was := longest.Load(); took <= was || longest.CompareAndSwap(was, took) {
						break
					}
				}
			}
		})
	}
	total := 0
	for {
		n, err := db.Prune(t.Context(), scep.PruneQuery{Expired: time.Now(), Limit: 500})
		if err != nil {
			t.Fatal(err)
		}
		if total += n; n == 0 {
			break
		}
	}
	cancel()
	group.Wait()
	t.Logf("%d were written in the meantime, each within %v", written.Load(), time.Duration(longest.Load()))
	if total != old || written.Load() < writers || time.Duration(longest.Load()) > 5*time.Second {
		t.Errorf("%d deleted, %d written, the slowest in %v", total, written.Load(), time.Duration(longest.Load()))
	}
	left, err := db.List(t.Context(), scep.Query{Limit: 1 << 20})
	if err != nil || int64(len(left)) != written.Load() {
		t.Errorf("%d are left, %v; want %d", len(left), err, written.Load())
	}
}
