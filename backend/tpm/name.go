package tpm

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/internal/custody"
	"github.com/scepkit/scepkit/scep"
)

// A Name says where a key is.
type Name struct {
	// File is a PEM file with a TSS2 PRIVATE KEY. Either this or Handle is required.
	File string

	// Handle is where the TPM itself keeps the key, as 0x81010000. Such keys are opened, not
	// made: tpm2_evictcontrol makes them.
	Handle uint32

	// Chain is a PEM file with the certificates of the key: its own first, then its issuers,
	// root last and optional. If empty, they are looked for in File.
	Chain string

	// AuthSource is where the authorization value of the key is, as [backend.ReadPIN] takes it.
	// If empty, it is in the file that is named as File with .auth after it, unless File says
	// that the value is empty. The value of a key at a Handle is empty then.
	AuthSource string

	// Parent is the persistent storage key below which Create makes a key, as 0x81000001. If
	// zero, it is the one that the TPM makes for its owner, as tpm2-openssl has it. A key file
	// says itself what it is below. A session with a key at a Handle is encrypted to it.
	Parent uint32

	// ParentName is the name of the storage key in hexadecimal, as the description of a key has
	// it. If not empty, no other is used. See the package comment for what that is good for.
	ParentName string
}

// maxAuth is how long an authorization value may be: a SHA-256 hash (TPM 2.0 Part 1, 27.2.2).
const maxAuth = 32

// String returns what errors call the key.
func (n Name) String() string {
	if n.File != "" {
		return fmt.Sprintf("key %q", n.File)
	}
	return fmt.Sprintf("key at %#x", n.Handle)
}

// OpenKey opens a key, with its certificates if there are any, and tries it out. Closing it
// ends its use, but not that of the TPM.
func (t *TPM) OpenKey(ctx context.Context, n Name) (*backend.Key, error) {
	k, err := t.openKey(ctx, n)
	if err != nil {
		return nil, n.wrap(err)
	}
	return k, nil
}

// wrap names package and key in an error, unless it does already.
func (n Name) wrap(err error) error {
	if strings.HasPrefix(err.Error(), "tpm: ") {
		return err
	}
	return fmt.Errorf("tpm: %v: %w", n, err)
}

// Identity opens the key in the file key with the certificates in the file chain, which may be
// the same file. Without certificates the error wraps [backend.ErrNotFound]. Both are as in
// [Name].
func (t *TPM) Identity(ctx context.Context, key, chain string) (*scep.Identity, error) {
	k, err := t.OpenKey(ctx, Name{File: key, Chain: chain})
	if err != nil {
		return nil, err
	}
	if len(k.Certificates) == 0 {
		return nil, fmt.Errorf("tpm: there is no certificate for the key %q in %q; name the file that has it: %w", key, chain, backend.ErrNotFound)
	}
	return k.Identity, nil
}

func (t *TPM) openKey(ctx context.Context, n Name) (*backend.Key, error) {
	m, certs, err := t.read(ctx, n)
	if err != nil {
		return nil, err
	}
	source := n.Chain
	if source == "" {
		source = n.File
	} else if certs, err = readChain(n.Chain); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	k, err := t.try(ctx, n, m)
	if err != nil {
		return nil, err
	}
	if len(certs) > 0 {
		if err := custody.CheckChain(m.key, "key", certs, fmt.Sprintf("%q", source)); err != nil {
			return nil, err
		}
	}
	k.Certificates = certs
	return k, nil
}

// read collects what it takes to use a key, and the certificates in its file.
func (t *TPM) read(ctx context.Context, n Name) (*material, []*x509.Certificate, error) {
	if err := n.check(); err != nil {
		return nil, nil, err
	}
	m := &material{storage: n.storage()}
	var err error
	if m.pin, err = n.pin(); err != nil {
		return nil, nil, err
	}
	if n.File == "" {
		m.persistent = tpm2.TPMHandle(n.Handle)
		area, err := t.publicAt(ctx, m.persistent)
		if err != nil {
			return nil, nil, err
		}
		if err := m.setPublic(area); err != nil {
			return nil, nil, err
		}
		m.auth, err = readAuth(ctx, n.AuthSource)
		return m, nil, err
	}

	file, certs, err := readKeyFile(n.File)
	if err != nil {
		return nil, nil, err
	}
	if n.Parent != 0 && file.storage != n.storage() {
		return nil, nil, fmt.Errorf("it is below the storage key at %#x, not %#x; leave the parent out: %w", uint32(file.storage.handle), n.Parent, backend.ErrUnsupported)
	}
	m.storage = file.storage
	m.private = tpm2.TPM2BPrivate{Buffer: file.private}
	if err := m.setPublic(file.public); err != nil {
		return nil, nil, err
	}
	source := n.AuthSource
	if source == "" && !file.emptyAuth {
		source = absolute(n.authFile())
	}
	m.auth, err = readAuth(ctx, source)
	return m, certs, err
}

