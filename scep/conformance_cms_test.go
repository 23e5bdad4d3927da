package scep_test

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// attributes bends the signed attributes.
func attributes(edit func([]sceptest.Attribute) []sceptest.Attribute) bend {
	return func(m *sceptest.Message) { m.Attributes = edit }
}

func printable(s string) []byte { return sceptest.TLV(sceptest.TagPrintableString, []byte(s)) }

func TestConformanceCMS(t *testing.T) {
	c := newTable(t, "CMS")
	srv := newServer(t, scep.Config{})
	refused := newServer(t, scep.Config{})
	t.Cleanup(func() { wantNothingIssued(t, refused) })
	signingTime := sceptest.Attribute{Type: sceptest.OIDSigningTime, Values: [][]byte{sceptest.UTCTime(time.Now())}}
	randomNonce := sceptest.Attribute{Type: oidRandomExt, Values: [][]byte{sceptest.TLV(4, sceptest.Nonce(16))}}
	keyID := sceptest.Nonce(20)
	withKeyID := func(m *sceptest.Message) {
		m.Certificate = sceptest.Certificate{Key: m.Key, Extensions: []pkix.Extension{sceptest.SubjectKeyID(keyID)}}.DER()
	}
	stranger := newCA(t, sceptest.RSA(5)).Certificate()
	agreement := sceptest.Recipient{Raw: sceptest.TLV(0xa1, sceptest.Integer(3), sceptest.TLV(0xa0, sceptest.TLV(0x30)))}

	for id, cases := range map[string]map[string]bend{
		"CMS-01": {
			"message":  func(m *sceptest.Message) { m.Indefinite = true },
			"envelope": func(m *sceptest.Message) { m.Envelope.Indefinite = true },
			"all": func(m *sceptest.Message) {
				m.Indefinite, m.Envelope.Indefinite, m.Pieces, m.Envelope.Pieces = true, true, 1000, 1000
			},
		},
		"CMS-02": {
			"1000":             func(m *sceptest.Message) { m.Pieces = 1000 },
			"7":                func(m *sceptest.Message) { m.Pieces = 7 },
			"1000, indefinite": func(m *sceptest.Message) { m.Pieces, m.Indefinite = 1000, true },
		},
		"CMS-03": {
			"1000":           func(m *sceptest.Message) { m.Envelope.Pieces = 1000 },
			"16":             func(m *sceptest.Message) { m.Envelope.Pieces = 16 },
			"13, indefinite": func(m *sceptest.Message) { m.Envelope.Pieces, m.Envelope.Indefinite = 13, true },
		},
		"CMS-04": {"reversed": func(m *sceptest.Message) { m.Attributes, m.Order = sceptest.Reverse, sceptest.AsListed }},
		"CMS-05": {"reversed": func(m *sceptest.Message) { m.Attributes, m.Order = sceptest.Reverse, sceptest.SignSorted }},
		"CMS-06": {"named by key": func(m *sceptest.Message) { withKeyID(m); m.KeyID = keyID }},
		"CMS-07": {"named by key": func(m *sceptest.Message) { m.Envelope.Recipients[0].KeyID = true }},
		"CMS-08": {
			"second of three": func(m *sceptest.Message) {
				m.Envelope.Recipients = []sceptest.Recipient{agreement, m.Envelope.Recipients[0], {Certificate: stranger}}
				m.Envelope.Version = 2
			},
			"twice": func(m *sceptest.Message) {
				m.Envelope.Recipients = append(m.Envelope.Recipients, m.Envelope.Recipients[0])
			},
		},
		"CMS-09": {"two": attributes(sceptest.With(signingTime, randomNonce))},
		"CMS-10": {"two": func(m *sceptest.Message) { m.Unsigned = []sceptest.Attribute{signingTime, randomNonce} }},
		"CMS-11": {
			"LF":    func(m *sceptest.Message) { m.Trailer = []byte("\n") },
			"CR LF": func(m *sceptest.Message) { m.Trailer = []byte("\r\n") },
			"NUL":   func(m *sceptest.Message) { m.Trailer = []byte{0, 0} },
		},
		"CMS-18": {
			"UTF8String": func(m *sceptest.Message) {
				r := &m.Envelope.Recipients[0]
				r.Issuer = bytes.ReplaceAll(r.Certificate.RawIssuer, []byte{sceptest.TagPrintableString, 8}, []byte{sceptest.TagUTF8String, 8})
				if bytes.Equal(r.Issuer, r.Certificate.RawIssuer) {
					panic("the name has no PrintableString of 8 characters")
				}
			},
		},
		"CMS-19": {
			"as in RFC samples": func(m *sceptest.Message) {
				m.Order = sceptest.AsListed
				m.Attributes = func(a []sceptest.Attribute) []sceptest.Attribute {
					return []sceptest.Attribute{a[3], randomNonce, a[2], signingTime, a[1], a[4], a[0]}
				}
			},
		},
	} {
		c.run(id, func(t *testing.T) { bends(t, srv, cases, ok) })
	}

	malformed := map[string]map[string]bend{
		"CMS-12": {
			"eContentType":   func(m *sceptest.Message) { m.ContentType = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 3} },
			"id-signedData":  func(m *sceptest.Message) { m.ContentType = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2} },
			"trailing bytes": func(m *sceptest.Message) { m.Trailer = []byte{5, 0} },
		},
		"CMS-13": {
			"direct signature": func(m *sceptest.Message) { m.NoSignedAttrs = true },
			"empty":            attributes(func([]sceptest.Attribute) []sceptest.Attribute { return nil }),
		},
		"CMS-14": {"no SignerInfo": func(m *sceptest.Message) { m.SignerInfos = func([][]byte) [][]byte { return nil } }},
		"CMS-21": {
			"type: two values":           attributes(sceptest.Replace(sceptest.OIDMessageType, printable("19"), printable("20"))),
			"type: the same value twice": attributes(sceptest.Replace(sceptest.OIDMessageType, printable("19"), printable("19"))),
			"type: no value":             attributes(sceptest.Replace(sceptest.OIDMessageType)),
			"type: occurs twice":         attributes(sceptest.With(sceptest.Attribute{Type: sceptest.OIDMessageType, Values: [][]byte{printable("20")}})),
			"digest: occurs twice":       attributes(sceptest.With(sceptest.Attribute{Type: sceptest.OIDMessageDigest, Values: [][]byte{sceptest.TLV(4, make([]byte, 32))}})),
			"unknown: occurs twice":      attributes(sceptest.With(randomNonce, randomNonce)),
		},
		"CMS-22": {
			"second bad": func(m *sceptest.Message) {
				m.SignerInfos = func(i [][]byte) [][]byte { return [][]byte{i[0], flip(i[0])} }
			},
			"first bad": func(m *sceptest.Message) {
				m.SignerInfos = func(i [][]byte) [][]byte { return [][]byte{flip(i[0]), i[0]} }
			},
			"both valid": func(m *sceptest.Message) { m.SignerInfos = func(i [][]byte) [][]byte { return [][]byte{i[0], i[0]} } },
			"one hundred": func(m *sceptest.Message) {
				m.SignerInfos = func(i [][]byte) [][]byte { return slicesRepeat(i[0], 100) }
			},
		},
	}
	for id, cases := range malformed {
		c.run(id, func(t *testing.T) { bends(t, refused, cases, badHTTP) })
	}
	c.run("CMS-15", func(t *testing.T) {
		bends(t, refused, map[string]bend{
			"none":    func(m *sceptest.Message) { m.Bag = [][]byte{} },
			"another": func(m *sceptest.Message) { m.Bag = [][]byte{stranger.Raw} },
			"by key":  func(m *sceptest.Message) { withKeyID(m); m.KeyID = sceptest.Nonce(20) },
		}, fails(scep.BadMessageCheck, ""))
	})
	c.run("CMS-16", func(t *testing.T) {
		certsOnly := func(m *sceptest.Message) []byte {
			return sceptest.TLV(0x30, sceptest.OID(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}), sceptest.TLV(0xa0, sceptest.TLV(0x30,
				sceptest.Integer(1), sceptest.TLV(0x31), sceptest.TLV(0x30, sceptest.OID(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1})),
				sceptest.TLV(0xa0, m.Certificate), sceptest.TLV(0x31))))
		}
		bends(t, refused, map[string]bend{
			"CSR":        func(m *sceptest.Message) { m.Content = m.CSR },
			"certs-only": func(m *sceptest.Message) { m.Content = certsOnly(m) },
			"empty":      func(m *sceptest.Message) { m.Content = []byte{} },
			"absent":     func(m *sceptest.Message) { m.NoContent = true },
		}, fails(scep.BadRequest, unreadable))
		// Without a signer as well, as some small clients have it.
		d := newConformer(refused)
		m := d.PKCSReq(t)
		wantHTTP(t, d.SendBytes(t, m, m.CSR), http.StatusBadRequest)
		wantHTTP(t, d.SendBytes(t, m, m.Envelope.BER()), http.StatusBadRequest)
	})
	c.run("CMS-17", func(t *testing.T) {
		bends(t, refused, map[string]bend{
			"other": func(m *sceptest.Message) { m.Envelope.Recipients[0].Certificate = stranger },
			"key": func(m *sceptest.Message) {
				m.Envelope.Recipients = []sceptest.Recipient{{Certificate: withID(stranger), KeyID: true}}
			},
			"agreement": func(m *sceptest.Message) {
				m.Envelope.Recipients, m.Envelope.Version = []sceptest.Recipient{agreement}, 2
			},
		}, fails(scep.BadRequest, ""))
	})
	c.run("CMS-20", func(t *testing.T) {
		d := newConformer(refused)
		m := d.PKCSReq(t)
		for name, body := range map[string][]byte{
			"10 000 levels":        []byte("0\x80" + strings.Repeat("\x30\x80", 10_000)),
			"closed":               []byte(strings.Repeat("\x30\x80", 10_000) + strings.Repeat("\x00\x00", 10_000)),
			"strings":              []byte("0\x80" + strings.Repeat("\x24\x80", 10_000)),
			"20 000 elements":      sceptest.TLV(0x30, bytes.Repeat([]byte{5, 0}, 20_000)),
			"length 2^63":          {0x30, 0x88, 0x80, 0, 0, 0, 0, 0, 0, 0, 1},
			"length 2^64-1":        {0x30, 0x88, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1},
			"length of 126 octets": append([]byte{0x30, 0xfe}, bytes.Repeat([]byte{0xff}, 126)...),
			"length reserved":      {0x30, 0xff, 0, 0},
			"long tag":             {0x3f, 0x1f, 0xff, 0xff, 0xff, 0x7f},
			"end of contents":      {0x30, 0x02, 0, 0},
		} {
			started := time.Now()
			wantHTTP(t, d.SendBytes(t, m, body), http.StatusBadRequest)
			if took := time.Since(started); took > 10*time.Second {
				t.Errorf("%s: took %v", name, took)
			}
		}
		inner := bytes.Repeat([]byte{0x30, 0x80}, 5000)
		bends(t, refused, map[string]bend{
			"in eContent":     func(m *sceptest.Message) { m.Content = inner },
			"in the envelope": func(m *sceptest.Message) { m.Envelope.Content, m.CSR = inner, nil },
		}, fails(scep.BadRequest, unreadable))
	})
}

