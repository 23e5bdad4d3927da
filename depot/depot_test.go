package depot_test

import (
	"context"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/depot/depottest"
	"github.com/scepkit/scepkit/scep"
)

func TestMemory(t *testing.T) {
	depottest.TestDepot(t, depottest.Harness{
		Open: func(*testing.T) scep.Depot { return new(depot.Memory) },
	})
}

// The zero Memory is ready. It also keeps one-time challenges.
func ExampleMemory() {
	records := new(depot.Memory)
	_ = scep.Config{Depot: records}

	all, err := records.List(context.Background(), scep.Query{})
	fmt.Println(len(all), err)
	// Output: 0 <nil>
}

// A change less than a microsecond after Since is listed, although the record keeps whole ones.
func TestMemorySince(t *testing.T) {
	at, db, id := time.Unix(1700000000, 5700), new(depot.Memory), scep.ID(strings.Repeat("a", 64))
	rec := &scep.Record{ID: id, Transaction: id, State: scep.Revoked, Issuer: []byte("issuer"), Serial: big.NewInt(7), Revoked: at, Changed: at}
	if err := db.Create(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	for _, since := range []time.Duration{0, 100, 500} {
		n := 0
		err := db.Revocations(t.Context(), scep.RevocationQuery{Issuer: rec.Issuer, Since: at.Add(-since)}, func(scep.Revocation) error { n++; return nil })
		if err != nil || n != 1 {
			t.Errorf("%v before the change: %d revocations, %v", since, n, err)
		}
	}
}
