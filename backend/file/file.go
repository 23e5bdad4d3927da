// Package file keeps keys and certificates in PEM files on disk.
//
// [Open] opens a key, [CreateCA] makes a CA, and [RA] keeps the certificate and key that open
// requests where the CA's own key cannot or should not. [Driver] does it by URI. Whoever can
// read a key file has the key: use a hardware backend where that matters.
//
// A key file must not be readable by everybody, nor writable by anybody but its owner: 0600,
// 0400, or 0640 for a group of services. Windows has no such modes, and none are checked there.
package file

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/internal/custody"
	"github.com/scepkit/scepkit/scep"
)

// Open opens the certificates in the file chain, the key's own first, then its issuers, root
// last and optional, and the private key in the file key. Both are PEM, and may be one file;
// blocks of other kinds are skipped.
//
// The key is RSA (2048 to 8192 bits), ECDSA (P-256, P-384 or P-521) or Ed25519, in PKCS #8,
// PKCS #1 or SEC 1 form, and not encrypted. An RSA key can also decrypt: it is a
// [scep.Unwrapper]. Errors wrap [backend.ErrNotFound], [backend.ErrAmbiguous],
// [backend.ErrMismatch] or [backend.ErrUnsupported] where one fits.
//
// Nothing is kept open.
func Open(chain, key string) (*scep.Identity, error) {
	signer, _, err := readKey(key)
	if err != nil {
		return nil, err
	}
	certs, err := readChain(chain)
	if err != nil {
		return nil, err
	}
	id := &scep.Identity{Certificates: certs, Key: signer}
	if err := checkPair(id, chain, key); err != nil {
		return nil, err
	}
	return id, nil
}

// checkPair reports why the key, read from the file key, and the certificates, read from the
// file chain, are not an identity.
func checkPair(id *scep.Identity, chain, key string) error {
	if err := custody.CheckChain(id.Key.Public(), fmt.Sprintf("key in %q", key), id.Certificates, strconv.Quote(chain)); err != nil {
		return fmt.Errorf("file: %w", err)
	}
	return nil
}

// readChain returns the certificates in a PEM file, at least one.
func readChain(name string) ([]*x509.Certificate, error) {
	blocks, err := readPEM(name, "certificate", false)
	if err != nil {
		return nil, err
	}
	certs, err := parseCerts(blocks, name)
	if err == nil && len(certs) == 0 {
		err = fmt.Errorf("file: no CERTIFICATE block in %q; name the file that has the certificate of the key: %w", name, backend.ErrNotFound)
	}
	return certs, err
}

// parseCerts returns the certificates in blocks, which are those of the file name.
func parseCerts(blocks []*pem.Block, name string) ([]*x509.Certificate, error) {
	certs, err := custody.Certificates(blocks, name)
	if err != nil {
		return nil, fmt.Errorf("file: %w", err)
	}
	return certs, nil
}

// readKey returns the one private key in a PEM file that only few may read, and all blocks in
// that file.
func readKey(name string) (crypto.Signer, []*pem.Block, error) {
	blocks, err := readPEM(name, "key", true)
	if err != nil {
		return nil, nil, err
	}
	var found *pem.Block
	for _, b := range blocks {
		if !strings.HasSuffix(b.Type, "PRIVATE KEY") {
			continue
		}
		if found != nil {
			return nil, nil, fmt.Errorf("file: more than one private key in %q; leave one in it: %w", name, backend.ErrAmbiguous)
		}
		found = b
	}
	if found == nil {
		return nil, nil, fmt.Errorf("file: no PRIVATE KEY block in %q; name the file that has the key: %w", name, backend.ErrNotFound)
	}
	if found.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(found.Headers["Proc-Type"], "ENCRYPTED") {
		return nil, nil, fmt.Errorf("file: the key in %q is encrypted; decrypt it with `openssl pkey -in %s -out NEW` under umask 077: %w",
			name, name, backend.ErrUnsupported)
	}

	var key any
	switch found.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(found.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(found.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(found.Bytes)
	default:
		return nil, nil, fmt.Errorf("file: %q has a %s; convert it to PKCS #8: %w", name, found.Type, backend.ErrUnsupported)
	}
	if err != nil {
		// The error does not tell bytes of the key.
		return nil, nil, fmt.Errorf("file: the key in %q cannot be read (%w); restore it from a backup, or check it with `openssl pkey -in %s -check -noout`", name, err, name)
	}
	signer, err := newKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("file: the key in %q %w", name, err)
	}
	return signer, blocks, nil
}

// newKey wraps a key of the standard library, or says what is wrong with it.
func newKey(key any) (crypto.Signer, error) {
	switch key := key.(type) {
	case *rsa.PrivateKey:
		if n := key.N.BitLen(); n < 2048 || n > 8192 {
			return nil, fmt.Errorf("has %d bits; use an RSA key of 2048 to 8192: %w", n, backend.ErrUnsupported)
		}
		return &rsaKey{hide(key)}, nil
	case *ecdsa.PrivateKey:
		switch key.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return &ecdsaKey{hide(key)}, nil
		}
		return nil, fmt.Errorf("is on the curve %s; use P-256, P-384 or P-521: %w", key.Params().Name, backend.ErrUnsupported)
	case ed25519.PrivateKey:
		return &ed25519Key{hide(key)}, nil
	}
	return nil, fmt.Errorf("is of a kind that cannot sign (%T); use RSA, ECDSA or Ed25519: %w", key, backend.ErrUnsupported)
}

// readPEM returns all blocks in a file. what says what it should have in it. If secret, the
// mode of the file is checked.
func readPEM(name, what string, secret bool) ([]*pem.Block, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("file: there is no %s file %q; correct the name, or make a CA with CreateCA (%w): %w", what, name, err, backend.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("file: opening the %s file: %w", what, err)
	}
	defer f.Close()

	// The mode is that of the file which is open, whatever the name leads to by now.
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("file: opening the %s file: %w", what, err)
	}
	if info.IsDir() {
		return nil, fmt.Errorf("file: %q is a directory; name the %s file in it: %w", name, what, backend.ErrNotFound)
	}
	if secret && runtime.GOOS != "windows" && info.Mode().Perm()&0o027 != 0 {
		return nil, fmt.Errorf("file: others may read or change the key file %q (mode %04o); run `chmod 600 %s`, and replace the key if they may have done so",
			name, info.Mode().Perm(), name)
	}

	blocks, size, err := custody.ReadPEM(f)
	if err != nil {
		return nil, fmt.Errorf("file: the %s file %q %w", what, name, err)
	}
	if len(blocks) > 0 {
		return blocks, nil
	}
	if size == 0 {
		return nil, fmt.Errorf("file: the %s file %q is empty; restore it, or remove it to make a new one: %w", what, name, backend.ErrNotFound)
	}
	command := "pkey"
	if !secret {
		command = "x509"
	}
	return nil, fmt.Errorf("file: the %s file %q is not PEM; if it is DER, convert it with `openssl %s -inform der -in %s -out NEW`: %w",
		what, name, command, name, backend.ErrNotFound)
}
