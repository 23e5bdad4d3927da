//lint:file-ignore SA1019 SCEP devices send PKCS #1 v1.5

package custody

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var v15 = &rsa.PKCS1v15DecryptOptions{}

func wrap(secret []byte) []byte {
	return must(rsa.EncryptPKCS1v15(rand.Reader, &rsaTestKey().PublicKey, secret))
}

func TestUnwrapKey(t *testing.T) {
	f := &fake{key: rsaTestKey()}
	u := newKey(t, f, Options{Decrypts: true}).(Unwrapper)
	pub := &rsaTestKey().PublicKey
	for _, n := range []int{1, 16, 24, 32, 245} {
		secret := make([]byte, n)
		rand.Read(secret)
		if got, err := u.UnwrapKey(t.Context(), wrap(secret), n, v15); err != nil || !bytes.Equal(got, secret) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	oaep := &rsa.OAEPOptions{Hash: crypto.SHA256, MGFHash: crypto.SHA1, Label: []byte("x")}
	block := must(rsa.EncryptOAEPWithOptions(rand.Reader, pub, make([]byte, 16), oaep))
	if got, err := u.UnwrapKey(t.Context(), block, 16, oaep); err != nil || !bytes.Equal(got, make([]byte, 16)) {
		t.Errorf("OAEP: %x, %v", got, err)
	}

	asked := f.calls()
	for _, tt := range []struct {
		n    int
		opts crypto.DecrypterOpts
	}{{0, v15}, {-1, v15}, {246, v15}, {16, nil}, {16, "x"}, {16, &rsa.OAEPOptions{}}, {16, &rsa.OAEPOptions{Hash: crypto.MD5}}, {16, &rsa.OAEPOptions{Hash: crypto.SHA256, MGFHash: crypto.MD5}}} {
		if _, err := u.UnwrapKey(t.Context(), make([]byte, 256), tt.n, tt.opts); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%d bytes, %+v: %v", tt.n, tt.opts, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := u.UnwrapKey(ctx, make([]byte, 256), 16, v15); !errors.Is(err, context.Canceled) || !strings.HasPrefix(err.Error(), "fake: ") {
		t.Errorf("ended: %v", err)
	}
	if f.calls() != asked {
		t.Error("the device was asked")
	}
}

// Whatever a device says about a block comes out as random bytes; what it says about itself, as
// an error.
func TestUnwrapKeyErrors(t *testing.T) {
	var answer func() ([]byte, error)
	f := &fake{key: rsaTestKey(), decrypt: func(context.Context, []byte, crypto.DecrypterOpts) ([]byte, error) { return answer() }}
	u := newKey(t, f, Options{Decrypts: true}).(Unwrapper)
	seen := map[string]bool{string(make([]byte, 16)): true}
	for name, a := range map[string]func() ([]byte, error){
		"error":              func() ([]byte, error) { return nil, errors.New("CKR_ENCRYPTED_DATA_INVALID") },
		"error with 16":      func() ([]byte, error) { return make([]byte, 16), rsa.ErrDecryption },
		"nothing":            func() ([]byte, error) { return nil, nil },
		"17 bytes":           func() ([]byte, error) { return make([]byte, 17), nil },
		"15 bytes":           func() ([]byte, error) { return make([]byte, 15), nil },
		"as the modulus":     func() ([]byte, error) { return make([]byte, 256), nil },
		"error of ErrMisuse": func() ([]byte, error) { return nil, ErrMismatch },
	} {
		answer = a
		for range 2 {
			got, err := u.UnwrapKey(t.Context(), wrap(make([]byte, 16)), 16, v15)
			if err != nil || len(got) != 16 || seen[string(got)] {
				t.Errorf("%s: %x, %v", name, got, err)
			}
			seen[string(got)] = true
		}
	}
	for _, is := range []error{ErrUnavailable, ErrPIN, ErrUnsupported, context.Canceled, context.DeadlineExceeded} {
		answer = func() ([]byte, error) { return make([]byte, 16), fmt.Errorf("x: %w", is) }
		got, err := u.UnwrapKey(t.Context(), wrap(make([]byte, 16)), 16, v15)
		if !errors.Is(err, is) || got != nil || !strings.HasPrefix(err.Error(), `fake: key "k" `) {
			t.Errorf("%v: %x, %v", is, got, err)
		}
	}
	// A cause of the caller's own making is no word about the block.
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("cause")
	answer = func() ([]byte, error) { cancel(cause); return nil, context.Cause(ctx) }
	if got, err := u.UnwrapKey(ctx, wrap(make([]byte, 16)), 16, v15); !errors.Is(err, cause) || got != nil {
		t.Errorf("ended with a cause: %x, %v", got, err)
	}
}

// A block that the device would refuse at once is decrypted like others, in another's place.
func TestUnwrapKeyOutOfRange(t *testing.T) {
	f := &fake{key: rsaTestKey(), decrypt: func(context.Context, []byte, crypto.DecrypterOpts) ([]byte, error) {
		return make([]byte, 16), nil // as if it were good
	}}
	u := newKey(t, f, Options{Decrypts: true}).(Unwrapper)
	n := rsaTestKey().N.Bytes()
	for name, block := range map[string][]byte{"nothing": nil, "short": make([]byte, 255), "long": make([]byte, 257), "modulus": n, "ones": bytes.Repeat([]byte{0xff}, 256)} {
		before, asked := bytes.Clone(block), f.calls()
		got, err := u.UnwrapKey(t.Context(), block, 16, v15)
		if err != nil || len(got) != 16 || bytes.Equal(got, make([]byte, 16)) || !bytes.Equal(before, block) {
			t.Errorf("%s: %x, %v", name, got, err)
		}
		if f.calls() != asked+1 {
			t.Errorf("%s: the device was asked %d times", name, f.calls()-asked)
		}
		if sent := f.blocks[len(f.blocks)-1]; len(sent) != 256 || bytes.Compare(sent, n) >= 0 || bytes.Equal(sent, block) {
			t.Errorf("%s: the device got %x", name, sent)
		}
	}
}

func TestDecrypt(t *testing.T) {
	f := &fake{key: rsaTestKey()}
	d := newKey(t, f, Options{Decrypts: true}).(crypto.Decrypter)
	for _, opts := range []crypto.DecrypterOpts{nil, v15, &rsa.PKCS1v15DecryptOptions{SessionKeyLen: 3}} {
		if got, err := d.Decrypt(nil, wrap([]byte("abc")), opts); err != nil || string(got) != "abc" {
			t.Errorf("%+v: %q, %v", opts, got, err)
		}
	}
	if got, err := d.Decrypt(nil, wrap([]byte("abc")), &rsa.PKCS1v15DecryptOptions{SessionKeyLen: 4}); err != nil || len(got) != 4 {
		t.Errorf("session key of another length: %x, %v", got, err)
	}
	for name, block := range map[string][]byte{"zero": make([]byte, 256), "short": {1}, "modulus": rsaTestKey().N.Bytes()} {
		if got, err := d.Decrypt(nil, block, nil); !errors.Is(err, rsa.ErrDecryption) || got != nil {
			t.Errorf("%s: %x, %v", name, got, err)
		}
	}
	if _, err := d.Decrypt(nil, wrap(nil), &rsa.OAEPOptions{}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("OAEP with no hash: %v", err)
	}
	f.decrypt = func(context.Context, []byte, crypto.DecrypterOpts) ([]byte, error) { return nil, ErrPIN }
	if _, err := d.Decrypt(nil, wrap(nil), nil); !errors.Is(err, ErrPIN) {
		t.Errorf("device: %v", err)
	}
}

// unwrapping is a fake that keeps the promise itself.
type unwrapping struct {
	*fake
	unwrap func(block []byte, n int) ([]byte, error)
}

func (u unwrapping) UnwrapKey(_ context.Context, block []byte, n int, _ crypto.DecrypterOpts) ([]byte, error) {
	return u.unwrap(block, n)
}

func TestDeviceThatUnwraps(t *testing.T) {
	f := &fake{key: rsaTestKey()}
	err := error(nil)
	d := unwrapping{f, func(block []byte, n int) ([]byte, error) {
		got := make([]byte, n)
		rsa.DecryptPKCS1v15SessionKey(nil, rsaTestKey(), block, got)
		return got, err
	}}
	k := must(New(rsaTestKey().Public(), d, Options{Name: "fake: k", Decrypts: true, Proof: time.Hour}))
	if err := Test(t.Context(), k, true); err != nil {
		t.Error(err)
	}
	secret := []byte("sixteen bytes ok")
	if got, err := k.(Unwrapper).UnwrapKey(t.Context(), wrap(secret), 16, v15); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("%x, %v", got, err)
	}
	if f.calls() != 0 {
		t.Error("Decrypt was used")
	}
	err = errors.New("any")
	if got, err := k.(Unwrapper).UnwrapKey(t.Context(), make([]byte, 3), 16, v15); !errors.Is(err, ErrUnavailable) || got != nil {
		t.Errorf("%x, %v", got, err)
	}
}

