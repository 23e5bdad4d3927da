// Package cms reads and writes CMS (RFC 5652) as SCEP uses it: signed pkiMessages, envelopes
// and certs-only messages. It is tolerant of BER on the way in and writes DER.
//
// Everything here may be fed hostile bytes. Nothing here logs, keeps state or has settings:
// whether an algorithm is allowed is the caller's to say, so the readers name what they see.
package cms

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"errors"
)

// --- ber.go

// ErrSyntax is wrapped by the error of every reader for bytes that are not what they should be.
var ErrSyntax = errors.New("cms: malformed")

// Normalize returns the one BER element in b with definite, minimal lengths and without
// constructed strings of universal tags; b itself if it is so already. Trailing CR, LF and NUL are dropped, other
// trailing bytes refused. It is iterative, linear in len(b), at most 32 levels deep and 10 000 elements
// long.
func Normalize(b []byte) ([]byte, error) { panic("stub") }

// --- algorithm.go

// An AlgorithmError says that an algorithm is unknown here, or cannot be verified.
type AlgorithmError struct {
	Use string // as "digest", "signature", "content encryption", "key transport"
	OID asn1.ObjectIdentifier
}

func (e *AlgorithmError) Error() string { panic("stub") }

// A Cipher is a content encryption algorithm in CBC mode.
type Cipher uint8

const (
	DES Cipher = iota + 1
	TripleDES
	AES128
	AES192
	AES256
)

func (c Cipher) String() string             { panic("stub") } // "AES-128-CBC", "DES-EDE3-CBC", "DES-CBC"
func (c Cipher) KeySize() int               { panic("stub") } // bytes
func (c Cipher) OID() asn1.ObjectIdentifier { panic("stub") }

// VerifySignature checks a signature made with the algorithm in alg (DER of AlgorithmIdentifier) over
// data. digest is the hash when alg does not imply one (rsaEncryption), or 0.
// It knows RSA PKCS#1 v1.5 (rsaEncryption or xxxWithRSA, MD5 and SHA-1 included: the caller decides on
// them), RSASSA-PSS with explicit parameters, ECDSA and Ed25519. It returns the hash that was used
// (0 for Ed25519), an *AlgorithmError, or ErrSignature. It checks the key first (see CheckKey).
func VerifySignature(pub crypto.PublicKey, alg []byte, digest crypto.Hash, data, sig []byte) (crypto.Hash, error) {
	panic("stub")
}

// ErrSignature says that a signature or a digest does not verify.
var ErrSignature = errors.New("cms: signature does not verify")

// CheckKey refuses keys that are dangerous to compute with, before any arithmetic: RSA outside 1024 to
// 8192 bits, with an even modulus, or an exponent that is even, below 3 or above 2^31-1; and key types other than
// RSA, ECDSA (P-256, P-384, P-521) and Ed25519. It does not depend on GODEBUG.
func CheckKey(pub crypto.PublicKey) error { panic("stub") }

// ParsePublicKey reads a SubjectPublicKeyInfo and checks it with CheckKey, the RSA sizes before any big arithmetic.
func ParsePublicKey(spki []byte) (crypto.PublicKey, error) { panic("stub") }

// --- certificate.go

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

// ParseCertificate reads a certificate tolerantly: any version, serial, dates, extensions and signature; no
// signature is verified.
func ParseCertificate(der []byte) (*Certificate, error) { panic("stub") }

// FromX509 returns what is needed of cert.
func FromX509(cert *x509.Certificate) *Certificate { panic("stub") }

// --- message.go

// Attributes are the signed attributes of a pkiMessage (RFC 8894, 3.2.1).
type Attributes struct {
	MessageType   string // decimal, as received: "19"
	TransactionID []byte // content octets
	// TransactionIDTag is the universal tag of the transaction ID: 19 (PrintableString) unless the
	// client did otherwise (12 UTF8String, 22 IA5String, 4 OCTET STRING ... any primitive string).
	// 0 means 19 when signing.
	TransactionIDTag int
	SenderNonce      []byte // nil if absent
	RecipientNonce   []byte // nil if absent
	PKIStatus        string // "" if absent
	FailInfo         string // "" if absent
	FailInfoText     string // "" if absent; read: bounded and with invalid UTF-8 replaced by the caller
	// Other are the raw DER attributes of types not named above, in order (read only).
	Other [][]byte
}

