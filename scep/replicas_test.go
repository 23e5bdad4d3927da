//go:build unix

package scep_test

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/depot/postgres"
	"github.com/scepkit/scepkit/depot/postgres/postgrestest"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/internal/cms"
)

// roundsVariable says how many rounds TestReplicas has with each depot.
const roundsVariable = "SCEPTEST_ROUNDS"

// TestReplicas has a hundred racers at once at three replicas, each with a depot of its own over
// one database, round after round: with one request, and with one one-time challenge. There is
// one certificate for each.
func TestReplicas(t *testing.T) {
	const racers = 100
	for _, kind := range []struct {
		name   string
		rounds int // of each race, which take 10 to 20 seconds with the race detector
		open   func(t *testing.T) [3]store
	}{
		{"Memory", 100, func(t *testing.T) [3]store {
			m := &depot.Memory{}
			return [3]store{m, m, m}
		}},
		{"SQLite", 30, func(t *testing.T) (all [3]store) {
			path := filepath.Join(t.TempDir(), "scep.db")
			for i := range all {
				all[i] = openSQLite(t, path)
			}
			return all
		}},
		{"PostgreSQL", 30, func(t *testing.T) (all [3]store) {
			url := postgrestest.Start(t).Database(t)
			for i := range all {
				all[i] = openReplica(t, postgres.Config{URL: url, Timeout: time.Minute})
			}
			return all
		}},
	} {
		t.Run(kind.name, func(t *testing.T) {
			var replicas [3]*scep.Handler
			depots := kind.open(t)
			for i := range replicas {
				replicas[i] = newCheap(t).handler(t, depots[i])
			}
			f := newFleet(t, depots[0], nil)
			rounds := number(t, roundsVariable, kind.rounds, 3)
			begun := time.Now()
			for round := range rounds {
				f.raceForOne(t, fmt.Sprint("round ", round), racers, replicas)
			}
			same := time.Since(begun)
			for round := range rounds {
				f.raceWithOne(t, fmt.Sprint("challenge of round ", round), racers, replicas)
			}
			t.Logf("%d rounds of %d racers: one request %v, one challenge %v", rounds, racers,
				same.Round(time.Millisecond), (time.Since(begun) - same).Round(time.Millisecond))
			if len(f.all) != 2*rounds {
				t.Fatalf("%d were admitted, want %d", len(f.all), 2*rounds)
			}
			f.post = func(msg []byte) (*http.Response, error) { return respond(replicas[1], msg), nil }
			f.finish()
		})
	}
}

// raceForOne has all racers send one request: the same message, or another with the same CSR.
func (f *fleet) raceForOne(t *testing.T, name string, racers int, replicas [3]*scep.Handler) {
	t.Helper()
	e, err := f.enrolment(name)
	if err != nil {
		t.Fatal(err)
	}
	env := envelope(t, e.csr, f.to)
	var messages [4][]byte
	for i := range messages {
		messages[i] = e.sign(t, "19", env, crypto.SHA256)
	}
	answers := make([]answer, racers)
	race(racers, func(int) {}, func(i int) {
		answers[i] = insist(t, e.device, replicas[i%len(replicas)], messages[i%len(messages)], f.from)
	})
	for i, a := range answers {
		if a.cert == nil || !a.cert.Equal(answers[0].cert) {
			t.Fatalf("%s: racer %d: %v, racer 0: %v", name, i, a, answers[0])
		}
	}
	e.cert = answers[0].cert
}

// raceWithOne has each racer send a request of its own with the challenge that all have. Who was
// admitted is an enrolment of the fleet's.
func (f *fleet) raceWithOne(t *testing.T, name string, racers int, replicas [3]*scep.Handler) {
	t.Helper()
	n := &minting{ChallengeStore: f.store}
	secret := newChallenge(t, &challenge.OneTime{Store: n, Limit: -1})
	var csrs, envelopes [4][]byte // what they have in common; the rest is in the transaction ID
	for i := range csrs {
		csrs[i] = newCSR(t, f.base.key, fmt.Sprintf("%s, CSR %d", name, i), secret)
		envelopes[i] = envelope(t, csrs[i], f.to)
	}
	devices := make([]device, racers)
	messages := make([][]byte, racers)
	answers := make([]answer, racers)
	race(racers, func(i int) {
		d := &devices[i]
		*d = *f.base
		d.id, d.csr = fmt.Sprintf("transaction of %s, racer %d", name, i), csrs[i%len(csrs)]
		messages[i] = d.sign(t, "19", envelopes[i%len(csrs)], crypto.SHA256)
	}, func(i int) {
		answers[i] = insist(t, &devices[i], replicas[i%len(replicas)], messages[i], f.from)
	})
	admitted := -1
	for i, a := range answers {
		switch {
		case a.cert != nil && admitted >= 0:
			t.Fatalf("%s: racers %d and %d were both admitted", name, admitted, i)
		case a.cert != nil:
			admitted = i
		case a.failInfo != "2": // badRequest
			t.Fatalf("%s: racer %d: %v", name, i, a)
		}
	}
	if admitted < 0 {
		t.Fatalf("%s: nobody was admitted", name)
	}
	f.all[devices[admitted].id] = &enrolment{device: &devices[admitted], hash: n.hash, cert: answers[admitted].cert}
}

// insist sends a message again while the answer is 503, as it may be on a machine that is so busy that
// a depot cannot be written to for a second.
func insist(t *testing.T, d *device, h *scep.Handler, msg []byte, from *x509.Certificate) (a answer) {
	t.Helper()
	for begun := time.Now(); ; {
		if a = d.send(t, h, msg, from); a.http != http.StatusServiceUnavailable || time.Since(begun) > time.Minute {
			return a
		}
	}
}

// race has n racers make ready, and when all are, run at once.
func race(n int, ready, run func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { ready(i) })
	}
	wg.Wait()
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			run(i)
		})
	}
	close(start)
	wg.Wait()
}

func envelope(t *testing.T, content []byte, to *x509.Certificate) []byte {
	t.Helper()
	env, err := cms.Encrypt(content, cms.AES128, cms.FromX509(to), to.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return env
}
