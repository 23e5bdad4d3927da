// Package status tells those who rely on certificates which of them are revoked: [CRL] by a list
// (RFC 5280), [OCSP] by answering (RFC 6960). Both read a depot and are handlers to mount in your
// own program, beside that of package scep:
//
//	crl, err := status.NewCRL(status.CRLConfig{Issuer: ca, Depot: db, URL: "http://pki.example/crl/{n}.crl", Shards: 16})
//	…
//	h, err := scep.New(scep.Config{CA: ca, Depot: db, CRL: crl, …})
//	mux.Handle("/crl/", crl)
//
// With a URL, certificates that h issues name the list that they would be in. That OCSP is asked,
// and where, they say if [scep.Profile] has it as OCSPServer.
//
// What [scep.Handler.Revoke] wrote is in the next OCSP answer, also of other processes over the
// same depot. It is in the next CRL, where that is the handler's Config.CRL; in others over the
// same depot it is some seconds later. Whoever has an older one may go on using it until its
// nextUpdate, and caches on the way until their max-age.
package status

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha256" // crypto.SHA256
	_ "crypto/sha512" // crypto.SHA384, crypto.SHA512
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/scepkit/scepkit/scep"
)

// signer signs with the key of an identity.
type signer struct {
	key       crypto.Signer
	cert      *x509.Certificate
	algorithm []byte      // DER of AlgorithmIdentifier
	hash      crypto.Hash // 0: the key signs the whole
	x509      x509.SignatureAlgorithm
}

// contextSigner is what a key may implement to be told when to stop waiting.
type contextSigner interface {
	SignContext(ctx context.Context, rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error)
}

func newSigner(id *scep.Identity) (*signer, error) {
	cert := id.Certificate()
	if cert == nil || slices.Contains(id.Certificates, nil) {
		return nil, errors.New("has no certificate, or one that is nil")
	}
	if id.Key == nil {
		return nil, fmt.Errorf("certificate %q comes without a key", cert.Subject)
	}
	if pub, ok := id.Key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("the key does not belong to the certificate %q; put the certificate of this key first", cert.Subject)
	}
	s := &signer{key: id.Key, cert: cert}
	switch pub := cert.PublicKey.(type) {
	case *rsa.PublicKey:
		s.hash, s.x509 = crypto.SHA256, x509.SHA256WithRSA
		s.algorithm = []byte("\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b\x05\x00")
	case *ecdsa.PublicKey:
		oid := byte(2)
		switch pub.Curve {
		case elliptic.P384():
			s.hash, s.x509, oid = crypto.SHA384, x509.ECDSAWithSHA384, 3
		case elliptic.P521():
			s.hash, s.x509, oid = crypto.SHA512, x509.ECDSAWithSHA512, 4
		default:
			s.hash, s.x509 = crypto.SHA256, x509.ECDSAWithSHA256
		}
		s.algorithm = append([]byte("\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03"), oid)
	case ed25519.PublicKey:
		s.x509 = x509.PureEd25519
		s.algorithm = []byte("\x30\x05\x06\x03\x2b\x65\x70")
	default:
		return nil, fmt.Errorf("key of %q is %T, which is not known how to sign with", cert.Subject, pub)
	}
	return s, nil
}

// sign returns the signature of tbs, which it has verified.
func (s *signer) sign(ctx context.Context, tbs []byte) (sig []byte, err error) {
	digest := tbs
	if s.hash != 0 {
		h := s.hash.New()
		h.Write(tbs)
		digest = h.Sum(nil)
	}
	if key, ok := s.key.(contextSigner); ok {
		sig, err = key.SignContext(ctx, rand.Reader, digest, s.hash)
	} else if err = ctx.Err(); err == nil {
		sig, err = s.key.Sign(rand.Reader, digest, s.hash)
	}
	if err != nil {
		return nil, fmt.Errorf("status: signing with the key of %q: %w", s.cert.Subject, err)
	}
	if err := s.cert.CheckSignature(s.x509, tbs, sig); err != nil {
		return nil, fmt.Errorf("status: the key of %q signed wrongly: %w", s.cert.Subject, err)
	}
	return sig, nil
}
