//go:build cgo

//lint:file-ignore SA1019 SCEP is made of PKCS #1 v1.5

package pkcs11_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"io"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/pkcs11"
	"github.com/scepkit/scepkit/hsmtest"
	"github.com/scepkit/scepkit/scep"
)

// A rig is a key in a token that misbehaves on command.
type rig struct {
	*hsmtest.Injector
	t     *testing.T
	token *pkcs11.Token
	id    *scep.Identity
}

func newRig(t *testing.T, change ...func(*pkcs11.Config)) *rig {
	t.Helper()
	plain := hsmtest.SoftHSM(t)
	identity(t, plain, "key", backend.Spec{Decrypt: true})
	r := &rig{Injector: hsmtest.Fault(t, plain), t: t}
	c := config(t, r.Token)
	for _, f := range change {
		f(&c)
	}
	r.token = open(t, c)
	r.id = must(r.token.Identity(t.Context(), "key"))
	t.Cleanup(func() {
		if n := r.Overlaps(); n != 0 {
			t.Errorf("the library was finalized %d times while a call was inside", n)
		}
	})
	return r
}

var digest = sha256.Sum256([]byte("what is signed"))

func (r *rig) sign(ctx context.Context) error {
	_, err := r.id.Key.(interface {
		SignContext(context.Context, io.Reader, []byte, crypto.SignerOpts) ([]byte, error)
	}).SignContext(ctx, nil, digest[:], crypto.SHA256)
	return err
}

func (r *rig) pub() *rsa.PublicKey { return r.id.Key.Public().(*rsa.PublicKey) }

func (r *rig) unwrap(ctx context.Context, block []byte) ([]byte, error) {
	return r.id.Key.(scep.Unwrapper).UnwrapKey(ctx, block, 16, &rsa.PKCS1v15DecryptOptions{})
}

// decrypt opens a good block.
func (r *rig) decrypt(ctx context.Context) error {
	want := make([]byte, 16)
	rand.Read(want)
	got, err := r.unwrap(ctx, must(rsa.EncryptPKCS1v15(rand.Reader, r.pub(), want)))
	if err == nil && !bytes.Equal(got, want) {
		err = errors.New("decrypted to something else")
	}
	return err
}

// hostile is a block that holds no key.
func (r *rig) hostile() []byte {
	b := make([]byte, r.pub().Size())
	rand.Read(b[1:])
	return b
}

// crowd calls f in so many goroutines until stop is called, which returns how many calls there
// were and the errors.
func (r *rig) crowd(n int, f func() error) (count *atomic.Int64, stop func() []error) {
	var mu sync.Mutex
	var errs []error
	var wg sync.WaitGroup
	end := make(chan struct{})
	count = new(atomic.Int64)
	for range n {
		wg.Go(func() {
			for {
				select {
				case <-end:
					return
				default:
				}
				if err := f(); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
				count.Add(1)
			}
		})
	}
	return count, func() []error { close(end); wg.Wait(); return errs }
}

