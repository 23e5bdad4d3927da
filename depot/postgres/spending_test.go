package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot/postgres"
	"github.com/scepkit/scepkit/depot/postgres/postgrestest"
	"github.com/scepkit/scepkit/scep"
)

// TestLostRefusal loses the connection, at every request and every moment, of a CreateSpending that
// is to be refused: the refusal is learnt all the same.
func TestLostRefusal(t *testing.T) {
	server := postgrestest.Shared(t)
	url := server.Database(t)
	direct := open(t, postgres.Config{URL: url, Timeout: patient})
	create(t, direct, "there")
	put(t, direct, "spent")
	if _, err := direct.SpendChallenge(t.Context(), challengeOf("spent").Hash, record("another").ID, time.Now()); err != nil {
		t.Fatal(err)
	}
	for want, refused := range map[error]struct{ record, challenge string }{
		scep.ErrExists:   {"there", "spent"},
		scep.ErrSpent:    {"new", "spent"},
		scep.ErrNotFound: {"new", "missing"},
	} {
		for _, cut := range postgrestest.Cuts {
			if cut == postgrestest.Hang {
				continue // it takes a while, and is the same
			}
			t.Run(fmt.Sprint(want, "/", cut), func(t *testing.T) {
				t.Parallel()
				proxy := server.Proxy(t)
				for skip, lost := 0, true; lost; skip++ {
					db := open(t, postgres.Config{URL: proxy.URL(url), MaxConns: 1, Timeout: patient})
					proxy.Arm(cut, skip)
					rec := record(refused.record)
					err := db.CreateSpending(t.Context(), rec, challengeOf(refused.challenge).Hash, time.Now())
					lost = proxy.Disarm()
					if !errors.Is(err, want) || rec.Version != 0 {
						t.Errorf("request %d: %v, version %d", skip, err, rec.Version)
					}
					db.Close()
				}
				if _, found := there(t, direct, "new"); found {
					t.Error("there is a record")
				}
			})
		}
	}
}

// TestLateSpending has a CreateSpending arrive after its caller has been told that it may or may not
// have happened. Both have happened, or neither.
func TestLateSpending(t *testing.T) {
	server := postgrestest.Start(t)
	db := open(t, postgres.Config{URL: server.Database(t), MaxConns: 2})
	for i := range 2 { // so that the statements are prepared
		put(t, db, fmt.Sprint(i))
		if err := db.CreateSpending(t.Context(), record(fmt.Sprint(i)), challengeOf(fmt.Sprint(i)).Hash, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	put(t, db, "late")
	server.Pause(t)
	if err := db.CreateSpending(t.Context(), record("late"), challengeOf("late").Hash, time.Now()); err == nil {
		t.Error("CreateSpending while the server hangs returned nil")
	}
	server.Resume(t)
	if err := db.CreateSpending(t.Context(), record("late"), challengeOf("late").Hash, time.Now()); err != nil && !errors.Is(err, scep.ErrExists) {
		t.Errorf("CreateSpending again: %v", err)
	}
	rec, found := there(t, db, "late")
	c, err := db.GetChallenge(t.Context(), challengeOf("late").Hash)
	if err != nil || !found || rec.Version != 1 || c.SpentBy != rec.ID {
		t.Errorf("record %v, challenge %v, %v", rec, c, err)
	}
}

// TestNoDeadlock does everything that takes locks at once, on few challenges and few records, from
// several replicas. PostgreSQL never has to break a deadlock.
func TestNoDeadlock(t *testing.T) {
	server := postgrestest.Shared(t)
	url := server.Database(t)
	var replicas []*postgres.DB
	for range 3 {
		replicas = append(replicas, open(t, postgres.Config{URL: url, MaxConns: 6, Timeout: patient}))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	rounds := 60
	if testing.Short() {
		rounds = 15
	}
	// A challenge of a profile that has a limit, soon to be forgotten.
	limited := func(name string) *scep.OneTimeChallenge {
		c := challengeOf(name)
		c.Created, c.Expires = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		return c
	}
	together(18, func(i int) {
		db := replicas[i%3]
		for round := range rounds {
			name, other := fmt.Sprint("r", round/3, "-", i%2), fmt.Sprint("r", round/3, "-", (i+1)%2)
			rec := record(name)
			if i%4 == 1 {
				rec.Serial = record(other).Serial
			}
			rec.NotAfter = time.Now().Add(-time.Hour)
			var err error
			switch i % 6 {
			case 0:
				err = db.PutChallenge(ctx, limited(name), time.Now().Add(-90*time.Minute), 1000)
			case 1, 2:
				err = db.CreateSpending(ctx, rec, limited(other).Hash, time.Now())
			case 3:
				_, err = db.SpendChallenge(ctx, limited(name).Hash, record(other).ID, time.Now())
			case 4:
				err = db.CreateSpending(ctx, rec, limited(name).Hash, time.Now())
				if got, _ := db.Get(ctx, rec.ID); got != nil && err == nil {
					got.State = scep.Denied
					err = db.Update(ctx, got)
				}
			case 5:
				_, err = db.Prune(ctx, scep.PruneQuery{Expired: time.Now(), Denied: time.Now()})
			}
			switch {
			case err == nil, errors.Is(err, scep.ErrExists), errors.Is(err, scep.ErrSpent), errors.Is(err, scep.ErrNotFound), errors.Is(err, scep.ErrStale):
			default:
				t.Errorf("caller %d: %v", i, err)
			}
		}
	})
	c := shell(t, url)
	var deadlocks, commits int
	// What a session counts is seen when it ends, or after a second.
	for _, db := range replicas {
		db.Close()
	}
	for range 50 {
		if err := c.QueryRow(ctx, `SELECT deadlocks, xact_commit FROM pg_stat_database WHERE datname = current_database()`).Scan(&deadlocks, &commits); err != nil {
			t.Fatal(err)
		}
		if deadlocks > 0 || commits > 18*rounds/2 {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if deadlocks != 0 || commits <= 18*rounds/2 {
		t.Errorf("%d deadlocks among %d commits", deadlocks, commits)
	}
}
