package challenge_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

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
		"Prepared":              static(challenge.Prepared("New-secret-1")),
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

// TestConfirmChanged has requests confirmed that were let in before Any was what it is.
func TestConfirmChanged(t *testing.T) {
	var asked []string
	no := scep.Reject(scep.BadRequest, "no")
	word := func(name string, says error) scep.Challenge { return last{admit, &asked, name, says} }
	for _, tt := range []struct {
		c    scep.Challenge
		via  string
		want string // who is asked
		says string
	}{
		{challenge.Any(admit), "", "", "admit"},
		{challenge.Any(admit), "3()", "", "admit"},
		{challenge.Any(challenge.All(admit), challenge.Any(admit, challenge.Prepared("x")), nil), "7(1())", "", "admit"},
		{challenge.Any(admit, word("a", nil)), "", "a", "admit"},
		{challenge.Any(admit, word("a", no)), "2()", "a", "refuse"},
		{challenge.Any(admit, challenge.All(word("a", nil), challenge.Any(word("b", nil)))), "", "a b", "admit"},
		{challenge.Any(challenge.All(challenge.Prepared("x"), word("a", nil)), admit), "9()", "a", "admit"},
		{challenge.Any(word("a", nil), word("b", nil)), "", "", "unknown"},
		{challenge.Any(word("a", nil), word("b", nil)), "1()", "b", "admit"},
	} {
		asked = nil
		err := tt.c.(scep.Confirmer).Confirm(t.Context(), &scep.Request{Via: tt.via}, &x509.Certificate{})
		if got := strings.Join(asked, " "); answer(err) != tt.says || got != tt.want {
			t.Errorf("%T, Via %q: asked %q, which says %v; want %q and %s", tt.c, tt.via, got, err, tt.want, tt.says)
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
