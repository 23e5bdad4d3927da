package scep

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"
)

// A Spender is a [Depot] and a [ChallengeStore] that creates a record and spends a challenge in one
// step, so that whatever dies, and whenever, a challenge is spent by a record that exists, or not
// at all. A Challenge asks for it with [Request.Spend].
type Spender interface {
	// CreateSpending is Create of rec and SpendChallenge of challenge by rec.ID in one: both
	// happen or neither, and both are there or gone after a crash. The challenge must be
	// unspent, or have been spent by rec.ID before. Otherwise, and if rec cannot be created,
	// nothing is stored and rec.Version is left alone; the error is the first of
	//
	//   - [ErrExists] if a record has rec.ID, whatever has become of the challenge;
	//   - [ErrNotFound] if there is no such challenge;
	//   - [ErrSpent] if another record has spent it;
	//   - [ErrExists] if another record has the same Issuer and Serial.
	//
	// Of concurrent calls with one challenge one succeeds at most, and none if SpendChallenge
	// was quicker for another record. After any other error both may have happened, or neither:
	// the caller reads back, as after Create, and to find the record is to know both.
	CreateSpending(ctx context.Context, rec *Record, challenge ID, now time.Time) error
}

// spending collects what a request spends in the step in which its record is created.
type spending struct {
	depot Depot

	mu     sync.Mutex
	list   []spend
	closed bool // nobody looks any more
}

type spend struct {
	challenge ID
	at        time.Time
}

// Spend is for a [Challenge] that keeps challenges in store and is about to admit r. If store is
// the very depot in which the record of r is about to be created, and is a [Spender], it returns
// true: challenge is then spent by that record in the step in which it is created, with now as the
// time, and not at all if there is to be no record. If another record is quicker, r is refused.
// Spend returns false where that cannot be: the Challenge then calls SpendChallenge itself. It may
// be called until Validate returns, with [ErrPending] as well as with nil.
//
// Where one request spends several challenges this way, one is spent with the record and the others
// just before.
func (r *Request) Spend(store ChallengeStore, challenge ID, now time.Time) bool {
	s := r.spending
	if s == nil || !identical(store, s.depot) {
		return false
	}
	if _, ok := s.depot.(Spender); !ok {
		return false
	}
	return s.add(spend{challenge, now})
}

// Branch returns a copy of r, without its Via, for one of the challenges that a [Challenge] is made
// of. What that one has spent with [Request.Spend] is not spent before [Request.Merge]: so an
// alternative that did not admit r costs nothing. What a plain copy spends is spent, as if the copy
// were r.
func (r *Request) Branch() *Request {
	branch := *r
	branch.Via = ""
	if r.spending != nil {
		branch.spending = &spending{depot: r.spending.depot}
	}
	return &branch
}

// Merge has r spend what branch, which [Request.Branch] made of it, was to spend.
func (r *Request) Merge(branch *Request) {
	if r.spending == nil || branch.spending == nil || branch.spending == r.spending {
		return
	}
	r.spending.add(branch.spending.close()...)
}

func (s *spending) add(more ...spend) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	for _, m := range more {
		if !slices.ContainsFunc(s.list, func(l spend) bool { return l.challenge == m.challenge }) {
			s.list = append(s.list, m)
		}
	}
	return true
}

// close returns what there is to spend. What comes later is not taken.
func (s *spending) close() []spend {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return s.list
}

// identical reports whether two interfaces hold the same, and that can be told.
func identical(a, b any) bool {
	return a != nil && reflect.TypeOf(a) == reflect.TypeOf(b) && reflect.ValueOf(a).Comparable() && a == b
}

// create writes rec down, and spends all of these with it.
func (h *Handler) create(ctx context.Context, rec *Record, all []spend) error {
	if len(all) == 0 {
		err := h.c.Depot.Create(ctx, rec)
		if err != nil && !errors.Is(err, ErrExists) {
			return depotError("creating", rec.ID, err)
		}
		return err
	}
	for _, s := range all[1:] {
		by, err := h.c.Depot.(ChallengeStore).SpendChallenge(ctx, s.challenge, rec.ID, s.at)
		if err == nil && by != rec.ID {
			err = fmt.Errorf("%w: %s", ErrSpent, by)
		}
		if err != nil {
			return notSpent(rec.ID, err)
		}
	}
	err := h.c.Depot.(Spender).CreateSpending(ctx, rec, all[0].challenge, all[0].at)
	if err != nil && !errors.Is(err, ErrExists) {
		return notSpent(rec.ID, err)
	}
	return err
}

// checkUnspent refuses a request if another record has spent in the meantime what this one is to.
func (h *Handler) checkUnspent(ctx context.Context, id ID, all []spend) error {
	for _, s := range all {
		c, err := h.c.Depot.(ChallengeStore).GetChallenge(ctx, s.challenge)
		if err == nil && c.SpentBy != "" && c.SpentBy != id {
			err = fmt.Errorf("%w: %s", ErrSpent, c.SpentBy)
		}
		if err != nil {
			return notSpent(id, err)
		}
	}
	return nil
}

// notSpent is the error of a record that could not spend a challenge: if that is gone, the refusal
// with which package challenge refuses any other.
func notSpent(id ID, err error) error {
	if errors.Is(err, ErrSpent) || errors.Is(err, ErrNotFound) {
		return refuse(BadRequest, ReasonChallenge, "challenge refused", err)
	}
	return depotError("creating", id, err)
}
