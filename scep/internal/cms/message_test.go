package cms

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"io"
	"slices"
	"strconv"
	"testing"
)

type result int

const (
	good        result = iota
	malformed          // ErrSyntax by ParseMessage
	unverified         // ErrSignature by Verify, or no signer
	unsupported        // *AlgorithmError by Verify
)

func resultOf(err error) result {
	var alg *AlgorithmError
	switch {
	case err == nil:
		return good
	case errors.As(err, &alg):
		return unsupported
	case errors.Is(err, ErrSignature):
		return unverified
	case errors.Is(err, ErrSyntax):
		return malformed
	}
	return -1
}

// TestParseMessage has one case for each tolerance and each refusal, by the names of the
// conformance suite.
func TestParseMessage(t *testing.T) {
	random := attr("\x2a\x86\x48\x86\xf7\x0d\x01\x09\x19\x03", octets([]byte("random")))
	signingTime := attr("\x2a\x86\x48\x86\xf7\x0d\x01\x09\x05", tlv(0x17, []byte("250101000000Z")))
	setAttr := func(d *draft, typ string, values ...[]byte) {
		for i, a := range d.attrs {
			if bytes.Contains(a[:14], []byte(typ)) {
				d.attrs[i] = attr(typ, values...)
				return
			}
		}
		d.attrs = append(d.attrs, attr(typ, values...))
	}
	drop := func(d *draft, typ string) {
		d.attrs = slices.DeleteFunc(d.attrs, func(a []byte) bool { return bytes.Contains(a[:14], []byte(typ)) })
	}
	withKeyID := func(d *draft, keyID []byte) {
		d.version, d.sid = 3, tlv(0x80, keyID)
	}
	signer := func(d *draft, r rawCert) {
		d.certs = [][]byte{r.der()}
		d.sid = seq(r.issuer, tlv(0x02, r.serial))
	}
	skiExtension := func(value []byte) []byte { return ctx(3, seq(seq(oid(oidSubjectKeyID), octets(value)))) }

	tests := []struct {
		name   string
		change func(d *draft)
		want   result
		check  func(t *testing.T, m *Message)
	}{
		{"plain", func(d *draft) {}, good, func(t *testing.T, m *Message) {
			if !equalAttributes(&m.Attributes, requestAttributes()) || m.TransactionIDTag != 19 {
				t.Errorf("attributes: %+v", m.Attributes)
			}
			if string(m.Content) != "content" || m.Digest != crypto.SHA256 || !bytes.Equal(m.Signer.Raw, rsaID().c.Raw) ||
				m.DigestOID.String() != "2.16.840.1.101.3.4.2.1" || m.SignatureOID.String() != "1.2.840.113549.1.1.1" {
				t.Errorf("message: %+v", m)
			}
		}},
		{"no content", func(d *draft) {
			d.eContent = nil
			setAttr(d, oidMessageDigest, octets(hashed(crypto.SHA256, nil)))
		}, good, func(t *testing.T, m *Message) {
			if m.Content != nil {
				t.Error("Content is not nil")
			}
		}},
		{"empty content", func(d *draft) {
			d.eContent = ctx(0, octets(nil))
			setAttr(d, oidMessageDigest, octets(hashed(crypto.SHA256, nil)))
		}, good, func(t *testing.T, m *Message) {
			if m.Content == nil || len(m.Content) > 0 {
				t.Error("Content is nil")
			}
		}},
		{"CMS-04 unsorted, signed as sent", func(d *draft) { slices.Reverse(d.attrs) }, good, nil},
		{"CMS-05 unsorted, signed as DER", func(d *draft) { slices.Reverse(d.attrs); d.signSorted = true }, good, nil},
		{"CMS-06 SKI extension", func(d *draft) { withKeyID(d, rsaID().c.SubjectKeyID) }, good, nil},
		{"CMS-06 SKI constructed", func(d *draft) {
			k := rsaID().c.SubjectKeyID
			d.version, d.sid = 3, ctx(0, octets(k[:3]), octets(k[3:]))
		}, good, nil},
		{"CMS-06 SKI of a certificate without", func(d *draft) {
			r := goodCert()
			signer(d, r)
			var spki struct {
				A asn1.RawValue
				K asn1.BitString
			}
			must(asn1.Unmarshal(r.spki, &spki))
			sum := sha1.Sum(spki.K.Bytes)
			withKeyID(d, sum[:])
		}, good, nil},
		{"CMS-06 another SKI", func(d *draft) { withKeyID(d, []byte("another")) }, unverified, nil},
		{"CMS-09 unknown attributes", func(d *draft) { d.attrs = append(d.attrs, random, signingTime) }, good, func(t *testing.T, m *Message) {
			if len(m.Other) != 2 || !bytes.Equal(m.Other[0], random) || !bytes.Equal(m.Other[1], signingTime) {
				t.Errorf("Other: %x", m.Other)
			}
		}},
		{"CMS-10 unsigned attributes", func(d *draft) { d.unsigned = ctx(1, random) }, good, nil},
		{"CMS-12 eContentType", func(d *draft) { d.contentType = oid(oidEnvelopedData) }, malformed, nil},
		{"CMS-12 contentType attribute", func(d *draft) { setAttr(d, oidContentType, oid(oidEnvelopedData)) }, unverified, nil},
		{"CMS-13 no signed attributes", func(d *draft) { d.attrs = nil }, malformed, nil},
		{"CMS-13 empty signed attributes", func(d *draft) { d.attrs = [][]byte{} }, unverified, nil},
		{"CMS-14 no SignerInfo", func(d *draft) { d.infos = 0 }, malformed, nil},
		{"CMS-15 signer not in bag", func(d *draft) { d.certs = [][]byte{ecID().c.Raw} }, unverified, nil},
		{"CMS-15 no bag", func(d *draft) { d.certs = nil }, unverified, nil},
		{"CMS-15 empty bag", func(d *draft) { d.certs = [][]byte{} }, unverified, nil},
		{"CMS-19 other order", func(d *draft) {
			d.attrs = append(d.attrs[3:], d.attrs[:3]...)
		}, good, nil},
		{"CMS-21 two values", func(d *draft) {
			setAttr(d, oidMessageType, tlv(0x13, []byte("17")), tlv(0x13, []byte("19")))
		}, malformed, nil},
		{"CMS-21 no value", func(d *draft) { setAttr(d, oidMessageType) }, malformed, nil},
		{"CMS-21 occurs twice", func(d *draft) {
			d.attrs = append(d.attrs, attr(oidMessageType, tlv(0x13, []byte("17"))))
		}, malformed, nil},
		{"CMS-21 unknown one twice", func(d *draft) { d.attrs = append(d.attrs, random, random) }, malformed, nil},
		{"CMS-21 messageDigest twice", func(d *draft) { d.attrs = append(d.attrs, d.attrs[1]) }, malformed, nil},
		{"CMS-22 two SignerInfos", func(d *draft) { d.infos = 2 }, malformed, nil},
		{"many attributes", func(d *draft) {
			for i := range maxAttributes - len(d.attrs) {
				d.attrs = append(d.attrs, attr("\x2a\x03"+string(rune(i)), null))
			}
		}, good, nil},
		{"too many attributes", func(d *draft) {
			for i := range maxAttributes - len(d.attrs) + 1 {
				d.attrs = append(d.attrs, attr("\x2a\x03"+string(rune(i)), null))
			}
		}, malformed, nil},
		{"CRLs", func(d *draft) { d.crls = ctx(1, seq(null)) }, good, nil},
		{"no digestAlgorithms", func(d *draft) { d.digestAlgs = set() }, good, nil},
		{"digestAlgorithms that are not", func(d *draft) { d.digestAlgs = set(null, null) }, good, nil},
		{"content type of ContentInfo in digest", func(d *draft) { d.digestAlg = algID(oidData, null) }, unsupported, nil},
		{"content is not an OCTET STRING", func(d *draft) { d.eContent = ctx(0, seq()) }, malformed, nil},
		{"two contents", func(d *draft) { d.eContent = ctx(0, octets(nil), octets(nil)) }, malformed, nil},
		{"sid of no kind", func(d *draft) { d.sid = octets(nil) }, malformed, nil},
		{"sid of another kind", func(d *draft) { d.sid = tlv(0x81, nil) }, malformed, nil},
		{"version 2", func(d *draft) { d.version = 2 }, malformed, nil},
		{"content changed", func(d *draft) { d.eContent = ctx(0, octets([]byte("another"))) }, unverified, nil},
		{"signature changed", func(d *draft) { d.sigOverride = make([]byte, 256) }, unverified, nil},
		{"signature empty", func(d *draft) { d.sigOverride = []byte{} }, unverified, nil},
		{"signature long", func(d *draft) { d.sigOverride = make([]byte, 10000) }, unverified, nil},
		{"no messageDigest", func(d *draft) { drop(d, oidMessageDigest) }, unverified, nil},
		{"empty messageDigest", func(d *draft) { setAttr(d, oidMessageDigest, octets(nil)) }, unverified, nil},

		{"SGN-01 no extensions", func(d *draft) { signer(d, goodCert()) }, good, nil},
		{"SGN-02 critical AKI", func(d *draft) {
			r := goodCert()
			r.after = ctx(3, seq(seq(oid("\x55\x1d\x23"), []byte{1, 1, 0xff}, octets(seq(tlv(0x80, []byte("id")))))))
			signer(d, r)
			if _, err := x509.ParseCertificate(r.der()); err == nil {
				t.Error("crypto/x509 takes it: nothing is tested")
			}
		}, good, nil},
		{"SGN-03 v1", func(d *draft) { r := goodCert(); r.version = nil; signer(d, r) }, good, nil},
		{"SGN-04 negative serial", func(d *draft) { r := goodCert(); r.serial = []byte{0xff, 0x01}; signer(d, r) }, good, nil},
		{"SGN-04 zero serial", func(d *draft) { r := goodCert(); r.serial = []byte{0}; signer(d, r) }, good, nil},
		{"SGN-04 long serial", func(d *draft) { r := goodCert(); r.serial = bytes.Repeat([]byte{0x7a}, 32); signer(d, r) }, good, nil},
		{"SGN-04 serial with leading zeros", func(d *draft) { r := goodCert(); r.serial = []byte{0, 0, 1}; signer(d, r) }, good, nil},
		{"SGN-04 another serial", func(d *draft) {
			r := goodCert()
			signer(d, r)
			d.sid = seq(r.issuer, tlv(0x02, []byte{0, 1, 2}))
		}, unverified, nil},
		{"SGN-05 dates that are none", func(d *draft) { r := goodCert(); r.validity = seq(tlv(0x17, []byte("soon"))); signer(d, r) }, good, nil},
		{"SGN-05 no dates", func(d *draft) { r := goodCert(); r.validity = seq(); signer(d, r) }, good, nil},
		{"SGN-07 empty names", func(d *draft) { r := goodCert(); r.issuer = seq(); signer(d, r) }, good, nil},
		{"SGN-08 equal issuer and serial", func(d *draft) {
			r := goodCert()
			signer(d, r)
			r.spki = ecID().c.RawSPKI
			d.certs = append(d.certs, r.der())
		}, unverified, func(t *testing.T, m *Message) {
			if m.Signer != nil || len(m.Certificates) != 2 {
				t.Error("one of two was taken")
			}
		}},
		{"SGN-08 the same twice", func(d *draft) { d.certs = append(d.certs, d.certs[0]) }, good, nil},
		{"extensions that are none", func(d *draft) { r := goodCert(); r.after = ctx(3, octets(nil)); signer(d, r) }, good, nil},
		{"duplicate extensions", func(d *draft) {
			r := goodCert()
			e := seq(oid(oidSubjectKeyID), octets(octets([]byte("id"))))
			r.after = ctx(3, seq(e, e))
			signer(d, r)
		}, good, nil},
		{"malformed SKI extension", func(d *draft) { r := goodCert(); r.after = skiExtension([]byte{1}); signer(d, r) }, good, nil},
		{"unique identifiers", func(d *draft) {
			r := goodCert()
			r.after = slices.Concat(tlv(0x81, []byte{0, 1}), tlv(0x82, []byte{0, 1}), skiExtension(octets([]byte("id"))))
			signer(d, r)
			withKeyID(d, []byte("id"))
		}, good, nil},
		{"unreadable certificate beside", func(d *draft) { d.certs = append([][]byte{seq(null)}, d.certs...) }, good, func(t *testing.T, m *Message) {
			if len(m.Certificates) != 1 {
				t.Errorf("%d certificates", len(m.Certificates))
			}
		}},
		{"attribute certificate beside", func(d *draft) { d.certs = append([][]byte{ctx(1, null), ctx(2), ctx(3)}, d.certs...) }, good, nil},
		{"8 certificates", func(d *draft) { d.certs = append(d.certs, slices.Repeat([][]byte{ecID().c.Raw}, 7)...) }, good, nil},
		{"9 certificates", func(d *draft) { d.certs = append(d.certs, slices.Repeat([][]byte{ecID().c.Raw}, 8)...) }, malformed, nil},
		{"33 KiB of certificates", func(d *draft) { d.certs = append(d.certs, seq(octets(make([]byte, 32<<10)))) }, malformed, nil},

		{"ATT-01 no messageType", func(d *draft) { drop(d, oidMessageType) }, good, func(t *testing.T, m *Message) {
			if m.MessageType != "" {
				t.Error(m.MessageType)
			}
		}},
		{"ATT-02 no transactionID", func(d *draft) { drop(d, oidTransactionID) }, good, func(t *testing.T, m *Message) {
			if m.TransactionID != nil {
				t.Error(m.TransactionID)
			}
		}},
		{"ATT-03 no senderNonce", func(d *draft) { drop(d, oidSenderNonce) }, good, func(t *testing.T, m *Message) {
			if m.SenderNonce != nil {
				t.Error(m.SenderNonce)
			}
		}},
		{"ATT-04 empty senderNonce", func(d *draft) { setAttr(d, oidSenderNonce, octets(nil)) }, good, func(t *testing.T, m *Message) {
			if m.SenderNonce == nil {
				t.Error("nil")
			}
		}},
		{"ATT-04 senderNonce of another type", func(d *draft) { setAttr(d, oidSenderNonce, tlv(0x13, []byte("x"))) }, malformed, nil},
		{"ATT-05 transactionID INTEGER", func(d *draft) { setAttr(d, oidTransactionID, integer(1)) }, malformed, nil},
		{"ATT-05 transactionID SEQUENCE", func(d *draft) { setAttr(d, oidTransactionID, seq()) }, malformed, nil},
		{"ATT-05 transactionID context", func(d *draft) { setAttr(d, oidTransactionID, tlv(0x93, []byte("x"))) }, malformed, nil},
		{"ATT-07 empty transactionID", func(d *draft) { setAttr(d, oidTransactionID, tlv(0x13, nil)) }, good, func(t *testing.T, m *Message) {
			if m.TransactionID == nil || len(m.TransactionID) != 0 {
				t.Error(m.TransactionID)
			}
		}},
		{"ATT-08 messageType INTEGER", func(d *draft) { setAttr(d, oidMessageType, integer(19)) }, malformed, nil},
		{"ATT-08 messageType UTF8String", func(d *draft) { setAttr(d, oidMessageType, tlv(0x0c, []byte("19"))) }, malformed, nil},
		{"ATT-08 odd spelling", func(d *draft) { setAttr(d, oidMessageType, tlv(0x13, []byte("19 "))) }, good, func(t *testing.T, m *Message) {
			if m.MessageType != "19 " {
				t.Error(m.MessageType)
			}
		}},
		{"ATT-12 reply attributes", func(d *draft) {
			setAttr(d, oidPKIStatus, tlv(0x13, []byte("2")))
			setAttr(d, oidFailInfo, tlv(0x13, []byte("4")))
			setAttr(d, oidFailInfoText, tlv(0x0c, []byte("nö")))
			setAttr(d, oidRecipientNonce, octets([]byte("nonce")))
		}, good, func(t *testing.T, m *Message) {
			if m.PKIStatus != "2" || m.FailInfo != "4" || m.FailInfoText != "nö" || string(m.RecipientNonce) != "nonce" || m.Other != nil {
				t.Errorf("%+v", m.Attributes)
			}
		}},
		{"failInfoText PrintableString", func(d *draft) { setAttr(d, oidFailInfoText, tlv(0x13, []byte("no"))) }, good, nil},
		{"failInfoText INTEGER", func(d *draft) { setAttr(d, oidFailInfoText, integer(1)) }, malformed, nil},
		{"pkiStatus INTEGER", func(d *draft) { setAttr(d, oidPKIStatus, integer(1)) }, malformed, nil},
		{"failInfo UTF8String", func(d *draft) { setAttr(d, oidFailInfo, tlv(0x0c, []byte("1"))) }, malformed, nil},
		{"ATT-14 no contentType", func(d *draft) { drop(d, oidContentType) }, unverified, nil},
		{"contentType of another type", func(d *draft) { setAttr(d, oidContentType, octets(nil)) }, malformed, nil},
		{"attribute without values", func(d *draft) { d.attrs[0] = seq(oid(oidContentType)) }, malformed, nil},
		{"attribute with something behind", func(d *draft) { d.attrs[0] = seq(oid(oidContentType), set(oid(oidData)), null) }, malformed, nil},
		{"attribute that is none", func(d *draft) { d.attrs[0] = null }, malformed, nil},
		{"attribute with a bad OID", func(d *draft) { d.attrs[0] = attr("\x2a\x86", null) }, malformed, nil},
		{"attribute with a huge OID", func(d *draft) {
			d.attrs = append(d.attrs, attr("\x69\x83\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", null))
		}, good, nil},

		{"CRY-09 sha256WithRSAEncryption", func(d *draft) { d.sigAlg = algID(oidSHA256WithRSA, null) }, good, nil},
		{"CRY-09 signature hash is another", func(d *draft) { d.sigAlg = algID(oidSHA1WithRSA, null) }, unverified, nil},
		{"CRY-09 signature OID as digest", func(d *draft) { d.digestAlg = algID(oidSHA256WithRSA, null) }, good, func(t *testing.T, m *Message) {
			if m.Digest != crypto.SHA256 || m.DigestOID.String() != "1.2.840.113549.1.1.11" {
				t.Error(m.Digest, m.DigestOID)
			}
		}},
		{"CRY-15 parameters absent", func(d *draft) { d.digestAlg = algID(oidSHA256); d.sigAlg = algID(oidRSA) }, good, nil},
		{"CRY-15 parameters empty", func(d *draft) { d.digestAlg = algID(oidSHA256, seq()) }, malformed, nil},
		{"signature parameters", func(d *draft) { d.sigAlg = algID(oidRSA, seq()) }, unsupported, nil},
		{"unknown digest", func(d *draft) { d.digestAlg = algID("\x2a\x03\x04", seq()) }, unsupported, func(t *testing.T, m *Message) {
			if m.Digest != 0 || m.DigestOID.String() != "1.2.3.4" {
				t.Error(m.Digest, m.DigestOID)
			}
		}},
		{"unknown signature", func(d *draft) { d.sigAlg = algID("\x2a\x03\x04", seq()) }, unsupported, func(t *testing.T, m *Message) {
			if m.SignatureOID.String() != "1.2.3.4" {
				t.Error(m.SignatureOID)
			}
		}},
		{"CRY-11 ECDSA", func(d *draft) { d.signBy(ecID(), algID(oidECDSAWithSHA256), crypto.SHA256) }, good, nil},
		{"CRY-11 ECDSA with NULL", func(d *draft) { d.signBy(ecID(), algID(oidECDSAWithSHA256, null), crypto.SHA256) }, good, nil},
		{"CRY-11 ECDSA, hash is another", func(d *draft) { d.signBy(ecID(), algID(oidECDSAWithSHA384), crypto.SHA384) }, unverified, nil},
		{"ECDSA key OID", func(d *draft) { d.signBy(ecID(), algID(oidECPublicKey), crypto.SHA256) }, unsupported, nil},
		{"ECDSA key, RSA algorithm", func(d *draft) { d.signBy(ecID(), algID(oidRSA), crypto.SHA256) }, unverified, nil},
	}
	for tag := range 31 {
		want := malformed
		if isString := slices.Contains([]int{4, 12, 18, 19, 20, 22, 26, 27, 28, 30}, tag); isString {
			want = good
		} else if tag == 16 || tag == 17 {
			continue
		}
		tests = append(tests, struct {
			name   string
			change func(d *draft)
			want   result
			check  func(t *testing.T, m *Message)
		}{"ATT-05 transactionID tag " + strconv.Itoa(tag), func(d *draft) {
			setAttr(d, oidTransactionID, tlv(byte(tag), []byte("a b+/=")))
		}, want, func(t *testing.T, m *Message) {
			if m.TransactionIDTag != tag || string(m.TransactionID) != "a b+/=" {
				t.Error(m.TransactionIDTag, m.TransactionID)
			}
		}})
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d := newDraft()
			test.change(d)
			der := d.der()
			for form, ber := range map[string][]byte{
				"DER":                             der,
				"CMS-01 indefinite":               indefinite(der, 0),
				"CMS-02 constructed OCTET STRING": indefinite(der, 3),
				"CMS-11 newline":                  append(bytes.Clone(der), '\r', '\n'),
				"CMS-11 NUL":                      append(bytes.Clone(der), 0),
			} {
				m, err := parseAndVerify(ber)
				if got := resultOf(err); got != test.want {
					t.Fatalf("%s: got %v, want result %d", form, err, test.want)
				}
				if m != nil && test.check != nil {
					test.check(t, m)
				}
			}
		})
	}
}

