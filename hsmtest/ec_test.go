//go:build cgo

package hsmtest_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"path/filepath"
	"testing"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/file"
	"github.com/scepkit/scepkit/backend/pkcs11"
	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/hsmtest"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/scepclient"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// TestECAllTheWay has no RSA but in the RA: the CA's key is an EC key in a token, and the clients'
// are EC keys too, whose replies are encrypted with their one-time challenges.
func TestECAllTheWay(t *testing.T) {
	token := hsmtest.SoftHSM(t)
	for _, kind := range []backend.KeyType{backend.P256, backend.P384} {
		t.Run(kind.String(), func(t *testing.T) {
			key, err := backend.Create(t.Context(), token.URI("ca "+kind.String()), backend.Spec{KeyType: kind}, quiet(&pkcs11.Driver{}))
			if err != nil {
				t.Fatal(err)
			}
			defer key.Close()
			cert, err := backend.SelfSign(t.Context(), key.Key, backend.CAOptions{Subject: pkix.Name{CommonName: "CA"}})
			if err != nil {
				t.Fatal(err)
			}
			ca := &scep.Identity{Certificates: []*x509.Certificate{cert}, Key: key.Key}
			ra, _, err := file.RA(t.Context(), ca, filepath.Join(t.TempDir(), "ra"), file.RAOptions{})
			if err != nil {
				t.Fatal(err)
			}
			records := new(depot.Memory)
			secrets := &challenge.OneTime{Store: records}
			srv := sceptest.NewServer(t, scep.Config{
				CA: ca, RA: ra, Depot: records, Challenge: secrets, PasswordRecipients: true, Renewal: scep.Renewal{On: true, Anytime: true},
			})
			c := &scepclient.Client{URL: srv.URL, Fingerprints: []string{scepclient.Fingerprint(cert)}}
			for i, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
				secret, err := secrets.New(t.Context(), challenge.Binding{})
				if err != nil {
					t.Fatal(err)
				}
				old, err := ecdsa.GenerateKey(curve, rand.Reader)
				if err != nil {
					t.Fatal(err)
				}
				request := scepclient.Request{
					Key: old, Challenge: secret, PasswordReply: true,
					Template: &x509.CertificateRequest{Subject: pkix.Name{CommonName: string(rune('a' + i))}},
				}
				first, err := c.Enroll(t.Context(), request)
				if err != nil {
					t.Fatal(err)
				}
				next, err := ecdsa.GenerateKey(curve, rand.Reader)
				if err != nil {
					t.Fatal(err)
				}
				renewed, err := c.Renew(t.Context(), first.Certificate, old, scepclient.Request{
					Key: next, Challenge: scep.NewSecret(rand.Text()), PasswordReply: true,
				})
				if err != nil {
					t.Fatal(err)
				}
				roots := x509.NewCertPool()
				roots.AddCert(cert)
				for _, got := range []struct {
					cert *x509.Certificate
					key  crypto.Signer
				}{{first.Certificate, old}, {renewed.Certificate, next}} {
					if _, err := got.cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
						t.Error(err)
					}
					if !got.key.Public().(*ecdsa.PublicKey).Equal(got.cert.PublicKey) {
						t.Error("certificate is for another key")
					}
				}
			}
		})
	}
}
