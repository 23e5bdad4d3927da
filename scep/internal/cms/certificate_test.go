package cms

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math/big"
	"testing"

	"github.com/smallstep/pkcs7"
)

func TestParseCertificate(t *testing.T) {
	for _, id := range []*identity{rsaID(), ecID()} {
		c, x := id.c, id.cert
		if !bytes.Equal(c.Raw, x.Raw) || !bytes.Equal(c.RawIssuer, x.RawIssuer) || !bytes.Equal(c.RawSubject, x.RawSubject) ||
			!bytes.Equal(c.RawSPKI, x.RawSubjectPublicKeyInfo) || !bytes.Equal(c.SubjectKeyID, x.SubjectKeyId) ||
			!bytes.Equal(c.RawSerial, x.SerialNumber.Bytes()) {
			t.Errorf("differs from crypto/x509: %+v", c)
		}
	}
	der := rsaID().c.Raw
	for n := range der {
		if _, err := ParseCertificate(der[:n]); !errors.Is(err, ErrSyntax) {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
	if _, err := ParseCertificate(append(bytes.Clone(der), 0)); !errors.Is(err, ErrSyntax) {
		t.Errorf("trailing byte: %v", err)
	}
	empty := goodCert()
	empty.serial = nil
	if _, err := ParseCertificate(empty.der()); !errors.Is(err, ErrSyntax) {
		t.Errorf("empty serial: %v", err)
	}
}

func TestFromX509(t *testing.T) {
	for _, serial := range []int64{1, 0x7f, 0x80, 0x1234567890} {
		cert := newIdentity(otherKey(), "serial", func(c *x509.Certificate) { c.SerialNumber = big.NewInt(serial) }).cert
		c := FromX509(cert)
		if !bytes.Equal(c.Raw, cert.Raw) || !bytes.Equal(tlv(2, c.RawSerial), integer(serial)) {
			t.Errorf("%+v", c)
		}
		bare := FromX509(&x509.Certificate{SerialNumber: cert.SerialNumber, RawIssuer: cert.RawIssuer, RawSubjectPublicKeyInfo: cert.RawSubjectPublicKeyInfo})
		if !bytes.Equal(bare.RawSerial, c.RawSerial) || !bytes.Equal(bare.RawIssuer, c.RawIssuer) {
			t.Errorf("from fields: %+v", bare)
		}
	}
	if c := FromX509(&x509.Certificate{SerialNumber: big.NewInt(-129)}); !bytes.Equal(c.RawSerial, []byte{0xff, 0x7f}) {
		t.Errorf("negative serial: %x", c.RawSerial)
	}
	FromX509(&x509.Certificate{})
}

func degenerate(certs, crls, infos []byte) []byte {
	return seq(oid(oidSignedData), ctx(0, seq(integer(1), set(), seq(oid(oidData)), certs, crls, set(infos))))
}

func testCRL(t *testing.T) []byte {
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1),
		RevokedCertificateEntries: []x509.RevocationListEntry{
			{SerialNumber: big.NewInt(5), RevocationTime: rsaID().cert.NotBefore},
		},
		ThisUpdate: rsaID().cert.NotBefore, NextUpdate: rsaID().cert.NotAfter,
	}, rsaID().cert, rsaKey())
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestCertsOnly(t *testing.T) {
	a, b := rsaID().cert.Raw, ecID().cert.Raw
	der, err := CertsOnly(a, b)
	if err != nil {
		t.Fatal(err)
	}
	peer, err := pkcs7.Parse(der)
	if err != nil || len(peer.Certificates) != 2 || !bytes.Equal(peer.Certificates[0].Raw, a) {
		t.Errorf("pkcs7: %v", err)
	}
	for _, ber := range [][]byte{der, indefinite(der, 0), append(bytes.Clone(der), '\n')} {
		certs, crls, err := ParseCertsOnly(ber)
		if err != nil || len(crls) != 0 || len(certs) != 2 || !bytes.Equal(certs[0].Raw, a) || !bytes.Equal(certs[1].Raw, b) {
			t.Errorf("%d certificates, %d CRLs, %v", len(certs), len(crls), err)
		}
	}
	for name, certs := range map[string][][]byte{"none": nil, "empty": {nil}, "two in one": {append(bytes.Clone(a), b...)}, "garbage": {{5, 0}}} {
		if _, err := CertsOnly(certs...); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestParseCertsOnly(t *testing.T) {
	crl := testCRL(t)
	cert := rsaID().cert.Raw
	windows := goodCert()
	windows.after = ctx(3, seq(seq(oid("\x55\x1d\x23"), []byte{1, 1, 0xff}, octets(seq(tlv(0x80, []byte("id")))))))
	for _, test := range []struct {
		name        string
		der         []byte
		certs, crls int
		fails       bool
	}{
		{"certificates and CRLs", degenerate(ctx(0, cert), ctx(1, crl, crl), nil), 1, 2, false},
		{"CRL alone", degenerate(nil, ctx(1, crl), nil), 0, 1, false},
		{"empty sets", degenerate(ctx(0), ctx(1), nil), 0, 0, false},
		{"nothing", degenerate(nil, nil, nil), 0, 0, false},
		{"other kinds", degenerate(ctx(0, ctx(1), cert, ctx(2)), ctx(1, ctx(1), crl), nil), 1, 1, false},
		{"signed", degenerate(ctx(0, cert), nil, seq()), 0, 0, true},
		{"certificate that crypto/x509 refuses", degenerate(ctx(0, windows.der()), nil, nil), 0, 0, true},
		{"certificate that is none", degenerate(ctx(0, seq()), nil, nil), 0, 0, true},
		{"signed message", newDraft().der(), 0, 0, true},
		{"envelope", newSealed().der(), 0, 0, true},
		{"something behind", append(degenerate(nil, nil, nil), 1), 0, 0, true},
		{"certificate alone", cert, 0, 0, true},
	} {
		for _, ber := range [][]byte{test.der, indefinite(bytes.TrimSuffix(test.der, []byte{1}), 0)} {
			certs, crls, err := ParseCertsOnly(ber)
			if test.fails && test.name != "something behind" {
				if !errors.Is(err, ErrSyntax) {
					t.Errorf("%s: %v", test.name, err)
				}
			} else if !test.fails && (err != nil || len(certs) != test.certs || len(crls) != test.crls) {
				t.Errorf("%s: %d certificates, %d CRLs, %v", test.name, len(certs), len(crls), err)
			}
			for _, c := range crls {
				if _, err := x509.ParseRevocationList(c); err != nil {
					t.Errorf("%s: %v", test.name, err)
				}
			}
		}
	}
	if _, _, err := ParseCertsOnly(append(degenerate(nil, nil, nil), 1)); !errors.Is(err, ErrSyntax) {
		t.Errorf("trailing byte: %v", err)
	}
}

// pkcs7 is somebody else's reading of what we write.
func TestPKCS7Reads(t *testing.T) {
	id := rsaID()
	der, err := SignMessage(t.Context(), []byte("content"), requestAttributes(), id.c, id.key, crypto.SHA256, id.cert.Raw)
	if err != nil {
		t.Fatal(err)
	}
	p7, err := pkcs7.Parse(der)
	if err != nil {
		t.Fatal(err)
	}
	if err := p7.Verify(); err != nil {
		t.Error(err)
	}
	var messageType string
	if err := p7.UnmarshalSignedAttribute([]int{2, 16, 840, 1, 113733, 1, 9, 2}, &messageType); err != nil || messageType != "19" || string(p7.Content) != "content" {
		t.Errorf("%q, %q, %v", messageType, p7.Content, err)
	}
	for _, c := range []Cipher{TripleDES, AES128, AES256} {
		p7, err := pkcs7.Parse(must(Encrypt([]byte("content"), c, id.c, id.key.Public())))
		if err != nil {
			t.Fatal(err)
		}
		plain, err := p7.Decrypt(id.cert, id.key)
		if err != nil || string(plain) != "content" {
			t.Errorf("%v: %q, %v", c, plain, err)
		}
	}
}

// And we read what it writes.
func TestReadsPKCS7(t *testing.T) {
	id := rsaID()
	sd := must(pkcs7.NewSignedData([]byte("content")))
	sd.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA256)
	err := sd.AddSigner(id.cert, id.key, pkcs7.SignerInfoConfig{ExtraSignedAttributes: []pkcs7.Attribute{
		{Type: []int{2, 16, 840, 1, 113733, 1, 9, 2}, Value: "19"},
		{Type: []int{2, 16, 840, 1, 113733, 1, 9, 7}, Value: "transaction"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	m := mustVerify(t, must(sd.Finish()))
	if m.MessageType != "19" || string(m.TransactionID) != "transaction" || string(m.Content) != "content" || len(m.Other) != 1 {
		t.Errorf("%+v", m)
	}
	// The default of its process-wide setting, which nothing here touches: single DES.
	e := must(ParseEnvelope(must(pkcs7.Encrypt([]byte("content"), []*x509.Certificate{id.cert}))))
	if plain, err := open(e, rsaKey()); err != nil || string(plain) != "content" || e.Cipher != DES {
		t.Errorf("%v: %q, %v", e.Cipher, plain, err)
	}
}
