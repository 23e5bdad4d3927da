package sceptest

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
)

// A CSR describes a PKCS#10 request. Only Key must be set.
type CSR struct {
	Key       crypto.Signer
	Subject   []byte // DER of Name; if nil, CN=device
	PublicKey []byte // SubjectPublicKeyInfo in place of that of Key

	Challenge       string           // challengePassword; if empty and ChallengeValues is nil, the attribute is left out
	ChallengeTag    byte             // its string type; if zero, PrintableString
	ChallengeValues [][]byte         // the SET of values, in place of Challenge
	Extensions      []pkix.Extension // extensionRequest; if empty, the attribute is left out
	MSExtensions    bool             // under Microsoft's object identifier
	Attributes      [][]byte         // further ones, see [Attr]

	Hash      crypto.Hash // if zero, SHA-256
	Scheme    Scheme
	Signature func([]byte) []byte
}

var (
	oidChallengePassword  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}
	oidExtensionRequest   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}
	oidMSExtensionRequest = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 14}
)

// Attr returns an attribute with these values, in this order.
func Attr(id asn1.ObjectIdentifier, values ...[]byte) []byte {
	return TLV(TagSequence, OID(id), TLV(TagSet, values...))
}

// String returns s as a string with this tag, in the encoding that belongs to it.
func String(tag byte, s string) []byte {
	if tag == TagBMPString {
		return BMPString(s)
	}
	if tag == 0x1c { // UniversalString
		var b []byte
		for _, r := range s {
			b = binary.BigEndian.AppendUint32(b, uint32(r))
		}
		return TLV(tag, b)
	}
	return TLV(tag, []byte(s))
}

// DER returns the request.
func (c CSR) DER() []byte {
	subject, spki := c.Subject, c.PublicKey
	if subject == nil {
		subject = CN("device")
	}
	if spki == nil {
		spki = must(x509.MarshalPKIXPublicKey(c.Key.Public()))
	}
	hash := c.Hash
	if hash == 0 {
		hash = crypto.SHA256
	}
	var attrs [][]byte
	switch tag := c.ChallengeTag; {
	case c.ChallengeValues != nil:
		attrs = append(attrs, Attr(oidChallengePassword, c.ChallengeValues...))
	case c.Challenge != "":
		if tag == 0 {
			tag = TagPrintableString
		}
		attrs = append(attrs, Attr(oidChallengePassword, String(tag, c.Challenge)))
	}
	if len(c.Extensions) > 0 {
		id := oidExtensionRequest
		if c.MSExtensions {
			id = oidMSExtensionRequest
		}
		attrs = append(attrs, Attr(id, extensionList(c.Extensions)))
	}
	attrs = append(attrs, c.Attributes...)
	info := TLV(TagSequence, Integer(0), subject, spki, TLV(0xa0, attrs...))
	signature := c.Scheme.sign(c.Key, hash, info)
	if c.Signature != nil {
		signature = c.Signature(signature)
	}
	return TLV(TagSequence, info, c.Scheme.algorithm(c.Key.Public(), hash), BitString(signature))
}
