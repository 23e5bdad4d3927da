package status_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
	"github.com/scepkit/scepkit/scep/status"
)

// path returns what a client GETs.
func path(req []byte) string {
	return "/" + url.PathEscape(base64.StdEncoding.EncodeToString(req))
}

// TestOneSigns has a thousand ask for one certificate at once, by GET and POST: one answer is signed, and all get it.
func TestOneSigns(t *testing.T) {
	ca, db := sceptest.NewCA(t), new(depot.Memory)
	id, k := withKey(newResponder(t, ca, sceptest.P256()))
	rec := store(t, db, ca, 1, nil)
	req := question(t, ca, rec.Serial, crypto.SHA1)
	for _, cache := range []int{0, -1} {
		k.become(nil, false)
		before := k.count()
		slow := &gate{Signer: k, open: make(chan struct{})}
		o := newOCSP(t, status.OCSPConfig{Issuer: ca.Certificate(), Responder: &scep.Identity{Certificates: id.Certificates, Key: slow}, Depot: db, Cache: cache, Timeout: time.Minute})
		var wg sync.WaitGroup
		var good, asked atomic.Int32
		var some atomic.Pointer[[]byte]
		for i := range 1000 {
			wg.Go(func() {
				w := httptest.NewRecorder()
				r := httptest.NewRequest(http.MethodGet, path(req), nil)
				if i%2 == 0 {
					r = httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(req))
				}
				asked.Add(1)
				o.ServeHTTP(w, r)
				if body := w.Body.Bytes(); len(body) > 100 { // others are errors
					good.Add(1)
					some.Store(&body)
				}
			})
		}
		for asked.Load() < 1000 || k.count() == before && slow.began.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(50 * time.Millisecond) // so that most of them wait
		close(slow.open)
		wg.Wait()
		if good.Load() != 1000 {
			t.Errorf("%d of 1000 got the answer", good.Load())
		}
		wantStatus(t, *some.Load(), ca, ocsp.Good)
		if n := k.count() - before; cache == 0 && n != 1 || cache < 0 && n > 100 {
			t.Errorf("with Cache %d signed %d times", cache, n)
		}
	}
}

// gate is a key that signs when it is open.
type gate struct {
	crypto.Signer
	began atomic.Int32
	open  chan struct{}
}

