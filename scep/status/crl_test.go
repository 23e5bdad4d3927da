package status_test

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
	"github.com/scepkit/scepkit/scep/status"
)

func newCRL(t testing.TB, c status.CRLConfig) *status.CRL {
	t.Helper()
	if c.Log == nil {
		c.Log = quiet()
	}
	crl, err := status.NewCRL(c)
	if err != nil {
		t.Fatal(err)
	}
	return crl
}

// parse reads a CRL and verifies its signature.
func parse(t testing.TB, der []byte, ca *scep.Identity) *x509.RevocationList {
	t.Helper()
	crl, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	if err := crl.CheckSignatureFrom(ca.Certificate()); err != nil {
		t.Fatal(err)
	}
	return crl
}

func fetch(t testing.TB, crl *status.CRL, ca *scep.Identity) *x509.RevocationList {
	t.Helper()
	der, err := crl.CRL(t.Context(), ca.Certificate().RawSubject, big.NewInt(1))
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, der, ca)
}

// TestCRL has every kind of key sign every kind of entry.
func TestCRL(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{
		"RSA": sceptest.RSA(1), "P-256": sceptest.P256(), "P-384": sceptest.P384(), "P-521": newP521(t), "Ed25519": ed,
	} {
		t.Run(name, func(t *testing.T) {
			ca, db := sceptest.NewCA(t, key), new(depot.Memory)
			crl := newCRL(t, status.CRLConfig{Issuer: ca, Depot: db})
			if got := fetch(t, crl, ca); len(got.RevokedCertificateEntries) != 0 {
				t.Errorf("%d entries, want none", len(got.RevokedCertificateEntries))
			}
			serials := []int64{1, 127, 128, 255, 256, 1 << 40, 1<<63 - 1}
			reasons := []scep.RevocationReason{0, 1, 2, 3, 4, 5, 6}
			at := time.Now().Add(-time.Hour).Truncate(time.Second)
			for i, serial := range serials {
				store(t, db, ca, serial, revoked(at, reasons[i]))
			}
			store(t, db, ca, 4711, nil)
			store(t, db, ca, 99, func(r *scep.Record) { revoked(at, 77)(r); r.Serial = big.NewInt(-200) })
			store(t, db, ca, 4712, revoked(time.Date(2055, 1, 1, 0, 0, 0, 0, time.UTC), 9)) // GeneralizedTime
			crl.Renew()
			got := fetch(t, crl, ca)
			if len(got.RevokedCertificateEntries) != len(serials)+2 {
				t.Fatalf("%d entries, want %d", len(got.RevokedCertificateEntries), len(serials)+2)
			}
			if !slices.ContainsFunc(got.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool {
				return e.SerialNumber.Cmp(big.NewInt(-200)) == 0 && e.ReasonCode == 0
			}) {
				t.Error("the negative serial number is missing")
			}
			for i, serial := range serials {
				j := slices.IndexFunc(got.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool { return e.SerialNumber.Cmp(big.NewInt(serial)) == 0 })
				if j < 0 {
					t.Errorf("%d is missing", serial)
					continue
				}
				if e := got.RevokedCertificateEntries[j]; e.ReasonCode != int(reasons[i]) || !e.RevocationTime.Equal(at) || reasons[i] == 0 && len(e.Extensions) > 0 {
					t.Errorf("%d: %+v", serial, e)
				}
			}
			if !bytes.Equal(got.AuthorityKeyId, ca.Certificate().SubjectKeyId) || got.Number == nil || got.NextUpdate.Sub(got.ThisUpdate).Round(time.Minute) != 24*time.Hour+5*time.Minute {
				t.Errorf("AKI %x, number %v, valid from %v to %v", got.AuthorityKeyId, got.Number, got.ThisUpdate, got.NextUpdate)
			}
			for _, e := range got.Extensions {
				if e.Critical {
					t.Errorf("extension %v is critical in a CRL for all certificates", e.Id)
				}
			}
		})
	}
}

// TestNumbers holds CRL numbers to rising, also over a restart, and with a clock that stands.
func TestNumbers(t *testing.T) {
	ca, c := sceptest.NewCA(t), newClock()
	last := new(big.Int)
	for range 3 {
		crl := newCRL(t, status.CRLConfig{Issuer: ca, Depot: revocations{}, Time: c.now})
		for range 3 {
			crl.Renew()
			got := fetch(t, crl, ca)
			if got.Number.Cmp(last) <= 0 || len(got.Number.Bytes()) > 20 {
				t.Errorf("number %v after %v", got.Number, last)
			}
			last = got.Number
		}
		c.add(time.Second)
	}
}

