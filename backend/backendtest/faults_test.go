package backendtest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/scep"
)

// A pair is a key and its certificates.
type pair struct {
	key   crypto.Signer
	chain []*x509.Certificate
}

func newPair(key crypto.Signer, err error) pair {
	if err != nil {
		panic(err)
	}
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := func(name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		}
	}
	sign := func(tmpl, issuer *x509.Certificate, pub crypto.PublicKey) *x509.Certificate {
		der, err := x509.CreateCertificate(rand.Reader, tmpl, issuer, pub, rootKey)
		if err != nil {
			panic(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			panic(err)
		}
		return cert
	}
	root := sign(tmpl("root"), tmpl("root"), rootKey.Public())
	return pair{key, []*x509.Certificate{sign(tmpl("ca"), root, key.Public()), root}}
}

var (
	rsaPair   = newPair(rsa.GenerateKey(rand.Reader, 2048))
	ecPair    = newPair(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	otherPair = newPair(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
)

// signing is what every key of ours has.
type signing interface {
	crypto.Signer
	contextSigner
	fmt.Formatter
	slog.LogValuer
	encoding.TextMarshaler
}

// A fault is something that an identity does wrong.
type fault struct {
	name string
	want string // the clauses that must fail, and no others

	nothing bool // Open returns nil
	ec      bool // the key is ECDSA
	chain   []*x509.Certificate
	fresh   bool // each Open makes another key
	forever bool // Close does nothing
	broken  bool // a device that was pulled stays away
	present bool // Pull does nothing

	sign   func(k *key, ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error)
	unwrap func(k *key, ctx context.Context, block []byte, n int, opts crypto.DecrypterOpts) ([]byte, error)
	hide   func(k *key) crypto.Signer // returns k with more or fewer methods
}

// A key is one that keeps the contract, with one thing done wrong.
type key struct {
	signing
	f      *fault
	away   *atomic.Bool
	closed atomic.Bool
	inside atomic.Int32
}

func (k *key) usable() error {
	switch {
	case k.closed.Load() && !k.f.forever:
		return errors.New("closed")
	case k.away.Load():
		return backend.ErrUnavailable
	}
	return nil
}

func (k *key) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.SignContext(context.Background(), r, digest, opts)
}

func (k *key) SignContext(ctx context.Context, r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if k.f.sign != nil {
		return k.f.sign(k, ctx, digest, opts)
	}
	return k.good(ctx, digest, opts)
}

func (k *key) good(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := k.usable(); err != nil {
		return nil, err
	}
	return k.signing.SignContext(ctx, nil, digest, opts)
}

// rsaKey is a key that decrypts as well.
type rsaKey struct{ *key }

func (k rsaKey) UnwrapKey(ctx context.Context, block []byte, n int, opts crypto.DecrypterOpts) ([]byte, error) {
	if k.f.unwrap != nil {
		return k.f.unwrap(k.key, ctx, block, n, opts)
	}
	return k.goodUnwrap(ctx, block, n, opts)
}

func (k *key) goodUnwrap(ctx context.Context, block []byte, n int, opts crypto.DecrypterOpts) ([]byte, error) {
	if err := k.usable(); err != nil {
		return nil, err
	}
	return k.signing.(scep.Unwrapper).UnwrapKey(ctx, block, n, opts)
}

func (f *fault) harness() Harness {
	var away atomic.Bool
	var opened sync.Map // from identity to *key
	return Harness{
		Open: func(t *testing.T) *scep.Identity {
			if f.nothing {
				return nil
			}
			p := rsaPair
			if f.ec {
				p = ecPair
			}
			if f.fresh {
				p = newPair(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
			}
			id, err := backend.Wrap(t.Context(), p.key, p.chain...)
			if err != nil {
				t.Fatal(err)
			}
			k := &key{signing: id.Key.(signing), f: f, away: &away}
			id.Key = k
			if _, ok := k.signing.(scep.Unwrapper); ok {
				id.Key = rsaKey{k}
			}
			if f.hide != nil {
				id.Key = f.hide(k)
			}
			if f.chain != nil {
				id.Certificates = f.chain
			}
			opened.Store(id, k)
			return id
		},
		Pull: func(*testing.T) func() {
			away.Store(!f.present)
			return func() { away.Store(f.broken) }
		},
		Close: func(t *testing.T, id *scep.Identity) {
			k, _ := opened.Load(id)
			k.(*key).closed.Store(true)
		},
	}
}

// message signs messages, and does it wrong.
type message struct{ rsaKey }

func (message) SignMessage(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return make([]byte, 256), nil
}

// contextless has no SignContext.
type contextless struct {
	crypto.Signer
	fmt.Formatter
	slog.LogValuer
	encoding.TextMarshaler
}

// printing prints.
type printing struct {
	crypto.Signer
	contextSigner
}

// decrypter decrypts, and cannot unwrap.
type decrypter struct{ *key }

func (decrypter) Decrypt(io.Reader, []byte, crypto.DecrypterOpts) ([]byte, error) {
	return nil, errors.New("no")
}

// faults are named for what the identity does wrong, with the clauses that must find it.
var faults = []fault{
	{name: "nothing"},
	{name: "nothing with ECDSA", ec: true},
	{name: "certificate of another key", want: "KeyBelongs", chain: otherPair.chain},
	{name: "no certificate", want: "KeyBelongs", chain: []*x509.Certificate{}},
	{name: "chain of strangers", want: "Chain", chain: []*x509.Certificate{rsaPair.chain[0], otherPair.chain[1]}},
	{name: "chain of other names", want: "Chain", chain: []*x509.Certificate{rsaPair.chain[0], otherPair.chain[0]}},
	{name: "SHA-1 comes out wrong", want: "Signs", sign: func(k *key, ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
		sig, err := k.good(ctx, digest, opts)
		if err == nil && opts.HashFunc() == crypto.SHA1 {
			sig[9] ^= 1
		}
		return sig, err
	}},
	{name: "writes to the digest", want: "Signs", sign: func(k *key, ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
		sig, err := k.good(ctx, digest, opts)
		if err == nil && opts.HashFunc() == crypto.SHA1 {
			digest[0] ^= 1
		}
		return sig, err
	}},
	{name: "signs what is no digest", want: "Digests", sign: func(k *key, ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
		sig, err := k.good(ctx, digest, opts)
		if err != nil && (opts == nil || len(digest) != opts.HashFunc().Size()) && ctx.Err() == nil {
			return k.good(ctx, make([]byte, 32), crypto.SHA256)
		}
		return sig, err
	}},
	{name: "ECDSA signs any hash", ec: true, want: "Digests", sign: func(k *key, ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
		if opts != nil && len(digest) == 28 {
			return k.good(ctx, make([]byte, 32), crypto.SHA256)
		}
		return k.good(ctx, digest, opts)
	}},
	{name: "messages come out wrong", want: "X509", hide: func(k *key) crypto.Signer { return message{rsaKey{k}} }},
	{name: "no SignContext", ec: true, want: "SignContext", hide: func(k *key) crypto.Signer { return contextless{k, k, k, k} }},
	{name: "prints", ec: true, want: "Redacted", hide: func(k *key) crypto.Signer { return printing{k, k} }},
	{name: "prints in JSON", ec: true, want: "Redacted", hide: func(k *key) crypto.Signer {
		return struct {
			crypto.Signer
			contextSigner
			fmt.Formatter
		}{k, k, k}
	}},
	{name: "keys of 32 bytes come out wrong", want: "Unwraps", unwrap: func(k *key, ctx context.Context, block []byte, n int, opts crypto.DecrypterOpts) ([]byte, error) {
		key, err := k.goodUnwrap(ctx, block, n, opts)
		if n == 32 && err == nil {
			key[0] ^= 1
		}
		return key, err
	}},
	{name: "writes to the block", want: "Unwraps", unwrap: func(k *key, ctx context.Context, block []byte, n int, opts crypto.DecrypterOpts) ([]byte, error) {
		key, err := k.goodUnwrap(ctx, block, n, opts)
		if n == 32 && err == nil {
			block[0] ^= 1
		}
		return key, err
	}},
	{name: "decrypts, but does not unwrap", want: "Unwraps", hide: func(k *key) crypto.Signer { return decrypter{k} }},
	{name: "an ECDSA key unwraps", ec: true, want: "SignsOnly", hide: func(k *key) crypto.Signer { return rsaKey{k} }},
	{name: "malformed blocks are errors", want: "Malformed", unwrap: func(k *key, ctx context.Context, block []byte, n int, opts crypto.DecrypterOpts) ([]byte, error) {
		if bytes.Equal(block, make([]byte, 256)) && k.usable() == nil && ctx.Err() == nil {
			return nil, backend.ErrUnavailable
		}
		return k.goodUnwrap(ctx, block, n, opts)
	}},
	{name: "malformed blocks are zero", want: "Malformed", unwrap: func(k *key, ctx context.Context, block []byte, n int, opts crypto.DecrypterOpts) ([]byte, error) {
		key, err := k.goodUnwrap(ctx, block, n, opts)
		if len(block) != 256 && err == nil {
			clear(key)
		}
		return key, err
	}},
	{name: "malformed blocks are short", want: "Malformed", unwrap: func(k *key, ctx context.Context, block []byte, n int, opts crypto.DecrypterOpts) ([]byte, error) {
		key, err := k.goodUnwrap(ctx, block, n, opts)
		if len(block) != 256 && err == nil {
			key = key[1:]
		}
		return key, err
	}},
	{name: "one malformed block is always the same", want: "Malformed", unwrap: func(k *key, ctx context.Context, block []byte, n int, opts crypto.DecrypterOpts) ([]byte, error) {
		key, err := k.goodUnwrap(ctx, block, n, opts)
		if len(block) > 256 && err == nil {
			copy(key, block[1:])
		}
		return key, err
	}},
	{name: "two malformed blocks are the same", want: "Malformed", unwrap: func(k *key, ctx context.Context, block []byte, n int, opts crypto.DecrypterOpts) ([]byte, error) {
		key, err := k.goodUnwrap(ctx, block, n, opts)
		if n == 16 && len(block) != 256 && err == nil {
			copy(key, "always this one.")
		}
		return key, err
	}},
	{name: "rejects implicitly, which is no fault", unwrap: func(k *key, ctx context.Context, block []byte, n int, opts crypto.DecrypterOpts) ([]byte, error) {
		key, err := k.goodUnwrap(ctx, block, n, opts)
		if padding(opts) == "PKCS #1 v1.5" && n == 16 && len(block) != 256 && err == nil {
			made := sha256.Sum256(append([]byte("secret"), block...))
			copy(key, made[:])
		}
		return key, err
	}},
	{name: "a malformed block puts it out of order", want: "Malformed", unwrap: func(k *key, ctx context.Context, block []byte, n int, opts crypto.DecrypterOpts) ([]byte, error) {
		if len(block) == 0 {
			k.closed.Store(true)
			return k.signing.(scep.Unwrapper).UnwrapKey(ctx, block, n, opts)
		}
		return k.goodUnwrap(ctx, block, n, opts)
	}},
	{name: "signs under an ended context", want: "Cancelled", sign: func(k *key, _ context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
		return k.good(context.Background(), digest, opts)
	}},
	{name: "random bytes under an ended context", want: "Cancelled", unwrap: func(k *key, ctx context.Context, block []byte, n int, opts crypto.DecrypterOpts) ([]byte, error) {
		if ctx.Err() != nil {
			key := make([]byte, n)
			rand.Read(key)
			return key, nil
		}
		return k.goodUnwrap(ctx, block, n, opts)
	}},
	{name: "one at a time", want: "Concurrent", sign: func(k *key, ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
		defer k.inside.Add(-1)
		if k.inside.Add(1) > 1 {
			return nil, backend.ErrUnavailable
		}
		time.Sleep(time.Millisecond)
		return k.good(ctx, digest, opts)
	}},
	{name: "another key each time", fresh: true, want: "Reopened"},
	{name: "works after Close", forever: true, want: "Closed"},
	{name: "panics after Close", want: "Closed", sign: func(k *key, ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
		if k.closed.Load() {
			panic("nil pointer")
		}
		return k.good(ctx, digest, opts)
	}},
	{name: "works without the device", present: true, want: "Pulled"},
	{name: "stays away", broken: true, want: "Pulled"},
	{name: "an error of its own without the device", want: "Pulled", sign: func(k *key, ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
		sig, err := k.good(ctx, digest, opts)
		if errors.Is(err, backend.ErrUnavailable) {
			err = errors.New("no device")
		}
		return sig, err
	}},
	{name: "random bytes without the device", want: "Pulled", unwrap: func(k *key, ctx context.Context, block []byte, n int, opts crypto.DecrypterOpts) ([]byte, error) {
		if k.away.Load() {
			key := make([]byte, n)
			rand.Read(key)
			return key, nil
		}
		return k.goodUnwrap(ctx, block, n, opts)
	}},
}
