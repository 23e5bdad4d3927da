package tpm

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/hsmtest"
	"github.com/scepkit/scepkit/scep"
)

// socketVar makes the test binary a program that connects its standard input and output to a
// socket, as tpm2-tss wants one to reach a TPM.
const socketVar = "SCEPKIT_TEST_TPM_SOCKET"

func TestMain(m *testing.M) {
	if path := os.Getenv(socketVar); path != "" {
		if err := forward(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func forward(path string) error {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	go func() {
		io.Copy(conn, os.Stdin)
		conn.Close()
	}()
	io.Copy(os.Stdout, conn)
	return nil
}

// needProvider makes sure of openssl with tpm2-openssl.
func needProvider(t *testing.T) {
	t.Helper()
	out, err := exec.Command("openssl", "list", "-providers", "-provider", "default").CombinedOutput()
	if err == nil {
		var dir []byte
		dir, err = exec.Command("openssl", "version", "-m").Output()
		_, path, _ := strings.Cut(strings.TrimSpace(string(dir)), `"`)
		if err == nil {
			_, err = os.Stat(filepath.Join(strings.TrimSuffix(path, `"`), "tpm2.so"))
		}
	}
	if err == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("tpm2-openssl is not installed: %v %s", err, out)
	}
	t.Skipf("tpm2-openssl is not installed: %v", err)
}

// openssl runs openssl with the TPM at socket.
func openssl(t *testing.T, socket string, args ...string) {
	t.Helper()
	args = slices.Insert(args, 1, "-provider", "tpm2", "-provider", "default")
	cmd := exec.Command("openssl", args...)
	cmd.Env = append(os.Environ(), "TPM2OPENSSL_TCTI=cmd:"+must(os.Executable()), socketVar+"="+socket)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("openssl %v: %v\n%s", args, err, out)
	}
}

// What tpm2-openssl makes, we open.
func TestOpenOpenSSLKey(t *testing.T) {
	needProvider(t)
	chip := hsmtest.TPM(t)
	socket := chip.Listen()
	for _, tt := range []struct {
		name, auth string
		args       []string
	}{
		{"RSA", "", []string{"-algorithm", "RSA", "-pkeyopt", "bits:2048"}},
		{"P-256", "", []string{"-algorithm", "EC", "-pkeyopt", "group:P-256"}},
		{"P-384", "", []string{"-algorithm", "EC", "-pkeyopt", "group:P-384"}},
		{"RSA with password", "a password", []string{"-algorithm", "RSA", "-pkeyopt", "user-auth:a password"}},
		{"P-256 with password", "secret", []string{"-algorithm", "EC", "-pkeyopt", "group:P-256", "-pkeyopt", "user-auth:secret"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			chip.Restart(true) // which takes out what openssl left
			dir := t.TempDir()
			n := Name{File: filepath.Join(dir, "ca.tpm")}
			openssl(t, socket, append([]string{"genpkey", "-out", n.File}, tt.args...)...)
			if tt.auth != "" {
				n.AuthSource = "file:" + filepath.Join(dir, "auth")
				if err := os.WriteFile(filepath.Join(dir, "auth"), []byte(tt.auth+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			tpm := open(t, chip, 0)
			defer tpm.Close()
			k, err := tpm.OpenKey(t.Context(), n)
			if err != nil {
				t.Fatal(err)
			}
			if a := attribute(k, "protection"); !strings.HasSuffix(a, ", subject to lockout") {
				t.Errorf("protection is %q", a)
			}
			if err := sign(t.Context(), k); err != nil {
				t.Error(err)
			}
			if strings.HasPrefix(tt.name, "RSA") {
				if err := unwrap(t.Context(), k); err != nil {
					t.Error(err)
				}
			}
			if tt.auth == "" {
				return
			}
			// Where it should be is not found: openssl writes no such file.
			_, err = tpm.OpenKey(t.Context(), Name{File: n.File})
			checkError(t, err, backend.ErrPIN, "auth-source=")
		})
	}
}

// What we make, tpm2-openssl opens.
func TestOpenSSLOpensKey(t *testing.T) {
	needProvider(t)
	chip := hsmtest.TPM(t)
	socket := chip.Listen()
	for _, kind := range []backend.KeyType{backend.RSA2048, backend.P256} {
		t.Run(kind.String(), func(t *testing.T) {
			chip.Restart(true)
			tpm := open(t, chip, 0)
			k, n := create(t, tpm, backend.Spec{KeyType: kind})
			tpm.Close() // makes room

			dir := filepath.Dir(n.File)
			message, sig := filepath.Join(dir, "message"), filepath.Join(dir, "signature")
			if err := os.WriteFile(message, []byte("what is signed"), 0o600); err != nil {
				t.Fatal(err)
			}
			openssl(t, socket, "pkeyutl", "-propquery", "?provider=tpm2", "-sign", "-rawin", "-digest", "sha256", "-inkey", n.File, "-passin", "file:"+n.File+".auth", "-in", message, "-out", sig)
			cert := &x509.Certificate{PublicKey: k.Key.Public()}
			alg := x509.SHA256WithRSA
			if kind == backend.P256 {
				cert.PublicKeyAlgorithm, alg = x509.ECDSA, x509.ECDSAWithSHA256
			} else {
				cert.PublicKeyAlgorithm = x509.RSA
			}
			if err := cert.CheckSignature(alg, []byte("what is signed"), must(os.ReadFile(sig))); err != nil {
				t.Errorf("openssl made a wrong signature: %v", err)
			}
		})
	}
}

// persist makes the storage key, and a key below it, persistent.
func persist(t *testing.T, tpm *TPM, n Name, at uint32) {
	t.Helper()
	m, _, err := tpm.read(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	_, err = run(t.Context(), tpm, tpm.timeout, func(o *op) (int, error) {
		k, _, err := o.useKey(m)
		if err != nil {
			return 0, err
		}
		owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
		_, err = tpm2.EvictControl{Auth: owner, ObjectHandle: &tpm2.NamedHandle{Handle: k.handle, Name: tpm2.TPM2BName{Buffer: m.name}}, PersistentHandle: tpm2.TPMHandle(at)}.Execute(o)
		if err != nil {
			return 0, err
		}
		s := o.t.held.storage
		_, err = tpm2.EvictControl{Auth: owner, ObjectHandle: &tpm2.NamedHandle{Handle: s.handle, Name: tpm2.TPM2BName{Buffer: s.name}}, PersistentHandle: 0x81000001}.Execute(o)
		return 0, err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestPersistentHandles(t *testing.T) {
	chip := hsmtest.TPM(t)
	tpm := open(t, chip, 0)
	made, n := create(t, tpm, backend.Spec{Decrypt: true})
	persist(t, tpm, n, 0x81010000)
	atHandle := Name{Handle: 0x81010000, AuthSource: "file:" + n.authFile()}

	k, err := tpm.OpenKey(t.Context(), atHandle)
	if err != nil {
		t.Fatal(err)
	}
	if !k.Key.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(made.Key.Public()) {
		t.Error("that is another key")
	}
	if _, ok := k.Key.(scep.Unwrapper); !ok {
		t.Error("it does not decrypt")
	}
	chip.Restart(false)
	if err := unwrap(t.Context(), k); err != nil {
		t.Error(err)
	}
	_, err = tpm.OpenKey(t.Context(), Name{Handle: 0x81010001})
	checkError(t, err, backend.ErrNotFound, "keeps no key there")
	_, err = tpm.OpenKey(t.Context(), Name{Handle: 0x80000001})
	checkError(t, err, backend.ErrUnsupported, "0x81000000 to 0x81ffffff")
	_, err = tpm.OpenKey(t.Context(), Name{Handle: 0x81000001}) // the storage key
	checkError(t, err, backend.ErrUnsupported, "restricted")
	_, err = tpm.OpenKey(t.Context(), Name{Handle: 0x81010000, File: "x"})
	checkError(t, err, backend.ErrAmbiguous, "name one")
	_, err = tpm.OpenKey(t.Context(), Name{})
	checkError(t, err, backend.ErrNotFound, "name one")

	// Keys below a persistent storage key, together with the others.
	below := Name{File: filepath.Join(t.TempDir(), "below.tpm"), Parent: 0x81000001}
	b, err := tpm.Create(t.Context(), below, backend.Spec{KeyType: backend.P256})
	if err != nil {
		t.Fatal(err)
	}
	if a := attribute(b, "parent"); a != "0x81000001" {
		t.Errorf("the parent is %s", a)
	}
	if b, err = tpm.OpenKey(t.Context(), Name{File: below.File}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		for _, k := range []*backend.Key{k, b, made} {
			if err := sign(t.Context(), k); err != nil {
				t.Error(err)
			}
		}
	}
	_, err = tpm.Create(t.Context(), Name{File: below.File + "2", Parent: 0x81000005}, backend.Spec{KeyType: backend.P256})
	checkError(t, err, backend.ErrUnsupported, "no storage key at 0x81000005")
	_, err = tpm.Create(t.Context(), Name{File: below.File + "2", Parent: 0x81010000}, backend.Spec{KeyType: backend.P256})
	checkError(t, err, backend.ErrUnsupported, "not a storage key")

	// The TPM is cleared: what was there is gone.
	chip.Clear()
	checkError(t, sign(t.Context(), k), backend.ErrUnsupported, "0x81010000")
	checkError(t, sign(t.Context(), b), backend.ErrUnsupported, "0x81000001")
}

func TestRSAParent(t *testing.T) {
	tpm := open(t, hsmtest.TPM(t), 0)
	template := must(keyTemplate(backend.P256, false))
	ref := storageRef{handle: tpm2.TPMRHOwner, rsa: true}
	made, err := run(t.Context(), tpm, createTimeout, func(o *op) (*tpm2.CreateResponse, error) {
		return o.create(ref, nil, template, backend.P256, nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	file := &keyFile{emptyAuth: true, storage: ref, public: made.OutPublic.Bytes(), private: made.OutPrivate.Buffer}
	n := Name{File: filepath.Join(t.TempDir(), "ca.tpm")}
	if err := file.write(n.File, "", nil); err != nil {
		t.Fatal(err)
	}
	k, err := tpm.OpenKey(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	if err := sign(t.Context(), k); err != nil {
		t.Error(err)
	}
	if a := attribute(k, "protection"); !strings.HasSuffix(a, "no authorization value") {
		t.Errorf("protection is %q", a)
	}
	if b, _ := pem.Decode(must(os.ReadFile(n.File))); b == nil || b.Type != blockType {
		t.Error("the file is not PEM")
	}
}
