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
// then judge, each by itself. The reply to a poll of a client that cannot decrypt is encrypted with
// that secret as well: one that was let in with another has to send its request again instead.
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

// Check implements the check that [scep.New] makes.
func (p *prepared) Check() error { return p.Challenge.(*static).Check() }

type anyPrepared struct{ anyOf }

// Prepare implements [scep.Preparer].
func (a anyPrepared) Prepare(ctx context.Context, profile, transactionID string, signer crypto.PublicKey) (scep.Secret, error) {
	return prepare(ctx, a.anyOf, profile, transactionID, signer)
}

type allPrepared struct{ allOf }

// Prepare implements [scep.Preparer].
func (a allPrepared) Prepare(ctx context.Context, profile, transactionID string, signer crypto.PublicKey) (scep.Secret, error) {
	return prepare(ctx, a.allOf, profile, transactionID, signer)
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
