//go:build unix

package scep_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/depot/postgres"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// A cheap server's keys cost as little as they can, so that tests of what it remembers can have
// many requests. Replicas and servers that are started again have the same keys.
type cheap struct{ ca, ra, responder *scep.Identity }

func newCheap(t testing.TB) cheap {
	t.Helper()
	ca := sceptest.NewCA(t, sceptest.P256())
	ra := sceptest.NewRA(t, ca)
	ra.Key = &remembering{Key: sceptest.Key{Signer: ra.Key}, known: map[string][]byte{}}
	return cheap{ca, ra, sceptest.NewRA(t, ca, sceptest.P256())}
}

// A remembering key opens what it is brought again from memory.
type remembering struct {
	sceptest.Key
	mu    sync.Mutex
	known map[string][]byte
}

func (r *remembering) UnwrapKey(ctx context.Context, block []byte, n int, opts crypto.DecrypterOpts) ([]byte, error) {
	r.mu.Lock()
	key := r.known[string(block)]
	r.mu.Unlock()
	if key != nil {
		return bytes.Clone(key), nil
	}
	key, err := r.Key.UnwrapKey(ctx, block, n, opts)
	if err == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.known) >= 100 {
			clear(r.known)
		}
		r.known[string(block)] = bytes.Clone(key)
	}
	return key, err
}

