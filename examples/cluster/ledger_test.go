package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
)

// certificate makes one with this serial number.
func certificate(t *testing.T, serial int64) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "device"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// recordID returns a valid ID.
func recordID(n int) scep.ID { return scep.ID(fmt.Sprintf("%064x", n)) }

// store puts the record of a certificate into the depot.
func store(t *testing.T, d *depot.Memory, n int, transaction string, state scep.State, cert *x509.Certificate) {
	t.Helper()
	rec := &scep.Record{
		ID: recordID(n), Transaction: recordID(1000 + n), TransactionID: transaction, State: state,
		Issuer: cert.RawIssuer, Serial: cert.SerialNumber, NotAfter: cert.NotAfter, Created: time.Now(), Changed: time.Now(),
	}
	if state == scep.Issued {
		rec.Certificate = cert.Raw
	}
	if err := d.Create(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
}

// TestLosses makes each kind of loss, one at a time beside a request that is in order: the report
// tells it, and the exit status is 1.
func TestLosses(t *testing.T) {
	for _, tt := range []struct {
		name string // as the report has it; "" for none
		make func(t *testing.T, l *ledger, d *depot.Memory)
	}{
		{"", func(*testing.T, *ledger, *depot.Memory) {}},
		{"", func(t *testing.T, l *ledger, d *depot.Memory) { // asked for twice, and the same
			cert := certificate(t, 7)
			l.asked("again")
			store(t, d, 7, "again", scep.Issued, cert)
			if !l.delivered("again", cert) || l.delivered("again", cert) {
				t.Error("the first is not the first, or the second is")
			}
		}},
		{"", func(t *testing.T, l *ledger, d *depot.Memory) { // of an outsider
			store(t, d, 7, "outsider", scep.Signing, certificate(t, 7))
		}},
		{"certificates delivered, not in the depot", func(t *testing.T, l *ledger, d *depot.Memory) {
			l.asked("lost")
			l.delivered("lost", certificate(t, 7))
		}},
		{"certificates delivered, not in the depot", func(t *testing.T, l *ledger, d *depot.Memory) { // another is
			l.asked("other")
			store(t, d, 7, "other", scep.Issued, certificate(t, 7))
			l.delivered("other", certificate(t, 7))
		}},
		{"certificates delivered, not in the depot", func(t *testing.T, l *ledger, d *depot.Memory) { // of another request
			cert := certificate(t, 7)
			l.asked("mine")
			l.asked("yours")
			store(t, d, 7, "yours", scep.Issued, cert)
			l.delivered("yours", cert)
			l.delivered("mine", cert)
		}},
		{"requests with two serial numbers", func(t *testing.T, l *ledger, d *depot.Memory) {
			l.asked("twice")
			for n := range 2 {
				cert := certificate(t, int64(7+n))
				store(t, d, 7+n, "twice", scep.Issued, cert)
				l.delivered("twice", cert)
			}
		}},
		{"requests with two serial numbers", func(t *testing.T, l *ledger, d *depot.Memory) { // only one of them delivered
			l.asked("twice")
			for n := range 2 {
				cert := certificate(t, int64(7+n))
				store(t, d, 7+n, "twice", scep.Issued, cert)
				if n == 0 {
					l.delivered("twice", cert)
				}
			}
		}},
		{"records stuck in signing", func(t *testing.T, l *ledger, d *depot.Memory) {
			l.asked("stuck")
			store(t, d, 7, "stuck", scep.Signing, certificate(t, 7))
		}},
		{"challenges spent without a record", func(t *testing.T, l *ledger, d *depot.Memory) {
			now := time.Now()
			c := &scep.OneTimeChallenge{Hash: recordID(70), Created: now, Expires: now.Add(time.Hour)}
			if err := l.PutChallenge(t.Context(), c, now, 0); err != nil {
				t.Fatal(err)
			}
			if _, err := l.SpendChallenge(t.Context(), c.Hash, recordID(71), now); err != nil {
				t.Fatal(err)
			}
		}},
		{"good requests refused", func(t *testing.T, l *ledger, d *depot.Memory) {
			l.asked("refused")
			l.refused("refused", errors.New("badRequest"))
		}},
		{"requests without an answer", func(t *testing.T, l *ledger, d *depot.Memory) { l.asked("unanswered") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := &depot.Memory{}
			l := newLedger(d)
			good, now := certificate(t, 1), time.Now()
			c := &scep.OneTimeChallenge{Hash: recordID(10), Created: now, Expires: now.Add(time.Hour)}
			if err := l.PutChallenge(t.Context(), c, now, 0); err != nil {
				t.Fatal(err)
			}
			if _, err := l.SpendChallenge(t.Context(), c.Hash, recordID(1), now); err != nil {
				t.Fatal(err)
			}
			l.asked("good")
			store(t, d, 1, "good", scep.Issued, good)
			l.delivered("good", good)

			tt.make(t, l, d)
			lost, err := l.audit(t.Context(), d)
			if err != nil {
				t.Fatal(err)
			}
			check(t, &report{lost: lost, took: time.Second}, tt.name)
		})
	}
	t.Run("ended by itself", func(t *testing.T) {
		check(t, &report{lost: &losses{}, took: time.Second, fell: []string{"replica 1"}}, "processes that ended by themselves")
	})
}

// check holds a report to the one loss that there is.
func check(t *testing.T, r *report, name string) {
	t.Helper()
	var out strings.Builder
	r.print(&out)
	for _, l := range r.losses() {
		if l.name == name {
			if len(l.cases) == 0 {
				t.Errorf("not noticed")
			} else if !strings.Contains(out.String(), l.name+": "+l.cases[0]) {
				t.Errorf("not told:\n%s", &out)
			}
		}
		// A request that was refused, or is stuck, has no answer either; a certificate of two is
		// missing where it is another's.
		implied := l.name == "requests without an answer" && name == "records stuck in signing"
		if l.name != name && len(l.cases) > 0 && !implied {
			t.Errorf("%s: %q", l.name, l.cases)
		}
	}
	want, text := 0, "Nothing was lost."
	if name != "" {
		want, text = 1, "SOMETHING WAS LOST"
	}
	if r.status() != want || !strings.Contains(out.String(), text) {
		t.Errorf("exit status %d, want %d:\n%s", r.status(), want, &out)
	}
}