// past waits until count has grown by n.
func past(t *testing.T, count *atomic.Int64, n int64) {
	t.Helper()
	for from := count.Load(); count.Load() < from+n; {
		if t.Context().Err() != nil {
			t.Fatal("the test ended")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestSessionsLost(t *testing.T) {
	r := newRig(t)
	count, stop := r.crowd(8, func() error { return errors.Join(r.sign(t.Context()), r.decrypt(t.Context())) })
	for range 10 {
		past(t, count, 20)
		r.Drop()
	}
	r.Poison(1)
	past(t, count, 50)
	for _, err := range stop() {
		t.Error(err)
	}
	if s := r.token.Stats(); s.Reopened < 10 || s.Logins != s.Reopened+1 || int(s.Logins) != r.Calls("C_Login") {
		t.Errorf("%+v, and %d times C_Login", s, r.Calls("C_Login"))
	}
}

// Each of these errors, once, is not seen by anybody who signs.
func TestMended(t *testing.T) {
	r := newRig(t)
	for _, fault := range []struct {
		call string
		rv   uint
	}{
		{"C_SignInit", p11.CKR_SESSION_HANDLE_INVALID}, {"C_SignInit", p11.CKR_DEVICE_REMOVED}, {"C_SignInit", p11.CKR_TOKEN_NOT_PRESENT},
		{"C_SignInit", p11.CKR_USER_NOT_LOGGED_IN}, {"C_SignInit", p11.CKR_KEY_HANDLE_INVALID}, {"C_SignInit", p11.CKR_OBJECT_HANDLE_INVALID},
		{"C_SignInit", p11.CKR_OPERATION_ACTIVE}, {"C_SignInit", p11.CKR_GENERAL_ERROR}, {"C_SignInit", p11.CKR_DEVICE_MEMORY},
		{"C_Sign", p11.CKR_SESSION_CLOSED}, {"C_Sign", p11.CKR_DEVICE_ERROR}, {"C_Sign", p11.CKR_FUNCTION_FAILED}, {"C_Sign", p11.CKR_GENERAL_ERROR},
		{"C_Sign", p11.CKR_OPERATION_NOT_INITIALIZED}, {"C_Sign", p11.CKR_HOST_MEMORY},
	} {
		r.Fail(fault.call, fault.rv, 1, 0)
		if err := r.sign(t.Context()); err != nil {
			t.Errorf("%s with %#x: %v", fault.call, fault.rv, err)
		}
		if err := errors.Join(r.sign(t.Context()), r.decrypt(t.Context())); err != nil {
			t.Errorf("after %s with %#x: %v", fault.call, fault.rv, err)
		}
	}
}

// Two of them are one too many for an operation, but for no other.
func TestNotMended(t *testing.T) {
	r := newRig(t)
	r.Fail("C_Sign", p11.CKR_DEVICE_ERROR, -1, 0)
	if err := r.sign(t.Context()); !errors.Is(err, backend.ErrUnavailable) {
		t.Errorf("error is %v", err)
	}
	if err := r.token.Check(t.Context()); !errors.Is(err, backend.ErrUnavailable) {
		t.Errorf("Check: %v", err)
	}
	// A key that cannot be used is not asked for by one login after the other.
	logins := r.Calls("C_Login")
	for range 50 {
		r.sign(t.Context())
	}
	if n := r.Calls("C_Login") - logins; n > 3 {
		t.Errorf("%d logins for 50 signatures", n)
	}
	r.Fail("C_Sign", 0, 0, 0)
	heals(t, r)
}

// heals wants signatures within 5 seconds, which is what is promised; a busy machine gets twice that.
func heals(t *testing.T, r *rig) {
	t.Helper()
	begin := time.Now()
	for r.sign(t.Context()) != nil {
		if time.Since(begin) > time.Minute {
			t.Fatal("the token does not heal")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if d := time.Since(begin); d > 10*time.Second {
		t.Errorf("healed after %v", d)
	}
	if err := r.decrypt(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestHostileBlocks(t *testing.T) {
	r := newRig(t)
	_, stop := r.crowd(4, func() error { return r.sign(t.Context()) })
	seen := map[string]bool{}
	for i := range 200 {
		got, err := r.unwrap(t.Context(), r.hostile())
		if err != nil || len(got) != 16 || seen[string(got)] {
			t.Fatalf("%d: %x, %v", i, got, err)
		}
		seen[string(got)] = true
	}
	for _, err := range stop() {
		t.Error(err)
	}
	if s := r.token.Stats(); s.Reopened != 0 || s.Logins != 1 {
		t.Errorf("hostile blocks had the token opened again: %+v", s)
	}
}

// Whatever a token says of a malformed block, the answer is random bytes, and soon the token is
// not opened again for it.
func TestHostileErrors(t *testing.T) {
	for _, rv := range []uint{
		p11.CKR_ENCRYPTED_DATA_INVALID, p11.CKR_ENCRYPTED_DATA_LEN_RANGE, p11.CKR_DATA_INVALID, p11.CKR_ARGUMENTS_BAD, p11.CKR_GENERAL_ERROR,
		p11.CKR_FUNCTION_FAILED, p11.CKR_DEVICE_ERROR, p11.CKR_OPERATION_NOT_INITIALIZED, p11.CKR_FUNCTION_REJECTED,
	} {
		t.Run(p11.Error(rv).Error(), func(t *testing.T) {
			r := newRig(t)
			for i := range 10 {
				if err := r.decrypt(t.Context()); err != nil { // so that the next is not a block of our own
					t.Fatal(err)
				}
				n := 1 // after the call that asks for the length
				if i == 0 {
					n = 3 // and the same once again
				}
				r.FailAfter("C_Decrypt", rv, n, 1)
				got, err := r.unwrap(t.Context(), r.hostile())
				r.FailAfter("C_Decrypt", 0, 0, 0)
				if err != nil || len(got) != 16 {
					t.Fatalf("%x, %v", got, err)
				}
			}
			// Once for the error, and once for the session that is left in the middle of an
			// operation when it is the answer to the question for the length.
			if s := r.token.Stats(); s.Reopened > 2 {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestGarbled(t *testing.T) {
	r := newRig(t)
	if err := r.decrypt(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.Garble(20)
	for range 5 {
		if got, err := r.unwrap(t.Context(), r.hostile()); err != nil || len(got) != 16 {
			t.Errorf("%x, %v", got, err)
		}
	}
}

// A wrong signature never leaves.
func TestWrongSignature(t *testing.T) {
	r := newRig(t)
	r.FlipSignature(3)
	for range 3 {
		if err := r.sign(t.Context()); !errors.Is(err, backend.ErrUnavailable) || !strings.Contains(err.Error(), "does not verify") {
			t.Errorf("error is %v", err)
		}
	}
	if err := r.sign(t.Context()); err != nil {
		t.Error(err)
	}
}

// A PIN that was changed is tried once, whatever is asked how often, until somebody gives a new
// one.
func TestPINChanged(t *testing.T) {
	r := newRig(t)
	r.ChangePIN(t, "24681357")
	before := r.Calls("C_Login")
	r.Drop()
	count, stop := r.crowd(8, func() error { return r.sign(t.Context()) })
	past(t, count, 200)
	errs := stop()
	if n := r.Calls("C_Login") - before; n != 1 {
		t.Errorf("%d logins", n)
	}
	if len(errs) == 0 {
		t.Fatal("no error")
	}
	for _, err := range append(errs, r.token.Check(t.Context())) {
		if !errors.Is(err, backend.ErrPIN) || strings.Contains(err.Error(), "24681357") {
			t.Fatalf("error is %v", err)
		}
	}
	if err := r.token.Login(t.Context(), scep.NewSecret("wrong")); !errors.Is(err, backend.ErrPIN) {
		t.Errorf("Login: %v", err)
	}
	if err := r.token.Login(t.Context(), scep.NewSecret("24681357")); err != nil {
		t.Errorf("Login: %v", err)
	}
	if err := errors.Join(r.sign(t.Context()), r.token.Check(t.Context())); err != nil {
		t.Error(err)
	}
	if n := r.Calls("C_Login") - before; n != 3 {
		t.Errorf("%d logins", n)
	}
	if err := r.token.Login(t.Context(), scep.NewSecret("x")); err == nil {
		t.Error("Login without need")
	}
}

// A token that would lock is not logged in to.
func TestLastTry(t *testing.T) {
	for flag, says := range map[uint]string{p11.CKF_USER_PIN_FINAL_TRY: "takes one more PIN", p11.CKF_USER_PIN_LOCKED: "is locked"} {
		plain := hsmtest.SoftHSM(t)
		j := hsmtest.Fault(t, plain)
		j.TokenFlags(flag)
		_, err := pkcs11.Open(config(t, j.Token))
		refused(t, err, backend.ErrPIN, says)
		if n := j.Calls("C_Login"); n != 0 {
			t.Errorf("%d logins", n)
		}
	}
	r := newRig(t)
	r.TokenFlags(p11.CKF_USER_PIN_FINAL_TRY)
	r.Drop()
	if err := r.sign(t.Context()); !errors.Is(err, backend.ErrPIN) {
		t.Errorf("error is %v", err)
	}
	if n := r.Calls("C_Login"); n != 1 {
		t.Errorf("%d logins", n)
	}
}

// A token that hangs holds up nobody beyond the time given, and no more calls than it has
// sessions.
func TestHang(t *testing.T) {
	r := newRig(t, func(c *pkcs11.Config) { c.Sessions, c.Timeout = 4, time.Second })
	before := runtime.NumGoroutine()
	release := r.Hang("C_Sign")
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			begin := time.Now()
			err := r.sign(ctx)
			if err == nil || !errors.Is(err, backend.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error is %v", err)
			}
			if d := time.Since(begin); d > 20*time.Second {
				t.Errorf("answered after %v", d)
			}
		})
	}
	wg.Wait()
	if s := r.token.Stats(); s.Overdue == 0 || s.Inside > 4 {
		t.Errorf("%+v", s)
	}
	if n := runtime.NumGoroutine() - before; n > 10 {
		t.Errorf("%d goroutines more than before", n)
	}
	if err := r.token.Check(t.Context()); !errors.Is(err, backend.ErrUnavailable) || !strings.Contains(err.Error(), "have not come back") {
		t.Errorf("Check: %v", err)
	}
	_, err := pkcs11.Open(config(t, r.Token)) // nor is another user of the module
	refused(t, err, backend.ErrUnavailable, "have not come back")
	release()
	heals(t, r)
	if n := r.MaxConcurrent("C_Sign"); n > 4 {
		t.Errorf("%d calls of C_Sign at once", n)
	}
	time.Sleep(1100 * time.Millisecond) // Check has a memory of a second
	if err := r.token.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if s := r.token.Stats(); s.Overdue != 0 || s.Inside != 0 {
		t.Errorf("%+v", s)
	}
}

// One session that hangs takes no other with it.
func TestOneHangs(t *testing.T) {
	r := newRig(t, func(c *pkcs11.Config) { c.Timeout = time.Second })
	release := r.Hang("C_Decrypt")
	if err := r.decrypt(t.Context()); !errors.Is(err, backend.ErrUnavailable) {
		t.Errorf("error is %v", err)
	}
	for range 20 {
		if err := r.sign(t.Context()); err != nil {
			t.Error(err)
		}
	}
	release()
	heals(t, r)
}

func TestCloseWhileHanging(t *testing.T) {
	plain := hsmtest.SoftHSM(t)
	identity(t, plain, "key", backend.Spec{Decrypt: true})
	j := hsmtest.Fault(t, plain)
	c := config(t, j.Token)
	c.Timeout = time.Second
	token := must(pkcs11.Open(c))
	id := must(token.Identity(t.Context(), "key"))
	release := j.Hang("C_Sign")
	if _, err := id.Key.Sign(nil, digest[:], crypto.SHA256); !errors.Is(err, backend.ErrUnavailable) {
		t.Errorf("error is %v", err)
	}
	if err := token.Close(); !errors.Is(err, backend.ErrUnavailable) {
		t.Errorf("Close: %v", err)
	}
	if n := j.Calls("C_Finalize"); n != 1 { // that of looking for the token
		t.Errorf("%d times C_Finalize", n)
	}
	release()
	for j.Calls("C_Finalize") < 2 { // by itself
		if t.Context().Err() != nil {
			t.Fatal("the module is never let go")
		}
		time.Sleep(time.Millisecond)
	}
	if err := token.Close(); err != nil {
		t.Error(err)
	}
	if _, err := id.Key.Sign(nil, digest[:], crypto.SHA256); !errors.Is(err, backend.ErrUnavailable) {
		t.Errorf("error is %v", err)
	}
	if j.Overlaps() != 0 {
		t.Error("finalized while a call was inside")
	}
	must(0, open(t, c).Close()) // and can be opened anew
}

func TestOpenHangs(t *testing.T) {
	for _, call := range []string{"C_Initialize", "C_GetSlotList", "C_OpenSession", "C_Login"} {
		t.Run(call, func(t *testing.T) {
			j := hsmtest.Fault(t, hsmtest.SoftHSM(t))
			release := j.Hang(call)
			c := config(t, j.Token)
			c.Timeout = time.Second
			_, err := pkcs11.Open(c)
			refused(t, err, backend.ErrUnavailable, "have not come back")
			release()
			for {
				token, err := pkcs11.Open(c)
				if err == nil {
					must(0, token.Close())
					break
				}
				if !errors.Is(err, backend.ErrUnavailable) {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
}

func TestCloseUnderLoad(t *testing.T) {
	r := newRig(t)
	count, stop := r.crowd(16, func() error { return r.sign(t.Context()) })
	past(t, count, 100)
	if err := r.token.Close(); err != nil {
		t.Error(err)
	}
	past(t, count, 100)
	for _, err := range stop() {
		if !errors.Is(err, backend.ErrUnavailable) {
			t.Error(err)
		}
	}
}

// A token taken away and put back is found again.
func TestPulled(t *testing.T) {
	r := newRig(t)
	r.Hide(t)
	r.Drop()
	if err := r.sign(t.Context()); !errors.Is(err, backend.ErrUnavailable) {
		t.Errorf("error is %v", err)
	}
	if err := r.token.Check(t.Context()); !errors.Is(err, backend.ErrUnavailable) || !strings.Contains(err.Error(), "not found in slot list") {
		t.Errorf("Check: %v", err)
	}
	r.Restore(t)
	heals(t, r)
}

// A token without decryption by PKCS #1 v1.5 says so when the key is opened.
func TestNoDecryption(t *testing.T) {
	plain := hsmtest.SoftHSM(t)
	identity(t, plain, "key", backend.Spec{Decrypt: true})
	j := hsmtest.Fault(t, plain)
	j.DenyMechanism(p11.CKM_RSA_PKCS, p11.CKF_DECRYPT)
	key := must(backend.Open(t.Context(), j.URI("key"), pkcs11.Driver{}))
	defer key.Close()
	if _, ok := key.Key.(scep.Unwrapper); ok {
		t.Error("the key decrypts")
	}
	said := false
	for _, a := range key.Description {
		said = said || strings.Contains(a.Value, "CKM_RSA_PKCS")
	}
	if !said {
		t.Errorf("description is %v", key.Description)
	}
}

// Two tokens of one module are lost and found together, and one that stays away does no harm to
// the other.
func TestTwoTokens(t *testing.T) {
	r := newRig(t)
	other := hsmtest.SoftHSM(t)
	identity(t, other, "key", backend.Spec{})
	c := config(t, other)
	c.Module = r.Module
	second := &rig{Injector: r.Injector, t: t, token: open(t, c)}
	second.id = must(second.token.Identity(t.Context(), "key"))
	both := func() error { return errors.Join(r.sign(t.Context()), second.sign(t.Context())) }
	if err := both(); err != nil {
		t.Fatal(err)
	}
	r.Drop()
	if err := both(); err != nil {
		t.Error(err)
	}
	other.Hide(t)
	r.Drop()
	if err := r.sign(t.Context()); err != nil {
		t.Error(err)
	}
	if err := second.sign(t.Context()); !errors.Is(err, backend.ErrUnavailable) {
		t.Errorf("error is %v", err)
	}
	if err := r.sign(t.Context()); err != nil {
		t.Error(err)
	}
	other.Restore(t)
}
