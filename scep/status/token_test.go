//go:build cgo

package status_test

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/pkcs11"
	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/hsmtest"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/status"
)

// TestToken has the keys of the CA and of its OCSP responder in a token that goes away.
func TestToken(t *testing.T) {
	t.Parallel()
	plain := hsmtest.SoftHSM(t)
	for label, kind := range map[string]backend.KeyType{"ca": backend.P256, "responder": backend.RSA2048} {
		key, err := backend.Create(t.Context(), plain.URI(label), backend.Spec{KeyType: kind}, pkcs11.Driver{})
		if err != nil {
			t.Fatal(err)
		}
		// The responder's is only there to be opened by: its own comes from IssueResponder.
		cert, err := backend.SelfSign(t.Context(), key.Key, backend.CAOptions{Subject: pkix.Name{CommonName: label}})
		if err != nil {
			t.Fatal(err)
		}
		if err := backend.Import(t.Context(), plain.URI(label), []*x509.Certificate{cert}, false, pkcs11.Driver{}); err != nil {
			t.Fatal(err)
		}
		key.Close()
	}
	token := hsmtest.Fault(t, plain)
	opened, err := pkcs11.Open(pkcs11.Config{Module: token.Module, Token: token.Label, PIN: scep.NewSecret(token.PIN), Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	ca, err := opened.Identity(t.Context(), "ca")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := opened.Identity(t.Context(), "responder")
	if err != nil {
		t.Fatal(err)
	}
	c := newClock()
	cert, err := status.IssueResponder(t.Context(), ca, signer.Key.Public(), status.ResponderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	db := new(depot.Memory)
	store(t, db, ca, 1, revoked(c.now(), scep.KeyCompromise))
	store(t, db, ca, 2, nil)
	crl := newCRL(t, status.CRLConfig{Issuer: ca, Depot: db, Time: c.now, Timeout: 5 * time.Second})
	o := newOCSP(t, status.OCSPConfig{
		Issuer: ca.Certificate(), Depot: db, Time: c.now, Timeout: 2 * time.Second, Responder: &scep.Identity{Certificates: []*x509.Certificate{cert}, Key: signer.Key},
	})
	one := question(t, ca, big.NewInt(1), crypto.SHA256)
	list, answer := fetch(t, crl, ca), post(t, o, one)
	if !lists(list, 1) || lists(list, 2) {
		t.Errorf("%d entries", len(list.RevokedCertificateEntries))
	}
	wantStatus(t, answer, ca, ocsp.Revoked)

	release := token.Hang("C_Sign")
	c.add(50 * time.Minute)
	if got := post(t, o, one); !bytes.Equal(got, answer) {
		t.Errorf("while the token hangs: %d", errorStatus(got))
	}
	if got := errorStatus(post(t, o, question(t, ca, big.NewInt(2), crypto.SHA256))); got != int(ocsp.TryLater) {
		t.Errorf("a new answer while the token hangs: %d", got)
	}
	c.add(time.Hour)
	if got := fetch(t, crl, ca); !bytes.Equal(got.Raw, list.Raw) {
		t.Error("another CRL while the token hangs")
	}
	release()
	token.Drop()
	c.add(time.Minute)
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		c.add(10 * time.Second) // so that it is tried again
		if got := post(t, o, question(t, ca, big.NewInt(2), crypto.SHA256)); errorStatus(got) < 0 {
			wantStatus(t, got, ca, ocsp.Good)
			if got := fetch(t, crl, ca); !bytes.Equal(got.Raw, list.Raw) {
				break
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("the token is back, and nothing is signed")
		}
	}
}
