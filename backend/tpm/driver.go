package tpm

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/internal/custody"
)

// Driver is the [backend.Driver] of keys in a TPM. Its zero value is usable, by pointer:
//
//	tpm:/etc/scep/ca.tpm?chain=/etc/scep/ca.pem
//	tpm:/etc/scep/ra.tpm?chain=/etc/scep/ra.pem&device=/dev/tpmrm0&auth-source=file:/run/secrets/ra
//	tpm:?handle=0x81010000&chain=/etc/scep/ca.pem
//
// The query attributes are those of [Name] (handle, chain, auth-source, parent and parent-name)
// and device, which is as in [Config]. Any other is an error.
//
// Keys of one Driver share the connection to their device, which is closed with the last of
// them. Use one Driver for all of them where the TPM cannot be shared otherwise.
type Driver struct {
	// Dial and Timeout are as in Config. With Dial, device only tells TPMs apart.
	Dial    func(ctx context.Context) (io.ReadWriteCloser, error)
	Timeout time.Duration

	mu   sync.Mutex
	open map[string]*shared
}

// shared is a TPM that keys use.
type shared struct {
	tpm  *TPM
	keys int
}

var _ backend.Driver = (*Driver)(nil)

// Scheme returns "tpm".
func (d *Driver) Scheme() string { return "tpm" }

// Open implements [backend.Driver].
func (d *Driver) Open(ctx context.Context, u *backend.URI) (*backend.Key, error) {
	return d.with(u, func(t *TPM, n Name) (*backend.Key, error) { return t.OpenKey(ctx, n) })
}

// Create implements [backend.Driver]; see [TPM.Create].
func (d *Driver) Create(ctx context.Context, u *backend.URI, spec backend.Spec) (*backend.Key, error) {
	return d.with(u, func(t *TPM, n Name) (*backend.Key, error) { return t.Create(ctx, n, spec) })
}

// Import implements [backend.Driver]. It needs chain, and writes that file.
func (d *Driver) Import(ctx context.Context, u *backend.URI, certs []*x509.Certificate, replace bool) error {
	n, _, err := parse(u)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("tpm: %w", ended(ctx))
	}
	if n.Chain == "" {
		return fmt.Errorf("tpm: the URI does not say where the certificates of the %v belong; name a file with chain=: %w", n, backend.ErrUnsupported)
	}
	if err := custody.WriteChain(n.Chain, certs, replace); err != nil {
		return fmt.Errorf("tpm: %w", err)
	}
	return nil
}

// with calls f with the TPM that u names, which stays open as long as the key that f returns.
func (d *Driver) with(u *backend.URI, f func(*TPM, Name) (*backend.Key, error)) (*backend.Key, error) {
	n, device, err := parse(u)
	if err != nil {
		return nil, err
	}
	t, err := d.take(device)
	if err != nil {
		return nil, err
	}
	k, err := f(t, n)
	if err != nil {
		return nil, errors.Join(err, d.release(device))
	}
	closeKey := k.Closer
	k.Closer = sync.OnceValue(func() error { return errors.Join(closeKey(), d.release(device)) })
	return k, nil
}

func (d *Driver) take(device string) (*TPM, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.open[device]
	if s == nil {
		t, err := Open(Config{Device: device, Dial: d.Dial, Timeout: d.Timeout})
		if err != nil {
			return nil, err
		}
		if d.open == nil {
			d.open = map[string]*shared{}
		}
		s = &shared{tpm: t}
		d.open[device] = s
	}
	s.keys++
	return s.tpm, nil
}

func (d *Driver) release(device string) error {
	d.mu.Lock()
	s := d.open[device]
	s.keys--
	last := s.keys == 0
	if last {
		delete(d.open, device)
	}
	d.mu.Unlock()
	if last {
		return s.tpm.Close()
	}
	return nil
}

// parse reads u.
func parse(u *backend.URI) (n Name, device string, err error) {
	if err := u.Only(nil, []string{"device", "chain", "auth-source", "handle", "parent", "parent-name"}); err != nil {
		return n, "", fmt.Errorf("tpm: %w", err)
	}
	n = Name{File: u.Path, Chain: u.Query["chain"], AuthSource: u.Query["auth-source"], ParentName: u.Query["parent-name"]}
	for _, h := range []struct {
		name string
		to   *uint32
	}{{"handle", &n.Handle}, {"parent", &n.Parent}} {
		text, ok := u.Query[h.name]
		if !ok {
			continue
		}
		v, err := strconv.ParseUint(text, 0, 32)
		if err != nil || v == 0 {
			return n, "", fmt.Errorf("tpm: %s of %s is not a handle; write it as 0x81000001: %w", h.name, u, backend.ErrUnsupported)
		}
		*h.to = uint32(v)
	}
	if n.File == "" && n.Handle == 0 {
		return n, "", fmt.Errorf("tpm: the URI %s names no key; write tpm:/etc/scep/ca.tpm or tpm:?handle=0x81010000: %w", u, backend.ErrNotFound)
	}
	if n.Chain != "" && n.File != "" && filepath.Clean(n.Chain) == filepath.Clean(n.File) {
		n.Chain = "" // which is what that means
	}
	return n, u.Query["device"], nil
}
