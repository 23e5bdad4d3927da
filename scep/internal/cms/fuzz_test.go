package cms

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math/big"
	"slices"
	"testing"
	"unicode/utf8"
)

// seeds are messages of every kind, in several forms, and what has broken others.
func seeds() [][]byte {
	ecMessage := newDraft().signBy(ecID(), algID(oidECDSAWithSHA256), crypto.SHA256).der()
	bare := newSealed()
	bare.outer = func(b []byte) []byte { return b }
	bare.content = ctx(0, octets(make([]byte, 16)), octets(make([]byte, 16)))
	bare.recipients = append(bare.recipients, ctx(1), ktri(tlv(0x80, []byte("id")), algID(oidOAEP, seq(ctx(0, algID(oidSHA256)), ctx(1, algID(oidMGF1, algID(oidSHA256))))), nil))
	password := newSealed()
	password.version, password.recipients = 3, [][]byte{newPWRI().der(), ctx(3)}
	odd := goodCert()
	odd.after = ctx(3, seq(seq(oid(oidSubjectKeyID), []byte{1, 1, 0xff}, octets(octets([]byte("id"))))))
	list := [][]byte{
		ecMessage, newDraft().der(), newSealed().der(), bare.der(), password.der(),
		must(CertsOnly(ecID().cert.Raw)), degenerate(ctx(0, ecID().cert.Raw), ctx(1, seq()), nil),
		ecID().cert.Raw, goodCert().der(), odd.der(),
		{0x1f, 0x80}, {0x30, 0x81}, {0x5f, 0x4d}, unhex("24 80 24 80 04 01 aa 00 00 00 00"), unhex("30 88 80 00 00 00 00 00 00 00"),
		bytes.Repeat([]byte{0x30, 0x80}, 40), unhex("2c 80 04 01 61 0c 01 62 00 00"),
	}
	for _, b := range list[:7] {
		list = append(list, indefinite(b, 0), indefinite(b, 50))
	}
	return list
}

func addSeeds(f *testing.F) {
	for _, b := range seeds() {
		f.Add(b)
	}
}

func FuzzNormalize(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		out, err := Normalize(b)
		if !bytes.Equal(b, before) {
			t.Fatal("the input was written to")
		}
		count := 0
		der := isDER(b, 0, &count)
		if err != nil {
			if !errors.Is(err, ErrSyntax) {
				t.Fatalf("error of no kind: %v", err)
			}
			if der {
				t.Fatalf("refuses DER: %v", err)
			}
			return
		}
		if der && (&out[0] != &b[0] || len(out) != len(b)) {
			t.Fatal("changes DER")
		}
		if count = 0; !isDER(out, 0, &count) {
			t.Fatalf("writes what is not DER: %x", out)
		}
		if len(out) > 2*len(b) {
			t.Fatalf("%d bytes become %d", len(b), len(out))
		}
		again, err := Normalize(out)
		if err != nil || !bytes.Equal(again, out) {
			t.Fatalf("not idempotent: %x, %v", again, err)
		}
	})
}

func FuzzParseMessage(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseMessage(b)
		if err != nil {
			if !errors.Is(err, ErrSyntax) || m != nil {
				t.Fatalf("%v, %v", m, err)
			}
			return
		}
		if len(m.Certificates) > maxCertificates || len(m.Other) > maxAttributes {
			t.Fatal("over the limits")
		}
		pub := crypto.PublicKey(&otherKey().PublicKey)
		if m.Signer != nil {
			if !slices.Contains(m.Certificates, m.Signer) {
				t.Fatal("signer is not in the bag")
			}
			if p, err := ParsePublicKey(m.Signer.RawSPKI); err == nil {
				pub = p
			}
		}
		if r := resultOf(m.Verify(pub)); r != good && r != unverified && r != unsupported {
			t.Fatalf("Verify: %v", m.Verify(pub))
		}
		// The normal form reads the same.
		again, err := ParseMessage(must(Normalize(b)))
		if err != nil || !equalAttributes(&m.Attributes, &again.Attributes) || !bytes.Equal(m.Content, again.Content) {
			t.Fatalf("%+v, then %+v, %v", m, again, err)
		}
	})
}

