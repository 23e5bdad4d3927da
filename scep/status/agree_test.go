package status_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/scepkit/scepkit/depot/sqlite"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/scepclient"
	"github.com/scepkit/scepkit/scep/sceptest"
	"github.com/scepkit/scepkit/scep/status"
)

// TestAgree enrols, revokes, takes back and revokes for good, and has openssl verify, openssl ocsp
// and GetCRL say the same each time, with one CRL and with shards, and after a restart.
func TestAgree(t *testing.T) {
	for _, shards := range []int{1, 3} {
		t.Run(fmt.Sprint(shards, " shards"), func(t *testing.T) { agree(t, shards) })
	}
}

func agree(t *testing.T, shards int) {
	ca := sceptest.NewCA(t)
	responder := newResponder(t, ca, sceptest.P256())
	path := filepath.Join(t.TempDir(), "scep.db")
	db, err := sqlite.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { db.Close() }()
	start := func() (*sceptest.Server, *status.CRL, *httptest.Server) {
		crl := newCRL(t, status.CRLConfig{Issuer: ca, Depot: db, URL: "http://pki.example/crl/{n}.crl", Shards: shards})
		srv := sceptest.NewServer(t, scep.Config{
			CA: ca, Depot: db, CRL: crl, Renewal: scep.Renewal{On: true, Anytime: true},
		})
		mux := http.NewServeMux()
		mux.Handle("/crl/", crl)
		mux.Handle("/ocsp/", newOCSP(t, status.OCSPConfig{Issuer: ca.Certificate(), Responder: responder, Depot: db}))
		pki := httptest.NewServer(mux)
		t.Cleanup(pki.Close)
		return srv, crl, pki
	}
	srv, _, pki := start()
	d := srv.Device(0)
	cert := d.Enroll(t)
	if len(cert.CRLDistributionPoints) != 1 {
		t.Fatalf("CRLDistributionPoints is %v", cert.CRLDistributionPoints)
	}
	rec, err := db.GetSerial(t.Context(), cert.RawIssuer, cert.SerialNumber)
	if err != nil {
		t.Fatal(err)
	}
	caFile := file(t, "ca.pem", "CERTIFICATE", ca.Certificate().Raw)
	certFile := file(t, "cert.pem", "CERTIFICATE", cert.Raw)

	look := func(when string, revoked bool, reason string) {
		t.Helper()
		res, der := get(t, pki.URL+strings.TrimPrefix(cert.CRLDistributionPoints[0], "http://pki.example"), nil)
		if res.StatusCode != 200 {
			t.Fatal(when, res.Status)
		}
		crlFile := file(t, "crl.pem", "X509 CRL", der)
		if out := openssl(t, true, "crl", "-in", crlFile, "-CAfile", caFile, "-noout", "-verify"); !strings.Contains(out, "verify OK") {
			t.Errorf("%s: openssl crl: %s", when, out)
		}
		out := openssl(t, !revoked, "verify", "-CAfile", caFile, "-CRLfile", crlFile, "-crl_check", certFile)
		if strings.Contains(out, "certificate revoked") != revoked || strings.Contains(out, ": OK") == revoked {
			t.Errorf("%s: openssl verify: %s", when, out)
		}
		out = openssl(t, true, "ocsp", "-issuer", caFile, "-cert", certFile, "-CAfile", caFile, "-url", pki.URL+"/ocsp/")
		if strings.Contains(out, "cert.pem: revoked") != revoked || strings.Contains(out, "cert.pem: good") == revoked ||
			!strings.Contains(out, "Response verify OK") || strings.Contains(out, "WARNING") || reason != "" && !strings.Contains(out, "Reason: "+reason) {
			t.Errorf("%s: openssl ocsp: %s", when, out)
		}
		client := &scepclient.Client{URL: srv.URL, Fingerprints: []string{scepclient.Fingerprint(ca.Certificate())}}
		list, err := client.GetCRL(t.Context(), nil, cert.SerialNumber, cert, d.Key)
		if err != nil {
			t.Fatal(when, err)
		}
		if listed := slices.ContainsFunc(list.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool {
			return e.SerialNumber.Cmp(cert.SerialNumber) == 0
		}); listed != revoked || !bytes.Equal(list.Raw, der) {
			t.Errorf("%s: GetCRL lists it: %v, and has %d bytes; want %v, %d", when, listed, len(list.Raw), revoked, len(der))
		}
	}
	look("issued", false, "")
	if err := srv.Handler.Revoke(t.Context(), rec.ID, scep.CertificateHold, scep.Decision{By: "alice", Remark: "lost"}); err != nil {
		t.Fatal(err)
	}
	look("on hold", true, "certificateHold")
	if err := srv.Handler.Unrevoke(t.Context(), rec.ID, scep.Decision{By: "alice", Remark: "found"}); err != nil {
		t.Fatal(err)
	}
	look("found again", false, "")
	if err := srv.Handler.RevokeSerial(t.Context(), cert.SerialNumber, scep.KeyCompromise, scep.Decision{By: "bob"}); err != nil {
		t.Fatal(err)
	}
	look("revoked", true, "keyCompromise")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if db, err = sqlite.Open(path); err != nil {
		t.Fatal(err)
	}
	srv, _, pki = start()
	look("after a restart", true, "keyCompromise")
	if got, err := db.Get(t.Context(), rec.ID); err != nil || got.DecidedBy != "bob" || !bytes.Equal(got.Certificate, cert.Raw) {
		t.Errorf("record: %+v, %v", got, err)
	}
}

// ExampleNewCRL serves the CRL of a CA beside its SCEP service.
func ExampleNewCRL() {
	var (
		ca *scep.Identity // from a backend package
		db *sqlite.DB
	)
	crl, err := status.NewCRL(status.CRLConfig{Issuer: ca, Depot: db, URL: "http://pki.example/crl/{n}.crl", Shards: 16})
	if err != nil {
		fmt.Println(err)
		return
	}
	h, err := scep.New(scep.Config{CA: ca, Depot: db, CRL: crl})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	mux := http.NewServeMux()
	mux.Handle("/scep", h)
	mux.Handle("/crl/", crl)
	// Output: status: CRLConfig.Issuer: is required
}

// ExampleNewOCSP answers with a key that has a new certificate made for it whenever that is due.
func ExampleNewOCSP() {
	var (
		ca  *scep.Identity // from a backend package
		key crypto.Signer  // of the responder
		db  *sqlite.DB
	)
	o, err := status.NewOCSP(status.OCSPConfig{
		Issuer: ca.Certificate(), Depot: db,
		Renew: func(ctx context.Context) (*scep.Identity, error) {
			cert, err := status.IssueResponder(ctx, ca, key.Public(), status.ResponderOptions{})
			return &scep.Identity{Certificates: []*x509.Certificate{cert}, Key: key}, err
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	mux := http.NewServeMux() // has the rest
	_ = http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/ocsp") {
			o.ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})}
	_ = scep.Profile{OCSPServer: []string{"http://pki.example/ocsp"}} // so that certificates say where
	// Output: status: OCSPConfig.Issuer: is required
}
