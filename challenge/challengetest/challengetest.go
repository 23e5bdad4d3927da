// Package challengetest tests implementations of [scep.Challenge]:
//
//	func TestVoucher(t *testing.T) {
//		challengetest.TestChallenge(t, challengetest.Harness{
//			Open: func(t *testing.T) (scep.Challenge, *scep.Request) {
//				service := startService(t)
//				return voucher.New(service.URL), challengetest.Request(service.Voucher())
//			},
//			OneTime: true,
//		})
//	}
//
// Each clause is a test of its own and fails with the sentence of the contract that was broken.
// New clauses come with new minor versions.
package challengetest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// A Harness makes the challenges under test.
type Harness struct {
	// Open returns a challenge and a request that it must admit. It is called anew for each
	// clause, and cleans up with t.Cleanup.
	Open func(t *testing.T) (scep.Challenge, *scep.Request)

	// OneTime says that a secret admits one request only.
	OneTime bool

	// Break, if not nil, makes what the challenge returned by the last Open relies on
	// unreachable until the test ends.
	Break func(t *testing.T)
}

// Request returns a request with this secret and an ID of its own: for device-1, without
// alternative names. A harness may change it.
func Request(secret string) *scep.Request {
	id := make([]byte, 32)
	rand.Read(id)
	return &scep.Request{
		ID:            scep.ID(hex.EncodeToString(id)),
		TransactionID: "transaction of " + hex.EncodeToString(id[:4]),
		CSR:           csr(),
		Secret:        scep.NewSecret(secret),
		RemoteAddr:    "192.0.2.1:1024",
	}
}

func csr() *x509.CertificateRequest {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "device-1"}}, key)
	if err != nil {
		panic(err)
	}
	req, err := x509.ParseCertificateRequest(der)
	if err != nil {
		panic(err)
	}
	return req
}

// TestChallenge holds an implementation to every clause of the scep.Challenge contract. Run it
// with -race.
func TestChallenge(t *testing.T, h Harness) {
	for _, c := range clauses {
		t.Run(c.name, func(t *testing.T) {
			if c.oneTime && !h.OneTime {
				t.Skip("its secrets admit any number of requests")
			}
			if c.broken && h.Break == nil {
				t.Skip("it relies on nothing that could break")
			}
			if err := c.run(t, h); err != nil {
				t.Errorf("%v\ncontract: %s", err, c.contract)
			}
		})
	}
}

// patience is how long a clause may take; what takes longer hangs.
const patience = time.Minute

// A clause is one promise and how to see that it is kept.
type clause struct {
	name     string
	contract string
	oneTime  bool // only for challenges that are
	broken   bool // with what it relies on unreachable
	check    func(ctx context.Context, c scep.Challenge, req *scep.Request) error
}

// run returns how the promise was broken, or nil.
func (cl *clause) run(t *testing.T, h Harness) error {
	c, req := h.Open(t)
	if c == nil || req == nil {
		return errors.New("Harness.Open returned no challenge, or no request")
	}
	if cl.broken {
		h.Break(t)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	result := make(chan error, 1)
	go func() { result <- cl.check(ctx, c, req) }()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return fmt.Errorf("it took more than %v", patience)
	}
}

// another is req with another ID, and so another request.
func another(req *scep.Request, i int) *scep.Request {
	r := *req
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", req.ID, i))
	r.ID = scep.ID(hex.EncodeToString(sum[:]))
	r.Via = ""
	return &r
}

// withSecret is another request with this secret.
func withSecret(req *scep.Request, secret string) *scep.Request {
	r := another(req, 0)
	r.Secret = scep.NewSecret(secret)
	return r
}

// refusal reports why err is not one.
func refusal(err error) error {
	var why *scep.Error
	switch {
	case err == nil:
		return errors.New("it was admitted")
	case !errors.As(err, &why):
		return fmt.Errorf("it was not refused with a *scep.Error: %w", err)
	case why.FailInfo != scep.BadRequest:
		return fmt.Errorf("it was refused with %w, want badRequest", why.FailInfo)
	}
	return nil
}

// wrong are secrets like secret that are not it.
func wrong(secret string) map[string]string {
	w := map[string]string{
		"another":               "not " + secret,
		"none":                  "",
		"one with NUL behind":   secret + "\x00",
		"one with a blank":      secret + " ",
		"one twice":             secret + secret,
		"a single other letter": "~" + secret[1:],
		"a wildcard":            "%",
	}
	if len(secret) > 1 {
		w["a part of it"] = secret[:len(secret)-1]
		w["the end of it"] = secret[1:]
	}
	if up := strings.ToUpper(secret); up != secret {
		w["one in capitals"] = up
	}
	if low := strings.ToLower(secret); low != secret {
		w["one in small letters"] = low
	}
	return w
}