// withID returns a copy of cert with another key identifier.
func withID(cert *x509.Certificate) *x509.Certificate {
	c := *cert
	c.SubjectKeyId = bytes.Repeat([]byte{7}, 20)
	return &c
}

func slicesRepeat(b []byte, n int) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		out[i] = b
	}
	return out
}

func TestConformanceATT(t *testing.T) {
	c := newTable(t, "ATT")
	srv := newServer(t, scep.Config{})
	refused := newServer(t, scep.Config{Renewal: scep.Renewal{On: true}})
	t.Cleanup(func() { wantNothingIssued(t, refused) })
	id := func(tag byte, s string) bend {
		return func(m *sceptest.Message) { m.TransactionIDTag, m.TransactionID = tag, s }
	}
	kind := func(s string) bend { return func(m *sceptest.Message) { m.Type = s } }

	c.run("ATT-01", func(t *testing.T) {
		bends(t, refused, map[string]bend{"absent": attributes(sceptest.Without(sceptest.OIDMessageType)), "empty": kind("")}, badHTTP)
	})
	c.run("ATT-02", func(t *testing.T) {
		bends(t, refused, map[string]bend{"absent": attributes(sceptest.Without(sceptest.OIDTransactionID))}, badHTTP)
	})
	for id, cases := range map[string]map[string]bend{
		"ATT-03": {"absent": func(m *sceptest.Message) { m.SenderNonce = nil }},
		"ATT-04": {
			"8":  func(m *sceptest.Message) { m.SenderNonce = sceptest.Nonce(8) },
			"1":  func(m *sceptest.Message) { m.SenderNonce = sceptest.Nonce(1) },
			"32": func(m *sceptest.Message) { m.SenderNonce = sceptest.Nonce(32) },
			"64": func(m *sceptest.Message) { m.SenderNonce = sceptest.Nonce(64) },
		},
		"ATT-05": {
			"UTF8String":   id(sceptest.TagUTF8String, "Transaktion für Jörg"),
			"IA5String":    id(sceptest.TagIA5String, "user@example.com"),
			"OCTET STRING": id(sceptest.TagOctetString, "octets"),
		},
		"ATT-06": {
			"blank":         id(0, "SSCEP transactionId"),
			"base64":        id(0, "4vd7b9X2qLhV+/m1P0w5zg=="),
			"1":             id(0, "1"),
			"0":             id(0, "0"),
			"255":           id(0, strings.Repeat("A", 255)),
			"not printable": id(0, "a_b@c*d&e"),
		},
		"ATT-12": {
			"pkiStatus":      attributes(sceptest.With(sceptest.Attribute{Type: sceptest.OIDPKIStatus, Values: [][]byte{printable("0")}})),
			"recipientNonce": attributes(sceptest.With(sceptest.Attribute{Type: sceptest.OIDRecipientNonce, Values: [][]byte{sceptest.TLV(4, sceptest.Nonce(16))}})),
			"failInfo":       attributes(sceptest.With(sceptest.Attribute{Type: sceptest.OIDFailInfo, Values: [][]byte{printable("2")}})),
		},
		"ATT-13": {
			"1 hour":   attributes(sceptest.With(sceptest.Attribute{Type: sceptest.OIDSigningTime, Values: [][]byte{sceptest.UTCTime(time.Now().Add(time.Hour))}})),
			"10 years": attributes(sceptest.With(sceptest.Attribute{Type: sceptest.OIDSigningTime, Values: [][]byte{sceptest.UTCTime(time.Now().AddDate(-10, 0, 0))}})),
			"1970":     attributes(sceptest.With(sceptest.Attribute{Type: sceptest.OIDSigningTime, Values: [][]byte{sceptest.UTCTime(time.Unix(0, 0))}})),
		},
	} {
		c.run(id, func(t *testing.T) { bends(t, srv, cases, ok) }) // what is echoed is checked with every reply
	}
	c.run("ATT-07", func(t *testing.T) {
		bends(t, refused, map[string]bend{
			"empty":       id(0, ""),
			"256":         id(0, strings.Repeat("A", 256)),
			"NUL":         id(0, "a\x00b"),
			"new line":    id(0, "a\nlevel=ERROR msg=forged"),
			"escape":      id(sceptest.TagUTF8String, "\x1b[31m"),
			"no UTF-8":    id(0, "\xff\xfe"),
			"BIT STRING":  id(sceptest.TagBitString, "\x00abc"),
			"nonce of 65": func(m *sceptest.Message) { m.SenderNonce = sceptest.Nonce(65) },
			"nonce of 0":  func(m *sceptest.Message) { m.SenderNonce = []byte{} },
		}, badHTTP)
		bends(t, refused, map[string]bend{"100 kB": id(0, strings.Repeat("A", 100_000))}, func(t *testing.T, _ *sceptest.Message, r *sceptest.Reply) {
			wantHTTP(t, r, http.StatusRequestEntityTooLarge)
		})
	})
	c.run("ATT-08", func(t *testing.T) {
		bends(t, refused, map[string]bend{
			"0": kind("0"), "1": kind("1"), "99": kind("99"), "41": kind("41"), "19 ": kind("19 "), " 19": kind(" 19"), "0019": kind("0019"),
			"+19": kind("+19"), "19.": kind("19."), "PKCSReq": kind("PKCSReq"), "1919": kind("1919"),
		}, fails(scep.BadRequest, "message type is not supported"))
		bends(t, refused, map[string]bend{
			"INTEGER":    func(m *sceptest.Message) { m.TypeTag, m.Type = sceptest.TagInteger, "\x13" },
			"UTF8String": func(m *sceptest.Message) { m.TypeTag = sceptest.TagUTF8String },
		}, badHTTP)
	})
	c.run("ATT-09", func(t *testing.T) {
		bends(t, refused, map[string]bend{"UpdateReq": kind("18")}, fails(scep.BadRequest, ""))
	})
	c.run("ATT-10", func(t *testing.T) {
		bends(t, refused, map[string]bend{"CertRep": kind("3")}, fails(scep.BadRequest, ""))
	})
	c.run("ATT-11", func(t *testing.T) {
		names := sceptest.TLV(0x30, sceptest.CN("CA"), sceptest.CN("device"))
		serial := sceptest.TLV(0x30, sceptest.CN("CA"), sceptest.Integer(5))
		holds := func(s string, content []byte) bend {
			return func(m *sceptest.Message) {
				if m.Type = s; content != nil {
					m.Envelope.Content = content
				}
			}
		}
		bends(t, refused, map[string]bend{
			"PKCSReq with names":    holds("19", names),
			"PKCSReq with serial":   holds("19", serial),
			"RenewalReq with names": holds("17", names),
			"PKCSReq with nothing":  holds("19", []byte{}),
			"PKCSReq with a NULL":   holds("19", []byte{5, 0}),
		}, fails(scep.BadRequest, unreadable))
		bends(t, refused, map[string]bend{"CertPoll with CSR": holds("20", nil), "CertPoll with serial": holds("20", serial)}, fails(scep.BadRequest, "no such transaction"))
		bends(t, refused, map[string]bend{"GetCert with CSR": holds("21", nil), "GetCert with names": holds("21", names)}, fails(scep.BadCertID, "no such certificate"))
	})
	c.run("ATT-14", func(t *testing.T) {
		bends(t, refused, map[string]bend{
			"contentType absent":   attributes(sceptest.Without(sceptest.OIDContentType)),
			"contentType another":  attributes(sceptest.Replace(sceptest.OIDContentType, sceptest.OID(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 3}))),
			"messageDigest absent": attributes(sceptest.Without(sceptest.OIDMessageDigest)),
		}, fails(scep.BadMessageCheck, ""))
	})
}