func (g *gate) SignContext(ctx context.Context, rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	g.began.Add(1)
	select {
	case <-g.open:
		return g.Signer.(*key).SignContext(ctx, rand, digest, opts)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// TestKeyAway has the responder's key fail, or hang: what was signed goes on until its nextUpdate,
// also past its half, and the key is left alone for a while.
func TestKeyAway(t *testing.T) {
	for name, hang := range map[string]bool{"fails": false, "hangs": true} {
		t.Run(name, func(t *testing.T) {
			ca, db, c := sceptest.NewCA(t), new(depot.Memory), newClock()
			id, k := withKey(newResponder(t, ca, sceptest.P256()))
			rec := store(t, db, ca, 1, nil)
			other := store(t, db, ca, 2, nil)
			o := newOCSP(t, status.OCSPConfig{Issuer: ca.Certificate(), Responder: id, Depot: db, Time: c.now, Timeout: 100 * time.Millisecond})
			srv := httptest.NewServer(o)
			defer srv.Close()
			ask := func() (*http.Response, []byte) {
				return get(t, srv.URL+path(question(t, ca, rec.Serial, crypto.SHA1)), nil)
			}
			_, first := ask()
			wantStatus(t, first, ca, ocsp.Good)
			k.become(errAway, hang)
			before := k.count()
			c.add(40 * time.Minute)
			for range 20 {
				res, body := ask()
				if !bytes.Equal(body, first) || !strings.HasPrefix(res.Header.Get("Cache-Control"), "max-age=0,") {
					t.Errorf("%d, %v", errorStatus(body), res.Header)
				}
			}
			if n := k.count() - before; n != 1 {
				t.Errorf("tried to sign %d times, want once", n)
			}
			if got := errorStatus(post(t, o, question(t, ca, other.Serial, crypto.SHA1))); got != int(ocsp.TryLater) {
				t.Errorf("a new answer: %d", got)
			}
			revoked(c.now(), 1)(rec)
			if err := db.Update(t.Context(), rec); err != nil {
				t.Fatal(err)
			}
			if _, body := ask(); errorStatus(body) != int(ocsp.TryLater) {
				t.Errorf("revoked, and the key is away: %d", errorStatus(body))
			}
			rec.State = scep.Issued
			if err := db.Update(t.Context(), rec); err != nil {
				t.Fatal(err)
			}
			k.become(nil, false)
			_, body := ask()
			wantStatus(t, body, ca, ocsp.Good)
			k.become(errAway, hang)
			c.add(61 * time.Minute)
			if _, body := ask(); errorStatus(body) != int(ocsp.TryLater) {
				t.Error("an answer after its nextUpdate")
			}
		})
	}
}

// TestBusyKey has the key taken by questions with a nonce: those without get what was signed before at once.
func TestBusyKey(t *testing.T) {
	ca, db, c := sceptest.NewCA(t), new(depot.Memory), newClock()
	id, k := withKey(newResponder(t, ca, sceptest.P256()))
	slow := &gate{Signer: k, open: make(chan struct{})}
	close(slow.open)
	store(t, db, ca, 1, nil)
	o := newOCSP(t, status.OCSPConfig{Issuer: ca.Certificate(), Responder: &scep.Identity{Certificates: id.Certificates, Key: slow}, Depot: db, Time: c.now, Signatures: 2, Timeout: time.Minute})
	req := question(t, ca, big.NewInt(1), crypto.SHA1)
	first := post(t, o, req)
	c.add(31 * time.Minute)
	slow.open = make(chan struct{})
	began := slow.began.Load()
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() {
			wantStatus(t, post(t, o, withNonce(req, sceptest.TLV(4, []byte{byte(i)}))), ca, ocsp.Good)
		})
	}
	for slow.began.Load() < began+2 {
		time.Sleep(time.Millisecond)
	}
	if got := post(t, o, req); !bytes.Equal(got, first) {
		t.Errorf("%d", errorStatus(got))
	}
	close(slow.open)
	wg.Wait()
}

// TestClientGoesAway has the client leave for whom an answer is signed: those who wait for it too get it.
func TestClientGoesAway(t *testing.T) {
	ca, db := sceptest.NewCA(t), new(depot.Memory)
	id, k := withKey(newResponder(t, ca, sceptest.P256()))
	slow := &gate{Signer: k, open: make(chan struct{})}
	store(t, db, ca, 1, nil)
	o := newOCSP(t, status.OCSPConfig{Issuer: ca.Certificate(), Responder: &scep.Identity{Certificates: id.Certificates, Key: slow}, Depot: db, Timeout: time.Minute})
	req := question(t, ca, big.NewInt(1), crypto.SHA1)
	var wg sync.WaitGroup
	first, leave := context.WithCancel(t.Context())
	wg.Go(func() {
		o.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(first, http.MethodGet, path(req), nil))
	})
	for slow.began.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	leave()
	wg.Go(func() { wantStatus(t, post(t, o, req), ca, ocsp.Good) })
	time.Sleep(20 * time.Millisecond)
	close(slow.open)
	wg.Wait()
	if k.count() != 1 {
		t.Errorf("signed %d times, want once", k.count())
	}
}

