package backend

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/scepkit/scepkit/backend/internal/custody"
	"github.com/scepkit/scepkit/scep"
)

// A Key is a private key that [Open], [OpenKey] or [Create] opened, with what belongs to it. It
// may be used concurrently.
type Key struct {
	// Identity has the key and its certificates. After OpenKey and Create there may be none.
	*scep.Identity

	// Description says for people where the key is, what kind it is, and how it is protected.
	// It has no secret in it.
	Description []Attribute

	// Checker reports whether the key can be used now; see Key.Check. A Driver sets it, or
	// leaves it nil.
	Checker func(ctx context.Context) error

	// Closer ends the use of the device; see Key.Close. A Driver sets it, or leaves it nil.
	Closer func() error
}

// An Attribute is a name and a value, as a token or TPM tells them.
type Attribute struct{ Name, Value string }

// Check reports whether the key can be used now, for a health page: nil, or an error that
// wraps [ErrUnavailable] or [ErrPIN]. It uses the device at most once a second.
func (k *Key) Check(ctx context.Context) error {
	if k.Checker == nil {
		return ctx.Err()
	}
	return k.Checker(ctx)
}

// Close ends the use of the key, and of the device if nothing else uses it. It does not wait
// for a device that hangs. Closing again does nothing.
func (k *Key) Close() error {
	if k.Closer == nil {
		return nil
	}
	return k.Closer()
}

// A Driver opens and makes keys of one URI scheme. The backend packages have one each, named
// Driver, whose zero value is usable.
type Driver interface {
	// Scheme returns what URIs begin with, as "file".
	Scheme() string

	// Open returns the key that u names, with its certificates, or without if there are none.
	Open(ctx context.Context, u *URI) (*Key, error)

	// Create makes the key that u names, without certificates. If there is one already, or
	// anything that would make the name ambiguous, the error wraps [fs.ErrExist] and nothing is
	// changed.
	Create(ctx context.Context, u *URI, spec Spec) (*Key, error)

	// Import stores certs, which belong to the key that u names and were checked, so that Open
	// finds them. Where there are others already the error wraps [fs.ErrExist] and nothing is
	// changed, unless replace is true.
	Import(ctx context.Context, u *URI, certs []*x509.Certificate, replace bool) error
}

// Spec says what key [Create] makes. The zero Spec is usable.
type Spec struct {
	// KeyType is the kind of key. If zero, RSA2048.
	KeyType KeyType

	// Decrypt lets an RSA key decrypt as well as sign, as that of an RA must. If false it can
	// only sign, which is right for a CA that has an RA beside it. A key in a file is not held
	// to that.
	Decrypt bool
}

// Open opens the key that uri names, by the one of drivers that knows its scheme, and its
// certificates. Without certificates the error wraps [ErrNotFound].
//
//	file:/etc/scep/ca.key?chain=/etc/scep/ca.pem
//	pkcs11:token=ca;object=issuing-ca?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/secrets/pin
//	tpm:/etc/scep/ca.tpm?chain=/etc/scep/ca.pem
//
// Which attributes a scheme has, its Driver says; one that it does not have is an error. In all
// schemes chain names a PEM file with certificates.
func Open(ctx context.Context, uri string, drivers ...Driver) (*Key, error) {
	k, err := OpenKey(ctx, uri, drivers...)
	if err != nil {
		return nil, err
	}
	if len(k.Certificates) == 0 {
		return nil, errors.Join(fmt.Errorf("backend: there is no certificate for the key %s; name the file that has it with chain=, or import one: %w", uri, ErrNotFound), k.Close())
	}
	return k, nil
}

// OpenKey is Open for a key that may have no certificate yet.
func OpenKey(ctx context.Context, uri string, drivers ...Driver) (*Key, error) {
	u, d, err := resolve(uri, drivers)
	if err != nil {
		return nil, err
	}
	return d.Open(ctx, u)
}

// Create makes the key that uri names. It never overwrites: see [Driver].
func Create(ctx context.Context, uri string, spec Spec, drivers ...Driver) (*Key, error) {
	u, d, err := resolve(uri, drivers)
	if err != nil {
		return nil, err
	}
	return d.Create(ctx, u, spec)
}

// Import stores the certificates of the key that uri names, its own first, then its issuers,
// root last and optional, where Open finds them. If they do not belong to the key the error
// wraps [ErrMismatch]. If there are others already, it wraps [fs.ErrExist], unless replace is
// true.
func Import(ctx context.Context, uri string, certs []*x509.Certificate, replace bool, drivers ...Driver) error {
	u, d, err := resolve(uri, drivers)
	if err != nil {
		return err
	}
	if len(certs) == 0 || slices.Contains(certs, nil) {
		return errors.New("backend: no certificates to import; give the key's own first, then its issuers")
	}
	// The key alone: what chain names may be what is to be replaced.
	alone := *u
	alone.Query = maps.Clone(u.Query)
	delete(alone.Query, "chain")
	k, err := d.Open(ctx, &alone)
	if err != nil {
		return err
	}
	err = custody.CheckChain(k.Key.Public(), "key "+uri, certs, "what is imported")
	if err := errors.Join(err, k.Close()); err != nil {
		return fmt.Errorf("backend: %w", err)
	}
	return d.Import(ctx, u, certs, replace)
}

// resolve parses uri and finds its driver.
func resolve(uri string, drivers []Driver) (*URI, Driver, error) {
	u, err := ParseURI(uri)
	if err != nil {
		return nil, nil, err
	}
	var schemes []string
	for _, d := range drivers {
		if d.Scheme() == u.Scheme {
			return u, d, nil
		}
		schemes = append(schemes, d.Scheme()+":")
	}
	slices.Sort(schemes)
	return nil, nil, fmt.Errorf("backend: no driver for %q; this program knows %s: %w", u.Scheme+":", strings.Join(schemes, ", "), ErrUnsupported)
}

// A KeyType is a kind of key.
type KeyType uint8

const (
	// RSA2048 is RSA with 2048 bits. It is the zero KeyType because an RSA key can also open
	// requests, so that a CA needs no RA, and because every device understands it.
	RSA2048 KeyType = iota
	RSA3072         // RSA with 3072 bits
	RSA4096         // RSA with 4096 bits
	P256            // ECDSA on P-256; a CA needs an RA
	P384            // ECDSA on P-384; a CA needs an RA
	Ed25519         // EdDSA on edwards25519 (RFC 8410), in files; a CA needs an RA, and many devices cannot verify it
)

// String returns the name that ParseKeyType takes, as "rsa2048".
func (t KeyType) String() string {
	if int(t) < len(keyTypes()) {
		return keyTypes()[t]
	}
	return fmt.Sprintf("KeyType(%d)", uint8(t))
}

// ParseKeyType returns the kind of key named rsa2048, rsa3072, rsa4096, p256, p384 or ed25519.
func ParseKeyType(s string) (KeyType, error) {
	if i := slices.Index(keyTypes(), s); i >= 0 {
		return KeyType(i), nil
	}
	return 0, fmt.Errorf("backend: there is no kind of key %q; use %s: %w", s, strings.Join(keyTypes(), ", "), ErrUnsupported)
}

func keyTypes() []string { return []string{"rsa2048", "rsa3072", "rsa4096", "p256", "p384", "ed25519"} }

// Describe returns the kind of a public key, as "RSA-2048" or "ECDSA P-256".
func Describe(pub crypto.PublicKey) string {
	return describe(pub)
}
