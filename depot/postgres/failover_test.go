package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot/postgres"
	"github.com/scepkit/scepkit/depot/postgres/postgrestest"
	"github.com/scepkit/scepkit/scep"
)

// busy is how soon a call must end, whose Timeout is 1.5 seconds, on a machine that has much to do.
const busy = 3 * time.Second

// pair starts a server with a standby, and opens a depot that knows both.
func pair(t *testing.T, options ...postgrestest.Option) (first, second *postgrestest.Server, db *postgres.DB) {
	t.Helper()
	first = postgrestest.Start(t, postgrestest.Primary)
	second = first.Standby(t, options...)
	return first, second, open(t, postgres.Config{URL: postgrestest.URL("postgres", first, second)})
}

func TestServers(t *testing.T) {
	for url, want := range map[string]map[string]int{
		"postgres://u@a/d?sslmode=disable":                   {"u@a:5432/d": 1},
		"postgres://u@a,b:1,c/d?sslmode=require":             {"u@a:5432/d": 1, "u@b:1/d": 1, "u@c:5432/d": 1},
		"postgres://u@a,b/d?sslmode=prefer":                  {"u@a:5432/d": 2, "u@b:5432/d": 2},
		"postgres://u@/d?host=/a,/b&port=1,2&sslmode=prefer": {"u@/a:1/d": 1, "u@/b:2/d": 1},
	} {
		if got, err := postgres.Servers(url); err != nil || !maps.Equal(got, want) {
			t.Errorf("%s: %v, %v", url, got, err)
		}
	}
}

// What a call has said of a write.
type said int

const (
	notWritten said = iota
	unsaid
	acknowledged
)

// A journal has what was said of writes, each of which is made once.
type journal struct {
	mu      sync.Mutex
	said    map[string]said // by the kind of the write and the name
	slowest time.Duration

	acknowledged int
}

// write makes a write and notes what was said of it. It reports whether it was acknowledged.
func (j *journal) write(t *testing.T, kind, name string, write func() error) bool {
	begun := time.Now()
	err := write()
	took := time.Since(begun)
	what := acknowledged
	switch {
	case err == nil:
	case strings.Contains(err.Error(), "may or may not have been written"):
		what = unsaid
	case strings.Contains(err.Error(), "not written"):
		what = notWritten
	default:
		t.Errorf("%s of %s: %v", kind, name, err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.said[kind+" "+name] = what
	if what == acknowledged {
		j.acknowledged++
	}
	j.slowest = max(j.slowest, took)
	return err == nil
}

// reaches waits until n more writes have been acknowledged.
func (j *journal) reaches(t *testing.T, n int) {
	t.Helper()
	j.mu.Lock()
	n += j.acknowledged
	j.mu.Unlock()
	for begun := time.Now(); ; time.Sleep(time.Millisecond) {
		j.mu.Lock()
		now := j.acknowledged
		j.mu.Unlock()
		if now >= n {
			return
		}
		if time.Since(begun) > patient {
			t.Fatalf("%d writes were acknowledged in %v, want %d", now, patient, n)
		}
	}
}

// load has writers issue records and spend challenges until stop is called, which waits for them.
func load(t *testing.T, db *postgres.DB, writers int) (j *journal, stop func()) {
	j = &journal{said: make(map[string]said)}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				name := fmt.Sprintf("%d-%d", w, i)
				rec, c := record(name), challengeOf(name)
				fine := j.write(t, "Put", name, func() error { return db.PutChallenge(t.Context(), c, c.Created, 0) }) &&
					j.write(t, "Spend", name, func() error {
						by, err := db.SpendChallenge(t.Context(), c.Hash, rec.ID, time.Now())
						if err == nil && by != rec.ID {
							t.Errorf("%s: spent by %.8s", name, by)
						}
						return err
					}) &&
					j.write(t, "Create", name, func() error { return db.Create(t.Context(), rec) }) &&
					j.write(t, "Update", name, func() error {
						rec.State, rec.Certificate = scep.Issued, []byte("certificate")
						return db.Update(t.Context(), rec)
					})
				if !fine {
					pause(ctx, 20*time.Millisecond)
				}
			}
		})
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	return j, func() { cancel(); wg.Wait() }
}