// TestRenew runs a responder for two years whose certificates are good for thirty days.
func TestRenew(t *testing.T) {
	key := sceptest.P256()
	ca := sceptest.NewCA(t)
	db, c := new(depot.Memory), newClock()
	store(t, db, ca, 1, func(r *scep.Record) { r.NotAfter = c.now().AddDate(3, 0, 0) })
	var calls atomic.Int32
	var fail atomic.Bool
	o := newOCSP(t, status.OCSPConfig{Issuer: ca.Certificate(), Depot: db, Time: c.now, Renew: func(ctx context.Context) (*scep.Identity, error) {
		calls.Add(1)
		if fail.Load() {
			return nil, errAway
		}
		cert, err := status.IssueResponder(ctx, ca, key.Public(), status.ResponderOptions{Time: c.now})
		if err != nil {
			return nil, err
		}
		return &scep.Identity{Certificates: []*x509.Certificate{cert}, Key: key}, nil
	}})
	ask := func() *ocsp.Response {
		return wantStatus(t, post(t, o, question(t, ca, big.NewInt(1), crypto.SHA1)), ca, ocsp.Good)
	}
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() { ask() })
	}
	wg.Wait()
	if calls.Load() != 1 {
		t.Errorf("called %d times by the first who asked, want once", calls.Load())
	}
	for day := range 100 {
		got := ask()
		if left := got.Certificate.NotAfter.Sub(c.now()); left < 9*24*time.Hour || !got.NextUpdate.Equal(c.now().Truncate(time.Second).Add(time.Hour)) {
			t.Fatalf("day %d: %v left, nextUpdate %v", day, left, got.NextUpdate)
		}
		c.add(24 * time.Hour)
	}
	if n := calls.Load(); n < 5 || n > 6 {
		t.Errorf("called %d times in 100 days", n)
	}
	c.add(ask().Certificate.NotAfter.Sub(c.now()) - 10*24*time.Hour - 20*time.Minute) // not yet due
	ask()
	before := calls.Load()
	c.add(20 * time.Minute)
	// While the CA is away the old one goes on; it is asked again now and then.
	fail.Store(true)
	for range 5 {
		ask()
	}
	if n := calls.Load() - before; n != 1 {
		t.Errorf("called %d times while the CA is away", n)
	}
	c.add(24 * time.Hour)
	ask()
	ask()
	c.add(10 * 24 * time.Hour) // now it has ended
	req := question(t, ca, big.NewInt(1), crypto.SHA1)
	for range 3 {
		if got := errorStatus(post(t, o, req)); got != int(ocsp.TryLater) {
			t.Errorf("after the end: %d", got)
		}
	}
	fail.Store(false)
	c.add(10 * time.Second)
	ask()
}

// TestRenewedAnswers keeps what the old certificate signed when it is renewed, and not when it is replaced.
func TestRenewedAnswers(t *testing.T) {
	ca, db, c := sceptest.NewCA(t), new(depot.Memory), newClock()
	store(t, db, ca, 1, nil)
	first, k := withKey(newResponder(t, ca, sceptest.P256()))
	renewed := 0
	o := newOCSP(t, status.OCSPConfig{Issuer: ca.Certificate(), Depot: db, Time: c.now, Responder: first, Renew: func(ctx context.Context) (*scep.Identity, error) {
		renewed++
		cert, err := status.IssueResponder(ctx, ca, k.Public(), status.ResponderOptions{Time: c.now})
		return &scep.Identity{Certificates: []*x509.Certificate{cert}, Key: k}, err
	}})
	ask := func() []byte { return post(t, o, question(t, ca, big.NewInt(1), crypto.SHA1)) }
	cert := first.Certificate()
	c.add(cert.NotAfter.Add(-cert.NotAfter.Sub(cert.NotBefore) / 3).Add(-10 * time.Minute).Sub(c.now()))
	before := ask()
	c.add(20 * time.Minute)
	if got := ask(); renewed != 1 || !bytes.Equal(got, before) || k.count() != 1 {
		t.Errorf("renewed %d times, signed %d times", renewed, k.count())
	}
	if err := o.Replace(newResponder(t, ca, sceptest.P384())); err != nil {
		t.Fatal(err)
	}
	if got := ask(); bytes.Equal(got, before) {
		t.Error("an answer of a responder that was replaced")
	}
}