func TestExpired(t *testing.T) {
	ca, db, c := sceptest.NewCA(t), new(depot.Memory), newClock()
	crl := newCRL(t, status.CRLConfig{Issuer: ca, Depot: db, Time: c.now})
	store(t, db, ca, 7, func(r *scep.Record) {
		revoked(c.now(), 1)(r)
		r.NotAfter = c.now().Add(time.Hour)
	})
	for _, want := range []int{1, 1, 1, 0} {
		if got := len(fetch(t, crl, ca).RevokedCertificateEntries); got != want {
			t.Errorf("%d entries, want %d", got, want)
		}
		c.add(20 * time.Hour)
	}
}

func TestShards(t *testing.T) {
	ca, db := sceptest.NewCA(t), new(depot.Memory)
	const n = 5
	crl := newCRL(t, status.CRLConfig{Issuer: ca, Depot: db, URL: "http://pki.example/crl/list-{n}.crl", Shards: n})
	for serial := range int64(30) {
		store(t, db, ca, serial+1, revoked(time.Now(), 1))
	}
	srv := httptest.NewServer(crl)
	defer srv.Close()
	seen := map[string]bool{}
	for serial := range int64(30) {
		number := big.NewInt(serial + 1)
		points := crl.DistributionPoints(ca.Certificate().RawSubject, number)
		if len(points) != 1 {
			t.Fatal(points)
		}
		seen[points[0]] = true
		res, body := get(t, srv.URL+strings.TrimPrefix(points[0], "http://pki.example"), nil)
		if res.StatusCode != 200 {
			t.Fatal(res.Status)
		}
		got := parse(t, body, ca)
		if !slices.ContainsFunc(got.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool { return e.SerialNumber.Cmp(number) == 0 }) {
			t.Errorf("%v is not in %s", number, points)
		}
		if len(got.RevokedCertificateEntries) != 30/n {
			t.Errorf("%d entries in %s", len(got.RevokedCertificateEntries), points)
		}
		i := slices.IndexFunc(got.Extensions, func(e pkix.Extension) bool { return e.Id.String() == "2.5.29.28" })
		if i < 0 || !got.Extensions[i].Critical || !bytes.Contains(got.Extensions[i].Value, []byte(points[0])) {
			t.Errorf("issuingDistributionPoint is not critical, or does not name %s", points)
		}
		der, err := crl.CRL(t.Context(), ca.Certificate().RawSubject, number)
		if err != nil || !bytes.Equal(der, body) {
			t.Errorf("CRL returns another one than %s: %v", points, err)
		}
	}
	if len(seen) != n {
		t.Errorf("%d shards, want %d", len(seen), n)
	}
	if res, _ := get(t, srv.URL+"/crl/list-5.crl", nil); res.StatusCode != 404 {
		t.Errorf("a shard that is not there: %s", res.Status)
	}
	if got := crl.DistributionPoints(sceptest.CN("another CA"), big.NewInt(1)); got != nil {
		t.Errorf("of another CA: %v", got)
	}
	if _, err := crl.CRL(t.Context(), sceptest.CN("another CA"), big.NewInt(1)); err != scep.ErrNotFound {
		t.Errorf("of another CA: %v", err)
	}
}

