//lint:file-ignore SA1019 SCEP devices send PKCS #1 v1.5

package tpm

import (
	"crypto"
	"crypto/rsa"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/hsmtest"
	"github.com/scepkit/scepkit/scep"
)

func TestEveryKind(t *testing.T) {
	chip := hsmtest.TPM(t)
	tpm := open(t, chip, 0)
	for _, kind := range []backend.KeyType{backend.RSA2048, backend.RSA3072, backend.P256, backend.P384} {
		t.Run(kind.String(), func(t *testing.T) {
			isRSA := kind == backend.RSA2048 || kind == backend.RSA3072
			made, n := create(t, tpm, backend.Spec{KeyType: kind, Decrypt: isRSA})
			opened, err := tpm.OpenKey(t.Context(), n)
			if err != nil {
				t.Fatal(err)
			}
			t.Log(opened.Description)
			for _, k := range []*backend.Key{made, opened} {
				all := []crypto.SignerOpts{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512}
				if isRSA {
					for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
						all = append(all, &rsa.PSSOptions{Hash: h, SaltLength: rsa.PSSSaltLengthEqualsHash}, &rsa.PSSOptions{Hash: h, SaltLength: rsa.PSSSaltLengthAuto})
					}
				}
				for _, opts := range all {
					if err := signWith(t.Context(), k, opts); err != nil {
						t.Errorf("%#v: %v", opts, err)
					}
				}
				if !isRSA {
					if _, ok := k.Key.(scep.Unwrapper); ok {
						t.Error("an ECC key decrypts")
					}
					continue
				}
				for range 3 {
					if err := unwrap(t.Context(), k); err != nil {
						t.Error(err)
					}
				}
				err := signWith(t.Context(), k, &rsa.PSSOptions{Hash: crypto.SHA256, SaltLength: 20})
				checkError(t, err, backend.ErrUnsupported, "20 bytes of salt")
			}
		})
	}
	tpm.Close()
	if s := loadedNow(t, chip); s != "" {
		t.Errorf("after Close there is in the TPM: %s", s)
	}
}

func TestSignOnly(t *testing.T) {
	tpm := open(t, hsmtest.TPM(t), 0)
	k, _ := create(t, tpm, backend.Spec{})
	if _, ok := k.Key.(scep.Unwrapper); ok {
		t.Error("a key made without Decrypt decrypts")
	}
	if a := attribute(k, "protection"); a != "fixedTPM fixedParent sensitiveDataOrigin userWithAuth noDA sign, authorization value" {
		t.Errorf("protection is %q", a)
	}
}

func attribute(k *backend.Key, name string) string {
	for _, a := range k.Description {
		if a.Name == name {
			return a.Value
		}
	}
	return ""
}

func TestCreateFiles(t *testing.T) {
	tpm := open(t, hsmtest.TPM(t), 0)
	k, n := create(t, tpm, backend.Spec{KeyType: backend.P256})
	for _, name := range []string{n.File, n.File + ".auth"} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != 0o600 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
	}
	auth := must(os.ReadFile(n.File + ".auth"))
	if len(auth) != maxAuth+1 {
		t.Errorf("the authorization value has %d bytes", len(auth)-1)
	}
	for _, a := range k.Description {
		if strings.Contains(a.Value, strings.TrimSpace(string(auth))) {
			t.Errorf("the description has the authorization value: %v", a)
		}
	}

	_, err := tpm.Create(t.Context(), n, backend.Spec{KeyType: backend.P256})
	checkError(t, err, nil, "open the key")
	if !errors.Is(err, fs.ErrExist) {
		t.Errorf("the error does not wrap fs.ErrExist: %v", err)
	}
	// As a crash leaves it before there is a key.
	os.Remove(n.File)
	if _, err := tpm.Create(t.Context(), n, backend.Spec{KeyType: backend.P256}); err != nil {
		t.Error(err)
	}
	if _, err := tpm.OpenKey(t.Context(), n); err != nil {
		t.Error(err)
	}
	if got := must(os.ReadFile(n.File + ".auth")); string(got) != string(auth) {
		t.Error("the authorization value was overwritten")
	}

	n.File, n.AuthSource = n.File+".other", "env:SCEPKIT_TEST_AUTH"
	t.Setenv("SCEPKIT_TEST_AUTH", strings.Repeat("x", maxAuth+1))
	_, err = tpm.Create(t.Context(), n, backend.Spec{KeyType: backend.P256})
	checkError(t, err, backend.ErrPIN, "give at most 32")
	t.Setenv("SCEPKIT_TEST_AUTH", "hello")
	if _, err = tpm.Create(t.Context(), n, backend.Spec{KeyType: backend.P256}); err != nil {
		t.Fatal(err)
	}
	if _, err := tpm.OpenKey(t.Context(), n); err != nil {
		t.Error(err)
	}
	n.AuthSource = ""
	_, err = tpm.OpenKey(t.Context(), n)
	checkError(t, err, backend.ErrPIN, "auth-source=")
}

