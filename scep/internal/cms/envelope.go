package cms

import (
	"crypto"
	"crypto/rsa"
	"encoding/asn1"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

const maxRecipients = 64

// An Envelope is an EnvelopedData (RFC 5652, 6) that has been read.
type Envelope struct {
	Recipients []Recipient           // KeyTransRecipientInfos. At most 64 recipients of any kind; other kinds are skipped
	Passwords  []PasswordRecipient   // PasswordRecipientInfos
	Cipher     Cipher                // 0 if it is none that we know
	CipherOID  asn1.ObjectIdentifier // as received; nil if it has huge arcs
	IV         []byte                // of any length; nil if the parameters are not an OCTET STRING
	Ciphertext []byte
}

// A Recipient is a KeyTransRecipientInfo.
type Recipient struct {
	RawIssuer    []byte // with RawSerial, or
	RawSerial    []byte // content octets of the INTEGER
	SubjectKeyID []byte
	AlgorithmOID asn1.ObjectIdentifier
	// Options are for decrypting EncryptedKey: *rsa.PKCS1v15DecryptOptions or *rsa.OAEPOptions
	// (with Hash, MGFHash, Label); nil if the key transport algorithm is none that we know.
	Options      crypto.DecrypterOpts
	EncryptedKey []byte
}

// ParseEnvelope reads a ContentInfo(EnvelopedData), or a bare EnvelopedData, in BER. Errors wrap
// ErrSyntax.
func ParseEnvelope(ber []byte) (*Envelope, error) {
	der, err := Normalize(ber)
	if err != nil {
		return nil, err
	}
	var (
		s                = cryptobyte.String(der)
		sq, f, oid, info cryptobyte.String
		version          int
	)
	if !s.ReadASN1(&sq, casn1.SEQUENCE) || !s.Empty() {
		return nil, syntaxError("ContentInfo: no EnvelopedData")
	}
	if sq.PeekASN1Tag(casn1.OBJECT_IDENTIFIER) {
		info = sq
		if !readOID(&info, &oid) || string(oid) != oidEnvelopedData ||
			!info.ReadASN1(&f, explicit(0)) || !info.Empty() ||
			!f.ReadASN1(&sq, casn1.SEQUENCE) || !f.Empty() {
			return nil, syntaxError("ContentInfo: no EnvelopedData")
		}
	}
	if !sq.ReadASN1Integer(&version) || version < 0 || version == 1 || version > 4 {
		return nil, syntaxError("EnvelopedData: version")
	}
	var recipients cryptobyte.String
	if !sq.SkipOptionalASN1(explicit(0)) || // originatorInfo
		!sq.ReadASN1(&recipients, casn1.SET) ||
		!sq.ReadASN1(&info, casn1.SEQUENCE) ||
		!sq.SkipOptionalASN1(explicit(1)) || // unprotectedAttrs
		!sq.Empty() {
		return nil, syntaxError("EnvelopedData")
	}
	e := new(Envelope)
	if err := e.readRecipients(recipients); err != nil {
		return nil, err
	}
	if err := e.readContentInfo(info); err != nil {
		return nil, err
	}
	return e, nil
}

// readRecipients reads the content of recipientInfos.
func (e *Envelope) readRecipients(s cryptobyte.String) error {
	if s.Empty() {
		return syntaxError("EnvelopedData: no recipients")
	}
	for n := 0; !s.Empty(); n++ {
		var (
			info cryptobyte.String
			tag  casn1.Tag
		)
		if n == maxRecipients {
			return syntaxError("EnvelopedData: too many recipients")
		}
		if !s.ReadAnyASN1(&info, &tag) {
			return syntaxError("RecipientInfo")
		}
		switch tag {
		case casn1.SEQUENCE:
			var r Recipient
			if !r.read(info) {
				return syntaxError("KeyTransRecipientInfo")
			}
			e.Recipients = append(e.Recipients, r)
		case explicit(3):
			e.Passwords = append(e.Passwords, readPasswordRecipient(info))
		case explicit(1), explicit(2), explicit(4): // kari, kekri, ori
		default:
			return syntaxError("RecipientInfo: no such kind")
		}
	}
	return nil
}

func (r *Recipient) read(s cryptobyte.String) bool {
	var (
		version int
		id      identifier
		a       algorithm
		key     cryptobyte.String
	)
	if !s.ReadASN1Integer(&version) || version != 0 && version != 2 || !id.read(&s) ||
		!readAlgorithm(&s, &a, casn1.SEQUENCE) ||
		!s.ReadASN1(&key, casn1.OCTET_STRING) || !s.Empty() {
		return false
	}
	*r = Recipient{
		RawIssuer:    id.issuer,
		RawSerial:    id.serial,
		SubjectKeyID: id.keyID,
		AlgorithmOID: objectIdentifier(a.oid),
		EncryptedKey: key,
	}
	switch string(a.oid) {
	case oidRSA:
		//lint:ignore SA1019 SCEP has no other key transport that all clients know.
		r.Options = &rsa.PKCS1v15DecryptOptions{}
	case oidOAEP:
		if o := oaep(a.params); o != nil {
			r.Options = o
		}
	}
	return true
}

// oaep reads RSAES-OAEP-params (RFC 4055, 4.1). Some leave them out where there should be an empty
// SEQUENCE. It returns nil for what it does not understand: the recipient may be another.
func oaep(p cryptobyte.String) *rsa.OAEPOptions {
	var (
		o       = &rsa.OAEPOptions{Hash: crypto.SHA1, MGFHash: crypto.SHA1}
		a       = algorithm{params: p}
		seq, f  cryptobyte.String
		label   cryptobyte.String
		present bool
	)
	if a.noParams() {
		return o
	}
	if !p.ReadASN1(&seq, casn1.SEQUENCE) || !p.Empty() ||
		!readMaskedHash(&seq, &o.Hash, &o.MGFHash) || o.Hash == 0 || o.MGFHash == 0 ||
		!seq.ReadOptionalASN1(&f, &present, explicit(2)) || !seq.Empty() {
		return nil
	}
	if present {
		if !readAlgorithm(&f, &a, casn1.SEQUENCE) || !f.Empty() || string(a.oid) != oidPSpecific ||
			!a.params.ReadASN1(&label, casn1.OCTET_STRING) {
			return nil
		}
		o.Label = label
	}
	return o
}

// readContentInfo reads the content of encryptedContentInfo.
func (e *Envelope) readContentInfo(s cryptobyte.String) error {
	var (
		oid, text, iv cryptobyte.String
		a             algorithm
	)
	if !readOID(&s, &oid) || string(oid) != oidData || !readAlgorithm(&s, &a, casn1.SEQUENCE) {
		return syntaxError("EncryptedContentInfo")
	}
	present, ok := readImplicitOctets(&s, &text, 0)
	if !present || !ok || !s.Empty() {
		return syntaxError("EncryptedContentInfo: encryptedContent")
	}
	e.Cipher, e.CipherOID, e.Ciphertext = cipherOf(a.oid), objectIdentifier(a.oid), text
	if a.params.ReadASN1(&iv, casn1.OCTET_STRING) {
		e.IV = iv
	}
	return nil
}
