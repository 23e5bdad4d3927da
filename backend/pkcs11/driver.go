package pkcs11

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/scep"
)

// Driver opens keys by RFC 7512 URIs, for [backend.Open]. The zero Driver is usable.
//
//	pkcs11:token=ca;object=issuing-ca?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/secrets/pin
//
// The attributes are token, serial, manufacturer, model and slot-id for the token, object and id
// for the key, and type, which can only be private; the query attributes are module-path,
// pin-source (see [backend.ReadPIN]) and chain, a PEM file with the certificates of the key, in
// place of those in the token. Any other is an error.
type Driver struct {
	// Module is the path of the module for URIs without module-path.
	Module string

	// PIN, if not nil, is asked for the PIN of a token whose URI has no pin-source. token says
	// which, for people.
	PIN func(ctx context.Context, token string) (scep.Secret, error)

	// Sessions, Timeout and Log are as in Config.
	Sessions int
	Timeout  time.Duration
	Log      *slog.Logger
}

// Scheme implements [backend.Driver].
func (d Driver) Scheme() string { return "pkcs11" }

// Open implements [backend.Driver].
func (d Driver) Open(ctx context.Context, u *backend.URI) (*backend.Key, error) {
	return d.with(ctx, u, func(t *Token, n keyName) (*backend.Key, error) {
		chain := u.Query["chain"]
		if chain == "" {
			return t.open(ctx, n, nil)
		}
		if _, err := os.Stat(chain); errors.Is(err, fs.ErrNotExist) {
			return t.open(ctx, n, []string{}) // as before Import
		}
		return t.open(ctx, n, []string{chain})
	})
}

// Create implements [backend.Driver]. The new key cannot leave the token; its id is random unless
// the URI has one.
func (d Driver) Create(ctx context.Context, u *backend.URI, spec backend.Spec) (*backend.Key, error) {
	return d.with(ctx, u, func(t *Token, n keyName) (*backend.Key, error) { return t.create(ctx, n, spec) })
}

// Import implements [backend.Driver]: it writes the certificates into the token, or with chain
// into that file.
func (d Driver) Import(ctx context.Context, u *backend.URI, certs []*x509.Certificate, replace bool) error {
	if len(certs) == 0 {
		return errors.New("pkcs11: no certificate to import")
	}
	k, err := d.with(ctx, u, func(t *Token, n keyName) (*backend.Key, error) {
		return &backend.Key{}, t.importCertificates(ctx, n, certs, u.Query["chain"], replace)
	})
	if err != nil {
		return err
	}
	return k.Close()
}

// with calls f with the token that u names, which stays open as long as the key that f returns.
func (d Driver) with(ctx context.Context, u *backend.URI, f func(*Token, keyName) (*backend.Key, error)) (*backend.Key, error) {
	c, n, err := d.config(ctx, u)
	if err != nil {
		return nil, err
	}
	t, err := Open(c)
	if err != nil {
		return nil, err
	}
	k, err := f(t, n)
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	k.Closer = t.Close
	return k, nil
}

// config reads u.
func (d Driver) config(ctx context.Context, u *backend.URI) (c Config, n keyName, err error) {
	err = u.Only([]string{"token", "serial", "manufacturer", "model", "slot-id", "object", "id", "type"}, []string{"module-path", "pin-source", "chain"})
	if err != nil {
		return c, n, err
	}
	if kind, ok := u.Attributes["type"]; ok && kind != "private" {
		return c, n, fmt.Errorf("pkcs11: the URI names a %s; a private key is wanted: type=private, or no type", kind)
	}
	c = Config{
		Module:       u.Query["module-path"],
		Token:        u.Attributes["token"],
		Serial:       u.Attributes["serial"],
		Manufacturer: u.Attributes["manufacturer"],
		Model:        u.Attributes["model"],
		Sessions:     d.Sessions,
		Timeout:      d.Timeout,
		Log:          d.Log,
	}
	if c.Module == "" {
		c.Module = d.Module
	}
	if c.Module == "" {
		return c, n, errors.New("pkcs11: the URI has no module-path; add ?module-path= and the path of the module")
	}
	if !filepath.IsAbs(c.Module) {
		return c, n, fmt.Errorf("pkcs11: module-path %q is not absolute, and code is not loaded from where a program happens to be started", c.Module)
	}
	if s, ok := u.Attributes["slot-id"]; ok {
		number, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			return c, n, fmt.Errorf("pkcs11: slot-id %q is not a number", s)
		}
		slot := uint(number)
		c.Slot = &slot
	}
	n.label = u.Attributes["object"]
	if id, ok := u.Attributes["id"]; ok {
		n.id = []byte(id)
	}
	if n.label == "" && len(n.id) == 0 {
		return c, n, errors.New("pkcs11: the URI names no key; add object= and its label, or id= and its id, percent-encoded as in id=%0a%10")
	}
	if source, ok := u.Query["pin-source"]; ok {
		c.PIN, err = backend.ReadPIN(ctx, source)
	} else if d.PIN != nil {
		c.PIN, err = d.PIN(ctx, c.String())
	}
	if err != nil {
		return c, n, fmt.Errorf("pkcs11: the PIN of %s: %w", c.String(), err)
	}
	return c, n, nil
}
