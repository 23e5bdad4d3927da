//lint:file-ignore SA1019 SCEP devices send PKCS #1 v1.5

package backend_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/backendtest"
	"github.com/scepkit/scepkit/scep"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

var (
	rsaTestKey = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 2048)) })
	ecTestKey  = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) })
)

// selfSigned returns a CA certificate for key.
func selfSigned(t *testing.T, key crypto.Signer) *x509.Certificate {
	t.Helper()
	cert, err := backend.SelfSign(t.Context(), key, backend.CAOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// kms is a signer far away.
type kms struct {
	crypto.Signer
	away atomic.Bool
}

func (k *kms) reach() error {
	if k.away.Load() {
		return &net.OpError{Op: "dial", Err: errors.New("no route to host")}
	}
	return nil
}

func (k *kms) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := k.reach(); err != nil {
		return nil, err
	}
	return k.Signer.Sign(r, digest, opts)
}

// decryptingKMS says of a bad block what the services say.
type decryptingKMS struct{ *kms }

func (k decryptingKMS) Decrypt(r io.Reader, block []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	if err := k.reach(); err != nil {
		return nil, fmt.Errorf("kms: %w", err)
	}
	out, err := k.Signer.(crypto.Decrypter).Decrypt(r, block, opts)
	if err != nil {
		return nil, errors.New("InvalidCiphertextException")
	}
	return out, nil
}

// unwrappingKMS is a scep.Unwrapper, and SignContext.
type unwrappingKMS struct{ *kms }

func (k unwrappingKMS) UnwrapKey(_ context.Context, block []byte, n int, opts crypto.DecrypterOpts) ([]byte, error) {
	if err := k.reach(); err != nil {
		return nil, err
	}
	key := make([]byte, n)
	rand.Read(key)
	if got, err := k.Signer.(crypto.Decrypter).Decrypt(nil, block, opts); err == nil && len(got) == n {
		copy(key, got)
	}
	return key, nil
}

func (k unwrappingKMS) SignContext(ctx context.Context, r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return k.Sign(r, digest, opts)
}

func TestWrapConforms(t *testing.T) {
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	rk := rsaTestKey()
	for name, key := range map[string]crypto.Signer{
		"RSA that decrypts": decryptingKMS{&kms{Signer: rk}},
		"RSA that unwraps":  unwrappingKMS{&kms{Signer: rk}},
		"RSA of crypto/rsa": rk,
		"ECDSA":             &kms{Signer: ecTestKey()},
		"Ed25519":           &kms{Signer: ed},
	} {
		t.Run(name, func(t *testing.T) {
			cert := selfSigned(t, key)
			h := backendtest.Harness{Open: func(t *testing.T) *scep.Identity {
				id, err := backend.Wrap(t.Context(), key, cert)
				if err != nil {
					t.Fatal(err)
				}
				return id
			}}
			var k *kms
			switch key := key.(type) {
			case *kms:
				k = key
			case decryptingKMS:
				k = key.kms
			case unwrappingKMS:
				k = key.kms
			}
			if k != nil {
				h.Pull = func(*testing.T) func() {
					k.away.Store(true)
					return func() { k.away.Store(false) }
				}
			}
			backendtest.TestIdentity(t, h)
		})
	}
}

func TestWrapSignsOnly(t *testing.T) {
	key := rsaTestKey()
	id, err := backend.Wrap(t.Context(), struct{ crypto.Signer }{key}, selfSigned(t, key))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := id.Key.(scep.Unwrapper); ok {
		t.Error("it unwraps")
	}
}

// lying is a signer of another key than it says.
type lying struct {
	crypto.Signer
	pub crypto.PublicKey
}

func (l lying) Public() crypto.PublicKey { return l.pub }

// oaepOnly decrypts nothing that devices send.
type oaepOnly struct{ *rsa.PrivateKey }

func (k oaepOnly) Decrypt(r io.Reader, block []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	if _, ok := opts.(*rsa.OAEPOptions); !ok {
		return nil, errors.New("InvalidKeyUsageException")
	}
	return k.PrivateKey.Decrypt(r, block, opts)
}

func TestWrapRefuses(t *testing.T) {
	rk, ek := rsaTestKey(), ecTestKey()
	cert := selfSigned(t, ek)
	other := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	away := &kms{Signer: ek}
	away.away.Store(true)
	for _, tt := range []struct {
		name  string
		key   crypto.Signer
		chain []*x509.Certificate
		is    error
		says  string
	}{
		{"no key", nil, []*x509.Certificate{cert}, nil, "needs a key"},
		{"no certificate", ek, nil, nil, "its certificate"},
		{"nil certificate", ek, []*x509.Certificate{cert, nil}, nil, "is nil"},
		{"certificate of another", other, []*x509.Certificate{cert}, backend.ErrMismatch, "does not belong"},
		{"chain", ek, []*x509.Certificate{cert, selfSigned(t, other), cert}, backend.ErrMismatch, "was not issued by"},
		{"signs with another key", lying{other, ek.Public()}, []*x509.Certificate{cert}, backend.ErrMismatch, "verifies"},
		{"tells no key", lying{ek, nil}, []*x509.Certificate{cert}, backend.ErrUnsupported, "cannot sign"},
		{"away", away, []*x509.Certificate{cert}, backend.ErrUnavailable, "no route to host"},
		{"panics", lying{nil, ek.Public()}, []*x509.Certificate{cert}, backend.ErrUnavailable, "panic: "},
		{"OAEP only", oaepOnly{rk}, []*x509.Certificate{selfSigned(t, rk)}, backend.ErrMismatch, "may not decrypt"},
	} {
		id, err := backend.Wrap(t.Context(), tt.key, tt.chain...)
		if err == nil || id != nil || tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) || !strings.HasPrefix(err.Error(), "backend: ") {
			t.Errorf("%s: %v; should say %q", tt.name, err, tt.says)
		}
	}
}