// A Message is a pkiMessage whose structure has been read. Nothing in it is to be trusted before
// Verify returns nil.
type Message struct {
	Attributes
	Content      []byte       // octets of eContent; nil if it is absent, not nil if it is empty
	Digest       crypto.Hash  // 0 if it is none that we know
	DigestOID    asn1.ObjectIdentifier
	SignatureOID asn1.ObjectIdentifier
	Signer       *Certificate   // named by the SignerInfo; nil if it is not among Certificates, or named twice
	Certificates []*Certificate // at most 8, at most 32 KiB in all
	// unexported: raw signed attributes as received (content of the [0], re-tagged as SET for hashing),
	// signature, signature AlgorithmIdentifier
}

// ParseMessage reads a pkiMessage: ContentInfo(SignedData) with eContentType id-data, exactly one SignerInfo with signed
// attributes, each of which occurs once with one value. Errors wrap ErrSyntax.
func ParseMessage(ber []byte) (*Message, error) { panic("stub") }

// Verify checks the message digest and the signature with pub (the caller chooses whose: the server
// that of m.Signer, the client that of the CA it knows). It returns nil, ErrSignature (wrapped),
// or an *AlgorithmError.
func (m *Message) Verify(pub crypto.PublicKey) error { panic("stub") }

// SignMessage writes a pkiMessage in DER: content (nil: eContent absent; empty: an empty OCTET STRING), the attributes
// in DER order, the certificates as given and in that order, one SignerInfo that names cert by issuer and serial with
// digestAlgorithm hash and, for RSA keys, signatureAlgorithm rsaEncryption; for ECDSA keys ecdsa-with-SHA2.
// It writes no signingTime. It verifies the signature before it returns. key gets ctx by a SignContext method if it has one.
func SignMessage(ctx context.Context, content []byte, attrs *Attributes, cert *Certificate, key crypto.Signer, hash crypto.Hash, certificates ...[]byte) ([]byte, error) {
	panic("stub")
}

// --- envelope.go

// An Envelope is an EnvelopedData (RFC 5652, 6) that has been read.
type Envelope struct {
	Recipients []Recipient // KeyTransRecipientInfos only; others are skipped. At most 64 recipients of any kind
	Cipher     Cipher      // 0 if it is none that we know
	CipherOID  asn1.ObjectIdentifier
	IV         []byte
	Ciphertext []byte
}

// A Recipient is a KeyTransRecipientInfo.
type Recipient struct {
	RawIssuer    []byte // with RawSerial, or
	RawSerial    []byte // content octets of the INTEGER
	SubjectKeyID []byte
	AlgorithmOID asn1.ObjectIdentifier
	// Options are for decrypting EncryptedKey: *rsa.PKCS1v15DecryptOptions or *rsa.OAEPOptions (with
	// Hash, MGFHash, Label); nil if the key transport algorithm is none that we know.
	Options      crypto.DecrypterOpts
	EncryptedKey []byte
}

// ParseEnvelope reads a ContentInfo(EnvelopedData), or a bare EnvelopedData, in BER. Errors wrap ErrSyntax.
func ParseEnvelope(ber []byte) (*Envelope, error) { panic("stub") }

// Decrypt decrypts the content with key, which has e.Cipher.KeySize() bytes. ok is false if IV, length
// or padding is wrong; then plain is not empty but meaningless, so that the caller can go on in the same way: it
// takes the same time. It checks padding in constant time.
func (e *Envelope) Decrypt(key []byte) (plain []byte, ok bool) { panic("stub") }

// Encrypt writes a ContentInfo(EnvelopedData) in DER that the RSA key pub opens, named by issuer and serial of to, exactly
// as they were received. PKCS#1 v1.5 key transport.
func Encrypt(content []byte, c Cipher, to *Certificate, pub crypto.PublicKey) ([]byte, error) { panic("stub") }

// --- certsonly.go

// CertsOnly writes a degenerate SignedData with these DER certificates, in this order.
func CertsOnly(certificates ...[]byte) ([]byte, error) { panic("stub") }

// ParseCertsOnly reads a degenerate SignedData, in BER. Certificates that crypto/x509 cannot parse are an error.
func ParseCertsOnly(ber []byte) (certificates []*x509.Certificate, crls [][]byte, err error) { panic("stub") }
