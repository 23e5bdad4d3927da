package scepclient_test

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/scepclient"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// crlFunc is a scep.CRLSource.
type crlFunc func(issuer []byte, serial *big.Int) ([]byte, error)

func (f crlFunc) CRL(_ context.Context, issuer []byte, serial *big.Int) ([]byte, error) {
	return f(issuer, serial)
}

func TestGetCRL(t *testing.T) {
	ca := sceptest.NewCA(t)
	list := func(by *scep.Identity, change func(*x509.RevocationList)) []byte {
		tmpl := &x509.RevocationList{
			Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour),
			RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(4711), RevocationTime: time.Now()}},
		}
		if change != nil {
			change(tmpl)
		}
		der, err := x509.CreateRevocationList(rand.Reader, tmpl, by.Certificate(), by.Key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	good := list(ca, nil)
	tampered := append([]byte(nil), good...)
	tampered[len(tampered)-1] ^= 1
	var reply []byte
	var asked *big.Int
	srv := sceptest.NewServer(t, scep.Config{CA: ca, CRL: crlFunc(func(issuer []byte, serial *big.Int) ([]byte, error) {
		if string(issuer) != string(ca.Certificate().RawSubject) {
			return nil, scep.ErrNotFound
		}
		asked = serial
		return reply, nil
	})})
	c := clientOf(srv)
	res, err := c.Enroll(t.Context(), enrolment("crl"))
	if err != nil {
		t.Fatal(err)
	}
	cert, key := res.Certificate, sceptest.RSA(0)

	reply = good
	for _, serial := range []*big.Int{nil, cert.SerialNumber} {
		got, err := c.GetCRL(t.Context(), nil, serial, cert, key)
		if err != nil || len(got.RevokedCertificateEntries) != 1 || string(got.Raw) != string(good) {
			t.Errorf("%v, %v", got, err)
		}
		// The CA's own serial number, which is sent for nil, the server takes for that of who asks.
		if asked.Cmp(cert.SerialNumber) != 0 {
			t.Errorf("asked for %v, want %v", asked, cert.SerialNumber)
		}
	}
	for want, der := range map[string][]byte{
		"not signed by": tampered,
		"not now": list(ca, func(l *x509.RevocationList) {
			l.ThisUpdate, l.NextUpdate = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		}),
		"has no CRL": list(sceptest.NewCA(t, sceptest.RSA(3)), nil),
		"the CRL in": {0x30, 3, 2, 1, 1},
	} {
		reply = der
		if got, err := c.GetCRL(t.Context(), nil, nil, cert, key); err == nil || got != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	var failure *scepclient.FailureError
	if _, err := c.GetCRL(t.Context(), sceptest.CN("another CA"), nil, cert, key); !errors.As(err, &failure) || failure.FailInfo != scep.BadCertID {
		t.Errorf("of another CA: %v", err)
	}
	if _, err := c.GetCRL(t.Context(), nil, nil, nil, key); err == nil {
		t.Error("asked without a certificate")
	}
	if _, err := c.GetCRL(t.Context(), nil, nil, cert, sceptest.RSA(1)); err == nil {
		t.Error("asked with another key")
	}
	if _, err := c.GetCRL(t.Context(), nil, nil, cert, sceptest.P256()); err == nil {
		t.Error("asked with a key that cannot decrypt")
	}
	plain := clientOf(sceptest.NewServer(t, scep.Config{CA: ca}))
	if _, err := plain.GetCRL(t.Context(), nil, nil, cert, key); !errors.As(err, &failure) || failure.FailInfo != scep.BadRequest {
		t.Errorf("where it is not offered: %v", err)
	}
}
