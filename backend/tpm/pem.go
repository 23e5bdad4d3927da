package tpm

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/scepkit/scepkit/backend"
)

// maxFile is how many bytes a file may have. Real ones have a few thousand.
const maxFile = 1 << 20

// readKeyFile returns the one key in a PEM file, and the certificates if there are any. Its mode
// does not matter: what is in it is of no use without TPM and authorization value.
func readKeyFile(name string) (*keyFile, []*x509.Certificate, error) {
	blocks, err := readPEM(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("there is no such file; correct the name, or create the key (%w): %w", err, backend.ErrNotFound)
	}
	if err != nil {
		return nil, nil, err
	}
	var found *pem.Block
	for _, b := range blocks {
		switch {
		case b.Type == blockType && found != nil:
			return nil, nil, fmt.Errorf("there is more than one key in it; leave one: %w", backend.ErrAmbiguous)
		case b.Type == blockType:
			found = b
		case strings.HasSuffix(b.Type, "PRIVATE KEY"):
			return nil, nil, fmt.Errorf("it has a %s, which is not of a TPM; open it with file:, or name another: %w", b.Type, backend.ErrUnsupported)
		}
	}
	if found == nil {
		return nil, nil, fmt.Errorf("there is no %s block in it; name the file that has the key: %w", blockType, backend.ErrNotFound)
	}
	k, err := parseKeyFile(found.Bytes)
	if err != nil {
		return nil, nil, err
	}
	certs, err := certificates(blocks, name)
	return k, certs, err
}

// readChain returns the certificates in a PEM file, at least one.
func readChain(name string) ([]*x509.Certificate, error) {
	blocks, err := readPEM(name)
	if err != nil {
		return nil, err
	}
	certs, err := certificates(blocks, name)
	if err == nil && len(certs) == 0 {
		return nil, fmt.Errorf("no CERTIFICATE block in %q; name the file that has the certificate of the key: %w", name, backend.ErrNotFound)
	}
	return certs, err
}

func certificates(blocks []*pem.Block, name string) (certs []*x509.Certificate, err error) {
	for _, b := range blocks {
		if b.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d in %q cannot be read (%w); export it again", len(certs)+1, name, err)
		}
		certs = append(certs, cert)
	}
	return certs, nil
}

// readPEM returns all blocks in a file.
func readPEM(name string) ([]*pem.Block, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading %q: %w", name, err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%q has more than %d bytes; name a PEM file: %w", name, maxFile, backend.ErrUnsupported)
	}
	var blocks []*pem.Block
	for b, rest := pem.Decode(data); b != nil; b, rest = pem.Decode(rest) {
		blocks = append(blocks, b)
	}
	// Decode passes over blocks that are damaged.
	if begun := bytes.Count(append([]byte("\n"), data...), []byte("\n-----BEGIN ")); begun != len(blocks) {
		return nil, fmt.Errorf("a PEM block in %q is cut off or damaged; restore the file from where it came", name)
	}
	return blocks, nil
}
