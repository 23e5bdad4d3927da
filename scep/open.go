package scep

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/scepkit/scepkit/scep/internal/cms"
)

// messageType is a messageType (RFC 8894, 3.2.1.2) that a client may send.
type messageType string

const (
	certRep    messageType = "3"
	renewalReq messageType = "17"
	pkcsReq    messageType = "19"
	certPoll   messageType = "20"
	getCert    messageType = "21"
	getCRL     messageType = "22"
)

func (t messageType) String() string {
	switch t {
	case renewalReq:
		return "RenewalReq"
	case pkcsReq:
		return "PKCSReq"
	case certPoll:
		return "CertPoll"
	case getCert:
		return "GetCert"
	case getCRL:
		return "GetCRL"
	}
	return "unknown"
}

// inbound is a message on its way in. What is known of it grows as open goes on; seal needs
// the fields up to reply.
type inbound struct {
	msg     *cms.Message
	kind    messageType
	signer  crypto.PublicKey // of msg.Signer
	replier *Identity        // signs the reply
	gate    gate             // of replier
	ca      *authority       // that was addressed
	hash    crypto.Hash      // of the reply
	cipher  cms.Cipher       // of the reply

	csr      *parsedCSR // of RenewalReq and PKCSReq; verified
	password Secret     // of CertPoll, to encrypt the reply with, if the signer cannot decrypt
	issuer   []byte     // of GetCert and GetCRL: DER of Name
	serial   *big.Int   // likewise
}

// errNoReply is wrapped by errors after which there is nobody to send a CertRep to.
var errNoReply = errors.New("scep: message that cannot be answered")

// refuse is a refusal with a text that we chose and a cause for the log.
func refuse(info FailInfo, reason Reason, text string, cause error) error {
	return &Error{FailInfo: info, Reason: reason, Text: text, Err: cause}
}

// unreadable is the one answer to everything that may be wrong between the private-key
// operation and the verified CSR, so that nobody learns by trying what was in an envelope.
// RFC 8894 has no reason of its own for it.
func unreadable(cause error) error {
	return refuse(BadRequest, ReasonUnreadable, "the request could not be read", cause)
}

// open reads a pkiMessage: signature verified, envelope opened, CSR parsed and its signature
// verified. The inbound it returns is not nil if the client can be answered, which is always
// so when the error does not wrap errNoReply. The order of the checks is part of the
// security: what is cheap comes first, the private key last.
func (h *Handler) open(ctx context.Context, body []byte) (*inbound, error) {
	msg, err := cms.ParseMessage(body)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoReply, err)
	}
	if err := checkAttributes(&msg.Attributes); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoReply, err)
	}
	in := &inbound{
		msg:     msg,
		kind:    messageType(msg.MessageType),
		replier: h.opens[0].replier,
		gate:    h.opens[0].replies,
		ca:      h.now(),
		hash:    crypto.SHA256,
		cipher:  cms.AES128,
	}

	switch msg.Digest {
	case crypto.SHA256, crypto.SHA384, crypto.SHA512:
		in.hash = msg.Digest
	case crypto.SHA224: // answered in SHA-256
	case crypto.SHA1:
		if h.c.Legacy&SHA1 == 0 {
			return in, badAlg("digest", msg.DigestOID)
		}
		in.hash = crypto.SHA1
	default:
		return in, badAlg("digest", msg.DigestOID)
	}

	if msg.Signer == nil {
		return in, refuse(BadMessageCheck, ReasonSignature, "the signer's certificate is not in the message", nil)
	}
	if in.signer, err = cms.ParsePublicKey(msg.Signer.RawSPKI); err != nil {
		return in, refuse(BadAlg, ReasonAlgorithm, "the signer's key is of a kind or size that is not allowed", err)
	}
	if pub, ok := in.signer.(*rsa.PublicKey); ok && pub.E > maxExponent {
		return in, refuse(BadAlg, ReasonAlgorithm, "the signer's key has an exponent above 65537", nil)
	}
	if err := msg.Verify(in.signer); err != nil {
		var alg *cms.AlgorithmError
		if errors.As(err, &alg) {
			return in, badAlg(alg.Use, alg.OID)
		}
		return in, refuse(BadMessageCheck, ReasonSignature, "the signature does not verify", err)
	}

	// Authorised types are listed; everything else is refused.
	switch in.kind {
	case pkcsReq, certPoll, getCert:
	case getCRL:
		if h.c.CRL == nil {
			return in, refuse(BadRequest, ReasonMessageType, "GetCRL is not offered", nil)
		}
	case renewalReq:
		if !h.c.Renewal.On {
			return in, refuse(BadRequest, ReasonMessageType, "renewal is not offered", nil)
		}
	default:
		return in, refuse(BadRequest, ReasonMessageType, "message type is not supported", nil)
	}
	if err := h.checkDelivery(in); err != nil {
		return in, err
	}

	seal, err := h.address(in)
	if err != nil || in.kind == certPoll {
		// What a CertPoll has inside is of no use (RFC 8894, 3.3.3), and is not opened:
		// whoever has a transaction of his own could otherwise learn, from whether its
		// inside was taken for one, what is in the messages of others.
		return in, err
	}
	content, err := h.openEnvelope(ctx, in, seal)
	if err != nil {
		return in, err
	}
	if in.kind == getCert || in.kind == getCRL {
		if in.issuer, in.serial, err = parseIssuerAndSerial(content); err != nil {
			// For the same reason this is answered, and looked up, as one that is unknown.
			in.issuer, in.serial = h.now().cert().RawSubject, new(big.Int)
			if in.kind == getCRL {
				in.issuer = nil
			}
		}
		return in, nil
	}
	// Whatever the content is, one signature is verified, and whoever sent the message must not
	// be able to tell whether it was that of a CSR: so with the same key.
	fixed := in.signer
	if h.c.AnySigner || h.claimsRenewal(in) {
		fixed = nil // the CSR's own
	}
	csr, tried, err := parseCSR(content, fixed)
	if err != nil {
		if !tried {
			if fixed == nil {
				fixed = h.opens[0].id.Certificate().PublicKey
			}
			verifyNothing(fixed, content)
		}
		return in, unreadable(err)
	}
	switch csr.hash {
	case crypto.MD5:
		return in, refuse(BadAlg, ReasonAlgorithm, "MD5 in the signature of the CSR is not allowed", nil)
	case crypto.SHA1:
		if h.c.Legacy&SHA1 == 0 {
			return in, refuse(BadAlg, ReasonAlgorithm, "SHA-1 in the signature of the CSR is not allowed", nil)
		}
	}
	in.csr = csr
	return in, in.checkPassword()
}

