package postgres_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/scepkit/scepkit/depot/postgres"
	"github.com/scepkit/scepkit/depot/postgres/postgrestest"
)

// fill adds records to the tables, from one number to another of so many in all: half of the
// certificates have expired, and of a hundred records one is not issued, or not always.
const fill = `
	INSERT INTO scep.issuer (name) VALUES ('issuer') ON CONFLICT DO NOTHING;
	INSERT INTO scep.record (id, trans, version, origin, latest, state, profile, created, changed, issuer, serial, not_after,
		revocation_reason, unconfirmed, generation, fail_info, transaction_id, remote_addr, subject, csr, template, certificate)
	SELECT sha256(('id' || i)::bytea), sha256(('trans' || i)::bytea), 2, i, i, CASE WHEN i %% 100 = 0 THEN 1 + i / 100 %% 5 ELSE 3 END, 'profile',
		now() - (%[3]d - i) * interval '3 seconds', now(), (SELECT max(number) FROM scep.issuer), substr(sha256(('serial' || i)::bytea), 1, 20),
		now() + (i - %[3]d / 2) * interval '3 seconds', 0, false, 0, 0, encode(sha256(i::text::bytea), 'hex'), '192.0.2.1:1024', 'CN=device-' || i,
		substr(blob.b, 1, 700), substr(blob.b, 1, 600), substr(blob.b, 1, 1000)
	FROM generate_series(%[1]d, %[2]d) AS i, (SELECT decode(repeat(md5('x'), 70), 'hex') AS b) AS blob`

// fillChallenges adds so many challenges. One in a hundred is unspent.
const fillChallenges = `
	INSERT INTO scep.challenge (hash, profile, created, expires, spent, spent_by, forget)
	SELECT sha256(('challenge' || i)::bytea), 'profile', now(), now() + i * interval '1 second',
		CASE WHEN i %% 100 <> 0 THEN now() END, CASE WHEN i %% 100 <> 0 THEN sha256(('id' || i)::bytea) END, now() + i * interval '1 second'
	FROM generate_series(1, %d) AS i`

// TestPlans has no query look at all rows of a table, or sort them: each costs the same however
// many records there are. The plans are those that serve any arguments.
func TestPlans(t *testing.T) {
	server := postgrestest.Shared(t)
	url := server.Database(t)
	open(t, postgres.Config{URL: url})
	const rows = 20_000
	for _, step := range []struct {
		name       string
		statements []string
	}{
		{"empty", nil},
		{"without statistics", []string{fmt.Sprintf(fill, 1, rows, rows), fmt.Sprintf(fillChallenges, rows)}}, // as after an import
		{"with statistics", []string{`ANALYZE scep.record, scep.challenge, scep.issuer`}},
	} {
		t.Run(step.name, func(t *testing.T) {
			server.Exec(t, databaseOf(url), step.statements...)
			checkPlans(t, shell(t, url))
		})
	}
}

// checkPlans looks at the plan of each query on the server.
func checkPlans(t *testing.T, c *pgx.Conn) {
	t.Helper()
	for _, set := range []string{`SET search_path = scep`, `SELECT ` + postgres.PlanSettings} {
		if _, err := c.Exec(t.Context(), set); err != nil {
			t.Fatal(err)
		}
	}
	parameter := regexp.MustCompile(`\$\d+`)
	for name, query := range postgres.Queries {
		highest := 0
		for _, p := range parameter.FindAllString(query, -1) {
			var n int
			fmt.Sscanf(p, "$%d", &n)
			highest = max(highest, n)
		}
		arguments := "" // as many as there are parameters
		if highest > 0 {
			arguments = "(" + strings.TrimSuffix(strings.Repeat("NULL,", highest), ",") + ")"
		}
		if _, err := c.Exec(t.Context(), `PREPARE `+name+` AS `+query); err != nil {
			t.Errorf("%s: %v", query, err)
			continue
		}
		lines, err := c.Query(t.Context(), `EXPLAIN EXECUTE `+name+arguments)
		if err != nil {
			t.Fatal(err)
		}
		var plan strings.Builder
		for lines.Next() {
			var line string
			if err := lines.Scan(&line); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(&plan, line)
		}
		if err := lines.Err(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		small := strings.ReplaceAll(plan.String(), "Seq Scan on issuer", "")   // it has one row
		sorts := strings.Contains(small, "Sort") && name != "listChangedSince" // which looks at what has changed, and no more
		if strings.Contains(small, "Seq Scan") || sorts || !strings.Contains(small, "Index") && !strings.HasPrefix(small, "Insert") {
			t.Errorf("%s: %s\n%s", name, query, &plan)
		}
		if name == "listChangedSince" && strings.Count(small, "_since on record") != 2 {
			t.Errorf("%s does not go by what has changed, to have it in order:\n%s", name, &plan)
		}
	}
}