// TestOCSPs answers for two CAs under one URL, whatever their keys.
func TestOCSPs(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	db := new(depot.Memory)
	var all status.OCSPs
	cas := []*scep.Identity{sceptest.NewCA(t, ed), sceptest.NewCA(t, sceptest.P384()), sceptest.NewCA(t, sceptest.RSA(1))}
	for i, ca := range cas {
		own := []crypto.Signer{ed, sceptest.P256(), sceptest.RSA(2)}[i]
		all = append(all, newOCSP(t, status.OCSPConfig{Issuer: ca.Certificate(), Depot: db, Responder: newResponder(t, ca, own)}))
		store(t, db, ca, int64(i+1), nil)
	}
	srv := httptest.NewServer(all)
	defer srv.Close()
	for i, ca := range cas {
		for hash, name := range map[crypto.Hash]string{crypto.SHA1: "-sha1", crypto.SHA256: "-sha256", crypto.SHA384: "-sha384"} {
			if i > 0 { // x/crypto/ocsp does not know Ed25519
				wantStatus(t, post(t, all, question(t, ca, big.NewInt(int64(i+1)), hash)), ca, ocsp.Good)
			}
			rec, err := db.GetSerial(t.Context(), ca.Certificate().RawSubject, big.NewInt(int64(i+1)))
			if err != nil {
				t.Fatal(err)
			}
			caFile := file(t, "ca.pem", "CERTIFICATE", ca.Certificate().Raw)
			out := openssl(t, true, "ocsp", name, "-issuer", caFile, "-cert", file(t, "cert.pem", "CERTIFICATE", rec.Certificate), "-CAfile", caFile, "-url", srv.URL)
			if !strings.Contains(out, "cert.pem: good") || !strings.Contains(out, "Response verify OK") || strings.Contains(out, "WARNING") {
				t.Errorf("CA %d, %s: %s", i, name, out)
			}
		}
	}
	stranger := sceptest.NewCA(t, sceptest.RSA(2))
	if got := errorStatus(post(t, all, question(t, stranger, big.NewInt(1), crypto.SHA1))); got != int(ocsp.Unauthorized) {
		t.Errorf("of another CA: %d", got)
	}
	if got := errorStatus(post(t, status.OCSPs{}, question(t, stranger, big.NewInt(1), crypto.SHA1))); got != int(ocsp.Unauthorized) {
		t.Errorf("of none: %d", got)
	}
}

// TestStrangeSerials asks for what was never issued: nothing is kept.
func TestStrangeSerials(t *testing.T) {
	ca, db := sceptest.NewCA(t), new(depot.Memory)
	store(t, db, ca, 1, nil)
	o := newOCSP(t, status.OCSPConfig{Issuer: ca.Certificate(), Depot: db, Responder: newResponder(t, ca, sceptest.P256())})
	for _, serial := range []*big.Int{
		new(big.Int), big.NewInt(-1), big.NewInt(-1 << 40), new(big.Int).Lsh(big.NewInt(1), 159), new(big.Int).Lsh(big.NewInt(1), 2000),
	} {
		wantStatus(t, post(t, o, question(t, ca, serial, crypto.SHA1)), ca, ocsp.Unknown)
	}
	if got := errorStatus(post(t, o, question(t, ca, new(big.Int).Lsh(big.NewInt(1), 5000), crypto.SHA1))); got != int(ocsp.Malformed) {
		t.Errorf("a serial number of 626 bytes: %d", got)
	}
	storm := func(n int) {
		for i := range n {
			w := httptest.NewRecorder()
			o.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path(question(t, ca, big.NewInt(int64(i+1000)), crypto.SHA256)), nil))
			if w.Header().Get("Cache-Control") != "no-store" {
				t.Fatal(w.Header())
			}
		}
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	storm(100)
	before := heap()
	storm(500)
	if after := heap(); after > before+250<<10 {
		t.Errorf("%d bytes are kept of 500 answers", after-before)
	}
}
