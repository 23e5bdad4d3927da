package scepclient

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/internal/cms"
)

// The values of messageType (RFC 8894, 3.2.1.2).
const (
	typeCertRep    = "3"
	typeRenewalReq = "17"
	typePKCSReq    = "19"
	typeCertPoll   = "20"
	typeGetCert    = "21"
	typeGetCRL     = "22"
)

// The values of pkiStatus (RFC 8894, 3.2.1.3).
const (
	statusSuccess = "0"
	statusFailure = "2"
	statusPending = "3"
)

// A session is what the messages of one transaction have in common.
type session struct {
	c     *Client
	ca    *CA
	suite Suite
	id    string // transaction ID
	by    party

	// Where replies are encrypted with the challenge password, the request is sent again in
	// place of a poll, which would bring no password.
	password    scep.Secret
	messageType string
	csr         []byte
}

// errPending says that the server answered PENDING.
var errPending = errors.New("scepclient: the request waits for approval")

// exchange sends content as a message of this type and returns the certificates of the answer:
// at least one. It returns errPending or a *FailureError if that is what the server said.
func (s *session) exchange(ctx context.Context, messageType string, content []byte) ([]*x509.Certificate, error) {
	certs, _, err := s.ask(ctx, messageType, content)
	if err == nil && len(certs) == 0 {
		err = errors.New("scepclient: the reply says SUCCESS but has no certificate")
	}
	if err != nil {
		return nil, err
	}
	return certs, nil
}

// ask is exchange for an answer that may have no certificates, and has CRLs.
func (s *session) ask(ctx context.Context, messageType string, content []byte) ([]*x509.Certificate, [][]byte, error) {
	message, nonce, err := s.seal(ctx, messageType, content)
	if err != nil {
		return nil, nil, err
	}
	a, err := s.c.send(ctx, s.suite.POST, message)
	if err != nil {
		return nil, nil, err
	}
	return s.open(ctx, a, nonce)
}

// seal encrypts content to the CA and signs the result (RFC 8894, 3).
func (s *session) seal(ctx context.Context, messageType string, content []byte) (message, nonce []byte, err error) {
	to := s.ca.Recipient
	env, err := cms.Encrypt(content, s.suite.cipher, cms.FromX509(to), to.PublicKey)
	if err != nil {
		return nil, nil, fmt.Errorf("scepclient: encrypting to %.100q: %w", to.Subject, err)
	}
	nonce = make([]byte, 16)
	rand.Read(nonce)
	attrs := &cms.Attributes{MessageType: messageType, TransactionID: []byte(s.id), SenderNonce: nonce}
	message, err = cms.SignMessage(ctx, env, attrs, s.by.cert, s.by.key, s.suite.Hash, s.by.raw)
	if err != nil {
		return nil, nil, fmt.Errorf("scepclient: signing the message: %w", err)
	}
	s.c.debug(ctx, "message", slog.String("type", messageType), slog.String("transaction", s.id),
		slog.String("cipher", s.suite.Cipher), slog.Any("hash", s.suite.Hash))
	return message, nonce, nil
}

// open reads a CertRep (RFC 8894, 3.3.2). Nothing in it counts before its signature has been
// verified with a key that was known before: the certificates that it brings are not looked at.
func (s *session) open(ctx context.Context, a *answer, nonce []byte) ([]*x509.Certificate, [][]byte, error) {
	msg, err := cms.ParseMessage(a.body)
	if err != nil {
		return nil, nil, a.unexpected("PKIOperation", "a pkiMessage", err)
	}
	if err := s.c.verify("reply", msg, s.ca.Signers); err != nil {
		return nil, nil, err
	}
	switch {
	case msg.MessageType != typeCertRep:
		return nil, nil, fmt.Errorf("scepclient: the reply has messageType %.20q in place of CertRep", msg.MessageType)
	case subtle.ConstantTimeCompare(msg.TransactionID, []byte(s.id)) != 1:
		return nil, nil, errors.New("scepclient: the reply belongs to another transaction")
	case subtle.ConstantTimeCompare(msg.RecipientNonce, nonce) != 1:
		return nil, nil, errors.New("scepclient: the reply is not to this message: its recipientNonce is another, or missing")
	case msg.PKIStatus == statusFailure:
		return nil, nil, newFailure(msg)
	case msg.FailInfo != "":
		return nil, nil, fmt.Errorf("scepclient: the reply contradicts itself: it has pkiStatus %.20q and failInfo %.20q", msg.PKIStatus, msg.FailInfo)
	case msg.PKIStatus == statusPending:
		return nil, nil, errPending
	case msg.PKIStatus != statusSuccess:
		return nil, nil, fmt.Errorf("scepclient: the reply has an unknown pkiStatus, %.20q", msg.PKIStatus)
	}
	plain, err := s.decrypt(ctx, msg.Content)
	if err != nil {
		return nil, nil, err
	}
	certs, crls, err := cms.ParseCertsOnly(plain)
	if err != nil {
		return nil, nil, fmt.Errorf("scepclient: the reply does not hold a certs-only message, or does not decrypt with the key of the request: %w", err)
	}
	return certs, crls, nil
}

