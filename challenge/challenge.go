// Package challenge has ways to decide who may enrol.
//
// Use [OneTime] where something hands each device a challenge of its own, as MDM servers do; use
// [Static] where one secret has to do for many devices, or [StaticHashed] if that secret must not
// stand in a configuration file. [Any] and [All] combine them with others, with your own among
// them: a [scep.ChallengeFunc] is one function.
//
// There is none that admits everybody. Package challenge/challengetest tests what you write
// yourself.
package challenge

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/scepkit/scepkit/scep"
)

// refused is the one answer to every challenge that does not pass. cause is for the log and does
// not contain the secret.
func refused(cause string) error {
	return &scep.Error{
		FailInfo: scep.BadRequest, Reason: scep.ReasonChallenge,
		Text: "challenge refused", Err: errors.New("challenge: " + cause),
	}
}

// Any returns a challenge that admits what any of cs admits. It asks them in order and stops at
// the first that admits. If none does, it returns [scep.ErrPending] if one of them did, else the
// error of one that could not tell, else the first refusal. Without cs it refuses everybody.
//
// What one that does not admit would have spent with [scep.Request.Spend] is not spent.
//
// It is a [scep.Confirmer]: it asks the one that let the request in, if that is one, by its place in
// cs. So put new ones last while requests wait to be confirmed. Of a request that none of these
// places let in, because cs or Any itself came later, it asks the only one that is a Confirmer,
// whether that let it in or not, and if none is, nobody, and hands the certificate out; of several it
// cannot tell, and the certificate stays withheld. If any of cs is a [scep.Preparer] it is one too,
// see [Prepared].
func Any(cs ...scep.Challenge) scep.Challenge {
	if prepares(cs) {
		return anyPrepared{cs}
	}
	return anyOf(cs)
}

type anyOf []scep.Challenge

func (a anyOf) Validate(ctx context.Context, req *scep.Request) error {
	var pending, unknown, refusal error
	var pendingVia string
	var waiting *scep.Request
	for i, c := range a {
		branch, err := validate(ctx, c, req)
		var why *scep.Error
		switch {
		case err == nil:
			req.Via = entry(i, branch.Via)
			req.Merge(branch)
			return nil
		case errors.Is(err, scep.ErrPending):
			if pending == nil {
				pending, pendingVia, waiting = err, entry(i, branch.Via), branch
			}
		case errors.As(err, &why):
			if refusal == nil {
				refusal = err
			}
		case unknown == nil:
			unknown = err
		}
	}
	switch {
	case pending != nil:
		req.Via = pendingVia
		req.Merge(waiting)
		return pending
	case unknown != nil:
		return unknown
	case refusal != nil:
		return refusal
	}
	return refused("there is nothing to ask")
}

// Confirm implements [scep.Confirmer].
func (a anyOf) Confirm(ctx context.Context, req *scep.Request, cert *x509.Certificate) error {
	for i, c := range a {
		if via, ok := lookUp(req.Via, i); ok {
			return confirm(ctx, c, via, req, cert)
		}
	}
	var only scep.Challenge
	for _, c := range a {
		if !confirms(c) {
			continue
		}
		if only != nil {
			return fmt.Errorf("challenge: it is not known which challenge of Any let request %s in, and several could confirm it; was Any changed since? Bring back the one before, or revoke the certificate", req.ID)
		}
		only = c
	}
	return confirm(ctx, only, req.Via, req, cert)
}

// confirms reports whether there is somebody behind c who has the last word.
func confirms(c scep.Challenge) bool {
	switch c := c.(type) {
	case anyOf:
		return slices.ContainsFunc(c, confirms)
	case allOf:
		return slices.ContainsFunc(c, confirms)
	case anyPrepared:
		return confirms(c.anyOf)
	case allPrepared:
		return confirms(c.allOf)
	}
	_, ok := c.(scep.Confirmer)
	return ok
}

