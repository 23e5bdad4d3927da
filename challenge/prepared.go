package challenge

import (
	"context"
	"crypto"
	"errors"

	"github.com/scepkit/scepkit/scep"
)

// Prepared returns a challenge that admits requests which carry secret, as [Static] does, and is a
// [scep.Preparer]: with [scep.Config].PasswordRecipients, requests that are encrypted with secret
// are opened. It keeps secret itself. Whoever records such a request, or a reply to one, can try
// guesses at it at leisure: make it long and random.
//
// [Any] and [All] of challenges some of which are a Preparer ask those in order, and the first that
// has a secret for a request, or could not tell, decides. A request is opened with that secret only:
// where several would do, as two of this function, a request that is encrypted with another than
// the first is refused. Put those first that know some requests only. To open a request admits
// nobody, as the RA's key does it for everybody: it is the password in the CSR that the challenges
// then judge, each by itself.
//
// The reply to a poll of a client that cannot decrypt is encrypted with the secret too: by Any, with
// that of the one that let it in, if it has one. Otherwise the client is told to send its request
// again instead, and can read the reply to that. To change the secret while requests wait, have both
// for a time, as Any of the new one and the old one where there was the old one alone. Who waits while
// one is simply put in place of the other, or places in Any change, gets replies to polls that it
// cannot read, and has to send its request again.
func Prepared(secret string) scep.Challenge {
	return &prepared{Static(secret), scep.NewSecret(secret)}
}

type prepared struct {
	scep.Challenge
	secret scep.Secret
}

// Prepare implements [scep.Preparer].
func (p *prepared) Prepare(context.Context, string, string, crypto.PublicKey) (scep.Secret, error) {
	return p.secret, nil
}

// PrepareReply implements what a [scep.Preparer] may have besides. There is a Via only of what Any
// let in, which is no more and had other secrets.
func (p *prepared) PrepareReply(_ context.Context, req *scep.Request, _ crypto.PublicKey) (scep.Secret, error) {
	if req.Via != "" {
		return scep.Secret{}, scep.ErrNotFound
	}
	return p.secret, nil
}

// Check implements the check that [scep.New] makes.
func (p *prepared) Check() error { return p.Challenge.(*static).Check() }

type anyPrepared struct{ anyOf }

// Prepare implements [scep.Preparer].
func (a anyPrepared) Prepare(ctx context.Context, profile, transactionID string, signer crypto.PublicKey) (scep.Secret, error) {
	return prepare(ctx, a.anyOf, profile, transactionID, signer)
}

// PrepareReply implements what a [scep.Preparer] may have besides.
func (a anyPrepared) PrepareReply(ctx context.Context, req *scep.Request, signer crypto.PublicKey) (scep.Secret, error) {
	for i, c := range a.anyOf {
		if via, ok := lookUp(req.Via, i); ok {
			return prepareReply(ctx, c, via, req, signer)
		}
	}
	return scep.Secret{}, scep.ErrNotFound // it was let in before Any was what it is
}

type allPrepared struct{ allOf }

// Prepare implements [scep.Preparer].
func (a allPrepared) Prepare(ctx context.Context, profile, transactionID string, signer crypto.PublicKey) (scep.Secret, error) {
	return prepare(ctx, a.allOf, profile, transactionID, signer)
}

// PrepareReply implements what a [scep.Preparer] may have besides. All have admitted the request, so
// each that knows a password knows the one that was in it.
func (a allPrepared) PrepareReply(ctx context.Context, req *scep.Request, signer crypto.PublicKey) (scep.Secret, error) {
	for i, c := range a.allOf {
		via, _ := lookUp(req.Via, i)
		if secret, err := prepareReply(ctx, c, via, req, signer); !errors.Is(err, scep.ErrNotFound) {
			return secret, err
		}
	}
	return scep.Secret{}, scep.ErrNotFound
}

// prepareReply asks c, which let req in and has noted via, for its password.
func prepareReply(ctx context.Context, c scep.Challenge, via string, req *scep.Request, signer crypto.PublicKey) (scep.Secret, error) {
	if p, ok := c.(interface {
		PrepareReply(context.Context, *scep.Request, crypto.PublicKey) (scep.Secret, error)
	}); ok {
		r := *req
		r.Via = via
		return p.PrepareReply(ctx, &r, signer)
	}
	if p, ok := c.(scep.Preparer); ok {
		return p.Prepare(ctx, req.Profile, req.TransactionID, signer)
	}
	return scep.Secret{}, scep.ErrNotFound
}

// prepares reports whether one of cs is a Preparer.
func prepares(cs []scep.Challenge) bool {
	for _, c := range cs {
		if _, ok := c.(scep.Preparer); ok {
			return true
		}
	}
	return false
}

// prepare asks each Preparer among cs until one has a secret. One that could not tell ends it: with
// the secret of another the client would be refused for good, not asked to try again.
func prepare(ctx context.Context, cs []scep.Challenge, profile, transactionID string, signer crypto.PublicKey) (scep.Secret, error) {
	for _, c := range cs {
		p, ok := c.(scep.Preparer)
		if !ok {
			continue
		}
		if secret, err := p.Prepare(ctx, profile, transactionID, signer); !errors.Is(err, scep.ErrNotFound) {
			return secret, err
		}
	}
	return scep.Secret{}, scep.ErrNotFound
}