// verify checks a signature of the server's with keys of its CA.
func (c *Client) verify(what string, msg *cms.Message, signers []*x509.Certificate) error {
	switch msg.Digest {
	case crypto.SHA256, crypto.SHA384, crypto.SHA512, crypto.SHA224:
	case crypto.SHA1:
		if c.Legacy&scep.SHA1 == 0 {
			return fmt.Errorf("scepclient: the %s is signed with SHA-1, which needs Client.Legacy to have scep.SHA1", what)
		}
	default:
		return fmt.Errorf("scepclient: the %s is signed with digest algorithm %v, which is not accepted", what, msg.DigestOID)
	}
	var err error
	for _, cert := range signers {
		if err = msg.Verify(cert.PublicKey); err == nil {
			return nil
		}
	}
	return fmt.Errorf("scepclient: the %s is not signed by %s: %w", what, describe(signers), err)
}

// decrypt opens an envelope (RFC 8894, 3.2.2).
func (s *session) decrypt(ctx context.Context, ber []byte) ([]byte, error) {
	env, err := cms.ParseEnvelope(ber)
	if err != nil {
		return nil, fmt.Errorf("scepclient: the reply says SUCCESS but holds no envelope: %w", err)
	}
	switch env.Cipher {
	case cms.AES128, cms.AES192, cms.AES256:
	case cms.TripleDES:
		if s.c.Legacy&scep.TripleDES == 0 {
			return nil, errors.New("scepclient: the reply is encrypted with Triple DES, which needs Client.Legacy to have scep.TripleDES")
		}
	case cms.DES:
		return nil, errors.New("scepclient: the reply is encrypted with single DES, which is never accepted; the server must be set to AES, or updated")
	default:
		return nil, fmt.Errorf("scepclient: the reply is encrypted with algorithm %v, which is not accepted", env.CipherOID)
	}
	if !s.password.Empty() {
		key, err := s.unwrapPassword(env)
		if err != nil {
			return nil, err
		}
		plain, ok := env.Decrypt(key)
		if !ok {
			return nil, errors.New("scepclient: the reply does not decrypt with the challenge password")
		}
		return plain, nil
	}
	r := s.recipient(env)
	if r == nil {
		return nil, errors.New("scepclient: the reply is not encrypted to the certificate that signed the request")
	}
	if r.Options == nil {
		return nil, fmt.Errorf("scepclient: the reply has key transport algorithm %v, which is not accepted", r.AlgorithmOID)
	}
	key, err := s.unwrap(ctx, r, env.Cipher.KeySize())
	if err != nil && !errors.Is(err, rsa.ErrDecryption) {
		return nil, fmt.Errorf("scepclient: opening the reply with the private key: %w", err)
	}
	plain, ok := env.Decrypt(key)
	if !ok || err != nil {
		return nil, errors.New("scepclient: the reply does not decrypt with the key of the request")
	}
	return plain, nil
}

// recipient returns the part of an envelope that is for us. If there is only one it is taken,
// however it is named.
func (s *session) recipient(env *cms.Envelope) *cms.Recipient {
	for i := range env.Recipients {
		r, cert := &env.Recipients[i], s.by.cert
		if r.SubjectKeyID != nil && bytes.Equal(r.SubjectKeyID, cert.SubjectKeyID) ||
			r.RawIssuer != nil && bytes.Equal(r.RawIssuer, cert.RawIssuer) && bytes.Equal(r.RawSerial, cert.RawSerial) {
			return r
		}
	}
	if len(env.Recipients) == 1 {
		return &env.Recipients[0]
	}
	return nil
}

func (s *session) unwrap(ctx context.Context, r *cms.Recipient, n int) ([]byte, error) {
	switch key := s.by.key.(type) {
	case scep.Unwrapper:
		return key.UnwrapKey(ctx, r.EncryptedKey, n, r.Options)
	case crypto.Decrypter:
		opts := r.Options
		//lint:ignore SA1019 SCEP has no other key transport that all servers know.
		if _, ok := opts.(*rsa.PKCS1v15DecryptOptions); ok {
			//lint:ignore SA1019 See above.
			opts = &rsa.PKCS1v15DecryptOptions{SessionKeyLen: n}
		}
		return key.Decrypt(rand.Reader, r.EncryptedKey, opts)
	}
	return nil, fmt.Errorf("a key of type %T cannot decrypt", s.by.key)
}
