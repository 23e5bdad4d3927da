package custody

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
)

// MaxFile is how many bytes a PEM file may have. Real ones have a few thousand.
const MaxFile = 1 << 20

var (
	errTooLarge = fmt.Errorf("has more than %d bytes; name a PEM file: %w", MaxFile, ErrUnsupported)
	errDamaged  = errors.New("has a PEM block that is cut off or damaged; restore the file from where it came")
)

// ReadPEM returns all blocks, and how many bytes were read. Its errors go on from the name of the
// file.
func ReadPEM(r io.Reader) (blocks []*pem.Block, size int, err error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxFile+1))
	if err != nil {
		return nil, 0, fmt.Errorf("cannot be read: %w", err)
	}
	if len(data) > MaxFile {
		return nil, 0, errTooLarge
	}
	for b, rest := pem.Decode(data); b != nil; b, rest = pem.Decode(rest) {
		blocks = append(blocks, b)
	}
	// Decode passes over blocks that are damaged.
	if begun := bytes.Count(append([]byte("\n"), data...), []byte("\n-----BEGIN ")); begun != len(blocks) {
		return nil, 0, errDamaged
	}
	return blocks, len(data), nil
}

// Certificates returns the certificates in blocks, which are those of the file name.
func Certificates(blocks []*pem.Block, name string) (certs []*x509.Certificate, err error) {
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
