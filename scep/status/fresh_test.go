package status_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
	"github.com/scepkit/scepkit/scep/status"
)

func lists(crl *x509.RevocationList, serial int64) bool {
	return slices.ContainsFunc(crl.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool { return e.SerialNumber.Int64() == serial })
}

// TestBackdated holds CRLs and OCSP answers to beginning as early as certificates do, for clients whose
// clock is slow, but not before their signer; and Validity to being counted from now.
func TestBackdated(t *testing.T) {
	ca, db, c := sceptest.NewCA(t), new(depot.Memory), newClock()
	store(t, db, ca, 1, nil)
	crl := newCRL(t, status.CRLConfig{Issuer: ca, Depot: db, Time: c.now, Validity: time.Hour})
	o := newOCSP(t, status.OCSPConfig{Issuer: ca.Certificate(), Responder: newResponder(t, ca, sceptest.P256()), Depot: db, Time: c.now})
	start := c.now().Truncate(time.Second)
	list := fetch(t, crl, ca)
	answer := wantStatus(t, post(t, o, question(t, ca, big.NewInt(1), 0)), ca, 0)
	for name, got := range map[string][2]time.Time{"CRL": {list.ThisUpdate, list.NextUpdate}, "OCSP": {answer.ThisUpdate, answer.NextUpdate}} {
		if !got[0].Equal(start.Add(-5*time.Minute)) || !got[1].Equal(start.Add(time.Hour)) {
			t.Errorf("%s: valid from %v to %v; made at %v", name, got[0], got[1], start)
		}
	}
	if !answer.ProducedAt.Equal(start) {
		t.Errorf("produced at %v", answer.ProducedAt)
	}
	c.add(30*time.Minute - time.Second) // half of its time
	if got := wantStatus(t, post(t, o, question(t, ca, big.NewInt(1), 0)), ca, 0); !got.ProducedAt.Equal(start) {
		t.Error("answered anew before half of its time was over")
	}
	begin := ca.Certificate().NotBefore
	young := newCRL(t, status.CRLConfig{Issuer: ca, Depot: db, Time: func() time.Time { return begin.Add(time.Minute) }})
	if got := fetch(t, young, ca); !got.ThisUpdate.Equal(begin) {
		t.Errorf("the first CRL of a CA begins at %v; the CA at %v", got.ThisUpdate, begin)
	}
}

// TestLater makes CRLs in a hurry: clients that go by thisUpdate, or ask with If-Modified-Since, tell
// each from the one before.
func TestLater(t *testing.T) {
	ca, db, c := sceptest.NewCA(t), new(depot.Memory), newClock()
	crl := newCRL(t, status.CRLConfig{Issuer: ca, Depot: db, Time: c.now})
	srv := httptest.NewServer(crl)
	defer srv.Close()
	var last *x509.RevocationList
	modified := ""
	for serial := range int64(20) {
		store(t, db, ca, serial+1, revoked(c.now(), 1))
		crl.Renew()
		res, body := get(t, srv.URL, map[string]string{"If-Modified-Since": modified})
		if res.StatusCode != 200 {
			t.Fatalf("the CRL that lists %d: %s", serial+1, res.Status)
		}
		got := parse(t, body, ca)
		if last != nil && !got.ThisUpdate.After(last.ThisUpdate) {
			t.Errorf("thisUpdate %v after %v", got.ThisUpdate, last.ThisUpdate)
		}
		if got.ThisUpdate.After(c.now()) || !lists(got, serial+1) {
			t.Errorf("thisUpdate is %v, %d entries", got.ThisUpdate, len(got.RevokedCertificateEntries))
		}
		last, modified = got, res.Header.Get("Last-Modified")
		if res, _ := get(t, srv.URL, map[string]string{"If-Modified-Since": modified}); res.StatusCode != 304 {
			t.Errorf("asked again: %s", res.Status)
		}
	}
	for range 400 { // more than fit between
		crl.Renew()
		if got := fetch(t, crl, ca); got.ThisUpdate.After(c.now()) {
			t.Fatalf("thisUpdate %v is in the future", got.ThisUpdate)
		}
	}
}