// maxExponent bounds what verifying with a key of the client's choice costs.
const maxExponent = 65537

func badAlg(use string, oid asn1.ObjectIdentifier) error {
	return refuse(BadAlg, ReasonAlgorithm, fmt.Sprintf("%s algorithm %v is not allowed", use, oid), nil)
}

// checkAttributes refuses what could not be echoed, logged or kept.
func checkAttributes(a *cms.Attributes) error {
	switch {
	case a.MessageType == "":
		return errors.New("scep: no messageType")
	case len(a.TransactionID) == 0:
		return errors.New("scep: no transactionID")
	case len(a.TransactionID) > 255:
		return fmt.Errorf("scep: transactionID of %d bytes", len(a.TransactionID))
	case !plainText(a.TransactionID):
		return errors.New("scep: transactionID holds control characters or is not UTF-8")
	case a.SenderNonce != nil && (len(a.SenderNonce) == 0 || len(a.SenderNonce) > 64):
		return fmt.Errorf("scep: senderNonce of %d bytes", len(a.SenderNonce))
	}
	return nil
}

// opener is an identity that opens requests, and the one that answers what it opened.
type opener struct {
	id      *Identity
	cert    *cms.Certificate
	unwrap  Unwrapper
	unwraps gate
	replier *Identity
	replies gate
	ca      *authority // issues
}

// match reports whether r names this identity: exactly; by an issuer that is written in another
// way, as some clients do; or by the serial number alone.
func (o *opener) match(r *cms.Recipient, how matching) bool {
	switch {
	case r.SubjectKeyID != nil:
		return bytes.Equal(r.SubjectKeyID, o.cert.SubjectKeyID)
	case !bytes.Equal(r.RawSerial, o.cert.RawSerial):
		return false
	case how == exactly:
		return bytes.Equal(r.RawIssuer, o.cert.RawIssuer)
	}
	return how == bySerial || sameName(r.RawIssuer, o.cert.RawIssuer)
}

type matching uint8

const (
	exactly matching = iota
	byName
	bySerial
)

// envelope is an envelope that is addressed to one of us.
type envelope struct {
	*cms.Envelope
	to        *opener
	recipient *cms.Recipient
	password  *cms.PasswordRecipient // in place of both
}

