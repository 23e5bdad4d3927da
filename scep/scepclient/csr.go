package scepclient

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/scepkit/scepkit/scep"
)

var (
	oidChallengePassword = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}
	oidExtensionRequest  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}
	oidSubjectAltName    = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidKeyUsage          = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidExtKeyUsage       = asn1.ObjectIdentifier{2, 5, 29, 37}
)

// maxChallenge is more than any challenge has; Intune's have a few kilobytes.
const maxChallenge = 16 << 10

// printable reports whether all of s may be in a PrintableString.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune(" '()+,-./:=?", r))
	})
}

// makeCSR writes a PKCS#10 request. crypto/x509 cannot write a challengePassword; it does the
// names and the extensions.
func makeCSR(ctx context.Context, tmpl *x509.CertificateRequest, usage x509.KeyUsage, ext []x509.ExtKeyUsage, challenge scep.Secret, key crypto.Signer, hash crypto.Hash) ([]byte, error) {
	secret := challenge.Reveal()
	if !utf8.ValidString(secret) || len(secret) > maxChallenge {
		return nil, fmt.Errorf("scepclient: Request.Challenge is not UTF-8, or longer than %d bytes", maxChallenge)
	}
	names, err := encodeNames(tmpl, usage, ext)
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("scepclient: Request.Key: %w", err)
	}
	var b cryptobyte.Builder
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		b.AddBytes(names.RawSubject)
		b.AddBytes(spki)
		b.AddASN1(casn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			// First, because some servers find it nowhere else.
			if secret != "" {
				addAttribute(b, oidChallengePassword, func(b *cryptobyte.Builder) {
					tag := casn1.UTF8String
					if printable(secret) {
						tag = casn1.PrintableString
					}
					b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes([]byte(secret)) })
				})
			}
			if len(names.Extensions) > 0 {
				addAttribute(b, oidExtensionRequest, func(b *cryptobyte.Builder) { addExtensions(b, names.Extensions) })
			}
		})
	})
	info, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("scepclient: making a CSR: %w", err)
	}
	alg, hash, err := csrSignature(key.Public(), hash)
	if err != nil {
		return nil, err
	}
	random := rand.Reader
	if _, ok := key.(*ecdsa.PrivateKey); ok {
		random = nil // signs deterministically (RFC 6979), so that the same request is the same CSR
	}
	sig, err := crypto.SignMessage(bind(ctx, key), random, info, hash)
	if err != nil {
		return nil, fmt.Errorf("scepclient: signing the CSR: %w", err)
	}
	b = cryptobyte.Builder{}
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(info)
		b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(alg)
			if _, ok := key.Public().(*rsa.PublicKey); ok {
				b.AddASN1NULL()
			}
		})
		b.AddASN1BitString(sig)
	})
	return b.Bytes()
}

// encodeNames has crypto/x509 encode what it can, with a key that is thrown away.
func encodeNames(tmpl *x509.CertificateRequest, usage x509.KeyUsage, ext []x509.ExtKeyUsage) (*x509.CertificateRequest, error) {
	t := *tmpl
	t.SignatureAlgorithm = 0
	t.ExtraExtensions = slices.Clone(t.ExtraExtensions)
	//lint:ignore SA1019 What it holds would be lost, so it is refused.
	if len(t.Attributes) > 0 {
		return nil, errors.New("scepclient: Request.Template.Attributes are not supported; use ExtraExtensions and Request.Challenge")
	}
	if usage != 0 {
		t.ExtraExtensions = append(t.ExtraExtensions, keyUsageExtension(usage))
	}
	if len(ext) > 0 {
		e, err := extKeyUsageExtension(ext)
		if err != nil {
			return nil, err
		}
		t.ExtraExtensions = append(t.ExtraExtensions, e)
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("scepclient: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &t, key)
	if err != nil {
		return nil, fmt.Errorf("scepclient: Request.Template: %w", err)
	}
	out, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("scepclient: Request.Template: %w", err)
	}
	return out, nil
}

func addAttribute(b *cryptobyte.Builder, oid asn1.ObjectIdentifier, value func(*cryptobyte.Builder)) {
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		b.AddASN1(casn1.SET, value)
	})
}

func addExtensions(b *cryptobyte.Builder, exts []pkix.Extension) {
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, ext := range exts {
			b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(ext.Id)
				if ext.Critical {
					b.AddASN1Boolean(true)
				}
				b.AddASN1OctetString(ext.Value)
			})
		}
	})
}

// keyUsageExtension encodes a BIT STRING whose first bit is the lowest of usage.
func keyUsageExtension(usage x509.KeyUsage) pkix.Extension {
	length := bits.Len(uint(usage))
	value := make([]byte, (length+7)/8)
	for i := range value {
		value[i] = bits.Reverse8(byte(usage >> (8 * i)))
	}
	var b cryptobyte.Builder
	b.AddASN1(casn1.BIT_STRING, func(b *cryptobyte.Builder) {
		b.AddUint8(uint8(8*len(value) - length))
		b.AddBytes(value)
	})
	return pkix.Extension{Id: oidKeyUsage, Critical: true, Value: b.BytesOrPanic()} // at most four bytes
}

func extKeyUsageExtension(ext []x509.ExtKeyUsage) (pkix.Extension, error) {
	var oids [][]byte
	for _, usage := range ext {
		if usage < 0 || usage > x509.ExtKeyUsageMicrosoftKernelCodeSigning {
			return pkix.Extension{}, fmt.Errorf("scepclient: Request.ExtKeyUsage holds the unknown usage %d", int(usage))
		}
		oid, err := usage.OID().MarshalBinary()
		if err != nil {
			return pkix.Extension{}, fmt.Errorf("scepclient: Request.ExtKeyUsage: %w", err)
		}
		oids = append(oids, oid)
	}
	var b cryptobyte.Builder
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, oid := range oids {
			b.AddASN1(casn1.OBJECT_IDENTIFIER, func(b *cryptobyte.Builder) { b.AddBytes(oid) })
		}
	})
	value, err := b.Bytes()
	return pkix.Extension{Id: oidExtKeyUsage, Value: value}, err
}

// csrSignature returns the algorithm by which a key of this kind signs a CSR.
func csrSignature(pub crypto.PublicKey, hash crypto.Hash) (asn1.ObjectIdentifier, crypto.Hash, error) {
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		switch hash {
		case crypto.SHA1:
			return asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 5}, hash, nil
		case crypto.SHA256:
			return asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, hash, nil
		case crypto.SHA384:
			return asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 12}, hash, nil
		case crypto.SHA512:
			return asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 13}, hash, nil
		}
	case *ecdsa.PublicKey:
		switch bits := pub.Curve.Params().BitSize; {
		case bits > 384:
			return asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 4}, crypto.SHA512, nil
		case bits > 256:
			return asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}, crypto.SHA384, nil
		}
		return asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}, crypto.SHA256, nil
	case ed25519.PublicKey:
		return asn1.ObjectIdentifier{1, 3, 101, 112}, 0, nil
	}
	return nil, 0, fmt.Errorf("scepclient: a CSR cannot be signed with a key of type %T and %v", pub, hash)
}
