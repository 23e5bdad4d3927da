package scepclient

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/internal/cms"
)

// A Request says what certificate is wanted. Key is required, and CSR or Template.
type Request struct {
	// Key is the key that the certificate is for. Unless SignerKey is given, it also signs the
	// message and opens the reply: then it must be RSA and implement [crypto.Decrypter] or
	// [scep.Unwrapper], or PasswordReply must be set.
	Key crypto.Signer

	// SignerKey signs the message and opens the reply in place of Key, which may then be of
	// any kind. Many servers refuse that, because it is also how somebody would use the CSR of
	// another. Not for Renew, where the old key does it.
	SignerKey crypto.Signer

	// CSR is a PKCS#10 request in DER, with the challenge password in it, if there is one. The
	// fields from Template to Challenge must then be zero.
	CSR []byte

	// Template has subject, alternative names and extensions of the CSR to make. For Renew it
	// may be nil: the names of the old certificate.
	Template *x509.CertificateRequest

	// KeyUsage and ExtKeyUsage are asked for if they are not zero.
	KeyUsage    x509.KeyUsage
	ExtKeyUsage []x509.ExtKeyUsage

	// Challenge is the challenge password.
	Challenge scep.Secret

	// TransactionID names the transaction: 1 to 255 characters of PrintableString. If empty, a
	// random one. After an answer was lost, ask again with the same one, and the same of
	// everything else: a server may know then that it has granted this already.
	TransactionID string

	// HideSubject leaves the subject out of the self-signed certificate that signs the message,
	// which others can read on the way.
	HideSubject bool

	// PasswordReply lets a key that cannot decrypt (ECDSA, Ed25519) sign the message; for Renew,
	// the old key. The reply is then encrypted with the challenge password, which must not be
	// empty (RFC 8894, 3.1), and whoever records it can try guesses at that. Few servers
	// offer it. While such a request waits it is sent again in place of polls. Poll cannot go
	// on with it: call Enroll or Renew once more, with the same TransactionID and the same of
	// everything else.
	PasswordReply bool

	// CA is who is asked: a result of NextCA or CACertificates. If nil, what CACertificates
	// returns now.
	CA *CA

	// RenewAsPKCSReq has Renew send a PKCSReq to a server that does not offer RenewalReq. Some
	// take that for a renewal because of who signed it.
	RenewAsPKCSReq bool
}

// A party is who signs messages and opens replies.
type party struct {
	cert *cms.Certificate
	raw  []byte // DER of the certificate
	key  crypto.Signer
}

// checkSignerKey reports why key cannot sign messages and open replies.
func checkSignerKey(name string, key crypto.Signer) error {
	if key == nil {
		return fmt.Errorf("scepclient: %s is nil", name)
	}
	if _, ok := key.Public().(*rsa.PublicKey); !ok {
		hint := ""
		if name == "Request.Key" {
			hint = "; give an RSA key as Request.SignerKey, if the server takes that, or set Request.PasswordReply, if the server offers it"
		}
		return fmt.Errorf("scepclient: %s is no RSA key, and no other can open replies%s", name, hint)
	}
	if err := cms.CheckKey(key.Public()); err != nil {
		return fmt.Errorf("scepclient: %s: %w", name, err)
	}
	switch key.(type) {
	case scep.Unwrapper, crypto.Decrypter:
		return nil
	}
	return fmt.Errorf("scepclient: %s (%T) can sign but not decrypt; it must implement crypto.Decrypter or scep.Unwrapper", name, key)
}

