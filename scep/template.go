package scep

import (
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// What is to be signed is written down as an unsigned certificate (RFC 9925) before it is
// signed: a crash, another replica or a device that came back hours later then ends up with
// the same serial number, names and dates.

var (
	oidUnsigned = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 6, 36} // id-alg-unsigned

	oidKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidExtKeyUsage      = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidSubjectKeyID     = asn1.ObjectIdentifier{2, 5, 29, 14}
	oidAuthorityKeyID   = asn1.ObjectIdentifier{2, 5, 29, 35}
	oidNameConstraints  = asn1.ObjectIdentifier{2, 5, 29, 30}
	oidCRLPoints        = asn1.ObjectIdentifier{2, 5, 29, 31}
	oidPolicies         = asn1.ObjectIdentifier{2, 5, 29, 32}
	oidAuthorityInfo    = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 1}
	oidOCSP             = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1}
	oidCAIssuers        = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 2}
)

// marshalTemplate writes the unsigned certificate that tmpl describes, for the key in spki,
// and returns it parsed as well.
func marshalTemplate(tmpl *x509.Certificate, issuer *x509.Certificate, serial *big.Int, spki []byte) ([]byte, *x509.Certificate, error) {
	subject := tmpl.RawSubject
	if len(subject) == 0 {
		var err error
		if subject, err = asn1.Marshal(tmpl.Subject.ToRDNSequence()); err != nil {
			return nil, nil, fmt.Errorf("scep: subject of the template: %w", err)
		}
	}
	exts, err := templateExtensions(tmpl, issuer, subject, spki)
	if err != nil {
		return nil, nil, err
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.Tag(0).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) { b.AddASN1Int64(2) })
			b.AddASN1BigInt(serial)
			addUnsigned(b)
			b.AddBytes(issuer.RawSubject)
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				addTime(b, tmpl.NotBefore)
				addTime(b, tmpl.NotAfter)
			})
			b.AddBytes(subject)
			b.AddBytes(spki)
			b.AddASN1(cbasn1.Tag(3).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					for _, ext := range exts {
						b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
							b.AddASN1ObjectIdentifier(ext.Id)
							if ext.Critical {
								b.AddASN1Boolean(true)
							}
							b.AddASN1OctetString(ext.Value)
						})
					}
				})
			})
		})
		addUnsigned(b)
		b.AddASN1BitString(nil)
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, nil, fmt.Errorf("scep: template: %w", err)
	}
	// Whatever crypto/x509 would refuse to read must not be signed.
	whole, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, refuse(BadRequest, ReasonNames, "the certificate would be malformed", err)
	}
	return der, whole, nil
}

// parseTemplate returns what marshalTemplate wrote, ready for [CA] Sign.
func parseTemplate(der []byte) (*x509.Certificate, error) {
	tmpl, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("scep: stored template: %w", err)
	}
	tmpl.SignatureAlgorithm = x509.UnknownSignatureAlgorithm // the CA's to choose
	tmpl.ExtraExtensions = tmpl.Extensions                   // exactly these, in this order
	return tmpl, nil
}

func addUnsigned(b *cryptobyte.Builder) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidUnsigned) })
}

func addTime(b *cryptobyte.Builder, t time.Time) {
	t = t.UTC()
	if t.Year() < 2050 { // RFC 5280, 4.1.2.5
		b.AddASN1UTCTime(t)
	} else {
		b.AddASN1GeneralizedTime(t)
	}
}

