package custody

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"
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
	edTestKey  = sync.OnceValue(func() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(make([]byte, 32)) })
)

// fake is a Device that uses key unless a func says otherwise.
type fake struct {
	key     crypto.Signer
	sign    func(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error)
	decrypt func(ctx context.Context, block []byte, opts crypto.DecrypterOpts) ([]byte, error)

	mu     sync.Mutex
	blocks [][]byte // that were decrypted
}

func (f *fake) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if f.sign != nil {
		return f.sign(ctx, digest, opts)
	}
	return f.key.Sign(rand.Reader, digest, opts)
}

func (f *fake) Decrypt(ctx context.Context, block []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	f.mu.Lock()
	f.blocks = append(f.blocks, bytes.Clone(block))
	f.mu.Unlock()
	if f.decrypt != nil {
		return f.decrypt(ctx, block, opts)
	}
	return f.key.(crypto.Decrypter).Decrypt(rand.Reader, block, opts)
}

// calls returns how many blocks were decrypted.
func (f *fake) calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.blocks)
}

func newKey(t *testing.T, f *fake, o Options) crypto.Signer {
	t.Helper()
	if o.Name == "" {
		o.Name = `fake: key "k"`
	}
	k, err := New(f.key.Public(), f, o)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

type contextSigner interface {
	SignContext(context.Context, io.Reader, []byte, crypto.SignerOpts) ([]byte, error)
}

func TestNew(t *testing.T) {
	small := must(rsa.GenerateKey(rand.Reader, 1024))
	for _, tt := range []struct {
		pub      crypto.PublicKey
		decrypts bool
		says     string
	}{
		{small.Public(), false, "1024 bits; use 2048 to 8192"},
		{&rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 8192), E: 65537}, false, "8193 bits"},
		{ecTestKey().Public(), true, "use an RSA key"},
		{edTestKey().Public(), true, "use an RSA key"},
		{*rsaTestKey().Public().(*rsa.PublicKey), false, "cannot sign"},
		{nil, false, "cannot sign"},
	} {
		k, err := New(tt.pub, &fake{}, Options{Name: "fake: x", Decrypts: tt.decrypts})
		if !errors.Is(err, ErrUnsupported) || k != nil || !strings.Contains(err.Error(), tt.says) || !strings.HasPrefix(err.Error(), "fake: x ") {
			t.Errorf("%T: %v; should say %q", tt.pub, err, tt.says)
		}
	}
	for _, tt := range []struct {
		key      crypto.Signer
		decrypts bool
	}{{rsaTestKey(), false}, {rsaTestKey(), true}, {ecTestKey(), false}, {edTestKey(), false}} {
		k := newKey(t, &fake{key: tt.key}, Options{Decrypts: tt.decrypts})
		_, unwraps := k.(Unwrapper)
		_, decrypts := k.(crypto.Decrypter)
		_, ctx := k.(contextSigner)
		if unwraps != tt.decrypts || decrypts != tt.decrypts || !ctx {
			t.Errorf("%T: UnwrapKey %v, Decrypt %v, SignContext %v", tt.key, unwraps, decrypts, ctx)
		}
		if err := Test(t.Context(), k, true); err != nil {
			t.Error(err)
		}
	}
}

// What the device was asked to sign, and gave, does not matter: only what verifies leaves.
func TestSignVerifies(t *testing.T) {
	other := must(rsa.GenerateKey(rand.Reader, 2048))
	for name, sign := range map[string]func(context.Context, []byte, crypto.SignerOpts) ([]byte, error){
		"another key": func(_ context.Context, d []byte, o crypto.SignerOpts) ([]byte, error) {
			return other.Sign(rand.Reader, d, o)
		},
		"nothing":  func(context.Context, []byte, crypto.SignerOpts) ([]byte, error) { return nil, nil },
		"nonsense": func(context.Context, []byte, crypto.SignerOpts) ([]byte, error) { return make([]byte, 256), nil },
		"other padding": func(_ context.Context, d []byte, o crypto.SignerOpts) ([]byte, error) {
			if _, ok := o.(*rsa.PSSOptions); ok {
				return rsaTestKey().Sign(rand.Reader, d, crypto.SHA256)
			}
			return rsaTestKey().Sign(rand.Reader, d, &rsa.PSSOptions{Hash: crypto.SHA256})
		},
		"a bit": func(_ context.Context, d []byte, o crypto.SignerOpts) ([]byte, error) {
			sig, err := rsaTestKey().Sign(rand.Reader, d, o)
			sig[100] ^= 1
			return sig, err
		},
	} {
		k := newKey(t, &fake{key: rsaTestKey(), sign: sign}, Options{})
		d := sha256.Sum256(nil)
		for _, opts := range []crypto.SignerOpts{crypto.SHA256, &rsa.PSSOptions{Hash: crypto.SHA256}} {
			sig, err := k.Sign(nil, d[:], opts)
			if sig != nil || !errors.Is(err, ErrUnavailable) || !strings.HasPrefix(err.Error(), `fake: key "k" `) {
				t.Errorf("%s: %x, %v", name, sig, err)
			}
		}
		if err := Test(t.Context(), k, true); !errors.Is(err, ErrMismatch) {
			t.Errorf("%s: Test: %v", name, err)
		}
		if err := Test(t.Context(), k, false); err != nil {
			t.Errorf("%s: Test without signing: %v", name, err)
		}
	}
	for _, key := range []crypto.Signer{ecTestKey(), edTestKey()} {
		k := newKey(t, &fake{key: key, sign: func(context.Context, []byte, crypto.SignerOpts) ([]byte, error) { return make([]byte, 64), nil }}, Options{})
		opts := crypto.SHA256
		if _, ok := key.(ed25519.PrivateKey); ok {
			opts = 0
		}
		if sig, err := k.Sign(nil, make([]byte, 32), opts); sig != nil || err == nil {
			t.Errorf("%T: %x, %v", key, sig, err)
		}
	}
}