// check reports why n names nothing.
func (n Name) check() error {
	switch {
	case n.File == "" && n.Handle == 0:
		return fmt.Errorf("neither file nor handle is given; name one: %w", backend.ErrNotFound)
	case n.File != "" && n.Handle != 0:
		return fmt.Errorf("it is both in a file and at the handle %#x; name one: %w", n.Handle, backend.ErrAmbiguous)
	case n.Handle != 0 && n.Handle>>24 != 0x81:
		return fmt.Errorf("a key that stays in a TPM is at 0x81000000 to 0x81ffffff: %w", backend.ErrUnsupported)
	case n.Parent != 0 && n.Parent>>24 != 0x81:
		return fmt.Errorf("its parent is %#x; a persistent storage key is at 0x81000000 to 0x81ffffff, often 0x81000001: %w", n.Parent, backend.ErrUnsupported)
	}
	return nil
}

func (n Name) storage() storageRef {
	if n.Parent != 0 {
		return storageRef{handle: tpm2.TPMHandle(n.Parent)}
	}
	return storageRef{handle: tpm2.TPMRHOwner}
}

func (n Name) authFile() string { return n.File + ".auth" }

// pin reads ParentName.
func (n Name) pin() ([]byte, error) {
	if n.ParentName == "" {
		return nil, nil
	}
	b, err := hex.DecodeString(strings.TrimPrefix(n.ParentName, "0x"))
	if err != nil || len(b) < 22 { // algorithm, SHA-1
		return nil, fmt.Errorf("the name of a storage key is hexadecimal and has 68 digits, as tpm2_readpublic prints it: %w", backend.ErrUnsupported)
	}
	return b, nil
}

// absolute makes name one that ReadPIN takes as it is.
func absolute(name string) string {
	if abs, err := filepath.Abs(name); err == nil {
		return abs
	}
	return name
}

// readAuth reads an authorization value; from nowhere, an empty one.
func readAuth(ctx context.Context, source string) ([]byte, error) {
	if source == "" {
		return nil, nil
	}
	secret, err := backend.ReadPIN(ctx, source)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("its authorization value is missing; restore the file, or name where it is with auth-source=: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("reading its authorization value: %w", err)
	}
	auth := secret.Reveal()
	// Zero bytes at the end are none to a TPM (Part 1, 17.6.4.3), and none are in a text.
	if strings.ContainsRune(auth, 0) || len(auth) > 2*maxAuth {
		return nil, fmt.Errorf("what is in its auth-source is not an authorization value: that is a text of at most %d bytes: %w", maxAuth, backend.ErrPIN)
	}
	return []byte(auth), nil
}

// publicAt returns the public half of a persistent key.
func (t *TPM) publicAt(ctx context.Context, h tpm2.TPMHandle) ([]byte, error) {
	return run(ctx, t, t.timeout, func(o *op) ([]byte, error) {
		rsp, err := o.readPublic(h)
		if missing(err) {
			return nil, fmt.Errorf("the TPM keeps no key there; list what it keeps with `tpm2_getcap handles-persistent`: %w", backend.ErrNotFound)
		}
		if err != nil {
			return nil, err
		}
		return rsp.OutPublic.Bytes(), nil
	})
}

// try makes a key of m and tries it out.
func (t *TPM) try(ctx context.Context, n Name, m *material) (*backend.Key, error) {
	d := &device{t: t, m: m}
	signer, err := custody.New(m.key, d, custody.Options{Name: fmt.Sprintf("tpm: %v", n), Decrypts: m.decrypts()})
	if err != nil {
		return nil, err
	}
	if err := custody.Test(ctx, signer, m.signs()); err != nil {
		return nil, err
	}
	description, err := t.describe(ctx, n, m)
	if err != nil {
		return nil, err
	}
	last := &lastCheck{turn: make(chan struct{}, 1)}
	return &backend.Key{
		Identity:    &scep.Identity{Key: signer},
		Description: description,
		Checker: func(ctx context.Context) error {
			return last.check(ctx, func() error { return custody.Test(ctx, signer, m.signs()) })
		},
		Closer: func() error { d.closed.Store(true); return nil },
	}, nil
}

// lastCheck keeps the outcome of a check for a second.
type lastCheck struct {
	turn chan struct{}
	when time.Time
	err  error
}

func (l *lastCheck) check(ctx context.Context, f func() error) error {
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return fmt.Errorf("tpm: waiting for a check that runs: %w", ended(ctx))
	}
	if time.Since(l.when) < time.Second {
		return l.err
	}
	err := f()
	if ctx.Err() == nil { // otherwise it may tell more of the caller than of the key
		l.when, l.err = time.Now(), err
	}
	return err
}

// closed is whether a key was closed.
type closed struct{ atomic.Bool }

func (c *closed) check() error {
	if c.Load() {
		return fmt.Errorf("the key was closed: %w", backend.ErrUnavailable)
	}
	return nil
}
