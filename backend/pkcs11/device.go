//go:build cgo

//lint:file-ignore SA1019 SCEP devices send PKCS #1 v1.5

package pkcs11

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/ThalesGroup/crypto11"
	p11 "github.com/miekg/pkcs11"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/internal/custody"
	"github.com/scepkit/scepkit/scep"
)

// proofLife is how long a token that decrypted a block of our own is taken to be in order. Then
// an error that may mean a broken token or a malformed block means the block.
const proofLife = time.Second

// A device is one private key. It implements custody.Device and custody.Prover.
type device struct {
	t    *token
	kind uint // CKA_KEY_TYPE
	name keyName
	pub  crypto.PublicKey // of the candidate that is tried, then of the key

	mu         sync.Mutex
	generation uint64              // of handle
	handle     crypto11.PrivateKey // nil before the first use
	malformed  map[p11.Error]bool  // says so of a block, and not that the token is lost

	turn    chan struct{} // holds an element while somebody checks
	checked time.Time
	opening uint64 // the generation in which that was
	result  error
}

// open implements impl.
func (t *token) open(ctx context.Context, n keyName, files []string) (*backend.Key, error) {
	certs, err := readPEM(files)
	if err != nil {
		return nil, err
	}
	var k *found
	if err := t.look(ctx, func(s *session) (err error) { k, err = s.private(n); return err }); err != nil {
		return nil, fmt.Errorf("pkcs11: %s: %w", t.c.String(), explain(err))
	}
	signer, d, err := t.try(ctx, k)
	if err != nil {
		return nil, err
	}
	what, source := fmt.Sprintf("key %v", k.name), fmt.Sprint(files)
	if files == nil {
		source = t.c.String()
		if err := t.look(ctx, func(s *session) (err error) { certs, err = s.chain(k, d.pub); return err }); err != nil {
			return nil, fmt.Errorf("pkcs11: %s: %w", t.c.String(), explain(err))
		}
	}
	if len(certs) > 0 {
		if err := custody.CheckChain(d.pub, what, certs, source); err != nil {
			return nil, fmt.Errorf("pkcs11: %w", err)
		}
	}
	if k.weak != "" {
		t.c.Log.Warn("pkcs11: the key is not kept as a CA's should be", "token", t.c.String(), "key", k.name.String(), "because", k.weak)
	}
	t.m.mu.Lock()
	t.keys = append(t.keys, d)
	t.m.mu.Unlock()
	return &backend.Key{
		Identity:    &scep.Identity{Certificates: certs, Key: signer},
		Description: append([]backend.Attribute{{Name: "key", Value: backend.Describe(d.pub)}}, k.description...),
		Checker:     d.check,
	}, nil
}

// try finds out which of the public keys that may belong to the key does, and what it can do.
func (t *token) try(ctx context.Context, k *found) (crypto.Signer, *device, error) {
	var errs []error
	for _, pub := range k.publics {
		d := &device{t: t, kind: k.kind, name: k.name, pub: pub, turn: make(chan struct{}, 1)}
		o := custody.Options{Name: fmt.Sprintf("pkcs11: key %v of %s", k.name, t.c.String()), Decrypts: k.decrypt, Concurrency: t.c.Sessions, Proof: proofLife}
		signer, err := custody.New(pub, d, o)
		if err == nil {
			err = custody.Test(ctx, signer, k.sign)
		}
		if err == nil {
			return signer, d, nil
		}
		errs = append(errs, err)
		if !errors.Is(err, backend.ErrMismatch) {
			return nil, nil, err
		}
	}
	return nil, nil, fmt.Errorf("%w; the public key in the token must be this key's: write the right one, or remove the key that shares its id", errors.Join(errs...))
}

// readPEM returns the certificates in files.
func readPEM(files []string) (certs []*x509.Certificate, err error) {
	for _, name := range files {
		f, err := os.Open(name)
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("pkcs11: there is no certificate file %q: %w", name, backend.ErrNotFound)
		}
		if err != nil {
			return nil, fmt.Errorf("pkcs11: certificates: %w", err)
		}
		blocks, _, err := custody.ReadPEM(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("pkcs11: the certificate file %q %w", name, err)
		}
		some, err := custody.Certificates(blocks, name)
		if err != nil {
			return nil, fmt.Errorf("pkcs11: %w", err)
		}
		if len(some) == 0 {
			return nil, fmt.Errorf("pkcs11: no CERTIFICATE block in %q; name the PEM file that has the certificate of the key: %w", name, backend.ErrNotFound)
		}
		certs = append(certs, some...)
	}
	return certs, nil
}

// Sign implements custody.Device.
func (d *device) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if pss, ok := opts.(*rsa.PSSOptions); ok { // crypto11 does not know the special lengths
		opts = &rsa.PSSOptions{Hash: pss.Hash, SaltLength: custody.SaltLength(d.pub.(*rsa.PublicKey), pss)}
	}
	return d.use(ctx, true, func(k crypto11.PrivateKey) ([]byte, error) {
		return k.Sign(rand.Reader, digest, opts)
	})
}

// Decrypt implements custody.Device.
func (d *device) Decrypt(ctx context.Context, block []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	return d.decrypt(ctx, block, opts, false)
}

// DecryptOwn implements custody.Prover.
func (d *device) DecryptOwn(ctx context.Context, block []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	return d.decrypt(ctx, block, opts, true)
}

