//lint:file-ignore SA1019 SCEP devices send PKCS #1 v1.5

package file

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/internal/custody"
)

// hide puts a key where fmt does not find it: it prints what unexported fields point to without
// asking for methods, as under %s.
func hide[T any](key T) func() T { return func() T { return key } }

// rsaKey is a crypto.Signer, a crypto.Decrypter and a scep.Unwrapper.
type rsaKey struct{ key func() *rsa.PrivateKey }

func (k *rsaKey) Public() crypto.PublicKey { return k.key().Public() }

// Sign signs a digest by PKCS #1 v1.5, or by PSS if opts says so. The io.Reader is not used.
func (k *rsaKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := custody.CheckDigest(k.Public(), digest, opts); err != nil {
		return nil, fmt.Errorf("file: %w", err)
	}
	// Both verify their result: crypto/rsa does so in all CRT arithmetic for signatures.
	if pss, ok := opts.(*rsa.PSSOptions); ok {
		return rsa.SignPSS(rand.Reader, k.key(), pss.Hash, digest, pss)
	}
	return rsa.SignPKCS1v15(rand.Reader, k.key(), opts.HashFunc(), digest)
}

// SignContext is Sign unless ctx is done.
func (k *rsaKey) SignContext(ctx context.Context, r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return k.Sign(r, digest, opts)
}

// Decrypt is that of rsa.PrivateKey. Its errors tell a malformed block: use UnwrapKey for what
// strangers send.
func (k *rsaKey) Decrypt(_ io.Reader, block []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	if oaep, ok := opts.(*rsa.OAEPOptions); ok {
		if err := checkOAEP(oaep); err != nil {
			return nil, err
		}
	}
	return k.key().Decrypt(rand.Reader, block, opts)
}

// UnwrapKey implements scep.Unwrapper.
func (k *rsaKey) UnwrapKey(ctx context.Context, block []byte, n int, opts crypto.DecrypterOpts) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	size := k.key().Size()
	if n < 1 || n > size-11 {
		return nil, fmt.Errorf("file: a key of %d bytes cannot come out of %d: %w", n, size, backend.ErrUnsupported)
	}
	key := make([]byte, n)
	rand.Read(key)

	// A block that is out of range would be refused before the arithmetic, and so at once.
	// Another one is decrypted in its place; whatever comes out is not looked at.
	inRange := len(block) == size && bytes.Compare(block, k.key().N.FillBytes(make([]byte, size))) < 0
	out := key
	if !inRange {
		block = make([]byte, size)
		rand.Read(block[1:])
		out = make([]byte, n)
	}

	var err error
	switch opts := opts.(type) {
	case *rsa.PKCS1v15DecryptOptions:
		err = rsa.DecryptPKCS1v15SessionKey(nil, k.key(), block, out)
	case *rsa.OAEPOptions:
		if err := checkOAEP(opts); err != nil {
			return nil, err
		}
		var got []byte
		if got, err = k.key().Decrypt(nil, block, opts); err == nil && len(got) == n {
			subtle.ConstantTimeCopy(1, out, got)
		}
	default:
		return nil, fmt.Errorf("file: unknown decryption options %T: %w", opts, backend.ErrUnsupported)
	}
	if err != nil && !errors.Is(err, rsa.ErrDecryption) {
		// Nothing about the block leads here, only settings such as FIPS 140-only mode.
		return nil, fmt.Errorf("file: decrypting: %w: %w", err, backend.ErrUnsupported)
	}
	return key, nil
}

// ecdsaKey is a crypto.Signer.
type ecdsaKey struct{ key func() *ecdsa.PrivateKey }

func (k *ecdsaKey) Public() crypto.PublicKey { return k.key().Public() }

// Sign signs a digest. The io.Reader is not used.
func (k *ecdsaKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := custody.CheckDigest(k.Public(), digest, opts); err != nil {
		return nil, fmt.Errorf("file: %w", err)
	}
	sig, err := ecdsa.SignASN1(rand.Reader, k.key(), digest)
	if err != nil {
		return nil, err
	}
	if !ecdsa.VerifyASN1(&k.key().PublicKey, digest, sig) {
		return nil, errFault
	}
	return sig, nil
}

// SignContext is Sign unless ctx is done.
func (k *ecdsaKey) SignContext(ctx context.Context, r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return k.Sign(r, digest, opts)
}

// ed25519Key is a crypto.Signer.
type ed25519Key struct{ key func() ed25519.PrivateKey }

func (k *ed25519Key) Public() crypto.PublicKey { return k.key().Public() }

// Sign signs a message, not a digest: opts.HashFunc must be 0. The io.Reader is not used.
func (k *ed25519Key) Sign(_ io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := custody.CheckDigest(k.Public(), message, opts); err != nil {
		return nil, fmt.Errorf("file: %w", err)
	}
	sig := ed25519.Sign(k.key(), message)
	if !ed25519.Verify(k.key().Public().(ed25519.PublicKey), message, sig) {
		return nil, errFault
	}
	return sig, nil
}

// SignContext is Sign unless ctx is done.
func (k *ed25519Key) SignContext(ctx context.Context, r io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return k.Sign(r, message, opts)
}

var errFault = errors.New("file: the signature just made does not verify; key or machine is faulty")

// checkOAEP reports whether opts name hashes that are there: others would panic.
func checkOAEP(opts *rsa.OAEPOptions) error {
	if !custody.KnownHash(opts.Hash) || opts.MGFHash != 0 && !custody.KnownHash(opts.MGFHash) {
		return fmt.Errorf("file: OAEP with %v and %v; use SHA-1, SHA-256, SHA-384 or SHA-512: %w", opts.Hash, opts.MGFHash, backend.ErrUnsupported)
	}
	return nil
}

const redacted = "[redacted]"

// The methods below keep the keys out of logs.

func (k *rsaKey) Format(f fmt.State, _ rune)     { io.WriteString(f, redacted) }
func (k *ecdsaKey) Format(f fmt.State, _ rune)   { io.WriteString(f, redacted) }
func (k *ed25519Key) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

func (k *rsaKey) LogValue() slog.Value     { return slog.StringValue(redacted) }
func (k *ecdsaKey) LogValue() slog.Value   { return slog.StringValue(redacted) }
func (k *ed25519Key) LogValue() slog.Value { return slog.StringValue(redacted) }

func (k *rsaKey) MarshalText() ([]byte, error)     { return []byte(redacted), nil }
func (k *ecdsaKey) MarshalText() ([]byte, error)   { return []byte(redacted), nil }
func (k *ed25519Key) MarshalText() ([]byte, error) { return []byte(redacted), nil }
