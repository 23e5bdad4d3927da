package scep_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// envelopeBreaks are ways to break a request from the private-key operation to the CSR. Whoever
// sends them must not learn from the answer what was wrong.
var envelopeBreaks = map[string]bend{
	"padding":         func(m *sceptest.Message) { m.Envelope.Pad = func(b []byte) []byte { return zeroPad(b, 0) } },
	"padding of 17":   func(m *sceptest.Message) { m.Envelope.Pad = func(b []byte) []byte { return zeroPad(b, 17) } },
	"padding unequal": func(m *sceptest.Message) { m.Envelope.Pad = func(b []byte) []byte { return zeroPad(b, 2) } },
	"last block": func(m *sceptest.Message) {
		m.Envelope.Ciphertext = func(b []byte) []byte { b[len(b)-1] ^= 1; return b }
	},
	"last block but one": func(m *sceptest.Message) {
		m.Envelope.Ciphertext = func(b []byte) []byte { b[len(b)-17] ^= 1; return b }
	},
	"first block":       func(m *sceptest.Message) { m.Envelope.Ciphertext = func(b []byte) []byte { b[0] ^= 1; return b } },
	"half a block":      func(m *sceptest.Message) { m.Envelope.Ciphertext = func(b []byte) []byte { return b[:len(b)-8] } },
	"no ciphertext":     func(m *sceptest.Message) { m.Envelope.Ciphertext = func(b []byte) []byte { return nil } },
	"one block":         func(m *sceptest.Message) { m.Envelope.Ciphertext = func(b []byte) []byte { return b[:16] } },
	"IV of 8":           contentAlgorithm(sceptest.TLV(4, make([]byte, 8)), 2, 16, 840, 1, 101, 3, 4, 1, 2),
	"no IV":             contentAlgorithm(nil, 2, 16, 840, 1, 101, 3, 4, 1, 2),
	"key of 15":         func(m *sceptest.Message) { m.Envelope.Recipients[0].Key = sceptest.Nonce(15) },
	"key of 24":         func(m *sceptest.Message) { m.Envelope.Recipients[0].Key = sceptest.Nonce(24) },
	"key of 0":          func(m *sceptest.Message) { m.Envelope.Recipients[0].Key = []byte{} },
	"another key":       func(m *sceptest.Message) { m.Envelope.Recipients[0].Key = sceptest.Nonce(16) },
	"RSA garbage":       encryptedKey(func(b []byte) []byte { return append([]byte{0}, sceptest.Nonce(len(b)-1)...) }),
	"RSA short":         encryptedKey(func(b []byte) []byte { return b[1:] }),
	"RSA long":          encryptedKey(func(b []byte) []byte { return append(b, 0) }),
	"RSA empty":         encryptedKey(func(b []byte) []byte { return nil }),
	"RSA 0":             encryptedKey(func(b []byte) []byte { return make([]byte, len(b)) }),
	"RSA above modulus": encryptedKey(func(b []byte) []byte { return bytes.Repeat([]byte{0xff}, len(b)) }),
	"RSA block type 1":  rawBlock(append([]byte{0, 1}, bytes.Repeat([]byte{0xff}, 100)...)),
	"RSA no zero":       rawBlock(append([]byte{0, 2}, bytes.Repeat([]byte{0xff}, 254)...)),
	"OAEP v1.5 named": func(m *sceptest.Message) {
		r := &m.Envelope.Recipients[0]
		r.OAEP, r.Algorithm = &sceptest.OAEP{}, plainTransport
	},
	"v1.5, OAEP named":   func(m *sceptest.Message) { m.Envelope.Recipients[0].Algorithm = oaepTransport },
	"CSR signature":      resign(func(c *sceptest.CSR) { c.Signature = flip }),
	"CSR by another key": resign(func(c *sceptest.CSR) { c.PublicKey = spki(sceptest.RSA(5).Public()) }),
	"CSR truncated":      func(m *sceptest.Message) { m.Envelope.Content = m.CSR[:len(m.CSR)-1] },
	"CSR and more":       func(m *sceptest.Message) { m.Envelope.Content = append(bytes.Clone(m.CSR), 0) },
	"CSR garbage":        func(m *sceptest.Message) { m.Envelope.Content = sceptest.Nonce(500) },
	"nothing":            func(m *sceptest.Message) { m.Envelope.Content = nil },
	"two challenges": resign(func(c *sceptest.CSR) {
		c.Attributes = [][]byte{sceptest.Attr(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}, printable("x"))}
	}),
	"enveloped again":   func(m *sceptest.Message) { m.Envelope.Content = m.Envelope.BER() },
	"type of content":   func(m *sceptest.Message) { m.Envelope.EncType = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2} },
	"type of envelope":  func(m *sceptest.Message) { m.Envelope.Type = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 6} },
	"version":           func(m *sceptest.Message) { m.Envelope.Version = 7 },
	"no recipients":     func(m *sceptest.Message) { m.Envelope.Recipients = nil },
	"65 recipients":     func(m *sceptest.Message) { m.Envelope.Recipients = manyRecipients(m, 65) },
	"content no CMS":    func(m *sceptest.Message) { m.Content = []byte("hello") },
	"content truncated": func(m *sceptest.Message) { m.Content = m.Envelope.BER()[:200] },
}

