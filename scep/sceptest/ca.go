package sceptest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// NewCA returns a self-signed CA, valid for ten years from an hour ago, whose key may do all that
// it can: sign certificates, CRLs and replies and, if it is RSA, open requests. The key is key[0],
// or a fixed RSA key. CAs with different keys have different names.
func NewCA(t testing.TB, key ...crypto.Signer) *scep.Identity {
	t.Helper()
	return issue(t, nil, first(key, RSAKeys-1), "CA", true)
}

// NewSubCA returns a CA as [NewCA] does, but issued by parent and shorter-lived by a year. Its
// Certificates end with those of parent.
func NewSubCA(t testing.TB, parent *scep.Identity, key ...crypto.Signer) *scep.Identity {
	t.Helper()
	return issue(t, parent, first(key, RSAKeys-2), "sub CA", true)
}

// NewRA returns an identity for [scep.Config].RA: its certificate is issued by ca and allows it to
// sign replies and to open requests, not to sign certificates.
func NewRA(t testing.TB, ca *scep.Identity, key ...crypto.Signer) *scep.Identity {
	t.Helper()
	return issue(t, ca, first(key, RSAKeys-3), "RA", false)
}

func first(keys []crypto.Signer, i int) crypto.Signer {
	if len(keys) > 0 {
		return keys[0]
	}
	return RSA(i)
}

// canOpen reports whether requests can be encrypted to id.
func canOpen(id *scep.Identity) bool {
	_, ok := id.Key.Public().(*rsa.PublicKey)
	return ok
}

// issue makes an identity, self-signed if parent is nil.
func issue(t testing.TB, parent *scep.Identity, key crypto.Signer, name string, isCA bool) *scep.Identity {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(spki)
	now := time.Now()
	commonName := fmt.Sprintf("%s %x", name, sum[:3])
	number := sha256.Sum256([]byte(commonName)) // one key may have several certificates
	tmpl := &x509.Certificate{
		SerialNumber:          new(big.Int).SetBytes(append([]byte{1}, number[:15]...)),
		Subject:               pkix.Name{Organization: []string{"sceptest"}, CommonName: commonName},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.AddDate(10, 0, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  isCA,
		SubjectKeyId:          sum[:20],
	}
	if isCA {
		tmpl.KeyUsage |= x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	}
	if _, ok := key.Public().(*rsa.PublicKey); ok {
		tmpl.KeyUsage |= x509.KeyUsageKeyEncipherment
	}
	issuer, signer := tmpl, key
	if parent != nil {
		issuer, signer = parent.Certificate(), parent.Key
		tmpl.NotAfter = issuer.NotAfter.AddDate(-1, 0, 0)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, issuer, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	id := &scep.Identity{Key: key, Certificates: []*x509.Certificate{cert}}
	if parent != nil {
		id.Certificates = append(id.Certificates, parent.Certificates...)
	}
	return id
}
