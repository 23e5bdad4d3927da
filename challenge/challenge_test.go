package challenge_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/challenge/challengetest"
	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/depot/sqlite"
	"github.com/scepkit/scepkit/scep"
)

// A store that can be away.
type store struct {
	scep.ChallengeStore
	mu   sync.Mutex
	away bool
}

func (s *store) GetChallenge(ctx context.Context, hash scep.ID) (*scep.OneTimeChallenge, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away {
		return nil, errors.New("store is away")
	}
	return s.ChallengeStore.GetChallenge(ctx, hash)
}

func mint(t *testing.T, o *challenge.OneTime, b challenge.Binding) string {
	t.Helper()
	secret, err := o.New(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	return secret.Reveal()
}

func TestSuites(t *testing.T) {
	hashed, err := challenge.StaticHashed(challenge.QuickHash("Old-secret-0"), challenge.QuickHash("New-secret-1"))
	if err != nil {
		t.Fatal(err)
	}
	var last *store
	oneTime := func(open func(t *testing.T) scep.ChallengeStore, wrap func(scep.Challenge) scep.Challenge) challengetest.Harness {
		return challengetest.Harness{
			Open: func(t *testing.T) (scep.Challenge, *scep.Request) {
				last = &store{ChallengeStore: open(t)}
				o := &challenge.OneTime{Store: last, Key: scep.NewSecret("pepper")}
				return wrap(o), challengetest.Request(mint(t, o, challenge.Binding{Subject: "CN=device-1"}))
			},
			OneTime: true,
			Break: func(t *testing.T) {
				last.mu.Lock()
				defer last.mu.Unlock()
				last.away = true
			},
		}
	}
	static := func(c scep.Challenge) challengetest.Harness {
		return challengetest.Harness{Open: func(*testing.T) (scep.Challenge, *scep.Request) {
			return c, challengetest.Request("New-secret-1")
		}}
	}
	memory := func(*testing.T) scep.ChallengeStore { return &depot.Memory{} }
	file := func(t *testing.T) scep.ChallengeStore {
		db, err := sqlite.Open(filepath.Join(t.TempDir(), "scep.db"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		return db
	}
	itself := func(c scep.Challenge) scep.Challenge { return c }
	for name, h := range map[string]challengetest.Harness{
		"Static":                static(challenge.Static("Old-secret-0", "New-secret-1")),
		"StaticHashed":          static(hashed),
		"OneTime over Memory":   oneTime(memory, itself),
		"OneTime over SQLite":   oneTime(file, itself),
		"Any of Static":         static(challenge.Any(challenge.Static("x"), challenge.Static("New-secret-1"))),
		"Any with OneTime":      oneTime(memory, func(c scep.Challenge) scep.Challenge { return challenge.Any(challenge.Static("x"), c) }),
		"All of Static":         static(challenge.All(challenge.Static("New-secret-1"), hashed)),
		"All with OneTime last": oneTime(memory, func(c scep.Challenge) scep.Challenge { return challenge.All(admit, c) }),
	} {
		t.Run(name, func(t *testing.T) { challengetest.TestChallenge(t, h) })
	}
}

var (
	admit   = scep.ChallengeFunc(func(context.Context, *scep.Request) error { return nil })
	pend    = scep.ChallengeFunc(func(context.Context, *scep.Request) error { return fmt.Errorf("ask: %w", scep.ErrPending) })
	refuse  = scep.ChallengeFunc(func(context.Context, *scep.Request) error { return scep.Reject(scep.BadRequest, "no") })
	unknown = scep.ChallengeFunc(func(context.Context, *scep.Request) error { return errors.New("timeout") })
)

func answer(err error) string {
	var why *scep.Error
	switch {
	case err == nil:
		return "admit"
	case errors.Is(err, scep.ErrPending):
		return "pend"
	case errors.As(err, &why):
		return "refuse"
	}
	return "unknown"
}

func TestAnyAll(t *testing.T) {
	type cs = []scep.Challenge
	for _, tt := range []struct {
		of       cs
		any, all string
	}{
		{cs{}, "refuse", "refuse"},
		{cs{admit}, "admit", "admit"},
		{cs{nil}, "unknown", "unknown"},
		{cs{refuse, admit}, "admit", "refuse"},
		{cs{refuse, unknown, pend}, "pend", "refuse"},
		{cs{refuse, unknown}, "unknown", "refuse"},
		{cs{refuse, refuse}, "refuse", "refuse"},
		{cs{unknown, admit}, "admit", "unknown"},
		{cs{pend, admit}, "admit", "pend"},
		{cs{pend, refuse}, "pend", "refuse"},
		{cs{nil, admit}, "admit", "unknown"},
		{cs{admit, nil}, "admit", "unknown"},
	} {
		if got := answer(challenge.Any(tt.of...).Validate(t.Context(), challengetest.Request("x"))); got != tt.any {
			t.Errorf("Any of %d: %s, want %s", len(tt.of), got, tt.any)
		}
		if got := answer(challenge.All(tt.of...).Validate(t.Context(), challengetest.Request("x"))); got != tt.all {
			t.Errorf("All of %d: %s, want %s", len(tt.of), got, tt.all)
		}
	}
}

// last is a challenge with a secret and the last word.
type last struct {
	scep.Challenge
	asked *[]string
	name  string
	says  error
}

func (l last) Confirm(_ context.Context, req *scep.Request, _ *x509.Certificate) error {
	*l.asked = append(*l.asked, l.name)
	return l.says
}

// TestConfirm has who is asked for the last word, with Any and All in one another.
func TestConfirm(t *testing.T) {
	var asked []string
	word := func(name, secret string) scep.Challenge { return last{challenge.Static(secret), &asked, name, nil} }
	held := func(name string) scep.Challenge { return last{pend, &asked, name, nil} }
	c := challenge.Any(
		word("a", "A"),
		challenge.Static("B"),
		challenge.All(word("c", "C"), challenge.Any(word("d", "D"), word("e", "C")), word("f", "C")),
		challenge.All(challenge.Static("G"), challenge.Any(refuse, held("h"))),
	)
	for secret, want := range map[string]string{"A": "a", "B": "", "C": "c e f", "G": "h"} {
		req := challengetest.Request(secret)
		if err := c.Validate(t.Context(), req); err != nil && !errors.Is(err, scep.ErrPending) {
			t.Fatal(err)
		}
		asked = nil
		later := *req // as it is read back from the depot
		later.Secret = scep.Secret{}
		if err := c.(scep.Confirmer).Confirm(t.Context(), &later, &x509.Certificate{}); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(asked, " "); got != want {
			t.Errorf("secret %s, Via %q: asked %q, want %q", secret, req.Via, got, want)
		}
	}
	no := scep.Reject(scep.BadRequest, "no")
	all := challenge.All(last{admit, &asked, "x", nil}, last{admit, &asked, "y", no})
	if err := all.(scep.Confirmer).Confirm(t.Context(), challengetest.Request(""), nil); !errors.Is(err, scep.BadRequest) {
		t.Errorf("All with one that says no: %v", err)
	}
	for _, via := range []string{"", "7()", "0(", "((((", "0)", "x()"} {
		if err := c.(scep.Confirmer).Confirm(t.Context(), &scep.Request{Via: via}, nil); err == nil {
			t.Errorf("Via %q, which Any never wrote, was confirmed", via)
		}
	}
}

// TestCheck has what scep.New refuses.
func TestCheck(t *testing.T) {
	for name, c := range map[string]scep.Challenge{
		"Static of nothing":      challenge.Static(),
		"Static of empty":        challenge.Static("", ""),
		"Any of nothing":         challenge.Any(),
		"All with nil":           challenge.All(admit, nil),
		"Any with a useless one": challenge.Any(refuse, challenge.Static("")),
		"OneTime without store":  &challenge.OneTime{},
		"OneTime that is late":   &challenge.OneTime{Store: &depot.Memory{}, TTL: -1},
		"Any with nil in it":     challenge.Any(refuse, (*challenge.OneTime)(nil)),
	} {
		if err := c.(interface{ Check() error }).Check(); err == nil {
			t.Errorf("%s was found to work", name)
		}
		if name == "Any with nil in it" {
			continue // whoever goes on after that has asked for it
		}
		if err := c.Validate(t.Context(), challengetest.Request("")); err == nil {
			t.Errorf("%s admitted an empty secret", name)
		}
	}
	for name, c := range map[string]scep.Challenge{
		"Static":  challenge.Static("x"),
		"OneTime": &challenge.OneTime{Store: &depot.Memory{}},
		"Any":     challenge.Any(admit, challenge.Static("x")),
	} {
		if err := c.(interface{ Check() error }).Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHash(t *testing.T) {
	if a, b := challenge.Hash("x"), challenge.Hash("x"); a == b || strings.ContainsAny(a, " \t\n") {
		t.Errorf("hashes %q and %q", a, b)
	}
	good := challenge.Hash("x")
	parts := strings.Split(good, "$")
	with := func(i int, s string) string {
		p := append([]string(nil), parts...)
		p[i] = s
		return strings.Join(p, "$")
	}
	for _, bad := range []string{"", "x", "$$$", good + "$", with(0, "md5"), with(1, "1"), with(1, "99999999999"), with(1, "x"),
		with(2, "AAAA"), with(2, "!"), with(3, "AAAA"), with(3, "")} {
		if _, err := challenge.StaticHashed(good, bad); err == nil || !strings.Contains(err.Error(), "hash 1") || !strings.Contains(err.Error(), "challenge.Hash") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := challenge.StaticHashed(); err == nil {
		t.Error("StaticHashed without hashes was made")
	}
}

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
	if _, err := o.New(ctx, challenge.Binding{}); !errors.Is(err, scep.ErrLimit) {
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

// TestFlood has a hundred wrong guesses at once: most are told to come again, and who has a
// secret that is known does not wait for them.
func TestFlood(t *testing.T) {
	c, err := challenge.StaticHashed(challenge.Hash("right"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(t.Context(), challengetest.Request("right")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	answers := make(chan string, 100)
	for i := range 100 {
		wg.Go(func() { answers <- answer(c.Validate(ctx, challengetest.Request(fmt.Sprint("wrong ", i)))) })
	}
	for range 100 - 16 {
		if a := <-answers; a == "admit" {
			t.Error("a wrong guess was admitted")
		}
	}
	if err := c.Validate(ctx, challengetest.Request("right")); err != nil {
		t.Errorf("the right secret: %v", err)
	}
	cancel()
	wg.Wait()
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
