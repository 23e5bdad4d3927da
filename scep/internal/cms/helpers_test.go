package cms

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"slices"
	"sync"
	"testing"
	"time"
)

// These write DER without the code under test, and break it where told to.

func tlv(tag byte, content ...[]byte) []byte {
	c := slices.Concat(content...)
	switch n := len(c); {
	case n < 0x80:
		return append([]byte{tag, byte(n)}, c...)
	case n < 0x100:
		return append([]byte{tag, 0x81, byte(n)}, c...)
	case n < 0x10000:
		return append([]byte{tag, 0x82, byte(n >> 8), byte(n)}, c...)
	default:
		return append([]byte{tag, 0x83, byte(n >> 16), byte(n >> 8), byte(n)}, c...)
	}
}

func seq(content ...[]byte) []byte         { return tlv(0x30, content...) }
func set(content ...[]byte) []byte         { return tlv(0x31, content...) }
func ctx(n byte, content ...[]byte) []byte { return tlv(0xa0|n, content...) }
func octets(b []byte) []byte               { return tlv(0x04, b) }
func oid(s string) []byte                  { return tlv(0x06, []byte(s)) }
func integer(n int64) []byte               { return must(asn1.Marshal(n)) }
func algID(s string, params ...[]byte) []byte {
	return seq(append([][]byte{oid(s)}, params...)...)
}

var null = []byte{5, 0}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// indefinite rewrites DER with indefinite lengths, and OCTET STRINGs in pieces of at most chunk
// bytes if that is not 0.
func indefinite(der []byte, chunk int) []byte {
	var out []byte
	for len(der) > 0 {
		var v asn1.RawValue
		rest, err := asn1.Unmarshal(der, &v)
		if err != nil {
			panic(err)
		}
		switch {
		case v.IsCompound:
			out = append(out, v.FullBytes[0], 0x80)
			out = append(out, indefinite(v.Bytes, chunk)...)
			out = append(out, 0, 0)
		case chunk > 0 && (v.FullBytes[0] == 0x04 || v.FullBytes[0] == 0x80 && len(v.Bytes) > 64):
			out = append(out, v.FullBytes[0]|0x20, 0x80)
			for c := range slices.Chunk(v.Bytes, chunk) {
				out = append(out, octets(c)...)
			}
			out = append(out, 0, 0)
		default:
			out = append(out, v.FullBytes...)
		}
		der = rest
	}
	return out
}

type identity struct {
	key  crypto.Signer
	cert *x509.Certificate
	c    *Certificate
}

func (id *identity) rsa() *rsa.PrivateKey { return id.key.(*rsa.PrivateKey) }

func newIdentity(key crypto.Signer, cn string, change func(*x509.Certificate)) *identity {
	t := &x509.Certificate{
		SerialNumber: big.NewInt(0x1234567890),
		Subject:      pkix.Name{CommonName: cn, Organization: []string{"Test"}},
		NotBefore:    time.Unix(1700000000, 0),
		NotAfter:     time.Unix(4000000000, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:         true, BasicConstraintsValid: true,
		SubjectKeyId: []byte("key identifier of " + cn),
	}
	if change != nil {
		change(t)
	}
	der := must(x509.CreateCertificate(rand.Reader, t, t, key.Public(), key))
	id := &identity{key: key, c: must(ParseCertificate(der))}
	id.cert, _ = x509.ParseCertificate(der)
	return id
}

var (
	rsaKey = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 2048)) })
	rsaID  = sync.OnceValue(func() *identity { return newIdentity(rsaKey(), "rsa", nil) })
	ecID   = sync.OnceValue(func() *identity {
		return newIdentity(must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), "ec", nil)
	})
	otherKey = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) })
)

// rawCert writes a certificate that no library would.
type rawCert struct {
	version  []byte // the [0] element
	serial   []byte // content octets
	issuer   []byte
	validity []byte
	spki     []byte
	after    []byte // what follows the key
}

func (r rawCert) der() []byte {
	alg := algID(oidMD5WithRSA, null)
	tbs := seq(r.version, tlv(0x02, r.serial), alg, r.issuer, r.validity, r.issuer, r.spki, r.after)
	return seq(tbs, alg, tlv(0x03, []byte{0}, bytes.Repeat([]byte{0xee}, 256)))
}

func goodCert() rawCert {
	return rawCert{
		version:  ctx(0, integer(2)),
		serial:   []byte{0x01, 0x02},
		issuer:   must(asn1.Marshal(pkix.Name{CommonName: "raw"}.ToRDNSequence())),
		validity: seq(tlv(0x17, []byte("250101000000Z")), tlv(0x17, []byte("350101000000Z"))),
		spki:     rsaID().c.RawSPKI,
	}
}

