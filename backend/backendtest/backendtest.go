// Package backendtest tests the identities that key backends return: by the packages below
// backend, by [backend.Wrap], or by your own.
//
//	func TestKMS(t *testing.T) {
//		backendtest.TestIdentity(t, backendtest.Harness{
//			Open: func(t *testing.T) *scep.Identity {
//				id, err := backend.Wrap(t.Context(), kmsKey(t), cert)
//				if err != nil {
//					t.Fatal(err)
//				}
//				return id
//			},
//			Lacks: []x509.SignatureAlgorithm{x509.SHA1WithRSA},
//		})
//	}
//
// Each clause is a test of its own and fails with the sentence of package backend that was
// broken. New clauses come with new minor versions.
//
// That every signature is verified before it is returned cannot be seen from here: a test of
// your own has to make the device give a wrong one.
package backendtest

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// A Harness makes the identities under test. Its funcs may end the test with t.Fatal.
type Harness struct {
	// Open returns an identity; called again, it returns the same key opened afresh, while the
	// first is still in use. It cleans up with t.Cleanup. Required.
	Open func(t *testing.T) *scep.Identity

	// Lacks lists what the key cannot sign with. Everything else that fits its kind must work.
	Lacks []x509.SignatureAlgorithm

	// LacksOAEP lists the hashes that the key cannot decrypt OAEP with, of SHA-1 and SHA-256.
	// PKCS #1 v1.5 cannot be lacking.
	LacksOAEP []crypto.Hash

	// Pull, if not nil, takes the device away from all identities, and returns a func that
	// puts it back.
	Pull func(t *testing.T) (replace func())

	// Close, if not nil, ends the use of an identity that Open returned.
	Close func(t *testing.T, id *scep.Identity)
}

// TestIdentity holds an identity to the promises of package backend. Run it with -race. The
// clauses run one after the other, as there may be only one device.
func TestIdentity(t *testing.T, h Harness) {
	if len(h.Lacks) > 0 || len(h.LacksOAEP) > 0 {
		t.Logf("lacking: signatures %v, OAEP %v", h.Lacks, h.LacksOAEP)
	}
	for _, c := range clauses {
		t.Run(c.name, func(t *testing.T) {
			err := c.run(t, h, promptly)
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

// patience is how long a clause may take; what takes longer hangs. It is long, since a TPM
// takes up to a second for a signature.
const patience = 3 * time.Minute

// promptly is how long something may take that has nothing to wait for, or no more.
const promptly = 20 * time.Second

// A clause is one promise and how to see that it is kept.
type clause struct {
	name     string
	contract string

	// check reports how the promise was broken.
	check func(ctx context.Context, b *bench) error
}

// A bench is what a clause has to work with.
type bench struct {
	*scep.Identity
	h        Harness
	t        *testing.T
	promptly time.Duration
}

// A gap is something that the identity or the harness does not offer.
type gap string

func (g gap) Error() string { return string(g) }

var clauses = slices.Concat(keyClauses, decryptClauses, deviceClauses)

// run holds a fresh identity to c.
func (c clause) run(t *testing.T, h Harness, promptly time.Duration) error {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	id := h.Open(t)
	if id == nil || id.Key == nil {
		return errors.New("no identity came from Harness.Open")
	}
	b := &bench{id, h, t, promptly}
	done := make(chan error, 1)
	go func() {
		err := errors.New("the harness ended the test")
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("panic: %v", p)
			}
			done <- err
		}()
		err = c.check(ctx, b)
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
