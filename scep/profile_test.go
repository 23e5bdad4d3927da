package scep_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// csrFor signs a CSR with these extensions.
func csrFor(t testing.TB, key crypto.Signer, subject pkix.Name, exts ...pkix.Extension) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject, ExtraExtensions: exts}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// issue enrols a CSR under a policy.
func issue(t testing.TB, policy scep.Policy, csr []byte) answer {
	t.Helper()
	ca := sceptest.NewCA(t)
	h, err := scep.New(scep.Config{CA: ca, Depot: &depot.Memory{}, Challenge: quick(""), Policy: policy, AnySigner: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	d := newDevice(t, sceptest.RSA(0), "signer", "")
	d.csr = csr
	return d.send(t, h, d.pkcsReq(t, ca.Certificate()), ca.Certificate())
}

func ext(critical bool, value string, oid ...int) pkix.Extension {
	return pkix.Extension{Id: oid, Critical: critical, Value: []byte(value)}
}

func extensionOf(cert *x509.Certificate, oid ...int) *pkix.Extension {
	i := slices.IndexFunc(cert.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oid) })
	if i < 0 {
		return nil
	}
	return &cert.Extensions[i]
}

// TestKeyUsage has what CSRs ask for, Apple's masks 1, 4 and 5 among it, and what they get.
func TestKeyUsage(t *testing.T) {
	const (
		sign    = x509.KeyUsageDigitalSignature
		encrypt = x509.KeyUsageKeyEncipherment
	)
	for _, tt := range []struct {
		name    string
		allowed x509.KeyUsage
		asked   string // BIT STRING; "" for no extension
		ec      bool
		want    x509.KeyUsage
		der     string
	}{
		{"Apple 1", 0, "\x03\x02\x07\x80", false, sign, "\x03\x02\x07\x80"},
		{"Apple 4", 0, "\x03\x02\x05\x20", false, encrypt, "\x03\x02\x05\x20"},
		{"Apple 5", 0, "\x03\x02\x05\xa0", false, sign | encrypt, "\x03\x02\x05\xa0"},
		{"not asked", 0, "", false, sign | encrypt, "\x03\x02\x05\xa0"},
		{"not asked, EC", 0, "", true, sign, "\x03\x02\x07\x80"},
		{"only what a CA has", 0, "\x03\x02\x01\x06", false, sign | encrypt, "\x03\x02\x05\xa0"},
		{"everything", 0, "\x03\x03\x07\xff\x80", false, sign | encrypt, "\x03\x02\x05\xa0"},
		{"everything, more allowed", sign | x509.KeyUsageContentCommitment | x509.KeyUsageDecipherOnly, "\x03\x03\x07\xff\x80", false,
			sign | x509.KeyUsageContentCommitment | x509.KeyUsageDecipherOnly, "\x03\x03\x07\xc0\x80"},
		{"outside the list", sign, "\x03\x02\x05\x20", false, sign, "\x03\x02\x07\x80"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var exts []pkix.Extension
			if tt.asked != "" {
				exts = append(exts, ext(true, tt.asked, 2, 5, 29, 15))
			}
			var key crypto.Signer = sceptest.RSA(1)
			if tt.ec {
				key = sceptest.P256()
			}
			a := issue(t, &scep.Profile{KeyUsage: tt.allowed}, csrFor(t, key, pkix.Name{CommonName: "x"}, exts...))
			if a.cert == nil {
				t.Fatal(a)
			}
			got := extensionOf(a.cert, 2, 5, 29, 15)
			if a.cert.KeyUsage != tt.want || got == nil || !got.Critical || string(got.Value) != tt.der {
				t.Errorf("keyUsage %b (%x), want %b (%x), critical", a.cert.KeyUsage, got.Value, tt.want, tt.der)
			}
		})
	}
}

const (
	upn       = "\xa0\x1b\x06\x0a\x2b\x06\x01\x04\x01\x82\x37\x14\x02\x03\xa0\x0d\x0c\x0bjoe@ad.test"
	email     = "\x81\x08joe@a.be"
	dns       = "\x82\x06a.test"
	uri       = "\x86\x0bhttp://a.be"
	ip        = "\x87\x04\x01\x02\x03\x04"
	dirName   = "\xa4\x10\x30\x0e\x31\x0c\x30\x0a\x06\x03\x55\x04\x03\x0c\x03adm"
	otherName = "\xa0\x0c\x06\x03\x2a\x03\x04\xa0\x05\x0c\x03sid"
)