// Each prefix, and each change of one byte of the structure, gives an error or a message that
// verifies just the same.
func TestParseMessageDamaged(t *testing.T) {
	der := newDraft().signBy(ecID(), algID(oidECDSAWithSHA256), crypto.SHA256).der()
	for n := range der {
		if _, err := ParseMessage(der[:n]); !errors.Is(err, ErrSyntax) {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
	for i := range der {
		bad := bytes.Clone(der)
		bad[i] ^= 0x55
		m, err := parseAndVerify(bad)
		if err != nil {
			continue
		}
		if string(m.Content) != "content" || !equalAttributes(&m.Attributes, requestAttributes()) {
			t.Errorf("byte %d changed: verifies, with %+v", i, m)
		}
	}
}

func TestVerifyWithAnotherKey(t *testing.T) {
	m := must(ParseMessage(newDraft().der()))
	for _, pub := range []crypto.PublicKey{&otherKey().PublicKey, &must(rsa.GenerateKey(rand.Reader, 1024)).PublicKey} {
		if err := m.Verify(pub); !errors.Is(err, ErrSignature) {
			t.Errorf("%T: %v", pub, err)
		}
	}
	if err := m.Verify(nil); resultOf(err) != unsupported {
		t.Errorf("no key: %v", err)
	}
}

func TestSignMessage(t *testing.T) {
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edID := newIdentity(edKey, "ed", nil)
	p521 := newIdentity(must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader)), "p521", nil)
	full := requestAttributes()
	full.MessageType, full.PKIStatus, full.FailInfo, full.FailInfoText = "3", "2", "4", "nö"
	full.RecipientNonce = []byte{}
	odd := requestAttributes()
	odd.TransactionIDTag, odd.TransactionID = 12, []byte("ä")
	for _, test := range []struct {
		name    string
		id      *identity
		hash    crypto.Hash
		attrs   *Attributes
		content []byte
		sigOID  string
	}{
		{"RSA SHA-256", rsaID(), crypto.SHA256, requestAttributes(), []byte("content"), "1.2.840.113549.1.1.1"},
		{"RSA SHA-1", rsaID(), crypto.SHA1, requestAttributes(), []byte("content"), "1.2.840.113549.1.1.1"},
		{"RSA SHA-384", rsaID(), crypto.SHA384, full, []byte{}, "1.2.840.113549.1.1.1"},
		{"RSA SHA-512", rsaID(), crypto.SHA512, odd, nil, "1.2.840.113549.1.1.1"},
		{"ECDSA", ecID(), crypto.SHA256, full, bytes.Repeat([]byte{1}, 70000), "1.2.840.10045.4.3.2"},
		{"P-521", p521, crypto.SHA512, full, nil, "1.2.840.10045.4.3.4"},
		{"Ed25519", edID, crypto.SHA512, full, nil, "1.3.101.112"},
	} {
		t.Run(test.name, func(t *testing.T) {
			der, err := SignMessage(t.Context(), test.content, test.attrs, test.id.c, test.id.key, test.hash, test.id.c.Raw, goodCert().der())
			if err != nil {
				t.Fatal(err)
			}
			if n := 0; !isDER(der, 0, &n) {
				t.Error("not DER")
			}
			m := mustVerify(t, der)
			if !equalAttributes(&m.Attributes, test.attrs) || m.TransactionIDTag != max(19*b2i(test.attrs.TransactionIDTag == 0), test.attrs.TransactionIDTag) {
				t.Errorf("attributes: %+v", m.Attributes)
			}
			if !bytes.Equal(m.Content, test.content) || (m.Content == nil) != (test.content == nil) {
				t.Errorf("content: %x", m.Content)
			}
			if m.Digest != test.hash || m.SignatureOID.String() != test.sigOID || len(m.Other) != 0 {
				t.Errorf("%v, %v, other %x", m.Digest, m.SignatureOID, m.Other)
			}
			if len(m.Certificates) != 2 || !bytes.Equal(m.Certificates[0].Raw, test.id.c.Raw) || !bytes.Equal(m.Certificates[1].Raw, goodCert().der()) {
				t.Error("certificates")
			}
			set := slices.Clone([]byte(m.signedAttrs))
			set[0] = 0x31
			if sortSet(set) {
				t.Error("signed attributes are not in DER order")
			}
		})
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// The serial and the issuer are echoed byte for byte.
func TestSignMessageKeepsIdentifier(t *testing.T) {
	for _, serial := range [][]byte{{0}, {0xff, 0x80}, {0, 0, 1}, bytes.Repeat([]byte{0x80}, 40)} {
		r := goodCert()
		r.serial = serial
		c := must(ParseCertificate(r.der()))
		der, err := SignMessage(t.Context(), nil, requestAttributes(), c, rsaKey(), crypto.SHA256, c.Raw)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(der, seq(r.issuer, tlv(0x02, serial))) {
			t.Errorf("serial %x: not in the message", serial)
		}
		mustVerify(t, der)
	}
}

// signerFunc is a key in a token, without or with a context.
type signerFunc struct {
	pub  crypto.PublicKey
	sign func(digest []byte, opts crypto.SignerOpts) ([]byte, error)
}

func (s signerFunc) Public() crypto.PublicKey { return s.pub }
func (s signerFunc) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return s.sign(digest, opts)
}

type contextKey struct {
	signerFunc
	signContext func(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error)
}

func (k contextKey) SignContext(ctx context.Context, _ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.signContext(ctx, digest, opts)
}

func TestSignMessageContext(t *testing.T) {
	type marker struct{}
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), marker{}, true))
	id := ecID()
	try := func(key crypto.Signer) error {
		_, err := SignMessage(ctx, nil, requestAttributes(), id.c, key, crypto.SHA256)
		return err
	}
	called := false
	key := contextKey{signerFunc{pub: id.key.Public()}, func(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
		called = ctx.Value(marker{}) == true
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		return id.key.Sign(rand.Reader, digest, opts)
	}}
	if err := try(key); err != nil || !called {
		t.Errorf("SignContext called with the context: %v, %v", called, err)
	}
	cancel()
	if err := try(key); !errors.Is(err, context.Canceled) {
		t.Errorf("SignContext, cancelled: %v", err)
	}
	if err := try(id.key); !errors.Is(err, context.Canceled) {
		t.Errorf("Sign, cancelled: %v", err)
	}
}

