package postgres_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot/postgres"
	"github.com/scepkit/scepkit/depot/postgres/postgrestest"
	"github.com/scepkit/scepkit/scep"
)

// prompt and healed are how soon a call must end while the database is away, and how soon the
// next must work when it is back.
const (
	prompt = 2 * time.Second
	healed = 5 * time.Second
)

// callAll makes every kind of call at once and returns what became of each, and of how long the
// slowest took.
func callAll(t *testing.T, db *postgres.DB, name string) (map[string]error, time.Duration) {
	ctx := t.Context()
	rec, changed := record(name), record("there")
	changed.Version = 1
	calls := map[string]func() error{
		"Create":    func() error { return db.Create(ctx, rec) },
		"Update":    func() error { return db.Update(ctx, changed) },
		"Get":       func() error { _, err := db.Get(ctx, changed.ID); return err },
		"Latest":    func() error { _, err := db.Latest(ctx, changed.ID); return err },
		"GetSerial": func() error { _, err := db.GetSerial(ctx, changed.Issuer, changed.Serial); return err },
		"List":      func() error { _, err := db.List(ctx, scep.Query{}); return err },
		"GetChallenge": func() error {
			_, err := db.GetChallenge(ctx, challengeOf("there").Hash)
			return err
		},
		"SpendChallenge": func() error {
			_, err := db.SpendChallenge(ctx, challengeOf("there").Hash, rec.ID, rec.Created)
			return err
		},
		"PutChallenge": func() error { return db.PutChallenge(ctx, challengeOf(name), rec.Created, 10) },
		"Prune":        func() error { _, err := db.Prune(ctx, scep.PruneQuery{Expired: time.Unix(0, 0)}); return err },
		"Load":         func() error { return db.Load(ctx, []*scep.Record{record("load " + name)}) },
		"Scan":         func() error { return db.Scan(ctx, func([]*scep.Record, float64) error { return nil }) },
		"Revocations": func() error {
			return db.Revocations(ctx, scep.RevocationQuery{}, func(scep.Revocation) error { return nil })
		},
	}
	var mu sync.Mutex
	var slowest time.Duration
	errs := make(map[string]error)
	var wg sync.WaitGroup
	for what, call := range calls {
		wg.Go(func() {
			begun := time.Now()
			err := call()
			mu.Lock()
			defer mu.Unlock()
			errs[what], slowest = err, max(slowest, time.Since(begun))
		})
	}
	wg.Wait()
	return errs, slowest
}

// away holds every call to what is promised while the database is away, and waits until it is
// back.
func away(t *testing.T, db *postgres.DB, name string, remote func(what string) bool, repair func()) {
	t.Helper()
	for round := range 2 {
		errs, slowest := callAll(t, db, fmt.Sprint(name, round))
		for what, err := range errs {
			if !remote(what) {
				continue
			}
			if err == nil {
				t.Errorf("%s: %s did as if nothing were wrong", name, what)
			}
			for _, wrong := range []error{scep.ErrNotFound, scep.ErrExists, scep.ErrStale, scep.ErrLimit} {
				if errors.Is(err, wrong) {
					t.Errorf("%s: %s: %v", name, what, err)
				}
			}
		}
		if slowest > prompt {
			t.Errorf("%s: a call took %v", name, slowest)
		}
	}
	repair()
	begun := time.Now()
	for {
		_, err := db.Get(t.Context(), record("there").ID)
		if err == nil {
			err = db.Create(t.Context(), record(fmt.Sprint(name, "repaired", time.Since(begun))))
		}
		if err == nil {
			break
		}
		if time.Since(begun) > healed {
			t.Fatalf("%s: %v after the repair: %v", name, time.Since(begun), err)
		}
	}
	t.Logf("%s: works %v after the repair", name, time.Since(begun).Round(time.Millisecond))
}

func all(string) bool { return true }

func writes(what string) bool {
	return !strings.HasPrefix(what, "Get") && what != "List" && what != "Latest" && what != "Revocations"
}