// templateExtensions returns the extensions of the certificate: those the server sets, those
// that fields of tmpl ask for, and tmpl.ExtraExtensions in place of the latter.
func templateExtensions(tmpl, issuer *x509.Certificate, subject, spki []byte) ([]pkix.Extension, error) {
	if tmpl.IsCA || tmpl.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		return nil, errors.New("scep: template asks for a CA certificate, which SCEP must not issue")
	}
	var exts []pkix.Extension
	add := func(id asn1.ObjectIdentifier, critical bool, value []byte) {
		exts = append(exts, pkix.Extension{Id: id, Critical: critical, Value: value})
	}
	extra := func(id asn1.ObjectIdentifier) bool {
		for _, e := range tmpl.ExtraExtensions {
			if e.Id.Equal(id) {
				return true
			}
		}
		return false
	}

	add(oidBasicConstraints, true, []byte{0x30, 0})
	add(oidSubjectKeyID, false, octets(keyID(spki)))
	if len(issuer.SubjectKeyId) > 0 {
		add(oidAuthorityKeyID, false, authorityKeyID(issuer.SubjectKeyId))
	}
	if tmpl.KeyUsage != 0 && !extra(oidKeyUsage) {
		add(oidKeyUsage, true, marshalKeyUsage(tmpl.KeyUsage))
	}
	if (len(tmpl.ExtKeyUsage) > 0 || len(tmpl.UnknownExtKeyUsage) > 0) && !extra(oidExtKeyUsage) {
		value, err := marshalExtKeyUsage(tmpl.ExtKeyUsage, tmpl.UnknownExtKeyUsage)
		if err != nil {
			return nil, fmt.Errorf("scep: template: extended key usage: %w", err)
		}
		add(oidExtKeyUsage, false, value)
	}
	if names := fieldNames(tmpl); len(names) > 0 && !extra(oidSubjectAltName) {
		add(oidSubjectAltName, emptyName(subject), marshalNames(names))
	}
	if (len(tmpl.OCSPServer) > 0 || len(tmpl.IssuingCertificateURL) > 0) && !extra(oidAuthorityInfo) {
		add(oidAuthorityInfo, false, marshalAuthorityInfo(tmpl.OCSPServer, tmpl.IssuingCertificateURL))
	}
	if len(tmpl.CRLDistributionPoints) > 0 && !extra(oidCRLPoints) {
		add(oidCRLPoints, false, marshalCRLPoints(tmpl.CRLDistributionPoints))
	}
	if len(tmpl.Policies) > 0 && !extra(oidPolicies) {
		value, err := marshalPolicies(tmpl.Policies)
		if err != nil {
			return nil, fmt.Errorf("scep: template: policies: %w", err)
		}
		add(oidPolicies, false, value)
	}
	for _, e := range tmpl.ExtraExtensions {
		switch {
		case e.Id.Equal(oidBasicConstraints), e.Id.Equal(oidSubjectKeyID), e.Id.Equal(oidAuthorityKeyID):
			continue // the server's to set
		case e.Id.Equal(oidNameConstraints):
			return nil, errors.New("scep: template has name constraints, which are for CA certificates only")
		case e.Id.Equal(oidKeyUsage):
			if keyUsage, err := parseKeyUsage(e.Value); err != nil || keyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
				return nil, errors.New("scep: template asks for a CA's key usage, which SCEP must not issue")
			}
		}
		exts = append(exts, e)
	}
	if emptyName(subject) && !hasExtension(exts, oidSubjectAltName) {
		return nil, &Error{FailInfo: BadRequest, Reason: ReasonNames, Text: "neither subject nor alternative name"}
	}
	return exts, nil
}

func hasExtension(exts []pkix.Extension, id asn1.ObjectIdentifier) bool {
	for _, e := range exts {
		if e.Id.Equal(id) {
			return true
		}
	}
	return false
}

// keyID is RFC 7093, 2 (1): the left 160 bits of the SHA-256 of the key's bits.
func keyID(spki []byte) []byte {
	in := cryptobyte.String(spki)
	var seq, alg cryptobyte.String
	var bits asn1.BitString
	in.ReadASN1(&seq, cbasn1.SEQUENCE)
	seq.ReadASN1(&alg, cbasn1.SEQUENCE)
	seq.ReadASN1BitString(&bits)
	sum := sha256.Sum256(bits.Bytes)
	return sum[:20]
}

// build is for extension values, whose building cannot fail.
func build(f cryptobyte.BuilderContinuation) []byte {
	var b cryptobyte.Builder
	f(&b)
	return b.BytesOrPanic()
}

