package file

import (
	"context"
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
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/internal/custody"
	"github.com/scepkit/scepkit/scep"
)

// CAOptions say what [CreateCA] makes. The zero CAOptions is usable.
type CAOptions struct {
	// KeyType is the kind of key. If zero, backend.RSA2048.
	KeyType backend.KeyType

	// Subject is the name of the CA. If empty, CN=SCEP CA.
	Subject pkix.Name

	// Validity is how long the certificate is valid from now on. If zero, ten years of 365 days.
	Validity time.Duration

	// Time returns the current time. If nil, time.Now is used.
	Time func() time.Time
}

// CreateCA makes a key and a self-signed CA certificate for it, writes the certificate to the
// file chain and the key to the file key, and returns both. [Open] opens them again.
//
// The certificate may sign certificates, CRLs and messages, with an RSA key also decrypt, and
// has no CA below it. It starts an hour back, for devices with slow clocks.
//
// CreateCA never overwrites: if one of the files exists, the error wraps [fs.ErrExist]. The key
// is written first, with mode 0600, and is on disk before the certificate is. Neither file is
// ever seen half written, though for a moment empty where the file system has no hard links. If
// a crash leaves a key without a certificate, the next call says so.
func CreateCA(chain, key string, o CAOptions) (*scep.Identity, error) {
	if err := checkVacant(chain, key); err != nil {
		return nil, err
	}
	priv, err := generate(o.KeyType)
	if err != nil {
		return nil, err
	}
	signer, err := newKey(priv)
	if err != nil {
		return nil, fmt.Errorf("file: the new key %w", err)
	}

	cert, err := backend.SelfSign(context.Background(), signer, backend.CAOptions{Subject: o.Subject, Validity: o.Validity, Time: o.Time})
	if err != nil {
		return nil, fmt.Errorf("file: %w", err)
	}

	keyPEM, err := encodeKey(priv)
	if err != nil {
		return nil, err
	}
	if err := custody.WriteNew(key, keyPEM, 0o600, os.Link); err != nil {
		return nil, fmt.Errorf("file: writing the CA key: %w", err)
	}
	if err := custody.WriteNew(chain, encodeCerts(cert), 0o644, os.Link); err != nil {
		// Nobody has seen what this key signed.
		return nil, errors.Join(fmt.Errorf("file: writing the CA certificate: %w", err), os.Remove(key))
	}
	return &scep.Identity{Certificates: []*x509.Certificate{cert}, Key: signer}, nil
}

// checkVacant reports which of the two files exists, and what to do about it.
func checkVacant(chain, key string) error {
	if filepath.Clean(chain) == filepath.Clean(key) {
		return fmt.Errorf("file: certificate and key would both be %q; name two files", chain)
	}
	haveChain, err := exists(chain)
	if err != nil {
		return err
	}
	haveKey, err := exists(key)
	if err != nil {
		return err
	}
	switch {
	case haveChain && haveKey:
		return fmt.Errorf("file: there is a CA in %q and %q; use Open, or name other files: %w", chain, key, fs.ErrExist)
	case haveKey:
		return fmt.Errorf("file: there is a key in %q and no certificate in %q; if CreateCA was interrupted, nothing uses the key: remove %q and call it again; otherwise restore the certificate: %w",
			key, chain, key, fs.ErrExist)
	case haveChain:
		return fmt.Errorf("file: there is a certificate in %q and no key in %q; restore the key, or name other files: %w", chain, key, fs.ErrExist)
	}
	return nil
}

func exists(name string) (bool, error) {
	_, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("file: %w", err)
	}
	return true, nil
}

// generate makes a key.
func generate(t backend.KeyType) (crypto.Signer, error) {
	switch t {
	case backend.RSA2048:
		return rsa.GenerateKey(rand.Reader, 2048)
	case backend.RSA3072:
		return rsa.GenerateKey(rand.Reader, 3072)
	case backend.RSA4096:
		return rsa.GenerateKey(rand.Reader, 4096)
	case backend.P256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case backend.P384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case backend.Ed25519:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	}
	return nil, fmt.Errorf("file: unknown KeyType %d: %w", t, backend.ErrUnsupported)
}

func encodeKey(key crypto.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("file: encoding the new key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func encodeCerts(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, cert := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return out
}
