package cms

import (
	"bytes"
	"crypto"
	"errors"
	"testing"
)

// TestReadsOpenSSLNextCA reads answers to GetNextCACert that OpenSSL signed, in both content types
// that servers have.
func TestReadsOpenSSLNextCA(t *testing.T) {
	o := newOpenSSL(t)
	inner := must(CertsOnly(ecID().cert.Raw, rsaID().cert.Raw))
	for _, args := range []string{"", " -econtent_type pkcs7-signedData", " -indef -stream", " -keyid", " -nocerts"} {
		for name, id := range map[string]*identity{"rsa": rsaID(), "ec": ecID()} {
			ber, err := o.run(inner, "-sign -nodetach -nosmimecap -md sha256 -outform DER -signer "+name+".crt -inkey "+name+".key"+args)
			if err != nil {
				t.Fatal(err)
			}
			msg, certs, err := ParseNextCA(ber)
			if err != nil {
				t.Errorf("%s%s: %v", name, args, err)
				continue
			}
			if err := msg.Verify(id.key.Public()); err != nil {
				t.Errorf("%s%s: %v", name, args, err)
			}
			if len(certs) != 2 || !certs[0].Equal(ecID().cert) || !certs[1].Equal(rsaID().cert) {
				t.Errorf("%s%s: %d certificates, or others", name, args, len(certs))
			}
		}
	}
}

func TestParseNextCA(t *testing.T) {
	id := rsaID()
	sign := func(content []byte, outside ...[]byte) []byte {
		return must(SignMessage(t.Context(), content, &Attributes{}, id.c, id.key, crypto.SHA256, outside...))
	}
	inner := must(CertsOnly(ecID().cert.Raw))
	good := sign(inner, ecID().cert.Raw, id.cert.Raw)
	msg, certs, err := ParseNextCA(good)
	if err != nil || len(certs) != 1 || !certs[0].Equal(ecID().cert) || msg.Signer == nil {
		t.Fatalf("%d certificates, %v", len(certs), err)
	}
	if err := msg.Verify(id.key.Public()); err != nil {
		t.Error(err)
	}
	if err := msg.Verify(ecID().key.Public()); err == nil {
		t.Error("verified with another key")
	}
	if _, err := ParseMessage(good); err != nil { // it is one, of no type
		t.Error(err)
	}
	other := bytes.Replace(good, oid(oidData), oid(oidSignedData), 1) // not in the signed attributes
	if msg, _, err = ParseNextCA(other); err != nil || !errors.Is(msg.Verify(id.key.Public()), ErrSignature) {
		t.Errorf("another content type than was signed: %v", err)
	}
	for name, ber := range map[string][]byte{
		"nothing":       nil,
		"unsigned":      inner,
		"no content":    sign(nil, ecID().cert.Raw),
		"empty content": sign([]byte{}, ecID().cert.Raw),
		"a certificate": sign(ecID().cert.Raw),
		"no certs-only": sign(good),
		"other content": bytes.Replace(good, oid(oidData), oid("\x2a\x86\x48\x86\xf7\x0d\x01\x07\x05"), 1),
		"cut":           good[:len(good)-1],
	} {
		if _, _, err := ParseNextCA(ber); !errors.Is(err, ErrSyntax) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