func TestDelta(t *testing.T) {
	ca, db, c := sceptest.NewCA(t), new(depot.Memory), newClock()
	crl := newCRL(t, status.CRLConfig{Issuer: ca, Depot: db, Time: c.now, URL: "http://pki.example/full.crl", Refresh: 12 * time.Hour,
		Delta: status.Delta{URL: "http://pki.example/delta.crl"}})
	held := store(t, db, ca, 1, revoked(c.now(), scep.CertificateHold))
	store(t, db, ca, 2, revoked(c.now(), 1))
	srv := httptest.NewServer(crl)
	defer srv.Close()
	list := func(name string) *x509.RevocationList {
		t.Helper()
		res, body := get(t, srv.URL+"/"+name, nil)
		if res.StatusCode != 200 {
			t.Fatal(res.Status)
		}
		return parse(t, body, ca)
	}
	full := list("full.crl")
	if !slices.ContainsFunc(full.Extensions, func(e pkix.Extension) bool {
		return e.Id.String() == "2.5.29.46" && bytes.Contains(e.Value, []byte("http://pki.example/delta.crl"))
	}) {
		t.Error("the full CRL does not name the delta CRL")
	}
	c.add(4 * time.Hour)
	store(t, db, ca, 3, revoked(c.now(), 4))
	held.State, held.Revoked, held.RevocationReason, held.Unrevoked, held.Changed = scep.Issued, time.Time{}, 0, c.now(), c.now()
	if err := db.Update(t.Context(), held); err != nil {
		t.Fatal(err)
	}
	delta := list("delta.crl")
	if delta.Number.Cmp(full.Number) <= 0 {
		t.Errorf("delta has number %v, the full one %v", delta.Number, full.Number)
	}
	reasons := map[int64]int{}
	for _, e := range delta.RevokedCertificateEntries {
		reasons[e.SerialNumber.Int64()] = e.ReasonCode
	}
	// 2 was revoked just before the full one.
	if len(reasons) != 3 || reasons[1] != 8 || reasons[2] != 1 || reasons[3] != 4 {
		t.Errorf("delta has %v", reasons)
	}
	// openssl goes by both together.
	caFile := file(t, "ca.pem", "CERTIFICATE", ca.Certificate().Raw)
	for _, tt := range []struct {
		serial  int64
		crls    [][]byte
		revoked bool
	}{
		{1, [][]byte{full.Raw}, true}, {1, [][]byte{full.Raw, delta.Raw}, false},
		{2, [][]byte{full.Raw, delta.Raw}, true},
		{3, [][]byte{full.Raw}, false}, {3, [][]byte{full.Raw, delta.Raw}, true},
	} {
		rec, err := db.GetSerial(t.Context(), ca.Certificate().RawSubject, big.NewInt(tt.serial))
		if err != nil {
			t.Fatal(err)
		}
		args := []string{"verify", "-CAfile", caFile, "-CRLfile", file(t, "crl.pem", "X509 CRL", tt.crls...), "-crl_check"}
		if len(tt.crls) > 1 {
			args = append(args, "-extended_crl", "-use_deltas")
		}
		openssl(t, !tt.revoked, append(args, "-attime", fmt.Sprint(c.now().Unix()), file(t, "cert.pem", "CERTIFICATE", rec.Certificate))...)
	}
	i := slices.IndexFunc(delta.Extensions, func(e pkix.Extension) bool { return e.Id.String() == "2.5.29.27" })
	if i < 0 || !delta.Extensions[i].Critical || !bytes.HasSuffix(delta.Extensions[i].Value, full.Number.Bytes()) {
		t.Error("deltaCRLIndicator is not critical, or not the number of the full CRL")
	}
}

func TestServeCRL(t *testing.T) {
	id, k := withKey(sceptest.NewCA(t))
	c := newClock()
	crl := newCRL(t, status.CRLConfig{Issuer: id, Depot: revocations{n: 3, at: c.now()}, Time: c.now})
	srv := httptest.NewServer(crl)
	defer srv.Close()

	res, body := get(t, srv.URL+"/any/path", nil)
	h := res.Header
	if res.StatusCode != 200 || h.Get("Content-Type") != "application/pkix-crl" || h.Get("Cache-Control") != "public, no-transform, max-age=3600" && h.Get("Cache-Control") != "public, no-transform, max-age=3599" {
		t.Errorf("%s, %v", res.Status, h)
	}
	got := parse(t, body, id)
	if h.Get("Expires") != got.NextUpdate.Format(http.TimeFormat) || h.Get("Last-Modified") != got.ThisUpdate.Format(http.TimeFormat) {
		t.Errorf("%v", h)
	}
	if res, body := get(t, srv.URL, map[string]string{"If-None-Match": h.Get("ETag")}); res.StatusCode != 304 || len(body) > 0 {
		t.Errorf("If-None-Match: %s", res.Status)
	}
	if res, err := http.Head(srv.URL); err != nil || res.StatusCode != 200 || res.ContentLength != int64(len(body)) {
		t.Errorf("HEAD: %v, %v", res, err)
	}
	if res, err := http.Post(srv.URL, "", nil); err != nil || res.StatusCode != 405 || res.Header.Get("Allow") == "" {
		t.Errorf("POST: %v, %v", res, err)
	}
	if k.count() != 1 {
		t.Errorf("signed %d times, want once", k.count())
	}

	c.add(time.Hour)
	if res, _ := get(t, srv.URL, nil); res.Header.Get("ETag") == h.Get("ETag") || k.count() != 2 {
		t.Errorf("when due: ETag %q, signed %d times", res.Header.Get("ETag"), k.count())
	}
	// While the signer is away the last one is served, and the signer is left alone for a while.
	k.become(errAway, false)
	c.add(time.Hour)
	for range 5 {
		if res, body := get(t, srv.URL, nil); res.StatusCode != 200 || parse(t, body, id).NextUpdate.Before(c.now()) {
			t.Errorf("signer away: %s", res.Status)
		}
	}
	if k.count() != 3 {
		t.Errorf("signed %d times, want one attempt", k.count())
	}
	c.add(24 * time.Hour)
	for range 2 {
		if res, _ := get(t, srv.URL, nil); res.StatusCode != 503 || res.Header.Get("Retry-After") == "" || res.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("after nextUpdate: %s, %v", res.Status, res.Header)
		}
	}
	k.become(nil, false)
	c.add(10 * time.Second)
	if res, _ := get(t, srv.URL, nil); res.StatusCode != 200 {
		t.Errorf("when the signer is back: %s", res.Status)
	}
	k.mu.Lock()
	k.lie = true
	k.mu.Unlock()
	before := fetch(t, crl, id).Number
	crl.Renew()
	if got := fetch(t, crl, id).Number; got.Cmp(before) != 0 {
		t.Error("a CRL whose signature is wrong was served")
	}
}