// TestOneSequence has full and delta CRLs, of several processes whose clock stands, share one
// sequence of numbers.
func TestOneSequence(t *testing.T) {
	ca, db, c := sceptest.NewCA(t), new(depot.Memory), newClock()
	var numbers []*big.Int
	for range 3 {
		crl := newCRL(t, status.CRLConfig{Issuer: ca, Depot: db, Time: c.now, URL: "http://pki.example/full.crl", Delta: status.Delta{URL: "http://pki.example/delta.crl"}})
		for range 3 {
			for _, name := range []string{"/full.crl", "/delta.crl"} {
				w := httptest.NewRecorder()
				crl.ServeHTTP(w, httptest.NewRequest(http.MethodGet, name, nil))
				got := parse(t, w.Body.Bytes(), ca).Number
				if n := len(numbers); n > 0 && got.Cmp(numbers[n-1]) <= 0 {
					t.Errorf("%s has number %v after %v", name, got, numbers[n-1])
				}
				numbers = append(numbers, got)
			}
			crl.Renew()
		}
	}
}

// TestClockSetBack makes a CRL and an OCSP answer while the clock is ahead: when it is right again
// nobody gets what is from the future.
func TestClockSetBack(t *testing.T) {
	ca, db, c := sceptest.NewCA(t), new(depot.Memory), newClock()
	store(t, db, ca, 1, nil)
	crl := newCRL(t, status.CRLConfig{Issuer: ca, Depot: db, Time: c.now})
	o := newOCSP(t, status.OCSPConfig{Issuer: ca.Certificate(), Responder: newResponder(t, ca, sceptest.P256()), Depot: db, Time: c.now})
	number := new(big.Int)
	for _, d := range []time.Duration{0, 3 * time.Hour, -3 * time.Hour, -20 * time.Minute} {
		c.add(d)
		got := fetch(t, crl, ca)
		if got.ThisUpdate.After(c.now()) || got.Number.Cmp(number) <= 0 {
			t.Errorf("after %v: thisUpdate %v, number %v after %v", d, got.ThisUpdate, got.Number, number)
		}
		number = got.Number
		if got := wantStatus(t, post(t, o, question(t, ca, big.NewInt(1), 0)), ca, 0); got.ThisUpdate.After(c.now()) || got.ProducedAt.After(c.now()) {
			t.Errorf("after %v: OCSP answer from %v", d, got.ThisUpdate)
		}
	}
}

// busy is a depot in which something is revoked whenever it is asked.
type busy struct {
	revocations
	revoked func()
}

func (b busy) Revocations(ctx context.Context, q scep.RevocationQuery, yield func(scep.Revocation) error) error {
	b.revoked()
	return b.revocations.Revocations(ctx, q, yield)
}

// TestRenewStorm revokes without end: who asks gets a CRL that was begun after he had asked.
func TestRenewStorm(t *testing.T) {
	id, k := withKey(sceptest.NewCA(t))
	var crl *status.CRL
	crl = newCRL(t, status.CRLConfig{Issuer: id, Depot: busy{revocations{n: 1}, func() { crl.Renew() }}})
	for range 3 {
		done := make(chan struct{})
		go func() {
			defer close(done)
			if _, err := crl.CRL(t.Context(), id.Certificate().RawSubject, nil); err != nil {
				t.Error(err)
			}
		}()
		select {
		case <-done:
		case <-time.After(time.Minute):
			t.Fatalf("signed %d CRLs and gave none", k.count())
		}
	}
	if n := k.count(); n != 3 {
		t.Errorf("signed %d times, want 3", n)
	}
}

