package transfer_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/depot/postgres"
	"github.com/scepkit/scepkit/depot/postgres/postgrestest"
	"github.com/scepkit/scepkit/depot/transfer"
	"github.com/scepkit/scepkit/scep"
)

// TestToPostgres moves from one file to many servers, and back.
func TestToPostgres(t *testing.T) {
	many, err := postgres.Open(t.Context(), postgres.Config{URL: postgrestest.Shared(t).Database(t), Timeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer many.Close()
	all := odd()
	for i := range 300 {
		all = append(all, record(i))
	}
	one, back := open(t), open(t)
	fill(t, one, all)
	data := export(t, one)
	if n, skipped, err := transfer.Import(t.Context(), strings.NewReader(data), many, nil); n != len(all) || skipped != 0 || err != nil {
		t.Fatalf("%d, %d skipped, %v", n, skipped, err)
	}
	if n, skipped, err := transfer.Import(t.Context(), strings.NewReader(data), many, nil); n != 0 || skipped != len(all) || err != nil {
		t.Errorf("again: %d, %d skipped, %v", n, skipped, err)
	}
	again := export(t, many)
	if !sameLines(again, data) {
		t.Error("what PostgreSQL exports is not what SQLite did")
	}
	if n, _, err := transfer.Import(t.Context(), strings.NewReader(again), back, nil); n != len(all) || err != nil {
		t.Error(n, err)
	}

	// What expired is pruned alike.
	var left [2]string
	for i, p := range []interface {
		scep.Pruner
		scep.Lister
	}{many, back} {
		keep := depot.Retention{Expired: 24 * time.Hour, Denied: 24 * time.Hour, Abandoned: 24 * time.Hour, Time: func() time.Time { return record(0).Created.AddDate(0, 0, 1) }}
		if n, err := keep.Prune(t.Context(), p); n < 150 || err != nil {
			t.Errorf("%d pruned, %v", n, err)
		}
		var out bytes.Buffer
		if err := transfer.Export(t.Context(), p, &out, nil); err != nil {
			t.Fatal(err)
		}
		left[i] = out.String()
	}
	if !sameLines(left[0], left[1]) {
		t.Error("PostgreSQL has kept others than SQLite")
	}
}
