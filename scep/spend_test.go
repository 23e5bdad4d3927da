package scep_test

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// serveFrom makes a handler whose depot is s, with an own one-time challenge over it.
func serveFrom(t *testing.T, s store, change func(c *scep.Config)) (*scep.Handler, *x509.Certificate) {
	t.Helper()
	ca := sceptest.NewCA(t)
	c := scep.Config{CA: ca, Depot: s, Challenge: &challenge.OneTime{Store: s}, Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&c)
	}
	h, err := scep.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return h, ca.Certificate()
}

// TestPolicyRefuses has a policy refuse, or fail, after the challenge has admitted a request: the
// challenge is good for a corrected one, with another key.
func TestPolicyRefuses(t *testing.T) {
	for _, st := range stores {
		t.Run(st.name, func(t *testing.T) {
			t.Parallel()
			s := st.open(t)
			h, ra := serveFrom(t, s, func(c *scep.Config) {
				c.Policy = scep.PolicyFunc(func(ctx context.Context, req *scep.Request) (*x509.Certificate, error) {
					switch req.CSR.Subject.CommonName {
					case "wrong":
						return nil, scep.Reject(scep.BadRequest, "no such device")
					case "away":
						return nil, errors.New("directory is away")
					}
					return (&scep.Profile{}).Template(ctx, req)
				})
			})
			secret, hash := mint(t, s)
			for i, name := range []string{"wrong", "away", "wrong"} {
				d := newDevice(t, sceptest.RSA(i), name, secret)
				a := d.send(t, h, d.pkcsReq(t, ra), ra)
				if refused := a.failInfo == "2" && a.text == "no such device"; refused != (name == "wrong") || a.cert != nil {
					t.Fatalf("%s: %v", name, a)
				}
				if rec := agree(t, s, hash); rec != nil {
					t.Fatalf("%s has record %s", name, rec.ID)
				}
			}
			d := newDevice(t, sceptest.RSA(3), "right", secret)
			a := d.send(t, h, d.pkcsReq(t, ra), ra)
			if a.cert == nil {
				t.Fatalf("a corrected request: %v", a)
			}
			oneCertificate(t, s, a.cert)
			agree(t, s, hash)
		})
	}
}

// TestChallengeRace lets two requests with one challenge both be admitted before either is written
// down. The second is refused as if it had come later, and nothing of it is stored.
func TestChallengeRace(t *testing.T) {
	for _, st := range stores {
		t.Run(st.name, func(t *testing.T) {
			t.Parallel()
			s := st.open(t)
			both := make(chan struct{})
			var admitted atomic.Int32
			var mu sync.Mutex
			var events []scep.Event
			h, ra := serveFrom(t, s, func(c *scep.Config) {
				c.Policy = scep.PolicyFunc(func(ctx context.Context, req *scep.Request) (*x509.Certificate, error) {
					if admitted.Add(1) == 2 {
						close(both)
					}
					select {
					case <-both:
					case <-time.After(10 * time.Second):
						t.Error("the challenge did not admit both")
					}
					return (&scep.Profile{}).Template(ctx, req)
				})
				c.Events.Refused = func(_ context.Context, e scep.Event) {
					mu.Lock()
					defer mu.Unlock()
					events = append(events, e)
				}
			})
			secret, hash := mint(t, s)
			answers := make([]answer, 2)
			var wg sync.WaitGroup
			for i := range answers {
				d := newDevice(t, sceptest.RSA(i), "race", secret)
				msg := d.pkcsReq(t, ra)
				wg.Go(func() { answers[i] = d.send(t, h, msg, ra) })
			}
			wg.Wait()
			won, lost := answers[0], answers[1]
			if won.cert == nil {
				won, lost = lost, won
			}
			if won.cert == nil || lost.cert != nil {
				t.Fatalf("%v and %v", won, lost)
			}
			oneCertificate(t, s, won.cert)
			agree(t, s, hash)

			d := newDevice(t, sceptest.RSA(2), "late", secret)
			if late := d.send(t, h, d.pkcsReq(t, ra), ra); late != lost || lost.text != "challenge refused" {
				t.Errorf("the one that was slower is told %v, one that comes later %v", lost, late)
			}
			mu.Lock()
			defer mu.Unlock()
			if len(events) != 2 {
				t.Fatalf("%d events, want 2", len(events))
			}
			for _, e := range events {
				if e.Reason != scep.ReasonChallenge || e.FailInfo != scep.BadRequest || strings.Contains(e.Err.Error(), secret) {
					t.Errorf("event: %s, %v", e.Reason, e.Err)
				}
			}
			if !errors.Is(events[0].Err, scep.ErrSpent) || !strings.Contains(events[0].Err.Error(), string(agree(t, s, hash).ID)) {
				t.Errorf("the cause in the log is %v", events[0].Err)
			}
		})
	}
}