func TestSignErrors(t *testing.T) {
	broken := errors.New("broken")
	asked := 0
	k := newKey(t, &fake{key: rsaTestKey(), sign: func(context.Context, []byte, crypto.SignerOpts) ([]byte, error) {
		asked++
		return []byte("x"), broken
	}}, Options{})
	if sig, err := k.Sign(nil, make([]byte, 32), crypto.SHA256); sig != nil || !errors.Is(err, broken) {
		t.Errorf("%x, %v", sig, err)
	}
	if err := Test(t.Context(), k, true); !errors.Is(err, broken) {
		t.Errorf("Test: %v", err)
	}
	asked = 0
	cause := errors.New("cause")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := k.(contextSigner).SignContext(ctx, nil, make([]byte, 32), crypto.SHA256); !errors.Is(err, cause) || !strings.HasPrefix(err.Error(), "fake: ") {
		t.Errorf("after the end: %v", err)
	}
	if _, err := k.Sign(nil, make([]byte, 31), crypto.SHA256); err == nil || !strings.Contains(err.Error(), "31 bytes") {
		t.Errorf("short digest: %v", err)
	}
	if asked != 0 {
		t.Error("the device was asked")
	}
}

func TestCheckDigest(t *testing.T) {
	rk, ek, edk := rsaTestKey().Public(), ecTestKey().Public(), edTestKey().Public()
	pss := func(h crypto.Hash, salt int) crypto.SignerOpts { return &rsa.PSSOptions{Hash: h, SaltLength: salt} }
	for _, tt := range []struct {
		pub  crypto.PublicKey
		n    int
		opts crypto.SignerOpts
		ok   bool
	}{
		{rk, 20, crypto.SHA1, true}, {rk, 32, crypto.SHA256, true}, {ek, 48, crypto.SHA384, true}, {ek, 64, crypto.SHA512, true},
		{rk, 32, pss(crypto.SHA256, rsa.PSSSaltLengthAuto), true}, {rk, 32, pss(crypto.SHA256, rsa.PSSSaltLengthEqualsHash), true},
		{rk, 32, pss(crypto.SHA256, 222), true}, {rk, 32, pss(crypto.SHA256, 223), false}, {rk, 32, pss(crypto.SHA256, -2), false},
		{ek, 32, pss(crypto.SHA256, 0), false}, {rk, 16, pss(crypto.MD5, 0), false}, {rk, 31, pss(crypto.SHA256, 0), false},
		{rk, 32, nil, false}, {rk, 32, crypto.Hash(0), false}, {rk, 16, crypto.MD5, false}, {ek, 28, crypto.SHA224, false},
		{ek, 32, crypto.SHA3_256, false}, {rk, 36, crypto.MD5SHA1, false}, {rk, 32, crypto.Hash(99), false},
		{rk, 0, crypto.SHA256, false}, {ek, 33, crypto.SHA256, false},
		{edk, 0, crypto.Hash(0), true}, {edk, 99, &ed25519.Options{}, true}, {edk, 64, crypto.SHA512, false},
		{edk, 64, &ed25519.Options{Hash: crypto.SHA512}, false}, {edk, 9, &ed25519.Options{Context: "x"}, false}, {edk, 9, nil, false},
	} {
		if err := CheckDigest(tt.pub, make([]byte, tt.n), tt.opts); (err == nil) != tt.ok {
			t.Errorf("%T, %d bytes, %+v: %v", tt.pub, tt.n, tt.opts, err)
		}
	}
	// A modulus of 8k+1 bits has no room in its first byte.
	odd := &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 2048), E: 65537}
	if n := SaltLength(odd, &rsa.PSSOptions{Hash: crypto.SHA256}); n != 222 {
		t.Errorf("longest salt is %d", n)
	}
	if CheckDigest(odd, make([]byte, 32), pss(crypto.SHA256, 223)) == nil {
		t.Error("salt too long by one")
	}
}

