package sceptest

import (
	"bytes"
	"crypto"
	"encoding/asn1"
	"math/big"
	"slices"
	"time"
)

// Tags, as they are written.
const (
	TagBoolean         = 0x01
	TagInteger         = 0x02
	TagBitString       = 0x03
	TagOctetString     = 0x04
	TagNull            = 0x05
	TagOID             = 0x06
	TagUTF8String      = 0x0c
	TagPrintableString = 0x13
	TagT61String       = 0x14
	TagIA5String       = 0x16
	TagUTCTime         = 0x17
	TagBMPString       = 0x1e
	TagSequence        = 0x30
	TagSet             = 0x31
)

// TLV returns one element: a tag, the definite length, and the contents one after another.
func TLV(tag byte, contents ...[]byte) []byte {
	content := bytes.Join(contents, nil)
	return append(append([]byte{tag}, length(len(content))...), content...)
}

// length returns length octets as DER has them.
func length(n int) []byte {
	if n < 0x80 {
		return []byte{byte(n)}
	}
	var octets []byte
	for ; n > 0; n >>= 8 {
		octets = append([]byte{byte(n)}, octets...)
	}
	return append([]byte{0x80 | byte(len(octets))}, octets...)
}

// A writer writes constructed elements in one of the two forms of length.
type writer struct{ indefinite bool }

func (w writer) cons(tag byte, contents ...[]byte) []byte {
	if w.indefinite {
		return slices.Concat([]byte{tag, 0x80}, bytes.Join(contents, nil), []byte{0, 0})
	}
	return TLV(tag, contents...)
}

// octets writes a string; if n is positive, a constructed one, of OCTET STRINGs of n bytes.
func (w writer) octets(tag byte, content []byte, n int) []byte {
	if n <= 0 {
		return TLV(tag, content)
	}
	var pieces [][]byte
	for piece := range slices.Chunk(content, n) {
		pieces = append(pieces, TLV(TagOctetString, piece))
	}
	return w.cons(tag|0x20, pieces...)
}

// OID returns an OBJECT IDENTIFIER. It panics if id cannot be one.
func OID(id asn1.ObjectIdentifier) []byte { return must(asn1.Marshal(id)) }

// Integer returns an INTEGER.
func Integer(n int64) []byte { return must(asn1.Marshal(n)) }

func bigInteger(n *big.Int) []byte { return must(asn1.Marshal(n)) }

// BitString returns a BIT STRING of whole octets.
func BitString(b []byte) []byte { return TLV(TagBitString, []byte{0}, b) }

// setOf returns a SET OF in DER order.
func setOf(elements ...[]byte) []byte {
	elements = slices.Clone(elements)
	slices.SortFunc(elements, bytes.Compare)
	return TLV(TagSet, elements...)
}

// UTCTime returns a UTCTime, whatever the year.
func UTCTime(t time.Time) []byte {
	return TLV(TagUTCTime, []byte(t.UTC().Format("060102150405Z")))
}

// BMPString returns s, which must be in the basic plane, as a BMPString.
func BMPString(s string) []byte {
	var b []byte
	for _, r := range s {
		b = append(b, byte(r>>8), byte(r))
	}
	return TLV(TagBMPString, b)
}

// An RDN is a relative distinguished name: a SET of one or more attributes.
type RDN []ATV

// An ATV is an attribute type and value of a name.
type ATV struct {
	Type  asn1.ObjectIdentifier
	Tag   byte // if zero, PrintableString
	Value string
}

// Attribute types of names.
var (
	OIDCommonName          = asn1.ObjectIdentifier{2, 5, 4, 3}
	OIDSerialNumber        = asn1.ObjectIdentifier{2, 5, 4, 5}
	OIDOrganization        = asn1.ObjectIdentifier{2, 5, 4, 10}
	OIDUnstructuredName    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 2}
	OIDUnstructuredAddress = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 8}
)

// Name returns a distinguished name.
func Name(rdns ...RDN) []byte {
	var out [][]byte
	for _, rdn := range rdns {
		var atvs [][]byte
		for _, a := range rdn {
			tag := a.Tag
			if tag == 0 {
				tag = TagPrintableString
			}
			atvs = append(atvs, TLV(TagSequence, OID(a.Type), TLV(tag, []byte(a.Value))))
		}
		out = append(out, setOf(atvs...))
	}
	return TLV(TagSequence, out...)
}

// CN returns a name that is one common name.
func CN(cn string) []byte { return Name(RDN{{Type: OIDCommonName, Value: cn}}) }

// must is for encodings that cannot fail unless the caller is wrong.
func must[T any](v T, err error) T {
	if err != nil {
		panic("sceptest: " + err.Error())
	}
	return v
}

// null is what follows the object identifier of most algorithms.
var null = []byte{TagNull, 0}

// Algorithm returns an AlgorithmIdentifier; params is one element or nothing.
func Algorithm(id asn1.ObjectIdentifier, params []byte) []byte {
	return TLV(TagSequence, OID(id), params)
}

var (
	oidRSA       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidOAEP      = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}
	oidMGF1      = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 8}
	oidPSS       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 10}
	oidEd25519   = asn1.ObjectIdentifier{1, 3, 101, 112}
	oidData      = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidSigned    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidEnveloped = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 3}

	hashOIDs = map[crypto.Hash]asn1.ObjectIdentifier{
		crypto.MD5:    {1, 2, 840, 113549, 2, 5},
		crypto.SHA1:   {1, 3, 14, 3, 2, 26},
		crypto.SHA224: {2, 16, 840, 1, 101, 3, 4, 2, 4},
		crypto.SHA256: {2, 16, 840, 1, 101, 3, 4, 2, 1},
		crypto.SHA384: {2, 16, 840, 1, 101, 3, 4, 2, 2},
		crypto.SHA512: {2, 16, 840, 1, 101, 3, 4, 2, 3},
	}
	rsaSignatureOIDs = map[crypto.Hash]asn1.ObjectIdentifier{
		crypto.MD5:    {1, 2, 840, 113549, 1, 1, 4},
		crypto.SHA1:   {1, 2, 840, 113549, 1, 1, 5},
		crypto.SHA224: {1, 2, 840, 113549, 1, 1, 14},
		crypto.SHA256: {1, 2, 840, 113549, 1, 1, 11},
		crypto.SHA384: {1, 2, 840, 113549, 1, 1, 12},
		crypto.SHA512: {1, 2, 840, 113549, 1, 1, 13},
	}
	ecdsaSignatureOIDs = map[crypto.Hash]asn1.ObjectIdentifier{
		crypto.SHA1:   {1, 2, 840, 10045, 4, 1},
		crypto.SHA256: {1, 2, 840, 10045, 4, 3, 2},
		crypto.SHA384: {1, 2, 840, 10045, 4, 3, 3},
		crypto.SHA512: {1, 2, 840, 10045, 4, 3, 4},
	}
)
