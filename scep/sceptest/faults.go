//lint:file-ignore SA1019 SCEP is made of PKCS #1 v1.5

package sceptest

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"io"
	"math/big"

	"github.com/scepkit/scepkit/scep"
)

// The funcs named On decide what becomes of a call. If err is nil the call goes through. If not,
// the caller gets err; and if apply is true as well, the call has gone through all the same, as
// when a reply is lost. They may be called concurrently. A nil On lets everything through.

// A Depot is a [scep.Depot] with faults. It hides what else the depot behind it can do; [Store] shows
// what one-time challenges need.
type Depot struct {
	scep.Depot

	// On is told the method, as "Create", and what it is called with: the record, or one in
	// which only the ID, the Transaction, or Issuer and Serial are set.
	On func(op string, rec *scep.Record) (apply bool, err error)
}

func (d Depot) do(op string, rec *scep.Record, call func() error) error {
	return fault(d.On, op, rec, call)
}

// fault does a call as on, which may be nil, decides.
func fault[T any](on func(op string, of T) (apply bool, err error), op string, of T, call func() error) error {
	if on == nil {
		return call()
	}
	apply, err := on(op, of)
	if err == nil {
		return call()
	}
	if apply {
		if err := call(); err != nil {
			return err
		}
	}
	return err
}

// Create implements [scep.Depot].
func (d Depot) Create(ctx context.Context, rec *scep.Record) error {
	return d.change("Create", rec, func(rec *scep.Record) error { return d.Depot.Create(ctx, rec) })
}

// Update implements [scep.Depot].
func (d Depot) Update(ctx context.Context, rec *scep.Record) error {
	return d.change("Update", rec, func(rec *scep.Record) error { return d.Depot.Update(ctx, rec) })
}

// change does not let a caller who gets an error see a new version.
func (d Depot) change(op string, rec *scep.Record, call func(*scep.Record) error) error {
	stored := *rec
	err := d.do(op, rec, func() error { return call(&stored) })
	if err == nil {
		rec.Version = stored.Version
	}
	return err
}

// Get implements [scep.Depot].
func (d Depot) Get(ctx context.Context, id scep.ID) (*scep.Record, error) {
	return d.read("Get", &scep.Record{ID: id}, func() (*scep.Record, error) { return d.Depot.Get(ctx, id) })
}

// Latest implements [scep.Depot].
func (d Depot) Latest(ctx context.Context, transaction scep.ID) (*scep.Record, error) {
	return d.read("Latest", &scep.Record{Transaction: transaction}, func() (*scep.Record, error) { return d.Depot.Latest(ctx, transaction) })
}

// GetSerial implements [scep.Depot].
func (d Depot) GetSerial(ctx context.Context, issuer []byte, serial *big.Int) (*scep.Record, error) {
	return d.read("GetSerial", &scep.Record{Issuer: issuer, Serial: serial}, func() (*scep.Record, error) { return d.Depot.GetSerial(ctx, issuer, serial) })
}

func (d Depot) read(op string, rec *scep.Record, call func() (*scep.Record, error)) (found *scep.Record, err error) {
	err = d.do(op, rec, func() (err error) {
		found, err = call()
		return err
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

// A CA is a [scep.CA] with faults.
type CA struct {
	scep.CA

	// On is told the method, "Chain" or "Sign", and what is to be signed, else nil.
	On func(op string, tmpl *x509.Certificate) (apply bool, err error)
}

// Chain implements [scep.CA].
func (c CA) Chain(ctx context.Context) ([]*x509.Certificate, error) {
	if c.On != nil {
		if _, err := c.On("Chain", nil); err != nil {
			return nil, err
		}
	}
	return c.CA.Chain(ctx)
}

// Sign implements [scep.CA].
func (c CA) Sign(ctx context.Context, tmpl *x509.Certificate, pub crypto.PublicKey) (*x509.Certificate, error) {
	if c.On != nil {
		if apply, err := c.On("Sign", tmpl); err != nil {
			if apply {
				if _, err := c.CA.Sign(ctx, tmpl, pub); err != nil {
					return nil, err
				}
			}
			return nil, err
		}
	}
	return c.CA.Sign(ctx, tmpl, pub)
}

// A Challenge is a [scep.Challenge] with faults, and a [scep.Confirmer]: that of the challenge
// behind it, or one that confirms everything.
type Challenge struct {
	scep.Challenge

	// On is told the method, "Validate" or "Confirm", and the request.
	On func(op string, req *scep.Request) (apply bool, err error)
}

// Validate implements [scep.Challenge].
func (c Challenge) Validate(ctx context.Context, req *scep.Request) error {
	return c.do("Validate", req, func() error { return c.Challenge.Validate(ctx, req) })
}

// Confirm implements [scep.Confirmer].
func (c Challenge) Confirm(ctx context.Context, req *scep.Request, cert *x509.Certificate) error {
	return c.do("Confirm", req, func() error {
		if confirmer, ok := c.Challenge.(scep.Confirmer); ok {
			return confirmer.Confirm(ctx, req, cert)
		}
		return nil
	})
}

func (c Challenge) do(op string, req *scep.Request, call func() error) error {
	return fault(c.On, op, req, call)
}

// A Key is a private key with faults, as one in an HSM whose cable is loose. It signs, and is a
// [scep.Unwrapper] if it is RSA.
type Key struct {
	crypto.Signer

	// On is told the method, "Sign" or "Unwrap". If it returns an error, nothing is done.
	On func(op string) error
}

func (k Key) on(op string) error {
	if k.On == nil {
		return nil
	}
	return k.On(op)
}

// Sign implements [crypto.Signer].
func (k Key) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := k.on("Sign"); err != nil {
		return nil, err
	}
	return k.Signer.Sign(rand, digest, opts)
}

// UnwrapKey implements [scep.Unwrapper].
func (k Key) UnwrapKey(ctx context.Context, block []byte, n int, opts crypto.DecrypterOpts) ([]byte, error) {
	if err := k.on("Unwrap"); err != nil {
		return nil, err
	}
	key := make([]byte, n)
	rand.Read(key)
	switch o := opts.(type) {
	case *rsa.PKCS1v15DecryptOptions:
		opts = &rsa.PKCS1v15DecryptOptions{SessionKeyLen: n}
	case *rsa.OAEPOptions:
		opts = o
	}
	got, err := k.Signer.(crypto.Decrypter).Decrypt(rand.Reader, block, opts)
	if err == nil && len(got) == n {
		return got, nil
	}
	return key, nil
}
