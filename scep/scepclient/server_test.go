package scepclient_test

import (
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"math/big"
	"net/http"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/scepclient"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// These tests run against the real server.

func clientOf(srv *sceptest.Server) *scepclient.Client {
	chain, _ := srv.Config.CA.Chain(context.Background())
	return &scepclient.Client{
		URL:          srv.URL,
		Fingerprints: []string{scepclient.Fingerprint(chain[0])},
		Retries:      -1,
	}
}

func enrolment(name string) scepclient.Request {
	return scepclient.Request{
		Key:       sceptest.RSA(0),
		Template:  &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}, DNSNames: []string{name + ".example"}},
		Challenge: scep.NewSecret(sceptest.Secret),
	}
}

func TestServer(t *testing.T) {
	sub := func(t *testing.T) *scep.Identity { return sceptest.NewSubCA(t, sceptest.NewCA(t)) }
	tests := []struct {
		name   string
		config func(t *testing.T, c *scep.Config)
		client func(c *scepclient.Client)
		req    func(r *scepclient.Request)
	}{
		{name: "plain"},
		{name: "SHA-512", client: func(c *scepclient.Client) { c.Hash = crypto.SHA512 }},
		{name: "SHA-384", client: func(c *scepclient.Client) { c.Hash = crypto.SHA384 }},
		{name: "legacy not needed", client: func(c *scepclient.Client) { c.Legacy = scep.TripleDES | scep.SHA1 }},
		{name: "RSA-3072", req: func(r *scepclient.Request) { r.Key = sceptest.RSA3072() }},
		{name: "usages", req: func(r *scepclient.Request) {
			r.KeyUsage, r.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}},
		{name: "hidden subject", req: func(r *scepclient.Request) { r.HideSubject = true }},
		{
			name:   "EC key, RSA signer",
			config: func(t *testing.T, c *scep.Config) { c.AnySigner = true },
			req:    func(r *scepclient.Request) { r.Key, r.SignerKey = sceptest.P256(), sceptest.RSA(1) },
		},
		{name: "RA of a CA with an EC key", config: func(t *testing.T, c *scep.Config) { c.CA = sceptest.NewCA(t, sceptest.P256()) }},
		{name: "sub CA", config: func(t *testing.T, c *scep.Config) { c.CA = sub(t) }},
		{name: "chain in the reply", config: func(t *testing.T, c *scep.Config) { c.CA, c.ReplyChain = sub(t), true }},
		{name: "no root in the answer", config: func(t *testing.T, c *scep.Config) { c.CA, c.Chain = sub(t), scep.ChainFull }},
		{
			name: "single certificate of the RA",
			config: func(t *testing.T, c *scep.Config) {
				c.CA, c.Chain = sceptest.NewCA(t, sceptest.P256()), scep.ChainSingle
			},
			client: func(c *scepclient.Client) {
				// The fingerprint is not enough: the CA's certificate is not in the answer.
				c.Roots = []*x509.Certificate{}
			},
		},
		{
			name: "Responder",
			config: func(t *testing.T, c *scep.Config) {
				ca := sceptest.NewCA(t)
				c.CA, c.RA = ca, sceptest.NewRA(t, ca)
				c.Responder = sceptest.NewRA(t, ca, sceptest.P256())
			},
		},
		{
			name: "legacy server",
			config: func(t *testing.T, c *scep.Config) {
				c.Legacy, c.AbsentContent = scep.TripleDES|scep.SHA1, true
			},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var config scep.Config
			if test.config != nil {
				test.config(t, &config)
			}
			srv := sceptest.NewServer(t, config)
			c := clientOf(srv)
			if test.client != nil {
				test.client(c)
			}
			if c.Roots != nil {
				c.Roots, _ = srv.Config.CA.Chain(t.Context())
				c.Fingerprints = nil
			}
			r := enrolment("device")
			if test.req != nil {
				test.req(&r)
			}
			res, err := c.Enroll(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			chain, _ := srv.Config.CA.Chain(t.Context())
			if err := res.Certificate.CheckSignatureFrom(chain[0]); err != nil || res.Certificate.Subject.CommonName != "device" ||
				len(res.Certificate.DNSNames) != 1 || len(res.Chain) == 0 || !res.Chain[0].Equal(chain[0]) {
				t.Errorf("certificate for %v %v, chain of %d, %v", res.Certificate.Subject, res.Certificate.DNSNames, len(res.Chain), err)
			}
		})
	}
}

func TestServerRefuses(t *testing.T) {
	srv := sceptest.NewServer(t, scep.Config{})
	r := enrolment("device")
	r.Challenge = scep.NewSecret("wrong")
	_, err := clientOf(srv).Enroll(t.Context(), r)
	var failure *scepclient.FailureError
	if !errors.As(err, &failure) || !errors.Is(err, scep.BadRequest) || failure.Text == "" {
		t.Errorf("wrong challenge: %v", err)
	}
	r = enrolment("device")
	r.SignerKey = sceptest.RSA(1)
	if _, err = clientOf(srv).Enroll(t.Context(), r); !errors.Is(err, scep.BadRequest) {
		t.Errorf("another signer: %v", err)
	}
}

