package backend

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"github.com/scepkit/scepkit/backend/internal/custody"
	"github.com/scepkit/scepkit/scep"
)

const (
	// maxInside is how many calls may be inside a wrapped key at a time.
	maxInside = 64

	// proof is how long a wrapped key that decrypted a block of our own is taken to work.
	proof = time.Second
)

// Wrap returns an identity whose key is any [crypto.Signer], such as one of a cloud's key
// management service, and keeps the promises of this package for it. chain has the key's own
// certificate first, then its issuers, root last and optional; at least one.
//
// If key is RSA and implements [scep.Unwrapper] or [crypto.Decrypter], the identity can
// decrypt. Of a Decrypter it is not known whether an error means that the block is malformed or
// that the key is away, unless it wraps a [net.Error], a context's error or one of this package.
// So a block made here is decrypted first, at most once a second, and what goes wrong with that
// one is told. For a key that signs only, though its type can decrypt, pass
// struct{ crypto.Signer }{key}.
//
// Wrap signs once, and decrypts once if the key can. If the key is not that of the certificate,
// or does not decrypt PKCS #1 v1.5, the error wraps [ErrMismatch].
//
// The key must be safe for concurrent use. A method SignContext, as [scep.Identity] describes
// it, is used. Each call runs in a goroutine of its own and is left behind if it does not come
// back before ctx ends; with 64 inside others wait. Errors and panics of the key wrap
// [ErrUnavailable].
func Wrap(ctx context.Context, key crypto.Signer, chain ...*x509.Certificate) (*scep.Identity, error) {
	if key == nil || len(chain) == 0 || slices.Contains(chain, nil) {
		return nil, errors.New("backend: Wrap needs a key and its certificate; one of them is nil")
	}
	k, err := guard(ctx, key, fmt.Sprintf("backend: the key of %q", chain[0].Subject))
	if err != nil {
		return nil, err
	}
	if err := custody.CheckChain(k.Public(), "key", chain, "chain"); err != nil {
		return nil, fmt.Errorf("backend: %w", err)
	}
	if err := custody.Test(ctx, k, true); err != nil {
		return nil, err
	}
	return &scep.Identity{Certificates: slices.Clone(chain), Key: k}, nil
}

// A contextSigner is a key that can be told when to stop waiting.
type contextSigner interface {
	SignContext(ctx context.Context, rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error)
}

// guard returns key as custody has it.
func guard(ctx context.Context, key crypto.Signer, name string) (crypto.Signer, error) {
	r := &remote{key: key, slots: make(chan struct{}, maxInside)}
	pub, err := inside(ctx, r, func() (crypto.PublicKey, error) { return key.Public(), nil })
	if err != nil {
		return nil, fmt.Errorf("%s does not tell its public key: %w", name, unavailable(err))
	}
	o := custody.Options{Name: name, Concurrency: maxInside, Proof: proof}
	device := custody.Device(r)
	if _, ok := pub.(*rsa.PublicKey); ok {
		_, o.Decrypts = key.(crypto.Decrypter)
		if u, ok := key.(scep.Unwrapper); ok {
			device, o.Decrypts = &remoteUnwrapper{r, u}, true
		}
	}
	return custody.New(pub, device, o)
}

// remote is a custody.Device over any key.
type remote struct {
	key   crypto.Signer
	slots chan struct{} // one is taken by each call that is inside
}

func (r *remote) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	digest = bytes.Clone(digest) // the call may outlive this one
	sig, err := inside(ctx, r, func() ([]byte, error) {
		if cs, ok := r.key.(contextSigner); ok {
			return cs.SignContext(ctx, rand.Reader, digest, opts)
		}
		return r.key.Sign(rand.Reader, digest, opts)
	})
	if err != nil {
		return nil, unavailable(err)
	}
	return sig, nil
}

// Decrypt leaves it to custody to tell what an error means.
func (r *remote) Decrypt(ctx context.Context, block []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	d, ok := r.key.(crypto.Decrypter)
	if !ok {
		return nil, fmt.Errorf("it only unwraps keys; use UnwrapKey: %w", ErrUnsupported)
	}
	block = bytes.Clone(block)
	got, err := inside(ctx, r, func() ([]byte, error) { return d.Decrypt(rand.Reader, block, opts) })
	var network net.Error
	if errors.As(err, &network) {
		err = unavailable(err)
	}
	return got, err
}

// remoteUnwrapper is a remote that keeps the promise of scep.Unwrapper.
type remoteUnwrapper struct {
	*remote
	unwrapper scep.Unwrapper
}

func (r *remoteUnwrapper) UnwrapKey(ctx context.Context, block []byte, n int, opts crypto.DecrypterOpts) ([]byte, error) {
	block = bytes.Clone(block)
	got, err := inside(ctx, r.remote, func() ([]byte, error) { return r.unwrapper.UnwrapKey(ctx, block, n, opts) })
	if err != nil {
		return nil, unavailable(err)
	}
	return got, nil
}

// inside calls f, and leaves it behind when ctx ends.
func inside[T any](ctx context.Context, r *remote, f func() (T, error)) (T, error) {
	var zero T
	select {
	case r.slots <- struct{}{}:
	case <-ctx.Done():
		return zero, fmt.Errorf("%d calls have not come back yet (%w): %w", maxInside, context.Cause(ctx), ErrUnavailable)
	}
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		var res result
		defer func() {
			// Here a panic would end the process; in the caller's goroutine a server goes on.
			if p := recover(); p != nil {
				res = result{err: fmt.Errorf("panic: %v", p)}
			}
			<-r.slots
			done <- res
		}()
		res.value, res.err = f()
	}()
	select {
	case res := <-done:
		return res.value, res.err
	case <-ctx.Done():
		return zero, fmt.Errorf("it has not answered (%w): %w", context.Cause(ctx), ErrUnavailable)
	}
}

// unavailable has err wrap ErrUnavailable unless it wraps one of the others already.
func unavailable(err error) error {
	for _, known := range []error{ErrUnavailable, ErrPIN, ErrUnsupported} {
		if errors.Is(err, known) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", err, ErrUnavailable)
}
