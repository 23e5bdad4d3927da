package scep_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"io"
	"math/big"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// A bend changes a good message.
type bend = func(m *sceptest.Message)

// bends sends a good enrolment request for each bend, from a new device.
func bends(t *testing.T, srv *sceptest.Server, cases map[string]bend, judge func(t *testing.T, m *sceptest.Message, r *sceptest.Reply)) {
	t.Helper()
	if len(cases) == 0 {
		t.Fatal("no cases")
	}
	for name, change := range cases {
		t.Run(name, func(t *testing.T) {
			d := newConformer(srv)
			m := d.PKCSReq(t)
			change(m)
			judge(t, m, d.Send(t, m))
		})
	}
}

func ok(t *testing.T, _ *sceptest.Message, r *sceptest.Reply) {
	t.Helper()
	wantOK(t, r)
}

func fails(info scep.FailInfo, text string) func(t *testing.T, m *sceptest.Message, r *sceptest.Reply) {
	return func(t *testing.T, _ *sceptest.Message, r *sceptest.Reply) {
		t.Helper()
		wantFail(t, r, info, text)
	}
}

func badHTTP(t *testing.T, _ *sceptest.Message, r *sceptest.Reply) {
	t.Helper()
	wantHTTP(t, r, 400)
}

func resign(csr func(c *sceptest.CSR)) bend {
	return func(m *sceptest.Message) {
		c := sceptest.CSR{Key: m.Key, Challenge: sceptest.Secret}
		csr(&c)
		m.CSR = c.DER()
		m.Envelope.Content = m.CSR
	}
}

func cipher(c sceptest.Cipher) bend {
	return func(m *sceptest.Message) { m.Envelope.Cipher = c }
}

func digest(h crypto.Hash) bend { return func(m *sceptest.Message) { m.Hash = h } }

func contentAlgorithm(params []byte, oid ...int) bend {
	return func(m *sceptest.Message) { m.Envelope.Algorithm = sceptest.Algorithm(oid, params) }
}

