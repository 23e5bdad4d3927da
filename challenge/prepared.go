package challenge

import (
	"context"
	"crypto"

	"github.com/scepkit/scepkit/scep"
)

// Prepared returns a challenge that admits requests which carry secret, as [Static] does, and is a
// [scep.Preparer]: with [scep.Config].PasswordRecipients, requests that are encrypted with secret
// are opened. It keeps secret itself. Whoever records such a request, or a reply to one, can try
// guesses at it at leisure: make it long and random. [Any] and [All] of it are no Preparer.
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