// TestDeltaForAll has clients with any full CRL that has not reached its nextUpdate use the newest
// delta CRL.
func TestDeltaForAll(t *testing.T) {
	ca, db, c := sceptest.NewCA(t), new(depot.Memory), newClock()
	crl := newCRL(t, status.CRLConfig{Issuer: ca, Depot: db, Time: c.now, Validity: 24 * time.Hour, Refresh: time.Hour,
		URL: "http://pki.example/full.crl", Delta: status.Delta{URL: "http://pki.example/delta.crl"}})
	list := func(name string) *x509.RevocationList {
		t.Helper()
		w := httptest.NewRecorder()
		crl.ServeHTTP(w, httptest.NewRequest(http.MethodGet, name, nil))
		return parse(t, w.Body.Bytes(), ca)
	}
	type had struct {
		*x509.RevocationList
		hour int64
	}
	var fulls []had
	var certs []*scep.Record
	caFile := file(t, "ca.pem", "CERTIFICATE", ca.Certificate().Raw)
	for hour := range int64(60) {
		fulls = append(fulls, had{list("/full.crl"), hour})
		certs = append(certs, store(t, db, ca, hour+1, revoked(c.now(), 1)))
		c.add(30 * time.Minute)
		delta := list("/delta.crl")
		base := new(big.Int)
		for _, e := range delta.Extensions {
			if e.Id.String() == "2.5.29.27" {
				base.SetBytes(e.Value[2:])
			}
		}
		if !slices.ContainsFunc(fulls, func(f had) bool { return f.Number.Cmp(base) == 0 }) {
			t.Fatalf("the delta CRL is for number %v, which never was", base)
		}
		oldest := -1
		for i, f := range fulls {
			if !c.now().Before(f.NextUpdate) {
				continue
			}
			if oldest < 0 {
				oldest = i
			}
			if f.Number.Cmp(base) < 0 || f.Number.Cmp(delta.Number) >= 0 {
				t.Errorf("hour %d: the delta CRL %v for %v is no use with %v of hour %d", hour, delta.Number, base, f.Number, f.hour)
			}
		}
		// What the oldest does not list is in the delta CRL.
		for serial := fulls[oldest].hour + 1; serial <= hour+1; serial++ {
			if !lists(delta, serial) {
				t.Errorf("hour %d: the delta CRL does not list %d, and nor does the full one of hour %d", hour, serial, fulls[oldest].hour)
			}
		}
		if lists(delta, fulls[oldest].hour-3) {
			t.Errorf("hour %d: the delta CRL lists what is in all full ones", hour)
		}
		if hour%20 == 19 {
			crls := file(t, "crls.pem", "X509 CRL", fulls[oldest].Raw, delta.Raw)
			out := openssl(t, false, "verify", "-CAfile", caFile, "-CRLfile", crls, "-crl_check", "-extended_crl", "-use_deltas",
				"-attime", fmt.Sprint(c.now().Unix()), file(t, "cert.pem", "CERTIFICATE", certs[hour].Certificate))
			if !bytes.Contains([]byte(out), []byte("certificate revoked")) {
				t.Errorf("hour %d: %s", hour, out)
			}
		}
		c.add(30 * time.Minute)
	}
}

// TestDepotAway has the depot fail: the CRL is served on, until its nextUpdate.
func TestDepotAway(t *testing.T) {
	ca, c := sceptest.NewCA(t), newClock()
	d := &away{RevocationLister: new(depot.Memory)}
	crl := newCRL(t, status.CRLConfig{Issuer: ca, Depot: d, Time: c.now})
	first := fetch(t, crl, ca)
	d.mu.Lock()
	d.err = errAway
	d.mu.Unlock()
	time.Sleep(1100 * time.Millisecond) // it may be asked again
	c.add(2 * time.Hour)
	if got := fetch(t, crl, ca); !bytes.Equal(got.Raw, first.Raw) {
		t.Error("another CRL, although the depot is away")
	}
	c.add(23 * time.Hour)
	if _, err := crl.CRL(t.Context(), ca.Certificate().RawSubject, nil); err == nil {
		t.Error("a CRL after its nextUpdate")
	}
}

type away struct {
	scep.RevocationLister
	mu  sync.Mutex
	err error
}

func (a *away) Revocations(ctx context.Context, q scep.RevocationQuery, yield func(scep.Revocation) error) error {
	a.mu.Lock()
	err := a.err
	a.mu.Unlock()
	if err != nil {
		return err
	}
	return a.RevocationLister.Revocations(ctx, q, yield)
}
