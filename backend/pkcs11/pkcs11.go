// Package pkcs11 uses private keys in PKCS#11 tokens: hardware security modules, smart cards,
// SoftHSM2.
//
//	token, err := pkcs11.Open(pkcs11.Config{Module: "/usr/lib/softhsm/libsofthsm2.so", Token: "ca", PIN: pin})
//	ca, err := token.Identity(ctx, "issuing-ca")
//
// Programs that take the key from a flag use [Driver] with package backend.
//
// A token that lost its sessions, was reset, was unplugged and put back, or sits behind a network
// that was away, is opened again by itself, at the next use: what failed meanwhile gives an error
// that wraps [backend.ErrUnavailable]. A PIN that was refused is never tried again by itself: a
// token locks after three. A call into the module that does not come back is left behind when
// Config.Timeout is over.
//
// The module is loaded into the process once, and all tokens opened from it are supervised
// together. No other part of the program may use the same module.
//
// A program built without cgo has the same functions, and Open returns an error that wraps
// [backend.ErrUnsupported].
package pkcs11

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/scep"
)

// Config says which token to open. Module and a token are required.
type Config struct {
	// Module is the path of the PKCS#11 module, a shared library.
	Module string

	// Token is the label of the token, and Serial its serial number. At least one of Token,
	// Serial and Slot is required; the token must have all that are given, and be the only one.
	// Serial numbers are best: labels repeat, slot numbers move.
	Token  string
	Serial string

	// Slot is the number of the token's slot, if not nil.
	Slot *uint

	// Manufacturer and Model, if not empty, must also be the token's.
	Manufacturer string
	Model        string

	// PIN is that of the user (CKU_USER). It may be empty only for a token that wants none, or
	// has a keypad for it.
	PIN scep.Secret

	// Sessions is how many operations may be inside the token at a time; others wait in order
	// of arrival. If zero, 16. A token that has fewer sessions gets fewer.
	Sessions int

	// Timeout bounds one call into the module, so also Open and Close, but for the making of a
	// key, which has five minutes. If zero, 10 seconds. Of several tokens of one module, that of
	// the first holds for all.
	Timeout time.Duration

	// Log is told when the token is lost, found again, refuses the PIN or hangs. If nil,
	// slog.Default is used.
	Log *slog.Logger
}