func octets(v []byte) []byte {
	return build(func(b *cryptobyte.Builder) { b.AddASN1OctetString(v) })
}

func authorityKeyID(id []byte) []byte {
	return build(func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.Tag(0).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(id) })
		})
	})
}

// marshalKeyUsage writes the bits of u, of which bit 0 is the first of the BIT STRING.
func marshalKeyUsage(u x509.KeyUsage) []byte {
	bits := make([]byte, 2)
	last := 0
	for i := range 9 {
		if u&(1<<i) != 0 {
			bits[i/8] |= 0x80 >> (i % 8)
			last = i
		}
	}
	bits = bits[:last/8+1]
	value, _ := asn1.Marshal(asn1.BitString{Bytes: bits, BitLength: last + 1})
	return value
}

func parseKeyUsage(value []byte) (x509.KeyUsage, error) {
	in := cryptobyte.String(value)
	var bits asn1.BitString
	if !in.ReadASN1BitString(&bits) || !in.Empty() {
		return 0, errors.New("scep: keyUsage is malformed")
	}
	var u x509.KeyUsage
	for i := range 9 {
		if bits.At(i) != 0 {
			u |= 1 << i
		}
	}
	return u, nil
}

func marshalExtKeyUsage(known []x509.ExtKeyUsage, unknown []asn1.ObjectIdentifier) ([]byte, error) {
	var oids []asn1.ObjectIdentifier
	for _, u := range known {
		oid, ok := extKeyUsageOID(u)
		if !ok {
			return nil, fmt.Errorf("no object identifier for usage %d", u)
		}
		oids = append(oids, oid)
	}
	return asn1.Marshal(append(oids, unknown...))
}

// fieldNames returns the alternative names in the fields of tmpl.
func fieldNames(tmpl *x509.Certificate) []generalName {
	var names []generalName
	add := func(tag uint8, value []byte) {
		raw := build(func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.Tag(tag).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(value) })
		})
		names = append(names, generalName{raw: raw})
	}
	for _, s := range tmpl.DNSNames {
		add(2, []byte(s))
	}
	for _, s := range tmpl.EmailAddresses {
		add(1, []byte(s))
	}
	for _, ip := range tmpl.IPAddresses {
		if v4 := ip.To4(); v4 != nil {
			ip = v4
		}
		add(7, ip)
	}
	for _, u := range tmpl.URIs {
		add(6, []byte(u.String()))
	}
	return names
}

func marshalNames(names []generalName) []byte {
	return build(func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, n := range names {
				b.AddBytes(n.raw)
			}
		})
	})
}

func addURI(b *cryptobyte.Builder, uri string) {
	b.AddASN1(cbasn1.Tag(6).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes([]byte(uri)) })
}

func marshalAuthorityInfo(ocsp, issuers []string) []byte {
	return build(func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			access := func(method asn1.ObjectIdentifier, uris []string) {
				for _, uri := range uris {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1ObjectIdentifier(method)
						addURI(b, uri)
					})
				}
			}
			access(oidOCSP, ocsp)
			access(oidCAIssuers, issuers)
		})
	})
}

func marshalCRLPoints(uris []string) []byte {
	context0 := cbasn1.Tag(0).Constructed().ContextSpecific()
	return build(func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, uri := range uris {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1(context0, func(b *cryptobyte.Builder) { // distributionPoint
						b.AddASN1(context0, func(b *cryptobyte.Builder) { addURI(b, uri) }) // fullName
					})
				})
			}
		})
	})
}

func marshalPolicies(oids []x509.OID) ([]byte, error) {
	var list [][]byte
	for _, oid := range oids {
		der, err := oid.MarshalBinary()
		if err != nil {
			return nil, err
		}
		list = append(list, der)
	}
	return build(func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, der := range list {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.OBJECT_IDENTIFIER, func(b *cryptobyte.Builder) { b.AddBytes(der) })
				})
			}
		})
	}), nil
}
