package backend_test

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/scep"
)

// shelf is a Driver of keys in memory. Path names the key; chain, if there, must be "c".
type shelf struct {
	keys  map[string]crypto.Signer
	certs map[string][]*x509.Certificate
	open  int // keys that are not closed
}

func (s *shelf) Scheme() string { return "shelf" }

func (s *shelf) Open(_ context.Context, u *backend.URI) (*backend.Key, error) {
	key, ok := s.keys[u.Path]
	if !ok {
		return nil, fmt.Errorf("shelf: no key %q: %w", u.Path, backend.ErrNotFound)
	}
	id := &scep.Identity{Key: key}
	if u.Query["chain"] == "c" {
		id.Certificates = s.certs[u.Path]
	}
	s.open++
	return &backend.Key{Identity: id, Closer: func() error { s.open--; return nil }, Checker: func(ctx context.Context) error { return errors.Join(backend.ErrPIN, ctx.Err()) }}, nil
}

func (s *shelf) Create(_ context.Context, u *backend.URI, spec backend.Spec) (*backend.Key, error) {
	if _, ok := s.keys[u.Path]; ok {
		return nil, fs.ErrExist
	}
	s.keys[u.Path] = map[backend.KeyType]crypto.Signer{backend.RSA2048: rsaTestKey(), backend.P256: ecTestKey()}[spec.KeyType]
	return s.Open(context.Background(), u)
}

func (s *shelf) Import(_ context.Context, u *backend.URI, certs []*x509.Certificate, replace bool) error {
	if u.Query["chain"] == "" || s.certs[u.Path] != nil && !replace {
		return fs.ErrExist
	}
	s.certs[u.Path] = certs
	return nil
}

func TestOpen(t *testing.T) {
	s := &shelf{keys: map[string]crypto.Signer{}, certs: map[string][]*x509.Certificate{}}
	const uri = "Shelf:a?chain=c"
	if _, err := backend.Open(t.Context(), uri, s); !errors.Is(err, backend.ErrNotFound) {
		t.Errorf("no key: %v", err)
	}
	k, err := backend.Create(t.Context(), uri, backend.Spec{KeyType: backend.P256}, s)
	if err != nil || k.Key != crypto.Signer(ecTestKey()) {
		t.Fatal(err)
	}
	if err := k.Check(t.Context()); !errors.Is(err, backend.ErrPIN) {
		t.Errorf("Check: %v", err)
	}
	if err := k.Close(); err != nil || s.open != 0 {
		t.Errorf("Close: %v, %d open", err, s.open)
	}
	if k, err := backend.OpenKey(t.Context(), uri, s); err != nil || k.Close() != nil {
		t.Errorf("OpenKey: %v", err)
	}

	cert := selfSigned(t, ecTestKey())
	for _, tt := range []struct {
		uri   string
		certs []*x509.Certificate
		is    error
	}{
		{uri, nil, nil}, {uri, []*x509.Certificate{nil}, nil}, {uri, []*x509.Certificate{selfSigned(t, rsaTestKey())}, backend.ErrMismatch},
		{uri, []*x509.Certificate{cert, selfSigned(t, rsaTestKey())}, backend.ErrMismatch}, {"shelf:b?chain=c", []*x509.Certificate{cert}, backend.ErrNotFound},
	} {
		if err := backend.Import(t.Context(), tt.uri, tt.certs, true, s); err == nil || tt.is != nil && !errors.Is(err, tt.is) {
			t.Errorf("%v; should wrap %v", err, tt.is)
		}
	}
	if len(s.certs) != 0 {
		t.Error("something was imported")
	}
	if _, err := backend.Open(t.Context(), uri, s); !errors.Is(err, backend.ErrNotFound) || !strings.Contains(err.Error(), "chain=") {
		t.Errorf("without certificates: %v", err)
	}
	// What is there already is not in the way, even if it is wrong.
	s.certs["a"] = []*x509.Certificate{selfSigned(t, rsaTestKey())}
	if err := backend.Import(t.Context(), uri, []*x509.Certificate{cert}, false, s); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over others: %v", err)
	}
	if err := backend.Import(t.Context(), uri, []*x509.Certificate{cert}, true, s); err != nil {
		t.Error(err)
	}
	k, err = backend.Open(t.Context(), uri, s)
	if err != nil || !k.Certificate().Equal(cert) {
		t.Fatalf("Open: %v", err)
	}
	if err := k.Close(); err != nil || s.open != 0 {
		t.Errorf("%d keys were left open, %v", s.open, err)
	}
	if _, err := backend.Create(t.Context(), uri, backend.Spec{}, s); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Create again: %v", err)
	}
}

// other is a Driver with another name.
type other struct{ *shelf }

func (other) Scheme() string { return "other" }

func TestNoDriver(t *testing.T) {
	drivers := []backend.Driver{&shelf{}, other{}}
	for _, uri := range []string{"tpm:/x", "/etc/x", "pkcs11:token=a?pin-value=s3cr3t"} {
		_, err := backend.Open(t.Context(), uri, drivers...)
		_, err2 := backend.OpenKey(t.Context(), uri, drivers...)
		_, err3 := backend.Create(t.Context(), uri, backend.Spec{}, drivers...)
		err4 := backend.Import(t.Context(), uri, []*x509.Certificate{selfSigned(t, ecTestKey())}, false, drivers...)
		for _, err := range []error{err, err2, err3, err4} {
			if err == nil || !strings.HasPrefix(err.Error(), "backend: ") || strings.Contains(err.Error(), "s3cr3t") {
				t.Errorf("%s: %v", uri, err)
			}
			if strings.HasPrefix(uri, "tpm") && (!errors.Is(err, backend.ErrUnsupported) || !strings.Contains(err.Error(), "this program knows other:, shelf:")) {
				t.Errorf("%s: %v", uri, err)
			}
		}
	}
	k := &backend.Key{}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if k.Check(t.Context()) != nil || k.Close() != nil || !errors.Is(k.Check(ended), context.Canceled) {
		t.Error("a Key without Checker and Closer")
	}
}