func TestConformanceCRY(t *testing.T) {
	c := newTable(t, "CRY")
	srv := newServer(t, scep.Config{})
	legacy := newServer(t, scep.Config{Legacy: scep.TripleDES | scep.SHA1 | scep.SingleDES})
	refused := newServer(t, scep.Config{})
	refusedLegacy := newServer(t, scep.Config{Legacy: scep.TripleDES | scep.SHA1})
	t.Cleanup(func() {
		wantNothingIssued(t, refused)
		wantNothingIssued(t, refusedLegacy)
	})
	// mirrored wants the reply in the algorithms of the request.
	mirrored := func(t *testing.T, m *sceptest.Message, r *sceptest.Reply) {
		t.Helper()
		wantOK(t, r)
		hash := m.Hash
		if hash == 0 || hash == crypto.SHA224 {
			hash = crypto.SHA256
		}
		if r.Cipher != m.Envelope.Cipher || r.Hash != hash {
			t.Errorf("reply has cipher %d and %v, not %d and %v", r.Cipher, r.Hash, m.Envelope.Cipher, hash)
		}
	}

	c.run("CRY-01", func(t *testing.T) {
		bends(t, srv, map[string]bend{"AES-192": cipher(sceptest.AES192), "AES-256": cipher(sceptest.AES256)}, mirrored)
	})
	c.run("CRY-02", func(t *testing.T) {
		bends(t, srv, map[string]bend{"SHA-224": digest(crypto.SHA224), "SHA-384": digest(crypto.SHA384), "SHA-512": digest(crypto.SHA512)}, mirrored)
	})
	c.run("CRY-03", func(t *testing.T) {
		bends(t, legacy, map[string]bend{
			"both":      func(m *sceptest.Message) { m.Envelope.Cipher, m.Hash = sceptest.TripleDES, crypto.SHA1 },
			"3DES":      cipher(sceptest.TripleDES),
			"SHA-1":     digest(crypto.SHA1),
			"SHA-1 CSR": resign(func(c *sceptest.CSR) { c.Hash = crypto.SHA1 }),
		}, mirrored)
	})
	c.run("CRY-04", func(t *testing.T) {
		bends(t, refused, map[string]bend{
			"both":      func(m *sceptest.Message) { m.Envelope.Cipher, m.Hash = sceptest.TripleDES, crypto.SHA1 },
			"3DES":      cipher(sceptest.TripleDES),
			"SHA-1":     digest(crypto.SHA1),
			"SHA-1 CSR": resign(func(c *sceptest.CSR) { c.Hash = crypto.SHA1 }),
		}, fails(scep.BadAlg, ""))
	})
	c.run("CRY-05", func(t *testing.T) {
		single := map[string]bend{"DES": cipher(sceptest.SingleDES)}
		bends(t, refused, single, fails(scep.BadAlg, ""))
		bends(t, refusedLegacy, single, fails(scep.BadAlg, ""))
		bends(t, legacy, single, func(t *testing.T, m *sceptest.Message, r *sceptest.Reply) {
			if wantOK(t, r); r.Cipher != sceptest.AES128 {
				t.Errorf("reply has cipher %d, not AES-128", r.Cipher)
			}
		})
	})
	c.run("CRY-06", func(t *testing.T) {
		for _, srv := range []*sceptest.Server{refused, refusedLegacy} {
			bends(t, srv, map[string]bend{
				"digest":          digest(crypto.MD5),
				"digest, withRSA": func(m *sceptest.Message) { m.Hash, m.Scheme = crypto.MD5, sceptest.WithHash },
				"CSR":             resign(func(c *sceptest.CSR) { c.Hash = crypto.MD5 }),
				"MD2 digest": func(m *sceptest.Message) {
					m.DigestAlgorithm = sceptest.Algorithm(asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 2}, nil)
				},
				"unknown signature": func(m *sceptest.Message) { m.SignatureAlgorithm = sceptest.Algorithm(oidUnknown, nil) },
			}, fails(scep.BadAlg, ""))
		}
		// An algorithm that says MD5 and a digest that does not.
		bends(t, refused, map[string]bend{"signature only": func(m *sceptest.Message) {
			m.SignatureAlgorithm = sceptest.Algorithm(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 4}, []byte{5, 0})
		}}, fails(scep.BadMessageCheck, ""))
	})
	c.run("CRY-07", func(t *testing.T) {
		iv := sceptest.TLV(sceptest.TagOctetString, make([]byte, 8))
		bends(t, refused, map[string]bend{
			"RC2-40":  contentAlgorithm(sceptest.TLV(0x30, sceptest.Integer(160), iv), 1, 2, 840, 113549, 3, 2),
			"RC4":     contentAlgorithm([]byte{5, 0}, 1, 2, 840, 113549, 3, 4),
			"unknown": contentAlgorithm(nil, 1, 3, 6, 1, 4, 1, 99999, 1),
			"transport": func(m *sceptest.Message) {
				m.Envelope.Recipients[0].Algorithm = sceptest.Algorithm(oidUnknown, nil)
			},
		}, fails(scep.BadAlg, ""))
	})
	c.run("CRY-08", func(t *testing.T) {
		oaep := func(o sceptest.OAEP) bend { return func(m *sceptest.Message) { m.Envelope.Recipients[0].OAEP = &o } }
		bends(t, srv, map[string]bend{
			"empty":  oaep(sceptest.OAEP{Params: sceptest.OAEPEmpty}),
			"absent": oaep(sceptest.OAEP{Params: sceptest.OAEPAbsent}),
			"NULL":   oaep(sceptest.OAEP{Params: sceptest.OAEPNull}),
			"SHA-1":  oaep(sceptest.OAEP{}),
		}, mirrored)
		// A device with the key may not do all, and some only show it as with a malformed block.
		judge := func(lacks string) func(*testing.T, *sceptest.Message, *sceptest.Reply) {
			switch {
			case !strings.Contains(os.Getenv(lacksVariable), lacks):
				return mirrored
			case lacks == "OAEP-MGF":
				return fails(scep.BadAlg, "the key of this server does not open that key transport")
			}
			return fails(scep.BadRequest, unreadable)
		}
		bends(t, srv, map[string]bend{
			"SHA-256": oaep(sceptest.OAEP{Hash: crypto.SHA256}),
			"SHA-512": oaep(sceptest.OAEP{Hash: crypto.SHA512}),
		}, judge("OAEP-SHA2"))
		bends(t, srv, map[string]bend{
			"SHA-256, MGF1 SHA-1":  oaep(sceptest.OAEP{Hash: crypto.SHA256, MGF: crypto.SHA1}),
			"SHA-256, default MGF": oaep(sceptest.OAEP{Hash: crypto.SHA256, MGF: crypto.SHA1, Params: sceptest.OAEPHashOnly}),
		}, judge("OAEP-MGF"))
	})
	c.run("CRY-09", func(t *testing.T) {
		scheme := func(s sceptest.Scheme) bend { return func(m *sceptest.Message) { m.Scheme = s } }
		bends(t, srv, map[string]bend{
			"rsaEncryption":                scheme(sceptest.PlainRSA),
			"sha256WithRSA":                scheme(sceptest.WithHash),
			"sha256WithRSA, no parameters": scheme(sceptest.WithHashNoNil),
			"sha256WithRSA as digest": func(m *sceptest.Message) {
				m.DigestAlgorithm = sceptest.Algorithm(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, []byte{5, 0})
			},
			"rsaEncryption, no parameters": func(m *sceptest.Message) {
				m.SignatureAlgorithm = sceptest.Algorithm(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}, nil)
			},
			"sha512WithRSA and rsa elsewhere": func(m *sceptest.Message) { m.Hash, m.Scheme = crypto.SHA512, sceptest.WithHash },
		}, ok)
	})
	c.run("CRY-10", func(t *testing.T) {
		bends(t, srv, map[string]bend{
			"message":         func(m *sceptest.Message) { m.Scheme = sceptest.PSS },
			"message SHA-512": func(m *sceptest.Message) { m.Scheme, m.Hash = sceptest.PSS, crypto.SHA512 },
			"CSR":             resign(func(c *sceptest.CSR) { c.Scheme = sceptest.PSS }),
			"CSR SHA-384":     resign(func(c *sceptest.CSR) { c.Scheme, c.Hash = sceptest.PSS, crypto.SHA384 }),
		}, ok)
	})
	c.run("CRY-11", func(t *testing.T) {
		srv := newServer(t, scep.Config{})
		d := sceptest.NewDevice(srv.URL, sceptest.P256(), "EC signer")
		wantFail(t, d.Send(t, d.PKCSReq(t)), scep.BadAlg, "")
		wantNothingIssued(t, srv)
	})
	c.run("CRY-12", func(t *testing.T) {
		bends(t, srv, map[string]bend{"AES-128, SHA-256": func(*sceptest.Message) {}}, mirrored)
	})
	c.run("CRY-13", func(t *testing.T) {
		d := withKey(refused, sceptest.RSA1024(), "RSA 1024")
		wantFail(t, d.Send(t, d.PKCSReq(t)), scep.BadAlg, "")
		small := shortKey(t)
		d = newConformer(refused)
		m := d.PKCSReq(t)
		m.CSR = small.csr(t)
		m.Envelope.Content = m.CSR
		wantFail(t, d.Send(t, m), scep.BadRequest, unreadable)

		m = d.PKCSReq(t)
		m.Key, m.Certificate = small, sceptest.Certificate{Key: small, PublicKey: small.spki}.DER()
		wantFail(t, d.Send(t, m), scep.BadAlg, "")
	})
	c.run("CRY-14", func(t *testing.T) {
		n := sceptest.RSA(0).N
		for name, key := range map[string][]byte{
			"exponent 1":            rsaSPKI(n, big.NewInt(1)),
			"exponent 0":            rsaSPKI(n, new(big.Int)),
			"exponent even":         rsaSPKI(n, big.NewInt(65536)),
			"exponent of 2048 bits": rsaSPKI(n, new(big.Int).Sub(n, big.NewInt(2))),
			"modulus even":          rsaSPKI(new(big.Int).Add(n, big.NewInt(1)), big.NewInt(65537)),
			"modulus negative":      rsaSPKI(new(big.Int).Neg(n), big.NewInt(65537)),
			"modulus 0":             rsaSPKI(new(big.Int), big.NewInt(65537)),
			"modulus of 16384 bits": rsaSPKI(new(big.Int).SetBit(new(big.Int).Set(n), 16383, 1), big.NewInt(65537)),
		} {
			started := time.Now()
			d := newConformer(refused)
			m := d.PKCSReq(t)
			m.Certificate = sceptest.Certificate{Key: d.Key, PublicKey: key}.DER()
			if name == "exponent 1" { // anybody can sign for it
				m.Signature = func([]byte) []byte { return forged(n) }
			}
			wantFail(t, d.Send(t, m), scep.BadAlg, "")

			csr := d.CSR()
			csr.PublicKey = key
			m = d.Request(t, sceptest.TypePKCSReq, csr)
			wantFail(t, d.Send(t, m), scep.BadRequest, unreadable)
			if took := time.Since(started); took > 10*time.Second {
				t.Errorf("%s: took %v", name, took)
			}
		}
	})
	c.run("CRY-15", func(t *testing.T) {
		bends(t, srv, map[string]bend{
			"absent": func(m *sceptest.Message) { m.DigestNull = false },
			"NULL":   func(m *sceptest.Message) { m.DigestNull = true },
		}, ok)
	})
	c.run("CRY-16", func(t *testing.T) {
		bends(t, refused, map[string]bend{
			"AuthEnvelopedData": func(m *sceptest.Message) { m.Envelope.Type = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 1, 23} },
		}, fails(scep.BadRequest, unreadable))
		gcm := sceptest.TLV(0x30, sceptest.TLV(sceptest.TagOctetString, make([]byte, 12)))
		bends(t, refused, map[string]bend{"AES-GCM": contentAlgorithm(gcm, 2, 16, 840, 1, 101, 3, 4, 1, 6)}, fails(scep.BadAlg, ""))
	})
}

