package cms

import (
	"bytes"
	"crypto/sha1"
	"crypto/x509"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

const oidSubjectKeyID = "\x55\x1d\x0e" // 2.5.29.14

// A Certificate is what is needed of the certificate of a message's signer: far less than
// crypto/x509 insists on.
type Certificate struct {
	Raw          []byte
	RawIssuer    []byte // DER of Name
	RawSubject   []byte // DER of Name
	RawSerial    []byte // content octets of the INTEGER, as received
	RawSPKI      []byte // DER of SubjectPublicKeyInfo
	SubjectKeyID []byte // nil if there is none
}

// ParseCertificate reads a certificate tolerantly: any version, serial, dates, extensions and
// signature; no signature is verified. Windows marks the authorityKeyIdentifier critical, and
// others have negative serials or dates that are none: of the signer of a message only the key
// counts.
func ParseCertificate(der []byte) (*Certificate, error) {
	var (
		s        = cryptobyte.String(der)
		raw      cryptobyte.String
		cert     cryptobyte.String
		tbs      cryptobyte.String
		serial   cryptobyte.String
		issuer   cryptobyte.String
		subject  cryptobyte.String
		spki     cryptobyte.String
		validity cryptobyte.String
	)
	if !s.ReadASN1Element(&raw, casn1.SEQUENCE) || !s.Empty() {
		return nil, syntaxError("certificate")
	}
	outer := raw
	if !outer.ReadASN1(&cert, casn1.SEQUENCE) ||
		!cert.ReadASN1(&tbs, casn1.SEQUENCE) ||
		!tbs.SkipOptionalASN1(explicit(0)) ||
		!tbs.ReadASN1(&serial, casn1.INTEGER) || serial.Empty() ||
		!tbs.SkipASN1(casn1.SEQUENCE) ||
		!tbs.ReadASN1Element(&issuer, casn1.SEQUENCE) ||
		!tbs.ReadAnyASN1(&validity, nil) ||
		!tbs.ReadASN1Element(&subject, casn1.SEQUENCE) ||
		!tbs.ReadASN1Element(&spki, casn1.SEQUENCE) {
		return nil, syntaxError("certificate")
	}
	return &Certificate{
		Raw:          raw,
		RawIssuer:    issuer,
		RawSubject:   subject,
		RawSerial:    serial,
		RawSPKI:      spki,
		SubjectKeyID: subjectKeyID(tbs),
	}, nil
}

// subjectKeyID looks for the extension in what follows the key. What cannot be read is not there.
func subjectKeyID(s cryptobyte.String) []byte {
	var (
		f, list, ext cryptobyte.String
		oid          cryptobyte.String
		value, id    cryptobyte.String
		tag          casn1.Tag
	)
	for !s.Empty() {
		if !s.ReadAnyASN1(&f, &tag) {
			return nil
		}
		if tag == explicit(3) {
			break
		}
	}
	if tag != explicit(3) || !f.ReadASN1(&list, casn1.SEQUENCE) {
		return nil
	}
	for !list.Empty() {
		if !list.ReadASN1(&ext, casn1.SEQUENCE) || !readOID(&ext, &oid) {
			return nil
		}
		if string(oid) != oidSubjectKeyID {
			continue
		}
		if !ext.SkipOptionalASN1(casn1.BOOLEAN) ||
			!ext.ReadASN1(&value, casn1.OCTET_STRING) ||
			!value.ReadASN1(&id, casn1.OCTET_STRING) {
			return nil
		}
		return id
	}
	return nil
}

// FromX509 returns what is needed of cert.
func FromX509(cert *x509.Certificate) *Certificate {
	if c, err := ParseCertificate(cert.Raw); err == nil {
		return c
	}
	// A template that was never encoded.
	c := &Certificate{
		Raw:          cert.Raw,
		RawIssuer:    cert.RawIssuer,
		RawSubject:   cert.RawSubject,
		RawSPKI:      cert.RawSubjectPublicKeyInfo,
		SubjectKeyID: cert.SubjectKeyId,
	}
	if cert.SerialNumber != nil {
		c.RawSerial = integerContent(cert.SerialNumber)
	}
	return c
}

func integerContent(n *big.Int) []byte {
	var (
		b       cryptobyte.Builder
		content cryptobyte.String
	)
	b.AddASN1BigInt(n)
	s := cryptobyte.String(b.BytesOrPanic()) // a big.Int always has an encoding
	s.ReadASN1(&content, casn1.INTEGER)
	return content
}

// named reports whether the identifier in a SignerInfo or RecipientInfo, either issuer and serial
// or key identifier, names c.
func (c *Certificate) named(issuer, serial, keyID []byte) bool {
	if issuer != nil {
		return bytes.Equal(c.RawSerial, serial) && bytes.Equal(c.RawIssuer, issuer)
	}
	if c.SubjectKeyID != nil {
		return bytes.Equal(c.SubjectKeyID, keyID)
	}
	// RFC 5280, 4.2.1.2, method 1: what those take who find no extension to copy.
	if len(keyID) != sha1.Size {
		return false
	}
	var (
		s    = cryptobyte.String(c.RawSPKI)
		seq  cryptobyte.String
		bits []byte
	)
	if !s.ReadASN1(&seq, casn1.SEQUENCE) || !seq.SkipASN1(casn1.SEQUENCE) || !seq.ReadASN1BitStringAsBytes(&bits) {
		return false
	}
	sum := sha1.Sum(bits)
	return bytes.Equal(sum[:], keyID)
}
