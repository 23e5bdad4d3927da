//go:build cgo

package hsmtest_test

import (
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/scepkit/scepkit/hsmtest"
)

func TestRemote(t *testing.T) {
	k := hsmtest.SoftHSM(t)
	k.Generate(t, "ca", "01", "rsa:2048")
	r := hsmtest.Remote(t, k)
	s := open(t, r.Token)
	s.works(t, "ca")
	key := s.one(t, pkcs11.CKO_PRIVATE_KEY, "ca")

	r.Kill()
	_, err := s.sign(key, "message")
	rv(t, err, pkcs11.CKR_DEVICE_ERROR)
	r.Start()
	_, err = s.sign(key, "message") // for ever
	rv(t, err, pkcs11.CKR_DEVICE_ERROR)
	must(t, s.Finalize())
	must(t, s.Initialize())
	s = login(t, s.Ctx, r.Token)
	s.works(t, "ca")

	r.Restart()
	must(t, s.Finalize())
	r.Kill()
	must(t, s.Initialize())
	if _, err := slot(s.Ctx, r.Token); err == nil {
		t.Error("there is a token without a server")
	}
	must(t, s.Finalize())
	r.Start()
	must(t, s.Initialize())
	login(t, s.Ctx, r.Token).works(t, "ca")
}

// Faults can be put before the client and before the token behind the server.
func TestRemoteFault(t *testing.T) {
	k := hsmtest.SoftHSM(t)
	k.Generate(t, "ca", "01", "rsa:2048")
	behind := hsmtest.Fault(t, k)
	before := hsmtest.Fault(t, hsmtest.Remote(t, behind.Token).Token)
	s := open(t, before.Token)
	key := s.one(t, pkcs11.CKO_PRIVATE_KEY, "ca")
	behind.Fail("C_SignInit", pkcs11.CKR_DEVICE_MEMORY, 1, 0)
	before.Fail("C_SignInit", pkcs11.CKR_HOST_MEMORY, 1, 1)
	for _, want := range []uint{pkcs11.CKR_DEVICE_MEMORY, pkcs11.CKR_HOST_MEMORY, pkcs11.CKR_OK} {
		_, err := s.sign(key, "message")
		rv(t, err, want)
	}
}

// NSS works, and answers a bad block as no other token does.
func TestNSS(t *testing.T) {
	k := hsmtest.NSS(t)
	j := hsmtest.Fault(t, k)
	k.Generate(t, "ra", "01", "rsa:2048")
	s := open(t, j.Token)
	s.works(t, "ra")
	info, err := s.GetTokenInfo(s.slot)
	must(t, err)
	if info.SerialNumber != k.Serial {
		t.Errorf("the serial number is %q, want %q", k.Serial, info.SerialNumber)
	}

	key := s.one(t, pkcs11.CKO_PRIVATE_KEY, "ra")
	block := encrypt(t, s.public(t, "ra"), "sixteen byte key")
	plain, err := s.decrypt(key, block)
	must(t, err)
	if string(plain) != "sixteen byte key" {
		t.Errorf("the plaintext is %x", plain)
	}
	bad := make([]byte, 256)
	bad[255] = 2 // what decrypts is random: its padding is bad but once in 2^16
	if _, err := s.decrypt(key, bad); err != nil {
		t.Errorf("a bad block gives %v, want success", err)
	}
	j.Fail("C_Login", pkcs11.CKR_PIN_LOCKED, 1, 0)
	must(t, s.Logout(s.h))
	rv(t, s.Login(s.h, pkcs11.CKU_USER, k.PIN), pkcs11.CKR_PIN_LOCKED)
	must(t, s.Login(s.h, pkcs11.CKU_USER, k.PIN))
}

// NSS can be had again, once the test before has ended.
func TestNSSAgain(t *testing.T) {
	for range 2 {
		t.Run("", func(t *testing.T) {
			k := hsmtest.NSS(t)
			k.Generate(t, "ra", "01", "EC:prime256v1")
			s := open(t, k)
			if n := len(s.find(t, pkcs11.CKO_PRIVATE_KEY, "ra")); n != 1 {
				t.Errorf("there are %d keys, want 1", n)
			}
		})
	}
}
