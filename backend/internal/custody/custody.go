// Package custody turns what a device can do with one private key into the Key of a
// [scep.Identity], and keeps there, once for all backends, the promises of package backend that
// do not depend on the device: which digests are signed, that no signature leaves unverified,
// and that a malformed block gives random bytes.
package custody

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"time"
)

// The errors that package backend exports, with the texts that say what they mean. They are here
// because backend uses this package.
var (
	ErrUnavailable = errors.New("backend: key is unavailable")
	ErrPIN         = errors.New("backend: PIN was not accepted")
	ErrNotFound    = errors.New("backend: not found")
	ErrAmbiguous   = errors.New("backend: ambiguous")
	ErrMismatch    = errors.New("backend: key and certificates do not belong together")
	ErrUnsupported = error(unsupported{})
)

// unsupported is errors.ErrUnsupported to those who do not import package backend.
type unsupported struct{}

func (unsupported) Error() string        { return "backend: not supported" }
func (unsupported) Is(target error) bool { return target == errors.ErrUnsupported }

// A Device uses one private key. Methods are called concurrently and return when ctx ends.
type Device interface {
	// Sign signs a digest that was checked; opts is an *rsa.PSSOptions or gives a hash, 0
	// for an Ed25519 message. ECDSA signatures are DER. Nobody relies on their being right.
	Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error)

	// Decrypt returns what block, as long as the modulus and below it, holds. opts is an
	// *rsa.PKCS1v15DecryptOptions without SessionKeyLen or an *rsa.OAEPOptions. An error
	// that wraps ErrUnavailable, ErrPIN, ErrUnsupported or a context's error, and any after
	// ctx has ended, says nothing about block; any other, that it is malformed.
	Decrypt(ctx context.Context, block []byte, opts crypto.DecrypterOpts) ([]byte, error)
}

// An Unwrapper is a Device that keeps the promise of scep.Unwrapper itself, and is asked to.
type Unwrapper interface {
	// UnwrapKey is called with block and opts as Decrypt is. Every error says something about
	// the device.
	UnwrapKey(ctx context.Context, block []byte, n int, opts crypto.DecrypterOpts) ([]byte, error)
}

// A Prover is a Device that wants to know when a block is our own, and so in order.
type Prover interface {
	// DecryptOwn is Decrypt of such a block.
	DecryptOwn(ctx context.Context, block []byte, opts crypto.DecrypterOpts) ([]byte, error)
}

// Options say how to use a Device.
type Options struct {
	// Name begins every error: the package, and the key in it, as in `pkcs11: key "ca"`.
	Name string

	// Decrypts says that the key may decrypt, for which it must be RSA.
	Decrypts bool

	// Concurrency is how many operations the device does at once. If zero, as many as there
	// are processors, and at least 2.
	Concurrency int

	// Proof, if not zero, is for devices whose error for a malformed block may also mean that
	// they are broken. Before a block is decrypted, a block of our own is, unless one was
	// within this time. What a stranger's block held has no influence on when.
	Proof time.Duration
}

// New returns the key. It implements crypto.Signer and SignContext, with Options.Decrypts also
// crypto.Decrypter and scep.Unwrapper. It prints as "[redacted]".
func New(pub crypto.PublicKey, d Device, o Options) (crypto.Signer, error) {
	k := &key{pub: pub, device: func() Device { return d }, o: o}
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		if n := pub.N.BitLen(); n < 2048 || n > 8192 {
			return nil, k.errorf("is RSA with %d bits; use 2048 to 8192: %w", n, ErrUnsupported)
		}
		if o.Decrypts {
			return &decryptingKey{key: k}, nil
		}
	case *ecdsa.PublicKey, ed25519.PublicKey:
		if o.Decrypts {
			return nil, k.errorf("is %T, which cannot decrypt; use an RSA key: %w", pub, ErrUnsupported)
		}
	default:
		return nil, k.errorf("is of a kind that cannot sign (%T); use RSA, ECDSA or Ed25519: %w", pub, ErrUnsupported)
	}
	return k, nil
}

type key struct {
	pub    crypto.PublicKey
	device func() Device // fmt prints what fields hold without asking for methods, as under %s
	o      Options
}

func (k *key) errorf(format string, args ...any) error {
	return fmt.Errorf("%s "+format, append([]any{k.o.Name}, args...)...)
}

func (k *key) Public() crypto.PublicKey { return k.pub }

// Concurrency is looked for by package scep; see scep.Limits.Keys.
func (k *key) Concurrency() int {
	if k.o.Concurrency > 0 {
		return k.o.Concurrency
	}
	return max(2, runtime.GOMAXPROCS(0))
}

const redacted = "[redacted]"

// The methods below keep the key out of logs.

func (k *key) Format(f fmt.State, _ rune)   { io.WriteString(f, redacted) }
func (k *key) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (k *key) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Sign is SignContext without an end. The io.Reader is not used.
func (k *key) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.SignContext(context.Background(), r, digest, opts)
}

// SignContext signs digest and verifies the signature. The io.Reader is not used.
func (k *key) SignContext(ctx context.Context, r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	sig, err := k.SignUnverified(ctx, r, digest, opts)
	if err != nil {
		return nil, err
	}
	if !Verify(k.pub, digest, sig, opts) {
		return nil, k.errorf("gave a signature that does not verify; it was thrown away. If that happens again, take the device out of service: %w", ErrUnavailable)
	}
	return sig, nil
}

// SignUnverified is SignContext for who verifies the signature before anybody sees it, as
// x509.CreateCertificate does. Package scep looks for it.
func (k *key) SignUnverified(ctx context.Context, _ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, k.errorf("was not used: %w", context.Cause(ctx))
	}
	if err := CheckDigest(k.pub, digest, opts); err != nil {
		return nil, k.errorf("does not sign this: %w", err)
	}
	sig, err := k.device().Sign(ctx, digest, opts)
	if err != nil {
		return nil, k.errorf("does not sign: %w", err)
	}
	return sig, nil
}

// Test reports why key, made by New, does not do what it should: it signs, unless sign is
// false, and decrypts, if it can. Errors wrap ErrMismatch if the device works and its
// key is not the one that the public key belongs to.
func Test(ctx context.Context, signer crypto.Signer, sign bool) error {
	d, decrypts := signer.(*decryptingKey)
	k, ok := signer.(*key)
	switch {
	case decrypts:
		k = d.key
	case !ok:
		return fmt.Errorf("custody: %T was not made here", signer)
	}
	if sign {
		if err := k.testSign(ctx); err != nil {
			return err
		}
	}
	if !decrypts {
		return nil
	}
	begun := time.Now()
	err := d.try(ctx)
	switch {
	case err == nil:
		d.mu.Lock()
		defer d.mu.Unlock()
		d.proven = begun
		return nil
	case says(ctx, err):
		return k.errorf("does not decrypt: %w", err)
	}
	return k.errorf("does not decrypt what was encrypted to its public key (%v); the public key is that of another key, or this one may not decrypt: %w", err, ErrMismatch)
}

func (k *key) testSign(ctx context.Context) error {
	digest := make([]byte, 32)
	rand.Read(digest)
	opts := crypto.SignerOpts(crypto.SHA256)
	if _, ok := k.pub.(ed25519.PublicKey); ok {
		opts = crypto.Hash(0)
	}
	sig, err := k.device().Sign(ctx, digest, opts)
	if err != nil {
		return k.errorf("does not sign: %w", err)
	}
	if !Verify(k.pub, digest, sig, opts) {
		return k.errorf("signs, but not so that its public key verifies it; the public key is that of another key: %w", ErrMismatch)
	}
	return nil
}
