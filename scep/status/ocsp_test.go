package status_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
	"github.com/scepkit/scepkit/scep/status"
)

// newResponder returns an identity for which ca has issued a responder's certificate.
func newResponder(t testing.TB, ca *scep.Identity, key crypto.Signer) *scep.Identity {
	t.Helper()
	cert, err := status.IssueResponder(t.Context(), ca, key.Public(), status.ResponderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return &scep.Identity{Certificates: []*x509.Certificate{cert}, Key: key}
}

func newOCSP(t testing.TB, c status.OCSPConfig) *status.OCSP {
	t.Helper()
	if c.Log == nil {
		c.Log = quiet()
	}
	o, err := status.NewOCSP(c)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func question(t testing.TB, ca *scep.Identity, serial *big.Int, hash crypto.Hash) []byte {
	t.Helper()
	der, err := ocsp.CreateRequest(&x509.Certificate{SerialNumber: serial}, ca.Certificate(), &ocsp.RequestOptions{Hash: hash})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// post asks and returns the answer as it came.
func post(t testing.TB, h http.Handler, der []byte) []byte {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", bytes.NewReader(der)))
	if w.Code != 200 || w.Header().Get("Content-Type") != "application/ocsp-response" || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("POST: %d, %v", w.Code, w.Header())
	}
	return w.Body.Bytes()
}

func wantStatus(t testing.TB, der []byte, ca *scep.Identity, want int) *ocsp.Response {
	t.Helper()
	got, err := ocsp.ParseResponse(der, ca.Certificate())
	if err != nil {
		t.Fatalf("%v: %x", err, der)
	}
	if got.Status != want {
		t.Errorf("status is %d, want %d", got.Status, want)
	}
	return got
}

// errorStatus returns the status of an answer that is not signed.
func errorStatus(der []byte) int {
	var e ocsp.ResponseError
	if _, err := ocsp.ParseResponse(der, nil); !errors.As(err, &e) {
		return -1
	}
	return int(e.Status)
}

func TestOCSP(t *testing.T) {
	ca, db := sceptest.NewCA(t), new(depot.Memory)
	at := time.Now().Add(-time.Hour).UTC().Truncate(time.Second)
	store(t, db, ca, 1, nil)
	store(t, db, ca, 2, revoked(at, scep.KeyCompromise))
	store(t, db, ca, 3, revoked(at, scep.Unspecified))
	store(t, db, ca, 4, func(r *scep.Record) { r.State, r.Certificate = scep.Signing, nil })
	store(t, db, ca, 5, func(r *scep.Record) { r.State = scep.Denied })
	forged := sceptest.NewCA(t, sceptest.RSA(2))
	store(t, db, forged, 6, func(r *scep.Record) { r.Issuer = ca.Certificate().RawSubject }) // a row that somebody wrote
	for name, id := range map[string]*scep.Identity{
		"RSA": newResponder(t, ca, sceptest.RSA(1)), "P-256": newResponder(t, ca, sceptest.P256()), "P-384": newResponder(t, ca, sceptest.P384()), "CA": ca,
	} {
		t.Run(name, func(t *testing.T) {
			o := newOCSP(t, status.OCSPConfig{Issuer: ca.Certificate(), Responder: id, Depot: db})
			for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
				ask := func(serial int64, want int) *ocsp.Response {
					t.Helper()
					got := wantStatus(t, post(t, o, question(t, ca, big.NewInt(serial), hash)), ca, want)
					if got.SerialNumber.Int64() != serial || got.NextUpdate.Sub(got.ThisUpdate) != time.Hour+5*time.Minute {
						t.Errorf("answer for %v, valid from %v to %v", got.SerialNumber, got.ThisUpdate, got.NextUpdate)
					}
					return got
				}
				ask(1, ocsp.Good)
				if got := ask(2, ocsp.Revoked); !got.RevokedAt.Equal(at) || got.RevocationReason != ocsp.KeyCompromise {
					t.Errorf("revoked at %v for %v", got.RevokedAt, got.RevocationReason)
				}
				ask(3, ocsp.Revoked)
				for _, unknown := range []int64{4, 5, 6, 7} {
					ask(unknown, ocsp.Unknown)
				}
			}
			other := question(t, forged, big.NewInt(1), crypto.SHA256)
			if got := errorStatus(post(t, o, other)); got != int(ocsp.Unauthorized) {
				t.Errorf("for another CA: %d", got)
			}
		})
	}
}

func TestGetOCSP(t *testing.T) {
	ca, db, c := sceptest.NewCA(t), new(depot.Memory), newClock()
	id, k := withKey(newResponder(t, ca, sceptest.P256()))
	o := newOCSP(t, status.OCSPConfig{Issuer: ca.Certificate(), Responder: id, Depot: db, Time: c.now})
	srv := httptest.NewServer(o)
	defer srv.Close()
	rec := store(t, db, ca, 1, nil)
	req := question(t, ca, rec.Serial, crypto.SHA1)
	std := base64.StdEncoding.EncodeToString(req)
	paths := map[string]string{
		"escaped":  "/" + url.PathEscape(std),
		"plain":    "/" + std,
		"url":      "/" + base64.RawURLEncoding.EncodeToString(req),
		"mounted":  "/MyCA/ocsp/" + url.QueryEscape(std),
		"unpadded": "/" + strings.TrimRight(std, "="),
	}
	for name, path := range paths {
		res, body := get(t, srv.URL+path, nil)
		if res.StatusCode != 200 {
			t.Fatal(name, res.Status)
		}
		got := wantStatus(t, body, ca, ocsp.Good)
		h := res.Header
		if !strings.HasPrefix(h.Get("Cache-Control"), "max-age=") || h.Get("ETag") == "" ||
			h.Get("Expires") != got.NextUpdate.UTC().Format(http.TimeFormat) || h.Get("Last-Modified") != got.ThisUpdate.UTC().Format(http.TimeFormat) {
			t.Errorf("%s: %v", name, h)
		}
		if res, body := get(t, srv.URL+path, map[string]string{"If-None-Match": h.Get("ETag")}); res.StatusCode != 304 || len(body) > 0 {
			t.Errorf("%s: If-None-Match: %s", name, res.Status)
		}
	}
	if k.count() != 1 {
		t.Errorf("signed %d times, want once", k.count())
	}
	mux := http.NewServeMux()
	mux.Handle("/ocsp/", o)
	mounted := httptest.NewServer(mux)
	defer mounted.Close()
	for range 50 { // of which some have slashes, and doubled ones
		serial := make([]byte, 16)
		rand.Read(serial)
		req := question(t, ca, new(big.Int).SetBytes(append([]byte{1}, serial...)), crypto.SHA256)
		res, body := get(t, mounted.URL+"/ocsp/"+url.PathEscape(base64.StdEncoding.EncodeToString(req)), nil)
		if res.StatusCode != 200 {
			t.Fatal(res.Status)
		}
		wantStatus(t, body, ca, ocsp.Unknown)
	}
	before := k.count()
	c.add(31 * time.Minute) // half of its time is over
	get(t, srv.URL+paths["escaped"], nil)
	if k.count() != before+1 {
		t.Errorf("signed %d times, want once more", k.count()-before)
	}
	// What was revoked is so at once.
	revoked(c.now(), scep.Superseded)(rec)
	if err := db.Update(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	_, body := get(t, srv.URL+paths["escaped"], nil)
	wantStatus(t, body, ca, ocsp.Revoked)
	res, _ := get(t, srv.URL+"/"+url.PathEscape(base64.StdEncoding.EncodeToString(question(t, ca, big.NewInt(99), crypto.SHA1))), nil)
	if res.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("unknown: %v", res.Header)
	}
	for _, bad := range []string{"/", "/M", "/MAA=", "/%zz", "/" + strings.Repeat("M/", 5000), "/" + strings.Repeat("A", 40000)} {
		w := httptest.NewRecorder()
		o.ServeHTTP(w, &http.Request{Method: http.MethodGet, URL: &url.URL{Path: bad}})
		if w.Code != 200 || errorStatus(w.Body.Bytes()) != int(ocsp.Malformed) {
			t.Errorf("%.20q: %d", bad, w.Code)
		}
	}
	if res, err := http.NewRequest(http.MethodPut, srv.URL, nil); err == nil {
		if res, err := http.DefaultClient.Do(res); err != nil || res.StatusCode != 405 {
			t.Errorf("PUT: %v, %v", res, err)
		}
	}
}

// failing is a depot that does not answer.
type failing struct {
	scep.Depot
	err error
}

func (d failing) GetSerial(ctx context.Context, _ []byte, _ *big.Int) (*scep.Record, error) {
	if d.err == nil {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return nil, d.err
}

func TestOCSPFails(t *testing.T) {
	ca, db, c := sceptest.NewCA(t), new(depot.Memory), newClock()
	id, k := withKey(newResponder(t, ca, sceptest.P256()))
	store(t, db, ca, 1, nil)
	config := status.OCSPConfig{Issuer: ca.Certificate(), Responder: id, Depot: db, Time: c.now, Timeout: 100 * time.Millisecond, Signatures: 2, Cache: -1}
	o := newOCSP(t, config)
	req := question(t, ca, big.NewInt(1), crypto.SHA1)
	ask := func(o *status.OCSP, want ocsp.ResponseStatus) {
		t.Helper()
		if got := errorStatus(post(t, o, req)); got != int(want) {
			t.Errorf("got status %d, want %v", got, want)
		}
	}
	k.become(errAway, false)
	ask(o, ocsp.TryLater)
	k.become(nil, true)
	var wg sync.WaitGroup
	for range 8 { // two wait for the key, the others for their turn
		wg.Go(func() { ask(o, ocsp.TryLater) })
	}
	wg.Wait()
	k.become(nil, false)
	wantStatus(t, post(t, o, req), ca, ocsp.Good)
	config.Depot = failing{err: errAway}
	ask(newOCSP(t, config), ocsp.TryLater)
	config.Depot = failing{}
	ask(newOCSP(t, config), ocsp.TryLater)

	c.add(40 * 24 * time.Hour) // the responder's certificate has expired
	ask(o, ocsp.InternalError)
	next, err := status.IssueResponder(t.Context(), ca, sceptest.P384().Public(), status.ResponderOptions{Time: c.now})
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Replace(&scep.Identity{Certificates: []*x509.Certificate{next}, Key: sceptest.P384()}); err != nil {
		t.Fatal(err)
	}
	if got := wantStatus(t, post(t, o, req), ca, ocsp.Good); !got.Certificate.Equal(next) {
		t.Error("the old certificate is in the answer")
	}
}

// TestCache holds the number of answers that are kept to its limit.
func TestCache(t *testing.T) {
	ca, db := sceptest.NewCA(t), new(depot.Memory)
	id, k := withKey(newResponder(t, ca, sceptest.P256()))
	for serial := range int64(5) {
		store(t, db, ca, serial+1, nil)
	}
	o := newOCSP(t, status.OCSPConfig{Issuer: ca.Certificate(), Responder: id, Depot: db, Cache: 3})
	for _, serial := range []int64{1, 2, 3, 1, 2, 3, 4, 2, 3, 4, 1} {
		wantStatus(t, post(t, o, question(t, ca, big.NewInt(serial), crypto.SHA1)), ca, ocsp.Good)
	}
	if k.count() != 5 {
		t.Errorf("signed %d times, want 5", k.count())
	}
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			wantStatus(t, post(t, o, question(t, ca, big.NewInt(int64(i%5+1)), crypto.SHA1)), ca, ocsp.Good)
		})
	}
	wg.Wait()
}

