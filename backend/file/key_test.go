//lint:file-ignore SA1019 SCEP devices send PKCS #1 v1.5

package file

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
	"encoding/base64"
	"encoding/hex"
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

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/scep"
)

func TestSign(t *testing.T) {
	for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		h := hash.New()
		io.WriteString(h, "message")
		digest := h.Sum(nil)

		rk := must(newKey(rsaTestKey()))
		sig, err := rk.Sign(nil, digest, hash)
		if err != nil {
			t.Fatal(err)
		}
		if err := rsa.VerifyPKCS1v15(&rsaTestKey().PublicKey, hash, digest, sig); err != nil {
			t.Errorf("PKCS #1 v1.5 %v: %v", hash, err)
		}
		sig, err = rk.Sign(nil, digest, &rsa.PSSOptions{Hash: hash, SaltLength: rsa.PSSSaltLengthEqualsHash})
		if err != nil {
			t.Fatal(err)
		}
		if err := rsa.VerifyPSS(&rsaTestKey().PublicKey, hash, digest, sig, nil); err != nil {
			t.Errorf("PSS %v: %v", hash, err)
		}

		sig, err = must(newKey(ecTestKey())).Sign(nil, digest, hash)
		if err != nil {
			t.Fatal(err)
		}
		if !ecdsa.VerifyASN1(&ecTestKey().PublicKey, digest, sig) {
			t.Errorf("ECDSA %v does not verify", hash)
		}
	}
	pub, priv, _ := ed25519.GenerateKey(nil)
	sig, err := must(newKey(priv)).Sign(nil, []byte("message"), crypto.Hash(0))
	if err != nil || !ed25519.Verify(pub, []byte("message"), sig) {
		t.Errorf("Ed25519: %v", err)
	}
}

func TestSignRefuses(t *testing.T) {
	_, priv, _ := ed25519.GenerateKey(nil)
	rk, ek, edk := must(newKey(rsaTestKey())), must(newKey(ecTestKey())), must(newKey(priv))
	for _, key := range []crypto.Signer{rk, ek} {
		for _, tt := range []struct {
			n    int
			opts crypto.SignerOpts
		}{
			{32, nil}, {32, crypto.Hash(0)}, {16, crypto.MD5}, {36, crypto.MD5SHA1}, {28, crypto.SHA224},
			{32, crypto.SHA3_256}, {32, crypto.Hash(99)}, {31, crypto.SHA256}, {33, crypto.SHA256}, {0, crypto.SHA256},
			{64, crypto.SHA384}, {16, &rsa.PSSOptions{Hash: crypto.MD5}}, {31, &rsa.PSSOptions{Hash: crypto.SHA256}},
		} {
			sig, err := key.Sign(rand.Reader, make([]byte, tt.n), tt.opts)
			if err == nil || sig != nil {
				t.Errorf("%T signed %d bytes of %v", key, tt.n, tt.opts)
			}
		}
	}
	for _, opts := range []crypto.SignerOpts{nil, crypto.SHA256, crypto.SHA512, &ed25519.Options{Context: "x"}, &ed25519.Options{Hash: crypto.SHA512}} {
		if _, err := edk.Sign(nil, make([]byte, 64), opts); !errors.Is(err, backend.ErrUnsupported) {
			t.Errorf("Ed25519 with %v: %v", opts, err)
		}
	}
}

// A fault in a signature must not get out: here the key is not the one that the certificate,
// and so the verifier, has.
func TestSignVerifies(t *testing.T) {
	faulty := *ecTestKey()
	faulty.PublicKey = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)).PublicKey
	digest := sha256.Sum256(nil)
	if _, err := (&ecdsaKey{hide(&faulty)}).Sign(nil, digest[:], crypto.SHA256); err == nil {
		t.Error("ECDSA signature does not verify, but was returned")
	}
	_, a, _ := ed25519.GenerateKey(nil)
	_, b, _ := ed25519.GenerateKey(nil)
	mixed := append(a[:32:32], b[32:]...)
	if _, err := (&ed25519Key{hide(mixed)}).Sign(nil, digest[:], crypto.Hash(0)); err == nil {
		t.Error("Ed25519 signature does not verify, but was returned")
	}
}

func TestContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	digest := sha256.Sum256(nil)
	_, priv, _ := ed25519.GenerateKey(nil)
	for _, k := range []any{rsaTestKey(), ecTestKey(), priv} {
		key := must(newKey(k)).(interface {
			SignContext(context.Context, io.Reader, []byte, crypto.SignerOpts) ([]byte, error)
		})
		opts := crypto.SHA256
		if _, ok := key.(*ed25519Key); ok {
			opts = 0
		}
		if _, err := key.SignContext(ctx, nil, digest[:], opts); err != nil {
			t.Errorf("%T: %v", k, err)
		}
		done, cancelNow := context.WithCancel(ctx)
		cancelNow()
		if _, err := key.SignContext(done, nil, digest[:], opts); !errors.Is(err, context.Canceled) {
			t.Errorf("%T after cancel: %v", k, err)
		}
	}
	cancel()
	key := must(newKey(rsaTestKey())).(scep.Unwrapper)
	if _, err := key.UnwrapKey(ctx, make([]byte, 256), 16, &rsa.PKCS1v15DecryptOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("UnwrapKey after cancel: %v", err)
	}
}

var unwrapOptions = []crypto.DecrypterOpts{
	&rsa.PKCS1v15DecryptOptions{},
	&rsa.OAEPOptions{Hash: crypto.SHA1},
	&rsa.OAEPOptions{Hash: crypto.SHA256},
	&rsa.OAEPOptions{Hash: crypto.SHA256, MGFHash: crypto.SHA1},
	&rsa.OAEPOptions{Hash: crypto.SHA512, Label: []byte("label")},
}

func wrap(t *testing.T, key []byte, opts crypto.DecrypterOpts) []byte {
	t.Helper()
	pub := &rsaTestKey().PublicKey
	if o, ok := opts.(*rsa.OAEPOptions); ok {
		return must(rsa.EncryptOAEPWithOptions(rand.Reader, pub, key, o))
	}
	return must(rsa.EncryptPKCS1v15(rand.Reader, pub, key))
}

func TestUnwrapKey(t *testing.T) {
	u := must(newKey(rsaTestKey())).(scep.Unwrapper)
	for _, opts := range unwrapOptions {
		for _, n := range []int{8, 16, 24, 32} {
			key := make([]byte, n)
			rand.Read(key)
			block := wrap(t, key, opts)
			got, err := u.UnwrapKey(t.Context(), block, n, opts)
			if err != nil || !bytes.Equal(got, key) {
				t.Errorf("%+v, %d bytes: %v", opts, n, err)
			}
		}
	}
	got, err := u.(crypto.Decrypter).Decrypt(nil, wrap(t, []byte("sixteen bytes ok"), unwrapOptions[0]), nil)
	if err != nil || string(got) != "sixteen bytes ok" {
		t.Errorf("Decrypt: %q, %v", got, err)
	}
}

// brokenBlocks are all the ways in which a block can be wrong.
func brokenBlocks(t *testing.T, opts crypto.DecrypterOpts) map[string][]byte {
	pub := &rsaTestKey().PublicKey
	size := pub.Size()
	n := pub.N.Bytes()
	good := wrap(t, make([]byte, 16), opts)
	flipped := bytes.Clone(good)
	flipped[100] ^= 1
	ones := bytes.Repeat([]byte{0xff}, size)
	random := make([]byte, size)
	rand.Read(random[1:])
	return map[string][]byte{
		"flipped bit": flipped, "random": random, "zero": make([]byte, size), "one": append(make([]byte, size-1), 1),
		"nothing": nil, "short": good[1:], "long": append([]byte{0}, good...), "very long": make([]byte, 1<<16),
		"modulus": n, "all ones": ones, "key of 15 bytes": wrap(t, make([]byte, 15), opts), "key of 17 bytes": wrap(t, make([]byte, 17), opts),
	}
}

func TestUnwrapKeyBroken(t *testing.T) {
	u := must(newKey(rsaTestKey())).(scep.Unwrapper)
	seen := map[string]bool{string(make([]byte, 16)): true}
	for _, opts := range unwrapOptions {
		for name, block := range brokenBlocks(t, opts) {
			before := bytes.Clone(block)
			for range 2 {
				got, err := u.UnwrapKey(t.Context(), block, 16, opts)
				if err != nil || len(got) != 16 {
					t.Fatalf("%s, %+v: %x, %v\ncontract: From a malformed block it returns n random bytes and no error.", name, opts, got, err)
				}
				if seen[string(got)] {
					t.Errorf("%s, %+v: %x is not random", name, opts, got)
				}
				seen[string(got)] = true
			}
			if !bytes.Equal(before, block) {
				t.Errorf("%s: the block was changed", name)
			}
		}
	}
}

func TestUnwrapKeyTime(t *testing.T) {
	u := must(newKey(rsaTestKey())).(scep.Unwrapper)
	opts := unwrapOptions[0]
	blocks := brokenBlocks(t, opts)
	blocks["good"] = wrap(t, make([]byte, 16), opts)
	least := map[string]time.Duration{}
	for range 40 { // in turns, so that a busy machine is so for all
		for name, block := range blocks {
			start := time.Now()
			u.UnwrapKey(t.Context(), block, 16, opts)
			if d := time.Since(start); least[name] == 0 || d < least[name] {
				least[name] = d
			}
		}
	}
	for name, d := range least {
		// What is meant is an early return, which takes a hundredth.
		if good := least["good"]; d < good/3 || d > 3*good {
			t.Errorf("%s takes %v, a good block %v", name, d, good)
		}
	}
}