// handler returns a handler over s, with one-time challenges.
func (c cheap) handler(t testing.TB, s store) *scep.Handler {
	t.Helper()
	h, err := scep.New(scep.Config{
		CA: c.ca, RA: c.ra, Responder: c.responder,
		Depot:     s,
		Challenge: &challenge.OneTime{Store: s},
		Policy:    &scep.Profile{MinRSABits: 1024}, // so are the devices
		Log:       slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// openReplica opens a depot over PostgreSQL as c says, or as a server would that sets no more than
// the URL.
func openReplica(t testing.TB, c postgres.Config) store {
	t.Helper()
	db, err := postgres.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// respond has h answer a message.
func respond(h http.Handler, msg []byte) *http.Response {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/scep?operation=PKIOperation", bytes.NewReader(msg)))
	return w.Result()
}

// number returns what a variable of the environment says, or n, or if the tests are to be short
// short.
func number(t testing.TB, variable string, n, short int) int {
	t.Helper()
	if text := os.Getenv(variable); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			t.Fatalf("%s is %q, want a number from 1 on", variable, text)
		}
		return n
	}
	if testing.Short() {
		return short
	}
	return n
}

// An enrolment is what one client asks for: one certificate.
type enrolment struct {
	*device
	hash scep.ID           // of its one-time challenge
	cert *x509.Certificate // nil: it has not been delivered
}

// A fleet are clients. Each enrols again and again, every time with a challenge of its own.
type fleet struct {
	t     *testing.T
	store store // the depot of the handlers
	post  func(msg []byte) (*http.Response, error)
	base  *device
	to    *x509.Certificate // opens the messages
	from  *x509.Certificate // signs the replies

	stop     atomic.Bool
	wg       sync.WaitGroup
	issued   atomic.Int64 // certificates delivered
	repeated atomic.Int64 // certificates delivered again
	lost     atomic.Int64 // requests without an answer, or with HTTP 503
	mu       sync.Mutex
	all      map[string]*enrolment // by transaction ID
}

func newFleet(t *testing.T, s store, post func(msg []byte) (*http.Response, error)) *fleet {
	c := newCheap(t)
	return &fleet{
		t: t, store: s, post: post, all: map[string]*enrolment{},
		base: newDevice(t, sceptest.RSA1024(), "fleet", ""), to: c.ra.Certificate(), from: c.responder.Certificate(),
	}
}

// enrolment makes a challenge, and a request with it.
func (f *fleet) enrolment(name string) (*enrolment, error) {
	n := &minting{ChallengeStore: f.store}
	secret, err := (&challenge.OneTime{Store: n, Limit: -1}).New(context.Background(), challenge.Binding{})
	if err != nil {
		return nil, err
	}
	d := *f.base
	d.id, d.csr = "transaction of "+name, newCSR(f.t, d.key, name, secret.Reveal())
	e := &enrolment{device: &d, hash: n.hash}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all[d.id] = e
	return e, nil
}

// ask sends one message of e. It returns whether e has its certificate, or err if the server had
// no answer.
func (f *fleet) ask(e *enrolment, msg []byte) (done bool, err error) {
	resp, err := f.post(msg)
	if err != nil {
		f.lost.Add(1)
		return false, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		f.lost.Add(1)
		return false, err
	}
	a := e.read(f.t, resp.StatusCode, body, f.from)
	switch {
	case a.http == http.StatusServiceUnavailable:
		f.lost.Add(1)
		if resp.Header.Get("Retry-After") == "" {
			f.t.Errorf("%s: HTTP 503 without Retry-After", e.id)
		}
		return false, errors.New("HTTP 503")
	case a.cert == nil:
		return false, fmt.Errorf("%s: %w: %v", e.id, errRefused, a)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case e.cert == nil:
		f.issued.Add(1)
		e.cert = a.cert
	case !e.cert.Equal(a.cert):
		f.t.Errorf("%s has certificate %x, and was sent %x", e.id, e.cert.SerialNumber, a.cert.SerialNumber)
	default:
		f.repeated.Add(1)
	}
	return true, nil
}

var errRefused = errors.New("refused")

// enrol asks, with the same message, a new one or a poll, until there is an answer.
func (f *fleet) enrol(e *enrolment) {
	first := e.pkcsReq(f.t, f.to)
	msg, polling := first, false
	for {
		done, err := f.ask(e, msg)
		switch {
		case done:
			return
		case errors.Is(err, errRefused) && polling: // nothing was written down
		case errors.Is(err, errRefused):
			f.t.Error(err)
			return
		default:
			rest()
		}
		if msg, polling = first, false; err != nil {
			switch rand.N(3) {
			case 0:
				msg = e.pkcsReq(f.t, f.to)
			case 1:
				if !errors.Is(err, errRefused) {
					msg, polling = e.certPoll(f.t, f.to), true
				}
			}
		}
	}
}

// rest is for a client that had no answer.
func rest() { time.Sleep(10*time.Millisecond + rand.N(30*time.Millisecond)) }

// start has clients enrol until finish is called; name is that of all of them. Those that are impatient do not ask again where
// there was no answer; the others often do although there was one.
func (f *fleet) start(name string, patient, impatient int) {
	f.stop.Store(false)
	for w := range patient + impatient {
		f.wg.Go(func() {
			for n := 0; !f.stop.Load(); n++ {
				e, err := f.enrolment(fmt.Sprintf("%s: client %d, device %d", name, w, n))
				switch {
				case err != nil:
					rest()
				case w < impatient:
					_, err := f.ask(e, e.pkcsReq(f.t, f.to))
					if errors.Is(err, errRefused) {
						f.t.Error(err)
					} else if err != nil {
						rest()
					}
				default:
					f.enrol(e)
					if n%4 == 0 {
						f.enrol(e)
					}
				}
			}
		})
	}
}

// finish waits until each client has what it asked for, and compares what they have with what is
// in the depot.
func (f *fleet) finish() {
	f.t.Helper()
	f.stop.Store(true)
	f.wg.Wait()
	records := f.records()
	open := 0
	for id, rec := range records {
		if e := f.all[id]; e.cert == nil { // nobody asked again: a poll finishes it
			open++
			if done, err := f.ask(e, e.certPoll(f.t, f.to)); !done {
				f.t.Errorf("%s, whose record is %v, polls: %v", id, rec.State, err)
			}
		}
	}
	records = f.records()
	for id, e := range f.all {
		rec := records[id]
		c, err := f.store.GetChallenge(context.Background(), e.hash)
		switch {
		case err != nil:
			f.t.Errorf("%s: its challenge: %v", id, err)
		case rec == nil && e.cert != nil:
			f.t.Errorf("%s has certificate %x, which is not in the depot", id, e.cert.SerialNumber)
		case rec == nil && c.SpentBy != "":
			f.t.Errorf("%s has no record, and its challenge is spent", id)
		case rec == nil: // it never arrived
		case c.SpentBy != rec.ID:
			f.t.Errorf("%s: its challenge is spent by %q, want %q", id, c.SpentBy, rec.ID)
		case rec.State != scep.Issued || e.cert == nil || string(rec.Certificate) != string(e.cert.Raw) || rec.Serial.Cmp(e.cert.SerialNumber) != 0:
			f.t.Errorf("%s: its record is %v with serial number %x, and not of the certificate that was delivered", id, rec.State, rec.Serial)
		}
	}
	f.t.Logf("%d enrolments, %d certificates delivered, %d of them again, %d requests without an answer, %d finished by a poll at the end",
		len(f.all), f.issued.Load(), f.repeated.Load(), f.lost.Load(), open)
}

// records returns what is in the depot by transaction ID, which nobody has chosen twice.
func (f *fleet) records() map[string]*scep.Record {
	f.t.Helper()
	records, serials := map[string]*scep.Record{}, map[string]bool{}
	for after := scep.ID(""); ; {
		page, err := f.store.List(context.Background(), scep.Query{After: after, Limit: 1000})
		if err != nil {
			f.t.Fatal(err)
		}
		for _, rec := range page {
			switch {
			case records[rec.TransactionID] != nil:
				f.t.Errorf("%s has two records", rec.TransactionID)
			case f.all[rec.TransactionID] == nil:
				f.t.Fatalf("%s, which nobody asked for, has a record", rec.TransactionID)
			case serials[rec.Serial.String()]:
				f.t.Errorf("serial number %x is there twice", rec.Serial)
			}
			records[rec.TransactionID], serials[rec.Serial.String()] = rec, true
			after = rec.ID
		}
		if len(page) == 0 {
			return records
		}
	}
}