func (d *device) decrypt(ctx context.Context, block []byte, opts crypto.DecrypterOpts, own bool) ([]byte, error) {
	if o, ok := opts.(*rsa.OAEPOptions); ok && o.MGFHash != 0 && o.MGFHash != o.Hash {
		return nil, fmt.Errorf("OAEP with two hashes: %w", backend.ErrUnsupported) // which crypto11 does not offer
	}
	return d.use(ctx, own, func(k crypto11.PrivateKey) ([]byte, error) {
		return k.(crypto11.RSAPrivateKey).Decrypt(rand.Reader, block, opts)
	})
}

// mostReopened is how often the token is opened again for one operation: it may be lost once more
// while that goes on.
const mostReopened = 3

// use calls f with the key's handle, and again after an error that opening the token anew may
// mend. trusted says that what f gives the token is in order, so that an unclear error is the
// token's.
func (d *device) use(ctx context.Context, trusted bool, f func(crypto11.PrivateKey) ([]byte, error)) ([]byte, error) {
	m := d.t.m
	reopened, repeated := 0, false
	for {
		out, generation, err := m.run(ctx, d.t, func(c *crypto11.Context, generation uint64) ([]byte, error) {
			k, err := d.find(c, generation)
			if err != nil {
				return nil, err
			}
			return f(k)
		})
		if err == nil || ctx.Err() != nil {
			return out, err
		}
		switch classOf(err) {
		case request:
			if trusted && code(err) != p11.CKR_OK {
				err = fmt.Errorf("%w: %w", err, backend.ErrUnsupported)
			}
			return nil, err
		case unclear:
			if !trusted {
				return nil, err
			}
			if !repeated { // another session may do
				repeated = true
				continue
			}
		case refused:
			return nil, fmt.Errorf("%w: %w", err, backend.ErrPIN)
		}
		if !trusted && d.learned(code(err)) {
			return nil, err
		}
		if reopened > 0 && !trusted && ambiguous(err) && d.probe(ctx) == nil {
			// The token is in order: it is how it speaks of a malformed block.
			d.learn(code(err))
			return nil, err
		}
		if reopened == mostReopened {
			return nil, fmt.Errorf("%w, also after the token was opened again: %w", err, backend.ErrUnavailable)
		}
		reopened++
		if err := m.reopen(ctx, d.t, generation, err); err != nil {
			return nil, err
		}
	}
}

// learned reports whether the token calls a malformed block that.
func (d *device) learned(e p11.Error) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.malformed[e]
}

func (d *device) learn(e p11.Error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.malformed == nil {
		d.malformed = map[p11.Error]bool{}
	}
	d.malformed[e] = true
}

// find returns the key's handle in this generation. It is called inside the library.
func (d *device) find(c *crypto11.Context, generation uint64) (crypto11.PrivateKey, error) {
	d.mu.Lock()
	if d.handle != nil && d.generation == generation {
		defer d.mu.Unlock()
		return d.handle, nil
	}
	d.mu.Unlock()

	set := crypto11.NewAttributeSet()
	err := set.Set(crypto11.CkaKeyType, d.kind)
	if err == nil && len(d.name.id) > 0 {
		err = set.Set(crypto11.CkaId, d.name.id)
	}
	if err == nil && d.name.label != "" {
		err = set.Set(crypto11.CkaLabel, []byte(d.name.label))
	}
	if err != nil {
		return nil, err
	}
	var handles []crypto11.PrivateKey
	if d.kind == p11.CKK_RSA {
		var list []crypto11.RSAPrivateKey
		list, err = c.FindRSAPrivateKeysWithAttributes(set)
		for _, k := range list {
			handles = append(handles, k)
		}
	} else {
		handles, err = c.FindPrivateKeysWithAttributes(set)
	}
	switch {
	case err != nil:
		return nil, err
	case len(handles) == 0:
		return nil, fmt.Errorf("it is no longer in the token: %w", backend.ErrUnavailable)
	case len(handles) > 1:
		return nil, fmt.Errorf("there are now %d keys with its id and label in the token: %w", len(handles), backend.ErrUnavailable)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.handle, d.generation = handles[0], generation
	return d.handle, nil
}

// check makes a signature, or decrypts if the key cannot sign, unless that was done less than a
// second ago.
func (d *device) check(ctx context.Context) error {
	select {
	case d.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-d.turn }()
	if time.Since(d.checked) < time.Second && d.opening == d.t.m.current() {
		return d.result
	}
	err := d.probe(ctx)
	if ctx.Err() == nil {
		d.checked, d.opening, d.result = time.Now(), d.t.m.current(), err
	}
	return err
}

func (d *device) probe(ctx context.Context) error {
	digest := make([]byte, 32)
	rand.Read(digest)
	sig, err := d.Sign(ctx, digest, crypto.SHA256)
	switch {
	case errors.Is(err, backend.ErrUnsupported):
		return nil // a key that only decrypts; the token answered
	case err != nil:
		return fmt.Errorf("pkcs11: key %v of %s: %w", d.name, d.t.c.String(), explain(err))
	case !custody.Verify(d.pub, digest, sig, crypto.SHA256):
		return fmt.Errorf("pkcs11: key %v of %s gives signatures that do not verify: %w", d.name, d.t.c.String(), backend.ErrUnavailable)
	}
	return nil
}
