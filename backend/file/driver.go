package file

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/internal/custody"
	"github.com/scepkit/scepkit/scep"
)

// Driver is the [backend.Driver] of key files:
//
//	file:/etc/scep/ca.key?chain=/etc/scep/ca.pem
//
// The key is as [Open] takes it. chain names the file with the certificates; without it they
// are looked for in the key file.
//
// Create makes the key file, with mode 0600. Import needs chain, and writes that file. Nothing
// is kept open: closing a key does nothing.
type Driver struct{}

var _ backend.Driver = Driver{}

// Scheme returns "file".
func (Driver) Scheme() string { return "file" }

// Open implements [backend.Driver].
func (Driver) Open(ctx context.Context, u *backend.URI) (*backend.Key, error) {
	name, chain, err := names(ctx, u)
	if err != nil {
		return nil, err
	}
	signer, blocks, err := readKey(name)
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	if chain == "" {
		chain = name
		certs, err = parseCerts(blocks, name)
	} else if certs, err = readChain(chain); errors.Is(err, fs.ErrNotExist) {
		err = nil // as before Import
	}
	if err != nil {
		return nil, err
	}
	id := &scep.Identity{Certificates: certs, Key: signer}
	if len(certs) > 0 {
		if err := checkPair(id, chain, name); err != nil {
			return nil, err
		}
	}
	return describe(id, name)
}

// Create implements [backend.Driver]. An RSA key can always decrypt.
func (Driver) Create(ctx context.Context, u *backend.URI, spec backend.Spec) (*backend.Key, error) {
	name, chain, err := names(ctx, u)
	if err != nil {
		return nil, err
	}
	if there, err := exists(name); err != nil {
		return nil, err
	} else if there {
		return nil, fmt.Errorf("file: there is a file %q; open it, or name another: %w", name, fs.ErrExist)
	}
	if chain != "" {
		if there, err := exists(chain); err != nil {
			return nil, err
		} else if there {
			return nil, fmt.Errorf("file: there is a certificate in %q and no key in %q; restore the key, or name other files: %w", chain, name, fs.ErrExist)
		}
	}
	priv, err := generate(spec.KeyType)
	if err != nil {
		return nil, err
	}
	signer, err := newKey(priv)
	if err != nil {
		return nil, fmt.Errorf("file: the new key %w", err)
	}
	data, err := encodeKey(priv)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("file: making a key: %w", err)
	}
	if err := custody.WriteNew(name, data, 0o600, os.Link); err != nil {
		return nil, fmt.Errorf("file: writing the key: %w", err)
	}
	return describe(&scep.Identity{Key: signer}, name)
}

// Import implements [backend.Driver].
func (Driver) Import(ctx context.Context, u *backend.URI, certs []*x509.Certificate, replace bool) error {
	name, chain, err := names(ctx, u)
	if err != nil {
		return err
	}
	if chain == "" {
		return fmt.Errorf("file: the URI does not say where the certificates of %q belong; name a file with ?chain=: %w", name, backend.ErrUnsupported)
	}
	if err := custody.WriteChain(chain, certs, replace); err != nil {
		return fmt.Errorf("file: %w", err)
	}
	return nil
}

// names returns the names of the key file and of the chain file, or "".
func names(ctx context.Context, u *backend.URI) (name, chain string, err error) {
	if err := ctx.Err(); err != nil {
		return "", "", fmt.Errorf("file: %w", context.Cause(ctx))
	}
	if err := u.Only(nil, []string{"chain"}); err != nil {
		return "", "", fmt.Errorf("file: %w", err)
	}
	name, chain = u.Path, u.Query["chain"]
	if name == "" {
		return "", "", fmt.Errorf("file: the URI %s names no file; write file:/etc/scep/ca.key: %w", u, backend.ErrNotFound)
	}
	if chain != "" && filepath.Clean(chain) == filepath.Clean(name) {
		return "", "", fmt.Errorf("file: key and certificates would both be %q; leave chain= out if they are, or name two files", name)
	}
	return name, chain, nil
}

// describe returns id, whose key is in the file name.
func describe(id *scep.Identity, name string) (*backend.Key, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("file: %w", err)
	}
	return &backend.Key{Identity: id, Description: []backend.Attribute{
		{Name: "file", Value: name},
		{Name: "key", Value: backend.Describe(id.Key.Public())},
		{Name: "protection", Value: fmt.Sprintf("file mode %04o, not encrypted", info.Mode().Perm())},
	}}, nil
}
