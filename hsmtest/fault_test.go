//go:build cgo

package hsmtest_test

import (
	"bytes"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/scepkit/scepkit/hsmtest"
)

// injector returns an interposer before a token with an RSA key "ca", and a session through it.
func injector(t *testing.T) (*hsmtest.Injector, session, pkcs11.ObjectHandle) {
	t.Helper()
	k := hsmtest.SoftHSM(t)
	k.Generate(t, "ca", "01", "rsa:2048", "--usage-sign", "--usage-decrypt")
	j := hsmtest.Fault(t, k)
	s := open(t, j.Token)
	s.works(t, "ca")
	return j, s, s.one(t, pkcs11.CKO_PRIVATE_KEY, "ca")
}

// until waits for something that is bound to happen.
func until(f func() bool) {
	for !f() {
		time.Sleep(time.Millisecond)
	}
}

func TestFaultFail(t *testing.T) {
	j, s, key := injector(t)
	j.Fail("C_SignInit", pkcs11.CKR_DEVICE_REMOVED, 2, 1)
	before := j.Calls("C_SignInit")
	for _, want := range []uint{pkcs11.CKR_OK, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_OK} {
		_, err := s.sign(key, "message")
		rv(t, err, want)
	}
	if n := j.Calls("C_SignInit") - before; n != 4 {
		t.Errorf("%d calls were counted, want 4", n)
	}
	j.Fail("C_SignInit", pkcs11.CKR_VENDOR_DEFINED, -1, 0)
	for range 40 {
		rv(t, s.SignInit(s.h, pkcs1, key), pkcs11.CKR_VENDOR_DEFINED)
	}
	j.Fail("C_SignInit", 0, 0, 0)
	s.works(t, "ca")
}

func TestFaultFailAfter(t *testing.T) {
	j, s, key := injector(t)
	j.FailAfter("C_SignInit", pkcs11.CKR_DEVICE_ERROR, 1, 0)
	rv(t, s.SignInit(s.h, pkcs1, key), pkcs11.CKR_DEVICE_ERROR)
	rv(t, s.SignInit(s.h, pkcs1, key), pkcs11.CKR_OPERATION_ACTIVE)
}

func TestFaultPoison(t *testing.T) {
	j, s, key := injector(t)
	other := login(t, s.Ctx, j.Token)
	j.Poison(1)
	_, err := s.sign(key, "message")
	rv(t, err, pkcs11.CKR_FUNCTION_FAILED)
	_, err = s.sign(key, "message")
	rv(t, err, pkcs11.CKR_OPERATION_ACTIVE)
	other.works(t, "ca")
}

func TestFaultHang(t *testing.T) {
	j, s, key := injector(t)
	other := login(t, s.Ctx, j.Token)
	release := j.Hang("C_SignInit")
	done := make(chan error)
	go func() {
		_, err := s.sign(key, "message")
		done <- err
	}()
	until(func() bool { return j.Running("C_SignInit") == 1 })
	select {
	case err := <-done:
		t.Fatalf("a hung call returned %v", err)
	default:
	}
	if _, err := other.GetSessionInfo(other.h); err != nil { // other functions go on
		t.Error(err)
	}
	release()
	release()
	must(t, <-done)
	if n := j.Running("C_SignInit"); n != 0 {
		t.Errorf("%d calls are running", n)
	}
}

// A call still hung at the end of the test is released before cleanups registered earlier.
func TestFaultHangEnds(t *testing.T) {
	j, s, key := injector(t)
	done := make(chan error, 1)
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	j.Hang("C_Sign")
	go func() {
		_, err := s.sign(key, "message")
		done <- err
	}()
	until(func() bool { return j.Running("C_Sign") == 1 })
}

func TestFaultDelay(t *testing.T) {
	j, s, _ := injector(t)
	j.Delay("C_GetSessionInfo", 20*time.Millisecond)
	start := time.Now()
	_, err := s.GetSessionInfo(s.h)
	must(t, err)
	if d := time.Since(start); d < 20*time.Millisecond {
		t.Errorf("the call took %v", d)
	}
	j.Delay("C_GetSessionInfo", 0)
}

