package cms

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/smallstep/pkcs7"
	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// CertsOnly writes a degenerate SignedData with these DER certificates, in this order: clients
// take the first, so the SET is not sorted as DER would have it.
func CertsOnly(certificates ...[]byte) ([]byte, error) {
	if len(certificates) == 0 {
		return nil, errors.New("cms: no certificates")
	}
	for _, c := range certificates {
		if _, err := ParseCertificate(c); err != nil {
			return nil, err
		}
	}
	out, err := pkcs7.DegenerateCertificate(bytes.Join(certificates, nil))
	if err != nil {
		return nil, fmt.Errorf("cms: %w", err)
	}
	return out, nil
}

// ParseCertsOnly reads a degenerate SignedData, in BER: one that nobody signed. Certificates that
// crypto/x509 cannot parse are an error; CRLs are returned in DER, as they are.
//
// It is not left to pkcs7.Parse, which ignores errors, cannot give the CRLs back in DER, and
// depends on a setting of the process for which certificates it takes.
func ParseCertsOnly(ber []byte) (certificates []*x509.Certificate, crls [][]byte, err error) {
	der, err := Normalize(ber)
	if err != nil {
		return nil, nil, err
	}
	var sd signedData
	if err := sd.read(der); err != nil {
		return nil, nil, err
	}
	if !sd.signerInfos.Empty() {
		return nil, nil, syntaxError("certs-only message: it is signed")
	}
	for bag := sd.certificates; !bag.Empty(); {
		var (
			raw cryptobyte.String
			tag casn1.Tag
		)
		if !bag.ReadAnyASN1Element(&raw, &tag) {
			return nil, nil, syntaxError("certificates")
		}
		if tag != casn1.SEQUENCE {
			continue // attribute certificates and the like
		}
		cert, err := x509.ParseCertificate(raw)
		if err != nil {
			return nil, nil, fmt.Errorf("%w certificate: %w", ErrSyntax, err)
		}
		certificates = append(certificates, cert)
	}
	for bag := sd.crls; !bag.Empty(); {
		var (
			raw cryptobyte.String
			tag casn1.Tag
		)
		if !bag.ReadAnyASN1Element(&raw, &tag) {
			return nil, nil, syntaxError("CRLs")
		}
		if tag == casn1.SEQUENCE {
			crls = append(crls, raw)
		}
	}
	return certificates, crls, nil
}

// CRLOnly writes a degenerate SignedData with this DER CRL and no certificates.
func CRLOnly(crl []byte) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, len(crl)+64))
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		addOID(b, oidSignedData)
		b.AddASN1(explicit(0), func(b *cryptobyte.Builder) {
			b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(1)
				b.AddASN1(casn1.SET, func(*cryptobyte.Builder) {})
				b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) { addOID(b, oidData) })
				b.AddASN1(explicit(1), func(b *cryptobyte.Builder) { b.AddBytes(crl) })
				b.AddASN1(casn1.SET, func(*cryptobyte.Builder) {})
			})
		})
	})
	out, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("cms: %w", err)
	}
	return out, nil
}
