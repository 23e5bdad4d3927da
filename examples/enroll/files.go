package main

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// files are those of one -out NAME.
type files struct{ name string }

func (f files) key() string         { return f.name + ".key" }
func (f files) certificate() string { return f.name + ".pem" }
func (f files) pending() string     { return f.name + ".pending" }

// vacate makes sure that no certificate is there, nor, with a key from elsewhere, a key. With
// force it renames them.
func (f files) vacate(force bool, keyFile string) error {
	_, err := os.Stat(f.certificate())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !force {
		return fmt.Errorf("%s is there already; use another -out, or -force to rename it", f.certificate())
	}
	for _, name := range []string{f.certificate(), f.key()} {
		if name == keyFile {
			continue // it is used again
		}
		if err := os.Rename(name, name+".old"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (f files) writeKey(key *rsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return writeFile(f.key(), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600, false)
}

func (f files) writeCertificate(cert *x509.Certificate) error {
	return writeFile(f.certificate(), certificatePEM(cert), 0o644, false)
}

func (f files) writeWaiting(w *waiting) error {
	text, err := json.MarshalIndent(w, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(f.pending(), append(text, '\n'), 0o600, true)
}

// writeFile writes a file whole or not at all. Unless replace is set, one that is there stays.
func writeFile(name string, data []byte, mode fs.FileMode, replace bool) (err error) {
	temp, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*.tmp")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name()) // after it was linked, or when something went wrong
	if _, err = temp.Write(data); err == nil {
		err = temp.Chmod(mode)
	}
	if err == nil {
		err = temp.Sync()
	}
	if closing := temp.Close(); err == nil {
		err = closing
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if replace {
		return os.Rename(temp.Name(), name)
	}
	if err := os.Link(temp.Name(), name); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func certificatePEM(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

func readCertificates(name string) ([]*x509.Certificate, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("%s has no certificate in PEM", name)
	}
	return certs, nil
}

func readKey(name string) (*rsa.PrivateKey, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case "RSA PRIVATE KEY":
			return x509.ParsePKCS1PrivateKey(block.Bytes)
		case "PRIVATE KEY":
			key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			if key, ok := key.(*rsa.PrivateKey); ok {
				return key, nil
			}
			return nil, fmt.Errorf("%s has a key of type %T; replies are encrypted to it, which needs RSA", name, key)
		}
	}
	return nil, fmt.Errorf("%s has no private key in PEM, or an encrypted one", name)
}