var (
	plainTransport = sceptest.Algorithm(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}, []byte{5, 0})
	oaepTransport  = sceptest.Algorithm(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}, sceptest.TLV(0x30))
)

// zeroPad fills the last block with zeros, but for the last byte, which says how long the
// padding is.
func zeroPad(b []byte, n byte) []byte {
	out := append(bytes.Clone(b), make([]byte, 32-len(b)%16)...)
	out[len(out)-1] = n
	return out
}

func encryptedKey(edit func([]byte) []byte) bend {
	return func(m *sceptest.Message) { m.Envelope.Recipients[0].EncryptedKey = edit }
}

// rawBlock encrypts what begins with prefix and goes on with zeros, without any padding scheme.
func rawBlock(prefix []byte) bend {
	return func(m *sceptest.Message) {
		r := &m.Envelope.Recipients[0]
		r.EncryptedKey = func(b []byte) []byte {
			pub := r.Certificate.PublicKey.(interface{ Size() int })
			block := make([]byte, pub.Size())
			copy(block, prefix)
			return rawRSA(r.Certificate, block)
		}
	}
}

func rawRSA(cert *x509.Certificate, block []byte) []byte {
	pub := publicRSA(cert)
	c := new(big.Int).Exp(new(big.Int).SetBytes(block), big.NewInt(int64(pub.E)), pub.N)
	return c.FillBytes(make([]byte, len(block)))
}

func manyRecipients(m *sceptest.Message, n int) []sceptest.Recipient {
	all := make([]sceptest.Recipient, n)
	for i := range all {
		all[i] = m.Envelope.Recipients[0]
	}
	return all
}