func attr(typ string, values ...[]byte) []byte { return seq(oid(typ), set(values...)) }

// draft is a pkiMessage with everything open to change.
type draft struct {
	contentType []byte // OID of eContent
	eContent    []byte // the [0] element
	certs       [][]byte
	crls        []byte
	version     int64
	sid         []byte
	digestAlgs  []byte
	digestAlg   []byte
	sigAlg      []byte
	attrs       [][]byte // as sent; nil: no signedAttrs
	signSorted  bool     // sign the DER of attrs
	sign        func(set []byte) []byte
	unsigned    []byte
	infos       int
	sigOverride []byte
}

func hashed(h crypto.Hash, b []byte) []byte {
	w := h.New()
	w.Write(b)
	return w.Sum(nil)
}

func newDraft() *draft {
	id := rsaID()
	content := []byte("content")
	return &draft{
		contentType: oid(oidData),
		eContent:    ctx(0, octets(content)),
		certs:       [][]byte{id.c.Raw},
		version:     1,
		sid:         seq(id.c.RawIssuer, tlv(0x02, id.c.RawSerial)),
		digestAlgs:  set(algID(oidSHA256, null)),
		digestAlg:   algID(oidSHA256, null),
		sigAlg:      algID(oidRSA, null),
		attrs: [][]byte{
			attr(oidContentType, oid(oidData)),
			attr(oidMessageDigest, octets(hashed(crypto.SHA256, content))),
			attr(oidMessageType, tlv(0x13, []byte("19"))),
			attr(oidSenderNonce, octets([]byte("0123456789abcdef"))),
			attr(oidTransactionID, tlv(0x13, []byte("transaction"))),
		},
		sign: func(b []byte) []byte {
			return must(id.rsa().Sign(rand.Reader, hashed(crypto.SHA256, b), crypto.SHA256))
		},
		infos: 1,
	}
}

// signBy makes another the signer.
func (d *draft) signBy(id *identity, alg []byte, h crypto.Hash) *draft {
	d.certs = [][]byte{id.c.Raw}
	d.sid = seq(id.c.RawIssuer, tlv(0x02, id.c.RawSerial))
	d.sigAlg = alg
	d.sign = func(b []byte) []byte {
		if h == 0 {
			return must(id.key.Sign(rand.Reader, b, h))
		}
		return must(id.key.Sign(rand.Reader, hashed(h, b), h))
	}
	return d
}

func (d *draft) der() []byte {
	var signedAttrs []byte
	var sig []byte
	if d.attrs != nil {
		signedAttrs = ctx(0, d.attrs...)
		signed := d.attrs
		if d.signSorted {
			signed = slices.Clone(signed)
			slices.SortFunc(signed, bytes.Compare)
		}
		sig = d.sign(set(signed...))
	} else {
		sig = d.sign([]byte("content"))
	}
	if d.sigOverride != nil {
		sig = d.sigOverride
	}
	info := seq(integer(d.version), d.sid, d.digestAlg, signedAttrs, d.sigAlg, octets(sig), d.unsigned)
	var certs []byte
	if d.certs != nil {
		certs = ctx(0, d.certs...)
	}
	return seq(oid(oidSignedData), ctx(0, seq(
		integer(1), d.digestAlgs, seq(d.contentType, d.eContent), certs, d.crls,
		set(slices.Repeat([][]byte{info}, d.infos)...))))
}

func requestAttributes() *Attributes {
	return &Attributes{
		MessageType:   "19",
		TransactionID: []byte("transaction"),
		SenderNonce:   []byte("0123456789abcdef"),
	}
}

func equalAttributes(a, b *Attributes) bool {
	same := func(a, b []byte) bool { return bytes.Equal(a, b) && (a == nil) == (b == nil) }
	return a.MessageType == b.MessageType && same(a.TransactionID, b.TransactionID) &&
		same(a.SenderNonce, b.SenderNonce) && same(a.RecipientNonce, b.RecipientNonce) &&
		a.PKIStatus == b.PKIStatus && a.FailInfo == b.FailInfo && a.FailInfoText == b.FailInfoText
}

// parseAndVerify is what a server does with a request.
func parseAndVerify(ber []byte) (*Message, error) {
	m, err := ParseMessage(ber)
	if err != nil {
		return nil, err
	}
	if m.Signer == nil {
		return m, errNoSigner
	}
	pub, err := ParsePublicKey(m.Signer.RawSPKI)
	if err != nil {
		return m, err
	}
	return m, m.Verify(pub)
}

var errNoSigner = signatureError("no signer")

func mustVerify(t testing.TB, ber []byte) *Message {
	t.Helper()
	m, err := parseAndVerify(ber)
	if err != nil {
		t.Fatal(err)
	}
	return m
}
