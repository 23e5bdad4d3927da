package scepclient

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"
)

// TestTrailingBytes reads certificates whose last byte looks like what some servers send after
// them, and such bytes.
func TestTrailingBytes(t *testing.T) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for serial := int64(1); ; serial++ {
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "CA"}, NotAfter: time.Now()}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		if last := der[len(der)-1]; last != 0 && last != '\n' && last != '\r' {
			continue
		}
		for _, after := range []string{"", "\n", "\r\n", "\x00\x00"} {
			certs, err := parseCACertificates(append(bytes.Clone(der), after...))
			if err != nil || len(certs) != 1 || !bytes.Equal(certs[0].Raw, der) {
				t.Errorf("with %q after it: %v", after, err)
			}
		}
		return
	}
}
