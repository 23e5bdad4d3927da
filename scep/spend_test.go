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

// A valued store cannot be compared, and a plain one cannot do both in one step.
type (
	valued struct {
		store
		_ []int
	}
	plain struct {
		scep.Depot
		scep.ChallengeStore
	}
)

// TestSpendRenewal has two renewals with one challenge, of a certificate that may be renewed once.
// The first has spent the challenge and waits for the CA; the second, which was admitted before
// that, must not take its place and then be refused as well.
func TestSpendRenewal(t *testing.T) {
	for _, st := range stores {
		t.Run(st.name, func(t *testing.T) {
			t.Parallel()
			s := st.open(t)
			var away atomic.Bool
			admitted, proceed := make(chan struct{}), make(chan struct{})
			h, ra := serveFrom(t, s, func(c *scep.Config) {
				c.Renewal = scep.Renewal{On: true, Anytime: true, Max: 1, Challenge: true}
				c.RA = c.CA.(*scep.Identity)
				c.CA = sceptest.CA{CA: c.CA, On: func(op string, _ *x509.Certificate) (bool, error) {
					if op == "Sign" && away.Load() {
						return false, errors.New("the CA is away")
					}
					return false, nil
				}}
				c.Policy = scep.PolicyFunc(func(ctx context.Context, req *scep.Request) (*x509.Certificate, error) {
					if req.TransactionID == "second" {
						close(admitted)
						<-proceed
					}
					return (&scep.Profile{}).Template(ctx, req)
				})
			})
			first, _ := mint(t, s)
			d := newDevice(t, sceptest.RSA(1), "renewing", first)
			a := d.send(t, h, d.pkcsReq(t, ra), ra)
			if a.cert == nil {
				t.Fatal(a)
			}
			secret, hash := mint(t, s)
			renewal := func(id string, key int) *device {
				r := *d
				r.signer, r.id, r.csr = a.cert, id, newCSR(t, sceptest.RSA(key), "renewing", secret)
				return &r
			}
			one, two := renewal("first", 2), renewal("second", 3)
			away.Store(true)
			var wg sync.WaitGroup
			var late answer
			wg.Go(func() { late = two.send(t, h, two.message(t, "17", two.csr, ra), ra) })
			select {
			case <-admitted:
			case <-time.After(20 * time.Second):
				t.Error("the challenge did not admit the second")
			}
			early := one.send(t, h, one.message(t, "17", one.csr, ra), ra)
			close(proceed)
			wg.Wait()
			if early.status != "3" || late.failInfo != "2" || late.text != "challenge refused" {
				t.Fatalf("the first: %v; the second: %v", early, late)
			}
			away.Store(false)
			if a := one.send(t, h, one.certPoll(t, ra), ra); a.cert == nil {
				t.Errorf("the first, when the CA is back: %v", a)
			}
			all, err := s.List(t.Context(), scep.Query{State: scep.Issued})
			if err != nil || len(all) != 2 {
				t.Fatalf("%d certificates, %v", len(all), err)
			}
			c, err := s.GetChallenge(t.Context(), hash)
			if err != nil {
				t.Fatal(err)
			}
			if rec, err := s.Get(t.Context(), c.SpentBy); err != nil || rec.TransactionID != "first" {
				t.Errorf("the challenge was spent by %v, %v", rec, err)
			}
		})
	}
}

