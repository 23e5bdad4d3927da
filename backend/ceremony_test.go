package backend_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/scep"
)

const day = 24 * time.Hour

var epoch = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

func at(d time.Duration) func() time.Time { return func() time.Time { return epoch.Add(d) } }

const caUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature

// openssl runs openssl over DER that it gets as a PEM file, and returns what it prints.
func openssl(t *testing.T, kind string, der []byte, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("openssl")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("openssl is not installed")
		}
		t.Skip("openssl is not installed")
	}
	name := filepath.Join(t.TempDir(), "in.pem")
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, append(args, "-in", name)...).CombinedOutput()
	if err != nil {
		t.Fatalf("openssl %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func TestSelfSign(t *testing.T) {
	subject := pkix.Name{Organization: []string{"Example"}, CommonName: "Example CA"}
	for _, tt := range []struct {
		key   crypto.Signer
		o     backend.CAOptions
		usage x509.KeyUsage
		name  string
		end   time.Duration
	}{
		{rsaTestKey(), backend.CAOptions{}, caUsage | x509.KeyUsageKeyEncipherment, "CN=SCEP CA", 3650 * day},
		{unwrappingKMS{&kms{Signer: rsaTestKey()}}, backend.CAOptions{}, caUsage | x509.KeyUsageKeyEncipherment, "CN=SCEP CA", 3650 * day},
		{struct{ crypto.Signer }{rsaTestKey()}, backend.CAOptions{Subject: subject}, caUsage, "CN=Example CA,O=Example", 3650 * day},
		{ecTestKey(), backend.CAOptions{Validity: day, MaxPathLen: 2}, caUsage, "CN=SCEP CA", day},
	} {
		tt.o.Time = at(0)
		cert, err := backend.SelfSign(t.Context(), tt.key, tt.o)
		if err != nil {
			t.Fatal(err)
		}
		if err := cert.CheckSignatureFrom(cert); err != nil {
			t.Error(err)
		}
		if cert.KeyUsage != tt.usage || !cert.IsCA || cert.MaxPathLen != tt.o.MaxPathLen || cert.Subject.String() != tt.name || cert.SerialNumber.BitLen() != 159 {
			t.Errorf("%T: usage %b, CA %v, path length %d, %s, serial %x", tt.key, cert.KeyUsage, cert.IsCA, cert.MaxPathLen, cert.Subject, cert.SerialNumber)
		}
		if !cert.NotBefore.Equal(epoch.Add(-time.Hour)) || !cert.NotAfter.Equal(epoch.Add(tt.end)) {
			t.Errorf("valid from %v to %v", cert.NotBefore, cert.NotAfter)
		}
	}
}

func TestRequest(t *testing.T) {
	for _, tt := range []struct {
		key  crypto.Signer
		o    backend.CAOptions
		says []string
	}{
		{rsaTestKey(), backend.CAOptions{}, []string{"Subject: CN=SCEP CA", "CA:TRUE, pathlen:0", "Digital Signature, Key Encipherment, Certificate Sign, CRL Sign\n"}},
		{ecTestKey(), backend.CAOptions{Subject: pkix.Name{CommonName: "x"}, MaxPathLen: 3}, []string{"Subject: CN=x", "CA:TRUE, pathlen:3", "Digital Signature, Certificate Sign, CRL Sign\n"}},
	} {
		der, err := backend.Request(t.Context(), tt.key, tt.o)
		if err != nil {
			t.Fatal(err)
		}
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil {
			t.Fatal(err)
		}
		if err := csr.CheckSignature(); err != nil {
			t.Error(err)
		}
		if len(csr.Extensions) != 2 || !csr.Extensions[0].Critical || !csr.Extensions[1].Critical {
			t.Errorf("extensions are %v", csr.Extensions)
		}
		text := strings.ReplaceAll(openssl(t, "CERTIFICATE REQUEST", der, "req", "-noout", "-text", "-verify"), "CN = ", "CN=")
		for _, want := range tt.says {
			if !strings.Contains(text, want) {
				t.Errorf("openssl does not say %q:\n%s", want, text)
			}
		}

		// The extensions are, byte for byte, those of SelfSign.
		cert, err := backend.SelfSign(t.Context(), tt.key, tt.o)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range csr.Extensions {
			found := false
			for _, c := range cert.Extensions {
				found = found || c.Id.Equal(e.Id) && c.Critical == e.Critical && string(c.Value) == string(e.Value)
			}
			if !found {
				t.Errorf("the certificate has no %v with %x", e.Id, e.Value)
			}
		}
	}
}

func TestCeremonyRefuses(t *testing.T) {
	away := &kms{Signer: ecTestKey()}
	away.away.Store(true)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tt := range []struct {
		ctx  context.Context
		key  crypto.Signer
		o    backend.CAOptions
		is   error
		says string
	}{
		{t.Context(), nil, backend.CAOptions{}, nil, "no key"},
		{t.Context(), ecTestKey(), backend.CAOptions{Validity: -1}, nil, "Validity"},
		{t.Context(), ecTestKey(), backend.CAOptions{MaxPathLen: -1}, nil, "MaxPathLen"},
		{t.Context(), away, backend.CAOptions{}, backend.ErrUnavailable, "no route to host"},
		{t.Context(), lying{rsaTestKey(), ecTestKey().Public()}, backend.CAOptions{}, backend.ErrUnavailable, "does not verify"},
		{ended, ecTestKey(), backend.CAOptions{}, context.Canceled, "canceled"},
	} {
		cert, err := backend.SelfSign(tt.ctx, tt.key, tt.o)
		csr, err2 := backend.Request(tt.ctx, tt.key, tt.o)
		for _, err := range []error{err, err2} {
			if err == nil || tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) || !strings.HasPrefix(err.Error(), "backend: ") {
				t.Errorf("%v; should say %q", err, tt.says)
			}
		}
		if cert != nil || csr != nil {
			t.Errorf("%s: something with an error", tt.says)
		}
	}
}