// TestHang has the signer hang: what is asked for ends all the same.
func TestHang(t *testing.T) {
	id, k := withKey(sceptest.NewCA(t))
	crl := newCRL(t, status.CRLConfig{Issuer: id, Depot: revocations{n: 1}, Timeout: 200 * time.Millisecond})
	k.become(nil, true)
	if err := crl.Refresh(t.Context()); err == nil {
		t.Error("made, although the signer hangs")
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := crl.CRL(t.Context(), id.Certificate().RawSubject, nil); err == nil {
				t.Error("there is a CRL, although the signer hangs")
			}
		})
	}
	wg.Wait()
}

// TestOneMakes has many ask at once: one makes it.
func TestOneMakes(t *testing.T) {
	id, k := withKey(sceptest.NewCA(t))
	crl := newCRL(t, status.CRLConfig{Issuer: id, Depot: revocations{n: 1000, at: time.Now()}})
	for round := range 3 {
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() { fetch(t, crl, id) })
		}
		wg.Wait()
		if k.count() != round+1 {
			t.Errorf("signed %d times, want %d", k.count(), round+1)
		}
		crl.Renew()
	}
}

// A shard is signed when it changes or is due, and goes on as it is while others change.
func TestOneShardChanges(t *testing.T) {
	const shards = 8
	c, db := newClock(), new(depot.Memory)
	id, k := withKey(sceptest.NewCA(t, sceptest.P256()))
	crl := newCRL(t, status.CRLConfig{
		Issuer: id, Depot: db, Time: c.now, Shards: shards, URL: "http://pki.example/{n}.crl", Log: quiet(),
		Delta: status.Delta{URL: "http://pki.example/delta-{n}.crl", Validity: 2 * time.Hour, Refresh: time.Hour},
	})
	for serial := range int64(3 * shards) {
		store(t, db, id, 100+serial, revoked(c.now(), scep.Superseded))
	}
	paths := func() (all [][]byte, headers []http.Header) {
		for i := range shards {
			for _, name := range []string{"/%d.crl", "/delta-%d.crl"} {
				w := httptest.NewRecorder()
				crl.ServeHTTP(w, httptest.NewRequest(http.MethodGet, fmt.Sprintf(name, i), nil))
				if w.Code != http.StatusOK {
					t.Fatalf("shard %d: HTTP %d", i, w.Code)
				}
				all, headers = append(all, w.Body.Bytes()), append(headers, w.Header())
			}
		}
		return all, headers
	}
	before, headersBefore := paths()
	signed := k.count()
	c.add(20 * time.Minute)
	crl.Renew()
	if same, headers := paths(); k.count() != signed || !reflect.DeepEqual(same, before) || headers[0].Get("ETag") != headersBefore[0].Get("ETag") {
		t.Errorf("nothing changed, and %d shards were signed", k.count()-signed)
	} else if fresh := headers[0].Get("Cache-Control"); fresh == headersBefore[0].Get("Cache-Control") {
		t.Errorf("20 minutes later it still is %q", fresh)
	}

	store(t, db, id, 200+3, revoked(c.now(), scep.Superseded))
	signed = k.count()
	crl.Renew()
	after, headers := paths()
	at := 2 * (203 % shards)
	for i := range after {
		if changed := !bytes.Equal(after[i], before[i]); changed != (i == at || i == at+1) {
			t.Errorf("list %d has changed: %v", i, changed)
		}
		if (headers[i].Get("ETag") != headersBefore[i].Get("ETag")) != (i == at || i == at+1) {
			t.Errorf("list %d has the ETag %s after %s", i, headers[i].Get("ETag"), headersBefore[i].Get("ETag"))
		}
	}
	if n := k.count() - signed; n != 2 {
		t.Errorf("%d CRLs were signed after one revocation, want one and a delta CRL", n)
	}

	// An hour after it was made each is due, and no other.
	c.add(41 * time.Minute)
	signed = k.count()
	due, _ := paths()
	for i := range due {
		if changed := !bytes.Equal(due[i], after[i]); changed != (i != at && i != at+1) {
			t.Errorf("list %d, an hour after the first were made: made anew %v", i, changed)
		}
	}
	if n := k.count() - signed; n != 2*shards-2 {
		t.Errorf("%d were signed, want %d", n, 2*shards-2)
	}
}
