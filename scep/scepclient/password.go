package scepclient

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/internal/cms"
)

// byPassword reports whether replies to who signs with key are encrypted with the challenge
// password, because the key cannot decrypt (RFC 8894, 3.1).
func byPassword(key crypto.Signer) bool {
	_, ok := key.Public().(*rsa.PublicKey)
	return !ok
}

// checkSigner reports why key cannot sign this request and open the reply.
func (r *Request) checkSigner(name string, key crypto.Signer) error {
	if !r.PasswordReply || key == nil || !byPassword(key) {
		return checkSignerKey(name, key)
	}
	if err := cms.CheckKey(key.Public()); err != nil {
		return fmt.Errorf("scepclient: %s: %w", name, err)
	}
	if r.CSR == nil && r.Challenge.Empty() {
		return errors.New("scepclient: Request.Challenge is empty, and with Request.PasswordReply the reply is encrypted with it")
	}
	return nil
}

// challengeOf returns the challenge password of a CSR.
func challengeOf(csr *x509.CertificateRequest) (scep.Secret, error) {
	var seq, attrs, attr, values, value cryptobyte.String
	var tag casn1.Tag
	in := cryptobyte.String(csr.RawTBSCertificateRequest)
	if in.ReadASN1(&seq, casn1.SEQUENCE) && seq.SkipASN1(casn1.INTEGER) && seq.SkipASN1(casn1.SEQUENCE) && seq.SkipASN1(casn1.SEQUENCE) &&
		seq.ReadASN1(&attrs, casn1.Tag(0).ContextSpecific().Constructed()) {
		for attrs.ReadASN1(&attr, casn1.SEQUENCE) {
			var oid cryptobyte.String
			if !attr.ReadASN1Element(&oid, casn1.OBJECT_IDENTIFIER) || !attr.ReadASN1(&values, casn1.SET) || string(oid) != challengePasswordDER {
				continue
			}
			if values.ReadAnyASN1(&value, &tag) && values.Empty() && len(value) > 0 {
				switch tag {
				case casn1.PrintableString, casn1.UTF8String, casn1.IA5String:
					return scep.NewSecret(string(value)), nil
				}
			}
		}
	}
	return scep.Secret{}, errors.New("scepclient: Request.CSR has no challenge password (PrintableString, UTF8String or IA5String), and with Request.PasswordReply the reply is encrypted with it")
}

// challengePasswordDER is the DER of an OBJECT IDENTIFIER, 1.2.840.113549.1.9.7.
const challengePasswordDER = "\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x09\x07"

// unwrapPassword returns the content-encryption key of a reply that is encrypted with the
// challenge password.
func (s *session) unwrapPassword(env *cms.Envelope) ([]byte, error) {
	if len(env.Passwords) == 0 {
		return nil, errors.New("scepclient: the reply is not encrypted with the challenge password, and Request.Key can open no other")
	}
	r := &env.Passwords[0]
	if err := r.Check(); err != nil {
		return nil, fmt.Errorf("scepclient: the reply cannot be opened with the challenge password: %w", err)
	}
	if r.Cipher == cms.TripleDES && s.c.Legacy&scep.TripleDES == 0 {
		return nil, errors.New("scepclient: the reply is encrypted with Triple DES, which needs Client.Legacy to have scep.TripleDES")
	}
	key, err := r.UnwrapKey([]byte(s.password.Reveal()), env.Cipher.KeySize())
	if err != nil {
		return nil, fmt.Errorf("scepclient: opening the reply with the challenge password: %w", err)
	}
	return key, nil
}
