package names

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
)

func TestNames(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	subject := pkix.Name{CommonName: "device, the first", Organization: []string{"Example"}}
	uri, ip := &url.URL{Scheme: "urn", Opaque: "device:1"}, net.IPv4(192, 0, 2, 1)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: subject, DNSNames: []string{"a.test", "b.test"}, EmailAddresses: []string{"a@b.test"}, IPAddresses: []net.IP{ip}, URIs: []*url.URL{uri},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now(), NotAfter: time.Now(), IsCA: true, BasicConstraintsValid: true,
		Subject: subject, DNSNames: []string{"a.test", "b.test"}, EmailAddresses: []string{"a@b.test"}, IPAddresses: []net.IP{ip}, URIs: []*url.URL{uri},
	}
	certificate, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	const wantSAN = "DNS:a.test, DNS:b.test, email:a@b.test, IP:192.0.2.1, URI:urn:device:1"
	for name, rec := range map[string]*scep.Record{
		"CSR":         {CSR: csr},
		"template":    {CSR: []byte("no matter"), Template: certificate},
		"certificate": {CSR: []byte("no matter"), Certificate: certificate},
	} {
		if got, san := Of(rec); got != subject.String() || san != wantSAN {
			t.Errorf("%s: %q, %q; want %q, %q", name, got, san, subject, wantSAN)
		}
	}
	if got, san := Of(&scep.Record{}); got != "" || san != "" {
		t.Errorf("nothing: %q, %q", got, san)
	}
	// Whatever is stored, it does not panic.
	for _, der := range [][]byte{csr, certificate} {
		for i := range der {
			damaged := append([]byte(nil), der...)
			damaged[i] ^= 0x85
			for _, der := range [][]byte{der[:i], damaged} {
				Of(&scep.Record{CSR: der})
				Of(&scep.Record{Template: der})
			}
		}
	}
}
