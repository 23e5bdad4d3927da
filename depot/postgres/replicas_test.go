package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/challenge/challengetest"
	"github.com/scepkit/scepkit/depot/postgres"
	"github.com/scepkit/scepkit/depot/postgres/postgrestest"
	"github.com/scepkit/scepkit/scep"
)

// together runs f for each of so many racers at once.
func together(n int, f func(i int)) {
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			<-start
			f(i)
		})
	}
	close(start)
	wg.Wait()
}

// TestReplicas has racers on three replicas enrol with one request, and others spend one
// challenge: one certificate each, whatever is tried.
func TestReplicas(t *testing.T) {
	racers, rounds := 30, 10
	if testing.Short() {
		rounds = 3
	}
	url := postgrestest.Shared(t).Database(t)
	var replicas []*postgres.DB
	for range 3 {
		replicas = append(replicas, open(t, postgres.Config{URL: url, Timeout: patient}))
	}
	for round := range rounds {
		name := fmt.Sprint("round ", round)
		put(t, replicas[0], name)
		var mu sync.Mutex
		created, issued := 0, 0
		certificates, spenders := map[string]bool{}, map[scep.ID]bool{}
		together(3*racers, func(i int) {
			certificate, first, last, err := enrol(t.Context(), replicas[i%3], name, i)
			if err != nil {
				t.Errorf("racer %d: %v", i, err)
				return
			}
			by, err := replicas[i%3].SpendChallenge(t.Context(), challengeOf(name).Hash, record(fmt.Sprint(name, i)).ID, time.Now())
			if err != nil {
				t.Errorf("racer %d: SpendChallenge: %v", i, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			certificates[certificate], spenders[by] = true, true
			if first {
				created++
			}
			if last {
				issued++
			}
		})
		if created != 1 || issued != 1 || len(certificates) != 1 || len(spenders) != 1 {
			t.Fatalf("%s: created %d times, issued %d times, %d certificates; a challenge spent by %d",
				name, created, issued, len(certificates), len(spenders))
		}
	}
}

// enrol does what the server does with a request that others send too. Whoever creates the record
// has a serial number of their own for it.
func enrol(ctx context.Context, db *postgres.DB, name string, racer int) (certificate string, created, issued bool, err error) {
	for {
		rec, err := db.Get(ctx, record(name).ID)
		switch {
		case errors.Is(err, scep.ErrNotFound):
			rec = record(name)
			rec.Serial = record(fmt.Sprint(name, " serial ", racer)).Serial
			if err = db.Create(ctx, rec); err == nil {
				created = true
			} else if !errors.Is(err, scep.ErrExists) {
				return "", false, false, err
			}
		case err != nil:
			return "", false, false, err
		case rec.State == scep.Signing:
			rec.State, rec.Certificate = scep.Issued, fmt.Append(nil, rec.Serial, " signed by ", racer)
			if err = db.Update(ctx, rec); err == nil {
				issued = true
			} else if !errors.Is(err, scep.ErrStale) {
				return "", false, false, err
			}
		default:
			return string(rec.Certificate), created, issued, nil
		}
	}
}

// TestLimit has three replicas make challenges as fast as they can.
func TestLimit(t *testing.T) {
	const limit = 7
	url := postgrestest.Shared(t).Database(t)
	var replicas []*postgres.DB
	for range 3 {
		replicas = append(replicas, open(t, postgres.Config{URL: url, Timeout: patient}))
	}
	for round := range 3 {
		var mu sync.Mutex
		made := 0
		together(60, func(i int) {
			c := challengeOf(fmt.Sprint(round, "-", i))
			c.Profile = fmt.Sprint(round)
			err := replicas[i%3].PutChallenge(t.Context(), c, time.Now(), limit)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				made++
			} else if !errors.Is(err, scep.ErrLimit) {
				t.Error(err)
			}
		})
		if made != limit {
			t.Errorf("%d challenges were made, want %d", made, limit)
		}
	}
}

func TestOneTime(t *testing.T) {
	server := postgrestest.Start(t)
	url := server.Database(t)
	challengetest.TestChallenge(t, challengetest.Harness{
		Open: func(t *testing.T) (scep.Challenge, *scep.Request) {
			o := &challenge.OneTime{Store: open(t, postgres.Config{URL: url})}
			secret, err := o.New(t.Context(), challenge.Binding{Subject: "CN=device-1"})
			if err != nil {
				t.Fatal(err)
			}
			return o, challengetest.Request(secret.Reveal())
		},
		OneTime: true,
		Break: func(t *testing.T) {
			server.Stop(t)
			t.Cleanup(func() { server.Start(t) })
		},
	})
}
