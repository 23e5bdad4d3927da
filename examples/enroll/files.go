package main

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/scepkit/scepkit/scep/scepclient"
)

// files are those of one -out NAME. If they take the place of others, they are staged: they are
// called NAME.new.key and NAME.new.pem until both are there.
type files struct {
	name   string
	staged bool
}

func (f files) key() string         { return f.current() + ".key" }
func (f files) certificate() string { return f.current() + ".pem" }
func (f files) pending() string     { return f.name + ".pending" }

func (f files) current() string {
	if f.staged {
		return f.name + ".new"
	}
	return f.name
}

// prepare makes sure that nothing is lost: neither a certificate nor a request that waits.
func (f *files) prepare(force bool) error {
	_, err := os.Stat(f.pending())
	if err == nil && !force {
		return fmt.Errorf("a request waits for approval in %s; go on with it by enroll poll -out %s, or give -force for a new one", f.pending(), f.name)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_, err = os.Stat(f.certificate())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !force {
		return fmt.Errorf("%s is there already; use another -out, or -force to replace it", f.certificate())
	}
	f.staged = true
	return nil
}

// finish writes the certificate and, if the files are staged, puts them in the place of the old
// ones. key is where the key is, if it is not among these files.
//
// After a crash in the midst of it everything is still there, under the new names or the old.
func (f files) finish(cert *x509.Certificate, key string) error {
	if err := writeFile(f.certificate(), certificatePEM(cert), 0o644, f.staged); err != nil {
		return err
	}
	if f.staged {
		to := files{name: f.name}
		if err := keep(to.key()); err != nil {
			return err
		}
		if err := keep(to.certificate()); err != nil {
			return err
		}
		if key == "" {
			if err := os.Rename(f.key(), to.key()); err != nil {
				return err
			}
		} else if !sameFile(key, to.key()) {
			if err := os.Remove(to.key()); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if err := os.Rename(f.certificate(), to.certificate()); err != nil {
			return err
		}
	}
	return f.removeWaiting()
}

func sameFile(a, b string) bool {
	ia, errA := os.Stat(a)
	ib, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(ia, ib)
}

// keep gives a file, if it is there, the further name NAME.old.
func keep(name string) error {
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	return writeFile(name+".old", text, info.Mode().Perm(), true)
}

func (f files) removeWaiting() error {
	if err := os.Remove(f.pending()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
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

// waiting is what the file NAME.pending has.
type waiting struct {
	*scepclient.Pending
	Key       string `json:"key,omitempty"`    // file with the key that the certificate is for, if it is not NAME.key
	SignerKey string `json:"signerKey"`        // file with the key that signed the message
	Staged    bool   `json:"staged,omitempty"` // see files
}

func (f files) writeWaiting(w *waiting) error {
	// poll may be called from elsewhere.
	stored := *w
	for _, name := range []*string{&stored.Key, &stored.SignerKey} {
		if *name == "" {
			continue
		}
		path, err := filepath.Abs(*name)
		if err != nil {
			return err
		}
		*name = path
	}
	text, err := json.MarshalIndent(stored, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(f.pending(), append(text, '\n'), 0o600, true)
}

func (f files) readWaiting() (*waiting, error) {
	text, err := os.ReadFile(f.pending())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is not there: no request of that name waits for approval", f.pending())
	}
	if err != nil {
		return nil, err
	}
	w := &waiting{Pending: &scepclient.Pending{}}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(w); err != nil {
		return nil, fmt.Errorf("%s: %w", f.pending(), err)
	}
	return w, nil
}

// writeFile writes a file whole or not at all, and to the disk. Unless replace is set, one that
// is there stays.
func writeFile(name string, data []byte, mode fs.FileMode, replace bool) (err error) {
	temp, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*.tmp") // mode 0600
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
		err = os.Rename(temp.Name(), name)
	} else {
		err = os.Link(temp.Name(), name)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if dir, err := os.Open(filepath.Dir(name)); err == nil {
		dir.Sync() // the name as well, where the system can do that
		dir.Close()
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
