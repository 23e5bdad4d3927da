package tpm

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/internal/custody"
)

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
	certs, err := custody.Certificates(blocks, name)
	return k, certs, err
}

// readChain returns the certificates in a PEM file, at least one.
func readChain(name string) ([]*x509.Certificate, error) {
	blocks, err := readPEM(name)
	if err != nil {
		return nil, err
	}
	certs, err := custody.Certificates(blocks, name)
	if err == nil && len(certs) == 0 {
		return nil, fmt.Errorf("no CERTIFICATE block in %q; name the file that has the certificate of the key: %w", name, backend.ErrNotFound)
	}
	return certs, err
}

// readPEM returns all blocks in a file.
func readPEM(name string) ([]*pem.Block, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	blocks, _, err := custody.ReadPEM(f)
	if err != nil {
		return nil, fmt.Errorf("%q %w", name, err)
	}
	return blocks, nil
}