// Check implements the check that [scep.New] makes.
func (a anyOf) Check() error { return check("Any", a) }

// All returns a challenge that admits what all of cs admit. It asks them in order and stops at
// the first that does not admit, so put those last that are spent by being asked, as [OneTime]
// where its Store is not the handler's depot. Without cs it refuses everybody.
//
// It is a [scep.Confirmer]: it asks all that are. If any of cs is a [scep.Preparer] it is one too,
// see [Prepared].
func All(cs ...scep.Challenge) scep.Challenge {
	if prepares(cs) {
		return allPrepared{cs}
	}
	return allOf(cs)
}

type allOf []scep.Challenge

func (a allOf) Validate(ctx context.Context, req *scep.Request) error {
	if len(a) == 0 {
		return refused("there is nothing to ask")
	}
	var all []string
	var pending error
	branches := make([]*scep.Request, len(a))
	for i, c := range a {
		branch, err := validate(ctx, c, req)
		if branch.Via != "" {
			all = append(all, entry(i, branch.Via))
		}
		switch {
		case errors.Is(err, scep.ErrPending):
			// The others must admit it all the same: a person is asked last.
			pending = err
		case err != nil:
			return err
		}
		branches[i] = branch
	}
	for _, branch := range branches {
		req.Merge(branch)
	}
	req.Via = strings.Join(all, ",")
	return pending
}

// Confirm implements [scep.Confirmer].
func (a allOf) Confirm(ctx context.Context, req *scep.Request, cert *x509.Certificate) error {
	for i, c := range a {
		via, _ := lookUp(req.Via, i)
		if err := confirm(ctx, c, via, req, cert); err != nil {
			return err
		}
	}
	return nil
}

// Check implements the check that [scep.New] makes.
func (a allOf) Check() error { return check("All", a) }

// check reports what makes a combination admit nobody.
func check(name string, cs []scep.Challenge) error {
	if len(cs) == 0 {
		return fmt.Errorf("challenge: %s of nothing admits nobody", name)
	}
	for i, c := range cs {
		if v := reflect.ValueOf(c); c == nil || v.Kind() == reflect.Pointer && v.IsNil() {
			return fmt.Errorf("challenge: argument %d of %s is nil", i, name)
		}
		if c, ok := c.(interface{ Check() error }); ok {
			if err := c.Check(); err != nil {
				return err
			}
		}
	}
	return nil
}

// validate asks c about a branch of req, which has then what c noted in Via.
func validate(ctx context.Context, c scep.Challenge, req *scep.Request) (*scep.Request, error) {
	branch := req.Branch()
	if c == nil {
		return branch, errors.New("challenge: one of those to ask is nil")
	}
	return branch, c.Validate(ctx, branch)
}

func confirm(ctx context.Context, c scep.Challenge, via string, req *scep.Request, cert *x509.Certificate) error {
	confirmer, ok := c.(scep.Confirmer)
	if !ok {
		return nil
	}
	r := *req
	r.Via = via
	return confirmer.Confirm(ctx, &r, cert)
}

// What Any and All keep in Via is a list of the challenges that let the request in, by number,
// each with its own Via in brackets: "1()", "0(2()),3(1())".

func entry(i int, via string) string { return strconv.Itoa(i) + "(" + via + ")" }

// lookUp returns the Via of challenge i.
func lookUp(via string, i int) (inner string, ok bool) {
	for via != "" {
		number, rest, found := strings.Cut(via, "(")
		if !found {
			return "", false
		}
		depth, end := 1, -1
		for j := 0; j < len(rest) && end < 0; j++ {
			switch rest[j] {
			case '(':
				depth++
			case ')':
				if depth--; depth == 0 {
					end = j
				}
			}
		}
		if end < 0 {
			return "", false
		}
		if number == strconv.Itoa(i) {
			return rest[:end], true
		}
		via = strings.TrimPrefix(rest[end+1:], ",")
	}
	return "", false
}
