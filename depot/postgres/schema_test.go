package postgres_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/scepkit/scepkit/depot/postgres"
	"github.com/scepkit/scepkit/depot/postgres/postgrestest"
	"github.com/scepkit/scepkit/scep"
)

// databaseOf returns the name in the URL of a database.
func databaseOf(url string) string {
	before, _, _ := strings.Cut(url, "?")
	return before[strings.LastIndex(before, "/")+1:]
}

// as returns the URL for another role.
func as(url, role string) string { return strings.Replace(url, "postgres@", role+"@", 1) }

func shell(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(t.Context()) })
	return c
}

// TestOpenTogether has four processes, and several in each of them, open a database that has no
// tables yet.
func TestOpenTogether(t *testing.T) {
	if url := os.Getenv("POSTGRES_OPEN"); url != "" {
		openTogether(t, url)
		return
	}
	url := postgrestest.Shared(t).Database(t)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			cmd := exec.Command(os.Args[0], "-test.run=^TestOpenTogether$")
			cmd.Env = append(os.Environ(), "POSTGRES_OPEN="+url, fmt.Sprint("POSTGRES_NAME=", i))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	wg.Wait()
	db := open(t, postgres.Config{URL: url})
	for i := range 4 {
		for j := range 4 {
			if _, found := there(t, db, fmt.Sprintf("%d-%d", i, j)); !found {
				t.Errorf("record %d of process %d is not there", j, i)
			}
		}
	}
	var versions, distinct int
	if err := shell(t, url).QueryRow(t.Context(), `SELECT count(*), count(DISTINCT version) FROM scep.migration`).Scan(&versions, &distinct); err != nil ||
		versions != postgres.Migrations || distinct != versions {
		t.Errorf("%d migrations, %d of them different, %v; want %d", versions, distinct, err, postgres.Migrations)
	}
}