func san(names ...string) pkix.Extension {
	all := strings.Join(names, "")
	return ext(false, "\x30"+string(rune(len(all)))+all, 2, 5, 29, 17)
}

// TestAlternativeNames has which names of a CSR come out, byte for byte.
func TestAlternativeNames(t *testing.T) {
	every := scep.SANDNS | scep.SANEmail | scep.SANURI | scep.SANIP | scep.SANUPN
	for _, tt := range []struct {
		name  string
		kinds scep.SANKind
		asked []string
		want  []string // nil: refused
	}{
		{"the usual", 0, []string{dns, email, ip, uri}, []string{dns, email, ip, uri}},
		{"UPN must be named", 0, []string{dns, upn}, []string{dns}},
		{"UPN, byte for byte", every, []string{upn, dns}, []string{upn, dns}},
		{"never: directoryName, other otherNames", every, []string{dirName, dns, otherName}, []string{dns}},
		{"DNS only", scep.SANDNS, []string{dns, email, ip, uri}, []string{dns}},
		{"none", scep.SANNone, []string{dns, email}, []string{}},
		{"nothing asked", 0, nil, []string{}},
		{"DNS with a blank", 0, []string{"\x82\x03a b"}, nil},
		{"DNS with NUL", 0, []string{"\x82\x03a\x00b"}, nil},
		{"wildcard in the middle", 0, []string{"\x82\x05a.*.b"}, nil},
		{"wildcard in front", 0, []string{"\x82\x05*.a.b"}, []string{"\x82\x05*.a.b"}},
		{"IP of 5 octets", 0, []string{"\x87\x05\x01\x02\x03\x04\x05"}, nil},
		{"mailbox without @", 0, []string{"\x81\x03joe"}, nil},
		{"URI without scheme", 0, []string{"\x86\x01a"}, nil},
		{"UPN with a newline", every, []string{"\xa0\x12\x06\x0a\x2b\x06\x01\x04\x01\x82\x37\x14\x02\x03\xa0\x04\x0c\x02j\n"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var exts []pkix.Extension
			if tt.asked != nil {
				exts = append(exts, san(tt.asked...))
			}
			a := issue(t, &scep.Profile{SAN: tt.kinds}, csrFor(t, sceptest.RSA(1), pkix.Name{CommonName: "x"}, exts...))
			if tt.want == nil {
				if a.status != "2" || a.failInfo != "2" {
					t.Fatalf("%v, want a refusal", a)
				}
				return
			}
			if a.cert == nil {
				t.Fatal(a)
			}
			got, want := extensionOf(a.cert, 2, 5, 29, 17), ""
			if len(tt.want) > 0 {
				all := slices.Clone(tt.want)
				if !strings.Contains(strings.Join(all, ""), upn) {
					// Fields have no order among kinds.
					slices.SortFunc(all, func(a, b string) int { return order(a) - order(b) })
				}
				want = string(san(all...).Value)
			}
			if got == nil && want != "" || got != nil && (string(got.Value) != want || got.Critical) {
				t.Errorf("got %v, want %x", got, want)
			}
		})
	}
}

// order is that in which crypto/x509 keeps kinds of names.
func order(name string) int { return strings.IndexByte("\x82\x81\x87\x86", name[0]) }

