package scepclient

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

func TestRequestIsChecked(t *testing.T) {
	l := newLiar(t)
	csr, err := makeCSR(t.Context(), request().Template, 0, nil, scep.Secret{}, sceptest.RSA(1), crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		change func(r *Request)
		want   string
	}{
		{"no key", func(r *Request) { r.Key = nil }, "Request.Key is nil"},
		{"EC key", func(r *Request) { r.Key = sceptest.P256() }, "Request.SignerKey"},
		{"key that only signs", func(r *Request) { r.Key = struct{ crypto.Signer }{sceptest.RSA(0)} }, "crypto.Decrypter"},
		{"signer key that only signs", func(r *Request) { r.SignerKey = struct{ crypto.Signer }{sceptest.RSA(0)} }, "Request.SignerKey"},
		{"no subject", func(r *Request) { r.Template = nil }, "Request.Template is nil"},
		{"transaction ID", func(r *Request) { r.TransactionID = "under_score" }, "PrintableString"},
		{"long transaction ID", func(r *Request) { r.TransactionID = strings.Repeat("a", 256) }, "PrintableString"},
		{"challenge", func(r *Request) { r.Challenge = scep.NewSecret("hunter2\xff") }, "Request.Challenge"},
		{"usage", func(r *Request) { r.ExtKeyUsage = []x509.ExtKeyUsage{999} }, "unknown usage"},
		{"CSR and template", func(r *Request) { r.CSR = csr }, "must be zero"},
		{"CSR for another key", func(r *Request) { *r = Request{Key: sceptest.RSA(0), CSR: csr} }, "another key"},
		{"CSR is none", func(r *Request) { *r = Request{Key: sceptest.RSA(0), CSR: []byte("CSR")} }, "Request.CSR"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := request()
			test.change(&r)
			_, err := l.client().Enroll(t.Context(), r)
			wantError(t, err, test.want)
		})
	}
	old := newCertificate(t, &x509.Certificate{Subject: pkix.Name{CommonName: "device"}}, l.ca, sceptest.RSA(1).Public())
	_, err = l.client().Renew(t.Context(), nil, nil, request())
	wantError(t, err, "needs the old certificate")
	_, err = l.client().Renew(t.Context(), old, sceptest.RSA(2), request())
	wantError(t, err, "not that of the old certificate")
	r := request()
	r.SignerKey = sceptest.RSA(1)
	_, err = l.client().Renew(t.Context(), old, sceptest.RSA(1), r)
	wantError(t, err, "SignerKey must be nil")
	if n := len(l.asked()); n > 0 {
		t.Errorf("%d messages were sent", n)
	}
	if _, err = l.client().Enroll(t.Context(), Request{Key: sceptest.RSA(1), CSR: csr}); err != nil {
		t.Errorf("ready-made CSR: %v", err)
	}
}

// attributesOf returns types and values of the attributes of a CSR, in order.
func attributesOf(t *testing.T, csr *x509.CertificateRequest) (types []string, values []cryptobyte.String) {
	t.Helper()
	var seq, spki, attrs, attr, set cryptobyte.String
	var oid asn1.ObjectIdentifier
	s := cryptobyte.String(csr.RawTBSCertificateRequest)
	if !s.ReadASN1(&seq, casn1.SEQUENCE) || !seq.SkipASN1(casn1.INTEGER) || !seq.SkipASN1(casn1.SEQUENCE) ||
		!seq.ReadASN1(&spki, casn1.SEQUENCE) || !seq.ReadASN1(&attrs, casn1.Tag(0).ContextSpecific().Constructed()) {
		t.Fatal("CSR is malformed")
	}
	for !attrs.Empty() {
		if !attrs.ReadASN1(&attr, casn1.SEQUENCE) || !attr.ReadASN1ObjectIdentifier(&oid) || !attr.ReadASN1(&set, casn1.SET) {
			t.Fatal("attribute is malformed")
		}
		types, values = append(types, oid.String()), append(values, set)
	}
	return types, values
}

func TestCSR(t *testing.T) {
	tmpl := &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "device", SerialNumber: "42"}, DNSNames: []string{"a.example"}, IPAddresses: []net.IP{{10, 0, 0, 1}},
	}
	for _, key := range []crypto.Signer{sceptest.RSA(0), sceptest.P256(), sceptest.P384()} {
		for challenge, tag := range map[string]byte{"Passw0rd-1": sceptest.TagPrintableString, "pass_wörd": sceptest.TagUTF8String, "": 0} {
			der, err := makeCSR(t.Context(), tmpl, x509.KeyUsageDigitalSignature|x509.KeyUsageDecipherOnly,
				[]x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageIPSECTunnel}, scep.NewSecret(challenge), key, crypto.SHA256)
			if err != nil {
				t.Fatal(err)
			}
			csr, err := x509.ParseCertificateRequest(der)
			if err == nil {
				err = csr.CheckSignature()
			}
			if err != nil {
				t.Fatal(err)
			}
			types, values := attributesOf(t, csr)
			want := []string{oidChallengePassword.String(), oidExtensionRequest.String()}
			if challenge == "" {
				want = want[1:]
			} else if text := sceptest.TLV(tag, []byte(challenge)); !bytes.Equal(values[0], text) {
				t.Errorf("challenge is %x, want %x", values[0], text)
			}
			if !slices.Equal(types, want) {
				t.Errorf("attributes %v, want %v", types, want)
			}
			// crypto/x509 reads the usages of certificates only.
			cert := newCertificate(t, &x509.Certificate{RawSubject: csr.RawSubject, ExtraExtensions: csr.Extensions}, nil, sceptest.RSA(1))
			if cert.KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageDecipherOnly || cert.Subject.SerialNumber != "42" ||
				!slices.Equal(cert.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageIPSECTunnel}) ||
				!slices.Equal(cert.DNSNames, tmpl.DNSNames) || len(cert.IPAddresses) != 1 {
				t.Errorf("CSR asks for %v %v %v %v", cert.Subject, cert.KeyUsage, cert.ExtKeyUsage, cert.DNSNames)
			}
		}
	}
}

