package file

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/backendtest"
	"github.com/scepkit/scepkit/scep"
)

func TestConforms(t *testing.T) {
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	for name, key := range map[string]crypto.Signer{
		"RSA": rsaTestKey(), "P-256": ecTestKey(), "P-384": must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)), "Ed25519": ed,
	} {
		t.Run(name, func(t *testing.T) {
			rootKey := ecTestKey()
			root := selfSigned(t, "root", rootKey)
			chain := write(t, "ca.pem", encodeCerts(issued(t, "ca", key.Public(), root, rootKey), root), 0o644)
			uri := "file:" + filepath.ToSlash(write(t, "ca.key", pkcs8(key), 0o600)) + "?chain=" + filepath.ToSlash(chain)
			backendtest.TestIdentity(t, backendtest.Harness{Open: func(t *testing.T) *scep.Identity {
				k, err := backend.Open(t.Context(), uri, Driver{})
				if err != nil {
					t.Fatal(err)
				}
				return k.Identity
			}})
		})
	}
}

// A ceremony by URI: create, sign, import, open.
func TestDriver(t *testing.T) {
	for kind, says := range map[backend.KeyType]string{backend.RSA2048: "RSA-2048", backend.P256: "ECDSA P-256"} {
		chain, key := caFiles(t)
		uri := fmt.Sprintf("file:%s?chain=%s", filepath.ToSlash(key), filepath.ToSlash(chain))
		k, err := backend.Create(t.Context(), uri, backend.Spec{KeyType: kind}, Driver{})
		if err != nil {
			t.Fatal(err)
		}
		if len(k.Certificates) != 0 {
			t.Error("a new key has certificates")
		}
		if runtime.GOOS != "windows" {
			if mode := must(os.Stat(key)).Mode().Perm(); mode != 0o600 {
				t.Errorf("mode is %o", mode)
			}
		}
		text := fmt.Sprint(k.Description)
		if !strings.Contains(text, key) || !strings.Contains(text, says) || !strings.Contains(text, "not encrypted") {
			t.Errorf("description is %s", text)
		}
		if err := errors.Join(k.Check(t.Context()), k.Close(), k.Close()); err != nil {
			t.Error(err)
		}

		// Before Import there is a key, but no identity.
		if _, err := backend.Open(t.Context(), uri, Driver{}); !errors.Is(err, backend.ErrNotFound) || !strings.Contains(err.Error(), "import") {
			t.Errorf("Open before Import: %v", err)
		}
		k, err = backend.OpenKey(t.Context(), uri, Driver{})
		if err != nil || len(k.Certificates) != 0 {
			t.Fatalf("OpenKey: %v", err)
		}
		cert, err := backend.SelfSign(t.Context(), k.Key, backend.CAOptions{})
		if err != nil {
			t.Fatal(err)
		}
		certs := []*x509.Certificate{cert}
		if err := backend.Import(t.Context(), uri, certs, false, Driver{}); err != nil {
			t.Fatal(err)
		}
		if id, err := Open(chain, key); err != nil || !id.Certificate().Equal(cert) {
			t.Errorf("the older Open: %v", err)
		}
		again, err := backend.Open(t.Context(), uri, Driver{})
		if err != nil || !again.Certificate().Equal(cert) {
			t.Fatalf("Open: %v", err)
		}
		onlyFiles(t, filepath.Dir(key), "ca.key", "ca.pem")

		// Neither is overwritten unless asked for.
		if _, err := backend.Create(t.Context(), uri, backend.Spec{}, Driver{}); !errors.Is(err, fs.ErrExist) {
			t.Errorf("Create again: %v", err)
		}
		if err := backend.Import(t.Context(), uri, certs, false, Driver{}); !errors.Is(err, fs.ErrExist) {
			t.Errorf("Import again: %v", err)
		}
		renewed := must(backend.SelfSign(t.Context(), k.Key, backend.CAOptions{Validity: time.Hour}))
		if err := backend.Import(t.Context(), uri, []*x509.Certificate{renewed}, true, Driver{}); err != nil {
			t.Error(err)
		}
		if again, err := backend.Open(t.Context(), uri, Driver{}); err != nil || !again.Certificate().Equal(renewed) {
			t.Errorf("after Import with replace: %v", err)
		}
		// Also if what is there does not belong.
		if err := os.WriteFile(chain, encodeCerts(selfSigned(t, "other", rsaTestKey())), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := backend.Open(t.Context(), uri, Driver{}); !errors.Is(err, backend.ErrMismatch) {
			t.Errorf("wrong chain: %v", err)
		}
		if err := backend.Import(t.Context(), uri, certs, true, Driver{}); err != nil {
			t.Errorf("replacing a wrong chain: %v", err)
		}
		onlyFiles(t, filepath.Dir(key), "ca.key", "ca.pem")
	}
}

func TestDriverOneFile(t *testing.T) {
	key := ecTestKey()
	cert := selfSigned(t, "one", key)
	uri := "file:" + filepath.ToSlash(write(t, "all.pem", join(encodeCerts(cert), pkcs8(key)), 0o600))
	k, err := backend.Open(t.Context(), uri, Driver{})
	if err != nil || !k.Certificate().Equal(cert) {
		t.Fatal(err)
	}
	wrong := "file:" + filepath.ToSlash(write(t, "all.pem", join(encodeCerts(selfSigned(t, "other", rsaTestKey())), pkcs8(key)), 0o600))
	if _, err := backend.Open(t.Context(), wrong, Driver{}); !errors.Is(err, backend.ErrMismatch) {
		t.Errorf("another's certificate: %v", err)
	}
	err = backend.Import(t.Context(), uri, []*x509.Certificate{cert}, true, Driver{})
	checkText(t, err, "chain=")
}

func TestDriverRefuses(t *testing.T) {
	key := ecTestKey()
	cert := selfSigned(t, "x", key)
	name := filepath.ToSlash(write(t, "ca.key", pkcs8(key), 0o600))
	dir := filepath.ToSlash(t.TempDir())
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tt := range []struct {
		ctx  context.Context
		uri  string
		is   error
		says string
	}{
		{t.Context(), "file:", backend.ErrNotFound, "names no file"},
		{t.Context(), "file:" + name + "?pin-source=env:X", backend.ErrUnsupported, "pin-source"},
		{t.Context(), "file:" + name + "?chain=" + name, nil, "name two files"},
		{t.Context(), "file:" + dir + "/no/ca.key?chain=" + dir + "/ca.pem", nil, "no"},
		{ended, "file:" + dir + "/ca.key?chain=" + dir + "/ca.pem", context.Canceled, "canceled"},
	} {
		_, err := backend.OpenKey(tt.ctx, tt.uri, Driver{})
		_, err2 := backend.Create(tt.ctx, tt.uri, backend.Spec{KeyType: backend.P256}, Driver{})
		err3 := backend.Import(tt.ctx, tt.uri, []*x509.Certificate{cert}, true, Driver{})
		for _, err := range []error{err, err2, err3} {
			checkText(t, err, tt.says)
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%s: %v; should wrap %v", tt.uri, err, tt.is)
			}
		}
	}
	onlyFiles(t, dir)

	// A chain without its key is somebody's; a key is not replaced by certificates.
	chain := dir + "/ca.pem"
	if err := os.WriteFile(chain, pkcs8(key), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := backend.Create(t.Context(), "file:"+dir+"/ca.key?chain="+chain, backend.Spec{KeyType: backend.P256}, Driver{})
	if !errors.Is(err, fs.ErrExist) {
		t.Errorf("Create beside a chain: %v", err)
	}
	err = backend.Import(t.Context(), "file:"+name+"?chain="+chain, []*x509.Certificate{cert}, true, Driver{})
	checkText(t, err, "there is a private key in")
	_, err = backend.Create(t.Context(), "file:"+dir+"/new.key", backend.Spec{KeyType: 77}, Driver{})
	checkText(t, err, "KeyType 77")
	onlyFiles(t, dir, "ca.pem")

	// What backend refuses for every driver.
	for says, err := range map[string]error{
		"no certificates":                backend.Import(t.Context(), "file:"+name+"?chain=x", nil, true, Driver{}),
		"does not belong":                backend.Import(t.Context(), "file:"+name+"?chain=x", []*x509.Certificate{selfSigned(t, "y", rsaTestKey())}, true, Driver{}),
		`no driver for "tpm:"; this`:     backend.Import(t.Context(), "tpm:x", []*x509.Certificate{cert}, true, Driver{}),
		"write file:/etc/scep/ca.key":    backend.Import(t.Context(), "/x", []*x509.Certificate{cert}, true, Driver{}),
		"correct the name, or make a CA": backend.Import(t.Context(), "file:"+dir+"/no?chain=x", []*x509.Certificate{cert}, true, Driver{}),
	} {
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v; should say %q", err, says)
		}
	}
}
