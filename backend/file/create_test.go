package file

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/scep"
)

// caFiles returns names for a CA in a new directory.
func caFiles(t *testing.T) (chain, key string) {
	dir := t.TempDir()
	return filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key")
}

func TestCreateCA(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 6, time.UTC)
	chain, key := caFiles(t)
	id, err := CreateCA(chain, key, CAOptions{Time: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	cert := id.Certificate()
	if got := cert.Subject.String(); got != "CN=SCEP CA" {
		t.Errorf("subject is %s", got)
	}
	if pub, ok := cert.PublicKey.(*rsa.PublicKey); !ok || pub.N.BitLen() != 2048 {
		t.Errorf("key is %T; should be RSA-2048", cert.PublicKey)
	}
	if !cert.NotBefore.Equal(now.Truncate(time.Second).Add(-time.Hour)) || !cert.NotAfter.Equal(now.Truncate(time.Second).Add(10*365*24*time.Hour)) {
		t.Errorf("valid from %v to %v", cert.NotBefore, cert.NotAfter)
	}
	if !cert.IsCA || cert.MaxPathLen != 0 || !cert.MaxPathLenZero || len(cert.SubjectKeyId) == 0 {
		t.Errorf("CA %v, path length %d, key identifier %x", cert.IsCA, cert.MaxPathLen, cert.SubjectKeyId)
	}
	if want := x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment; cert.KeyUsage != want {
		t.Errorf("key usage %b, want %b", cert.KeyUsage, want)
	}
	for _, e := range cert.Extensions {
		switch oid := e.Id.String(); oid {
		case "2.5.29.15", "2.5.29.19":
			if !e.Critical {
				t.Errorf("extension %s is not critical", oid)
			}
		case "2.5.29.14":
		default:
			t.Errorf("extension %s", oid)
		}
	}
	if _, ok := id.Key.(scep.Unwrapper); !ok {
		t.Error("key cannot decrypt")
	}
	again, err := Open(chain, key)
	if err != nil {
		t.Fatal(err)
	}
	if !again.Certificate().Equal(cert) {
		t.Error("Open gives another certificate")
	}
	if runtime.GOOS != "windows" {
		for name, want := range map[string]fs.FileMode{key: 0o600, chain: 0o644} {
			if info := must(os.Stat(name)); info.Mode().Perm() != want {
				t.Errorf("mode of %s is %o, want %o", name, info.Mode().Perm(), want)
			}
		}
	}
	onlyFiles(t, filepath.Dir(key), "ca.key", "ca.pem")

	text := openssl(t, "x509", "-in", chain, "-noout", "-text")
	for _, want := range []string{"X509v3 Basic Constraints: critical\n                CA:TRUE, pathlen:0", "X509v3 Key Usage: critical\n                Digital Signature, Key Encipherment, Certificate Sign, CRL Sign"} {
		if !strings.Contains(text, want) {
			t.Errorf("openssl does not say %q:\n%s", want, text)
		}
	}
	openssl(t, "verify", "-x509_strict", "-attime", "1900000000", "-CAfile", chain, chain)
	openssl(t, "pkey", "-in", key, "-check", "-noout")
}

// onlyFiles fails unless dir has exactly these names in it.
func onlyFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	var got []string
	for _, e := range must(os.ReadDir(dir)) {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("directory has %q; should have %q", got, want)
	}
}