// TestAway takes the database away in several ways and gives it back.
func TestAway(t *testing.T) {
	server := postgrestest.Start(t)
	url := server.Database(t)
	var log bytes.Buffer
	db := open(t, postgres.Config{URL: url, Log: slog.New(slog.NewTextHandler(&log, nil))})
	create(t, db, "there")
	put(t, db, "there")
	callAll(t, db, "warm") // statements are prepared, connections open
	there, _ := there(t, db, "there")

	server.Pause(t)
	away(t, db, "paused", all, func() { server.Resume(t) })

	server.Stop(t)
	away(t, db, "stopped", all, func() { server.Start(t) })

	server.Kill(t)
	away(t, db, "killed", all, func() { server.Start(t) })

	server.Exec(t, "postgres", `ALTER SYSTEM SET default_transaction_read_only = on`, `SELECT pg_reload_conf()`)
	time.Sleep(100 * time.Millisecond) // until the sessions have heard of it
	away(t, db, "read-only", writes, func() {
		server.Exec(t, "postgres", `SET default_transaction_read_only = off`,
			`ALTER SYSTEM RESET default_transaction_read_only`, `SELECT pg_reload_conf()`)
	})

	database := databaseOf(url)
	server.Exec(t, database, `SET search_path = scep;
		CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no space left on device' USING ERRCODE = 'disk_full'; END $$;
		CREATE TRIGGER t BEFORE INSERT OR UPDATE ON record EXECUTE FUNCTION full_disk()`)
	err := db.Create(t.Context(), record("disk full"))
	if err == nil || !strings.Contains(err.Error(), "not written") || !strings.Contains(err.Error(), "free some") {
		t.Errorf("disk full: %v", err)
	}
	server.Exec(t, database, `DROP TRIGGER t ON scep.record`)
	create(t, db, "disk full")

	// Every call in a row hung or failed, and none has changed anything but what it said.
	if now, _ := db.Get(t.Context(), there.ID); now.Version > there.Version+1 {
		t.Errorf("version was %d, and is %d", there.Version, now.Version)
	}
	db.Close()
	if n := strings.Count(log.String(), "database lost"); n < 3 || n != strings.Count(log.String(), "database is back") {
		t.Errorf("the log tells of %d losses:\n%s", n, &log)
	}
}

