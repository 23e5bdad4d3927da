package postgres_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/big"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot/depottest"
	"github.com/scepkit/scepkit/depot/postgres"
	"github.com/scepkit/scepkit/depot/postgres/postgrestest"
	"github.com/scepkit/scepkit/scep"
)

func TestMain(m *testing.M) { os.Exit(postgrestest.Run(m)) }

// patient is for tests that are not about time, on machines that are slow.
const patient = 20 * time.Second

func open(t testing.TB, c postgres.Config) *postgres.DB {
	t.Helper()
	db, err := postgres.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func record(name string) *scep.Record {
	sum := sha256.Sum256([]byte(name))
	return &scep.Record{
		ID: scep.ID(hex.EncodeToString(sum[:])), Transaction: scep.ID(hex.EncodeToString(sum[:])),
		TransactionID: name, State: scep.Signing, Issuer: []byte("issuer"), Serial: new(big.Int).SetBytes(sum[:20]),
		CSR: []byte(name), Created: time.Now(), Changed: time.Now(),
	}
}

// TestDepot gives each clause a schema of its own.
func TestDepot(t *testing.T) { testDepot(t, postgrestest.Shared(t).Database(t)) }

func testDepot(t *testing.T, url string) {
	var schemas sync.Map
	var last atomic.Int64
	openSchema := func(t *testing.T, schema string) scep.Depot {
		db := open(t, postgres.Config{URL: url, Schema: schema, MaxConns: 4, Timeout: patient})
		schemas.Store(db, schema)
		return db
	}
	depottest.TestDepot(t, depottest.Harness{
		Open: func(t *testing.T) scep.Depot { return openSchema(t, fmt.Sprintf(`Clause "%d"`, last.Add(1))) },
		Reopen: func(t *testing.T, d scep.Depot) scep.Depot {
			schema, _ := schemas.Load(d)
			return openSchema(t, schema.(string))
		},
	})
}
