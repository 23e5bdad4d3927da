package cms

import (
	"bytes"
	"crypto"
	"crypto/subtle"
	"encoding/asn1"
	"errors"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// What a client may put into one message.
const (
	maxCertificates     = 8
	maxCertificateBytes = 32 << 10
	maxAttributes       = 64
)

// Attributes are the signed attributes of a pkiMessage (RFC 8894, 3.2.1).
type Attributes struct {
	MessageType   string // decimal, as received: "19"; "" if absent
	TransactionID []byte // content octets; nil if absent
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
	Content      []byte                // octets of eContent; nil if it is absent, not nil if it is empty
	Digest       crypto.Hash           // 0 if it is none that we know
	DigestOID    asn1.ObjectIdentifier // of digestAlgorithm, as received; nil if it has huge arcs
	SignatureOID asn1.ObjectIdentifier // likewise
	Signer       *Certificate          // named by the SignerInfo; nil if it is not among Certificates, or named twice
	Certificates []*Certificate        // at most 8, at most 32 KiB in all

	signedAttrs        cryptobyte.String // with the header, [0]
	signatureAlgorithm []byte            // DER
	signature          []byte
	eContentType       string // "" is id-data
	contentType        []byte // attribute: content octets, nil if absent
	messageDigest      []byte // attribute: nil if absent
}

// signedData are the fields of a ContentInfo(SignedData).
type signedData struct {
	contentType  cryptobyte.String // content octets
	hasContent   bool
	content      cryptobyte.String // octets of eContent
	inner        cryptobyte.String // eContent that is no OCTET STRING, with its header (PKCS #7)
	certificates cryptobyte.String // content of the SET
	crls         cryptobyte.String // likewise
	signerInfos  cryptobyte.String // likewise
}

// read reads a ContentInfo around a SignedData with eContentType id-data.
func (sd *signedData) read(der []byte) error {
	if err := sd.readAny(der); err != nil {
		return err
	}
	if string(sd.contentType) != oidData || sd.inner != nil {
		return syntaxError("SignedData: content is not id-data")
	}
	return nil
}

// readAny reads a ContentInfo around a SignedData with any content.
func (sd *signedData) readAny(der []byte) error {
	var (
		s                = cryptobyte.String(der)
		info, oid, f, sq cryptobyte.String
		eci              cryptobyte.String
		version          int
		present          bool
	)
	if !s.ReadASN1(&info, casn1.SEQUENCE) || !s.Empty() ||
		!readOID(&info, &oid) || string(oid) != oidSignedData ||
		!info.ReadASN1(&f, explicit(0)) || !info.Empty() ||
		!f.ReadASN1(&sq, casn1.SEQUENCE) || !f.Empty() {
		return syntaxError("ContentInfo: no SignedData")
	}
	if !sq.ReadASN1Integer(&version) || version < 0 || version > 5 ||
		!sq.SkipASN1(casn1.SET) || // digestAlgorithms only help those who hash while they read
		!sq.ReadASN1(&eci, casn1.SEQUENCE) ||
		!readOID(&eci, &sd.contentType) {
		return syntaxError("SignedData")
	}
	if !eci.ReadOptionalASN1(&f, &sd.hasContent, explicit(0)) || !eci.Empty() {
		return syntaxError("SignedData: eContent")
	}
	if f.PeekASN1Tag(casn1.SEQUENCE) {
		sd.inner = f
		if !f.ReadASN1(&sd.content, casn1.SEQUENCE) || !f.Empty() {
			return syntaxError("SignedData: eContent")
		}
	} else if sd.hasContent && (!f.ReadASN1(&sd.content, casn1.OCTET_STRING) || !f.Empty()) {
		return syntaxError("SignedData: eContent")
	}
	if !sq.ReadOptionalASN1(&sd.certificates, &present, explicit(0)) ||
		!sq.ReadOptionalASN1(&sd.crls, &present, explicit(1)) ||
		!sq.ReadASN1(&sd.signerInfos, casn1.SET) || !sq.Empty() {
		return syntaxError("SignedData")
	}
	return nil
}

// ParseMessage reads a pkiMessage, in BER: a SignedData with eContentType id-data and exactly one
// SignerInfo with signed attributes, each of which occurs once with one value. Errors wrap
// ErrSyntax. Attributes of SCEP that are missing are the caller's to miss.
func ParseMessage(ber []byte) (*Message, error) {
	der, err := Normalize(ber)
	if err != nil {
		return nil, err
	}
	var sd signedData
	if err := sd.read(der); err != nil {
		return nil, err
	}
	m := new(Message)
	if sd.hasContent {
		m.Content = sd.content
	}
	if err := m.readCertificates(sd.certificates); err != nil {
		return nil, err
	}
	if err := m.readSignerInfo(sd.signerInfos); err != nil {
		return nil, err
	}
	return m, nil
}

// readCertificates reads the SET of certificates. What is no certificate is skipped: only the
// signer's matters.
func (m *Message) readCertificates(s cryptobyte.String) error {
	if len(s) > maxCertificateBytes {
		return syntaxError("certificates: too large")
	}
	for n := 0; !s.Empty(); n++ {
		var (
			raw cryptobyte.String
			tag casn1.Tag
		)
		if !s.ReadAnyASN1Element(&raw, &tag) {
			return syntaxError("certificates")
		}
		if n == maxCertificates {
			return syntaxError("certificates: too many")
		}
		if tag != casn1.SEQUENCE {
			continue
		}
		if c, err := ParseCertificate(raw); err == nil {
			m.Certificates = append(m.Certificates, c)
		}
	}
	return nil
}

func (m *Message) readSignerInfo(infos cryptobyte.String) error {
	var (
		s       cryptobyte.String
		version int
		id      identifier
		a       algorithm
		f       cryptobyte.String
	)
	if !infos.ReadASN1(&s, casn1.SEQUENCE) {
		return syntaxError("SignedData: no SignerInfo")
	}
	if !infos.Empty() {
		return syntaxError("SignedData: more than one SignerInfo")
	}
	if !s.ReadASN1Integer(&version) || version != 1 && version != 3 || !id.read(&s) {
		return syntaxError("SignerInfo: sid")
	}
	if !readAlgorithm(&s, &a, casn1.SEQUENCE) {
		return syntaxError("SignerInfo: digestAlgorithm")
	}
	if m.Digest = digestHashOf(a.oid); m.Digest != 0 && !a.noParams() {
		return syntaxError("SignerInfo: digestAlgorithm parameters")
	}
	m.DigestOID = objectIdentifier(a.oid)
	if !s.ReadASN1Element(&m.signedAttrs, explicit(0)) {
		return syntaxError("SignerInfo: no signedAttrs")
	}
	f = s
	if !readAlgorithm(&s, &a, casn1.SEQUENCE) {
		return syntaxError("SignerInfo: signatureAlgorithm")
	}
	m.SignatureOID = objectIdentifier(a.oid)
	m.signatureAlgorithm = f[:len(f)-len(s)]
	if !s.ReadASN1(&f, casn1.OCTET_STRING) || !s.SkipOptionalASN1(explicit(1)) || !s.Empty() {
		return syntaxError("SignerInfo: signature")
	}
	m.signature = f

	attrs := m.signedAttrs
	if !attrs.ReadASN1(&f, explicit(0)) {
		return syntaxError("SignerInfo: signedAttrs")
	}
	if err := m.readAttributes(f); err != nil {
		return err
	}
	m.Signer = m.signer(&id)
	return nil
}

// signer returns the one certificate that id names, or nil.
func (m *Message) signer(id *identifier) *Certificate {
	var found *Certificate
	for _, c := range m.Certificates {
		if !c.named(id.issuer, id.serial, id.keyID) {
			continue
		}
		if found != nil && !bytes.Equal(found.Raw, c.Raw) {
			return nil
		}
		found = c
	}
	return found
}

// An identifier is a SignerIdentifier or RecipientIdentifier.
type identifier struct {
	issuer, serial cryptobyte.String // or
	keyID          cryptobyte.String
}

func (id *identifier) read(s *cryptobyte.String) bool {
	var seq cryptobyte.String
	if s.PeekASN1Tag(casn1.SEQUENCE) {
		return s.ReadASN1(&seq, casn1.SEQUENCE) &&
			seq.ReadASN1Element(&id.issuer, casn1.SEQUENCE) &&
			seq.ReadASN1(&id.serial, casn1.INTEGER) && seq.Empty()
	}
	present, ok := readImplicitOctets(s, &id.keyID, 0)
	return present && ok
}

// readImplicitOctets reads an optional OCTET STRING tagged [number] IMPLICIT, primitive or
// constructed.
func readImplicitOctets(s, out *cryptobyte.String, number uint8) (present, ok bool) {
	if tag := casn1.Tag(number).ContextSpecific(); s.PeekASN1Tag(tag) {
		return true, s.ReadASN1(out, tag)
	}
	if !s.PeekASN1Tag(explicit(number)) {
		return false, true
	}
	var pieces, p cryptobyte.String
	if !s.ReadASN1(&pieces, explicit(number)) {
		return true, false
	}
	joined := make(cryptobyte.String, 0, len(pieces))
	for !pieces.Empty() {
		if !pieces.ReadASN1(&p, casn1.OCTET_STRING) {
			return true, false
		}
		joined = append(joined, p...)
	}
	*out = joined
	return true, true
}

// Verify checks the message digest and the signature with pub (the caller chooses whose: the
// server that of m.Signer, the client that of the CA it knows). It returns nil, ErrSignature
// (wrapped), or an [*AlgorithmError].
func (m *Message) Verify(pub crypto.PublicKey) error {
	if m.Digest == 0 {
		return &AlgorithmError{Use: "digest", OID: m.DigestOID}
	}
	// Without these two, signed attributes could pass for content, and content for attributes
	// (RFC 5652, 5.3).
	want := m.eContentType
	if want == "" {
		want = oidData
	}
	if string(m.contentType) != want {
		return signatureError("contentType is not that of the content")
	}
	h := m.Digest.New()
	h.Write(m.Content)
	if m.messageDigest == nil || subtle.ConstantTimeCompare(h.Sum(nil), m.messageDigest) != 1 {
		return signatureError("messageDigest is another")
	}
	// RFC 5652, 5.4: what is signed has the tag of a SET. Most take the attributes as they sent
	// them, some their DER, which differs if they sent them unsorted.
	set := slices.Clone([]byte(m.signedAttrs))
	set[0] = byte(casn1.SET)
	_, err := VerifySignature(pub, m.signatureAlgorithm, m.Digest, set, m.signature)
	if errors.Is(err, ErrSignature) && sortSet(set) {
		_, err = VerifySignature(pub, m.signatureAlgorithm, m.Digest, set, m.signature)
	}
	return err
}

// sortSet puts the elements of a SET OF into DER order, in place. It reports whether that changed
// something.
func sortSet(set []byte) bool {
	var (
		s        = cryptobyte.String(set)
		content  cryptobyte.String
		element  cryptobyte.String
		elements [][]byte
	)
	if !s.ReadASN1(&content, casn1.SET) {
		return false
	}
	for rest := content; !rest.Empty(); {
		if !rest.ReadAnyASN1Element(&element, nil) {
			return false
		}
		elements = append(elements, element)
	}
	if slices.IsSortedFunc(elements, bytes.Compare) {
		return false
	}
	slices.SortFunc(elements, bytes.Compare)
	copy(content, bytes.Join(elements, nil))
	return true
}