func FuzzParseEnvelope(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := ParseEnvelope(b)
		if err != nil {
			if !errors.Is(err, ErrSyntax) || e != nil {
				t.Fatalf("%v, %v", e, err)
			}
			return
		}
		if len(e.Recipients)+len(e.Passwords) > maxRecipients || len(e.Ciphertext) > len(b) {
			t.Fatal("over the limits")
		}
		for _, r := range e.Recipients {
			if (r.RawIssuer == nil) == (r.SubjectKeyID == nil) {
				t.Fatalf("%+v", r)
			}
		}
		for i, r := range e.Passwords {
			if r.Check() == nil && (r.Iterations < 1 || r.Iterations > MaxIterations) {
				t.Fatalf("%d rounds", r.Iterations)
			}
			if i > 0 || r.Iterations > 10 {
				continue
			}
			if key, err := r.UnwrapKey([]byte("secret"), e.Cipher.KeySize()); err != r.Check() || err == nil && len(key) != e.Cipher.KeySize() {
				t.Fatalf("%x, %v", key, err)
			}
		}
		key := make([]byte, e.Cipher.KeySize())
		checkDecrypt(t, e, key)
	})
}

func FuzzParseCertificate(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseCertificate(b)
		x, xerr := x509.ParseCertificate(b)
		if err != nil {
			if !errors.Is(err, ErrSyntax) || c != nil {
				t.Fatalf("%v, %v", c, err)
			}
			if xerr == nil {
				t.Fatalf("crypto/x509 takes what we do not: %v", err)
			}
			return
		}
		if !bytes.Equal(c.Raw, b) || len(c.RawSerial) == 0 {
			t.Fatalf("%+v", c)
		}
		c.named(nil, nil, []byte("01234567890123456789"))
		ParsePublicKey(c.RawSPKI)
		if xerr == nil {
			serial := new(big.Int).SetBytes(c.RawSerial)
			if !bytes.Equal(c.RawIssuer, x.RawIssuer) || !bytes.Equal(c.RawSubject, x.RawSubject) || !bytes.Equal(c.RawSPKI, x.RawSubjectPublicKeyInfo) ||
				x.SerialNumber.Sign() >= 0 && serial.Cmp(x.SerialNumber) != 0 ||
				// crypto/x509 reads no extensions of a certificate that says it is version 1 or 2.
				x.Version == 3 && !bytes.Equal(c.SubjectKeyID, x.SubjectKeyId) {
				t.Fatalf("differs from crypto/x509: %+v", c)
			}
		}
	})
}

func FuzzParsePublicKey(f *testing.F) {
	f.Add(rsaID().c.RawSPKI)
	f.Add(ecID().c.RawSPKI)
	f.Add(seq(algID(oidEd25519), tlv(3, make([]byte, 33))))
	f.Fuzz(func(t *testing.T, b []byte) {
		pub, err := ParsePublicKey(b)
		if err != nil {
			if r := resultOf(err); r != malformed && r != unsupported {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		if err := CheckKey(pub); err != nil {
			t.Fatal(err)
		}
		if x, err := x509.ParsePKIXPublicKey(b); err == nil && !x.(interface{ Equal(crypto.PublicKey) bool }).Equal(pub) {
			t.Fatalf("differs from crypto/x509: %v, %v", pub, x)
		}
	})
}

func FuzzVerifySignature(f *testing.F) {
	f.Add(algID(oidRSA, null), []byte("signature"))
	f.Add(algID(oidPSS, seq(ctx(0, algID(oidSHA256)), ctx(1, algID(oidMGF1, algID(oidSHA256))), ctx(2, integer(32)), ctx(3, integer(1)))), make([]byte, 256))
	f.Add(algID(oidECDSAWithSHA256), seq(integer(1), integer(2)))
	f.Fuzz(func(t *testing.T, alg, sig []byte) {
		for _, pub := range []crypto.PublicKey{&rsaKey().PublicKey, &otherKey().PublicKey} {
			if _, err := VerifySignature(pub, alg, crypto.SHA256, []byte("data"), sig); err == nil {
				t.Fatal("forged")
			} else if r := resultOf(err); r != unverified && r != unsupported {
				t.Fatalf("error of no kind: %v", err)
			}
		}
	})
}

func FuzzParseCertsOnly(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		certs, crls, err := ParseCertsOnly(b)
		if err != nil {
			if !errors.Is(err, ErrSyntax) || certs != nil || crls != nil {
				t.Fatalf("%v, %v, %v", certs, crls, err)
			}
			return
		}
		if len(certs) == 0 {
			return
		}
		var raw [][]byte
		for _, c := range certs {
			raw = append(raw, c.Raw)
		}
		again, _, err := ParseCertsOnly(must(CertsOnly(raw...)))
		if err != nil || len(again) != len(certs) {
			t.Fatalf("%d certificates, then %d, %v", len(certs), len(again), err)
		}
	})
}