// rsaSPKI is the SubjectPublicKeyInfo of any two numbers.
func rsaSPKI(n, e *big.Int) []byte {
	number := func(n *big.Int) []byte {
		der, err := asn1.Marshal(n)
		if err != nil {
			panic(err)
		}
		return der
	}
	return sceptest.TLV(0x30, sceptest.Algorithm(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}, []byte{5, 0}),
		sceptest.BitString(sceptest.TLV(0x30, number(n), number(e))))
}

// padded is what an RSA signature with PKCS #1 v1.5 and SHA-256 opens to.
func padded(hash []byte, size int) []byte {
	info := sceptest.TLV(0x30, sceptest.Algorithm(asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}, []byte{5, 0}), sceptest.TLV(4, hash))
	out := append([]byte{0, 1}, bytes.Repeat([]byte{0xff}, size-len(info)-3)...)
	return append(append(out, 0), info...)
}

// forged is a signature for exponent 1 over nothing in particular: the form is right.
func forged(n *big.Int) []byte {
	sum := sha256.Sum256(nil)
	return padded(sum[:], (n.BitLen()+7)/8)
}

// A tiny is an RSA key of 512 bits, which crypto/rsa neither makes nor uses.
type tiny struct {
	n, d *big.Int
	spki []byte
}

func shortKey(t *testing.T) *tiny {
	t.Helper()
	e, one := big.NewInt(65537), big.NewInt(1)
	for {
		p, err := rand.Prime(rand.Reader, 256)
		if err != nil {
			t.Fatal(err)
		}
		q, err := rand.Prime(rand.Reader, 256)
		if err != nil {
			t.Fatal(err)
		}
		n := new(big.Int).Mul(p, q)
		phi := new(big.Int).Mul(p.Sub(p, one), q.Sub(q, one))
		if d := new(big.Int).ModInverse(e, phi); d != nil {
			return &tiny{n, d, rsaSPKI(n, e)}
		}
	}
}

// Public implements crypto.Signer: it is enough to tell that the key is RSA.
func (k *tiny) Public() crypto.PublicKey { return &rsa.PublicKey{N: k.n, E: 65537} }

// Sign implements crypto.Signer.
func (k *tiny) Sign(_ io.Reader, hash []byte, _ crypto.SignerOpts) ([]byte, error) {
	m := new(big.Int).SetBytes(padded(hash, 64))
	return m.Exp(m, k.d, k.n).FillBytes(make([]byte, 64)), nil
}

func (k *tiny) csr(t *testing.T) []byte {
	t.Helper()
	return sceptest.CSR{Key: k, PublicKey: k.spki, Challenge: sceptest.Secret}.DER()
}

func publicRSA(cert *x509.Certificate) *rsa.PublicKey { return cert.PublicKey.(*rsa.PublicKey) }

func spki(pub crypto.PublicKey) []byte {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		panic(err)
	}
	return der
}
