package challenge_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/challenge/challengetest"
	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
)

func requestFor(t *testing.T, secret string, tmpl *x509.CertificateRequest) *scep.Request {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	if err != nil {
		t.Fatal(err)
	}
	req := challengetest.Request(secret)
	if req.CSR, err = x509.ParseCertificateRequest(der); err != nil {
		t.Fatal(err)
	}
	return req
}

func TestBinding(t *testing.T) {
	oid := func(n ...int) asn1.ObjectIdentifier { return n }
	upn := pkix.Extension{Id: oid(2, 5, 29, 17), Value: []byte("\x30\x1d\xa0\x1b\x06\x0a\x2b\x06\x01\x04\x01\x82\x37\x14\x02\x03\xa0\x0d\x0c\x0bjoe@ad.test")}
	other := pkix.Extension{Id: oid(2, 5, 29, 17), Value: []byte("\x30\x0e\xa0\x0c\x06\x03\x2a\x03\x04\xa0\x05\x0c\x03sid")}
	rdn := func(number int, value any) pkix.RelativeDistinguishedNameSET {
		return pkix.RelativeDistinguishedNameSET{{Type: oid(2, 5, 4, number), Value: value}}
	}
	named := func(rdns ...pkix.RelativeDistinguishedNameSET) *x509.CertificateRequest {
		der, err := asn1.Marshal(pkix.RDNSequence(rdns))
		if err != nil {
			t.Fatal(err)
		}
		return &x509.CertificateRequest{RawSubject: der}
	}
	cn := func(name string) pkix.Name { return pkix.Name{CommonName: name} }
	dns := func(names ...string) *x509.CertificateRequest {
		return &x509.CertificateRequest{Subject: cn("d"), DNSNames: names}
	}
	for _, tt := range []struct {
		name  string
		bound challenge.Binding
		asks  *x509.CertificateRequest
		want  bool
	}{
		{"nothing bound", challenge.Binding{}, dns("a.test", "b.test"), true},
		{"subject", challenge.Binding{Subject: "CN=d"}, dns(), true},
		{"subject, and names that were not bound", challenge.Binding{Subject: "CN=d"}, dns("a.test"), false},
		{"subject, with any names", challenge.Binding{Subject: "CN=d", AnyNames: true}, dns("a.test"), true},
		{"a serial number that another hides", challenge.Binding{Subject: "CN=d"}, named(rdn(5, "ADMIN"), rdn(5, ""), rdn(3, "d")), false},
		{"another subject", challenge.Binding{Subject: "CN=d"}, &x509.CertificateRequest{Subject: cn("e")}, false},
		{"more of a subject", challenge.Binding{Subject: "CN=d"}, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "d", Organization: []string{"o"}}}, false},
		{"a subject in another order", challenge.Binding{Subject: "CN=d,O=o"}, named(rdn(3, "d"), rdn(10, "o")), true},
		{"two common names", challenge.Binding{Subject: "CN=d"}, named(rdn(3, "e"), rdn(3, "d")), false},
		{"two serial numbers", challenge.Binding{Subject: "SERIALNUMBER=1"}, named(rdn(5, "2"), rdn(5, "1")), false},
		{"an attribute that is no text", challenge.Binding{Subject: "CN=d"}, named(rdn(10, 7), rdn(3, "d")), false},
		{"an unusual attribute", challenge.Binding{Subject: "CN=d"}, named(rdn(42, "given"), rdn(3, "d")), false},
		{"an unusual attribute that is bound", challenge.Binding{Subject: "CN=d,2.5.4.42=#1305676976656e"}, named(rdn(42, "given"), rdn(3, "d")), true},
		{"names in another order", challenge.Binding{DNSNames: []string{"a.test", "b.test"}}, dns("b.test", "a.test"), true},
		{"fewer names", challenge.Binding{DNSNames: []string{"a.test", "b.test"}}, dns("a.test"), false},
		{"more names", challenge.Binding{DNSNames: []string{"a.test"}}, dns("a.test", "b.test"), false},
		{"no names", challenge.Binding{DNSNames: []string{"a.test"}}, dns(), false},
		{"a name of another kind", challenge.Binding{DNSNames: []string{"a.test"}}, &x509.CertificateRequest{EmailAddresses: []string{"a.test"}}, false},
		{"a name with the mark between names in it", challenge.Binding{DNSNames: []string{"a", "b"}}, dns(`a",DNS:"b`), false},
		{"IP", challenge.Binding{IPAddresses: []net.IP{net.ParseIP("192.0.2.1")}}, &x509.CertificateRequest{IPAddresses: []net.IP{net.IPv4(192, 0, 2, 1)}}, true},
		{"UPN", challenge.Binding{UPNs: []string{"joe@ad.test"}}, &x509.CertificateRequest{ExtraExtensions: []pkix.Extension{upn}}, true},
		{"another UPN", challenge.Binding{UPNs: []string{"ann@ad.test"}}, &x509.CertificateRequest{ExtraExtensions: []pkix.Extension{upn}}, false},
		{"a name that cannot be bound", challenge.Binding{UPNs: []string{"joe@ad.test"}}, &x509.CertificateRequest{ExtraExtensions: []pkix.Extension{other}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := &challenge.OneTime{Store: &depot.Memory{}}
			secret := mint(t, o, tt.bound)
			err := o.Validate(t.Context(), requestFor(t, secret, tt.asks))
			if tt.want != (err == nil) {
				t.Errorf("%v, want admitted: %v", err, tt.want)
			}
			if !tt.want && tt.bound.Subject == "" { // the challenge is still there for who it is for
				right := &x509.CertificateRequest{DNSNames: tt.bound.DNSNames}
				if tt.bound.DNSNames != nil {
					if err := o.Validate(t.Context(), requestFor(t, secret, right)); err != nil {
						t.Errorf("after a mismatch: %v", err)
					}
				}
			}
		})
	}
}

