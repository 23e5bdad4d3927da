package file

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/scep"
)

// A KeyType is a kind of key for [CreateCA].
type KeyType uint8

const (
	// RSA2048 is RSA with 2048 bits. It is the zero KeyType because an RSA key can also open
	// requests, so that a CA needs no RA, and because every device understands it.
	RSA2048 KeyType = iota
	RSA3072         // RSA with 3072 bits
	RSA4096         // RSA with 4096 bits
	P256            // ECDSA on P-256; needs an [RA]
	P384            // ECDSA on P-384; needs an [RA]
)

// CAOptions say what [CreateCA] makes. The zero CAOptions is usable.
type CAOptions struct {
	// KeyType is the kind of key. If zero, RSA2048.
	KeyType KeyType

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
	if o.Validity < 0 {
		return nil, fmt.Errorf("file: CAOptions.Validity is negative (%v)", o.Validity)
	}
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

	now := clock(o.Time)
	if o.Validity == 0 {
		o.Validity = 10 * 365 * 24 * time.Hour
	}
	if len(o.Subject.ToRDNSequence()) == 0 {
		o.Subject = pkix.Name{CommonName: "SCEP CA"}
	}
	tmpl := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               o.Subject,
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(o.Validity),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	if _, ok := priv.(*rsa.PrivateKey); ok {
		tmpl.KeyUsage |= x509.KeyUsageKeyEncipherment
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, signer.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("file: signing the CA certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("file: reading the CA certificate just made: %w", err)
	}

	keyPEM, err := encodeKey(priv)
	if err != nil {
		return nil, err
	}
	if err := writeNew(key, keyPEM, 0o600, os.Link); err != nil {
		return nil, fmt.Errorf("file: writing the CA key: %w", err)
	}
	if err := writeNew(chain, encodeCerts(cert), 0o644, os.Link); err != nil {
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
func generate(t KeyType) (crypto.Signer, error) {
	switch t {
	case RSA2048:
		return rsa.GenerateKey(rand.Reader, 2048)
	case RSA3072:
		return rsa.GenerateKey(rand.Reader, 3072)
	case RSA4096:
		return rsa.GenerateKey(rand.Reader, 4096)
	case P256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case P384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	}
	return nil, fmt.Errorf("file: unknown KeyType %d: %w", t, backend.ErrUnsupported)
}

// newSerial returns a serial number of 20 bytes, 158 bits of them random. The first byte is
// neither zero nor needs a sign octet before it: RFC 5280, 4.1.2.2 allows no 21st.
func newSerial() *big.Int {
	b := make([]byte, 20)
	rand.Read(b)
	b[0] = b[0]&0x3f | 0x40
	return new(big.Int).SetBytes(b)
}

// clock returns the time in whole seconds, as certificates have it.
func clock(now func() time.Time) time.Time {
	if now == nil {
		now = time.Now
	}
	return now().UTC().Truncate(time.Second)
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