func TestNewOCSPRefuses(t *testing.T) {
	ca := sceptest.NewCA(t)
	good := status.OCSPConfig{Issuer: ca.Certificate(), Responder: newResponder(t, ca, sceptest.P256()), Depot: new(depot.Memory)}
	for want, change := range map[string]func(*status.OCSPConfig){
		"Issuer: is required":    func(c *status.OCSPConfig) { c.Issuer = nil },
		"Responder: is required": func(c *status.OCSPConfig) { c.Responder = nil },
		"Depot: is required":     func(c *status.OCSPConfig) { c.Depot = nil },
		"not for OCSP signing":   func(c *status.OCSPConfig) { c.Responder = sceptest.NewRA(t, ca) },
		"not issued by":          func(c *status.OCSPConfig) { c.Issuer = sceptest.NewCA(t, sceptest.RSA(3)).Certificate() },
		"less than a minute":     func(c *status.OCSPConfig) { c.Validity = time.Second },
		"is valid from": func(c *status.OCSPConfig) {
			c.Time = func() time.Time { return time.Now().AddDate(1, 0, 0) }
		},
	} {
		c := good
		change(&c)
		if _, err := status.NewOCSP(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	// A CA with its own idea of a responder.
	for name, change := range map[string]func(*x509.Certificate){
		"usage":   func(c *x509.Certificate) { c.ExtKeyUsage = nil },
		"more":    func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) },
		"nocheck": func(c *x509.Certificate) { c.ExtraExtensions = nil },
		"end":     func(c *x509.Certificate) { c.NotAfter = c.NotAfter.AddDate(1, 0, 0) },
		"CA":      func(c *x509.Certificate) { c.IsCA = true },
	} {
		if cert, err := status.IssueResponder(t.Context(), willful{ca, change}, sceptest.P256().Public(), status.ResponderOptions{}); err == nil || cert != nil {
			t.Errorf("%s: issued", name)
		}
	}
}

type willful struct {
	*scep.Identity
	change func(*x509.Certificate)
}

func (w willful) Sign(ctx context.Context, tmpl *x509.Certificate, pub crypto.PublicKey) (*x509.Certificate, error) {
	c := *tmpl
	w.change(&c)
	return w.Identity.Sign(ctx, &c, pub)
}
