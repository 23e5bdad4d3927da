package sceptest

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"encoding/asn1"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Message types (RFC 8894, 3.2.1.2).
const (
	TypeCertRep    = "3"
	TypeRenewalReq = "17"
	TypePKCSReq    = "19"
	TypeCertPoll   = "20"
	TypeGetCert    = "21"
	TypeGetCRL     = "22"
)

// Types of signed attributes.
var (
	OIDContentType    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
	OIDMessageDigest  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
	OIDSigningTime    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 5}
	OIDMessageType    = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 2}
	OIDPKIStatus      = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 3}
	OIDFailInfo       = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 4}
	OIDSenderNonce    = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 5}
	OIDRecipientNonce = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 6}
	OIDTransactionID  = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 7}
	OIDFailInfoText   = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 24, 1}
)

// A Message describes a pkiMessage. A [Device] makes good ones; every field can be changed before
// [Message.BER] writes it down.
type Message struct {
	Type             string // messageType
	TypeTag          byte   // if zero, PrintableString
	TransactionID    string
	TransactionIDTag byte   // if zero, PrintableString
	SenderNonce      []byte // if nil, left out

	// Envelope is what eContent holds, unless Content is there.
	Envelope *Envelope
	Content  []byte
	CSR      []byte // that is in the envelope, if any

	Key         crypto.Signer // signs, and opens the reply
	Password    string        // opens the reply if Key cannot decrypt
	Certificate []byte        // of Key, DER
	Bag         [][]byte      // all certificates, in this order; if nil, Certificate

	Hash               crypto.Hash // if zero, SHA-256
	Scheme             Scheme
	DigestNull         bool                          // digestAlgorithm has NULL for parameters
	DigestAlgorithm    []byte                        // AlgorithmIdentifier in place of the right one
	SignatureAlgorithm []byte                        // likewise
	KeyID              []byte                        // names the signer in place of issuer and serial
	Attributes         func([]Attribute) []Attribute // edits the signed attributes
	Order              Order                         // of the signed attributes
	Unsigned           []Attribute
	MessageDigest      func([]byte) []byte     // edits the value of the attribute
	Signature          func([]byte) []byte     // edits it
	SignerInfos        func([][]byte) [][]byte // edits the list
	NoSignedAttrs      bool                    // the signature is over the content
	ContentType        asn1.ObjectIdentifier   // eContentType; if nil, id-data
	NoContent          bool                    // eContent is absent

	Pieces     int  // if positive, eContent is constructed, of pieces so long
	Indefinite bool // lengths
	Trailer    []byte
}

// An Attribute is a CMS attribute.
type Attribute struct {
	Type   asn1.ObjectIdentifier
	Values [][]byte
}

func (a Attribute) der() []byte { return Attr(a.Type, a.Values...) }

// An Order is that of the signed attributes.
type Order uint8

const (
	Sorted     Order = iota // as DER has it
	AsListed                // as they are listed, and signed so
	SignSorted              // as they are listed, but the signature is over their DER
)

// With returns an edit that adds attributes at the end, for Message.Attributes.
func With(more ...Attribute) func([]Attribute) []Attribute {
	return func(attrs []Attribute) []Attribute { return append(attrs, more...) }
}

// Without returns an edit that takes attributes of these types out.
func Without(types ...asn1.ObjectIdentifier) func([]Attribute) []Attribute {
	return func(attrs []Attribute) []Attribute {
		return slices.DeleteFunc(attrs, func(a Attribute) bool { return slices.ContainsFunc(types, a.Type.Equal) })
	}
}

// Replace returns an edit that gives an attribute these values.
func Replace(id asn1.ObjectIdentifier, values ...[]byte) func([]Attribute) []Attribute {
	return func(attrs []Attribute) []Attribute {
		for i := range attrs {
			if attrs[i].Type.Equal(id) {
				attrs[i].Values = values
			}
		}
		return attrs
	}
}

// Reverse is an edit that turns the order round.
func Reverse(attrs []Attribute) []Attribute {
	slices.Reverse(attrs)
	return attrs
}

