package challengetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/scepkit/scepkit/scep"
)

// good is a right one-time challenge, to be broken in one place at a time.
type good struct {
	mu           sync.Mutex
	spent        scep.ID
	called, away bool

	validate func(g *good, ctx context.Context, req *scep.Request) error // in place of the right one
}

const right = "Right-secret"

func (g *good) Validate(ctx context.Context, req *scep.Request) error {
	if g.validate != nil {
		return g.validate(g, ctx, req)
	}
	return g.do(ctx, req)
}

func (g *good) do(ctx context.Context, req *scep.Request) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.away:
		return errors.New("service is away")
	case req.Secret.Reveal() != right, g.spent != "" && g.spent != req.ID:
		return scep.Reject(scep.BadRequest, "refused")
	}
	g.spent = req.ID
	return nil
}

// TestSuite runs the suite over challenges that are broken on purpose: the clause that each of
// them breaks must fail, and no other.
func TestSuite(t *testing.T) {
	for _, tt := range []struct {
		name     string
		validate func(g *good, ctx context.Context, req *scep.Request) error
		want     []string
	}{
		{"right", nil, nil},
		{"admits nobody", func(*good, context.Context, *scep.Request) error { return scep.Reject(scep.BadRequest, "no") },
			[]string{"admits", "retry", "a wrong guess spends nothing", "one of a hundred", "cannot tell", "cancelled", "concurrent"}},
		{"admits everybody", func(*good, context.Context, *scep.Request) error { return nil },
			[]string{"refuses", "retry", "a wrong guess spends nothing", "one of a hundred", "cannot tell", "cancelled"}},
		{"ignores case", func(g *good, ctx context.Context, req *scep.Request) error {
			r := *req
			if strings.EqualFold(r.Secret.Reveal(), right) {
				r.Secret = scep.NewSecret(right)
			}
			return g.do(ctx, &r)
		}, []string{"refuses", "a wrong guess spends nothing"}},
		{"stops at NUL", func(g *good, ctx context.Context, req *scep.Request) error {
			r := *req
			text, _, _ := strings.Cut(r.Secret.Reveal(), "\x00")
			r.Secret = scep.NewSecret(text)
			return g.do(ctx, &r)
		}, []string{"refuses", "a wrong guess spends nothing"}},
		{"says badAlg", func(g *good, ctx context.Context, req *scep.Request) error {
			err := g.do(ctx, req)
			var why *scep.Error
			if errors.As(err, &why) {
				return scep.Reject(scep.BadAlg, "no")
			}
			return err
		}, []string{"refuses", "retry", "one of a hundred"}},
		{"repeats the secret", func(g *good, ctx context.Context, req *scep.Request) error {
			err := g.do(ctx, req)
			var why *scep.Error
			if errors.As(err, &why) {
				why.Err = fmt.Errorf("got %q", req.Secret.Reveal())
			}
			return err
		}, []string{"keeps secrets"}},
		{"spent by a call", func(g *good, ctx context.Context, req *scep.Request) error {
			err := g.do(ctx, req)
			g.mu.Lock()
			defer g.mu.Unlock()
			if err == nil && g.called {
				return scep.Reject(scep.BadRequest, "spent")
			}
			g.called = g.called || err == nil
			return err
		}, []string{"retry", "one of a hundred", "concurrent"}},
		{"never spent", func(g *good, ctx context.Context, req *scep.Request) error {
			err := g.do(ctx, req)
			g.mu.Lock()
			g.spent = ""
			g.mu.Unlock()
			return err
		}, []string{"one of a hundred"}},
		{"spent by a wrong guess", func(g *good, ctx context.Context, req *scep.Request) error {
			err := g.do(ctx, req)
			g.mu.Lock()
			if g.spent == "" {
				g.spent = "somebody"
			}
			g.mu.Unlock()
			return err
		}, []string{"a wrong guess spends nothing"}},
		{"refuses when it cannot tell", func(g *good, ctx context.Context, req *scep.Request) error {
			if g.away {
				return scep.Reject(scep.BadRequest, "service is away")
			}
			return g.do(ctx, req)
		}, []string{"cannot tell"}},
		{"admits when it cannot tell", func(g *good, ctx context.Context, req *scep.Request) error {
			if g.away {
				return nil
			}
			return g.do(ctx, req)
		}, []string{"cannot tell"}},
		{"refuses when cancelled", func(g *good, ctx context.Context, req *scep.Request) error {
			if ctx.Err() != nil {
				return scep.Reject(scep.BadRequest, "too late")
			}
			return g.do(ctx, req)
		}, []string{"cancelled"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var last *good
			h := Harness{
				Open: func(*testing.T) (scep.Challenge, *scep.Request) {
					last = &good{validate: tt.validate}
					return last, Request(right)
				},
				OneTime: true,
				Break:   func(*testing.T) { last.away = true },
			}
			var failed []string
			for _, c := range clauses {
				if c.run(t, h) != nil {
					failed = append(failed, c.name)
				}
			}
			slices.Sort(failed)
			slices.Sort(tt.want)
			if !slices.Equal(failed, tt.want) {
				t.Errorf("clauses that failed: %q\nwant:                  %q", failed, tt.want)
			}
		})
	}
}