// address reads the envelope, as far as everybody can, and chooses who opens it and who
// answers, and how.
func (h *Handler) address(in *inbound) (*envelope, error) {
	env, err := cms.ParseEnvelope(in.msg.Content)
	if err != nil {
		return nil, unreadable(err)
	}
	switch env.Cipher {
	case cms.AES128, cms.AES192, cms.AES256:
		in.cipher = env.Cipher
	case cms.TripleDES:
		if h.c.Legacy&TripleDES == 0 {
			return nil, badAlg("content encryption", env.CipherOID)
		}
		in.cipher = env.Cipher
	case cms.DES:
		if h.c.Legacy&SingleDES == 0 {
			return nil, badAlg("content encryption", env.CipherOID)
		}
	default:
		return nil, badAlg("content encryption", env.CipherOID)
	}
	o, r := h.recipient(env)
	if o == nil {
		if p := h.passwordRecipient(in, env); p != nil {
			return &envelope{Envelope: env, password: p}, h.checkPasswordRecipient(p)
		}
		return nil, refuse(BadRequest, ReasonRecipient, "the request is encrypted to another certificate", nil)
	}
	in.replier, in.gate, in.ca = o.replier, o.replies, o.ca
	if !transportAllowed(r.Options) {
		return nil, badAlg("key transport", r.AlgorithmOID)
	}
	return &envelope{Envelope: env, to: o, recipient: r}, nil
}

// transportAllowed reports whether every backend can be expected to know these options.
func transportAllowed(opts crypto.DecrypterOpts) bool {
	if oaep, ok := opts.(*rsa.OAEPOptions); ok {
		switch oaep.Hash {
		case crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512:
			return true
		}
		return false
	}
	return opts != nil
}

// unwrap returns the content-encryption key. It does one private-key operation, and an error
// means that the key is unavailable.
func (e *envelope) unwrap(ctx context.Context) ([]byte, error) {
	o, block, size := e.to, e.recipient.EncryptedKey, e.Cipher.KeySize()
	if !o.fits(block) {
		// Not a number below the modulus: something else is decrypted in its place, so that
		// this takes as long as the rest.
		block = o.standIn()
	}
	var key []byte
	err := o.unwraps.do(ctx, func() (err error) {
		key, err = o.unwrap.UnwrapKey(ctx, block, size, e.recipient.Options)
		return err
	})
	if errors.Is(err, errors.ErrUnsupported) {
		return nil, refuse(BadAlg, ReasonAlgorithm, "the key of this server does not open that key transport", err)
	}
	if err != nil {
		return nil, fmt.Errorf("scep: opening a request with the key of %q: %w", o.id.Certificate().Subject, err)
	}
	if len(key) != size {
		return nil, fmt.Errorf("scep: the key of %q unwrapped %d bytes in place of %d", o.id.Certificate().Subject, len(key), size)
	}
	return key, nil
}

// recipient returns the first opener that the envelope names, and how.
func (h *Handler) recipient(env *cms.Envelope) (*opener, *cms.Recipient) {
	for how := exactly; how <= bySerial; how++ {
		for i := range h.opens {
			for j := range env.Recipients {
				if h.opens[i].match(&env.Recipients[j], how) {
					return &h.opens[i], &env.Recipients[j]
				}
			}
		}
	}
	return nil, nil
}

func (o *opener) modulus() *rsa.PublicKey { return o.id.Certificate().PublicKey.(*rsa.PublicKey) }

// fits reports whether block is as long as the modulus, and less than it.
func (o *opener) fits(block []byte) bool {
	pub := o.modulus()
	return len(block) == pub.Size() && new(big.Int).SetBytes(block).Cmp(pub.N) < 0
}

// standIn returns a block that fits and opens to nothing.
func (o *opener) standIn() []byte {
	block := make([]byte, o.modulus().Size())
	rand.Read(block[1:])
	return block
}

// newOpener prepares id to open requests.
func newOpener(id, replier *Identity) (o opener, err error) {
	o = opener{id: id, replier: replier, cert: cms.FromX509(id.Certificate())}
	if o.cert.SubjectKeyID == nil {
		// What clients compute when the certificate has none (RFC 5280, 4.2.1.2 (1)).
		sum := sha1.Sum(x509.MarshalPKCS1PublicKey(o.modulus()))
		o.cert.SubjectKeyID = sum[:]
	}
	o.unwrap, err = id.unwrapper()
	return o, err
}

func parseIssuerAndSerial(der []byte) (issuer []byte, serial *big.Int, err error) {
	in := cryptobyte.String(der)
	var seq, name cryptobyte.String
	serial = new(big.Int)
	if !in.ReadASN1(&seq, cbasn1.SEQUENCE) || !in.Empty() ||
		!seq.ReadASN1Element(&name, cbasn1.SEQUENCE) ||
		!seq.ReadASN1Integer(serial) || !seq.Empty() {
		return nil, nil, errors.New("scep: no IssuerAndSerialNumber")
	}
	return name, serial, nil
}
