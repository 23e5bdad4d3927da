package tpm

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/backendtest"
	"github.com/scepkit/scepkit/hsmtest"
	"github.com/scepkit/scepkit/scep"
)

func TestDriver(t *testing.T) {
	chip := hsmtest.TPM(t)
	d := &Driver{Dial: dialer(chip)}
	dir := t.TempDir()
	uri := "tpm:" + filepath.Join(dir, "ca.tpm") + "?chain=" + filepath.Join(dir, "ca.pem")

	k, err := backend.Create(t.Context(), uri, backend.Spec{Decrypt: true}, d)
	if err != nil {
		t.Fatal(err)
	}
	cert := selfSigned(t, k.Key)
	other := selfSigned(t, k.Key)
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	checkError(t, sign(t.Context(), k), backend.ErrUnavailable, "closed")

	if _, err := backend.Open(t.Context(), uri, d); !errors.Is(err, backend.ErrNotFound) {
		t.Errorf("without a certificate: %v", err)
	}
	if err := backend.Import(t.Context(), uri, []*x509.Certificate{cert}, false, d); err != nil {
		t.Fatal(err)
	}
	err = backend.Import(t.Context(), uri, []*x509.Certificate{other}, false, d)
	checkError(t, err, nil, "replace it if that is meant")
	if !errors.Is(err, fs.ErrExist) {
		t.Errorf("not fs.ErrExist: %v", err)
	}
	if err := backend.Import(t.Context(), uri, []*x509.Certificate{other}, true, d); err != nil {
		t.Error(err)
	}
	_, err = backend.Create(t.Context(), uri, backend.Spec{}, d)
	if !errors.Is(err, fs.ErrExist) {
		t.Errorf("created over a key: %v", err)
	}

	k, err = backend.Open(t.Context(), uri, d)
	if err != nil {
		t.Fatal(err)
	}
	if len(k.Certificates) != 1 || !k.Certificates[0].Equal(other) {
		t.Error("that is another certificate")
	}
	second, err := backend.Open(t.Context(), uri, d)
	if err != nil {
		t.Fatal(err)
	}
	if len(d.open) != 1 {
		t.Errorf("%d connections to one TPM", len(d.open))
	}
	for range 2 {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := second.Check(t.Context()); err != nil {
		t.Errorf("closed together with another: %v", err)
	}
	before := chip.Commands()
	if err := second.Check(t.Context()); err != nil || chip.Commands() != before {
		t.Errorf("a check within a second used the TPM, or: %v", err)
	}
	second.Close()
	if len(d.open) != 0 {
		t.Error("the TPM stays open without a key")
	}
	if s := loadedNow(t, chip); s != "" {
		t.Errorf("there is in the TPM: %s", s)
	}
}

func TestDriverURIs(t *testing.T) {
	d := &Driver{}
	key := filepath.Join(t.TempDir(), "ca.tpm")
	for _, tt := range []struct {
		uri   string
		class error
		says  string
	}{
		{"tpm:", backend.ErrNotFound, "names no key"},
		{"tpm:?handle=x", backend.ErrUnsupported, "write it as 0x81000001"},
		{"tpm:?handle=0", backend.ErrUnsupported, "write it as 0x81000001"},
		{"tpm:?handle=0x181000001", backend.ErrUnsupported, "write it as 0x81000001"},
		{"tpm:" + key + "?pin-source=env:X", backend.ErrUnsupported, "pin-source"},
		{"tpm:" + key + "?handle=0x81010000", backend.ErrAmbiguous, "name one"},
		{"tpm:" + key + "?parent=0x40000001", backend.ErrUnsupported, "0x81000001"},
	} {
		_, err := backend.OpenKey(t.Context(), tt.uri+map[bool]string{true: "", false: "&device=unix:/no/socket"}[tt.uri == "tpm:"], d)
		checkError(t, err, tt.class, tt.says)
	}
	if len(d.open) != 0 {
		t.Error("a TPM stays open")
	}
	if err := os.WriteFile(key, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := d.Import(t.Context(), must(backend.ParseURI("tpm:"+key)), nil, false)
	checkError(t, err, backend.ErrUnsupported, "chain=")
}

// The promises of all backends.
func TestPromises(t *testing.T) {
	for _, kind := range []backend.KeyType{backend.RSA2048, backend.P256} {
		t.Run(kind.String(), func(t *testing.T) {
			chip := hsmtest.TPM(t)
			d := &Driver{Dial: dialer(chip)}
			dir := t.TempDir()
			uri := "tpm:" + filepath.Join(dir, "ca.tpm") + "?chain=" + filepath.Join(dir, "ca.pem")
			k, err := backend.Create(t.Context(), uri, backend.Spec{KeyType: kind, Decrypt: kind == backend.RSA2048}, d)
			if err != nil {
				t.Fatal(err)
			}
			if err := backend.Import(t.Context(), uri, []*x509.Certificate{selfSigned(t, k.Key)}, false, d); err != nil {
				t.Fatal(err)
			}
			k.Close()
			keys := map[*scep.Identity]*backend.Key{}
			backendtest.TestIdentity(t, backendtest.Harness{
				Open: func(t *testing.T) *scep.Identity {
					k, err := backend.Open(t.Context(), uri, d)
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { k.Close() })
					keys[k.Identity] = k
					return k.Identity
				},
				Pull: func(t *testing.T) func() {
					chip.Kill()
					return chip.Start
				},
				Close: func(t *testing.T, id *scep.Identity) { keys[id].Close() },
			})
		})
	}
}
