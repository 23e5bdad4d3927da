//go:build cgo

package hsmtest_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"math/big"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/scepkit/scepkit/hsmtest"
)

// A session is a logged-in session with a loaded module.
type session struct {
	*pkcs11.Ctx
	h    pkcs11.SessionHandle
	slot uint
}

// load initialises a module for the length of the test.
func load(t *testing.T, module string) *pkcs11.Ctx {
	t.Helper()
	ctx := pkcs11.New(module)
	if ctx == nil {
		t.Fatalf("%s does not load", module)
	}
	must(t, ctx.Initialize())
	t.Cleanup(func() { _ = ctx.Finalize() })
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// rv wants err to be a return value of PKCS#11.
func rv(t *testing.T, err error, want uint) {
	t.Helper()
	var got pkcs11.Error
	if want == pkcs11.CKR_OK && err == nil || errors.As(err, &got) && uint(got) == want {
		return
	}
	t.Fatalf("got %v, want %v", err, pkcs11.Error(want))
}

// slot returns the slot of the token.
func slot(ctx *pkcs11.Ctx, k *hsmtest.Token) (uint, error) {
	slots, err := ctx.GetSlotList(true)
	if err != nil {
		return 0, err
	}
	for _, s := range slots {
		if info, err := ctx.GetTokenInfo(s); err == nil && info.Label == k.Label {
			return s, nil
		}
	}
	return 0, errors.New("no such token")
}

func login(t *testing.T, ctx *pkcs11.Ctx, k *hsmtest.Token) session {
	t.Helper()
	s, err := slot(ctx, k)
	must(t, err)
	h, err := ctx.OpenSession(s, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	must(t, err)
	if err := ctx.Login(h, pkcs11.CKU_USER, k.PIN); err != pkcs11.Error(pkcs11.CKR_USER_ALREADY_LOGGED_IN) {
		must(t, err)
	}
	return session{ctx, h, s}
}

func open(t *testing.T, k *hsmtest.Token) session {
	t.Helper()
	return login(t, load(t, k.Module), k)
}

// find returns the objects of a class with a label.
func (s session) find(t *testing.T, class uint, label string) []pkcs11.ObjectHandle {
	t.Helper()
	must(t, s.FindObjectsInit(s.h, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, class), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label)}))
	found, _, err := s.FindObjects(s.h, 10)
	must(t, err)
	must(t, s.FindObjectsFinal(s.h))
	return found
}

func (s session) one(t *testing.T, class uint, label string) pkcs11.ObjectHandle {
	t.Helper()
	found := s.find(t, class, label)
	if len(found) != 1 {
		t.Fatalf("found %d objects, want 1", len(found))
	}
	return found[0]
}

var pkcs1 = []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS, nil)}

// sign signs with RSA, PKCS #1 v1.5 and SHA-256.
func (s session) sign(key pkcs11.ObjectHandle, message string) ([]byte, error) {
	digest := sha256.Sum256([]byte(message))
	if err := s.SignInit(s.h, pkcs1, key); err != nil {
		return nil, err
	}
	prefix := []byte{0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20}
	return s.Sign(s.h, append(prefix, digest[:]...))
}

func (s session) decrypt(key pkcs11.ObjectHandle, block []byte) ([]byte, error) {
	if err := s.DecryptInit(s.h, pkcs1, key); err != nil {
		return nil, err
	}
	return s.Decrypt(s.h, block)
}

// public reads the RSA public key with a label.
func (s session) public(t *testing.T, label string) *rsa.PublicKey {
	t.Helper()
	a, err := s.GetAttributeValue(s.h, s.one(t, pkcs11.CKO_PUBLIC_KEY, label), []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_MODULUS, nil), pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, nil)})
	must(t, err)
	return &rsa.PublicKey{N: new(big.Int).SetBytes(a[0].Value), E: int(new(big.Int).SetBytes(a[1].Value).Int64())}
}

func verify(pub *rsa.PublicKey, message string, signature []byte) error {
	digest := sha256.Sum256([]byte(message))
	return rsa.VerifyPKCS1v15(pub, crypto.SHA256, digest[:], signature)
}

// works wants a signature of the key that verifies.
func (s session) works(t *testing.T, label string) {
	t.Helper()
	signature, err := s.sign(s.one(t, pkcs11.CKO_PRIVATE_KEY, label), "message")
	must(t, err)
	must(t, verify(s.public(t, label), "message", signature))
}

// encrypt is what a device does that knows nothing better.
func encrypt(t *testing.T, pub *rsa.PublicKey, message string) []byte {
	t.Helper()
	//lint:ignore SA1019 the padding under test is this one
	block, err := rsa.EncryptPKCS1v15(rand.Reader, pub, []byte(message))
	must(t, err)
	return block
}