func TestHideSubject(t *testing.T) {
	l := newLiar(t)
	r := request()
	r.HideSubject = true
	if _, err := l.client().Enroll(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	q := l.asked()[0]
	if bytes.Contains(q.msg.Signer.Raw, []byte("device")) || q.csr.Subject.CommonName != "device" {
		t.Error("subject is not hidden, or lost")
	}
	r.HideSubject, r.Template = false, &x509.CertificateRequest{DNSNames: []string{"a.example"}}
	if _, err := l.client().Enroll(t.Context(), r); err != nil {
		t.Errorf("empty subject: %v", err)
	}
}

func TestRenewal(t *testing.T) {
	l := newLiar(t)
	old := newCertificate(t, &x509.Certificate{Subject: pkix.Name{CommonName: "device"}, DNSNames: []string{"a.example"}}, l.ca, sceptest.RSA(1).Public())
	if _, err := l.client().Renew(t.Context(), old, sceptest.RSA(1), Request{Key: sceptest.RSA(2)}); err != nil {
		t.Fatal(err)
	}
	q := l.asked()[0]
	if q.msg.MessageType != typeRenewalReq || !bytes.Equal(q.msg.Signer.Raw, old.Raw) {
		t.Errorf("message of type %s, signed by %x", q.msg.MessageType, q.msg.Signer.RawSerial)
	}
	if !bytes.Equal(q.csr.RawSubject, old.RawSubject) || !slices.Equal(q.csr.DNSNames, old.DNSNames) || !equalKeys(q.csr.PublicKey, sceptest.RSA(2).Public()) {
		t.Errorf("CSR for %v %v", q.csr.Subject, q.csr.DNSNames)
	}
	if types, _ := attributesOf(t, q.csr); slices.Contains(types, oidChallengePassword.String()) {
		t.Error("renewal has a challenge")
	}
	l.caps = "SCEPStandard"
	r := Request{Key: sceptest.RSA(2)}
	_, err := l.client().Renew(t.Context(), old, sceptest.RSA(1), r)
	wantError(t, err, "does not offer Renewal", "RenewAsPKCSReq")
	r.RenewAsPKCSReq = true
	if _, err = l.client().Renew(t.Context(), old, sceptest.RSA(1), r); err != nil {
		t.Fatal(err)
	}
	if q := l.asked()[1]; q.msg.MessageType != typePKCSReq || !bytes.Equal(q.msg.Signer.Raw, old.Raw) {
		t.Errorf("message of type %s", q.msg.MessageType)
	}
}

// The log and everything that could be printed has no secret.
func TestNoSecretInLog(t *testing.T) {
	l := newLiar(t)
	l.status = pendingUntil(2)
	var log bytes.Buffer
	c := l.client()
	c.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	r := request()
	if _, err := c.Enroll(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	c.Log.Info("request", "challenge", r.Challenge)
	for _, want := range []string{"GetCACaps", "GetCACert", "PKIOperation", "issued", "waiting"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("log does not say %q", want)
		}
	}
	if strings.Contains(log.String(), "hunter2") {
		t.Errorf("log has the challenge:\n%s", &log)
	}
}

// A tokenKey is a key in a token: it wants the context.
type tokenKey struct {
	sceptest.Key
	signed *int
}

func (k tokenKey) SignContext(ctx context.Context, rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	*k.signed++
	return k.Signer.Sign(rand, digest, opts)
}

func (k tokenKey) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	panic("Sign was called in place of SignContext")
}

func TestKeyInToken(t *testing.T) {
	l := newLiar(t)
	r := request()
	n := 0
	r.Key = tokenKey{sceptest.Key{Signer: sceptest.RSA(0)}, &n}
	if _, err := l.client().Enroll(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if n != 3 {
		t.Errorf("%d signatures: want CSR, certificate and message", n)
	}
}

func TestConcurrentUse(t *testing.T) {
	l := newLiar(t)
	c := l.client()
	errs := make(chan error)
	for range 4 {
		go func() {
			_, err := c.Enroll(context.Background(), request())
			errs <- err
		}()
	}
	for range 4 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestSleep(t *testing.T) {
	c := &Client{}
	if err := c.sleep(t.Context(), time.Millisecond); err != nil {
		t.Error(err)
	}
}
