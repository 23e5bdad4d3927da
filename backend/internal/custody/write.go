package custody

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
)

// WriteNew makes the file name with data in it, and has both on disk when it returns nil. If
// the file exists, or somebody else makes it first, the error wraps fs.ErrExist. After an error
// there is no file that was not there before. link is os.Link, or a test's.
//
// The file is written under another name and then linked to its own, so that it is there whole
// or not at all. A crash may leave the other name behind: .NAME-*.tmp, which nothing reads.
func WriteNew(name string, data []byte, mode fs.FileMode, link func(from, to string) error) error {
	temp, err := writeTemp(name, data, mode)
	if err != nil {
		return err
	}
	defer os.Remove(temp)
	err = link(temp, name)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		err = placeOver(temp, name)
	}
	if err != nil {
		return err
	}
	if err := SyncDir(filepath.Dir(name)); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	return nil
}

// Replace is WriteNew for a file that may exist: then it is the old one until it is the new one.
func Replace(name string, data []byte, mode fs.FileMode) error {
	temp, err := writeTemp(name, data, mode)
	if err != nil {
		return err
	}
	if err := os.Rename(temp, name); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return SyncDir(filepath.Dir(name))
}

// writeTemp writes data to a new file beside name, has it on disk, and returns its name.
func writeTemp(name string, data []byte, mode fs.FileMode) (temp string, err error) {
	dir, base := filepath.Dir(name), filepath.Base(name)
	f, err := os.CreateTemp(dir, "."+base+"-*.tmp") // mode 0600
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("there is no directory %q; make it first: %w", dir, err)
	}
	if err != nil {
		return "", err
	}
	_, err = f.Write(data)
	if err == nil && mode != 0o600 {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

// placeOver renames temp to name where the file system has no links. Rename overwrites, so an
// empty file is made first, which only one caller can make.
func placeOver(temp, name string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	if err := os.Rename(temp, name); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	return nil
}

// SyncDir has the names in dir on disk.
func SyncDir(dir string) error {
	if runtime.GOOS == "windows" { // which has no such thing, and needs none
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		err = nil // some network file systems refuse, and need none
	}
	return errors.Join(err, d.Close())
}

// WriteChain writes certificates to a PEM file. If the file exists the error wraps fs.ErrExist,
// unless replace is true; one with a private key in it is never replaced.
func WriteChain(name string, certs []*x509.Certificate, replace bool) error {
	var b bytes.Buffer
	for _, cert := range certs {
		if err := pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}); err != nil {
			return err
		}
	}
	var err error
	if replace {
		if err := replaceable(name); err != nil {
			return err
		}
		err = Replace(name, b.Bytes(), 0o644)
	} else {
		err = WriteNew(name, b.Bytes(), 0o644, os.Link)
	}
	switch {
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("there is a file %q; replace it if that is meant, or name another: %w", name, fs.ErrExist)
	case err != nil:
		return fmt.Errorf("writing certificates to %q: %w", name, err)
	}
	return nil
}

// replaceable reports why a file, if it exists, must not be replaced by certificates.
func replaceable(name string) error {
	info, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() > 1<<20 {
		return fmt.Errorf("%q is not a file of certificates; it is not replaced", name)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if bytes.Contains(data, []byte("PRIVATE KEY")) {
		return fmt.Errorf("there is a private key in %q; it is not replaced", name)
	}
	return nil
}
