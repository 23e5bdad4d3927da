package sceptest

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"slices"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// signedData checks INV and returns eContent.
func (p *replyParser) signedData(body []byte) []byte {
	if err := checkDER(body); !p.check(err == nil, "INV-2: not DER: %v", err) {
		return nil
	}
	sd, ok := contentInfo(body, oidSigned)
	if !p.check(ok, "INV-2: not one ContentInfo with SignedData") {
		return nil
	}
	var version int
	var eci, wrapped, content, certs, infos, info, f cryptobyte.String
	var contentType asn1.ObjectIdentifier
	var hasCerts, hasCRLs bool
	ok = sd.ReadASN1Integer(&version) && sd.SkipASN1(cbasn1.SET) && sd.ReadASN1(&eci, cbasn1.SEQUENCE) &&
		eci.ReadASN1ObjectIdentifier(&contentType) && eci.ReadOptionalASN1(&wrapped, &p.r.HasContent, tagged(0)) && eci.Empty() &&
		(!p.r.HasContent || wrapped.ReadASN1(&content, cbasn1.OCTET_STRING) && wrapped.Empty()) &&
		sd.ReadOptionalASN1(&certs, &hasCerts, tagged(0)) && sd.ReadOptionalASN1(&f, &hasCRLs, tagged(1)) &&
		sd.ReadASN1(&infos, cbasn1.SET) && sd.Empty()
	if !p.check(ok, "INV-2: SignedData is malformed") {
		return nil
	}
	p.check(contentType.Equal(oidData), "INV-3: eContentType is %v, not id-data", contentType)
	ok = infos.ReadASN1(&info, cbasn1.SEQUENCE) && infos.Empty()
	if !p.check(ok, "INV-4: not exactly one SignerInfo") {
		return content
	}
	p.signerInfo(info, content, certs)
	status := p.r.Status
	if status == StatusSuccess {
		p.check(len(content) > 0, "INV-13: SUCCESS without an envelope")
	} else {
		p.check(len(content) == 0, "INV-13: pkiStatus %s with an envelope", status)
	}
	return content
}

func (p *replyParser) signerInfo(info cryptobyte.String, content, certs []byte) {
	var version int
	var sid, digest, attrs, algorithm, signature cryptobyte.String
	ok := info.ReadASN1Integer(&version) && info.ReadAnyASN1Element(&sid, nil) &&
		info.ReadASN1Element(&digest, cbasn1.SEQUENCE)
	if !p.check(ok, "INV-4: SignerInfo is malformed") {
		return
	}
	if !p.check(info.ReadASN1Element(&attrs, tagged(0)), "INV-5: no signedAttrs") {
		return
	}
	ok = info.ReadASN1Element(&algorithm, cbasn1.SEQUENCE) && info.ReadASN1(&signature, cbasn1.OCTET_STRING) && info.Empty()
	if !p.check(ok, "INV-4: SignerInfo is malformed, or has unsignedAttrs") {
		return
	}
	hash, named := hashNamed(digest)
	p.r.Hash = hash
	if !p.check(named, "INV-4: digestAlgorithm %x is no plain hash", digest) ||
		!p.check(hash != crypto.MD5, "INV-15: the digest is MD5") {
		return
	}
	rsaEncryption := Algorithm(oidRSA, null)
	p.check(bytes.Equal(algorithm, rsaEncryption), "INV-15: signatureAlgorithm is %x, not rsaEncryption", algorithm)

	// The signer must be among what GetCACert gave away.
	for _, cert := range p.ca {
		if bytes.Equal(sid, TLV(TagSequence, cert.RawIssuer, bigInteger(cert.SerialNumber))) {
			p.r.Signer = cert
		}
	}
	if p.check(p.r.Signer != nil, "INV-4: the signer is not among the certificates of GetCACert") {
		p.check(p.r.Signer.KeyUsage == 0 || p.r.Signer.KeyUsage&x509.KeyUsageDigitalSignature != 0, "INV-4: the signer's keyUsage lacks digitalSignature")
		p.check(bytes.Contains(certs, p.r.Signer.Raw), "INV-4: the signer's certificate is not in the message")
		h := hash.New()
		set := slices.Clone([]byte(attrs))
		set[0] = TagSet
		h.Write(set)
		pub, _ := p.r.Signer.PublicKey.(*rsa.PublicKey)
		p.check(pub != nil && rsa.VerifyPKCS1v15(pub, hash, h.Sum(nil), signature) == nil, "INV-4: the signature does not verify")
	}
	p.attributes(attrs, hash, content)
}

