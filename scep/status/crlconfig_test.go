package status_test

import (
	"crypto/x509/pkix"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
	"github.com/scepkit/scepkit/scep/status"
)

// TestCRLs has the CRLs of two CAs behind one service.
func TestCRLs(t *testing.T) {
	first, second := sceptest.NewCA(t, sceptest.RSA(1)), sceptest.NewCA(t, sceptest.RSA(2))
	all := status.CRLs{
		newCRL(t, status.CRLConfig{Issuer: first, Depot: revocations{}, URL: "http://pki.example/1.crl"}),
		newCRL(t, status.CRLConfig{Issuer: second, Depot: revocations{}, URL: "http://pki.example/2.crl"}),
	}
	for i, ca := range []*scep.Identity{first, second} {
		der, err := all.CRL(t.Context(), ca.Certificate().RawSubject, nil)
		if err != nil {
			t.Fatal(err)
		}
		parse(t, der, ca)
		if got := all.DistributionPoints(ca.Certificate().RawSubject, nil); len(got) != 1 || got[0] != fmt.Sprintf("http://pki.example/%d.crl", i+1) {
			t.Errorf("DistributionPoints are %v", got)
		}
	}
	for path, ca := range map[string]*scep.Identity{"/crl/1.crl": first, "/2.crl": second} {
		w := httptest.NewRecorder()
		all.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		parse(t, w.Body.Bytes(), ca)
	}
	w := httptest.NewRecorder()
	if all.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/3.crl", nil)); w.Code != 404 {
		t.Errorf("of nobody: %d", w.Code)
	}
	if _, err := all.CRL(t.Context(), sceptest.CN("another CA"), nil); err != scep.ErrNotFound || all.DistributionPoints(sceptest.CN("another CA"), nil) != nil {
		t.Errorf("of another CA: %v", err)
	}
}

// Without a URL of its own, the full CRL is under every path but that of the delta CRL.
func TestDeltaURLOnly(t *testing.T) {
	ca := sceptest.NewCA(t)
	crl := newCRL(t, status.CRLConfig{Issuer: ca, Depot: revocations{n: 1}, Delta: status.Delta{URL: "http://pki.example/delta.crl"}})
	for path, delta := range map[string]bool{"/delta.crl": true, "/ca.crl": false, "/": false} {
		w := httptest.NewRecorder()
		crl.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != 200 {
			t.Fatal(path, w.Code)
		}
		if got := slices.ContainsFunc(parse(t, w.Body.Bytes(), ca).Extensions, func(e pkix.Extension) bool { return e.Id.String() == "2.5.29.27" }); got != delta {
			t.Errorf("%s is a delta CRL: %v", path, got)
		}
	}
}

func TestNewCRLRefuses(t *testing.T) {
	ca := sceptest.NewCA(t)
	good := status.CRLConfig{Issuer: ca, Depot: revocations{}}
	for name, change := range map[string]func(*status.CRLConfig){
		"Issuer: is required": func(c *status.CRLConfig) { c.Issuer = nil },
		"may not sign CRLs":   func(c *status.CRLConfig) { c.Issuer = sceptest.NewRA(t, ca) },
		"does not belong": func(c *status.CRLConfig) {
			c.Issuer = &scep.Identity{Certificates: ca.Certificates, Key: sceptest.P256()}
		},
		"without a key":      func(c *status.CRLConfig) { c.Issuer = &scep.Identity{Certificates: ca.Certificates} },
		"Depot: is required": func(c *status.CRLConfig) { c.Depot = nil },
		"is -1":              func(c *status.CRLConfig) { c.Shards = -1 },
		"is required with":   func(c *status.CRLConfig) { c.Shards = 2 },
		"needs one {n}":      func(c *status.CRLConfig) { c.Shards, c.URL = 2, "http://pki.example/x.crl" },
		"not absolute":       func(c *status.CRLConfig) { c.URL = "x.crl" },
		"ends like another":  func(c *status.CRLConfig) { c.URL, c.Delta.URL = "http://a.example/x.crl", "http://b.example/x.crl" },
		"negative":           func(c *status.CRLConfig) { c.Validity = -1 },
		"shorter":            func(c *status.CRLConfig) { c.Validity, c.Refresh = time.Hour, time.Hour },
		"has a query":        func(c *status.CRLConfig) { c.Shards, c.URL = 2, "http://pki.example/crl?shard={n}" },
		"not ASCII":          func(c *status.CRLConfig) { c.URL = "http://pki.example/ü.crl" },
	} {
		c := good
		change(&c)
		if _, err := status.NewCRL(c); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want %q", err, name)
		}
	}
}