// hanging is a signer that can hang.
type hanging struct {
	crypto.Signer
	on     atomic.Bool
	inside atomic.Int32
	free   chan struct{}
}

func (h *hanging) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if h.on.Load() {
		h.inside.Add(1)
		defer h.inside.Add(-1)
		<-h.free
	}
	return h.Signer.Sign(r, digest, opts)
}

// What hangs is left behind, and no more than 64 of it are there; when it comes back all is well.
func TestWrapHangs(t *testing.T) {
	cert := selfSigned(t, ecTestKey())
	synctest.Test(t, func(t *testing.T) {
		h := &hanging{Signer: ecTestKey(), free: make(chan struct{})}
		id, err := backend.Wrap(t.Context(), h, cert)
		if err != nil {
			t.Fatal(err)
		}
		key := id.Key.(interface {
			SignContext(context.Context, io.Reader, []byte, crypto.SignerOpts) ([]byte, error)
		})
		h.on.Store(true)
		cause := errors.New("the client went away")
		ctx, cancel := context.WithCancelCause(t.Context())
		digests := make([][]byte, 100)
		var wg sync.WaitGroup
		for i := range digests {
			digests[i] = make([]byte, 32)
			wg.Go(func() {
				_, err := key.SignContext(ctx, nil, digests[i], crypto.SHA256)
				clear(digests[i]) // it is the caller's again
				if !errors.Is(err, backend.ErrUnavailable) || !errors.Is(err, cause) {
					t.Errorf("%v", err)
				}
			})
		}
		synctest.Wait()
		if n := h.inside.Load(); n != 64 {
			t.Errorf("%d are inside; should be 64", n)
		}
		cancel(cause)
		wg.Wait()
		if n := h.inside.Load(); n != 64 {
			t.Errorf("%d were left behind; should be 64", n)
		}
		h.on.Store(false)
		close(h.free)
		synctest.Wait()
		if _, err := key.SignContext(t.Context(), nil, make([]byte, 32), crypto.SHA256); err != nil {
			t.Error(err)
		}
	})
}

// Of a Decrypter's errors nothing gets out, whatever the block.
func TestWrapTellsNothing(t *testing.T) {
	k := decryptingKMS{&kms{Signer: rsaTestKey()}}
	id, err := backend.Wrap(t.Context(), k, selfSigned(t, k))
	if err != nil {
		t.Fatal(err)
	}
	opts := &rsa.PKCS1v15DecryptOptions{}
	for _, block := range [][]byte{nil, make([]byte, 256), bytes.Repeat([]byte{1}, 256)} {
		if got, err := id.Key.(scep.Unwrapper).UnwrapKey(t.Context(), block, 16, opts); err != nil || len(got) != 16 {
			t.Errorf("%x, %v", got, err)
		}
	}
	// A key that only unwraps cannot do the rest.
	u := unwrappingKMS{&kms{Signer: rsaTestKey()}}
	id, err = backend.Wrap(t.Context(), u, selfSigned(t, u))
	if err != nil {
		t.Fatal(err)
	}
	block := must(rsa.EncryptPKCS1v15(rand.Reader, &rsaTestKey().PublicKey, []byte("x")))
	if _, err := id.Key.(crypto.Decrypter).Decrypt(nil, block, nil); !errors.Is(err, backend.ErrUnsupported) {
		t.Errorf("Decrypt: %v", err)
	}
}

// vague is a Decrypter whose errors do not tell what is wrong.
type vague struct {
	*rsa.PrivateKey
	away bool
}

func (v *vague) Decrypt(r io.Reader, block []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	out, err := v.PrivateKey.Decrypt(r, block, opts)
	if v.away || err != nil {
		return nil, errors.New("request failed")
	}
	return out, nil
}

// That a key is away is found by a block of our own.
func TestWrapProves(t *testing.T) {
	cert := selfSigned(t, rsaTestKey())
	synctest.Test(t, func(t *testing.T) {
		key := &vague{PrivateKey: rsaTestKey()}
		id, err := backend.Wrap(t.Context(), key, cert)
		if err != nil {
			t.Fatal(err)
		}
		ask := func() error {
			_, err := id.Key.(scep.Unwrapper).UnwrapKey(t.Context(), make([]byte, 256), 16, &rsa.PKCS1v15DecryptOptions{})
			return err
		}
		if err := ask(); err != nil {
			t.Error(err)
		}
		key.away = true
		time.Sleep(1100 * time.Millisecond)
		if err := ask(); !errors.Is(err, backend.ErrUnavailable) || !strings.Contains(err.Error(), "request failed") {
			t.Errorf("away: %v", err)
		}
		key.away = false
		if err := ask(); err != nil {
			t.Errorf("back: %v", err)
		}
	})
}