// proving is a device that either works or says "bad" to every block, as NSS and SoftHSM do when
// they lose their session.
type proving struct {
	fake
	broken atomic.Bool
	proofs atomic.Int32 // blocks other than the stranger's
}

var stranger = bytes.Repeat([]byte{1}, 256)

func newProving() *proving {
	p := &proving{fake: fake{key: rsaTestKey()}}
	p.decrypt = func(ctx context.Context, block []byte, opts crypto.DecrypterOpts) ([]byte, error) {
		if !bytes.Equal(block, stranger) {
			p.proofs.Add(1)
		}
		if p.broken.Load() {
			return nil, errors.New("CKR_DATA_INVALID")
		}
		return rsaTestKey().Decrypt(nil, block, opts)
	}
	return p
}

func TestProof(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProving()
		u := newKey(t, &p.fake, Options{Decrypts: true, Proof: time.Minute}).(Unwrapper)
		ask := func(says error, proofs int32) {
			t.Helper()
			got, err := u.UnwrapKey(t.Context(), stranger, 16, v15)
			if !errors.Is(err, says) || says == nil && (err != nil || len(got) != 16) {
				t.Errorf("%x, %v; should be %v", got, err, says)
			}
			if n := p.proofs.Load(); n != proofs {
				t.Errorf("%d proofs; should be %d", n, proofs)
			}
		}
		ask(nil, 1)
		ask(nil, 1)
		time.Sleep(59 * time.Second)
		ask(nil, 1) // a malformed block is no reason for a proof
		time.Sleep(2 * time.Second)
		ask(nil, 2)
		p.broken.Store(true)
		time.Sleep(time.Hour)
		ask(ErrUnavailable, 3)
		ask(ErrUnavailable, 4) // a proof that failed is not remembered
		p.broken.Store(false)
		ask(nil, 5)

		// Test is a proof too.
		time.Sleep(time.Hour)
		if err := Test(t.Context(), u.(crypto.Signer), false); err != nil {
			t.Error(err)
		}
		ask(nil, 6)
		p.broken.Store(true)
		if err := Test(t.Context(), u.(crypto.Signer), false); !errors.Is(err, ErrMismatch) {
			t.Errorf("Test of a key that does not decrypt: %v", err)
		}
	})
}

