package sceptest

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"time"
)

// A Certificate describes the certificate that a client makes for itself, with all the oddities
// that there are in the field. Only Key must be set.
type Certificate struct {
	Key crypto.Signer // of the certificate, and what signs it unless SignedBy is set

	V1         bool             // leave version and extensions out
	Serial     []byte           // content octets of the INTEGER; if nil, 16 random bytes, positive
	Issuer     []byte           // DER of Name; if nil, Subject
	Subject    []byte           // DER of Name; if nil, CN=signer
	NotBefore  time.Time        // if zero, a minute ago
	NotAfter   time.Time        // if zero, a day after NotBefore
	PublicKey  []byte           // SubjectPublicKeyInfo in place of that of Key
	Extensions []pkix.Extension // if nil, keyUsage; not nil and empty: none
	SignedBy   crypto.Signer
	Hash       crypto.Hash // if zero, SHA-256
	Signature  func([]byte) []byte
}

// Extensions for [Certificate].
var (
	// KeyUsageDSKE is keyUsage with digitalSignature and keyEncipherment.
	KeyUsageDSKE = pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Critical: true, Value: []byte{TagBitString, 2, 5, 0xa0}}

	// CriticalAKI is an authorityKeyIdentifier that is marked critical, which RFC 5280, 4.2.1.1
	// forbids and Windows does.
	CriticalAKI = pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 35}, Critical: true, Value: TLV(TagSequence, TLV(0x80, make([]byte, 20)))}
)

// SubjectKeyID is a subjectKeyIdentifier.
func SubjectKeyID(id []byte) pkix.Extension {
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 14}, Value: TLV(TagOctetString, id)}
}

// DER returns the certificate.
func (c Certificate) DER() []byte {
	serial, subject, issuer, spki := c.Serial, c.Subject, c.Issuer, c.PublicKey
	if serial == nil {
		serial = make([]byte, 16)
		rand.Read(serial)
		serial[0] = serial[0]&0x3f | 0x40
	}
	if subject == nil {
		subject = CN("signer")
	}
	if issuer == nil {
		issuer = subject
	}
	if spki == nil {
		spki = must(x509.MarshalPKIXPublicKey(c.Key.Public()))
	}
	notBefore, notAfter := c.NotBefore, c.NotAfter
	if notBefore.IsZero() {
		notBefore = time.Now().Add(-time.Minute)
	}
	if notAfter.IsZero() {
		notAfter = notBefore.AddDate(0, 0, 1)
	}
	hash := c.Hash
	if hash == 0 {
		hash = crypto.SHA256
	}
	key := c.SignedBy
	if key == nil {
		key = c.Key
	}
	var version, extensions []byte
	if !c.V1 {
		version = TLV(0xa0, Integer(2))
		exts := c.Extensions
		if exts == nil {
			exts = []pkix.Extension{KeyUsageDSKE}
		}
		if len(exts) > 0 {
			extensions = TLV(0xa3, extensionList(exts))
		}
	}
	algorithm := WithHash.algorithm(key.Public(), hash)
	tbs := TLV(TagSequence,
		version,
		TLV(TagInteger, serial),
		algorithm,
		issuer,
		TLV(TagSequence, UTCTime(notBefore), UTCTime(notAfter)),
		subject,
		spki,
		extensions)
	signature := WithHash.sign(key, hash, tbs)
	if c.Signature != nil {
		signature = c.Signature(signature)
	}
	return TLV(TagSequence, tbs, algorithm, BitString(signature))
}

func extensionList(exts []pkix.Extension) []byte {
	var list [][]byte
	for _, e := range exts {
		var critical []byte
		if e.Critical {
			critical = []byte{TagBoolean, 1, 0xff}
		}
		list = append(list, TLV(TagSequence, OID(e.Id), critical, TLV(TagOctetString, e.Value)))
	}
	return TLV(TagSequence, list...)
}
