package postgres_test

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/scepkit/scepkit/scep/sceptest"
)

// loadRecords adds records to the tables, from one number to another of so many in all. The first
// half of the certificates has expired, and a fifth of the other is revoked. Of a hundred records
// one is in another state. Whoever knows the number of a record knows all of it.
const loadRecords = `INSERT INTO record (id, trans, version, origin, latest, state, profile, created, changed, issuer, serial, not_after,
		revoked, revocation_reason, unconfirmed, generation, fail_info, transaction_id, remote_addr, subject, csr, template, certificate)
	SELECT sha256(('id' || i)::bytea), sha256(('trans' || i)::bytea), 2, i, i, s.state, 'profile',
		c.now - (%[3]d - i) * interval '3 seconds', c.now, (SELECT max(number) FROM issuer), substr(sha256(('serial' || i)::bytea), 1, 20),
		CASE WHEN s.state IN (2, 3, 5) THEN c.now + (i - %[3]d / 2) * interval '3 seconds' END, CASE s.state WHEN 5 THEN c.now END, CASE s.state WHEN 5 THEN i %% 7 ELSE 0 END,
		false, 0, 0, encode(sha256(i::text::bytea), 'hex'), '192.0.2.1:1024', 'CN=device-' || i,
		c.csr, c.template, c.certificate
	FROM generate_series(%[1]d, %[2]d) AS i,
		(SELECT now(), substr(b, 1, 700) AS csr, substr(b, 1, 600) AS template, substr(b, 1, 1000) AS certificate FROM decode(repeat(md5('x'), 70), 'hex') AS b) AS c,
		LATERAL (SELECT CASE WHEN i %% 100 = 1 THEN 1 + i / 100 %% 4 WHEN i > %[3]d / 2 AND i %% 5 = 0 THEN 5 ELSE 3 END AS state) AS s`

// fillLoad fills an empty database. Into a table that is as new as its transaction the server
// writes without a log, and indexes that are made in the end are sorted rather than searched.
func fillLoad(t *testing.T, url string, rows int) {
	ctx := t.Context()
	begun := time.Now()
	c := shell(t, url)
	tx, err := c.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	exec := func(statement string, args ...any) {
		t.Helper()
		if _, err := tx.Exec(ctx, statement, args...); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	exec(`SET LOCAL search_path = scep`)
	exec(`SET LOCAL maintenance_work_mem = '512MB'`)
	exec(`TRUNCATE record`)
	exec(`INSERT INTO issuer (name) VALUES ($1)`, sceptest.NewCA(t).Certificate().RawSubject)

	// The primary key is the only one that is a constraint.
	indexes, err := tx.Query(ctx, `SELECT format('DROP INDEX %I', indexname), indexdef FROM pg_indexes
		WHERE schemaname = 'scep' AND tablename = 'record' AND indexname <> 'record_pkey'`)
	if err != nil {
		t.Fatal(err)
	}
	drop, create := []string{`ALTER TABLE record DROP CONSTRAINT record_pkey`}, []string{`ALTER TABLE record ADD PRIMARY KEY (id)`}
	for indexes.Next() {
		var d, c string
		if err := indexes.Scan(&d, &c); err != nil {
			t.Fatal(err)
		}
		drop, create = append(drop, d), append(create, c)
	}
	if err := indexes.Err(); err != nil {
		t.Fatal(err)
	}
	for _, statement := range drop {
		exec(statement)
	}
	const step = 250_000
	for from := 1; from <= rows; from += step {
		to := min(from+step-1, rows)
		exec(fmt.Sprintf(loadRecords, from, to, rows))
		t.Logf("%d records after %v", to, time.Since(begun).Round(time.Second))
	}
	for _, statement := range create {
		exec(statement)
		t.Logf("after %v: %s", time.Since(begun).Round(time.Second), bytes.ToLower([]byte(statement)))
	}
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Exec(ctx, fmt.Sprintf(fillChallenges, 20_000)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Exec(ctx, `VACUUM (ANALYZE, PROCESS_TOAST false) scep.record, scep.challenge`); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Exec(ctx, `CHECKPOINT`); err != nil {
		t.Fatal(err)
	}
	t.Logf("filled in %v", time.Since(begun).Round(time.Second))
}

// filled reports whether a database has so many records or thereabouts: pruning takes some away.
func filled(t *testing.T, c *pgx.Conn, rows int) bool {
	t.Helper()
	var there int
	if err := c.QueryRow(t.Context(), `SELECT count(*) FROM (SELECT 1 FROM scep.record LIMIT $1) AS r`, rows/2).Scan(&there); err != nil {
		t.Fatal(err)
	}
	return there >= rows/2
}