func TestConformanceFAI(t *testing.T) {
	c := newTable(t, "FAI")
	srv := newServer(t, scep.Config{})
	refused := newServer(t, scep.Config{})
	t.Cleanup(func() { wantNothingIssued(t, refused) })

	signature := map[string]bend{
		"bit":         func(m *sceptest.Message) { m.Signature = flip },
		"empty":       func(m *sceptest.Message) { m.Signature = func([]byte) []byte { return nil } },
		"short":       func(m *sceptest.Message) { m.Signature = func(b []byte) []byte { return b[1:] } },
		"zero":        func(m *sceptest.Message) { m.Signature = func(b []byte) []byte { return make([]byte, len(b)) } },
		"another key": func(m *sceptest.Message) { m.Key = sceptest.RSA(5) },
	}
	digest := map[string]bend{
		"bit":   func(m *sceptest.Message) { m.MessageDigest = flip },
		"empty": func(m *sceptest.Message) { m.MessageDigest = func([]byte) []byte { return nil } },
		"SHA-1": func(m *sceptest.Message) { m.MessageDigest = func(b []byte) []byte { return b[:20] } },
	}
	ciphertext := map[string]bend{"last block": envelopeBreaks["last block"]}
	csr := map[string]bend{"signature": envelopeBreaks["CSR signature"], "another key": envelopeBreaks["CSR by another key"]}
	wrong := map[string]bend{}
	for _, challenge := range []string{"wrong", "secre", "secret1", "SECRET", "secret ", "secret\x00"} {
		wrong[challenge] = resign(func(c *sceptest.CSR) { c.Challenge = challenge })
	}
	wrong["8 kB"] = resign(func(c *sceptest.CSR) { c.Challenge = strings.Repeat("x", 8<<10) })
	none := map[string]bend{"none": resign(func(c *sceptest.CSR) { c.Challenge = "" })}

	c.run("FAI-01", func(t *testing.T) { bends(t, refused, signature, fails(scep.BadMessageCheck, "")) })
	c.run("FAI-02", func(t *testing.T) { bends(t, refused, digest, fails(scep.BadMessageCheck, "")) })
	c.run("FAI-03", func(t *testing.T) { bends(t, refused, ciphertext, fails(scep.BadRequest, unreadable)) })
	c.run("FAI-04", func(t *testing.T) { bends(t, refused, csr, fails(scep.BadRequest, unreadable)) })
	c.run("FAI-05", func(t *testing.T) { bends(t, refused, wrong, fails(scep.BadRequest, "")) })
	c.run("FAI-06", func(t *testing.T) { bends(t, refused, none, fails(scep.BadRequest, "")) })
	c.run("FAI-07", func(t *testing.T) {
		srv := newServer(t, scep.Config{Challenge: oneTime("once")})
		first, second := newConformer(srv), newConformer(srv)
		first.Challenge, second.Challenge = "once", "once"
		cert := first.Enroll(t)
		wantFail(t, second.Send(t, second.PKCSReq(t)), scep.BadRequest, "")
		if again := first.Enroll(t); !again.Equal(cert) {
			t.Error("the same request got another certificate")
		}
	})
	c.run("FAI-08", func(t *testing.T) { // INV-11 to INV-13 are checked with every reply
		for _, absent := range []bool{false, true} {
			srv := newServer(t, scep.Config{AbsentContent: absent, NoFailInfoText: absent})
			for _, cases := range []map[string]bend{signature, digest, ciphertext, csr, none} {
				bends(t, srv, cases, func(t *testing.T, _ *sceptest.Message, r *sceptest.Reply) {
					if _, refused := r.Refusal(); !refused {
						t.Errorf("answer is %v", r)
					}
					if r.HasContent == absent {
						t.Errorf("eContent is there: %t", r.HasContent)
					}
					if (r.FailInfoText == "") != absent {
						t.Errorf("failInfoText is %q", r.FailInfoText)
					}
				})
			}
			wantNothingIssued(t, srv)
		}
	})
	c.run("FAI-09", func(t *testing.T) {
		// From here on only the nonces and the signature may differ.
		srv := newServer(t, scep.Config{Renewal: scep.Renewal{On: true, Anytime: true}})
		d, cert := holder(t, srv)
		for _, d := range []*sceptest.Device{d, d.As(cert, d.Key)} {
			for _, kind := range []string{sceptest.TypePKCSReq, sceptest.TypeRenewalReq} {
				var want []byte
				for name, change := range envelopeBreaks {
					m := d.Request(t, kind, d.CSR())
					change(m)
					r := d.Send(t, m)
					wantFail(t, r, scep.BadRequest, unreadable)
					got := masked(r)
					if want == nil {
						want = got
					}
					if !bytes.Equal(got, want) {
						t.Errorf("type %s, %s: the answer can be told from the others:\n%x\n%x", kind, name, got, want)
					}
				}
			}
		}
		if n := issued(t, srv); n != 1 {
			t.Errorf("%d certificates", n)
		}
	})
	c.run("FAI-10", func(t *testing.T) {
		for _, cases := range []map[string]bend{signature, digest, wrong, none, envelopeBreaks} {
			bends(t, refused, cases, func(t *testing.T, m *sceptest.Message, r *sceptest.Reply) {
				if len(r.FailInfoText) > 200 || strings.ContainsAny(r.FailInfoText, "/\\\n{}") || strings.Contains(r.FailInfoText, "goroutine") ||
					strings.Contains(r.FailInfoText, sceptest.Secret) {
					t.Errorf("failInfoText is %q", r.FailInfoText)
				}
			})
		}
		long := newServer(t, scep.Config{Challenge: scep.ChallengeFunc(func(context.Context, *scep.Request) error {
			return scep.Reject(scep.BadRequest, strings.Repeat("ä\n", 200))
		})})
		bends(t, long, map[string]bend{"long": func(*sceptest.Message) {}}, func(t *testing.T, _ *sceptest.Message, r *sceptest.Reply) {
			if wantFail(t, r, scep.BadRequest, ""); strings.Contains(r.FailInfoText, "\n") {
				t.Errorf("failInfoText is %q", r.FailInfoText)
			}
		})
	})
	c.run("FAI-11", backEndDown)
	c.run("FAI-12", func(t *testing.T) {
		cases := map[string]bend{}
		for name, tag := range map[string]byte{"PrintableString": 0x13, "UTF8String": 0x0c, "IA5String": 0x16, "T61String": 0x14, "BMPString": 0x1e, "UniversalString": 0x1c, "VisibleString": 0x1a} {
			cases[name] = resign(func(c *sceptest.CSR) {
				c.Subject, c.Challenge, c.ChallengeTag = sceptest.CN(name), sceptest.Secret, tag
			})
		}
		bends(t, srv, cases, ok)
	})
	c.run("FAI-13", func(t *testing.T) {
		values := func(v ...[]byte) bend {
			return resign(func(c *sceptest.CSR) { c.ChallengeValues = append([][]byte{}, v...) })
		}
		bends(t, refused, map[string]bend{"no value": values(), "empty": values(printable(""))}, func(t *testing.T, m *sceptest.Message, r *sceptest.Reply) {
			if wantFail(t, r, scep.BadRequest, ""); r.FailInfoText == unreadable {
				t.Error("the request could not be read")
			}
		})
		bends(t, refused, map[string]bend{
			"two":       values(printable(sceptest.Secret), printable("x")),
			"same":      values(printable(sceptest.Secret), printable(sceptest.Secret)),
			"a NULL":    values([]byte{5, 0}),
			"half BMP":  values(sceptest.TLV(sceptest.TagBMPString, []byte{0})),
			"not UTF-8": values(sceptest.TLV(sceptest.TagUTF8String, []byte{0xff})),
		}, fails(scep.BadRequest, unreadable))
	})
}