func TestCreateCAOptions(t *testing.T) {
	subject := pkix.Name{Country: []string{"DE"}, Organization: []string{"Example"}, CommonName: "Example CA"}
	for kind, want := range map[backend.KeyType]string{backend.P256: "ECDSA P-256", backend.P384: "ECDSA P-384", backend.Ed25519: "Ed25519"} {
		chain, key := caFiles(t)
		id, err := CreateCA(chain, key, CAOptions{KeyType: kind, Subject: subject, Validity: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		cert := id.Certificate()
		if got := backend.Describe(cert.PublicKey); got != want {
			t.Errorf("key is %s, want %s", got, want)
		}
		if cert.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign|x509.KeyUsageDigitalSignature {
			t.Errorf("key usage %b", cert.KeyUsage)
		}
		if cert.Subject.String() != subject.String() || cert.NotAfter.Sub(cert.NotBefore) != 2*time.Hour {
			t.Errorf("subject %s, life %v", cert.Subject, cert.NotAfter.Sub(cert.NotBefore))
		}
		if _, err := Open(chain, key); err != nil {
			t.Error(err)
		}
	}
	chain, key := caFiles(t)
	_, err := CreateCA(chain, key, CAOptions{Validity: -1})
	checkText(t, err, "Validity")
	_, err = CreateCA(chain, key, CAOptions{KeyType: 77})
	checkText(t, err, "KeyType 77")
	_, err = CreateCA(chain, filepath.Join(filepath.Dir(chain), ".", "ca.pem"), CAOptions{KeyType: backend.P256})
	checkText(t, err, "two files")
	_, err = CreateCA(filepath.Join(chain, "no", "ca.pem"), filepath.Join(filepath.Dir(chain), "no", "ca.key"), CAOptions{KeyType: backend.P256})
	checkText(t, err, "make it first")
	onlyFiles(t, filepath.Dir(chain))
}

func TestCreateCANeverOverwrites(t *testing.T) {
	for _, tt := range []struct{ have, says string }{
		{"ca.key ca.pem", "use Open"},
		{"ca.key", "if CreateCA was interrupted, nothing uses the key: remove"},
		{"ca.pem", "restore the key"},
	} {
		chain, key := caFiles(t)
		dir := filepath.Dir(chain)
		for _, name := range strings.Fields(tt.have) {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("mine"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		_, err := CreateCA(chain, key, CAOptions{KeyType: backend.P256})
		if !errors.Is(err, fs.ErrExist) {
			t.Errorf("with %s: %v", tt.have, err)
		}
		checkText(t, err, tt.says)
		onlyFiles(t, dir, strings.Fields(tt.have)...)
		for _, name := range strings.Fields(tt.have) {
			if string(must(os.ReadFile(filepath.Join(dir, name)))) != "mine" {
				t.Errorf("%s was overwritten", name)
			}
		}
	}
	if runtime.GOOS == "windows" {
		return
	}
	// A link that leads nowhere is a file too.
	chain, key := caFiles(t)
	if err := os.Symlink("elsewhere", key); err != nil {
		t.Fatal(err)
	}
	_, err := CreateCA(chain, key, CAOptions{KeyType: backend.P256})
	if !errors.Is(err, fs.ErrExist) {
		t.Errorf("link: %v", err)
	}
}

func TestCreateCARace(t *testing.T) {
	chain, key := caFiles(t)
	var mu sync.Mutex
	var made []*scep.Identity
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			id, err := CreateCA(chain, key, CAOptions{KeyType: backend.P256})
			if err != nil && !errors.Is(err, fs.ErrExist) {
				t.Error(err)
			}
			if err == nil {
				mu.Lock()
				defer mu.Unlock()
				made = append(made, id)
			}
		})
	}
	wg.Wait()
	if len(made) != 1 {
		t.Fatalf("%d of 16 made a CA", len(made))
	}
	id, err := Open(chain, key)
	if err != nil {
		t.Fatal(err)
	}
	if !id.Certificate().Equal(made[0].Certificate()) {
		t.Error("the CA on disk is not the one that was made")
	}
	onlyFiles(t, filepath.Dir(key), "ca.key", "ca.pem")
}

// If the certificate cannot be written, the key must not stay behind.
func TestCreateCACleansUp(t *testing.T) {
	dir := t.TempDir()
	_, err := CreateCA(filepath.Join(dir, "no", "ca.pem"), filepath.Join(dir, "ca.key"), CAOptions{KeyType: backend.P256})
	if err == nil {
		t.Fatal("no error")
	}
	onlyFiles(t, dir)
}

func noLink(from, to string) error {
	return &os.LinkError{Op: "link", Old: from, New: to, Err: syscall.EPERM}
}

// A process killed at any moment leaves nothing, a key that the next call speaks of, or a CA
// that opens.
func TestKilled(t *testing.T) {
	seen := map[string]int{}
	for i := range 12 {
		dir := t.TempDir()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		cmd := child(ctx, "create", dir, "")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i*4) * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()
		cancel()

		chain, key := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key")
		_, openErr := Open(chain, key)
		_, err := CreateCA(chain, key, CAOptions{KeyType: backend.P256})
		switch {
		case openErr == nil && errors.Is(err, fs.ErrExist):
			seen["whole"]++
			continue
		case err == nil && errors.Is(openErr, backend.ErrNotFound):
			seen["nothing"]++
		case errors.Is(err, fs.ErrExist) && strings.Contains(err.Error(), "interrupted"):
			seen["key"]++
			if err := os.Remove(key); err != nil {
				t.Fatal(err)
			}
			if _, err := CreateCA(chain, key, CAOptions{KeyType: backend.P256}); err != nil {
				t.Error(err)
			}
		default:
			t.Errorf("Open: %v; CreateCA: %v", openErr, err)
		}
	}
	t.Log(seen)
}