func TestUnwrapKeyRefuses(t *testing.T) {
	u := must(newKey(rsaTestKey())).(scep.Unwrapper)
	for _, tt := range []struct {
		n    int
		opts crypto.DecrypterOpts
	}{
		{16, nil}, {16, &rsa.OAEPOptions{}}, {16, &rsa.OAEPOptions{Hash: crypto.MD4}}, {16, &rsa.OAEPOptions{Hash: crypto.SHA256, MGFHash: crypto.MD5}},
		{0, unwrapOptions[0]}, {-1, unwrapOptions[0]}, {246, unwrapOptions[0]},
	} {
		for _, size := range []int{0, 256} {
			if _, err := u.UnwrapKey(t.Context(), make([]byte, size), tt.n, tt.opts); !errors.Is(err, backend.ErrUnsupported) {
				t.Errorf("%d bytes, %+v: %v", tt.n, tt.opts, err)
			}
		}
	}
	if _, err := u.(crypto.Decrypter).Decrypt(nil, make([]byte, 256), &rsa.OAEPOptions{}); !errors.Is(err, backend.ErrUnsupported) {
		t.Errorf("Decrypt with no hash: %v", err)
	}
}

func TestConcurrentUse(t *testing.T) {
	key := must(newKey(rsaTestKey()))
	secret := []byte("sixteen bytes ok")
	block := wrap(t, secret, unwrapOptions[0])
	digest := sha256.Sum256(nil)
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			if got, err := key.(scep.Unwrapper).UnwrapKey(t.Context(), block, 16, unwrapOptions[0]); err != nil || !bytes.Equal(got, secret) {
				t.Errorf("unwrap: %v", err)
			}
			if _, err := key.Sign(nil, digest[:], crypto.SHA256); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestKeysDoNotPrint(t *testing.T) {
	_, edPriv, _ := ed25519.GenerateKey(nil)
	rk, ek := rsaTestKey(), ecTestKey()
	ekBytes := must(ek.Bytes())
	canaries := [][]byte{rk.D.Bytes(), rk.Primes[0].Bytes(), rk.Primes[1].Bytes(), ekBytes, edPriv.Seed()}
	decimals := []string{rk.D.String()[:40], rk.Primes[0].String()[:40], rk.Primes[1].String()[:40]}
	for _, n := range append([]*big.Int{rk.D}, rk.Primes...) {
		decimals = append(decimals, fmt.Sprint(uint(n.Bits()[1])))
	}

	for _, k := range []any{rk, ek, edPriv} {
		key := must(newKey(k))
		id := scep.Identity{Certificates: nil, Key: key}
		nested := struct{ id scep.Identity }{id}
		var out bytes.Buffer
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			if got := fmt.Sprintf(verb, key); got != redacted {
				t.Errorf("%T prints as %q under %s", key, got, verb)
			}
			if got := fmt.Sprintf(verb, id); !strings.Contains(got, redacted) {
				t.Errorf("identity with %T prints as %q under %s", key, got, verb)
			}
			fmt.Fprintf(&out, verb+verb+verb+verb, key, id, &id, nested)
			fmt.Fprintf(&out, verb+verb, []crypto.Signer{key}, map[string]any{"k": &id})
		}
		for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
			var line bytes.Buffer
			l := slog.New(h)
			l.Info("x", "key", key, "id", id, "p", &id, "n", nested)
			slog.New(slog.NewTextHandler(&line, nil)).Info("x", "key", key)
			if !strings.Contains(line.String(), "key="+redacted) {
				t.Errorf("slog prints %q", line.String())
			}
		}
		data, err := json.Marshal(id)
		if err != nil || !bytes.Contains(data, []byte(redacted)) {
			t.Errorf("JSON is %s, %v", data, err)
		}
		out.Write(data)

		text := out.String()
		for _, c := range canaries {
			for _, enc := range []string{
				string(c[:16]), hex.EncodeToString(c[:16]), strings.ToUpper(hex.EncodeToString(c[:16])),
				base64.StdEncoding.EncodeToString(c)[:20], strings.Trim(fmt.Sprint(c[:8]), "[]"),
				strings.Trim(fmt.Sprintf("%#v", c[:4]), "[]byte{}"),
			} {
				if strings.Contains(text, enc) {
					t.Errorf("%T: output has key material %q", key, enc)
				}
			}
		}
		for _, d := range decimals {
			if strings.Contains(text, d) {
				t.Errorf("%T: output has key material %q", key, d)
			}
		}
	}
}
