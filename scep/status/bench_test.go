package status_test

import (
	"bytes"
	"crypto"
	"math/big"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot/sqlite"
	"github.com/scepkit/scepkit/scep/sceptest"
	"github.com/scepkit/scepkit/scep/status"
)

// BenchmarkOCSP answers from what was signed before, and anew.
func BenchmarkOCSP(b *testing.B) {
	ca := sceptest.NewCA(b)
	db, err := sqlite.Open(filepath.Join(b.TempDir(), "scep.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	store(b, db, ca, 1, nil)
	req := question(b, ca, big.NewInt(1), crypto.SHA1)
	for name, cache := range map[string]int{"signed before": 0, "P-256": -1} {
		b.Run(name, func(b *testing.B) {
			o := newOCSP(b, status.OCSPConfig{Issuer: ca.Certificate(), Responder: newResponder(b, ca, sceptest.P256()), Depot: db, Cache: cache})
			b.ReportAllocs()
			for b.Loop() {
				w := httptest.NewRecorder()
				if o.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(req))); w.Code != 200 {
					b.Fatal(w.Code)
				}
			}
		})
	}
}

// BenchmarkCRL makes a CRL of 100,000 certificates.
func BenchmarkCRL(b *testing.B) {
	crl := newCRL(b, status.CRLConfig{Issuer: sceptest.NewCA(b), Depot: revocations{n: 100_000, at: time.Now()}})
	b.ReportAllocs()
	for b.Loop() {
		crl.Renew()
		if err := crl.Refresh(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