// TestSpendElsewhere has challenges that cannot be spent in the step that creates the record: they
// are spent when they admit, and a policy that refuses then does not bring them back.
func TestSpendElsewhere(t *testing.T) {
	memory := &depot.Memory{}
	var missing *depot.Memory
	for name, where := range map[string]struct {
		depot scep.Depot
		store scep.ChallengeStore
	}{
		"another store":      {&depot.Memory{}, memory},
		"the one behind":     {sceptest.Depot{Depot: memory}, memory},
		"cannot be compared": {valued{store: memory}, valued{store: memory}},
		"two steps":          {&plain{memory, memory}, memory},
		"two steps, one":     {plain{memory, memory}, plain{memory, memory}},
	} {
		t.Run(name, func(t *testing.T) {
			refusing := true
			oneTime := &challenge.OneTime{Store: where.store}
			h, _, ra := serve(t, func(c *scep.Config) {
				c.Depot = where.depot
				c.Challenge = scep.ChallengeFunc(func(ctx context.Context, req *scep.Request) error {
					if req.Spend(nil, req.ID, req.Time) || req.Spend(missing, req.ID, req.Time) {
						t.Error("there is nothing to spend it in")
					}
					return oneTime.Validate(ctx, req)
				})
				c.Policy = scep.PolicyFunc(func(ctx context.Context, req *scep.Request) (*x509.Certificate, error) {
					if refusing {
						return nil, scep.Reject(scep.BadRequest, "no")
					}
					return (&scep.Profile{}).Template(ctx, req)
				})
			})
			secret, hash := mint(t, memory)
			d := newDevice(t, sceptest.RSA(3), "elsewhere", secret)
			if a := d.send(t, h, d.pkcsReq(t, ra), ra); a.failInfo != "2" {
				t.Fatal(a)
			}
			if c, err := memory.GetChallenge(t.Context(), hash); err != nil || c.SpentBy == "" {
				t.Fatalf("the challenge is %v, %v", c, err)
			}
			refusing = false
			other := newDevice(t, sceptest.RSA(4), "elsewhere", secret)
			if a := other.send(t, h, other.pkcsReq(t, ra), ra); a.failInfo != "2" {
				t.Errorf("another request: %v", a)
			}
			if a := d.send(t, h, d.pkcsReq(t, ra), ra); a.cert == nil {
				t.Errorf("the same request: %v", a)
			}
		})
	}
}

// TestSpendWhen spends at the wrong time, twice, and several challenges at once.
func TestSpendWhen(t *testing.T) {
	for name, spoilt := range map[string]bool{"all are good": false, "one was spent by another": true} {
		t.Run(name, func(t *testing.T) {
			s := &depot.Memory{}
			var hashes []scep.ID
			var kept *scep.Request
			late := func(req *scep.Request) {
				if req.Spend(s, hashes[0], req.Time) {
					t.Error("Spend takes a challenge after Validate has returned")
				}
			}
			h, ra := serveFrom(t, s, func(c *scep.Config) {
				c.Challenge = scep.ChallengeFunc(func(_ context.Context, req *scep.Request) error {
					part := req.Branch()
					req.Merge(req)
					for _, hash := range append(hashes, hashes...) {
						if !part.Spend(s, hash, req.Time) {
							t.Error("Spend does not take a challenge")
						}
					}
					req.Merge(part)
					req.Merge(part)
					if part.Spend(s, hashes[0], req.Time) {
						t.Error("Spend takes a challenge after Merge")
					}
					r := *req
					kept = &r
					return nil
				})
				c.Policy = scep.PolicyFunc(func(ctx context.Context, req *scep.Request) (*x509.Certificate, error) {
					late(req)
					late(kept)
					return (&scep.Profile{}).Template(ctx, req)
				})
			})
			for range 3 {
				_, hash := mint(t, s)
				hashes = append(hashes, hash)
			}
			if spoilt {
				if _, err := s.SpendChallenge(t.Context(), hashes[2], hashes[2], time.Now()); err != nil {
					t.Fatal(err)
				}
			}
			d := newDevice(t, sceptest.RSA(3), "when", "x")
			a := d.send(t, h, d.pkcsReq(t, ra), ra)
			all, err := s.List(t.Context(), scep.Query{})
			if err != nil {
				t.Fatal(err)
			}
			if spoilt {
				if a.failInfo != "2" || a.text != "challenge refused" || len(all) != 0 {
					t.Errorf("%v, %d records", a, len(all))
				}
				return
			}
			if a.cert == nil || len(all) != 1 {
				t.Fatal(a)
			}
			for _, hash := range hashes {
				if c, err := s.GetChallenge(t.Context(), hash); err != nil || c.SpentBy != all[0].ID {
					t.Errorf("%v, %v", c, err)
				}
			}
		})
	}
	req := &scep.Request{Via: "x"} // as tests make one
	part := req.Branch()
	req.Merge(part)
	if s := (&depot.Memory{}); req.Spend(s, "", time.Now()) || part.Spend(s, "", time.Now()) || part.Via != "" {
		t.Error("Spend outside a handler")
	}
}