// TestForbidden asks for what no device may have.
func TestForbidden(t *testing.T) {
	asked := []pkix.Extension{
		ext(true, "\x30\x03\x01\x01\xff", 2, 5, 29, 19),                // CA:TRUE
		ext(true, "\x03\x02\x01\x06", 2, 5, 29, 15),                    // keyCertSign, cRLSign
		ext(false, "\x30\x06\x06\x04\x55\x1d\x25\x00", 2, 5, 29, 37),   // anyExtendedKeyUsage
		ext(true, "\x30\x00", 2, 5, 29, 30),                            // nameConstraints
		ext(false, "\x05\x00", 1, 3, 6, 1, 5, 5, 7, 48, 1, 5),          // ocsp-nocheck
		ext(false, "\x30\x00", 1, 3, 6, 1, 4, 1, 311, 21, 10),          // application policies
		ext(false, "\x1e\x04\x00C\x00A", 1, 3, 6, 1, 4, 1, 311, 20, 2), // certificate template name
		ext(false, "\x30\x00", 1, 3, 6, 1, 4, 1, 311, 25, 2),           // SID
		ext(false, "\x30\x00", 2, 5, 29, 31),                           // CRL distribution points
		ext(false, "\x04\x02\x01\x02", 2, 5, 29, 14),                   // a subject key identifier of its choice
		ext(true, "\x30\x00", 1, 2, 3, 4, 5),                           // unknown and critical
	}
	a := issue(t, nil, csrFor(t, sceptest.RSA(1), pkix.Name{CommonName: "x"}, asked...))
	if a.cert == nil {
		t.Fatal(a)
	}
	var got []string
	for _, e := range a.cert.Extensions {
		got = append(got, e.Id.String())
	}
	want := []string{"2.5.29.19", "2.5.29.14", "2.5.29.35", "2.5.29.15", "2.5.29.37"}
	if !slices.Equal(got, want) {
		t.Errorf("extensions %v, want %v", got, want)
	}
	if a.cert.IsCA || !a.cert.BasicConstraintsValid || a.cert.KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment ||
		!slices.Equal(a.cert.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) || len(a.cert.SubjectKeyId) != 20 {
		t.Errorf("CA %v, keyUsage %b, extKeyUsage %v, subject key identifier %x", a.cert.IsCA, a.cert.KeyUsage, a.cert.ExtKeyUsage, a.cert.SubjectKeyId)
	}
}

func TestExtKeyUsage(t *testing.T) {
	const client, server, ipsec = x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageIPSECUser
	oids := func(last ...int) pkix.Extension {
		var list []asn1.ObjectIdentifier
		for _, n := range last {
			list = append(list, asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, n})
		}
		value, _ := asn1.Marshal(list)
		return ext(false, string(value), 2, 5, 29, 37)
	}
	for _, tt := range []struct {
		name    string
		allowed []x509.ExtKeyUsage
		asked   []pkix.Extension
		want    []x509.ExtKeyUsage
	}{
		{"default", nil, nil, []x509.ExtKeyUsage{client}},
		{"not allowed", nil, []pkix.Extension{oids(1)}, []x509.ExtKeyUsage{client}},
		{"one of two", []x509.ExtKeyUsage{client, server}, []pkix.Extension{oids(1)}, []x509.ExtKeyUsage{server}},
		{"none asked", []x509.ExtKeyUsage{client, server}, nil, []x509.ExtKeyUsage{client, server}},
		{"some allowed", []x509.ExtKeyUsage{client, ipsec}, []pkix.Extension{oids(9, 7, 3)}, []x509.ExtKeyUsage{ipsec}},
		{"left out", []x509.ExtKeyUsage{}, []pkix.Extension{oids(2)}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := issue(t, &scep.Profile{ExtKeyUsage: tt.allowed}, csrFor(t, sceptest.RSA(1), pkix.Name{CommonName: "x"}, tt.asked...))
			if a.cert == nil || !slices.Equal(a.cert.ExtKeyUsage, tt.want) {
				t.Errorf("%v, want %v", a, tt.want)
			}
		})
	}
}