func TestUnknownKinds(t *testing.T) {
	chip := hsmtest.TPM(t)
	tpm := open(t, chip, 0)
	n := Name{File: t.TempDir() + "/ca.tpm"}
	_, err := tpm.Create(t.Context(), n, backend.Spec{KeyType: backend.RSA4096})
	checkError(t, err, backend.ErrUnsupported, "use rsa2048, rsa3072, p256, p384")
	t.Log(err)
	_, err = tpm.Create(t.Context(), n, backend.Spec{KeyType: backend.P256, Decrypt: true})
	checkError(t, err, backend.ErrUnsupported, "make an RSA key")
	_, err = tpm.Create(t.Context(), n, backend.Spec{KeyType: backend.Ed25519})
	checkError(t, err, backend.ErrUnsupported, "no TPM makes a key of kind ed25519")
	_, err = tpm.Create(t.Context(), Name{Handle: 0x81010000}, backend.Spec{})
	checkError(t, err, backend.ErrUnsupported, "tpm2_evictcontrol")
	if entries := must(os.ReadDir(n.File[:len(n.File)-7])); len(entries) != 0 {
		t.Errorf("files were left: %v", entries)
	}
}

func TestIdentity(t *testing.T) {
	tpm := open(t, hsmtest.TPM(t), 0)
	k, n := create(t, tpm, backend.Spec{KeyType: backend.P256})
	other, _ := create(t, tpm, backend.Spec{KeyType: backend.P256})
	cert := selfSigned(t, k.Key)

	id, err := tpm.Identity(t.Context(), n.File, writeChain(t, cert))
	if err != nil {
		t.Fatal(err)
	}
	if len(id.Certificates) != 1 || !id.Certificates[0].Equal(cert) {
		t.Errorf("certificates are %v", id.Certificates)
	}
	_, err = tpm.Identity(t.Context(), n.File, writeChain(t, selfSigned(t, other.Key)))
	checkError(t, err, backend.ErrMismatch, "name the two halves of one pair")
	_, err = tpm.Identity(t.Context(), n.File, writeChain(t))
	checkError(t, err, backend.ErrNotFound, "no CERTIFICATE block")
	_, err = tpm.Identity(t.Context(), n.File, "")
	checkError(t, err, backend.ErrNotFound, "name the file that has it")
	_, err = tpm.Identity(t.Context(), n.File+".no", "")
	checkError(t, err, backend.ErrNotFound, "correct the name")

	// Both in one file.
	data := append(must(os.ReadFile(n.File)), must(os.ReadFile(writeChain(t, cert)))...)
	if err := os.WriteFile(n.File, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, chain := range []string{"", n.File} {
		if _, err := tpm.Identity(t.Context(), n.File, chain); err != nil {
			t.Errorf("chain %q: %v", chain, err)
		}
	}
}

func TestKeyOfAnotherTPM(t *testing.T) {
	tpm := open(t, hsmtest.TPM(t), 0)
	_, n := create(t, tpm, backend.Spec{KeyType: backend.P256})
	chip := hsmtest.TPM(t)
	other := open(t, chip, 0)
	_, err := other.OpenKey(t.Context(), n)
	checkError(t, err, backend.ErrUnsupported, "made by another TPM")
	t.Log(err)

	// A TPM that is cleared while in use.
	k, _ := create(t, other, backend.Spec{Decrypt: true})
	chip.Clear()
	for _, err := range []error{sign(t.Context(), k), unwrap(t.Context(), k), k.Check(t.Context())} {
		checkError(t, err, backend.ErrUnsupported, "this is another TPM, it was cleared")
	}
}

func TestParentName(t *testing.T) {
	tpm := open(t, hsmtest.TPM(t), 0)
	k, n := create(t, tpm, backend.Spec{KeyType: backend.P256})
	n.ParentName = attribute(k, "parent name")
	if !strings.HasPrefix(n.ParentName, "000b") || len(n.ParentName) != 68 {
		t.Fatalf("the storage key is named %q", n.ParentName)
	}
	if _, err := tpm.OpenKey(t.Context(), n); err != nil {
		t.Error(err)
	}
	n.ParentName = n.ParentName[:66] + "00"
	_, err := tpm.OpenKey(t.Context(), n)
	checkError(t, err, backend.ErrUnsupported, "somebody is between")
	n.File += "2"
	_, err = tpm.Create(t.Context(), n, backend.Spec{KeyType: backend.P256})
	checkError(t, err, backend.ErrUnsupported, "somebody is between")
	n.ParentName = "no hex"
	_, err = tpm.Create(t.Context(), n, backend.Spec{KeyType: backend.P256})
	checkError(t, err, backend.ErrUnsupported, "68 digits")
}

func TestClose(t *testing.T) {
	chip := hsmtest.TPM(t)
	tpm := open(t, chip, 0)
	k, n := create(t, tpm, backend.Spec{Decrypt: true})
	again, err := tpm.OpenKey(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	checkError(t, sign(t.Context(), again), backend.ErrUnavailable, "the key was closed")
	checkError(t, unwrap(t.Context(), again), backend.ErrUnavailable, "the key was closed")
	if err := sign(t.Context(), k); err != nil {
		t.Errorf("closing one key closed another: %v", err)
	}
	start := time.Now()
	for range 2 {
		if err := tpm.Close(); err != nil {
			t.Error(err)
		}
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("Close took %v", d)
	}
	checkError(t, sign(t.Context(), k), backend.ErrUnavailable, "was closed")
	checkError(t, unwrap(t.Context(), k), backend.ErrUnavailable, "was closed")
	checkError(t, tpm.Check(t.Context()), backend.ErrUnavailable, "was closed")
	if s := loadedNow(t, chip); s != "" {
		t.Errorf("after Close there is in the TPM: %s", s)
	}
}

func TestOpenConfig(t *testing.T) {
	_, err := Open(Config{Timeout: -1})
	checkError(t, err, nil, "negative")
	_, err = Open(Config{Device: "unix:"})
	checkError(t, err, nil, "unix:/PATH")
	tpm, err := Open(Config{Device: "/dev/there-is-no-tpm"})
	if err != nil {
		t.Fatal(err)
	}
	defer tpm.Close()
	err = tpm.Check(t.Context())
	checkError(t, err, backend.ErrUnsupported, "use a key of file: or pkcs11:")
	t.Log(err)
	tpm2 := must(Open(Config{Device: "unix:/there/is/no/socket"}))
	defer tpm2.Close()
	err = tpm2.Check(t.Context())
	checkError(t, err, backend.ErrUnavailable, "connecting")
	t.Log(err)
}
