package scep

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"

	"github.com/scepkit/scepkit/scep/internal/cms"
)

// A Preparer is a [Challenge] that knows the challenge password of a request before that is
// opened. With [Config].PasswordRecipients it opens requests that are encrypted with the challenge
// password itself (RFC 8894, 3.1), which clients send that cannot encrypt to an RSA key, and answers
// polls of clients that cannot decrypt.
//
// If it also has a method
//
//	PrepareReply(ctx context.Context, req *Request, signer crypto.PublicKey) (Secret, error)
//
// that is asked in place of Prepare for the password to answer a poll with. It returns the one that
// was in req, which has been let in and is as its record has it: with Via, and without Secret. If it
// returns [ErrNotFound], the client is told to send its request again in place of the poll.
type Preparer interface {
	// Prepare returns the challenge password for what the holder of signer asks for under this
	// profile and transaction ID; nobody has judged any of the three. [ErrNotFound] if there is
	// none: the client cannot tell that from a wrong password. Any other error means that it
	// could not tell, and the client is asked to try again. Validate decides later, as always.
	// The answer to a poll is encrypted with the password that is returned then, whatever was in
	// the request: where Validate admits others, too, a client that sent one cannot read it.
	// There PrepareReply helps.
	Prepare(ctx context.Context, profile, transactionID string, signer crypto.PublicKey) (Secret, error)
}

// replyPreparer is what a [Preparer] may have besides.
type replyPreparer interface {
	PrepareReply(ctx context.Context, req *Request, signer crypto.PublicKey) (Secret, error)
}

// canDecrypt reports whether the key that signed the message opens replies.
func (in *inbound) canDecrypt() bool {
	_, ok := in.signer.(*rsa.PublicKey)
	return ok
}

// checkDelivery refuses what could not be answered with a certificate, before anything is opened:
// a reply that nobody can open must not be prepared for by issuing one.
func (h *Handler) checkDelivery(in *inbound) error {
	switch {
	case in.canDecrypt():
		return nil
	case !h.c.PasswordRecipients:
		return refuse(BadAlg, ReasonAlgorithm, "the message must be signed with an RSA key, to which the reply is encrypted", nil)
	case in.kind == getCert, in.kind == getCRL:
		return refuse(BadAlg, ReasonAlgorithm, "the message must be signed with an RSA key: it brings no challenge password to encrypt the reply with", nil)
	}
	return nil
}

// checkPassword refuses a request that was opened and whose reply nobody could open.
func (in *inbound) checkPassword() error {
	if in.canDecrypt() || !in.csr.secret.Empty() {
		return nil
	}
	return refuse(BadRequest, ReasonAlgorithm, "the CSR has no challenge password to encrypt the reply with, and the key that signed the message cannot decrypt", nil)
}

// checkPoll refuses a poll for a certificate that is there, or soon will be, where only the request
// itself brings the password to encrypt it with: nothing keeps that, but a Preparer may know it. One
// that nobody has asked about a renewal may know another than was in that.
func (h *Handler) checkPoll(ctx context.Context, in *inbound, rec *Record) error {
	if in.canDecrypt() || rec.State != Signing && rec.State != Issued {
		return nil
	}
	if p, ok := h.c.Challenge.(Preparer); ok && (rec.Renews == "" || h.c.Renewal.Challenge) {
		secret, err := h.prepareReply(ctx, p, in, rec)
		if err != nil || !secret.Empty() {
			in.password = secret
			return err
		}
	}
	return refuse(BadRequest, ReasonAlgorithm, "send the request again in place of a poll: the reply is encrypted with its challenge password", nil)
}

// encrypt writes the envelope of a reply: to the key that signed the request or, if that cannot
// decrypt, with the challenge password (RFC 8894, 3.1), as UTF-8.
func (in *inbound) encrypt(content []byte) ([]byte, error) {
	if in.canDecrypt() {
		return cms.Encrypt(content, in.cipher, in.msg.Signer, in.signer)
	}
	secret := in.password
	if in.csr != nil {
		secret = in.csr.secret
	}
	if secret.Empty() {
		return nil, errors.New("scep: no password to encrypt the reply with")
	}
	return cms.EncryptPassword(content, in.cipher, []byte(secret.Reveal()))
}

// prepare asks p for a password, which is empty if there is none. An error means that it could not tell.
func (h *Handler) prepare(ctx context.Context, p Preparer, in *inbound) (Secret, error) {
	secret, err := p.Prepare(ctx, h.c.Profile, string(in.msg.TransactionID), in.signer)
	return prepared(secret, err, "open a request")
}

