package scep

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"
)

// A CA signs certificates. Methods may be called concurrently.
type CA interface {
	// Chain returns the issuing certificate, then its issuers, root last and optional.
	// [New] calls it once.
	Chain(ctx context.Context) ([]*x509.Certificate, error)

	// Sign signs tmpl for pub. Serial number, names, dates and extensions are those of
	// tmpl, but for the subject key identifier: asked twice with the same tmpl, it signs the
	// same contents twice. What it signs otherwise is kept and not handed out. An error
	// means that it cannot sign now: it is asked again when the client asks again.
	Sign(ctx context.Context, tmpl *x509.Certificate, pub crypto.PublicKey) (*x509.Certificate, error)
}

// An Identity is a private key, wherever it lives, and its certificates. Every backend
// returns one, and it is a [CA].
//
// If Key has a method
//
//	SignContext(ctx context.Context, rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error)
//
// that is called in place of Sign, so that waiting for a device ends with the request.
type Identity struct {
	// Certificates has the key's own first, then its issuers, root last and optional.
	Certificates []*x509.Certificate

	// Key signs. To open requests (as Config.RA, or as Config.CA without one) it must be
	// RSA and also implement [Unwrapper] or [crypto.Decrypter].
	Key crypto.Signer
}

// An Unwrapper opens what was encrypted to an RSA public key.
type Unwrapper interface {
	// UnwrapKey decrypts block to a key of n bytes. opts is an
	// [*rsa.PKCS1v15DecryptOptions] or an [*rsa.OAEPOptions]. From a malformed block, or
	// one that holds a key of another length, it returns n random bytes and no error, in
	// the time that a good one takes: who sent the block must not learn which it was. Of a
	// device that rejects implicitly they may be what it makes up from its key and the block. An
	// error that wraps [errors.ErrUnsupported] means that the key cannot be used with opts,
	// whatever the block; any other, that the key is unavailable.
	UnwrapKey(ctx context.Context, block []byte, n int, opts crypto.DecrypterOpts) ([]byte, error)
}

// contextSigner is what a Key may implement to be told when to stop waiting.
type contextSigner interface {
	SignContext(ctx context.Context, rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error)
}

// unverifiedSigner is what a Key may implement whose SignContext verifies what a device gave, to
// be spared that where it is done anyway.
type unverifiedSigner interface {
	SignUnverified(ctx context.Context, rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error)
}

// boundSigner is a crypto.Signer that uses ctx if key can, for x509.CreateCertificate, which
// verifies every signature.
type boundSigner struct {
	crypto.Signer
	ctx context.Context // for the length of one call, in which the signer is used
}

func (s boundSigner) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if us, ok := s.Signer.(unverifiedSigner); ok {
		return us.SignUnverified(s.ctx, rand, digest, opts)
	}
	if cs, ok := s.Signer.(contextSigner); ok {
		return cs.SignContext(s.ctx, rand, digest, opts)
	}
	if err := s.ctx.Err(); err != nil {
		return nil, err
	}
	return s.Signer.Sign(rand, digest, opts)
}

// Certificate returns the key's own certificate, or nil if there is none.
func (id *Identity) Certificate() *x509.Certificate {
	if id == nil || len(id.Certificates) == 0 {
		return nil
	}
	return id.Certificates[0]
}

// Chain returns id.Certificates.
func (id *Identity) Chain(ctx context.Context) ([]*x509.Certificate, error) {
	if len(id.Certificates) == 0 {
		return nil, errors.New("scep: identity has no certificate")
	}
	return id.Certificates, nil
}

// Sign implements [CA]. It verifies what the key produced before returning it.
func (id *Identity) Sign(ctx context.Context, tmpl *x509.Certificate, pub crypto.PublicKey) (*x509.Certificate, error) {
	parent := id.Certificate()
	if parent == nil {
		return nil, errors.New("scep: identity has no certificate")
	}
	// CreateCertificate verifies the signature.
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, boundSigner{id.Key, ctx})
	if err != nil {
		return nil, fmt.Errorf("scep: signing with the key of %q: %w", parent.Subject, err)
	}
	return x509.ParseCertificate(der)
}

// check reports why id cannot be used at all.
func (id *Identity) check() error {
	cert := id.Certificate()
	switch {
	case cert == nil, slices.Contains(id.Certificates, nil):
		return errors.New("has no certificate, or one that is nil")
	case id.Key == nil:
		return fmt.Errorf("certificate %q comes without a key", cert.Subject)
	}
	pub, ok := id.Key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(cert.PublicKey) {
		return fmt.Errorf("the key does not belong to the certificate %q; put the certificate of this key first", cert.Subject)
	}
	return id.checkChain()
}

// checkChain reports why the certificates of id are no chain.
func (id *Identity) checkChain() error {
	for i := 1; i < len(id.Certificates); i++ {
		if err := id.Certificates[i-1].CheckSignatureFrom(id.Certificates[i]); err != nil {
			return fmt.Errorf("certificate %q was not issued by the next one, %q: %w", id.Certificates[i-1].Subject, id.Certificates[i].Subject, err)
		}
	}
	return nil
}

// unwrapper returns how to open what was encrypted to id, or why that cannot be done.
func (id *Identity) unwrapper() (Unwrapper, error) {
	cert := id.Certificate()
	pub, ok := cert.PublicKey.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("key of %q is %s, which cannot decrypt; use an RSA key", cert.Subject, cert.PublicKeyAlgorithm)
	}
	if n := pub.N.BitLen(); n < 2048 || n > 8192 {
		return nil, fmt.Errorf("key of %q has %d bits; use 2048 to 8192", cert.Subject, n)
	}
	switch key := id.Key.(type) {
	case Unwrapper:
		return key, nil
	case crypto.Decrypter:
		return decrypterUnwrapper{key}, nil
	}
	return nil, fmt.Errorf("key of %q (%T) can sign but not decrypt; use a key that may decrypt (in a token, one with CKA_DECRYPT), or make an RA for the CA", cert.Subject, id.Key)
}

// decrypterUnwrapper hides from the client whatever a crypto.Decrypter says about a block.
type decrypterUnwrapper struct{ crypto.Decrypter }

func (u decrypterUnwrapper) UnwrapKey(ctx context.Context, block []byte, n int, opts crypto.DecrypterOpts) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	key := make([]byte, n)
	rand.Read(key)
	//lint:ignore SA1019 SCEP is made of PKCS #1 v1.5
	if _, ok := opts.(*rsa.PKCS1v15DecryptOptions); ok {
		//lint:ignore SA1019 as above
		opts = &rsa.PKCS1v15DecryptOptions{SessionKeyLen: n}
	}
	got, err := u.Decrypt(rand.Reader, block, opts)
	// Whether it failed, and how, is not told apart: a device that reports bad padding
	// as an error would otherwise be an oracle (Bleichenbacher).
	if err == nil && len(got) == n {
		return got, nil
	}
	return key, nil
}
