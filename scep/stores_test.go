package scep_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/depot/postgres"
	"github.com/scepkit/scepkit/depot/postgres/postgrestest"
	"github.com/scepkit/scepkit/depot/sqlite"
	"github.com/scepkit/scepkit/scep"
)

func TestMain(m *testing.M) { os.Exit(postgrestest.Run(m)) }

// A store is a depot that also keeps one-time challenges.
type store interface {
	scep.Depot
	scep.Lister
	scep.ChallengeStore
	scep.Spender
}

var stores = []struct {
	name string
	open func(t *testing.T) store
}{
	{"Memory", func(t *testing.T) store { return &depot.Memory{} }},
	{"SQLite", func(t *testing.T) store { return openSQLite(t, filepath.Join(t.TempDir(), "scep.db")) }},
	{"PostgreSQL", func(t *testing.T) store { return openPostgres(t, newSchema(t)) }},
}

func openSQLite(t *testing.T, path string) store {
	t.Helper()
	db, err := sqlite.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

var schemas atomic.Int64

// newSchema returns where a depot is that nobody has used, on the server of all tests.
func newSchema(t *testing.T) postgres.Config {
	t.Helper()
	return postgres.Config{URL: postgrestest.Shared(t).URL("postgres"), Schema: fmt.Sprint("scep", schemas.Add(1))}
}

func openPostgres(t *testing.T, c postgres.Config) store {
	t.Helper()
	c.MaxConns, c.Timeout = 4, 20*time.Second // no test is about time
	db, err := postgres.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// minting notes under which hash a challenge is stored.
type minting struct {
	scep.ChallengeStore
	hash scep.ID
}

func (m *minting) PutChallenge(ctx context.Context, c *scep.OneTimeChallenge, now time.Time, limit int) error {
	m.hash = c.Hash
	return m.ChallengeStore.PutChallenge(ctx, c, now, limit)
}

// mint makes a challenge, and returns its hash too.
func mint(t testing.TB, s scep.ChallengeStore) (secret string, hash scep.ID) {
	t.Helper()
	m := &minting{ChallengeStore: s}
	secret = newChallenge(t, &challenge.OneTime{Store: m})
	return secret, m.hash
}

// agree holds the one challenge and the one record of a depot to each other: it is spent, by that
// record, or there is none. It returns the record, or nil.
func agree(t testing.TB, s store, hash scep.ID) *scep.Record {
	t.Helper()
	c, err := s.GetChallenge(context.Background(), hash)
	if err != nil {
		t.Fatal(err)
	}
	all, err := s.List(context.Background(), scep.Query{})
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case c.SpentBy == "" && len(all) == 0:
		return nil
	case len(all) == 1 && all[0].ID == c.SpentBy:
		return all[0]
	}
	t.Fatalf("the challenge was spent by %.8q, and there are %d records", c.SpentBy, len(all))
	return nil
}

// oneCertificate holds the depot to one record, issued, with this certificate.
func oneCertificate(t *testing.T, s store, cert *x509.Certificate) {
	t.Helper()
	all, err := s.List(context.Background(), scep.Query{Limit: 10000})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 1 {
		t.Fatalf("%d records, want 1", len(all))
	}
	rec := all[0]
	if rec.State != scep.Issued || rec.Unconfirmed || string(rec.Certificate) != string(cert.Raw) {
		t.Fatalf("record is %v (unconfirmed %v), its certificate the device's: %v", rec.State, rec.Unconfirmed, string(rec.Certificate) == string(cert.Raw))
	}
}
