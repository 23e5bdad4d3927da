//lint:file-ignore SA1019 SCEP is made of PKCS #1 v1.5

package sceptest

import (
	"bytes"
	"crypto"
	"crypto/cipher"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// envelope checks ENV.
func (p *replyParser) envelope(der []byte) {
	env, ok := contentInfo(der, oidEnveloped)
	if !p.check(ok, "ENV-1: not one ContentInfo with EnvelopedData") {
		return
	}
	var version int
	var recipients, info, alg, text cryptobyte.String
	var contentType asn1.ObjectIdentifier
	ok = env.ReadASN1Integer(&version) && env.ReadASN1(&recipients, cbasn1.SET) && env.ReadASN1(&info, cbasn1.SEQUENCE) && env.Empty() &&
		info.ReadASN1ObjectIdentifier(&contentType) && info.ReadASN1Element(&alg, cbasn1.SEQUENCE) &&
		info.ReadASN1(&text, cbasn1.Tag(0).ContextSpecific()) && info.Empty()
	if !p.check(ok, "ENV-1: EnvelopedData is malformed") {
		return
	}
	p.check(contentType.Equal(oidData), "ENV-1: encrypted content is %v, not id-data", contentType)
	cek, ok := p.contentKey(version, recipients)
	if !ok {
		return
	}
	plain, err := p.decrypt(alg, cek, text)
	if !p.check(err == nil, "ENV-3: %v", err) {
		return
	}
	if p.m.Type == TypeGetCRL {
		p.r.CRL, err = parseCRLOnly(plain)
		p.check(err == nil, "ENV-6: %v", err)
		return
	}
	certs, err := ParseCertsOnly(plain)
	if !p.check(err == nil, "ENV-4: %v", err) {
		return
	}
	p.r.Certificates = certs
	p.pick(certs)
}

// contentKey checks ENV-2 and opens the recipient: the certificate that signed the request or, if
// its key cannot decrypt, the challenge password.
func (p *replyParser) contentKey(version int, recipients cryptobyte.String) ([]byte, bool) {
	var recipient, rid, transport, key cryptobyte.String
	private, ok := p.m.Key.(crypto.Decrypter)
	if !ok {
		ok = version == 3 && recipients.ReadASN1(&recipient, tagged(3)) && recipients.Empty()
		if !p.check(ok, "ENV-2: not exactly one password recipient") {
			return nil, false
		}
		cek, err := passwordKey(recipient, p.m.Password)
		return cek, p.check(err == nil, "ENV-3: %v", err)
	}
	ok = version == 0 && recipients.ReadASN1(&recipient, cbasn1.SEQUENCE) && recipients.Empty() &&
		recipient.ReadASN1Integer(&version) && recipient.ReadASN1Element(&rid, cbasn1.SEQUENCE) &&
		recipient.ReadASN1Element(&transport, cbasn1.SEQUENCE) && recipient.ReadASN1(&key, cbasn1.OCTET_STRING) && recipient.Empty()
	if !p.check(ok, "ENV-2: not exactly one recipient") {
		return nil, false
	}
	issuer, serial := issuerAndSerial(p.m.Certificate)
	p.check(bytes.Equal(rid, TLV(TagSequence, issuer, serial)), "ENV-2: the recipient is not the certificate that signed the request")
	p.check(bytes.Equal(transport, Algorithm(oidRSA, null)), "ENV-2: key transport is %x, not rsaEncryption", transport)
	cek, err := private.Decrypt(nil, key, &rsa.PKCS1v15DecryptOptions{})
	return cek, p.check(err == nil, "ENV-3: %v", err)
}

func (p *replyParser) decrypt(alg cryptobyte.String, cek, text []byte) ([]byte, error) {
	var seq, iv cryptobyte.String
	var oid asn1.ObjectIdentifier
	if !alg.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1ObjectIdentifier(&oid) || !seq.ReadASN1(&iv, cbasn1.OCTET_STRING) || !seq.Empty() {
		return nil, errors.New("content encryption algorithm is malformed")
	}
	i := slices.IndexFunc(ciphers, func(c cipherAlgorithm) bool { return c.oid.Equal(oid) })
	p.r.Cipher = Cipher(i)
	if asked := p.m.Envelope; i < 0 || Cipher(i) == SingleDES || Cipher(i) != AES128 && (asked == nil || asked.Cipher != Cipher(i)) {
		return nil, fmt.Errorf("cipher %v is neither AES-128-CBC nor that of the request", oid)
	}
	if len(cek) != ciphers[i].key {
		return nil, fmt.Errorf("content encryption key has %d bytes", len(cek))
	}
	block, err := ciphers[i].new(cek)
	if err != nil {
		return nil, err
	}
	n := block.BlockSize()
	if len(iv) != n || len(text) == 0 || len(text)%n != 0 {
		return nil, errors.New("ciphertext or IV has the wrong length")
	}
	plain := make([]byte, len(text))
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(plain, text)
	pad := int(plain[len(plain)-1])
	if pad == 0 || pad > n || !bytes.HasSuffix(plain, bytes.Repeat([]byte{byte(pad)}, pad)) {
		return nil, errors.New("padding is wrong")
	}
	return plain[:len(plain)-pad], nil
}

// pick finds the certificate that was asked for: it has the key of the CSR and comes first.
func (p *replyParser) pick(certs []*x509.Certificate) {
	if p.m.CSR == nil { // of CertPoll and GetCert, the caller knows which
		p.r.Certificate = certs[0]
		return
	}
	want := csrKey(p.m.CSR)
	for _, cert := range certs {
		if bytes.Equal(cert.RawSubjectPublicKeyInfo, want) {
			p.r.Certificate = cert
		}
	}
	if p.check(p.r.Certificate != nil, "ENV-5: no certificate has the key of the CSR") {
		p.check(p.r.Certificate == certs[0], "ENV-5: the certificate is not the first")
	}
}

// csrKey returns the SubjectPublicKeyInfo, or nil.
func csrKey(der []byte) []byte {
	in := cryptobyte.String(der)
	var csr, info, spki cryptobyte.String
	if !in.ReadASN1(&csr, cbasn1.SEQUENCE) || !csr.ReadASN1(&info, cbasn1.SEQUENCE) ||
		!info.SkipASN1(cbasn1.INTEGER) || !info.SkipASN1(cbasn1.SEQUENCE) || !info.ReadASN1Element(&spki, cbasn1.SEQUENCE) {
		return nil
	}
	return spki
}

// ParseCertsOnly reads a certs-only SignedData (RFC 8894, 3.4), which has no content, no CRLs and
// no signers, and at least one certificate.
func ParseCertsOnly(der []byte) ([]*x509.Certificate, error) {
	if err := checkDER(der); err != nil {
		return nil, fmt.Errorf("sceptest: certs-only: %w", err)
	}
	sd, ok := contentInfo(der, oidSigned)
	var version int
	var digests, eci, certs, crls, infos cryptobyte.String
	var contentType asn1.ObjectIdentifier
	ok = ok && sd.ReadASN1Integer(&version) && sd.ReadASN1(&digests, cbasn1.SET) && sd.ReadASN1(&eci, cbasn1.SEQUENCE) &&
		eci.ReadASN1ObjectIdentifier(&contentType) && sd.ReadASN1(&certs, tagged(0)) &&
		sd.ReadOptionalASN1(&crls, nil, tagged(1)) && sd.ReadASN1(&infos, cbasn1.SET) && sd.Empty()
	switch {
	case !ok:
		return nil, errors.New("sceptest: certs-only: malformed")
	case !eci.Empty():
		return nil, errors.New("sceptest: certs-only: it has content")
	case !crls.Empty():
		return nil, errors.New("sceptest: certs-only: it has CRLs")
	case !infos.Empty() || !digests.Empty():
		return nil, errors.New("sceptest: certs-only: it has signers")
	case !contentType.Equal(oidData):
		return nil, fmt.Errorf("sceptest: certs-only: content type is %v", contentType)
	}
	list, err := x509.ParseCertificates(certs)
	if err != nil {
		return nil, fmt.Errorf("sceptest: certs-only: %w", err)
	}
	if len(list) == 0 {
		return nil, errors.New("sceptest: certs-only: it is empty")
	}
	return list, nil
}

// parseCRLOnly reads the degenerate SignedData of a reply to GetCRL: one CRL, and nothing else.
func parseCRLOnly(der []byte) ([]byte, error) {
	if err := checkDER(der); err != nil {
		return nil, fmt.Errorf("sceptest: CRL: %w", err)
	}
	sd, ok := contentInfo(der, oidSigned)
	var version int
	var digests, eci, crls, crl, infos cryptobyte.String
	var contentType asn1.ObjectIdentifier
	ok = ok && sd.ReadASN1Integer(&version) && version == 1 && sd.ReadASN1(&digests, cbasn1.SET) && digests.Empty() &&
		sd.ReadASN1(&eci, cbasn1.SEQUENCE) && eci.ReadASN1ObjectIdentifier(&contentType) && eci.Empty() && contentType.Equal(oidData) &&
		sd.ReadASN1(&crls, tagged(1)) && sd.ReadASN1(&infos, cbasn1.SET) && infos.Empty() && sd.Empty() &&
		crls.ReadASN1Element(&crl, cbasn1.SEQUENCE) && crls.Empty()
	if !ok {
		return nil, errors.New("sceptest: not a degenerate SignedData with one CRL in crls, without certificates, content and signers")
	}
	return crl, nil
}

// checkDER reports lengths that are not minimal, and constructed strings.
func checkDER(b []byte) error {
	for len(b) > 0 {
		in := cryptobyte.String(b)
		var content cryptobyte.String
		var tag cbasn1.Tag
		if !in.ReadAnyASN1(&content, &tag) { // refuses indefinite and overlong lengths
			return fmt.Errorf("element of %d bytes is not DER", len(b))
		}
		constructed := tag&0x20 != 0
		if isSeq := tag == cbasn1.SEQUENCE || tag == cbasn1.SET; tag&0xc0 == 0 && constructed != isSeq {
			return fmt.Errorf("tag %#x", tag)
		}
		if constructed {
			if err := checkDER(content); err != nil {
				return err
			}
		}
		b = in
	}
	return nil
}
