package cms

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// A contextSigner is a key whose signatures can be waited for with a context: one in a token or
// behind a network.
type contextSigner interface {
	SignContext(ctx context.Context, rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error)
}

// SignMessage writes a pkiMessage in DER: content (nil: eContent absent; empty: an empty OCTET
// STRING), the attributes in DER order, the certificates as given and in that order, one
// SignerInfo that names cert by issuer and serial with digestAlgorithm hash and, for RSA keys,
// signatureAlgorithm rsaEncryption; for ECDSA keys ecdsa-with-SHA2. Those are what every client
// reads; so it writes no signingTime either.
//
// It verifies the signature with the key in cert before it returns. key gets ctx by a SignContext
// method if it has one.
func SignMessage(ctx context.Context, content []byte, attrs *Attributes, cert *Certificate, key crypto.Signer, hash crypto.Hash, certificates ...[]byte) ([]byte, error) {
	digestOID := hashOID(hash)
	if digestOID == "" {
		return nil, fmt.Errorf("cms: cannot sign with hash %v", hash)
	}
	if t := attrs.TransactionIDTag; t != 0 && (t < 0 || t > 30 || !isTransactionIDTag(casn1.Tag(t))) {
		return nil, fmt.Errorf("cms: transaction ID cannot have tag %d", t)
	}
	pub, err := ParsePublicKey(cert.RawSPKI)
	if err != nil {
		return nil, err
	}
	alg, err := signatureAlgorithm(pub, hash)
	if err != nil {
		return nil, err
	}
	h := hash.New()
	h.Write(content)
	signedAttrs, err := attrs.encode(h.Sum(nil))
	if err != nil {
		return nil, fmt.Errorf("cms: %w", err)
	}
	set := append(appendHeader(make([]byte, 0, 8+len(signedAttrs)), byte(casn1.SET), len(signedAttrs)), signedAttrs...)
	sig, err := sign(ctx, key, pub, set, hash)
	if err != nil {
		return nil, err
	}
	if _, err := VerifySignature(pub, alg, hash, set, sig); err != nil {
		return nil, fmt.Errorf("cms: key does not match the certificate, or signs wrongly: %w", err)
	}
	size := 512 + len(content) + len(set) + len(cert.RawIssuer) + len(cert.RawSerial) + len(sig)
	for _, c := range certificates {
		size += len(c)
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, size))
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		addOID(b, oidSignedData)
		b.AddASN1(explicit(0), func(b *cryptobyte.Builder) {
			b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(1)
				b.AddASN1(casn1.SET, func(b *cryptobyte.Builder) { addAlgorithm(b, digestOID, true) })
				b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
					addOID(b, oidData)
					if content != nil {
						b.AddASN1(explicit(0), func(b *cryptobyte.Builder) { b.AddASN1OctetString(content) })
					}
				})
				if len(certificates) > 0 {
					b.AddASN1(explicit(0), func(b *cryptobyte.Builder) {
						for _, c := range certificates {
							b.AddBytes(c)
						}
					})
				}
				b.AddASN1(casn1.SET, func(b *cryptobyte.Builder) {
					b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1Int64(1)
						addIssuerAndSerial(b, cert)
						addAlgorithm(b, digestOID, true)
						b.AddASN1(explicit(0), func(b *cryptobyte.Builder) { b.AddBytes(signedAttrs) })
						b.AddBytes(alg)
						b.AddASN1OctetString(sig)
					})
				})
			})
		})
	})
	out, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("cms: %w", err)
	}
	return out, nil
}

// signatureAlgorithm returns the AlgorithmIdentifier for signatures by pub.
func signatureAlgorithm(pub crypto.PublicKey, hash crypto.Hash) ([]byte, error) {
	var b cryptobyte.Builder
	switch pub.(type) {
	case *rsa.PublicKey:
		addAlgorithm(&b, oidRSA, true)
	case *ecdsa.PublicKey:
		var oid string
		switch hash {
		case crypto.SHA224:
			oid = oidECDSAWithSHA224
		case crypto.SHA256:
			oid = oidECDSAWithSHA256
		case crypto.SHA384:
			oid = oidECDSAWithSHA384
		case crypto.SHA512:
			oid = oidECDSAWithSHA512
		default:
			return nil, fmt.Errorf("cms: cannot sign with ECDSA and %v", hash)
		}
		addAlgorithm(&b, oid, false)
	case ed25519.PublicKey:
		addAlgorithm(&b, oidEd25519, false)
	default:
		return nil, fmt.Errorf("cms: cannot sign with a key of type %T", pub)
	}
	return b.Bytes()
}

func sign(ctx context.Context, key crypto.Signer, pub crypto.PublicKey, data []byte, hash crypto.Hash) ([]byte, error) {
	var (
		digest = data
		opts   = crypto.Hash(0)
	)
	if _, ok := pub.(ed25519.PublicKey); !ok {
		h := hash.New()
		h.Write(data)
		digest, opts = h.Sum(nil), hash
	}
	if key == nil {
		return nil, errors.New("cms: no key to sign with")
	}
	var (
		sig []byte
		err error
	)
	if s, ok := key.(contextSigner); ok {
		sig, err = s.SignContext(ctx, rand.Reader, digest, opts)
	} else if err = ctx.Err(); err == nil {
		sig, err = key.Sign(rand.Reader, digest, opts)
	}
	if err != nil {
		return nil, fmt.Errorf("cms: signing: %w", err)
	}
	return sig, nil
}

// addIssuerAndSerial writes an IssuerAndSerialNumber with the bytes of the certificate: some
// clients have serials that are not minimal, or negative, and compare bytes.
func addIssuerAndSerial(b *cryptobyte.Builder, c *Certificate) {
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(c.RawIssuer)
		b.AddASN1(casn1.INTEGER, func(b *cryptobyte.Builder) { b.AddBytes(c.RawSerial) })
	})
}