// TestSubjects has subjects as devices send them.
func TestSubjects(t *testing.T) {
	printable := func(s string) asn1.RawValue { return asn1.RawValue{Tag: 19, Bytes: []byte(s)} }
	name := func(values ...any) pkix.Name {
		n := pkix.Name{}
		for i, v := range values {
			n.ExtraNames = append(n.ExtraNames, pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{2, 5, 4, 3 + i}, Value: v})
		}
		return n
	}
	twoCNs := pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{
		{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "a"}, {Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "b"}}}
	for _, tt := range []struct {
		name    string
		subject pkix.Name
		exts    []pkix.Extension
		want    string // common name; "-": refused
	}{
		{"plain", pkix.Name{CommonName: "x"}, nil, "x"},
		{"underscore and at in a PrintableString", name(printable("a_b@c")), nil, "a_b@c"},
		{"asterisk and ampersand", name(printable("a*b&c")), nil, "a*b&c"},
		{"UTF-8", pkix.Name{CommonName: "Zoë ✓"}, nil, "Zoë ✓"},
		{"no common name", pkix.Name{SerialNumber: "7"}, nil, ""},
		{"empty, with an alternative name", pkix.Name{}, []pkix.Extension{san(dns)}, ""},
		{"nothing at all", pkix.Name{}, nil, "-"},
		{"65 characters", pkix.Name{CommonName: strings.Repeat("x", 65)}, nil, "-"},
		{"64 characters", pkix.Name{CommonName: strings.Repeat("é", 64)}, nil, strings.Repeat("é", 64)},
		{"two common names", twoCNs, nil, "-"},
		{"newline", pkix.Name{CommonName: "a\nb"}, nil, "-"},
		{"NUL", name(printable("a\x00b")), nil, "-"},
		{"over 1024 bytes", pkix.Name{OrganizationalUnit: slices.Repeat([]string{strings.Repeat("x", 60)}, 20)}, nil, "-"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := issue(t, nil, csrFor(t, sceptest.RSA(1), tt.subject, tt.exts...))
			switch {
			case tt.want == "-":
				if a.failInfo != "2" {
					t.Errorf("%v, want a refusal", a)
				}
			case a.cert == nil:
				t.Error(a)
			case a.cert.Subject.CommonName != tt.want:
				t.Errorf("common name %q, want %q", a.cert.Subject.CommonName, tt.want)
			case len(tt.exts) > 0 && !extensionOf(a.cert, 2, 5, 29, 17).Critical:
				t.Error("without a subject, the alternative name must be critical")
			}
		})
	}
}

func TestKeys(t *testing.T) {
	for _, tt := range []struct {
		name string
		key  crypto.Signer
		p    scep.Profile
		want string // failInfo; "": issued
	}{
		{"RSA-2048", sceptest.RSA(1), scep.Profile{}, ""},
		{"RSA-4096", sceptest.RSA4096(), scep.Profile{}, ""},
		{"RSA-1024", sceptest.RSA1024(), scep.Profile{}, "0"},
		{"RSA-1024, admitted", sceptest.RSA1024(), scep.Profile{MinRSABits: 1024}, ""},
		{"RSA-4096, too long", sceptest.RSA4096(), scep.Profile{MaxRSABits: 3072}, "0"},
		{"P-256", sceptest.P256(), scep.Profile{}, ""},
		{"P-384", sceptest.P384(), scep.Profile{}, ""},
		{"P-256, RSA only", sceptest.P256(), scep.Profile{NoEC: true}, "0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := issue(t, &tt.p, csrFor(t, tt.key, pkix.Name{CommonName: "x"}))
			if tt.want == "" && a.cert == nil || tt.want != "" && a.failInfo != tt.want {
				t.Errorf("%v, want failInfo %q", a, tt.want)
			}
		})
	}
	t.Run("the CA's own", func(t *testing.T) {
		ca := sceptest.NewCA(t)
		if a := issue(t, nil, csrFor(t, ca.Key, pkix.Name{CommonName: "x"})); a.failInfo != "2" {
			t.Errorf("%v, want a refusal", a)
		}
	})
}

// TestDates has what becomes of the dates that a policy asks for.
func TestDates(t *testing.T) {
	ca := sceptest.NewCA(t).Certificate()
	near := func(got, want time.Time) bool { return got.Sub(want).Abs() < time.Minute }
	now := time.Now()
	for _, tt := range []struct {
		name     string
		p        scep.Profile
		from, to time.Time
	}{
		{"default", scep.Profile{}, now.Add(-5 * time.Minute), now.Add(365 * 24 * time.Hour)},
		{"an hour", scep.Profile{Validity: time.Hour, Backdate: -1}, now, now.Add(time.Hour)},
		{"not beyond the CA", scep.Profile{Validity: 2 * ca.NotAfter.Sub(now)}, now.Add(-5 * time.Minute), ca.NotAfter},
		{"not before the CA", scep.Profile{Backdate: now.Sub(ca.NotBefore) + time.Hour}, ca.NotBefore, now.Add(365 * 24 * time.Hour)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := issue(t, &tt.p, csrFor(t, sceptest.RSA(1), pkix.Name{CommonName: "x"}))
			if a.cert == nil || !near(a.cert.NotBefore, tt.from) || !near(a.cert.NotAfter, tt.to) {
				t.Errorf("%v: from %v to %v, want %v to %v", a, a.cert.NotBefore, a.cert.NotAfter, tt.from, tt.to)
			}
		})
	}
	t.Run("a CA about to end", func(t *testing.T) {
		a := issue(t, &scep.Profile{Validity: 11 * ca.NotAfter.Sub(now)}, csrFor(t, sceptest.RSA(1), pkix.Name{CommonName: "x"}))
		if a.http != 503 {
			t.Errorf("%v, want 503: it is the operator who must act", a)
		}
	})
}

