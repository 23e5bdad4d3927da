package postgres_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"math/big"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot/postgres"
	"github.com/scepkit/scepkit/depot/postgres/postgrestest"
	"github.com/scepkit/scepkit/scep"
)

// issue does what one enrolment does to a depot: it looks for the record, creates it with a
// template, and updates it with the certificate.
func issue(ctx context.Context, d scep.Depot, name string) error {
	rec := record(name)
	if _, err := d.Get(ctx, rec.ID); err != scep.ErrNotFound {
		return fmt.Errorf("depot.Get: %v", err)
	}
	rec.CSR, rec.Template = bytes.Repeat([]byte{'c'}, 700), bytes.Repeat([]byte{'t'}, 600)
	rec.NotAfter = rec.Created.AddDate(1, 0, 0)
	if err := d.Create(ctx, rec); err != nil {
		return err
	}
	rec.State, rec.Certificate = scep.Issued, bytes.Repeat([]byte{'d'}, 1000)
	return d.Update(ctx, rec)
}

// BenchmarkIssue measures enrolments against a server that writes to the disk.
func BenchmarkIssue(b *testing.B) {
	server := postgrestest.Start(b, postgrestest.Durable)
	db := open(b, postgres.Config{URL: server.Database(b), Timeout: patient})
	var next atomic.Int64
	for _, writers := range []int{1, 8, 32} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			b.ReportAllocs()
			left := int64(b.N)
			var wg sync.WaitGroup
			for range writers {
				wg.Go(func() {
					for atomic.AddInt64(&left, -1) >= 0 {
						if err := issue(b.Context(), db, fmt.Sprint("benchmark ", next.Add(1))); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

// TestLoad measures enrolments beside as many records as POSTGRES_LOAD says, and compares with an
// empty depot: POSTGRES_LOAD=10000000 go test -run TestLoad -timeout 0 -v. Ten million take some
// 30 GB in the temporary folder.
func TestLoad(t *testing.T) {
	rows, _ := strconv.Atoi(os.Getenv("POSTGRES_LOAD"))
	if rows == 0 {
		t.Skip("POSTGRES_LOAD does not say how many records")
	}
	server := postgrestest.Start(t, postgrestest.Durable, postgrestest.Setting("shared_buffers", "1GB"), postgrestest.Setting("max_wal_size", "8GB"))
	empty, full := server.Database(t), server.Database(t)
	dbs := []*postgres.DB{open(t, postgres.Config{URL: empty, Timeout: patient}), open(t, postgres.Config{URL: full, Timeout: patient})}
	const step = 100_000
	begun := time.Now()
	for from := 1; from <= rows; from += step {
		server.Exec(t, databaseOf(full), fmt.Sprintf(fill, from, min(from+step-1, rows), rows))
	}
	t.Logf("%d records added in %v", rows, time.Since(begun).Round(time.Second))
	server.Exec(t, databaseOf(full), `VACUUM ANALYZE scep.record`, `CHECKPOINT`)

	var heap, toast, indexes string
	if err := shell(t, full).QueryRow(t.Context(), `SELECT pg_size_pretty(pg_relation_size(oid)), pg_size_pretty(pg_total_relation_size(reltoastrelid)),
		pg_size_pretty(pg_indexes_size(oid)) FROM pg_class WHERE oid = 'scep.record'::regclass`).Scan(&heap, &toast, &indexes); err != nil {
		t.Fatal(err)
	}
	t.Logf("rows %s, large columns %s, indexes %s", heap, toast, indexes)

	// In turns, so that a busy machine is so for both.
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	depots, enrolments := make([][]time.Duration, 2), make([][]time.Duration, 2)
	for i := range 3000 {
		for j, db := range dbs {
			begun := time.Now()
			if err := issue(t.Context(), db, fmt.Sprint("load ", i)); err != nil {
				t.Fatal(err)
			}
			depots[j] = append(depots[j], time.Since(begun))
			for range 3 { // opening the envelope, signing the certificate, signing the reply
				if _, err := key.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err != nil {
					t.Fatal(err)
				}
			}
			enrolments[j] = append(enrolments[j], time.Since(begun))
		}
	}
	ratio := func(what string, times [][]time.Duration) float64 {
		var medians [2]time.Duration
		for j := range times {
			slices.Sort(times[j])
			medians[j] = times[j][len(times[j])/2]
		}
		r := float64(medians[1]) / float64(medians[0])
		t.Logf("%s: median %v beside no records, %v beside %d: %.3f", what, medians[0], medians[1], rows, r)
		return r
	}
	// A little of it remains: after a checkpoint, the first change of a page has the server log
	// all of the page, and in a large index each change is the first of its page.
	ratio("the depot's part", depots)
	if r := ratio("with three RSA operations", enrolments); r > 1.1 {
		t.Errorf("an enrolment takes %.3f of one beside no records, want at most 1.1", r)
	}

	begun = time.Now()
	n, err := dbs[1].Prune(t.Context(), scep.PruneQuery{Expired: time.Now(), Limit: 20_000})
	t.Logf("%d records pruned in %v, %v", n, time.Since(begun).Round(time.Millisecond), err)

	rec, err := dbs[1].GetSerial(t.Context(), []byte("issuer"), new(big.Int).Set(record("load 1").Serial))
	if err != nil || rec.State != scep.Issued {
		t.Errorf("GetSerial: %v, %v", rec, err)
	}
}