func FuzzDecrypt(f *testing.F) {
	for c := range AES256 + 2 {
		f.Add(uint8(c), make([]byte, c.KeySize()), make([]byte, 16), make([]byte, 32))
		f.Add(uint8(c), make([]byte, c.KeySize()), make([]byte, 8), make([]byte, 9))
		f.Add(uint8(c), []byte{}, []byte{}, []byte{})
	}
	f.Fuzz(func(t *testing.T, c uint8, key, iv, text []byte) {
		checkDecrypt(t, &Envelope{Cipher: Cipher(c), IV: iv, Ciphertext: text}, key)
		// And what does have padding.
		e := &Envelope{Cipher: Cipher(c)}
		if len(key) != e.Cipher.KeySize() || len(key) == 0 {
			return
		}
		block := must(e.Cipher.block(key))
		e.IV = make([]byte, block.BlockSize())
		copy(e.IV, iv)
		e.Ciphertext = cbc(block, e.IV, pad(text, block.BlockSize()))
		if plain, ok := e.Decrypt(key); !ok || !bytes.Equal(plain, text) {
			t.Fatalf("%x, %v; want %x", plain, ok, text)
		}
	})
}

func FuzzRoundTrip(f *testing.F) {
	id := newIdentity(must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), "fuzz", nil)
	f.Add([]byte("content"), "19", []byte("id"), uint8(19), []byte("nonce"), []byte("nonce"), "0", "2", "text")
	f.Add([]byte{}, "", []byte{}, uint8(0), []byte{}, []byte{}, "", "", "")
	f.Fuzz(func(t *testing.T, content []byte, messageType string, transactionID []byte, tag uint8, sender, recipient []byte, status, fail, text string) {
		attrs := &Attributes{
			MessageType: messageType, TransactionID: transactionID, TransactionIDTag: int(tag), SenderNonce: sender,
			RecipientNonce: recipient, PKIStatus: status, FailInfo: fail, FailInfoText: text,
		}
		der, err := SignMessage(t.Context(), content, attrs, id.c, id.key, crypto.SHA256, id.c.Raw)
		if err != nil {
			if slices.Contains([]uint8{0, 4, 12, 18, 19, 20, 22, 26, 27, 28, 30}, tag) {
				t.Fatal(err)
			}
			return
		}
		m := mustVerify(t, der)
		want := *attrs
		if !utf8.ValidString(text) {
			want.FailInfoText = m.FailInfoText
		}
		if !equalAttributes(&m.Attributes, &want) || tag != 0 && m.TransactionIDTag != int(tag) || len(m.Other) > 0 {
			t.Fatalf("got %+v, want %+v", m.Attributes, want)
		}
		if !bytes.Equal(m.Content, content) || (m.Content == nil) != (content == nil) {
			t.Fatalf("content %x", m.Content)
		}
		if got := must(Normalize(der)); &got[0] != &der[0] {
			t.Fatal("writes what is not DER")
		}
	})
}