// A lost answer: the same request again gets the same certificate.
func TestServerAgain(t *testing.T) {
	srv := sceptest.NewServer(t, scep.Config{})
	r := enrolment("device")
	r.TransactionID = "one and the same"
	first, err := clientOf(srv).Enroll(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	second, err := clientOf(srv).Enroll(t.Context(), r)
	if err != nil || !second.Certificate.Equal(first.Certificate) {
		t.Errorf("the second time there is another certificate, or %v", err)
	}
}

func TestServerRenewsAndRemembers(t *testing.T) {
	srv := sceptest.NewServer(t, scep.Config{Renewal: scep.Renewal{On: true, Anytime: true}})
	c := clientOf(srv)
	first, err := c.Enroll(t.Context(), enrolment("device"))
	if err != nil {
		t.Fatal(err)
	}
	second, err := c.Renew(t.Context(), first.Certificate, sceptest.RSA(0), scepclient.Request{Key: sceptest.RSA(1)})
	if err != nil {
		t.Fatal("RenewalReq:", err)
	}
	third, err := c.Renew(t.Context(), second.Certificate, sceptest.RSA(1), scepclient.Request{Key: sceptest.P256(), RenewAsPKCSReq: true})
	if err != nil {
		t.Fatal("PKCSReq:", err)
	}
	if third.Certificate.Subject.CommonName != "device" || len(third.Certificate.DNSNames) != 1 {
		t.Errorf("renewed certificate is for %v %v", third.Certificate.Subject, third.Certificate.DNSNames)
	}

	again, err := c.GetCert(t.Context(), nil, second.Certificate.SerialNumber, second.Certificate, sceptest.RSA(1))
	if err != nil || !again.Equal(second.Certificate) {
		t.Errorf("GetCert: %v", err)
	}
	_, err = c.GetCert(t.Context(), nil, big.NewInt(4711), second.Certificate, sceptest.RSA(1))
	if !errors.Is(err, scep.BadCertID) {
		t.Errorf("GetCert of another: %v", err)
	}

	off := sceptest.NewServer(t, scep.Config{})
	if _, err = clientOf(off).Renew(t.Context(), first.Certificate, sceptest.RSA(0), scepclient.Request{Key: sceptest.RSA(1)}); err == nil {
		t.Error("renewal with a server that does not offer it")
	}
}

func TestServerPends(t *testing.T) {
	var records depot.Memory
	srv := sceptest.NewServer(t, scep.Config{Challenge: sceptest.Pend(sceptest.Secret), Depot: &records})
	c := clientOf(srv)
	decide := func(decide func(id scep.ID)) {
		t.Helper()
		list, err := records.List(t.Context(), scep.Query{State: scep.Pending})
		if err != nil || len(list) != 1 {
			t.Fatalf("%d requests wait, %v", len(list), err)
		}
		decide(list[0].ID)
	}
	start := func() *scepclient.Pending {
		t.Helper()
		_, err := c.Enroll(t.Context(), enrolment("device"))
		var pending *scepclient.PendingError
		if !errors.As(err, &pending) {
			t.Fatal(err)
		}
		stored, err := json.Marshal(pending.Pending)
		if err != nil {
			t.Fatal(err)
		}
		p := new(scepclient.Pending)
		if err := json.Unmarshal(stored, p); err != nil {
			t.Fatal(err)
		}
		return p
	}

	p := start()
	later := &scepclient.Client{Retries: -1}
	if _, err := later.Poll(t.Context(), p, sceptest.RSA(0)); !errors.Is(err, scep.ErrPending) {
		t.Errorf("before the decision: %v", err)
	}
	decide(func(id scep.ID) {
		if _, err := srv.Handler.Approve(t.Context(), id, scep.Decision{}); err != nil {
			t.Fatal(err)
		}
	})
	res, err := later.Poll(t.Context(), p, sceptest.RSA(0))
	if err != nil {
		t.Fatal(err)
	}
	if res.Certificate.Subject.CommonName != "device" {
		t.Errorf("certificate is for %v", res.Certificate.Subject)
	}

	p = start()
	decide(func(id scep.ID) {
		if err := srv.Handler.Deny(t.Context(), id, scep.Reject(scep.BadRequest, "not you"), scep.Decision{}); err != nil {
			t.Fatal(err)
		}
	})
	_, err = later.Poll(t.Context(), p, sceptest.RSA(0))
	var failure *scepclient.FailureError
	if !errors.As(err, &failure) || failure.Text != "not you" {
		t.Errorf("denied: %v", err)
	}
	p.TransactionID = "never seen"
	if _, err = later.Poll(t.Context(), p, sceptest.RSA(0)); !errors.Is(err, scep.BadRequest) {
		t.Errorf("unknown transaction: %v", err)
	}
}

// Approval comes while the client waits.
func TestServerApprovesMeanwhile(t *testing.T) {
	var records depot.Memory
	srv := sceptest.NewServer(t, scep.Config{Challenge: sceptest.Pend(sceptest.Secret), Depot: &records})
	c := clientOf(srv)
	c.Retries, c.RetryDelay = 1, time.Millisecond
	c.OnPending = func(p *scepclient.Pending, poll int, next time.Duration) {
		list, err := records.List(context.Background(), scep.Query{State: scep.Pending})
		if err != nil || len(list) != 1 {
			t.Fatalf("%d requests wait, %v", len(list), err)
		}
		if _, err := srv.Handler.Approve(context.Background(), list[0].ID, scep.Decision{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Enroll(t.Context(), enrolment("device")); err != nil {
		t.Error(err)
	}
}

func TestServerUnavailable(t *testing.T) {
	srv := sceptest.NewServer(t, scep.Config{Depot: sceptest.Depot{
		Depot: new(depot.Memory),
		On:    func(string, *scep.Record) (bool, error) { return false, errors.New("disk is full") },
	}})
	_, err := clientOf(srv).Enroll(t.Context(), enrolment("device"))
	var busy *scepclient.UnavailableError
	if !errors.As(err, &busy) || busy.Status != http.StatusServiceUnavailable || busy.RetryAfter <= 0 {
		t.Errorf("error %v", err)
	}
}