// visibleBreaks are those of the envelopeBreaks that everybody can see without the key.
var visibleBreaks = strings.Split("half a block,no ciphertext,IV of 8,no IV,OAEP v1.5 named,type of content,type of envelope,version,no recipients,65 recipients,content no CMS,content truncated", ",")

// TestEnvelopeOfOtherType puts an envelope, as somebody might have captured it, into messages of
// other types. Whether the inside is a good CSR, names, a serial number or garbage makes no
// difference.
func TestEnvelopeOfOtherType(t *testing.T) {
	t.Parallel()
	srv := pendingServer(t)
	d := newConformer(srv)
	wantPending(t, d.Send(t, d.PKCSReq(t)))
	cases := map[string]bend{
		"CSR": func(m *sceptest.Message) { m.Envelope.Content = d.CSR().DER() },
		"names": func(m *sceptest.Message) {
			m.Envelope.Content = sceptest.TLV(0x30, sceptest.CN("CA"), sceptest.CN("device"))
		},
		"serial": func(m *sceptest.Message) {
			m.Envelope.Content = sceptest.TLV(0x30, sceptest.CN("CA"), sceptest.Integer(5))
		},
		"NULL":    func(m *sceptest.Message) { m.Envelope.Content = []byte{5, 0} },
		"garbage": func(m *sceptest.Message) { m.Envelope.Content = sceptest.Nonce(333) },
	}
	for name, change := range envelopeBreaks {
		if !slices.Contains(visibleBreaks, name) {
			cases[name] = change
		}
	}
	for _, kind := range []string{sceptest.TypeCertPoll, sceptest.TypeGetCert} {
		var want []byte
		for name, change := range cases {
			m := d.PKCSReq(t) // some of the bends need a CSR
			m.Type = kind
			change(m)
			r := d.Send(t, m)
			if kind == sceptest.TypeCertPoll {
				wantPending(t, r)
			} else {
				wantFail(t, r, scep.BadCertID, "no such certificate")
			}
			got := masked(r)
			if want == nil {
				want = got
			}
			if !bytes.Equal(got, want) {
				t.Errorf("type %s, %s: the answer can be told from the others", kind, name)
			}
		}
	}
}

