package scep_test

import (
	"context"
	"crypto/x509"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

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
