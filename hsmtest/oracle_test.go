//go:build cgo

package hsmtest_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"math/big"
	"testing"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/file"
	"github.com/scepkit/scepkit/backend/pkcs11"
	"github.com/scepkit/scepkit/backend/tpm"
	"github.com/scepkit/scepkit/hsmtest"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// raw encrypts a block that begins with prefix to a recipient, without any padding.
func raw(r *sceptest.Recipient, prefix []byte) func([]byte) []byte {
	return func(b []byte) []byte {
		pub := r.Certificate.PublicKey.(*rsa.PublicKey)
		block := make([]byte, pub.Size())
		copy(block, prefix)
		c := new(big.Int).Exp(new(big.Int).SetBytes(block), big.NewInt(int64(pub.E)), pub.N)
		return c.FillBytes(block)
	}
}

// breaks are ways to break an envelope, from its key to the CSR in it.
var breaks = []struct {
	name string
	edit func(m *sceptest.Message, r *sceptest.Recipient)
}{
	{"RSA padding", func(m *sceptest.Message, r *sceptest.Recipient) { r.EncryptedKey = raw(r, []byte{0, 1, 0xff, 0xff, 0}) }},
	{"RSA padding without end", func(m *sceptest.Message, r *sceptest.Recipient) {
		r.EncryptedKey = raw(r, append([]byte{0, 2}, bytes.Repeat([]byte{7}, 254)...))
	}},
	{"random block", func(m *sceptest.Message, r *sceptest.Recipient) {
		r.EncryptedKey = func(b []byte) []byte { c := make([]byte, len(b)); rand.Read(c[1:]); return c }
	}},
	{"block of zeros", func(m *sceptest.Message, r *sceptest.Recipient) {
		r.EncryptedKey = func(b []byte) []byte { return make([]byte, len(b)) }
	}},
	{"block above the modulus", func(m *sceptest.Message, r *sceptest.Recipient) {
		r.EncryptedKey = func(b []byte) []byte { return bytes.Repeat([]byte{0xff}, len(b)) }
	}},
	{"short block", func(m *sceptest.Message, r *sceptest.Recipient) {
		r.EncryptedKey = func(b []byte) []byte { return b[1:] }
	}},
	{"key of another length", func(m *sceptest.Message, r *sceptest.Recipient) { r.Key = make([]byte, 24) }},
	{"empty key", func(m *sceptest.Message, r *sceptest.Recipient) { r.Key = []byte{} }},
	{"another key", func(m *sceptest.Message, r *sceptest.Recipient) { r.Key = make([]byte, 16) }},
	{"CBC padding", func(m *sceptest.Message, r *sceptest.Recipient) {
		m.Envelope.Ciphertext = func(b []byte) []byte { b[len(b)-17] ^= 0x80; return b }
	}},
	{"partial block", func(m *sceptest.Message, r *sceptest.Recipient) {
		m.Envelope.Ciphertext = func(b []byte) []byte { return b[:len(b)-5] }
	}},
	{"no ciphertext", func(m *sceptest.Message, r *sceptest.Recipient) {
		m.Envelope.Ciphertext = func(b []byte) []byte { return nil }
	}},
	{"CSR cut off", func(m *sceptest.Message, r *sceptest.Recipient) { m.Envelope.Content = m.CSR[:len(m.CSR)-1] }},
	{"CSR of nonsense", func(m *sceptest.Message, r *sceptest.Recipient) { m.Envelope.Content = make([]byte, 400) }},
	{"CSR changed", func(m *sceptest.Message, r *sceptest.Recipient) {
		b := bytes.Clone(m.CSR)
		b[len(b)-1] ^= 1
		m.Envelope.Content = b
	}},
}

// The answer to each way of breaking an envelope is the same, byte for byte but for the nonces
// and what follows from them, whatever the way and whatever device holds the key.
func TestOneAnswer(t *testing.T) {
	keys := map[string]func(t *testing.T) *backend.Key{
		"file": func(t *testing.T) *backend.Key { return newKey(t, "file:"+t.TempDir()+"/ra.key", file.Driver{}) },
		"SoftHSM": func(t *testing.T) *backend.Key {
			return newKey(t, hsmtest.SoftHSM(t).URI("ra"), quiet(&pkcs11.Driver{}))
		},
		"NSS": func(t *testing.T) *backend.Key { return newKey(t, hsmtest.NSS(t).URI("ra"), quiet(&pkcs11.Driver{})) },
		"TPM": func(t *testing.T) *backend.Key {
			return newKey(t, "tpm:"+t.TempDir()+"/ra.tpm", &tpm.Driver{Dial: dial(hsmtest.TPM(t))})
		},
	}
	answers := map[string][]string{} // who gave it
	for name, open := range keys {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, softwareKey(6), open(t), scep.Limits{})
			for _, b := range breaks {
				d := sceptest.NewDevice(s.URL, sceptest.RSA(0), "device")
				d.TransactionID = "the same"
				m := d.PKCSReq(t)
				m.SenderNonce = bytes.Repeat([]byte{1}, 16)
				b.edit(m, &m.Envelope.Recipients[0])
				r := d.Send(t, m)
				text := show(t, r)
				answers[text] = append(answers[text], name+": "+b.name)
			}
			if err := s.enroll(); err != nil {
				t.Error(err)
			}
		})
	}
	if len(answers) != 1 {
		t.Errorf("%d different answers: %q", len(answers), answers)
	}
}

// show writes an answer without what differs in any two: the nonce, the signature over it, the
// signer, whose key the device has, and the date.
func show(t *testing.T, r *sceptest.Reply) string {
	t.Helper()
	if len(r.SenderNonce) != 16 {
		t.Errorf("senderNonce has %d bytes", len(r.SenderNonce))
	}
	size := len(r.Body) - len(r.Signer.Raw) - len(r.Signer.RawIssuer) - len(r.Signer.SerialNumber.Bytes())
	r.SenderNonce, r.Body, r.Signer = nil, nil, nil
	r.Header.Del("Date")
	r.Header.Del("Content-Length")
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d bytes %s", size, text)
}