// TestPolicies has policies that change, refuse or ask too much.
func TestPolicies(t *testing.T) {
	check := func(f func(tmpl *x509.Certificate) error) scep.Policy {
		return &scep.Profile{Change: func(_ context.Context, _ *scep.Request, tmpl *x509.Certificate) error { return f(tmpl) }}
	}
	oid, _ := x509.OIDFromInts([]uint64{1, 2, 3, 4})
	a := issue(t, check(func(tmpl *x509.Certificate) error {
		tmpl.Subject, tmpl.RawSubject = pkix.Name{CommonName: "chosen"}, nil
		tmpl.DNSNames = []string{"chosen.test"}
		tmpl.URIs = []*url.URL{{Scheme: "urn", Opaque: "chosen"}}
		tmpl.OCSPServer = []string{"http://ocsp.test"}
		tmpl.IssuingCertificateURL = []string{"http://ca.test/ca.crt"}
		tmpl.CRLDistributionPoints = []string{"http://ca.test/crl", "http://b.test/crl"}
		tmpl.Policies = []x509.OID{oid}
		tmpl.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 2, 3}}
		tmpl.ExtraExtensions = append(tmpl.ExtraExtensions, ext(false, "\x05\x00", 1, 2, 3, 4, 5))
		return nil
	}), csrFor(t, sceptest.RSA(1), pkix.Name{CommonName: "asked"}))
	if a.cert == nil {
		t.Fatal(a)
	}
	got := fmt.Sprint(a.cert.Subject, a.cert.DNSNames, a.cert.URIs, a.cert.OCSPServer, a.cert.IssuingCertificateURL,
		a.cert.CRLDistributionPoints, a.cert.Policies, a.cert.UnknownExtKeyUsage, extensionOf(a.cert, 1, 2, 3, 4, 5) != nil)
	if want := "CN=chosen[chosen.test][urn:chosen][http://ocsp.test][http://ca.test/ca.crt][http://ca.test/crl http://b.test/crl][1.2.3.4][1.2.3]true"; strings.ReplaceAll(got, " ", "") != strings.ReplaceAll(want, " ", "") {
		t.Errorf("got  %s\nwant %s", got, want)
	}

	for _, tt := range []struct {
		name   string
		policy scep.Policy
		want   string
	}{
		{"refusal", check(func(*x509.Certificate) error { return scep.Reject(scep.BadRequest, "not on a Sunday") }), `HTTP 200 status "2" failInfo "2" "not on a Sunday"`},
		{"trouble", check(func(*x509.Certificate) error { return errors.New("LDAP is away") }), `HTTP 503 status "" failInfo "" ""`},
		{"a CA", check(func(tmpl *x509.Certificate) error { tmpl.IsCA = true; return nil }), `HTTP 503 status "" failInfo "" ""`},
		{"a CA's key usage", check(func(tmpl *x509.Certificate) error {
			tmpl.ExtraExtensions = append(tmpl.ExtraExtensions, ext(true, "\x03\x02\x02\x04", 2, 5, 29, 15))
			return nil
		}), `HTTP 503 status "" failInfo "" ""`},
		{"nothing", scep.PolicyFunc(func(context.Context, *scep.Request) (*x509.Certificate, error) { return nil, nil }), `HTTP 503 status "" failInfo "" ""`},
		{"a person", scep.PolicyFunc(func(context.Context, *scep.Request) (*x509.Certificate, error) { return nil, scep.ErrPending }), `HTTP 200 status "3" failInfo "" ""`},
	} {
		if got := issue(t, tt.policy, csrFor(t, sceptest.RSA(1), pkix.Name{CommonName: "x"})).String(); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}