// testCA returns a CA made at the epoch.
func testCA(t *testing.T, o backend.CAOptions) *scep.Identity {
	t.Helper()
	o.Time = at(0)
	cert, err := backend.SelfSign(t.Context(), ecTestKey(), o)
	if err != nil {
		t.Fatal(err)
	}
	return &scep.Identity{Certificates: []*x509.Certificate{cert}, Key: ecTestKey()}
}

func TestIssueRA(t *testing.T) {
	ca := testCA(t, backend.CAOptions{Subject: pkix.Name{CommonName: strings.Repeat("ä", 64)}})
	cert, err := backend.IssueRA(t.Context(), ca, rsaTestKey().Public(), backend.RAOptions{Time: at(0), Validity: day})
	if err != nil {
		t.Fatal(err)
	}
	if err := cert.CheckSignatureFrom(ca.Certificate()); err != nil {
		t.Error(err)
	}
	if cert.Subject.CommonName != strings.Repeat("ä", 56)+" SCEP RA" || cert.IsCA || cert.KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment || len(cert.SubjectKeyId) != 20 {
		t.Errorf("%s, CA %v, usage %b, key identifier %x", cert.Subject, cert.IsCA, cert.KeyUsage, cert.SubjectKeyId)
	}
	if !cert.NotBefore.Equal(epoch.Add(-10*time.Minute)) || !cert.NotAfter.Equal(epoch.Add(day)) {
		t.Errorf("valid from %v to %v", cert.NotBefore, cert.NotAfter)
	}

	nameless := testCA(t, backend.CAOptions{Subject: pkix.Name{Organization: []string{"Example"}}})
	if cert := must(backend.IssueRA(t.Context(), nameless, rsaTestKey().Public(), backend.RAOptions{Time: at(0)})); cert.Subject.String() != "CN=SCEP RA" {
		t.Errorf("name is %s", cert.Subject)
	}

	small := must(rsa.GenerateKey(rand.Reader, 1024))
	leaf := &scep.Identity{Certificates: []*x509.Certificate{cert}, Key: rsaTestKey()}
	for _, tt := range []struct {
		ca   scep.CA
		pub  crypto.PublicKey
		o    backend.RAOptions
		is   error
		says string
	}{
		{ca, ecTestKey().Public(), backend.RAOptions{Time: at(0)}, backend.ErrUnsupported, "not ECDSA P-256"},
		{ca, small.Public(), backend.RAOptions{Time: at(0)}, backend.ErrUnsupported, "not RSA-1024"},
		{ca, nil, backend.RAOptions{Time: at(0)}, backend.ErrUnsupported, "use RSA"},
		{ca, rsaTestKey().Public(), backend.RAOptions{Validity: time.Minute}, nil, "RAOptions.Validity"},
		{ca, rsaTestKey().Public(), backend.RAOptions{Time: at(3651 * day)}, nil, "renew it"},
		{ca, rsaTestKey().Public(), backend.RAOptions{Time: at(-day)}, nil, "set the clock"},
		{leaf, rsaTestKey().Public(), backend.RAOptions{Time: at(0)}, backend.ErrMismatch, "no CA certificate"},
		{&scep.Identity{}, rsaTestKey().Public(), backend.RAOptions{Time: at(0)}, nil, "asking the CA for its chain"},
	} {
		cert, err := backend.IssueRA(t.Context(), tt.ca, tt.pub, tt.o)
		if err == nil || cert != nil || tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) || !strings.HasPrefix(err.Error(), "backend: RA") {
			t.Errorf("%v; should say %q", err, tt.says)
		}
	}
}