// A device that decrypts to something else than was encrypted, as with another key.
func TestProofOfAnotherKey(t *testing.T) {
	f := &fake{key: rsaTestKey(), decrypt: func(context.Context, []byte, crypto.DecrypterOpts) ([]byte, error) { return make([]byte, 16), nil }}
	k := newKey(t, f, Options{Decrypts: true, Proof: time.Minute})
	if _, err := k.(Unwrapper).UnwrapKey(t.Context(), stranger, 16, v15); !errors.Is(err, ErrUnavailable) {
		t.Errorf("%v", err)
	}
	if err := Test(t.Context(), k, false); !errors.Is(err, ErrMismatch) {
		t.Errorf("Test: %v", err)
	}
	f.decrypt = func(context.Context, []byte, crypto.DecrypterOpts) ([]byte, error) { return nil, ErrPIN }
	if _, err := k.(Unwrapper).UnwrapKey(t.Context(), stranger, 16, v15); !errors.Is(err, ErrPIN) || errors.Is(err, ErrUnavailable) {
		t.Errorf("%v", err)
	}
	if err := Test(t.Context(), k, false); !errors.Is(err, ErrPIN) || errors.Is(err, ErrMismatch) {
		t.Errorf("Test: %v", err)
	}
}

// Of many callers one makes the proof. If its request ends another makes it; if the device is
// broken all are told.
func TestProofConcurrent(t *testing.T) {
	cause := errors.New("the client went away")
	synctest.Test(t, func(t *testing.T) {
		p := newProving()
		work := p.decrypt
		p.decrypt = func(ctx context.Context, block []byte, opts crypto.DecrypterOpts) ([]byte, error) {
			select {
			case <-time.After(time.Second):
				return work(ctx, block, opts)
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
		u := newKey(t, &p.fake, Options{Decrypts: true, Proof: time.Minute}).(Unwrapper)
		impatient, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(500*time.Millisecond, func() { cancel(cause) })
		errs := make([]error, 32)
		var wg sync.WaitGroup
		wg.Go(func() { _, errs[0] = u.UnwrapKey(impatient, stranger, 16, v15) })
		synctest.Wait()
		for i := range errs[1:] {
			wg.Go(func() { _, errs[1+i] = u.UnwrapKey(t.Context(), stranger, 16, v15) })
		}
		wg.Wait()
		if !errors.Is(errs[0], cause) {
			t.Errorf("the one that ended: %v", errs[0])
		}
		for _, err := range errs[1:] {
			if err != nil {
				t.Errorf("another: %v", err)
			}
		}
		if n := p.proofs.Load(); n != 1 {
			t.Errorf("%d proofs came to an end; should be 1", n)
		}

		time.Sleep(time.Hour)
		p.broken.Store(true)
		short, cancelShort := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancelShort()
		for i := range errs {
			ctx := t.Context()
			if i == 20 {
				ctx = short
			}
			wg.Go(func() { _, errs[i] = u.UnwrapKey(ctx, stranger, 16, v15) })
			synctest.Wait()
		}
		begun := time.Now()
		wg.Wait()
		if !errors.Is(errs[20], context.DeadlineExceeded) {
			t.Errorf("the one that waited no longer: %v", errs[20])
		}
		for i, err := range slices.Delete(errs, 20, 21) {
			if !errors.Is(err, ErrUnavailable) {
				t.Errorf("%d: %v", i, err)
			}
		}
		if d := time.Since(begun); d > 2*time.Second {
			t.Errorf("took %v", d)
		}
	})
}

// After a device that panics others do not wait for ever.
func TestProofPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{key: rsaTestKey()}
		u := newKey(t, f, Options{Decrypts: true, Proof: time.Minute}).(Unwrapper)
		f.decrypt = func(context.Context, []byte, crypto.DecrypterOpts) ([]byte, error) { panic("x") }
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic got lost")
				}
			}()
			u.UnwrapKey(t.Context(), stranger, 16, v15)
		}()
		f.decrypt = nil
		if _, err := u.UnwrapKey(t.Context(), stranger, 16, v15); err != nil {
			t.Error(err)
		}
	})
}