// check compares what was said with what is there.
func (j *journal) check(t *testing.T, db *postgres.DB) {
	t.Helper()
	counts := make(map[said]int)
	for write, said := range j.said {
		counts[said]++
		kind, name, _ := strings.Cut(write, " ")
		var happened bool
		var err error
		switch kind {
		case "Create", "Update":
			var rec *scep.Record
			if rec, err = db.Get(t.Context(), record(name).ID); err == nil {
				happened = kind == "Create" || rec.State == scep.Issued
			}
		case "Put", "Spend":
			var c *scep.OneTimeChallenge
			if c, err = db.GetChallenge(t.Context(), challengeOf(name).Hash); err == nil {
				happened = kind == "Put" || c.SpentBy != ""
			}
		}
		switch {
		case err != nil && !errors.Is(err, scep.ErrNotFound):
			t.Fatal(err)
		case said == acknowledged && !happened:
			t.Errorf("%s was acknowledged and is missing", write)
		case said == notWritten && happened:
			t.Errorf("%s was said not to be written, and is there", write)
		}
	}
	t.Logf("%d writes were acknowledged, %d not written, %d left open; the slowest took %v",
		counts[acknowledged], counts[notWritten], counts[unsaid], j.slowest.Round(time.Millisecond))
	if j.slowest > busy {
		t.Errorf("a call took %v", j.slowest)
	}
}

// written writes something, trying again for a while, and returns how long that took.
func written(t *testing.T, db *postgres.DB, name string) (time.Duration, error) {
	begun := time.Now()
	for {
		err := db.Create(t.Context(), record(name))
		if errors.Is(err, scep.ErrExists) { // it was not known whether it had been written
			err = nil
		}
		if took := time.Since(begun); err == nil || took > healed {
			return took, err
		}
	}
}

// heals waits until something can be written.
func heals(t *testing.T, db *postgres.DB, name string) {
	t.Helper()
	took, err := written(t, db, name)
	if err != nil {
		t.Fatalf("%s: %v later: %v", name, took, err)
	}
	t.Logf("%s: writes again after %v", name, took.Round(time.Millisecond))
}

// TestPromoted kills a server under load, and has its synchronous standby take its place.
func TestPromoted(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, first, second *postgrestest.Server, db *postgres.DB){
		"once it is dead": func(t *testing.T, first, second *postgrestest.Server, db *postgres.DB) {
			first.Kill(t)
			errs, slowest := callAll(t, db, "in between")
			for what, err := range errs {
				if err == nil || slowest > busy {
					t.Errorf("%s: %v after %v at most", what, err, slowest)
				}
			}
			time.Sleep(prompt) // calls that were under way are over
			second.Promote(t)
		},
		"before it is dead": func(t *testing.T, first, second *postgrestest.Server, db *postgres.DB) {
			second.Promote(t)
			first.Kill(t) // calls that are under way learn what has become of them
		},
		"while it hangs": func(t *testing.T, first, second *postgrestest.Server, db *postgres.DB) {
			first.Pause(t)
			second.Promote(t)
			heals(t, db, "promoted while the other hangs")
			first.Resume(t) // and goes on with what it had begun
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first, second, db := pair(t, postgrestest.Synchronous)
			j, stop := load(t, db, 8)
			j.reaches(t, 200)
			change(t, first, second, db)
			heals(t, db, "promoted")
			j.reaches(t, 50)
			stop()
			j.check(t, open(t, postgres.Config{URL: second.URL("postgres")}))
		})
	}
}

// TestOldPrimary has the server come back that a standby has replaced: there are two that can be
// written to.
func TestOldPrimary(t *testing.T) {
	t.Parallel()
	first, second, db := pair(t, postgrestest.Synchronous)
	create(t, db, "before")
	first.Exec(t, "postgres", `ALTER SYSTEM RESET synchronous_standby_names`) // or it could write nothing alone
	first.Kill(t)
	second.Promote(t)
	heals(t, db, "promoted")
	first.Start(t)
	together(10, func(i int) {
		if _, err := written(t, db, fmt.Sprint("both ", i)); err != nil {
			t.Error(err)
		}
	})
	second.Kill(t)
	for i := range 5 {
		if err := db.Create(t.Context(), record(fmt.Sprint("old ", i))); err == nil {
			t.Error("written to the server that was replaced")
		} else if !strings.Contains(err.Error(), "promoted in this server's place") {
			t.Error(err)
		}
	}
	second.Start(t)
	heals(t, db, "back")

	fresh := open(t, postgres.Config{URL: postgrestest.URL("postgres", first, second)})
	for i := range 10 {
		if _, found := there(t, fresh, fmt.Sprint("both ", i)); !found {
			t.Errorf("a depot that is opened now lacks record %d", i)
		}
	}

	first.Exec(t, "postgres", `ALTER SYSTEM SET synchronous_standby_names = 'nobody'`, `SELECT pg_reload_conf()`)
	create(t, open(t, postgres.Config{URL: postgrestest.URL("postgres", first, second), Timeout: 4 * time.Second}), "beside one that hangs")
}

