//lint:file-ignore SA1019 SCEP devices send PKCS #1 v1.5

package tpm

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/hsmtest"
	"github.com/scepkit/scepkit/scep"
)

// dialer makes a Config.Dial of a test's TPM.
func dialer(c *hsmtest.Chip) func(context.Context) (io.ReadWriteCloser, error) {
	return func(ctx context.Context) (io.ReadWriteCloser, error) {
		conn, err := c.Dial(ctx)
		if err != nil {
			return nil, err
		}
		return conn, nil
	}
}

func open(t testing.TB, c *hsmtest.Chip, timeout time.Duration) *TPM {
	t.Helper()
	tpm, err := Open(Config{Dial: dialer(c), Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tpm.Close() })
	return tpm
}

// create makes a key in a directory of the test.
func create(t testing.TB, tpm *TPM, spec backend.Spec) (*backend.Key, Name) {
	t.Helper()
	n := Name{File: filepath.Join(t.TempDir(), "ca.tpm")}
	k, err := tpm.Create(t.Context(), n, spec)
	if err != nil {
		t.Fatal(err)
	}
	return k, n
}

// sign has the key sign something; the signature was verified if there is no error.
func sign(ctx context.Context, k *backend.Key) error {
	return signWith(ctx, k, crypto.SHA256)
}

func signWith(ctx context.Context, k *backend.Key, opts crypto.SignerOpts) error {
	digest := make([]byte, opts.HashFunc().Size())
	rand.Read(digest)
	type signer interface {
		SignContext(ctx context.Context, rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error)
	}
	sig, err := k.Key.(signer).SignContext(ctx, nil, digest, opts)
	if err == nil && len(sig) == 0 {
		return errors.New("no signature and no error")
	}
	return err
}

// unwrap encrypts a key to k and decrypts it.
func unwrap(ctx context.Context, k *backend.Key) error {
	secret := make([]byte, 24)
	rand.Read(secret)
	block, err := rsa.EncryptPKCS1v15(rand.Reader, k.Key.Public().(*rsa.PublicKey), secret)
	if err != nil {
		return err
	}
	got, err := k.Key.(scep.Unwrapper).UnwrapKey(ctx, block, len(secret), &rsa.PKCS1v15DecryptOptions{})
	if err != nil {
		return err
	}
	if string(got) != string(secret) {
		return errors.New("something else came out than was encrypted, and no error")
	}
	return nil
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// selfSigned returns a CA certificate for key.
func selfSigned(t testing.TB, key crypto.Signer) *x509.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return must(x509.ParseCertificate(der))
}

// writeChain writes certificates to a file of the test.
func writeChain(t testing.TB, certs ...*x509.Certificate) string {
	t.Helper()
	var data []byte
	for _, c := range certs {
		data = append(data, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	name := filepath.Join(t.TempDir(), "chain.pem")
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// checkError fails unless err is of the class, starts with the package and says what it should.
func checkError(t testing.TB, err, class error, says string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error; should be one that says %q", says)
		return
	}
	if !strings.HasPrefix(err.Error(), "tpm: ") {
		t.Errorf("error %q does not start with the package", err)
	}
	if !strings.Contains(err.Error(), says) {
		t.Errorf("error %q does not say %q", err, says)
	}
	for _, e := range []error{backend.ErrNotFound, backend.ErrAmbiguous, backend.ErrMismatch, backend.ErrUnsupported, backend.ErrUnavailable, backend.ErrPIN} {
		if errors.Is(err, e) != (e == class) {
			t.Errorf("errors.Is(%q, %q) is %v", err, e, errors.Is(err, e))
		}
	}
}

// loadedNow lists what is in the TPM: objects and sessions.
func loadedNow(t testing.TB, c *hsmtest.Chip) string {
	t.Helper()
	tpm, err := Open(Config{Dial: dialer(c)})
	if err != nil {
		t.Fatal(err)
	}
	defer tpm.Close()
	out, err := run(t.Context(), tpm, time.Minute, func(o *op) (string, error) {
		var all []string
		for _, first := range []uint32{0x80000000, 0x02000000, 0x03000000} {
			hs, err := o.handles(first)
			if err != nil {
				return "", err
			}
			for _, h := range hs {
				all = append(all, fmt.Sprintf("%#x", uint32(h)))
			}
		}
		return strings.Join(all, " "), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var digest = sha256.Sum256([]byte("what is signed"))