var clauses = []clause{
	{
		name:     "admits",
		contract: "Validate returns nil to admit a request.",
		check: func(ctx context.Context, c scep.Challenge, req *scep.Request) error {
			if err := c.Validate(ctx, req); err != nil {
				return fmt.Errorf("the right secret: %w", err)
			}
			return nil
		},
	},
	{
		name:     "refuses",
		contract: "A wrong secret is refused with an *scep.Error.",
		check: func(ctx context.Context, c scep.Challenge, req *scep.Request) error {
			for name, secret := range wrong(req.Secret.Reveal()) {
				if err := refusal(c.Validate(ctx, withSecret(req, secret))); err != nil {
					return fmt.Errorf("secret %s: %w", name, err)
				}
			}
			return nil
		},
	},
	{
		name:     "keeps secrets",
		contract: "Neither its errors nor their texts contain the secret.",
		check: func(ctx context.Context, c scep.Challenge, req *scep.Request) error {
			planted := "planted-secret-4f9a1c"
			right := req.Secret.Reveal()
			for _, r := range []*scep.Request{withSecret(req, planted), withSecret(req, right+planted), req, another(req, 1)} {
				err := c.Validate(ctx, r)
				if err == nil {
					continue
				}
				text := fmt.Sprintf("%v %+v %#v", err, err, err)
				if strings.Contains(text, planted) || strings.Contains(text, right) {
					return errors.New("the secret is in the error") // which must not print it either
				}
			}
			return nil
		},
	},
	{
		name:     "retry",
		contract: "Asked again about the same req.ID, it answers the same.",
		check: func(ctx context.Context, c scep.Challenge, req *scep.Request) error {
			for i := range 3 {
				r := *req
				if err := c.Validate(ctx, &r); err != nil {
					return fmt.Errorf("asked %d times before: %w", i, err)
				}
			}
			bad := withSecret(req, "not "+req.Secret.Reveal())
			for i := range 3 {
				if err := refusal(c.Validate(ctx, bad)); err != nil {
					return fmt.Errorf("the wrong secret, asked %d times before: %w", i, err)
				}
			}
			return nil
		},
	},
	{
		name:     "a wrong guess spends nothing",
		contract: "A one-time secret is spent by a request that is admitted.",
		oneTime:  true,
		check: func(ctx context.Context, c scep.Challenge, req *scep.Request) error {
			for name, secret := range wrong(req.Secret.Reveal()) {
				if c.Validate(ctx, withSecret(req, secret)) == nil {
					return fmt.Errorf("secret %s was admitted", name)
				}
			}
			if err := c.Validate(ctx, req); err != nil {
				return fmt.Errorf("the right secret after wrong ones: %w", err)
			}
			return nil
		},
	},
	{
		name:     "one of a hundred",
		contract: "A one-time secret admits one request, which may ask again, and no other.",
		oneTime:  true,
		check: func(ctx context.Context, c scep.Challenge, req *scep.Request) error {
			errs := make([]error, 100)
			var wg sync.WaitGroup
			for i := range errs {
				wg.Go(func() { errs[i] = c.Validate(ctx, another(req, i)) })
			}
			wg.Wait()
			admitted := -1
			for i, err := range errs {
				switch {
				case err == nil && admitted >= 0:
					return errors.New("two requests were admitted")
				case err == nil:
					admitted = i
				default:
					if err := refusal(err); err != nil {
						return fmt.Errorf("one of those that came too late: %w", err)
					}
				}
			}
			if admitted < 0 {
				return errors.New("nobody was admitted")
			}
			if err := c.Validate(ctx, another(req, admitted)); err != nil {
				return fmt.Errorf("the one that was admitted, asking again: %w", err)
			}
			return nil
		},
	},
	{
		name:     "cannot tell",
		contract: "Any other error means that it could not tell: a service that is away is not a refusal.",
		broken:   true,
		check: func(ctx context.Context, c scep.Challenge, req *scep.Request) error {
			err := c.Validate(ctx, req)
			var why *scep.Error
			switch {
			case err == nil:
				return errors.New("it admitted what it could not check")
			case errors.As(err, &why):
				return fmt.Errorf("it refused what it could not check: %w", err)
			case errors.Is(err, scep.ErrPending):
				return errors.New("it left to a person what it could not check")
			}
			return nil
		},
	},
	{
		name:     "cancelled",
		contract: "When ctx ends Validate returns, and a wrong secret is not admitted for that.",
		check: func(ctx context.Context, c scep.Challenge, req *scep.Request) error {
			ended, cancel := context.WithCancel(ctx)
			cancel()
			if c.Validate(ended, withSecret(req, "not "+req.Secret.Reveal())) == nil {
				return errors.New("a wrong secret was admitted")
			}
			var why *scep.Error
			if err := c.Validate(ended, req); errors.As(err, &why) {
				return fmt.Errorf("the right secret was refused because the caller had gone: %w", err)
			}
			return nil
		},
	},
	{
		name:     "concurrent",
		contract: "Methods may be called concurrently.",
		check: func(ctx context.Context, c scep.Challenge, req *scep.Request) error {
			errs := make([]error, 32)
			var wg sync.WaitGroup
			for i := range errs {
				wg.Go(func() {
					r := *req
					errs[i] = c.Validate(ctx, &r)
				})
			}
			wg.Wait()
			return errors.Join(errs...)
		},
	},
}