func hashNamed(algorithm []byte) (crypto.Hash, bool) {
	for hash, oid := range hashOIDs {
		if bytes.Equal(algorithm, Algorithm(oid, null)) || bytes.Equal(algorithm, Algorithm(oid, nil)) {
			return hash, true
		}
	}
	return 0, false
}

func (p *replyParser) attributes(raw cryptobyte.String, hash crypto.Hash, content []byte) {
	var list cryptobyte.String
	raw.ReadASN1(&list, tagged(0))
	values := map[string]cryptobyte.String{}
	var last []byte
	for !list.Empty() {
		var element, attr, set, value cryptobyte.String
		var oid asn1.ObjectIdentifier
		ok := list.ReadASN1Element(&element, cbasn1.SEQUENCE)
		whole := element
		ok = ok && element.ReadASN1(&attr, cbasn1.SEQUENCE) && attr.ReadASN1ObjectIdentifier(&oid) && attr.ReadASN1(&set, cbasn1.SET) && attr.Empty()
		if !p.check(ok, "INV-5: signedAttrs are malformed") {
			return
		}
		p.check(bytes.Compare(last, whole) < 0, "INV-5: signedAttrs are not in DER order")
		last = whole
		p.check(set.ReadAnyASN1Element(&value, nil) && set.Empty(), "INV-14: attribute %v has not one value", oid)
		_, twice := values[oid.String()]
		p.check(!twice, "INV-14: attribute %v occurs twice", oid)
		values[oid.String()] = value
	}
	get := func(oid asn1.ObjectIdentifier, tag cbasn1.Tag) ([]byte, bool) {
		value := values[oid.String()]
		var content cryptobyte.String
		if !value.ReadASN1(&content, tag) || !value.Empty() {
			return nil, false
		}
		return content, true
	}
	text := func(oid asn1.ObjectIdentifier) string {
		s, _ := get(oid, cbasn1.PrintableString)
		return string(s)
	}
	has := func(oid asn1.ObjectIdentifier) bool { return values[oid.String()] != nil }

	h := hash.New()
	h.Write(content)
	digest, _ := get(OIDMessageDigest, cbasn1.OCTET_STRING)
	p.check(bytes.Equal(digest, h.Sum(nil)), "INV-5: messageDigest is not that of the content")
	p.check(bytes.Equal(values[OIDContentType.String()], OID(oidData)), "INV-5: contentType is not id-data")
	p.check(text(OIDMessageType) == TypeCertRep, "INV-6: messageType is not a PrintableString 3")

	r := p.r
	r.Status = text(OIDPKIStatus)
	p.check(slices.Contains([]string{StatusSuccess, StatusFailure, StatusPending}, r.Status), "INV-7: pkiStatus is %q", r.Status)

	id := values[OIDTransactionID.String()]
	var tag cbasn1.Tag
	var idText cryptobyte.String
	if id.ReadAnyASN1(&idText, &tag) {
		r.TransactionID, r.TransactionIDTag = string(idText), byte(tag)
	}
	wantTag := p.m.TransactionIDTag
	if wantTag == 0 {
		wantTag = TagPrintableString
	}
	p.check(r.TransactionID == p.m.TransactionID && r.TransactionIDTag == wantTag, "INV-8: transactionID is %q with tag %d", r.TransactionID, r.TransactionIDTag)

	r.RecipientNonce, _ = get(OIDRecipientNonce, cbasn1.OCTET_STRING)
	p.check(bytes.Equal(r.RecipientNonce, p.m.SenderNonce) && has(OIDRecipientNonce) == (p.m.SenderNonce != nil), "INV-9: recipientNonce is %x, not %x", r.RecipientNonce, p.m.SenderNonce)
	r.SenderNonce, _ = get(OIDSenderNonce, cbasn1.OCTET_STRING)
	p.check(len(r.SenderNonce) == 16 && !bytes.Equal(r.SenderNonce, p.m.SenderNonce), "INV-10: senderNonce %x is not 16 fresh bytes", r.SenderNonce)

	r.FailInfo = text(OIDFailInfo)
	p.check(has(OIDFailInfo) == (r.Status == StatusFailure), "INV-11: pkiStatus %s, and failInfo is there: %t", r.Status, has(OIDFailInfo))
	if has(OIDFailInfo) {
		p.check(len(r.FailInfo) == 1 && '0' <= r.FailInfo[0] && r.FailInfo[0] <= '4', "INV-11: failInfo is %q", r.FailInfo)
	}
	if has(OIDFailInfoText) {
		s, ok := get(OIDFailInfoText, cbasn1.UTF8String)
		r.FailInfoText = string(s)
		p.check(ok && utf8.Valid(s), "INV-12: failInfoText is no UTF8String")
		p.check(r.Status == StatusFailure, "INV-12: failInfoText with pkiStatus %s", r.Status)
	}
}