// Nonce returns n random bytes.
func Nonce(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// Again returns a copy of m with a fresh nonce, as a client sends it that lost the answer.
func (m *Message) Again() *Message {
	c := *m
	c.SenderNonce = Nonce(16)
	return &c
}

// BER writes the message down, in DER unless Pieces or Indefinite is set. Each time, the envelope
// is another.
func (m *Message) BER() []byte {
	w := writer{m.Indefinite}
	content := m.Content
	if content == nil && m.Envelope != nil {
		content = m.Envelope.BER()
	}
	hash := m.Hash
	if hash == 0 {
		hash = crypto.SHA256
	}
	contentType := m.ContentType
	if contentType == nil {
		contentType = oidData
	}
	var eContent []byte
	if m.NoContent {
		content = nil
	} else {
		eContent = w.cons(0xa0, w.octets(TagOctetString, content, m.Pieces))
	}
	digestAlgorithm := m.DigestAlgorithm
	if digestAlgorithm == nil {
		var params []byte
		if m.DigestNull {
			params = null
		}
		digestAlgorithm = Algorithm(hashOIDs[hash], params)
	}
	infos := [][]byte{m.signerInfo(w, content, contentType, hash, digestAlgorithm)}
	if m.SignerInfos != nil {
		infos = m.SignerInfos(infos)
	}
	bag := m.Bag
	if bag == nil {
		bag = [][]byte{m.Certificate}
	}
	out := w.cons(TagSequence, OID(oidSigned), w.cons(0xa0, w.cons(TagSequence,
		Integer(1),
		w.cons(TagSet, digestAlgorithm),
		w.cons(TagSequence, OID(contentType), eContent),
		w.cons(0xa0, bag...),
		w.cons(TagSet, infos...))))
	return append(out, m.Trailer...)
}

// signerInfo signs.
func (m *Message) signerInfo(w writer, content []byte, contentType asn1.ObjectIdentifier, hash crypto.Hash, digestAlgorithm []byte) []byte {
	var signedAttrs []byte
	signed := content
	if !m.NoSignedAttrs {
		h := hash.New()
		h.Write(content)
		var sent [][]byte
		for _, a := range m.attributes(contentType, h.Sum(nil)) {
			sent = append(sent, a.der())
		}
		sorted := setOf(sent...)
		if m.Order == Sorted {
			slices.SortFunc(sent, bytes.Compare)
		}
		signedAttrs = TLV(0xa0, sent...)
		if signed = sorted; m.Order == AsListed {
			signed = TLV(TagSet, sent...)
		}
	}
	signature := m.Scheme.sign(m.Key, hash, signed)
	if m.Signature != nil {
		signature = m.Signature(signature)
	}
	algorithm := m.SignatureAlgorithm
	if algorithm == nil {
		algorithm = m.Scheme.algorithm(m.Key.Public(), hash)
	}
	version, sid := int64(1), []byte(nil)
	if m.KeyID != nil {
		version, sid = 3, TLV(0x80, m.KeyID)
	} else {
		issuer, serial := issuerAndSerial(m.Certificate)
		sid = w.cons(TagSequence, issuer, serial)
	}
	var unsigned []byte
	if len(m.Unsigned) > 0 {
		var list [][]byte
		for _, a := range m.Unsigned {
			list = append(list, a.der())
		}
		unsigned = TLV(0xa1, list...)
	}
	return w.cons(TagSequence, Integer(version), sid, digestAlgorithm, signedAttrs, algorithm, TLV(TagOctetString, signature), unsigned)
}

func (m *Message) attributes(contentType asn1.ObjectIdentifier, digest []byte) []Attribute {
	one := func(id asn1.ObjectIdentifier, tag byte, value string) Attribute {
		if tag == 0 {
			tag = TagPrintableString
		}
		return Attribute{id, [][]byte{TLV(tag, []byte(value))}}
	}
	if m.MessageDigest != nil {
		digest = m.MessageDigest(digest)
	}
	attrs := []Attribute{
		{OIDContentType, [][]byte{OID(contentType)}},
		{OIDMessageDigest, [][]byte{TLV(TagOctetString, digest)}},
		one(OIDMessageType, m.TypeTag, m.Type),
		one(OIDTransactionID, m.TransactionIDTag, m.TransactionID),
	}
	if m.SenderNonce != nil {
		attrs = append(attrs, one(OIDSenderNonce, TagOctetString, string(m.SenderNonce)))
	}
	if m.Attributes != nil {
		attrs = m.Attributes(attrs)
	}
	return attrs
}

// issuerAndSerial returns the two elements of a certificate, however odd.
func issuerAndSerial(der []byte) (issuer, serial []byte) {
	in := cryptobyte.String(der)
	var cert, tbs, name, number cryptobyte.String
	version := cbasn1.Tag(0).ContextSpecific().Constructed()
	if !in.ReadASN1(&cert, cbasn1.SEQUENCE) || !cert.ReadASN1(&tbs, cbasn1.SEQUENCE) ||
		!tbs.SkipOptionalASN1(version) || !tbs.ReadASN1Element(&number, cbasn1.INTEGER) ||
		!tbs.SkipASN1(cbasn1.SEQUENCE) || !tbs.ReadASN1Element(&name, cbasn1.SEQUENCE) {
		panic("sceptest: Message.Certificate is no certificate")
	}
	return name, number
}