func TestFaultDrop(t *testing.T) {
	j, s, key := injector(t)
	j.Drop()
	_, err := s.sign(key, "message")
	rv(t, err, pkcs11.CKR_SESSION_HANDLE_INVALID)
	h, err := s.OpenSession(s.slot, pkcs11.CKF_SERIAL_SESSION)
	must(t, err)
	info, err := s.GetSessionInfo(h)
	must(t, err)
	if info.State != pkcs11.CKS_RO_PUBLIC_SESSION {
		t.Errorf("the state is %d: the login is still there", info.State)
	}
	login(t, s.Ctx, j.Token).works(t, "ca")
}

// Sessions vanish under eight signers, and nothing crashes.
func TestFaultDropLoad(t *testing.T) {
	j, first, _ := injector(t)
	pub := first.public(t, "ca")
	const drops, workers = 20, 8
	release := j.Hang("C_Sign")
	var reopen sync.Mutex // a login concerns all sessions
	var wg sync.WaitGroup
	signed := make(chan bool)
	stop := make(chan bool)
	for range workers {
		wg.Go(func() {
			var s *session
			for {
				select {
				case <-stop:
					return
				default:
				}
				if s == nil {
					reopen.Lock()
					s = &session{Ctx: first.Ctx, slot: first.slot}
					h, err := s.OpenSession(s.slot, pkcs11.CKF_SERIAL_SESSION)
					if err == nil {
						s.h = h
						_ = s.Login(h, pkcs11.CKU_USER, j.PIN)
					}
					reopen.Unlock()
				}
				var keys []pkcs11.ObjectHandle
				err := s.FindObjectsInit(s.h, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY)})
				if err == nil {
					keys, _, err = s.FindObjects(s.h, 1)
				}
				if err == nil {
					err = s.FindObjectsFinal(s.h)
				}
				if err != nil || len(keys) == 0 {
					s = nil
					continue
				}
				signature, err := s.sign(keys[0], "message")
				if err != nil {
					s = nil
					continue
				}
				if err := verify(pub, "message", signature); err != nil {
					t.Error(err)
				}
				select {
				case signed <- true:
				case <-stop:
					return
				}
			}
		})
	}
	until(func() bool { return j.Running("C_Sign") == workers })
	release()
	for range drops {
		j.Drop()
		for range 10 {
			<-signed
		}
	}
	close(stop)
	wg.Wait()
	if n := j.MaxConcurrent("C_Sign"); n != workers {
		t.Errorf("at most %d calls were running at once, want %d", n, workers)
	}
}

func TestFaultFlipSignature(t *testing.T) {
	j, s, key := injector(t)
	pub := s.public(t, "ca")
	j.FlipSignature(2)
	for i := range 3 {
		signature, err := s.sign(key, "message")
		must(t, err)
		if good := verify(pub, "message", signature) == nil; good != (i == 2) {
			t.Errorf("signature %d: good %v", i, good)
		}
	}
}

func TestFaultGarble(t *testing.T) {
	j, s, key := injector(t)
	block := encrypt(t, s.public(t, "ca"), "sixteen byte key")
	j.Garble(5)
	lengths := map[int]bool{}
	for i := range 5 {
		if i%2 == 1 {
			block[7] ^= 1 // now bad, now good
		}
		plain, err := s.decrypt(key, block)
		must(t, err)
		if bytes.Equal(plain, []byte("sixteen byte key")) || len(plain) > 245 {
			t.Errorf("the plaintext is %x", plain)
		}
		lengths[len(plain)] = true
	}
	if len(lengths) < 2 {
		t.Errorf("all lengths are %v", lengths)
	}
	plain, err := s.decrypt(key, block)
	must(t, err)
	if string(plain) != "sixteen byte key" {
		t.Errorf("after that the plaintext is %x", plain)
	}
}

func TestFaultTokenFlags(t *testing.T) {
	j, s, _ := injector(t)
	j.TokenFlags(pkcs11.CKF_USER_PIN_FINAL_TRY)
	info, err := s.GetTokenInfo(s.slot)
	must(t, err)
	if info.Flags&pkcs11.CKF_USER_PIN_FINAL_TRY == 0 || info.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
		t.Errorf("the flags are %#x", info.Flags)
	}
}

