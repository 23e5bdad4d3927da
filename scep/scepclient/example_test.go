package scepclient_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"math/big"
	"net/http/httptest"
	"os"
	"path/filepath"
	"time"

	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/scepclient"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// exampleCA makes a self-signed CA.
func exampleCA(name string, key *rsa.PrivateKey) *scep.Identity {
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
		BasicConstraintsValid: true, IsCA: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		log.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		log.Fatal(err)
	}
	return &scep.Identity{Certificates: []*x509.Certificate{cert}, Key: key}
}

// startServer starts a server to enrol with, and returns its URL and the fingerprint of its CA.
func startServer(c scep.Challenge) (srv *httptest.Server, fingerprint string) {
	ca := exampleCA("Example CA", sceptest.RSA(7))
	h, err := scep.New(scep.Config{
		CA:        ca,
		Next:      exampleCA("Next CA", sceptest.RSA(6)),
		Depot:     &depot.Memory{},
		Challenge: c,
		Renewal:   scep.Renewal{On: true, Anytime: true},
	})
	if err != nil {
		log.Fatal(err)
	}
	return httptest.NewServer(h), scepclient.Fingerprint(ca.Certificate())
}

func Example() {
	srv, fingerprint := startServer(challenge.Static("secret"))
	defer srv.Close()
	ctx := context.Background()

	client := &scepclient.Client{
		URL:          srv.URL + "/scep",
		Fingerprints: []string{fingerprint}, // as the administrator of the CA gave it to you
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		log.Fatal(err)
	}
	res, err := client.Enroll(ctx, scepclient.Request{
		Key: key,
		Template: &x509.CertificateRequest{
			Subject:  pkix.Name{CommonName: "device-1"},
			DNSNames: []string{"device-1.example.com"},
		},
		Challenge: scep.NewSecret("secret"),
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(res.Certificate.Subject, "by", res.Chain[0].Subject)

	// Later: a new key, no challenge.
	newKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		log.Fatal(err)
	}
	renewed, err := client.Renew(ctx, res.Certificate, key, scepclient.Request{Key: newKey})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(renewed.Certificate.DNSNames)
	// Output:
	// CN=device-1 by CN=Example CA
	// [device-1.example.com]
}

// A request may have to wait for a person. The handle is written to disk; polling goes on later.
func ExampleClient_Poll() {
	srv, fingerprint := startServer(scep.ChallengeFunc(func(context.Context, *scep.Request) error { return scep.ErrPending }))
	defer srv.Close()
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "scep")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	name := filepath.Join(dir, "device.pending")

	key := sceptest.RSA(0)
	client := &scepclient.Client{URL: srv.URL + "/scep", Fingerprints: []string{fingerprint}, Retries: -1}
	_, err = client.Enroll(ctx, scepclient.Request{
		Key:      key,
		Template: &x509.CertificateRequest{Subject: pkix.Name{CommonName: "device-2"}},
	})
	var pending *scepclient.PendingError
	if !errors.As(err, &pending) {
		log.Fatal(err)
	}
	text, err := json.Marshal(pending.Pending)
	if err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile(name, text, 0o600); err != nil {
		log.Fatal(err)
	}

	// In another process, with the same key:
	if text, err = os.ReadFile(name); err != nil {
		log.Fatal(err)
	}
	var handle scepclient.Pending
	if err := json.Unmarshal(text, &handle); err != nil {
		log.Fatal(err)
	}
	_, err = client.Poll(ctx, &handle, key)
	fmt.Println("still waiting:", errors.Is(err, scep.ErrPending))
	// Output: still waiting: true
}

func ExampleClient_CACertificates() {
	srv, fingerprint := startServer(challenge.Static("secret"))
	defer srv.Close()

	client := &scepclient.Client{URL: srv.URL + "/scep"} // nothing to hold the CA to, yet
	ca, err := client.CACertificates(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	for _, cert := range ca.Certificates {
		// A person compares this with what the administrator of the CA says.
		fmt.Println(cert.Subject, scepclient.Fingerprint(cert) == fingerprint, ca.Authenticated)
	}
	// Output: CN=Example CA true false
}

// A device learns of the next CA while the current one can still say who that is.
func ExampleClient_NextCA() {
	srv, fingerprint := startServer(challenge.Static("secret"))
	defer srv.Close()
	ctx := context.Background()
	client := &scepclient.Client{URL: srv.URL + "/scep", Fingerprints: []string{fingerprint}}
	key := sceptest.RSA(0)
	now, err := client.Enroll(ctx, scepclient.Request{
		Key:       key,
		Template:  &x509.CertificateRequest{Subject: pkix.Name{CommonName: "device-3"}},
		Challenge: scep.NewSecret("secret"),
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("by", now.Chain[0].Subject)

	next, err := client.NextCA(ctx)
	if errors.Is(err, scepclient.ErrNoNextCA) {
		return // ask again another day
	}
	if err != nil {
		log.Fatal(err)
	}
	// For the time after the change; keep it with the other one.
	client.Fingerprints = append(client.Fingerprints, scepclient.Fingerprint(next.Issuer))
	renewed, err := client.Renew(ctx, now.Certificate, key, scepclient.Request{Key: sceptest.RSA(1), CA: next})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("by", renewed.Chain[0].Subject)
	// Output:
	// by CN=Example CA
	// by CN=Next CA
}