func TestOneTime(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s := &depot.Memory{}
	o := &challenge.OneTime{Store: s, Limit: 3, TTL: time.Minute, Time: func() time.Time { return now }}
	ctx := t.Context()

	first := mint(t, o, challenge.Binding{})
	if !regexp.MustCompile(`^[A-Z0-9]{26}$`).MatchString(first) {
		t.Errorf("challenge %q", first)
	}
	spent := challengetest.Request(first)
	if err := o.Validate(ctx, spent); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		mint(t, o, challenge.Binding{})
	}
	if _, err := o.New(ctx, challenge.Binding{}); !errors.Is(err, scep.ErrLimit) || !strings.Contains(err.Error(), "OneTime.Limit is") {
		t.Errorf("the fourth unspent challenge: %v", err)
	}
	late := &challenge.OneTime{Store: s, Profile: "other", Time: o.Time}
	other := mint(t, late, challenge.Binding{})
	for _, each := range []*challenge.OneTime{o, late} {
		if err := each.Validate(ctx, challengetest.Request(other)); answer(err) != "refuse" {
			t.Errorf("the challenge of another profile: %v", err)
		}
	}
	pepper := &challenge.OneTime{Store: s, Profile: "other", Time: o.Time, Key: scep.NewSecret("pepper")}
	if err := pepper.Validate(ctx, ofProfile("other", other)); answer(err) != "refuse" {
		t.Errorf("the challenge under another key: %v", err)
	}

	unspent := mint(t, late, challenge.Binding{})
	now = now.Add(time.Hour) // late's are good for just that long
	if err := late.Validate(ctx, ofProfile("other", unspent)); answer(err) != "refuse" {
		t.Errorf("an expired challenge: %v", err)
	}
	if err := o.Validate(ctx, spent); err != nil {
		t.Errorf("a retry after the challenge has expired: %v", err)
	}
	if err := o.Validate(ctx, challengetest.Request(first)); answer(err) != "refuse" {
		t.Errorf("another request with a spent challenge: %v", err)
	}
	if _, err := o.New(ctx, challenge.Binding{}); err != nil {
		t.Errorf("expired challenges count: %v", err)
	}
}

func ofProfile(profile, secret string) *scep.Request {
	req := challengetest.Request(secret)
	req.Profile = profile
	return req
}

// TestOneTimeLimit mints two hundred challenges at once where fifty are allowed.
func TestOneTimeLimit(t *testing.T) {
	o := &challenge.OneTime{Store: &depot.Memory{}, Limit: 50}
	errs := make([]error, 200)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { _, errs[i] = o.New(t.Context(), challenge.Binding{}) })
	}
	wg.Wait()
	made := 0
	for _, err := range errs {
		switch {
		case err == nil:
			made++
		case !errors.Is(err, scep.ErrLimit):
			t.Fatal(err)
		}
	}
	if made != 50 {
		t.Errorf("%d challenges, want 50", made)
	}
}

// TestStoreHasNoSecret looks for the challenge in what the store gets.
func TestStoreHasNoSecret(t *testing.T) {
	s := &depot.Memory{}
	o := &challenge.OneTime{Store: s}
	secret := mint(t, o, challenge.Binding{})
	text := fmt.Sprintf("%+v %#v %+v", o, o, s)
	if strings.Contains(text, secret) {
		t.Error("the challenge is in the store")
	}
}