// TestSwitchover has a server and its standby change places, in order and under load, twice.
func TestSwitchover(t *testing.T) {
	t.Parallel()
	first, second, db := pair(t, postgrestest.Synchronous)
	j, stop := load(t, db, 8)
	for i := range 2 {
		j.reaches(t, 50)
		first.Stop(t)
		second.Promote(t)
		first.Follow(t, second)
		heals(t, db, fmt.Sprint("switched ", i))
		first, second = second, first
	}
	stop()
	j.check(t, db)
}

// TestDemoted has the server become read-only that the depot is connected to.
func TestDemoted(t *testing.T) {
	t.Parallel()
	first, second, _ := pair(t, postgrestest.Synchronous)
	db := open(t, postgres.Config{URL: postgrestest.URL("postgres", first, second), Timeout: patient})
	callAll(t, db, "before") // over several connections
	second.Promote(t)
	first.Exec(t, "postgres", `ALTER SYSTEM SET default_transaction_read_only = on`, `SELECT pg_reload_conf()`)
	time.Sleep(100 * time.Millisecond) // until the sessions have heard of it
	together(4, func(i int) {
		if err := db.Create(t.Context(), record(fmt.Sprint("after ", i))); err != nil {
			t.Error(err)
		}
	})
	for i := range 4 {
		if n := count(t, second, fmt.Sprint("after ", i)); n != 1 {
			t.Errorf("the server that was promoted has %d such records", n)
		}
	}
}

// TestAwayUnderLoad takes the synchronous standby away under load, and gives it back.
func TestAwayUnderLoad(t *testing.T) {
	t.Parallel()
	first, second, db := pair(t, postgrestest.Synchronous)
	create(t, db, "there")
	look := shell(t, first.URL("postgres"))
	j, stop := load(t, db, 8)
	j.reaches(t, 50)
	second.Kill(t)
	time.Sleep(prompt)
	for range 50 {
		if err := db.Create(t.Context(), record("away")); err == nil || errors.Is(err, scep.ErrExists) {
			t.Fatalf("Create: %v", err)
		}
		if rec, found := there(t, db, "away"); found {
			t.Fatalf("a record is shown that the standby does not have: %+v", rec)
		}
	}
	var sessions int
	if err := look.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'scepkit'`).Scan(&sessions); err != nil || sessions > 30 {
		t.Errorf("there are %d sessions, %v", sessions, err)
	}
	second.Start(t)
	heals(t, db, "back")
	stop()
	j.check(t, db)
}

// TestShownAfterRestart restarts a server whose synchronous standby is away: PostgreSQL itself
// then shows what it had written but not acknowledged.
func TestShownAfterRestart(t *testing.T) {
	t.Parallel()
	first, second, db := pair(t, postgrestest.Synchronous)
	create(t, db, "there")
	second.Pause(t)
	if err := db.Create(t.Context(), record("new")); err == nil || !strings.Contains(err.Error(), "may or may not") {
		t.Fatal(err)
	}
	first.Kill(t)
	first.Start(t)
	if n := count(t, first, "new"); n != 1 {
		t.Fatalf("there are %d such records in the server; this test needs one", n)
	}
	if rec, err := db.Get(t.Context(), record("new").ID); err == nil {
		t.Errorf("a record is shown that the standby does not have: %+v", rec)
	}
	if err := db.Create(t.Context(), record("new")); err == nil || errors.Is(err, scep.ErrExists) {
		t.Errorf("Create again: %v", err)
	}
	second.Resume(t)
	heals(t, db, "back")
	if _, found := there(t, db, "new"); !found {
		t.Error("a record is gone")
	}
}

// count asks a server itself how many records there are with a name.
func count(t *testing.T, s *postgrestest.Server, name string) (n int) {
	t.Helper()
	if err := shell(t, s.URL("postgres")).QueryRow(t.Context(), `SELECT count(*) FROM scep.record WHERE transaction_id = $1`, name).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
