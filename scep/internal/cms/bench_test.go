package cms

import (
	"bytes"
	"crypto"
	"testing"
)

func BenchmarkParseMessage(b *testing.B) {
	d := newDraft()
	d.eContent = ctx(0, octets(make([]byte, 2000)))
	der := d.der()
	for name, ber := range map[string][]byte{"DER": der, "BER": indefinite(der, 1000)} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				must(ParseMessage(ber))
			}
		})
	}
}

func BenchmarkParseEnvelope(b *testing.B) {
	der := must(Encrypt(make([]byte, 1500), AES128, rsaID().c, &rsaKey().PublicKey))
	for name, ber := range map[string][]byte{"DER": der, "BER": indefinite(der, 1000)} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				must(ParseEnvelope(ber))
			}
		})
	}
}

func BenchmarkDecrypt(b *testing.B) {
	e := &Envelope{Cipher: AES128, IV: make([]byte, 16), Ciphertext: make([]byte, 1504)}
	key := make([]byte, 16)
	b.ReportAllocs()
	for b.Loop() {
		e.Decrypt(key)
	}
}

func BenchmarkSignedAttributes(b *testing.B) {
	attrs := requestAttributes()
	digest := make([]byte, 32)
	b.ReportAllocs()
	for b.Loop() {
		must(attrs.encode(digest))
	}
}

// The private-key operation is left out; the verification by the public key is in.
func BenchmarkSignMessage(b *testing.B) {
	id, attrs, content := rsaID(), requestAttributes(), bytes.Repeat([]byte{1}, 2000)
	sig := map[string][]byte{}
	key := signerFunc{id.key.Public(), func(digest []byte, opts crypto.SignerOpts) ([]byte, error) {
		if s, ok := sig[string(digest)]; ok { // made once: the messages are equal
			return s, nil
		}
		s, err := id.key.Sign(nil, digest, opts)
		sig[string(digest)] = s
		return s, err
	}}
	b.ReportAllocs()
	for b.Loop() {
		must(SignMessage(b.Context(), content, attrs, id.c, key, crypto.SHA256, id.c.Raw))
	}
}

func BenchmarkVerify(b *testing.B) {
	m := must(ParseMessage(newDraft().der()))
	pub := rsaID().key.Public()
	b.ReportAllocs()
	for b.Loop() {
		if err := m.Verify(pub); err != nil {
			b.Fatal(err)
		}
	}
}
