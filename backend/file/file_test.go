package file

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/internal/custody"
	"github.com/scepkit/scepkit/scep"
)

// Keys are made once: RSA ones take long.
var (
	rsaTestKey = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 2048)) })
	ecTestKey  = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) })
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// selfSigned returns a CA certificate for key.
func selfSigned(t *testing.T, cn string, key crypto.Signer) *x509.Certificate {
	t.Helper()
	return issued(t, cn, key.Public(), nil, key)
}

// issued returns a CA certificate for pub, signed by key, whose certificate is issuer; nil: self-signed.
func issued(t *testing.T, cn string, pub crypto.PublicKey, issuer *x509.Certificate, key crypto.Signer) *x509.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: cn},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	if issuer == nil {
		issuer = tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, issuer, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	return must(x509.ParseCertificate(der))
}

// write writes a file into a directory of the test and returns its name.
func write(t *testing.T, name string, data []byte, mode fs.FileMode) string {
	t.Helper()
	name = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
	return name
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func pkcs8(key any) []byte { return block("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(key))) }

func join(parts ...[]byte) []byte {
	var out []byte
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func TestOpen(t *testing.T) {
	rk, ek := rsaTestKey(), ecTestKey()
	_, edk, _ := ed25519.GenerateKey(rand.Reader)
	p384 := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	for _, tt := range []struct {
		name string
		key  crypto.Signer
		pem  []byte
	}{
		{"RSA PKCS8", rk, pkcs8(rk)},
		{"RSA PKCS1", rk, block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rk))},
		{"P-256 SEC1", ek, block("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(ek)))},
		{"P-256 SEC1 after its parameters", ek, join(block("EC PARAMETERS", []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7}), block("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(ek))))},
		{"P-384 PKCS8", p384, pkcs8(p384)},
		{"Ed25519 PKCS8", edk, pkcs8(edk)},
		{"CRLF and text around", ek, []byte("Bag Attributes\r\n" + strings.ReplaceAll(string(pkcs8(ek)), "\n", "\r\n") + "bye\r\n")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cert := selfSigned(t, "test", tt.key)
			for _, mode := range []fs.FileMode{0o600, 0o400, 0o640, 0o440} {
				key := write(t, "ca.key", tt.pem, mode)
				chain := write(t, "ca.pem", encodeCerts(cert), 0o644)
				id, err := Open(chain, key)
				if err != nil {
					t.Fatalf("mode %o: %v", mode, err)
				}
				if len(id.Certificates) != 1 || !id.Certificates[0].Equal(cert) {
					t.Errorf("certificates are %v", id.Certificates)
				}
				_, unwraps := id.Key.(scep.Unwrapper)
				_, decrypts := id.Key.(crypto.Decrypter)
				if _, isRSA := tt.key.(*rsa.PrivateKey); unwraps != isRSA || decrypts != isRSA {
					t.Errorf("RSA %v, but Unwrapper %v, Decrypter %v", isRSA, unwraps, decrypts)
				}
			}
		})
	}
}

func TestOpenOneFileAndChain(t *testing.T) {
	rootKey, key := rsaTestKey(), ecTestKey()
	root := selfSigned(t, "root", rootKey)
	sub := issued(t, "sub", key.Public(), root, rootKey)
	name := write(t, "all.pem", join(block("X509 CRL", []byte{1}), encodeCerts(sub), pkcs8(key), encodeCerts(root)), 0o600)
	id, err := Open(name, name)
	if err != nil {
		t.Fatal(err)
	}
	if len(id.Certificates) != 2 || !id.Certificates[0].Equal(sub) || !id.Certificates[1].Equal(root) {
		t.Errorf("certificates are not sub, root")
	}
	if runtime.GOOS != "windows" {
		link := filepath.Join(t.TempDir(), "link.pem")
		if err := os.Symlink(name, link); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(link, link); err != nil {
			t.Errorf("through a symbolic link: %v", err)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	rk, ek := rsaTestKey(), ecTestKey()
	other := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	p224 := must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))
	small := must(rsa.GenerateKey(rand.Reader, 1024))
	root := selfSigned(t, "root", rk)
	sub := issued(t, "sub", ek.Public(), root, rk)
	good, goodKey := encodeCerts(sub, root), pkcs8(ek)
	legacy := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: []byte{1},
		Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-128-CBC,00"}})

	for _, tt := range []struct {
		name       string
		chain, key []byte
		is         error // what the error wraps; nil: none of backend's
		says       string
	}{
		{"no key block", good, good, backend.ErrNotFound, "name the file that has the key"},
		{"no certificate block", goodKey, goodKey, backend.ErrNotFound, "no CERTIFICATE block"},
		{"empty key", good, nil, backend.ErrNotFound, "is empty"},
		{"empty chain", nil, goodKey, backend.ErrNotFound, "is empty"},
		{"DER key", good, must(x509.MarshalPKCS8PrivateKey(ek)), backend.ErrNotFound, "openssl pkey -inform der"},
		{"DER certificate", sub.Raw, goodKey, backend.ErrNotFound, "openssl x509 -inform der"},
		{"two keys", good, join(goodKey, pkcs8(other)), backend.ErrAmbiguous, "more than one private key"},
		{"encrypted PKCS8", good, block("ENCRYPTED PRIVATE KEY", []byte{1}), backend.ErrUnsupported, "openssl pkey -in"},
		{"encrypted PKCS1", good, legacy, backend.ErrUnsupported, "openssl pkey -in"},
		{"OpenSSH key", good, block("OPENSSH PRIVATE KEY", []byte{1}), backend.ErrUnsupported, "PKCS #8"},
		{"another key", good, pkcs8(other), backend.ErrMismatch, "does not belong"},
		{"key of the second certificate", good, pkcs8(rk), backend.ErrMismatch, "put that one first"},
		{"wrong order", encodeCerts(sub, sub), goodKey, backend.ErrMismatch, "put each before its issuer"},
		{"stranger as issuer", encodeCerts(sub, selfSigned(t, "root", other)), goodKey, backend.ErrMismatch, "was not issued by"},
		{"key cut off", good, goodKey[:len(goodKey)-30], nil, "cut off or damaged"},
		{"key cut inside", good, block("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(ek))[:60]), nil, "cannot be read"},
		{"first certificate damaged", join(encodeCerts(sub)[:100], encodeCerts(root)), goodKey, nil, "cut off or damaged"},
		{"last certificate cut off", good[:len(good)-40], goodKey, nil, "cut off or damaged"},
		{"certificate of nonsense", block("CERTIFICATE", []byte{0x30, 0}), goodKey, nil, "certificate 1 in"},
		{"P-224", good, pkcs8(p224), backend.ErrUnsupported, "use P-256"},
		{"RSA-1024", good, pkcs8(small), backend.ErrUnsupported, "1024 bits; use an RSA key of 2048"},
		{"great file", good, make([]byte, custody.MaxFile+1), backend.ErrUnsupported, "more than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			chain, key := write(t, "ca.pem", tt.chain, 0o644), write(t, "ca.key", tt.key, 0o600)
			id, err := Open(chain, key)
			if err == nil {
				t.Fatal("opened")
			}
			t.Log(err)
			if id != nil {
				t.Error("identity with an error")
			}
			checkText(t, err, tt.says)
			if !strings.Contains(err.Error(), chain) && !strings.Contains(err.Error(), key) {
				t.Error("error names no file")
			}
			for _, e := range []error{backend.ErrNotFound, backend.ErrAmbiguous, backend.ErrMismatch, backend.ErrUnsupported, backend.ErrUnavailable, backend.ErrPIN} {
				if errors.Is(err, e) != (e == tt.is) {
					t.Errorf("errors.Is(err, %v) is %v", e, errors.Is(err, e))
				}
			}
		})
	}

	t.Run("missing", func(t *testing.T) {
		key := write(t, "ca.key", goodKey, 0o600)
		for _, names := range [][2]string{{key + ".no", key}, {key, key + ".no"}} {
			_, err := Open(names[0], names[1])
			if !errors.Is(err, backend.ErrNotFound) || !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("got %v", err)
			}
			checkText(t, err, key+".no")
		}
	})
	t.Run("directory", func(t *testing.T) {
		dir := t.TempDir()
		_, err := Open(dir, dir)
		checkText(t, err, "is a directory")
	})
	t.Run("more than 8192 bits", func(t *testing.T) {
		_, err := newKey(&rsa.PrivateKey{PublicKey: rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 8192)}})
		checkText(t, err, "8193 bits")
	})
}

func TestOpenModes(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("windows has no modes")
	}
	key := ecTestKey()
	chain := write(t, "ca.pem", encodeCerts(selfSigned(t, "test", key)), 0o644)
	for _, mode := range []fs.FileMode{0o644, 0o604, 0o601, 0o602, 0o620, 0o660, 0o777} {
		name := write(t, "ca.key", pkcs8(key), mode)
		_, err := Open(chain, name)
		checkText(t, err, "chmod 600 "+name)

		// The mode that counts is the file's, not the link's.
		link := filepath.Join(t.TempDir(), "link.key")
		if err := os.Symlink(name, link); err != nil {
			t.Fatal(err)
		}
		_, err = Open(chain, link)
		checkText(t, err, "chmod 600 "+link)
	}
	// One file for both is a key file.
	both := write(t, "all.pem", join(pkcs8(key), encodeCerts(selfSigned(t, "test", key))), 0o644)
	_, err := Open(both, both)
	checkText(t, err, "chmod 600")
}

// checkText fails unless err is there, starts with the package and says what it should.
func checkText(t *testing.T, err error, says string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error; should be one that says %q", says)
		return
	}
	if !strings.Contains(err.Error(), says) {
		t.Errorf("error %q does not say %q", err, says)
	}
	if s := err.Error(); !strings.HasPrefix(s, "file: ") && !strings.HasPrefix(s, "has ") {
		t.Errorf("error %q does not start with the package", err)
	}
}

// openssl runs openssl and returns what it prints.
func openssl(t *testing.T, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("openssl")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("openssl is not installed")
		}
		t.Skip("openssl is not installed")
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("openssl %v: %v\n%s", args, err, out)
	}
	return string(out)
}
