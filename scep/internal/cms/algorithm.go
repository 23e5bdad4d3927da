package cms

import (
	"crypto"
	_ "crypto/md5"  // crypto.MD5: named, for the caller to refuse
	_ "crypto/sha1" // crypto.SHA1
	_ "crypto/sha256"
	_ "crypto/sha512"
	"encoding/asn1"
	"strconv"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Object identifiers, as content octets: strings cannot be changed, and compare without parsing.
const (
	oidData          = "\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01" // 1.2.840.113549.1.7.1
	oidSignedData    = "\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02"
	oidEnvelopedData = "\x2a\x86\x48\x86\xf7\x0d\x01\x07\x03"

	oidMD5       = "\x2a\x86\x48\x86\xf7\x0d\x02\x05" // 1.2.840.113549.2.5
	oidSHA1      = "\x2b\x0e\x03\x02\x1a"             // 1.3.14.3.2.26
	oidSHA256    = "\x60\x86\x48\x01\x65\x03\x04\x02\x01"
	oidSHA384    = "\x60\x86\x48\x01\x65\x03\x04\x02\x02"
	oidSHA512    = "\x60\x86\x48\x01\x65\x03\x04\x02\x03"
	oidSHA224    = "\x60\x86\x48\x01\x65\x03\x04\x02\x04" // 2.16.840.1.101.3.4.2.4
	oidMGF1      = "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08"
	oidPSpecific = "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x09"

	oidRSA           = "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01" // 1.2.840.113549.1.1.1
	oidMD5WithRSA    = "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x04"
	oidSHA1WithRSA   = "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05"
	oidOAEP          = "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x07"
	oidPSS           = "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a"
	oidSHA256WithRSA = "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b"
	oidSHA384WithRSA = "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c"
	oidSHA512WithRSA = "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d"
	oidSHA224WithRSA = "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0e"
	oidOIWSHA1RSA    = "\x2b\x0e\x03\x02\x1d" // 1.3.14.3.2.29, an older sha1WithRSA

	oidECPublicKey     = "\x2a\x86\x48\xce\x3d\x02\x01" // 1.2.840.10045.2.1
	oidECDSAWithSHA1   = "\x2a\x86\x48\xce\x3d\x04\x01"
	oidECDSAWithSHA224 = "\x2a\x86\x48\xce\x3d\x04\x03\x01"
	oidECDSAWithSHA256 = "\x2a\x86\x48\xce\x3d\x04\x03\x02"
	oidECDSAWithSHA384 = "\x2a\x86\x48\xce\x3d\x04\x03\x03"
	oidECDSAWithSHA512 = "\x2a\x86\x48\xce\x3d\x04\x03\x04"
	oidEd25519         = "\x2b\x65\x70"                     // 1.3.101.112
	oidP256            = "\x2a\x86\x48\xce\x3d\x03\x01\x07" // 1.2.840.10045.3.1.7
	oidP384            = "\x2b\x81\x04\x00\x22"             // 1.3.132.0.34
	oidP521            = "\x2b\x81\x04\x00\x23"             // 1.3.132.0.35

	oidDESCBC    = "\x2b\x0e\x03\x02\x07"             // 1.3.14.3.2.7
	oidDESEDE3   = "\x2a\x86\x48\x86\xf7\x0d\x03\x07" // 1.2.840.113549.3.7
	oidAES128CBC = "\x60\x86\x48\x01\x65\x03\x04\x01\x02"
	oidAES192CBC = "\x60\x86\x48\x01\x65\x03\x04\x01\x16"
	oidAES256CBC = "\x60\x86\x48\x01\x65\x03\x04\x01\x2a" // 2.16.840.1.101.3.4.1.42
)

// objectIdentifier returns the object identifier with these content octets, or nil if one of its
// arcs is too large for it.
func objectIdentifier[T string | cryptobyte.String](content T) asn1.ObjectIdentifier {
	if len(content) == 0 || len(content) > 0x7f {
		return nil
	}
	var buf [0x81]byte
	s := cryptobyte.String(append(append(buf[:0], byte(casn1.OBJECT_IDENTIFIER), byte(len(content))), content...))
	var oid asn1.ObjectIdentifier
	if !s.ReadASN1ObjectIdentifier(&oid) {
		return nil
	}
	return oid
}

// An AlgorithmError says that an algorithm is unknown here, or cannot be verified, or that a key
// is none to compute with.
type AlgorithmError struct {
	Use string // as "digest", "signature", "content encryption", "key transport", "public key"
	OID asn1.ObjectIdentifier

	detail string
}

// Error names the use and the algorithm.
func (e *AlgorithmError) Error() string {
	s := "cms: " + e.Use + " algorithm"
	if len(e.OID) > 0 {
		s += " " + e.OID.String()
	}
	if e.detail != "" {
		return s + ": " + e.detail
	}
	return s + " is not supported"
}

// A Cipher is a content encryption algorithm in CBC mode. The zero Cipher is none.
type Cipher uint8

const (
	DES Cipher = iota + 1 // read, never written
	TripleDES
	AES128
	AES192
	AES256
)

// String returns the name, as "AES-128-CBC", "DES-EDE3-CBC" or "DES-CBC".
func (c Cipher) String() string {
	switch c {
	case DES:
		return "DES-CBC"
	case TripleDES:
		return "DES-EDE3-CBC"
	case AES128:
		return "AES-128-CBC"
	case AES192:
		return "AES-192-CBC"
	case AES256:
		return "AES-256-CBC"
	}
	return "Cipher(" + strconv.Itoa(int(c)) + ")"
}

// KeySize returns the length of a key in bytes; 0 for a Cipher that is none.
func (c Cipher) KeySize() int {
	switch c {
	case DES:
		return 8
	case TripleDES, AES192:
		return 24
	case AES128:
		return 16
	case AES256:
		return 32
	}
	return 0
}

// OID returns the object identifier of the algorithm; nil for a Cipher that is none.
func (c Cipher) OID() asn1.ObjectIdentifier { return objectIdentifier(c.oid()) }

func (c Cipher) oid() string {
	switch c {
	case DES:
		return oidDESCBC
	case TripleDES:
		return oidDESEDE3
	case AES128:
		return oidAES128CBC
	case AES192:
		return oidAES192CBC
	case AES256:
		return oidAES256CBC
	}
	return ""
}

func cipherOf(oid []byte) Cipher {
	switch string(oid) {
	case oidDESCBC:
		return DES
	case oidDESEDE3:
		return TripleDES
	case oidAES128CBC:
		return AES128
	case oidAES192CBC:
		return AES192
	case oidAES256CBC:
		return AES256
	}
	return 0
}

// hashOf returns the hash with this object identifier, or 0.
func hashOf(oid []byte) crypto.Hash {
	switch string(oid) {
	case oidMD5:
		return crypto.MD5
	case oidSHA1:
		return crypto.SHA1
	case oidSHA224:
		return crypto.SHA224
	case oidSHA256:
		return crypto.SHA256
	case oidSHA384:
		return crypto.SHA384
	case oidSHA512:
		return crypto.SHA512
	}
	return 0
}

// hashOID returns the object identifier of a hash that we write, or "".
func hashOID(h crypto.Hash) string {
	switch h {
	case crypto.SHA1:
		return oidSHA1
	case crypto.SHA224:
		return oidSHA224
	case crypto.SHA256:
		return oidSHA256
	case crypto.SHA384:
		return oidSHA384
	case crypto.SHA512:
		return oidSHA512
	}
	return ""
}

// rsaHashOf returns the hash of a PKCS#1 v1.5 signature algorithm that implies one, or 0.
func rsaHashOf(oid []byte) crypto.Hash {
	switch string(oid) {
	case oidMD5WithRSA:
		return crypto.MD5
	case oidSHA1WithRSA, oidOIWSHA1RSA:
		return crypto.SHA1
	case oidSHA224WithRSA:
		return crypto.SHA224
	case oidSHA256WithRSA:
		return crypto.SHA256
	case oidSHA384WithRSA:
		return crypto.SHA384
	case oidSHA512WithRSA:
		return crypto.SHA512
	}
	return 0
}

// ecdsaHashOf returns the hash of an ECDSA signature algorithm, or 0.
func ecdsaHashOf(oid []byte) crypto.Hash {
	switch string(oid) {
	case oidECDSAWithSHA1:
		return crypto.SHA1
	case oidECDSAWithSHA224:
		return crypto.SHA224
	case oidECDSAWithSHA256:
		return crypto.SHA256
	case oidECDSAWithSHA384:
		return crypto.SHA384
	case oidECDSAWithSHA512:
		return crypto.SHA512
	}
	return 0
}

// digestHashOf returns the hash of a digestAlgorithm, or 0. Some clients put the signature
// algorithm there.
func digestHashOf(oid []byte) crypto.Hash {
	h := hashOf(oid)
	if h == 0 {
		h = rsaHashOf(oid)
	}
	if h == 0 {
		h = ecdsaHashOf(oid)
	}
	return h
}

// An algorithm is an AlgorithmIdentifier.
type algorithm struct {
	oid    cryptobyte.String // content octets
	params cryptobyte.String // one element, or empty
}

// readAlgorithm reads an AlgorithmIdentifier with this tag.
func readAlgorithm(s *cryptobyte.String, a *algorithm, tag casn1.Tag) bool {
	var seq cryptobyte.String
	if !s.ReadASN1(&seq, tag) || !readOID(&seq, &a.oid) {
		return false
	}
	if a.params = nil; seq.Empty() {
		return true
	}
	return seq.ReadAnyASN1Element(&a.params, nil) && seq.Empty()
}

// noParams reports whether the parameters are absent or NULL.
func (a *algorithm) noParams() bool {
	return a.params.Empty() || len(a.params) == 2 && a.params[0] == byte(casn1.NULL) && a.params[1] == 0
}

// readOID reads the content octets of an OBJECT IDENTIFIER.
func readOID(s, oid *cryptobyte.String) bool {
	return s.ReadASN1(oid, casn1.OBJECT_IDENTIFIER) && len(*oid) > 0 && (*oid)[len(*oid)-1]&0x80 == 0
}

func addOID(b *cryptobyte.Builder, oid string) {
	b.AddASN1(casn1.OBJECT_IDENTIFIER, func(b *cryptobyte.Builder) { b.AddBytes([]byte(oid)) })
}

// addAlgorithm writes an AlgorithmIdentifier, with NULL if null is set.
func addAlgorithm(b *cryptobyte.Builder, oid string, null bool) {
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		addOID(b, oid)
		if null {
			b.AddASN1NULL()
		}
	})
}
