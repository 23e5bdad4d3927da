package postgres_test

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot/internal/loadtest"
	"github.com/scepkit/scepkit/depot/postgres"
	"github.com/scepkit/scepkit/depot/postgres/postgrestest"
)

// TestLoad measures everything beside as many records as POSTGRES_LOAD says:
//
//	POSTGRES_LOAD=10000000 go test -run '^TestLoad$' -timeout 0 -v ./depot/postgres
//
// It holds an enrolment to the time that it takes beside no records, and the operator's tool to
// its memory. Ten million take some 35 GB in the temporary folder; with POSTGRES_LOAD_DIR they
// are put there, and kept, so that the next run need not make them.
func TestLoad(t *testing.T) {
	rows, _ := strconv.Atoi(os.Getenv("POSTGRES_LOAD"))
	if rows == 0 {
		t.Skip("POSTGRES_LOAD does not say how many records")
	}
	options := []postgrestest.Option{
		postgrestest.Durable, postgrestest.Setting("shared_buffers", "4GB"), postgrestest.Setting("max_wal_size", "4GB"),
		postgrestest.Setting("checkpoint_timeout", "30min"),
	}
	if dir := os.Getenv("POSTGRES_LOAD_DIR"); dir != "" {
		options = append(options, postgrestest.Keep(dir))
	}
	server := postgrestest.Start(t, options...)
	for _, name := range []string{"empty", "full"} {
		var there bool
		if err := shell(t, server.URL("postgres")).QueryRow(t.Context(), `SELECT EXISTS (SELECT 1 FROM pg_database WHERE datname = $1)`, name).Scan(&there); err != nil {
			t.Fatal(err)
		}
		if !there {
			server.Exec(t, "postgres", `CREATE DATABASE "`+name+`" TEMPLATE template0`)
		}
	}
	empty := open(t, postgres.Config{URL: server.URL("empty"), Timeout: patient})
	full := open(t, postgres.Config{URL: server.URL("full"), Timeout: patient})
	if !filled(t, shell(t, server.URL("full")), rows) {
		fillLoad(t, server.URL("full"), rows)
	}
	var heap, toast, indexes string
	var count int
	var old time.Time // before that are a tenth of the records
	c := shell(t, server.URL("full"))
	if err := c.QueryRow(t.Context(), `SELECT pg_size_pretty(pg_relation_size(oid)), pg_size_pretty(pg_total_relation_size(reltoastrelid)),
		pg_size_pretty(pg_indexes_size(oid)), (SELECT count(*) FROM scep.record),
		(SELECT not_after FROM scep.record WHERE not_after IS NOT NULL ORDER BY not_after OFFSET $1 LIMIT 1)
		FROM pg_class WHERE oid = 'scep.record'::regclass`, rows/10).Scan(&heap, &toast, &indexes, &count, &old); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d records: rows %s, large columns %s, indexes %s", count, heap, toast, indexes)

	t.Run("Plans", func(t *testing.T) { checkPlans(t, shell(t, server.URL("full"))) })
	t.Run("Enrol", func(t *testing.T) {
		server.Exec(t, "full", `CREATE EXTENSION IF NOT EXISTS pg_prewarm`,
			`SELECT sum(pg_prewarm(indexrelid)) FROM pg_index WHERE indrelid = 'scep.record'::regclass`)
		// A little remains: after a checkpoint, the first change of a page has the server log
		// all of the page, and in a large index each change is the first of its page.
		server.Exec(t, "full", `CHECKPOINT`)
		if r := loadtest.Enrol(t, empty, full, 3000); r > loadtest.MaxRatio {
			t.Errorf("an enrolment takes %.3f of one beside no records, want at most %.3f", r, loadtest.MaxRatio)
		}
	})
	t.Run("EnrolNotCached", func(t *testing.T) {
		server.Stop(t)
		loadtest.DropCaches(t, server.Dir())
		server.Start(t)
		loadtest.Enrol(t, empty, full, 1000)
	})

	tool := loadtest.NewTool(t, server.URL("full"))
	t.Run("List", func(t *testing.T) {
		loadtest.Pages(t, full)
		tool.Run(t, "list", "-db", "env:DB", "-state", "pending")
	})
	t.Run("CRL", func(t *testing.T) {
		tool.Run(t, "crl", "-db", "env:DB", "-key", "file:DIR/ca.key?chain=DIR/ca.pem", "-out", "DIR/ca.crl")
		tool.Run(t, "crl", "-db", "env:DB", "-key", "file:DIR/ca.key?chain=DIR/ca.pem", "-out", "DIR/ca-{n}.crl", "-shards", "64", "-url", "http://pki.example/{n}.crl")
	})
	t.Run("Prune", func(t *testing.T) {
		t.Logf("an enrolment, alone: %v", loadtest.Beside(t, full, func() { time.Sleep(10 * time.Second) }))
		age := fmt.Sprintf("%ds", int(time.Since(old).Seconds()))
		t.Logf("an enrolment, while records are deleted: %v", loadtest.Beside(t, full, func() {
			tool.Run(t, "prune", "-db", "env:DB", "-expired-for", age)
		}))
	})
	t.Run("Export", func(t *testing.T) {
		if err := shell(t, server.URL("full")).QueryRow(t.Context(), `SELECT count(*) FROM scep.record`).Scan(&count); err != nil {
			t.Fatal(err)
		}
		server.Stop(t)
		loadtest.DropCaches(t, server.Dir())
		server.Start(t)
		if lines := tool.Run(t, "export", "-from", "env:DB", "-out", "-"); lines != count+2 {
			t.Errorf("%d lines for %d records, a header and a footer", lines, count)
		}
	})
}
