package sqlite_test

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	driversqlite "modernc.org/sqlite"

	"github.com/scepkit/scepkit/depot/internal/loadtest"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// TestLoad measures everything beside as many records as SQLITE_LOAD says:
//
//	SQLITE_LOAD=10000000 go test -run '^TestLoad$' -timeout 0 -v ./depot/sqlite
//
// It holds an enrolment to the time that it takes beside no records, and the operator's tool to
// its memory. Ten million take some 20 GB in the temporary folder; with SQLITE_LOAD_DIR they
// are put there, and kept, so that the next run need not make them.
func TestLoad(t *testing.T) {
	rows, _ := strconv.Atoi(os.Getenv("SQLITE_LOAD"))
	if rows == 0 {
		t.Skip("SQLITE_LOAD does not say how many records")
	}
	dir := os.Getenv("SQLITE_LOAD_DIR")
	if dir == "" {
		dir = t.TempDir()
	} else if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "full.db")
	if _, err := os.Stat(path); err != nil {
		making := filepath.Join(dir, "making.db")
		fillLoad(t, making, rows)
		if err := os.Rename(making, path); err != nil {
			t.Fatal(err)
		}
	}
	shell := raw(t, path)
	var count, old int64 // before old are a tenth of the records
	if err := shell.QueryRow(`SELECT (SELECT count(*) FROM record), (SELECT not_after FROM record WHERE not_after IS NOT NULL ORDER BY not_after LIMIT 1 OFFSET ?)`,
		rows/10).Scan(&count, &old); err != nil {
		t.Fatal(err)
	}
	shell.Close()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d records, %d MiB", count, info.Size()>>20)

	t.Run("Enrol", func(t *testing.T) {
		if r := loadtest.Enrol(t, open(t, filepath.Join(dir, "empty.db")), open(t, path), 3000); r > loadtest.MaxRatio {
			t.Errorf("an enrolment takes %.3f of one beside no records, want at most %.3f", r, loadtest.MaxRatio)
		}
	})
	t.Run("EnrolNotCached", func(t *testing.T) {
		loadtest.DropCaches(t, dir)
		loadtest.Enrol(t, open(t, filepath.Join(dir, "empty.db")), open(t, path), 1000)
	})
	full := open(t, path)

	tool := loadtest.NewTool(t, path)
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
		age := fmt.Sprintf("%ds", int(time.Since(time.UnixMicro(old)).Seconds()))
		t.Logf("an enrolment, while records are deleted: %v", loadtest.Beside(t, full, func() {
			tool.Run(t, "prune", "-db", "env:DB", "-expired-for", age)
		}))
	})
	t.Run("Export", func(t *testing.T) {
		if err := raw(t, path).QueryRow(`SELECT count(*) FROM record`).Scan(&count); err != nil {
			t.Fatal(err)
		}
		loadtest.DropCaches(t, dir)
		if lines := tool.Run(t, "export", "-from", "env:DB", "-out", "-"); lines != int(count)+2 {
			t.Errorf("%d lines for %d records, a header and a footer", lines, count)
		}
	})
}

// loadRecords adds records, from one number to another of so many in all, as those of the load
// test of depot/postgres.
const loadRecords = `WITH RECURSIVE number (i) AS (SELECT ?1 UNION ALL SELECT i + 1 FROM number WHERE i < ?2),
	numbered AS (SELECT i, CASE WHEN i % 100 = 1 THEN 1 + i / 100 % 4 WHEN i > ?3 / 2 AND i % 5 = 0 THEN 5 ELSE 3 END AS state FROM number)
	INSERT INTO record (stored, id, trans, version, state, profile, created, changed, issuer, serial, not_after, revoked, revocation_reason,
		unconfirmed, generation, fail_info, transaction_id, remote_addr, subject, csr, template)
	SELECT i, load_hash('id', i), load_hash('trans', i), 2, state, 'profile', ?4 - (?3 - i) * 3000000, ?4, 1, substr(load_hash('serial', i), 1, 20),
		CASE WHEN state IN (2, 3, 5) THEN ?4 + (i - ?3 / 2) * 3000000 END, CASE state WHEN 5 THEN ?4 END, CASE state WHEN 5 THEN i % 7 ELSE 0 END,
		0, 0, 0, hex(load_hash('', i)), '192.0.2.1:1024', 'CN=device-' || i, ?5, ?6
	FROM numbered`

const loadCertificates = `WITH RECURSIVE number (i) AS (SELECT ?1 UNION ALL SELECT i + 1 FROM number WHERE i < ?2)
	INSERT INTO certificate (record, der) SELECT i, ?3 FROM number`

// fillLoad makes a file with so many records. Indexes in which the records come in no order are
// made when most of the records are there, and the last go into them as all do in the course of
// years: so their pages are as full as those.
func fillLoad(t *testing.T, path string, rows int) {
	begun := time.Now()
	os.Remove(path)
	open(t, path).Close()
	if err := driversqlite.RegisterDeterministicScalarFunction("load_hash", 2, func(_ *driversqlite.FunctionContext, args []driver.Value) (driver.Value, error) {
		sum := sha256.Sum256(fmt.Append(nil, args[0], args[1]))
		return sum[:], nil
	}); err != nil {
		t.Fatal(err)
	}
	db := raw(t, path)
	defer db.Close()
	exec := func(statement string, args ...any) {
		t.Helper()
		if _, err := db.ExecContext(t.Context(), statement, args...); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	for _, pragma := range []string{"journal_mode = DELETE", "journal_mode = OFF", "synchronous = OFF", "cache_size = -3000000", "foreign_keys = OFF"} {
		var mode any
		if err := db.QueryRow("PRAGMA " + pragma).Scan(&mode); err != nil && err != sql.ErrNoRows {
			t.Fatal(err)
		}
	}
	exec(`INSERT INTO issuer (number, name) VALUES (1, ?)`, sceptest.NewCA(t).Certificate().RawSubject)
	indexes, err := db.Query(`SELECT name, sql FROM sqlite_schema WHERE name IN ('record_id', 'record_serial', 'record_trans')`)
	if err != nil {
		t.Fatal(err)
	}
	var drop, create []string
	for indexes.Next() {
		var name, statement string
		if err := indexes.Scan(&name, &statement); err != nil {
			t.Fatal(err)
		}
		drop, create = append(drop, "DROP INDEX "+name), append(create, statement)
	}
	if err := indexes.Err(); err != nil || len(create) != 3 {
		t.Fatal(create, err)
	}
	for _, statement := range drop {
		exec(statement)
	}
	now, step := time.Now().UnixMicro(), max(rows/40, 1)
	for from := 1; from <= rows; from += step {
		to := min(from+step-1, rows)
		if from > rows*7/10 && create != nil {
			for _, statement := range create {
				exec(statement)
				t.Logf("after %v: %s", time.Since(begun).Round(time.Second), statement)
			}
			create = nil
		}
		exec(`BEGIN`)
		exec(loadRecords, from, to, rows, now, make([]byte, 330), make([]byte, 300)) // as those of a device with a P-256 key
		exec(loadCertificates, from, to, make([]byte, 560))
		exec(`COMMIT`)
		t.Logf("%d records after %v", to, time.Since(begun).Round(time.Second))
	}
	db.Close()
	open(t, path).Close() // write-ahead logging again
	t.Logf("filled in %v", time.Since(begun).Round(time.Second))
}

// raw opens a file with one connection, as other programs do.
func raw(t *testing.T, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	if err := db.PingContext(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}