func TestFaultDenyMechanism(t *testing.T) {
	j, s, key := injector(t)
	listed := func() bool {
		list, err := s.GetMechanismList(s.slot)
		must(t, err)
		for _, m := range list {
			if m.Mechanism == pkcs11.CKM_RSA_PKCS {
				return true
			}
		}
		return false
	}
	j.DenyMechanism(pkcs11.CKM_RSA_PKCS, pkcs11.CKF_DECRYPT)
	info, err := s.GetMechanismInfo(s.slot, pkcs1)
	must(t, err)
	if info.Flags&pkcs11.CKF_DECRYPT != 0 || info.Flags&pkcs11.CKF_SIGN == 0 || !listed() {
		t.Errorf("listed %v with flags %#x", listed(), info.Flags)
	}
	rv(t, s.DecryptInit(s.h, pkcs1, key), pkcs11.CKR_MECHANISM_INVALID)
	s.works(t, "ca")

	j.DenyMechanism(pkcs11.CKM_RSA_PKCS, ^uint(0))
	_, err = s.GetMechanismInfo(s.slot, pkcs1)
	rv(t, err, pkcs11.CKR_MECHANISM_INVALID)
	rv(t, s.SignInit(s.h, pkcs1, key), pkcs11.CKR_MECHANISM_INVALID)
	if listed() {
		t.Error("the mechanism is listed")
	}
	j.DenyMechanism(pkcs11.CKM_RSA_PKCS, 0)
	s.works(t, "ca")
}

func TestFaultAttribute(t *testing.T) {
	j, s, key := injector(t)
	j.Attribute(pkcs11.CKA_ALWAYS_AUTHENTICATE, true)
	j.Attribute(pkcs11.CKA_SENSITIVE, false)
	a, err := s.GetAttributeValue(s.h, key, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_ALWAYS_AUTHENTICATE, nil), pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, nil),
		pkcs11.NewAttribute(pkcs11.CKA_SIGN, nil)})
	must(t, err)
	if a[0].Value[0] != 1 || a[1].Value[0] != 0 || a[2].Value[0] != 1 {
		t.Errorf("the attributes are %v %v %v, want 1 0 1", a[0].Value, a[1].Value, a[2].Value)
	}
}

// Who ends a module with a call inside is found out.
func TestFaultOverlaps(t *testing.T) {
	j, s, key := injector(t)
	if j.Overlaps() != 0 {
		t.Errorf("%d overlaps before there was one", j.Overlaps())
	}
	release := j.Hang("C_SignInit")
	done := make(chan error)
	go func() {
		_, err := s.sign(key, "message")
		done <- err
	}()
	until(func() bool { return j.Running("C_SignInit") == 1 })
	must(t, s.Finalize())
	release()
	rv(t, <-done, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED)
	if j.Overlaps() != 1 {
		t.Errorf("%d overlaps, want 1", j.Overlaps())
	}
}

// The token past the interposer works, and two interposers differ.
func TestFaultApart(t *testing.T) {
	j, s, key := injector(t)
	twin := hsmtest.Fault(t, j.Token) // one before the other
	j.Fail("C_SignInit", pkcs11.CKR_DEVICE_ERROR, -1, 0)
	twin.FlipSignature(1)
	_, err := s.sign(key, "message")
	rv(t, err, pkcs11.CKR_DEVICE_ERROR)
	before := j.Calls("C_Sign")
	j.Generate(t, "more", "02", "EC:prime256v1")
	j.Tool(t, "--list-objects")
	if j.Calls("C_Sign") != before || j.Calls("C_GenerateKeyPair") != 0 {
		t.Error("the tool's calls were counted")
	}
	if twin.Module == j.Module || twin.Calls("C_SignInit") != 0 {
		t.Error("the interposers are one")
	}
}

// The controls work on a child process too.
func TestFaultChild(t *testing.T) {
	k := hsmtest.SoftHSM(t)
	j := hsmtest.Fault(t, k)
	j.Fail("C_Login", pkcs11.CKR_PIN_LOCKED, 1, 0)
	cmd := exec.Command("pkcs11-tool", "--module", j.Module, "--login", "--pin", j.PIN, "--token-label", j.Label, "-O")
	cmd.Env = j.Env()
	if out, err := cmd.CombinedOutput(); err == nil || !bytes.Contains(out, []byte("CKR_PIN_LOCKED")) {
		t.Errorf("the child printed %s (%v)", out, err)
	}
	if j.Calls("C_Login") != 1 {
		t.Errorf("%d logins", j.Calls("C_Login"))
	}
}
