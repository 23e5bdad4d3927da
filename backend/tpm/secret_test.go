//lint:file-ignore SA1019 SCEP devices send PKCS #1 v1.5

package tpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"math/big"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/internal/custody"
	"github.com/scepkit/scepkit/hsmtest"
	"github.com/scepkit/scepkit/scep"
)

func TestBusShowsNoSecret(t *testing.T) {
	chip := hsmtest.TPM(t)
	stop := chip.Tap()
	tpm := open(t, chip, 0)
	k, n := create(t, tpm, backend.Spec{Decrypt: true})
	secret := []byte("a content key of 24 byte")
	block := must(rsa.EncryptPKCS1v15(rand.Reader, k.Key.Public().(*rsa.PublicKey), secret))
	got := must(k.Key.(scep.Unwrapper).UnwrapKey(t.Context(), block, len(secret), &rsa.PKCS1v15DecryptOptions{}))
	if !bytes.Equal(got, secret) {
		t.Fatal("decrypted to something else")
	}
	if err := sign(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	bus := stop()
	auth := bytes.TrimSpace(must(os.ReadFile(n.File + ".auth")))
	if len(bus) < 1000 || len(auth) != maxAuth {
		t.Fatalf("%d bytes on the bus, a value of %d", len(bus), len(auth))
	}
	if bytes.Contains(bus, auth) || bytes.Contains(bus, auth[:8]) {
		t.Error("the bus shows the authorization value")
	}
	if bytes.Contains(bus, secret) || bytes.Contains(bus, secret[:8]) {
		t.Error("the bus shows what was decrypted")
	}
}

func TestWrongAuthorization(t *testing.T) {
	chip := hsmtest.TPM(t)
	tpm := open(t, chip, 0)
	right, n := create(t, tpm, backend.Spec{Decrypt: true})
	t.Setenv("SCEPKIT_TEST_AUTH", "wrong")
	wrong := n
	wrong.AuthSource = "env:SCEPKIT_TEST_AUTH"
	for range 5 {
		_, err := tpm.OpenKey(t.Context(), wrong)
		checkError(t, err, backend.ErrPIN, "auth-source=")
	}
	// None of them counted against lockout.
	if v := lockoutCounter(t, tpm); v != 0 {
		t.Errorf("the lockout counter is %d", v)
	}
	if err := unwrap(t.Context(), right); err != nil {
		t.Error(err)
	}

	// A value that is wrong is not tried again.
	m, _, err := tpm.read(t.Context(), wrong)
	if err != nil {
		t.Fatal(err)
	}
	signer := must(custody.New(m.key, &device{t: tpm, m: m}, custody.Options{Name: "tpm: key"}))
	var last error
	before := 0
	for i := range 3 {
		_, last = signer.Sign(nil, digest[:], crypto.SHA256)
		checkError(t, last, backend.ErrPIN, "not tried any more")
		if i == 0 {
			before = chip.Commands()
		}
	}
	if n := chip.Commands(); n != before {
		t.Errorf("%d more commands for a key that was refused", n-before)
	}

	if err := os.Remove(n.File + ".auth"); err != nil {
		t.Fatal(err)
	}
	_, err = tpm.OpenKey(t.Context(), n)
	checkError(t, err, backend.ErrPIN, "restore the file")
}

// A wrong value for a key that is subject to lockout is tried once, and not again.
func TestWrongAuthorizationCountsOnce(t *testing.T) {
	tpm := open(t, hsmtest.TPM(t), 0)
	template := must(keyTemplate(backend.RSA2048, true))
	template.ObjectAttributes.NoDA = false
	ref := storageRef{handle: tpm2.TPMRHOwner}
	made, err := run(t.Context(), tpm, createTimeout, func(o *op) (*tpm2.CreateResponse, error) {
		return o.create(ref, nil, template, backend.RSA2048, []byte("right"))
	})
	if err != nil {
		t.Fatal(err)
	}
	n := Name{File: filepath.Join(t.TempDir(), "ca.tpm"), AuthSource: "env:SCEPKIT_TEST_AUTH"}
	if err := (&keyFile{storage: ref, public: made.OutPublic.Bytes(), private: made.OutPrivate.Buffer}).write(n.File, "", nil); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SCEPKIT_TEST_AUTH", "wrong")
	_, err = tpm.OpenKey(t.Context(), n)
	checkError(t, err, backend.ErrPIN, "not tried any more")
	if v := lockoutCounter(t, tpm); v != 1 {
		t.Errorf("the lockout counter is %d", v)
	}
	t.Setenv("SCEPKIT_TEST_AUTH", "right")
	if _, err = tpm.OpenKey(t.Context(), n); err != nil {
		t.Error(err)
	}
}

func lockoutCounter(t *testing.T, tpm *TPM) uint32 {
	t.Helper()
	v, err := run(t.Context(), tpm, time.Minute, func(o *op) (uint32, error) {
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTLockoutCounter), PropertyCount: 1}.Execute(o)
		if err != nil {
			return 0, err
		}
		list, err := rsp.CapabilityData.Data.TPMProperties()
		if err != nil {
			return 0, err
		}
		return list.TPMProperty[0].Value, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestWaitingCodes(t *testing.T) {
	chip := hsmtest.TPM(t)
	tpm := open(t, chip, time.Second)
	k, _ := create(t, tpm, backend.Spec{Decrypt: true})
	for _, rc := range []tpm2.TPMRC{tpm2.TPMRCRetry, tpm2.TPMRCTesting, tpm2.TPMRCYielded} {
		chip.Inject(uint32(rc), 3)
		if err := sign(t.Context(), k); err != nil {
			t.Errorf("%v: %v", rc, err)
		}
		chip.Inject(uint32(rc), -1)
		checkError(t, unwrap(t.Context(), k), backend.ErrUnavailable, "")
		chip.Inject(0, 0)
	}
	if err := unwrap(t.Context(), k); err != nil {
		t.Error(err)
	}
}

// A TPM in failure mode answers everything as it does bad padding.
func TestFailureMode(t *testing.T) {
	chip := hsmtest.TPM(t)
	tpm := open(t, chip, 0)
	k, _ := create(t, tpm, backend.Spec{Decrypt: true})
	chip.Inject(uint32(tpm2.TPMRCFailure), -1)
	checkError(t, unwrap(t.Context(), k), backend.ErrUnavailable, "failure mode")
	checkError(t, sign(t.Context(), k), backend.ErrUnavailable, "failure mode")
	checkError(t, tpm.Check(t.Context()), backend.ErrUnavailable, "failure mode")
	// One that recovers is used again.
	chip.Inject(0, 0)
	if err := unwrap(t.Context(), k); err != nil {
		t.Error(err)
	}
	chip.Inject(uint32(tpm2.TPMRCLockout), 1)
	checkError(t, sign(t.Context(), k), backend.ErrPIN, "tpm2_dictionarylockout")
	if err := sign(t.Context(), k); err != nil {
		t.Errorf("after lockout: %v", err)
	}
}

func TestGarbageBlocks(t *testing.T) {
	chip := hsmtest.TPM(t)
	tpm := open(t, chip, 0)
	k, _ := create(t, tpm, backend.Spec{Decrypt: true})
	pub := k.Key.Public().(*rsa.PublicKey)
	blocks := [][]byte{nil, {1}, make([]byte, 255), make([]byte, 256), make([]byte, 257), bytes.Repeat([]byte{0xff}, 256),
		pub.N.FillBytes(make([]byte, 256)), new(big.Int).Sub(pub.N, big.NewInt(1)).FillBytes(make([]byte, 256)), append(make([]byte, 255), 1)}
	for range 20 {
		b := make([]byte, 256)
		rand.Read(b[1:])
		blocks = append(blocks, b)
	}
	blocks = append(blocks, must(rsa.EncryptPKCS1v15(rand.Reader, pub, nil)), must(rsa.EncryptPKCS1v15(rand.Reader, pub, make([]byte, 245))))
	u := k.Key.(scep.Unwrapper)
	commands := map[int]int{}
	for _, opts := range []crypto.DecrypterOpts{&rsa.PKCS1v15DecryptOptions{}, &rsa.OAEPOptions{Hash: crypto.SHA256}} {
		for i, b := range blocks {
			before := chip.Commands()
			got, err := u.UnwrapKey(t.Context(), b, 16, opts)
			if err != nil || len(got) != 16 || bytes.Equal(got, make([]byte, 16)) {
				t.Errorf("%T, block %d: %x, %v", opts, i, got, err)
			}
			commands[chip.Commands()-before]++
		}
	}
	before := chip.Commands()
	if err := unwrap(t.Context(), k); err != nil {
		t.Error(err)
	}
	commands[chip.Commands()-before]++
	if len(commands) != 1 || commands[2] == 0 {
		t.Errorf("number of commands, and how often: %v; good and bad blocks must take two", commands)
	}
	for _, oaep := range []*rsa.OAEPOptions{{Hash: crypto.SHA1}, {Hash: crypto.SHA256}, {Hash: crypto.SHA512}, {Hash: crypto.SHA256, Label: []byte("label\x00")}} {
		block := must(rsa.EncryptOAEP(oaep.Hash.New(), rand.Reader, pub, []byte("0123456789abcdef"), oaep.Label))
		got, err := u.UnwrapKey(t.Context(), block, 16, oaep)
		if err != nil || string(got) != "0123456789abcdef" {
			t.Errorf("OAEP %v %q: %q, %v", oaep.Hash, oaep.Label, got, err)
		}
	}
	_, err := u.UnwrapKey(t.Context(), blocks[3], 16, &rsa.OAEPOptions{Hash: crypto.SHA256, Label: []byte("x")})
	checkError(t, err, backend.ErrUnsupported, "zero byte")
	_, err = u.UnwrapKey(t.Context(), blocks[3], 16, &rsa.OAEPOptions{Hash: crypto.SHA256, MGFHash: crypto.SHA1})
	checkError(t, err, backend.ErrUnsupported, "two hashes")
}

func TestManyGoroutines(t *testing.T) {
	chip := hsmtest.TPM(t)
	tpm := open(t, chip, time.Minute)
	k, _ := create(t, tpm, backend.Spec{Decrypt: true})
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			for range 3 {
				use := sign
				if i%2 == 0 {
					use = unwrap
				}
				if err := use(context.Background(), k); err != nil {
					t.Error(err)
				}
			}
			if i%8 == 0 {
				if err := k.Check(context.Background()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
