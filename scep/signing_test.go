package scep_test

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/scepkit/scepkit/backend/file"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// verifies has openssl verify certificates.
func verifies(t *testing.T, ca *x509.Certificate, certs ...*x509.Certificate) {
	t.Helper()
	needOpenSSL(t)
	dir := t.TempDir()
	writePEM(t, filepath.Join(dir, "ca"), "CERTIFICATE", ca.Raw)
	for _, cert := range certs {
		writePEM(t, filepath.Join(dir, "cert"), "CERTIFICATE", cert.Raw)
		cmd := exec.CommandContext(t.Context(), "openssl", "verify", "-x509_strict", "-CAfile", "ca", "cert")
		cmd.Dir = dir
		if msg, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%q: %s", cert.Subject, msg)
		}
	}
}

func writePEM(t *testing.T, name, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestSigningCAs issues from CAs that can only sign, behind an RA with an RSA key.
func TestSigningCAs(t *testing.T) {
	t.Parallel()
	for name, key := range signers(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ca := sceptest.NewCA(t, key)
			srv := sceptest.NewServer(t, scep.Config{CA: ca, PasswordRecipients: true, Renewal: scep.Renewal{On: true, Anytime: true}})
			d := newConformer(srv)
			if certs := d.CA(t); len(certs) != 2 || !certs[1].Equal(ca.Certificate()) || !certs[0].Equal(srv.Config.RA.Certificate()) {
				t.Errorf("GetCACert has %d certificates", len(certs))
			}
			cert := d.Enroll(t)
			renewed := d.Renew(t, cert, d.Key)
			if r := d.Send(t, d.GetCert(t, cert.RawIssuer, cert.SerialNumber)); r.Certificate == nil || !r.Certificate.Equal(cert) {
				t.Errorf("GetCert: %v", r)
			}
			issued := []*x509.Certificate{cert, renewed, srv.Config.RA.Certificate()}
			if name != "P-256" {
				ec := ecDevice(srv, sceptest.P256(), "EC "+name)
				r := ec.Send(t, ec.PKCSReq(t))
				wantOK(t, r)
				issued = append(issued, r.Certificate)
			}
			for _, cert := range issued {
				if err := cert.CheckSignatureFrom(ca.Certificate()); err != nil {
					t.Error(err)
				}
			}
			verifies(t, ca.Certificate(), issued...)
		})
	}
}

// An own key is refused whatever curve it is on.
func TestSigningCAKeyOfDevice(t *testing.T) {
	t.Parallel()
	key := sceptest.P384()
	srv := sceptest.NewServer(t, scep.Config{CA: sceptest.NewCA(t, key), PasswordRecipients: true})
	d := ecDevice(srv, key, "CA's key")
	wantFail(t, d.Send(t, d.PKCSReq(t)), scep.BadRequest, "the key in the CSR belongs to the CA")
	wantNothingIssued(t, srv)
}

// TestSigningCAFiles has the same from files: the CA's key and, made from it, the RA's.
func TestSigningCAFiles(t *testing.T) {
	t.Parallel()
	for name, key := range signers(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			der, err := x509.MarshalPKCS8PrivateKey(key)
			if err != nil {
				t.Fatal(err)
			}
			chain, private := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key")
			writePEM(t, chain, "CERTIFICATE", sceptest.NewCA(t, key).Certificate().Raw)
			writePEM(t, private, "PRIVATE KEY", der)
			ca, err := file.Open(chain, private)
			if err != nil {
				t.Fatal(err)
			}
			ra, _, err := file.RA(t.Context(), ca, filepath.Join(dir, "ra"), file.RAOptions{})
			if err != nil {
				t.Fatal(err)
			}
			srv := sceptest.NewServer(t, scep.Config{CA: ca, RA: ra})
			d := newConformer(srv)
			cert := d.Enroll(t)
			if certs := d.CA(t); len(certs) != 2 || !certs[0].Equal(ra.Certificate()) || !certs[1].Equal(ca.Certificate()) {
				t.Errorf("GetCACert has %d certificates", len(certs))
			}
			verifies(t, ca.Certificate(), cert, ra.Certificate())
		})
	}
}