// prepareReply asks p for the password that was in the request that rec is of, likewise.
func (h *Handler) prepareReply(ctx context.Context, p Preparer, in *inbound, rec *Record) (Secret, error) {
	r, ok := p.(replyPreparer)
	if !ok {
		return h.prepare(ctx, p, in)
	}
	req, err := h.request(rec)
	if err != nil {
		return Secret{}, err
	}
	secret, err := r.PrepareReply(ctx, req, in.signer)
	return prepared(secret, err, "answer a poll")
}

func prepared(secret Secret, err error, to string) (Secret, error) {
	if errors.Is(err, ErrNotFound) {
		return Secret{}, nil
	}
	if err != nil {
		return Secret{}, fmt.Errorf("scep: preparing to %s: %v", to, err) // not a refusal, whatever it wraps
	}
	return secret, nil
}

// passwordRecipient returns the recipient that a challenge password opens, if requests may have one:
// the first whose algorithms are allowed, or just the first.
func (h *Handler) passwordRecipient(in *inbound, env *cms.Envelope) *cms.PasswordRecipient {
	if _, ok := h.c.Challenge.(Preparer); !ok || !h.c.PasswordRecipients || len(env.Passwords) == 0 {
		return nil
	}
	switch in.kind {
	case pkcsReq, renewalReq, certPoll: // the last is not opened
		for i := range env.Passwords {
			if h.checkPasswordRecipient(&env.Passwords[i]) == nil {
				return &env.Passwords[i]
			}
		}
		return &env.Passwords[0]
	}
	return nil
}

// checkPasswordRecipient refuses algorithms, as everybody can see them.
func (h *Handler) checkPasswordRecipient(r *cms.PasswordRecipient) error {
	if err := r.Check(); err != nil {
		return refuse(BadAlg, ReasonAlgorithm, "algorithms or parameters of the password recipient are not allowed", err)
	}
	if r.Cipher == cms.TripleDES && h.c.Legacy&TripleDES == 0 {
		return badAlg("key encryption", r.Cipher.OID())
	}
	return nil
}

// unwrapPassword returns the content-encryption key, or a random one if the password is wrong or
// there is none. An error means that the challenge could not tell.
func (h *Handler) unwrapPassword(ctx context.Context, in *inbound, e *envelope) (key []byte, err error) {
	secret, err := h.prepare(ctx, h.c.Challenge.(Preparer), in)
	if err != nil {
		return nil, err
	}
	password := secret.Reveal()
	if password == "" {
		password = rand.Text() // that nobody knows
	}
	// What this costs is for the client to say, so it waits its turn as for a private key.
	err = h.derive.do(ctx, func() (err error) {
		key, err = e.password.UnwrapKey([]byte(password), e.Cipher.KeySize())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("scep: opening a request with its challenge password: %w", err)
	}
	return key, nil
}

// openEnvelope decrypts the content. An error means that the key or the password is unavailable.
func (h *Handler) openEnvelope(ctx context.Context, in *inbound, e *envelope) ([]byte, error) {
	var key []byte
	var err error
	if e.password != nil {
		key, err = h.unwrapPassword(ctx, in, e)
	} else {
		key, err = e.unwrap(ctx)
	}
	if err != nil {
		return nil, err
	}
	content, ok := e.Decrypt(key)
	if !ok {
		// Parsing goes on as if it had been well, and cannot succeed.
		content[0] = 0
	}
	return content, nil
}

// verifyNothing takes as long as verifying a signature by key over data.
func verifyNothing(key crypto.PublicKey, data []byte) {
	var algorithm, signature []byte
	switch key := key.(type) {
	case *rsa.PublicKey:
		algorithm, signature = sha256WithRSA, make([]byte, key.Size())
	case *ecdsa.PublicKey:
		algorithm, signature = ecdsaWithSHA256, []byte{0x30, 6, 2, 1, 1, 2, 1, 1} // r and s are 1
	case ed25519.PublicKey:
		algorithm, signature = pureEd25519, make([]byte, ed25519.SignatureSize)
	}
	_, _ = cms.VerifySignature(key, algorithm, 0, data, signature)
}

// DER of AlgorithmIdentifier.
var (
	sha256WithRSA   = []byte("\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b\x05\x00")
	ecdsaWithSHA256 = []byte("\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02")
	pureEd25519     = []byte("\x30\x05\x06\x03\x2b\x65\x70")
)