func equalKeys(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// checkTransactionID holds an ID to PrintableString.
func checkTransactionID(s string) error {
	if len(s) < 1 || len(s) > 255 || !printable(s) {
		return fmt.Errorf("scepclient: Request.TransactionID %.50q must be 1 to 255 of the characters of PrintableString", s)
	}
	return nil
}

// A wanted is a request that is ready to be sent.
type wanted struct {
	csr     *x509.CertificateRequest
	id      string // transaction ID
	message string // messageType
	by      party
}

// prepare makes the CSR, if there is none, and the certificate that signs the message, unless
// there is an old one.
func (c *Client) prepare(ctx context.Context, r Request, old *x509.Certificate, oldKey crypto.Signer, hash crypto.Hash) (*wanted, error) {
	w := &wanted{id: r.TransactionID, message: typePKCSReq}
	if w.id == "" {
		w.id = rand.Text()
	}
	der := r.CSR
	if der == nil {
		tmpl := r.Template
		if tmpl == nil && old != nil {
			tmpl = templateOf(old)
		}
		var err error
		if der, err = makeCSR(ctx, tmpl, r.KeyUsage, r.ExtKeyUsage, r.Challenge, r.Key, hash); err != nil {
			return nil, err
		}
	}
	var err error
	if w.csr, err = x509.ParseCertificateRequest(der); err != nil {
		return nil, fmt.Errorf("scepclient: Request.CSR: %w", err)
	}
	if r.Key != nil && !equalKeys(r.Key.Public(), w.csr.PublicKey) {
		return nil, errors.New("scepclient: Request.CSR is for another key than Request.Key")
	}
	if old != nil {
		w.by = party{cms.FromX509(old), old.Raw, oldKey}
		return w, nil
	}
	w.by.key = r.Key
	if r.SignerKey != nil {
		w.by.key = r.SignerKey
	}
	subject := w.csr.RawSubject
	if r.HideSubject {
		subject = nil
	}
	if w.by.raw, err = c.selfSigned(ctx, w.by.key, subject); err != nil {
		return nil, err
	}
	if w.by.cert, err = cms.ParseCertificate(w.by.raw); err != nil {
		return nil, fmt.Errorf("scepclient: the self-signed certificate: %w", err)
	}
	return w, nil
}

// check reports what is missing for Enroll (old is nil) or Renew.
func (r *Request) check(old *x509.Certificate, oldKey crypto.Signer) error {
	if r.TransactionID != "" {
		if err := checkTransactionID(r.TransactionID); err != nil {
			return err
		}
	}
	if r.Key == nil && (r.CSR == nil || old == nil && r.SignerKey == nil) {
		return errors.New("scepclient: Request.Key is nil")
	}
	if r.CA != nil && (r.CA.Recipient == nil || len(r.CA.issuers) == 0) {
		return errors.New("scepclient: Request.CA is no authenticated result of NextCA or CACertificates")
	}
	if r.CSR != nil && (r.Template != nil || r.KeyUsage != 0 || len(r.ExtKeyUsage) > 0 || !r.Challenge.Empty()) {
		return errors.New("scepclient: Request.CSR is complete: Template, KeyUsage, ExtKeyUsage and Challenge must be zero beside it")
	}
	if old != nil {
		if !equalKeys(old.PublicKey, oldKey.Public()) {
			return fmt.Errorf("scepclient: the old key is not that of the old certificate, %.100q", old.Subject)
		}
		if r.SignerKey != nil {
			return errors.New("scepclient: Request.SignerKey must be nil in a renewal, which is signed with the old key")
		}
		return r.checkSigner("the old key", oldKey)
	}
	if r.CSR == nil && r.Template == nil {
		return errors.New("scepclient: Request.Template is nil: it says which subject the certificate is to have")
	}
	if r.SignerKey != nil {
		return r.checkSigner("Request.SignerKey", r.SignerKey)
	}
	return r.checkSigner("Request.Key", r.Key)
}

// templateOf returns the names of a certificate.
func templateOf(old *x509.Certificate) *x509.CertificateRequest {
	tmpl := &x509.CertificateRequest{RawSubject: old.RawSubject}
	for _, ext := range old.Extensions {
		if ext.Id.Equal(oidSubjectAltName) {
			tmpl.ExtraExtensions = append(tmpl.ExtraExtensions, ext)
		}
	}
	return tmpl
}

// selfSigned makes the certificate that a first request is signed with (RFC 8894, 2.3).
func (c *Client) selfSigned(ctx context.Context, key crypto.Signer, subject []byte) ([]byte, error) {
	serial := make([]byte, 16)
	rand.Read(serial)
	serial[0] = serial[0]&0x3f | 0x40
	now := c.now()
	tmpl := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial),
		RawSubject:   subject,
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.AddDate(1, 0, 0), // servers that look at it let requests wait for long
		KeyUsage:     x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
	}
	if byPassword(key) {
		tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	}
	if len(subject) <= 2 { // nil, or a name without attributes, which would be its issuer too
		tmpl.RawSubject, tmpl.Subject = nil, pkix.Name{CommonName: "SCEP client"}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), bind(ctx, key))
	if err != nil {
		return nil, fmt.Errorf("scepclient: making a self-signed certificate: %w", err)
	}
	return der, nil
}