func TestRedacted(t *testing.T) {
	secret := "k3y material"
	for _, decrypts := range []bool{true, false} {
		k, err := New(rsaTestKey().Public(), leaky{[]byte(secret), secret}, Options{Name: "fake: k", Decrypts: decrypts})
		if err != nil {
			t.Fatal(err)
		}
		nested := struct{ k any }{k}
		var out bytes.Buffer
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			if got := fmt.Sprintf(verb, k); got != redacted {
				t.Errorf("%s prints %q", verb, got)
			}
			fmt.Fprintf(&out, verb+verb+verb, nested, &nested, []any{k})
		}
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "k", k, "n", nested)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "k", k, "n", nested)
		out.Write(must(json.Marshal(k)))
		for _, s := range []string{secret, fmt.Sprintf("%x", secret), strings.Trim(fmt.Sprint([]byte(secret)), "[]")} {
			if strings.Contains(out.String(), s) {
				t.Errorf("output has %q", s)
			}
		}
	}
}

// leaky is a Device that is a value with a secret in it.
type leaky struct {
	bytes []byte
	text  string
}

func (leaky) Sign(context.Context, []byte, crypto.SignerOpts) ([]byte, error) { return nil, nil }
func (leaky) Decrypt(context.Context, []byte, crypto.DecrypterOpts) ([]byte, error) {
	return nil, nil
}

func TestTestRefusesOthers(t *testing.T) {
	for _, sign := range []bool{true, false} {
		if err := Test(t.Context(), rsaTestKey(), sign); err == nil {
			t.Error("no error")
		}
	}
}

// issue returns a CA certificate for pub, from parent, whose key is key; nil: self-signed.
func issue(name string, pub crypto.PublicKey, parent *x509.Certificate, key crypto.Signer) *x509.Certificate {
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	if parent == nil {
		parent = tmpl
	}
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key))))
}

func TestCheckChain(t *testing.T) {
	rk, ek := rsaTestKey(), ecTestKey()
	root := issue("root", rk.Public(), nil, rk)
	sub := issue("sub", ek.Public(), root, rk)
	impostor := issue("root", edTestKey().Public(), nil, edTestKey())
	for _, tt := range []struct {
		pub   crypto.PublicKey
		certs []*x509.Certificate
		says  string // "": no error
	}{
		{ek.Public(), []*x509.Certificate{sub, root}, ""},
		{ek.Public(), []*x509.Certificate{sub}, ""},
		{rk.Public(), []*x509.Certificate{root, root}, ""},
		{rk.Public(), []*x509.Certificate{sub, root}, `belongs to the certificate "CN=root"; put that one first in "f"`},
		{edTestKey().Public(), []*x509.Certificate{sub, root}, `does not belong to the first certificate in "f" (that is of "CN=sub")`},
		{ek.Public(), nil, "there is none"},
		{nil, []*x509.Certificate{sub}, "does not belong"},
		{ek.Public(), []*x509.Certificate{sub, sub}, `its issuer is named "CN=root"`},
		{ek.Public(), []*x509.Certificate{sub, impostor}, "was not issued by the next one"},
	} {
		err := CheckChain(tt.pub, `key "k"`, tt.certs, `"f"`)
		if tt.says == "" && err != nil {
			t.Error(err)
		}
		if tt.says != "" && (!errors.Is(err, ErrMismatch) || !strings.Contains(err.Error(), tt.says)) {
			t.Errorf("%v; should say %q", err, tt.says)
		}
	}

	now := time.Now()
	if err := CheckCA([]*x509.Certificate{root}, now); err != nil {
		t.Error(err)
	}
	leaf := *root
	leaf.IsCA = false
	for _, certs := range [][]*x509.Certificate{nil, {&leaf, root}} {
		if err := CheckCA(certs, now); !errors.Is(err, ErrMismatch) {
			t.Errorf("%d certificates: %v", len(certs), err)
		}
	}
	for after, says := range map[time.Duration]string{2 * time.Hour: "renew it", -2 * time.Hour: "set the clock"} {
		if err := CheckCA([]*x509.Certificate{root}, now.Add(after)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("after %v: %v", after, err)
		}
	}
}
