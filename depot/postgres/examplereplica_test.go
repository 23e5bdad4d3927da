package postgres_test

import (
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/file"
	"github.com/scepkit/scepkit/depot/postgres/postgrestest"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/scepclient"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// TestExampleReplica has two replicas of the example take turns with all requests, and what is
// decided at one hold at the other.
func TestExampleReplica(t *testing.T) {
	t.Parallel()
	dir, database := t.TempDir(), postgrestest.Shared(t).Database(t)
	ca, err := file.CreateCA(filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key"), file.CAOptions{KeyType: backend.P256})
	if err != nil {
		t.Fatal(err)
	}
	var all [2]*replica
	var turn atomic.Uint32
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		all[turn.Add(1)%2].ServeHTTP(w, req)
	}))
	t.Cleanup(front.Close)
	for i := range all {
		if all[i], err = newReplica(t.Context(), database, dir, "shared", front.URL); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { all[i].db.Close() })
	}
	admin := func(i int, method, path string) string {
		t.Helper()
		w, req := httptest.NewRecorder(), httptest.NewRequest(method, path, nil)
		req.Header.Set("X-User", "alice")
		all[i].admin().ServeHTTP(w, req)
		if w.Code != http.StatusOK {
			t.Fatalf("%s %s: %d %s", method, path, w.Code, w.Body)
		}
		return strings.TrimSpace(w.Body.String())
	}
	get := func(path string, body io.Reader) []byte {
		t.Helper()
		method := http.MethodGet
		if body != nil {
			method = http.MethodPost
		}
		req, err := http.NewRequestWithContext(t.Context(), method, path, body)
		if err != nil {
			t.Fatal(err)
		}
		res, err := front.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		der, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s %q, %v", path, res.Status, der, err)
		}
		return der
	}
	client := &scepclient.Client{URL: front.URL + "/scep", Roots: ca.Certificates, HTTP: front.Client(), Retries: -1}
	enroll := func(key *rsa.PrivateKey, name, secret string) (*x509.Certificate, error) {
		res, err := client.Enroll(t.Context(), scepclient.Request{
			Key: key, Template: &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, Challenge: scep.NewSecret(secret),
		})
		if err != nil {
			return nil, err
		}
		return res.Certificate, nil
	}
	get(front.URL+"/readyz", nil)

	// One has a challenge.
	secret := admin(0, http.MethodPost, "/challenge?"+url.Values{"subject": {"CN=device-1"}}.Encode())
	cert, err := enroll(sceptest.RSA(0), "device-1", secret)
	if err != nil {
		t.Fatal(err)
	}

	// Another waits for a person.
	_, err = enroll(sceptest.RSA(1), "device-2", "shared")
	var waits *scepclient.PendingError
	if !errors.As(err, &waits) {
		t.Fatalf("with the shared challenge: %v, want to wait", err)
	}
	id, _, _ := strings.Cut(admin(0, http.MethodGet, "/waiting"), " ")
	admin(1, http.MethodPost, "/approve/"+id+"?why=known")
	if res, err := client.Poll(t.Context(), waits.Pending, sceptest.RSA(1)); err != nil || res.Certificate.Subject.CommonName != "device-2" {
		t.Errorf("after approval: %+v, %v", res, err)
	}
	if rec, err := all[0].db.Get(t.Context(), scep.ID(id)); err != nil || rec.DecidedBy != "alice" || rec.Remark != "known" {
		t.Errorf("record: %+v, %v", rec, err)
	}

	// The first is revoked. Certificates say where that can be found out.
	if len(cert.CRLDistributionPoints) != 1 || len(cert.OCSPServer) != 1 {
		t.Fatalf("CRL at %q, OCSP at %q", cert.CRLDistributionPoints, cert.OCSPServer)
	}
	question, err := ocsp.CreateRequest(cert, ca.Certificate(), nil)
	if err != nil {
		t.Fatal(err)
	}
	answer := func() int {
		a, err := ocsp.ParseResponseForCert(get(cert.OCSPServer[0], strings.NewReader(string(question))), cert, ca.Certificate())
		if err != nil {
			t.Fatal(err)
		}
		return a.Status
	}
	listed := func() bool {
		crl, err := x509.ParseRevocationList(get(cert.CRLDistributionPoints[0], nil))
		if err == nil {
			err = crl.CheckSignatureFrom(ca.Certificate())
		}
		if err != nil {
			t.Fatal(err)
		}
		return len(crl.RevokedCertificateEntries) == 1 && crl.RevokedCertificateEntries[0].SerialNumber.Cmp(cert.SerialNumber) == 0
	}
	for range all {
		if answer() != ocsp.Good || listed() {
			t.Fatal("is revoked before it was")
		}
	}
	admin(1, http.MethodPost, "/revoke/"+hex.EncodeToString(cert.SerialNumber.Bytes()))
	for range all {
		if answer() != ocsp.Revoked {
			t.Error("OCSP does not know that it is revoked")
		}
	}
	for both, deadline := 0, time.Now().Add(patient); both < 2; time.Sleep(20 * time.Millisecond) {
		if both++; !listed() {
			both = 0
		}
		if time.Now().After(deadline) {
			t.Fatal("is not on the CRLs of both")
		}
	}
	_, err = client.Renew(t.Context(), cert, sceptest.RSA(0), scepclient.Request{Key: sceptest.RSA(2)})
	var refused *scepclient.FailureError
	if !errors.As(err, &refused) || !strings.Contains(refused.Text, "revoked") {
		t.Errorf("renewing: %v, want a refusal because it is revoked", err)
	}

	// Whoever has no challenge at all is refused.
	if _, err = enroll(sceptest.RSA(3), "device-3", ""); !errors.As(err, &refused) {
		t.Errorf("without a challenge: %v, want a refusal", err)
	}

	// The RA is another only if it is time, or if the last one is gone.
	before := all[0].scep.Handler()
	if err := all[0].renewRA(t.Context()); err != nil || all[0].scep.Handler() != before {
		t.Errorf("another handler for the same RA, or %v", err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "ra")); err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		if err := r.renewRA(t.Context()); err != nil || r.scep.Handler() == before || !r.ras[0].Certificate().Equal(all[0].ras[0].Certificate()) {
			t.Errorf("no new RA, or not the same for both: %v", err)
		}
	}
}