// masked is a reply without what must differ from one to the next.
func masked(r *sceptest.Reply) []byte {
	b := bytes.Clone(r.Body)
	for _, part := range [][]byte{r.SenderNonce, r.RecipientNonce} {
		b = bytes.ReplaceAll(b, part, make([]byte, len(part)))
	}
	return b[:len(b)-256] // the signature comes last
}

// oneTime admits the first request with secret, and that again.
func oneTime(secret string) scep.Challenge {
	var mu sync.Mutex
	var spentBy scep.ID
	return scep.ChallengeFunc(func(_ context.Context, req *scep.Request) error {
		mu.Lock()
		defer mu.Unlock()
		if req.Secret.Reveal() != secret || spentBy != "" && spentBy != req.ID {
			return scep.Reject(scep.BadRequest, "the challenge password is wrong")
		}
		spentBy = req.ID
		return nil
	})
}

// backEndDown takes away one part of the server after the other. Nothing is refused and nothing
// is lost.
func backEndDown(t *testing.T) {
	away := errors.New("device not found at /dev/ttyACM0")
	var broken atomic.Value
	broken.Store("")
	is := func(op string) error {
		if broken.Load() == op {
			return away
		}
		return nil
	}
	ca := newCA(t)
	ra := newRA(t, ca)
	ra.Key = sceptest.Key{Signer: ra.Key, On: func(op string) error { return is("RA " + op) }}
	memory := new(depot.Memory)
	srv := newServer(t, scep.Config{
		CA:        sceptest.CA{CA: ca, On: func(op string, _ *x509.Certificate) (bool, error) { return false, is("CA " + op) }},
		RA:        ra,
		Depot:     sceptest.Depot{Depot: memory, On: func(op string, _ *scep.Record) (bool, error) { return false, is("Depot " + op) }},
		Challenge: sceptest.Challenge{Challenge: challenge.Static(sceptest.Secret), On: func(op string, _ *scep.Request) (bool, error) { return false, is("Challenge " + op) }},
	})
	for i, op := range []string{"RA Sign", "RA Unwrap", "Depot Get", "Depot Create", "Depot Update", "Challenge Validate", "Challenge Confirm", "CA Sign"} {
		d := newConformer(srv)
		m := d.PKCSReq(t)
		broken.Store(op)
		r := d.Send(t, m)
		broken.Store("")
		if op == "CA Sign" {
			wantPending(t, r)
		} else {
			wantHTTP(t, r, http.StatusServiceUnavailable)
			if r.Header.Get("Retry-After") == "" {
				t.Errorf("%s: no Retry-After", op)
			}
			if bytes.Contains(r.Body, []byte("tty")) {
				t.Errorf("%s: answer is %q", op, r.Body)
			}
		}
		if op == "CA Sign" {
			r = d.Poll(t)
		} else {
			r = d.Send(t, m.Again())
		}
		if r.Certificate == nil {
			t.Errorf("%s: answer is %v after all is well again", op, r)
		}
		all, err := memory.List(t.Context(), scep.Query{State: scep.Issued})
		if err != nil || len(all) != i+1 {
			t.Errorf("%s: %d certificates, %v", op, len(all), err)
		}
	}
}