// TestSpendSecondTry has the serial number taken at the first try: at the second the challenge is
// spent all the same.
func TestSpendSecondTry(t *testing.T) {
	s := &depot.Memory{}
	taken := 1
	wrapped := &sceptest.Store{Spender: s, On: func(op string, _ *scep.Record) (bool, error) {
		if op == "Create" && taken > 0 {
			taken--
			return false, scep.ErrExists
		}
		return false, nil
	}}
	h, _, ra := serve(t, func(c *scep.Config) { c.Depot, c.Challenge = wrapped, &challenge.OneTime{Store: wrapped} })
	secret, hash := mint(t, s)
	d := newDevice(t, sceptest.RSA(3), "second", secret)
	if a := d.send(t, h, d.pkcsReq(t, ra), ra); a.cert == nil || taken != 0 {
		t.Fatal(a)
	}
	if agree(t, s, hash) == nil {
		t.Error("there is no record")
	}
}

// TestSpendCombined has one-time challenges among others, which may have the request wait for a
// person. Whoever is let in, or waits, has spent his.
func TestSpendCombined(t *testing.T) {
	wait := scep.ChallengeFunc(func(context.Context, *scep.Request) error { return scep.ErrPending })
	for name, combine := range map[string]func(scep.Challenge) scep.Challenge{
		"Any":         func(c scep.Challenge) scep.Challenge { return challenge.Any(quick("x"), c) },
		"All":         func(c scep.Challenge) scep.Challenge { return challenge.All(c, challenge.Any(c, c)) },
		"All, later":  func(c scep.Challenge) scep.Challenge { return challenge.All(wait, c) },
		"All in Any":  func(c scep.Challenge) scep.Challenge { return challenge.Any(quick("x"), challenge.All(c, wait), wait) },
		"one's own":   func(c scep.Challenge) scep.Challenge { return copying{c, scep.ErrPending} },
		"one's admit": func(c scep.Challenge) scep.Challenge { return copying{c, nil} },
	} {
		for _, st := range stores {
			t.Run(name+"/"+st.name, func(t *testing.T) {
				t.Parallel()
				s := st.open(t)
				h, ra := serveFrom(t, s, func(c *scep.Config) { c.Challenge = combine(c.Challenge) })
				secret, hash := mint(t, s)
				d := newDevice(t, sceptest.RSA(3), "pending", secret)
				a := d.send(t, h, d.pkcsReq(t, ra), ra)
				rec := agree(t, s, hash)
				if rec == nil || (a.status == "3") != (rec.State == scep.Pending) || a.cert == nil && a.status != "3" {
					t.Fatalf("%v; the record is %v", a, rec)
				}
			})
		}
	}
}

// copying asks about a copy of the request, and answers on its own.
type copying struct {
	scep.Challenge
	answer error
}

func (c copying) Validate(ctx context.Context, req *scep.Request) error {
	r := *req
	return errors.Join(c.Challenge.Validate(ctx, &r), c.answer)
}

// TestSpendAlternative lets a request in by another way than its one-time challenge: that stays
// good.
func TestSpendAlternative(t *testing.T) {
	refuse := scep.ChallengeFunc(func(context.Context, *scep.Request) error { return scep.Reject(scep.BadRequest, "no") })
	wait := scep.ChallengeFunc(func(context.Context, *scep.Request) error { return scep.ErrPending })
	admit := scep.ChallengeFunc(func(context.Context, *scep.Request) error { return nil })
	for name, combine := range map[string]func(scep.Challenge) scep.Challenge{
		"refused":        func(c scep.Challenge) scep.Challenge { return challenge.Any(challenge.All(c, refuse), admit) },
		"held back":      func(c scep.Challenge) scep.Challenge { return challenge.Any(challenge.All(c, wait), admit) },
		"held back late": func(c scep.Challenge) scep.Challenge { return challenge.Any(wait, challenge.All(c, wait)) },
		"not asked":      func(c scep.Challenge) scep.Challenge { return challenge.Any(admit, c) },
		"deep": func(c scep.Challenge) scep.Challenge {
			return challenge.All(challenge.Any(challenge.All(c, refuse), admit), admit)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := &depot.Memory{}
			h, ra := serveFrom(t, s, func(c *scep.Config) { c.Challenge = combine(c.Challenge) })
			secret, hash := mint(t, s)
			d := newDevice(t, sceptest.RSA(3), "alternative", secret)
			if a := d.send(t, h, d.pkcsReq(t, ra), ra); a.cert == nil && a.status != "3" {
				t.Fatal(a)
			}
			if c, err := s.GetChallenge(t.Context(), hash); err != nil || c.SpentBy != "" {
				t.Errorf("the challenge was spent by %.8q, %v", c.SpentBy, err)
			}
		})
	}
}