func (c *Config) check() error {
	switch {
	case c.Module == "":
		return fmt.Errorf("pkcs11: Config.Module is required: the path of the module, such as /usr/lib/softhsm/libsofthsm2.so")
	case c.Token == "" && c.Serial == "" && c.Slot == nil:
		return fmt.Errorf("pkcs11: one of Config.Token, Config.Serial and Config.Slot is required; list the tokens with `pkcs11-tool --module %s -L`", c.Module)
	case c.Sessions < 0:
		return fmt.Errorf("pkcs11: Config.Sessions is negative (%d)", c.Sessions)
	case c.Timeout < 0:
		return fmt.Errorf("pkcs11: Config.Timeout is negative (%v)", c.Timeout)
	}
	if c.Sessions == 0 {
		c.Sessions = 16
	}
	if c.Timeout == 0 {
		c.Timeout = 10 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return nil
}

// String names the token as the configuration does.
func (c *Config) String() string {
	var parts []string
	for _, p := range []struct{ name, value string }{
		{"", c.Token}, {"serial ", c.Serial}, {"manufacturer ", c.Manufacturer}, {"model ", c.Model},
	} {
		if p.value != "" {
			parts = append(parts, fmt.Sprintf("%s%q", p.name, p.value))
		}
	}
	if c.Slot != nil {
		parts = append(parts, fmt.Sprintf("slot %d", *c.Slot))
	}
	return "token " + strings.Join(parts, ", ")
}

// A Token is an open token. It may be used concurrently.
type Token struct{ impl }

// impl is what is done with cgo.
type impl interface {
	// open takes nil files for the certificates in the token.
	open(ctx context.Context, n keyName, files []string) (*backend.Key, error)
	create(ctx context.Context, n keyName, spec backend.Spec) (*backend.Key, error)
	importCertificates(ctx context.Context, n keyName, certs []*x509.Certificate, file string, replace bool) error
	login(ctx context.Context, pin scep.Secret) error
	check(ctx context.Context) error
	stats() Stats
	close() error
}

// Open opens a token and logs in, once. An error wraps [backend.ErrNotFound],
// [backend.ErrAmbiguous], [backend.ErrPIN], [backend.ErrUnavailable] or
// [backend.ErrUnsupported] where one fits.
func Open(c Config) (*Token, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	t, err := open(c)
	if err != nil {
		return nil, err
	}
	return &Token{t}, nil
}

// Identity returns a private key of the token with its certificates. key is its label
// (CKA_LABEL), or its id (CKA_ID) in hexadecimal after "id=". The certificates are read from the
// PEM files named, and without any from the token: the one with the key's id, then its issuers as
// far as they are there.
//
// The key signs, unless it may not, and decrypts, if it is RSA, may (CKA_DECRYPT) and the token
// can. Both are tried before Identity returns. Errors wrap [backend.ErrNotFound],
// [backend.ErrAmbiguous] if more than one key or certificate fits, [backend.ErrMismatch] if key
// and certificate do not belong together, or [backend.ErrUnsupported].
func (t *Token) Identity(ctx context.Context, key string, pem ...string) (*scep.Identity, error) {
	n, err := parseName(key)
	if err != nil {
		return nil, err
	}
	k, err := t.open(ctx, n, pem)
	if err != nil {
		return nil, err
	}
	if len(k.Certificates) == 0 {
		return nil, fmt.Errorf("pkcs11: there is no certificate for the key %q in the token; import it, or name the PEM file that has it: %w", key, backend.ErrNotFound)
	}
	return k.Identity, nil
}

// Login gives a token whose PIN was refused a new PIN, and tries it once.
func (t *Token) Login(ctx context.Context, pin scep.Secret) error { return t.login(ctx, pin) }

// Check reports whether the token can be used now, for a health page: nil, or an error that
// wraps [backend.ErrUnavailable] or [backend.ErrPIN]. It makes one signature with each key that
// Identity returned, at most once a second.
func (t *Token) Check(ctx context.Context) error { return t.check(ctx) }

// Stats returns what happened since the token was opened.
func (t *Token) Stats() Stats { return t.stats() }

// Close ends the use of the token. Its identities give errors from then on. Close waits for calls
// that are inside, no longer than Config.Timeout; if some do not come back it returns an error,
// and what they hold is let go when they do. Closing again does nothing.
func (t *Token) Close() error { return t.close() }

// Stats are counters, and how it is now.
type Stats struct {
	Operations uint64 // signatures and decryptions that came to an end, whatever it was
	Failures   uint64 // those of them that the token or the module was to blame for
	Reopened   uint64 // how often the token was opened again
	Logins     uint64 // how often a PIN was sent to the token
	Inside     int    // calls inside the module now
	Overdue    int    // those of them that are past their time
}

// A keyName is a CKA_LABEL, a CKA_ID or both.
type keyName struct {
	label string
	id    []byte
}

// parseName reads the name of a key as Identity takes it.
func parseName(s string) (keyName, error) {
	digits, ok := strings.CutPrefix(s, "id=")
	if !ok {
		if s == "" {
			return keyName{}, fmt.Errorf("pkcs11: no name of a key given; use its label, or \"id=\" and its id in hexadecimal")
		}
		return keyName{label: s}, nil
	}
	id, err := hex.DecodeString(digits)
	if err != nil || len(id) == 0 {
		return keyName{}, fmt.Errorf("pkcs11: key %q: what follows \"id=\" must be the id in hexadecimal, as in id=0a10", s)
	}
	return keyName{id: id}, nil
}

func (n keyName) String() string {
	switch {
	case n.id == nil:
		return fmt.Sprintf("%q", n.label)
	case n.label == "":
		return fmt.Sprintf("id=%x", n.id)
	}
	return fmt.Sprintf("%q id=%x", n.label, n.id)
}