func openTogether(t *testing.T, url string) {
	var wg sync.WaitGroup
	for j := range 4 {
		wg.Go(func() {
			db, err := postgres.Open(t.Context(), postgres.Config{URL: url, Timeout: patient})
			if err != nil {
				t.Error(err)
				return
			}
			defer db.Close()
			if err := db.Create(t.Context(), record(fmt.Sprintf("%s-%d", os.Getenv("POSTGRES_NAME"), j))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// TestRights serves with the rights that the documentation lists, and not without the tables.
func TestRights(t *testing.T) {
	server := postgrestest.Shared(t)
	url := server.Database(t)
	role := "reader_" + databaseOf(url)
	server.Exec(t, databaseOf(url), `CREATE ROLE `+role+` LOGIN`)
	t.Cleanup(func() { server.Exec(t, databaseOf(url), `DROP OWNED BY `+role, `DROP ROLE `+role) })

	db, err := postgres.Open(t.Context(), postgres.Config{URL: as(url, role)})
	if err == nil {
		db.Close()
		t.Fatal("a role without rights could make tables")
	}
	if !strings.Contains(err.Error(), "open it once as a role that may create it") {
		t.Error(err)
	}
	open(t, postgres.Config{URL: url}).Close()
	if db, err = postgres.Open(t.Context(), postgres.Config{URL: as(url, role)}); err == nil {
		db.Close()
		t.Fatal("a role without rights could read the tables")
	}
	if !strings.Contains(err.Error(), "grant what the package documentation lists") {
		t.Error(err)
	}
	server.Exec(t, databaseOf(url), `GRANT USAGE ON SCHEMA scep TO `+role,
		`GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA scep TO `+role)
	db = open(t, postgres.Config{URL: as(url, role)})
	create(t, db, "there")
	put(t, db, "there")
	errs, _ := callAll(t, db, "new")
	for what, err := range errs {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	server := postgrestest.Shared(t)
	newer := server.Database(t)
	open(t, postgres.Config{URL: newer}).Close()
	server.Exec(t, databaseOf(newer), `INSERT INTO scep.migration (version) VALUES (99)`)
	latin := server.Database(t)
	server.Exec(t, "postgres", `DROP DATABASE `+databaseOf(latin),
		`CREATE DATABASE `+databaseOf(latin)+` TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'`)

	const password = "hunter2:/@#"
	secret := strings.Replace(newer, "postgres@", "postgres:hunter2%3A%2F%40%23@", 1)
	for _, tt := range []struct {
		name   string
		config postgres.Config
		want   string
	}{
		{"no URL", postgres.Config{}, "Config.URL is required"},
		{"a URL that is none", postgres.Config{URL: "postgres://user:" + password + "@host:port/db"}, "cannot be parsed"},
		{"an unknown setting", postgres.Config{URL: "postgres://u:hunter2@localhost/db?sslmode=hunter2"}, "cannot be parsed"},
		{"a file that is not there", postgres.Config{URL: "postgres://u:" + password + "@h/db?sslmode=verify-full&sslrootcert=/no/such/file"}, "cannot be"},
		{"negative connections", postgres.Config{URL: newer, MaxConns: -1}, "MaxConns"},
		{"no time", postgres.Config{URL: newer, Timeout: time.Millisecond}, "Timeout"},
		{"nobody there", postgres.Config{URL: "postgres://u:hunter2%3A%2F%40%23@/db?host=/no/such/folder"}, "cannot connect"},
		{"no such database", postgres.Config{URL: strings.Replace(secret, databaseOf(newer), "missing", 1)}, "create it"},
		{"no such role", postgres.Config{URL: strings.Replace(secret, "postgres:hunter2", "missing:hunter2", 1)}, "check the password"},
		{"newer", postgres.Config{URL: secret}, "newer version"},
		{"encoding", postgres.Config{URL: latin}, "UTF8"},
	} {
		begun := time.Now()
		db, err := postgres.Open(t.Context(), tt.config)
		if err == nil {
			db.Close()
			t.Errorf("%s: was opened", tt.name)
			continue
		}
		if took := time.Since(begun); took > prompt {
			t.Errorf("%s: took %v", tt.name, took)
		}
		if !strings.HasPrefix(err.Error(), "postgres: ") || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", tt.name, err, tt.want)
		}
		for _, printed := range []string{err.Error(), fmt.Sprintf("%#v", err), fmt.Sprintf("%v %+v %#v %s", tt.config, tt.config, tt.config, tt.config)} {
			if strings.Contains(printed, "hunter2") {
				t.Errorf("%s: the password is in %s", tt.name, printed)
			}
		}
	}
}

// TestDurable has a server, or a role, that would not wait for the disk.
func TestDurable(t *testing.T) {
	server := postgrestest.Shared(t)
	url := server.Database(t)
	server.Exec(t, databaseOf(url), `ALTER DATABASE `+databaseOf(url)+` SET synchronous_commit = off`,
		`ALTER DATABASE `+databaseOf(url)+` SET default_transaction_isolation = 'serializable'`)
	db := open(t, postgres.Config{URL: url})
	db2 := shell(t, url)
	var theirs string
	if err := db2.QueryRow(t.Context(), `SHOW synchronous_commit`).Scan(&theirs); err != nil || theirs != "off" {
		t.Fatalf("others have %s, %v", theirs, err)
	}
	// What the depot's own session has shows in a rule that refuses anything else.
	server.Exec(t, databaseOf(url), `SET search_path = scep`, `CREATE FUNCTION strict() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		IF current_setting('synchronous_commit') <> 'on' OR current_setting('transaction_isolation') <> 'read committed' OR
			current_setting('plan_cache_mode') <> 'force_generic_plan' OR current_setting('jit') <> 'off' THEN
			RAISE EXCEPTION '% % % %', current_setting('synchronous_commit'), current_setting('transaction_isolation'),
				current_setting('plan_cache_mode'), current_setting('jit');
		END IF; RETURN new; END $$`, `CREATE TRIGGER strict BEFORE INSERT OR UPDATE ON record FOR EACH ROW EXECUTE FUNCTION strict()`,
		`CREATE TRIGGER strict BEFORE INSERT OR UPDATE ON challenge FOR EACH ROW EXECUTE FUNCTION strict()`)
	create(t, db, "x")
	put(t, db, "x")
}

// TestView reads the tables as people do.
func TestView(t *testing.T) {
	url := postgrestest.Shared(t).Database(t)
	db := open(t, postgres.Config{URL: url})
	rec := record("view")
	rec.TransactionID = "a\x00b\\c\xff"
	if err := db.Create(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	var state, serial, transaction string
	if err := shell(t, url).QueryRow(t.Context(), `SELECT state, serial, transaction_id FROM scep.certificates`).Scan(&state, &serial, &transaction); err != nil {
		t.Fatal(err)
	}
	if state != "signing" || serial != fmt.Sprintf("%040x", rec.Serial) || transaction != `a\x00b\\c\xff` {
		t.Errorf("state %q, serial %q, transaction %q", state, serial, transaction)
	}
}

func TestClosed(t *testing.T) {
	db := open(t, postgres.Config{URL: postgrestest.Shared(t).Database(t)})
	var wg sync.WaitGroup
	for i := range 16 { // some of them are on their way when it closes
		wg.Go(func() { db.Create(t.Context(), record(fmt.Sprint(i))) })
	}
	wg.Go(func() { db.Close() })
	wg.Wait()
	if err := db.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}
	errs, _ := callAll(t, db, "x")
	for what, err := range errs {
		if err == nil || errors.Is(err, scep.ErrNotFound) || !strings.Contains(err.Error(), "is closed") {
			t.Errorf("%s after Close: %v", what, err)
		}
	}
}
