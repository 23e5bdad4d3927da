// Package depottest tests implementations of [scep.Depot], and of [scep.Lister],
// [scep.RevocationLister], [scep.Pruner], [scep.Scanner], [scep.Loader], [scep.ChallengeStore] and
// [scep.Spender] where a depot has those too. It needs nothing but the harness:
//
//	func TestRedis(t *testing.T) {
//		depottest.TestDepot(t, depottest.Harness{
//			Open:   func(t *testing.T) scep.Depot { return redisdepot.New(server(t)) },
//			Reopen: func(t *testing.T, d scep.Depot) scep.Depot { return redisdepot.New(d.(*redisdepot.Depot).Addr) },
//		})
//	}
//
// Each clause is a test of its own and fails with the sentence of the contract that was
// broken. New clauses come with new minor versions.
package depottest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// A Harness makes the depots under test.
type Harness struct {
	// Open returns an empty depot; it cleans up with t.Cleanup.
	Open func(t *testing.T) scep.Depot

	// Reopen returns another depot over the same data, as a second process would see it.
	// Nil if data does not outlive d.
	Reopen func(t *testing.T, d scep.Depot) scep.Depot
}

// TestDepot holds an implementation to every clause of the scep.Depot contract. Run it with -race.
func TestDepot(t *testing.T, h Harness) {
	for _, c := range clauses {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			err := c.run(t, h)
			var gap gap
			if errors.As(err, &gap) {
				t.Skip(gap)
			}
			if err != nil {
				t.Errorf("%v\ncontract: %s", err, c.contract)
			}
		})
	}
}

// patience is how long a clause may take; what takes longer hangs. It is long, since
// machines are slow and the suite runs in parallel.
const patience = time.Minute

// A clause is one promise and how to see that it is kept.
type clause struct {
	name     string
	contract string

	// One of these is set. It reports how the promise was broken.
	depot      func(context.Context, scep.Depot) error
	lister     func(context.Context, lister) error
	revoked    func(context.Context, revoker) error
	prune      func(context.Context, pruner) error
	scan       func(context.Context, scanner) error
	load       func(context.Context, loader) error
	challenges func(context.Context, scep.ChallengeStore) error
	spending   func(context.Context, spender) error
	reopen     func(context.Context, scep.Depot, func() scep.Depot) error
}

// A lister is a depot that can list.
type lister interface {
	scep.Depot
	scep.Lister
}

// A revoker is a depot that can list revocations.
type revoker interface {
	scep.Depot
	scep.RevocationLister
}

// A gap is something that the depot does not offer.
type gap string

func (g gap) Error() string { return string(g) }

var clauses = slices.Concat(depotClauses, dataClauses, listClauses, revocationClauses, pruneClauses, scanClauses, loadClauses, challengeClauses, spendingClauses)

// run holds a fresh depot to c.
func (c clause) run(t *testing.T, h Harness) error {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	d := h.Open(t)
	check := func() error { return c.depot(ctx, d) }
	switch {
	case c.lister != nil:
		l, ok := d.(lister)
		if !ok {
			return gap(fmt.Sprintf("%T is not a scep.Lister", d))
		}
		check = func() error { return c.lister(ctx, l) }
	case c.revoked != nil:
		r, ok := d.(revoker)
		if !ok {
			return gap(fmt.Sprintf("%T is not a scep.RevocationLister", d))
		}
		check = func() error { return c.revoked(ctx, r) }
	case c.prune != nil:
		p, ok := d.(pruner)
		if !ok {
			return gap(fmt.Sprintf("%T is not a scep.Pruner", d))
		}
		check = func() error { return c.prune(ctx, p) }
	case c.scan != nil:
		s, ok := d.(scanner)
		if !ok {
			return gap(fmt.Sprintf("%T is not a scep.Scanner", d))
		}
		check = func() error { return c.scan(ctx, s) }
	case c.load != nil:
		l, ok := d.(loader)
		if !ok {
			return gap(fmt.Sprintf("%T is not a scep.Loader", d))
		}
		check = func() error { return c.load(ctx, l) }
	case c.challenges != nil:
		s, ok := d.(scep.ChallengeStore)
		if !ok {
			return gap(fmt.Sprintf("%T is not a scep.ChallengeStore", d))
		}
		check = func() error { return c.challenges(ctx, s) }
	case c.spending != nil:
		s, err := asSpender(d)
		if err != nil {
			return err
		}
		check = func() error { return c.spending(ctx, s) }
	case c.reopen != nil:
		if h.Reopen == nil {
			return gap("the harness has no Reopen: data does not outlive the depot")
		}
		check = func() error { return c.reopen(ctx, d, func() scep.Depot { return h.Reopen(t, d) }) }
	}
	done := make(chan error, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				done <- fmt.Errorf("panic: %v", p)
			}
		}()
		done <- check()
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	// A moment for what respects ctx to say what it was waiting for.
	select {
	case err := <-done:
		return fmt.Errorf("not done after %v: %w", patience, err)
	case <-time.After(patience / 10):
		return fmt.Errorf("not done after %v, and its context makes no difference", patience)
	}
}