func TestSignMessageRefuses(t *testing.T) {
	id := ecID()
	failure := errors.New("no token")
	bad := requestAttributes()
	bad.TransactionIDTag = 2
	short := must(rsa.GenerateKey(rand.Reader, 1024))
	for name, err := range map[string]error{
		"key fails": func() error {
			_, err := SignMessage(t.Context(), nil, requestAttributes(), id.c, signerFunc{id.key.Public(), func([]byte, crypto.SignerOpts) ([]byte, error) { return nil, failure }}, crypto.SHA256)
			if !errors.Is(err, failure) {
				t.Errorf("the cause is lost: %v", err)
			}
			return err
		}(),
		"key signs garbage": second(SignMessage(t.Context(), nil, requestAttributes(), id.c, signerFunc{id.key.Public(), func([]byte, crypto.SignerOpts) ([]byte, error) { return []byte("garbage"), nil }}, crypto.SHA256)),
		"another key":       second(SignMessage(t.Context(), nil, requestAttributes(), id.c, otherKey(), crypto.SHA256)),
		"RSA key for EC":    second(SignMessage(t.Context(), nil, requestAttributes(), id.c, short, crypto.SHA256)),
		"no key":            second(SignMessage(t.Context(), nil, requestAttributes(), id.c, nil, crypto.SHA256)),
		"MD5":               second(SignMessage(t.Context(), nil, requestAttributes(), rsaID().c, rsaKey(), crypto.MD5)),
		"no hash":           second(SignMessage(t.Context(), nil, requestAttributes(), rsaID().c, rsaKey(), 0)),
		"ECDSA with SHA-1":  second(SignMessage(t.Context(), nil, requestAttributes(), id.c, id.key, crypto.SHA1)),
		"INTEGER as tag":    second(SignMessage(t.Context(), nil, bad, id.c, id.key, crypto.SHA256)),
		"no certificate":    second(SignMessage(t.Context(), nil, requestAttributes(), &Certificate{}, id.key, crypto.SHA256)),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func second[T any](_ T, err error) error { return err }