// signFunc is a CA that signs as told.
type signFunc struct {
	*scep.Identity
	change func(tmpl *x509.Certificate, pub *crypto.PublicKey) error
}

func (s signFunc) Sign(ctx context.Context, tmpl *x509.Certificate, pub crypto.PublicKey) (*x509.Certificate, error) {
	if err := s.change(tmpl, &pub); err != nil {
		return nil, err
	}
	return s.Identity.Sign(ctx, tmpl, pub)
}

func TestIssueRARefusesWhatItDidNotAskFor(t *testing.T) {
	ca := testCA(t, backend.CAOptions{})
	broken := errors.New("broken")
	for says, change := range map[string]func(c *x509.Certificate, pub *crypto.PublicKey) error{
		"key usage":                             func(c *x509.Certificate, _ *crypto.PublicKey) error { c.KeyUsage = caUsage; return nil },
		"CA certificate":                        func(c *x509.Certificate, _ *crypto.PublicKey) error { c.IsCA = true; return nil },
		"asked for was":                         func(c *x509.Certificate, _ *crypto.PublicKey) error { c.NotAfter = epoch; return nil },
		"another key":                           func(_ *x509.Certificate, p *crypto.PublicKey) error { *p = ecTestKey().Public(); return nil },
		"having the certificate signed: broken": func(*x509.Certificate, *crypto.PublicKey) error { return broken },
	} {
		cert, err := backend.IssueRA(t.Context(), signFunc{ca, change}, rsaTestKey().Public(), backend.RAOptions{Time: at(0)})
		if err == nil || cert != nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v; should say %q", err, says)
		}
	}
}

func TestRADue(t *testing.T) {
	ca, other := testCA(t, backend.CAOptions{Validity: 1000 * day}), testCA(t, backend.CAOptions{Subject: pkix.Name{CommonName: "other"}})
	issue := func(after time.Duration) *x509.Certificate {
		return must(backend.IssueRA(t.Context(), ca, rsaTestKey().Public(), backend.RAOptions{Time: at(after), Validity: 300 * day}))
	}
	ra, last := issue(0), issue(900*day)
	for _, tt := range []struct {
		ra     *x509.Certificate
		issuer *scep.Identity
		after  time.Duration
		want   bool
	}{
		{nil, ca, 0, true}, {ra, ca, 0, false}, {ra, ca, 199 * day, false}, {ra, ca, 201 * day, true}, {ra, ca, 301 * day, true},
		{ra, ca, -time.Hour, true}, {ra, other, 0, true}, {last, ca, 999 * day, false}, // a new one would end with the CA too
	} {
		got, err := backend.RADue(tt.ra, tt.issuer.Certificate(), backend.RAOptions{Time: at(tt.after), Validity: 300 * day})
		if err != nil || got != tt.want {
			t.Errorf("after %v: %v, %v", tt.after, got, err)
		}
	}
	if _, err := backend.RADue(ra, ca.Certificate(), backend.RAOptions{Validity: -1}); err == nil {
		t.Error("negative Validity: no error")
	}
}