// TestKill9 kills the server again and again while records are being issued: what had been
// acknowledged is there, and a record that exists goes on.
func TestKill9(t *testing.T) {
	server := postgrestest.Start(t, postgrestest.Durable)
	db := open(t, postgres.Config{URL: server.Database(t)})
	rounds := 3
	if testing.Short() {
		rounds = 2
	}
	type said struct {
		version int64
		serial  string
	}
	var mu sync.Mutex
	acknowledged := map[string]said{}
	say := func(rec *scep.Record) {
		mu.Lock()
		defer mu.Unlock()
		if was, known := acknowledged[rec.TransactionID]; known && was.serial != rec.Serial.String() {
			t.Errorf("%s: acknowledged with serial numbers %s and %s", rec.TransactionID, was.serial, rec.Serial)
		}
		acknowledged[rec.TransactionID] = said{rec.Version, rec.Serial.String()}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var doubts atomic.Int64
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				// As the server does: whatever an error may mean, look, and go on from there.
				name := fmt.Sprintf("%d-%d", w, i)
				for tries := int64(0); ctx.Err() == nil; tries++ {
					rec, err := db.Get(t.Context(), record(name).ID)
					switch {
					case errors.Is(err, scep.ErrNotFound):
						rec = record(name)
						rec.Serial = record(fmt.Sprint(name, "try", tries)).Serial // another each time
						err = db.Create(t.Context(), rec)
					case err == nil && rec.State == scep.Signing:
						rec.State, rec.Certificate = scep.Issued, []byte("certificate")
						err = db.Update(t.Context(), rec)
					case err == nil && rec.State == scep.Issued:
						say(rec)
						tries = -1
					}
					if tries < 0 {
						break
					}
					if err == nil {
						say(rec)
					} else if errors.Is(err, scep.ErrExists) || errors.Is(err, scep.ErrStale) {
						t.Errorf("%s: nobody else writes it: %v", name, err)
					} else {
						doubts.Add(1)
						pause(ctx, 20*time.Millisecond)
					}
				}
			}
		})
	}
	for range rounds {
		time.Sleep(300 * time.Millisecond)
		server.Kill(t)
		time.Sleep(50 * time.Millisecond)
		server.Start(t)
	}
	time.Sleep(300 * time.Millisecond)
	cancel()
	wg.Wait()
	if len(acknowledged) < 50 {
		t.Fatalf("%d records were acknowledged; the test needs more", len(acknowledged))
	}
	t.Logf("%d records acknowledged, %d calls failed", len(acknowledged), doubts.Load())
	for name, want := range acknowledged {
		rec, err := db.Get(t.Context(), record(name).ID)
		if err != nil || rec.Version < want.version || rec.Serial.String() != want.serial || rec.Version > 2 {
			t.Errorf("%s: %+v, %v; version %d with serial number %s was acknowledged", name, rec, err, want.version, want.serial)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// TestFailover has two servers in the URL, of which one can be written to.
func TestFailover(t *testing.T) {
	standby, primary := postgrestest.Start(t, postgrestest.Setting("default_transaction_read_only", "on")), postgrestest.Start(t)
	both := fmt.Sprintf("host=%s,%s port=5432,5432 user=postgres dbname=postgres sslmode=disable", standby.Dir(), primary.Dir())
	db := open(t, postgres.Config{URL: both})
	create(t, db, "first")

	_, err := postgres.Open(t.Context(), postgres.Config{URL: standby.URL("postgres")})
	if err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("Open of a server that is read-only: %v", err)
	}

	primary.Stop(t)
	if err := db.Create(t.Context(), record("second")); err == nil {
		t.Error("written to a server that was stopped, or to a standby")
	}
	primary.Start(t)
	create(t, db, "second")
}

// TestStandbyAway has commits wait for a standby that is not there. Nothing is acknowledged, nor
// shown to anybody, that the standby does not have.
func TestStandbyAway(t *testing.T) {
	server := postgrestest.Start(t, postgrestest.Setting("wal_level", "replica"), postgrestest.Setting("max_wal_senders", "4"))
	db := open(t, postgres.Config{URL: server.URL("postgres")})
	create(t, db, "there")
	server.Exec(t, "postgres", `ALTER SYSTEM SET synchronous_standby_names = 'nobody'`, `SELECT pg_reload_conf()`)
	time.Sleep(100 * time.Millisecond)

	changed, _ := there(t, db, "there")
	changed.State = scep.Issued
	together(2, func(i int) {
		begun := time.Now()
		var err error
		if i == 0 {
			err = db.Create(t.Context(), record("new"))
		} else {
			err = db.Update(t.Context(), changed)
		}
		if err == nil || !strings.Contains(err.Error(), "may or may not") || time.Since(begun) > prompt {
			t.Errorf("%d: %v after %v", i, err, time.Since(begun))
		}
	})
	if rec, found := there(t, db, "new"); found {
		t.Errorf("a record is shown that the standby does not have: %+v", rec)
	}
	if rec, _ := there(t, db, "there"); rec.State == scep.Issued {
		t.Error("a change is shown that the standby does not have")
	}
	for _, name := range []string{"new", "newer"} { // those two wait already; this one does not begin to
		if err := db.Create(t.Context(), record(name)); err == nil || !strings.Contains(err.Error(), "not written: the server waits for its synchronous standby") {
			t.Errorf("Create: %v", err)
		}
	}

	server.Exec(t, "postgres", `SET synchronous_commit = local`, `ALTER SYSTEM RESET synchronous_standby_names`, `SELECT pg_reload_conf()`)
	time.Sleep(100 * time.Millisecond)
	if err := db.Create(t.Context(), record("new")); !errors.Is(err, scep.ErrExists) {
		t.Errorf("Create when the standby is not waited for: %v", err)
	}
	if rec, _ := there(t, db, "there"); rec.State != scep.Issued || rec.Version != 2 {
		t.Errorf("the change is %v, version %d", rec.State, rec.Version)
	}
}

// TestHangUp has callers who give up at any moment: that costs no connection.
func TestHangUp(t *testing.T) {
	server := postgrestest.Shared(t)
	url := server.Database(t)
	db := open(t, postgres.Config{URL: url, MaxConns: 2, Timeout: patient})
	create(t, db, "there")
	look := shell(t, url)
	sessions := func() (pids string) {
		t.Helper()
		if err := look.QueryRow(t.Context(), `SELECT coalesce(string_agg(pid::text, ',' ORDER BY pid), '') FROM pg_stat_activity
			WHERE application_name = 'scepkit' AND datname = current_database()`).Scan(&pids); err != nil {
			t.Fatal(err)
		}
		return pids
	}
	together(8, func(i int) {
		if _, err := db.Get(t.Context(), record("there").ID); err != nil {
			t.Error(err)
		}
	})
	before := sessions()
	together(100, func(i int) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*100*time.Microsecond)
		defer cancel()
		db.Create(ctx, record(fmt.Sprint("hang up ", i)))
	})
	if after := sessions(); after != before {
		t.Errorf("sessions were %s, and are %s", before, after)
	}
}

// TestCloseWhileHanging closes a depot whose server answers nothing: nothing is left over.
func TestCloseWhileHanging(t *testing.T) {
	server := postgrestest.Start(t)
	url := server.Database(t)
	before := runtime.NumGoroutine()
	db := open(t, postgres.Config{URL: url})
	callAll(t, db, "there")
	server.Pause(t)
	callAll(t, db, "away")
	begun := time.Now()
	if err := db.Close(); err != nil {
		t.Error(err)
	}
	for runtime.NumGoroutine() > before {
		if time.Since(begun) > prompt {
			stacks := make([]byte, 1<<16)
			t.Fatalf("there were %d goroutines before, and are %d:\n%s", before, runtime.NumGoroutine(), stacks[:runtime.Stack(stacks, true)])
		}
		time.Sleep(time.Millisecond)
	}
}
