package cms

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"slices"
	"testing"
)

// sealed is an EnvelopedData with everything open to change.
type sealed struct {
	outer      func(envelopedData []byte) []byte
	version    int64
	originator []byte
	recipients [][]byte
	dataType   []byte
	alg        []byte
	content    []byte // the [0] element
	attrs      []byte
}

func ktri(rid []byte, alg []byte, key []byte) []byte {
	version := int64(0)
	if rid[0] == 0x80 || rid[0] == 0xa0 {
		version = 2
	}
	return seq(integer(version), rid, alg, octets(key))
}

func ourRID() []byte { return seq(rsaID().c.RawIssuer, tlv(0x02, rsaID().c.RawSerial)) }

var contentKey = []byte("0123456789abcdef")

func transport(key []byte) []byte {
	//lint:ignore SA1019 SCEP has no other key transport that all clients know.
	return must(rsa.EncryptPKCS1v15(rand.Reader, &rsaKey().PublicKey, key))
}

func newSealed() *sealed {
	key := transport(contentKey)
	return &sealed{
		outer:      func(b []byte) []byte { return seq(oid(oidEnvelopedData), ctx(0, b)) },
		recipients: [][]byte{ktri(ourRID(), algID(oidRSA, null), key)},
		dataType:   oid(oidData),
		alg:        algID(oidAES128CBC, octets(make([]byte, 16))),
		content:    tlv(0x80, cbc(must(aes.NewCipher(contentKey)), make([]byte, 16), pad([]byte("content"), 16))),
	}
}

func (s *sealed) der() []byte {
	return s.outer(seq(integer(s.version), s.originator, set(s.recipients...), seq(s.dataType, s.alg, s.content), s.attrs))
}

func pad(b []byte, n int) []byte {
	p := n - len(b)%n
	return append(bytes.Clone(b), bytes.Repeat([]byte{byte(p)}, p)...)
}

func cbc(block cipher.Block, iv, b []byte) []byte {
	out := make([]byte, len(b))
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(out, b)
	return out
}

// open does what a recipient does.
func open(e *Envelope, key crypto.Decrypter) ([]byte, error) {
	for _, r := range e.Recipients {
		if r.Options == nil || !bytes.Equal(r.RawIssuer, rsaID().c.RawIssuer) && !bytes.Equal(r.SubjectKeyID, rsaID().c.SubjectKeyID) {
			continue
		}
		k, err := key.Decrypt(rand.Reader, r.EncryptedKey, r.Options)
		if err != nil {
			return nil, err
		}
		plain, ok := e.Decrypt(k)
		if !ok {
			return nil, errors.New("content cannot be decrypted")
		}
		return plain, nil
	}
	return nil, errors.New("no recipient")
}

func TestParseEnvelope(t *testing.T) {
	oaepKey := func(h, mgf crypto.Hash, label []byte) []byte {
		return must(rsa.EncryptOAEPWithOptions(rand.Reader, &rsaKey().PublicKey, contentKey, &rsa.OAEPOptions{Hash: h, MGFHash: mgf, Label: label}))
	}
	mgf := func(hash string) []byte { return ctx(1, algID(oidMGF1, algID(hash, null))) }
	one := func(alg, key []byte) func(*sealed) {
		return func(s *sealed) { s.recipients = [][]byte{ktri(ourRID(), alg, key)} }
	}
	sha1Key := oaepKey(crypto.SHA1, crypto.SHA1, nil)
	const opens, parses, fails = 0, 1, 2
	for _, test := range []struct {
		name   string
		change func(s *sealed)
		want   int
	}{
		{"plain", func(s *sealed) {}, opens},
		{"bare EnvelopedData", func(s *sealed) { s.outer = func(b []byte) []byte { return b } }, opens},
		{"version 2", func(s *sealed) { s.version = 2 }, opens},
		{"version 3", func(s *sealed) { s.version = 3 }, opens},
		{"version 4", func(s *sealed) { s.version = 4 }, opens},
		{"version 1", func(s *sealed) { s.version = 1 }, fails},
		{"version 5", func(s *sealed) { s.version = 5 }, fails},
		{"version -1", func(s *sealed) { s.version = -1 }, fails},
		{"originatorInfo", func(s *sealed) { s.originator = ctx(0, ctx(0, seq())) }, opens},
		{"unprotectedAttrs", func(s *sealed) { s.attrs = ctx(1, seq()) }, opens},
		{"something behind", func(s *sealed) { s.attrs = null }, fails},
		{"CMS-03 constructed content", func(s *sealed) {
			var v = s.content[2:]
			s.content = ctx(0, octets(v[:5]), octets(nil), octets(v[5:]))
		}, opens},
		{"CMS-03 content nested twice", func(s *sealed) {
			var v = s.content[2:]
			s.content = ctx(0, tlv(0x24, octets(v[:5])), octets(v[5:]))
		}, opens},
		{"CMS-03 constructed content, not of OCTET STRINGs", func(s *sealed) { s.content = ctx(0, integer(1)) }, fails},
		{"no content", func(s *sealed) { s.content = nil }, fails},
		{"empty content", func(s *sealed) { s.content = tlv(0x80, nil) }, parses},
		{"empty constructed content", func(s *sealed) { s.content = ctx(0) }, parses},
		{"content of odd length", func(s *sealed) { s.content = tlv(0x80, make([]byte, 17)) }, parses},
		{"content type", func(s *sealed) { s.dataType = oid(oidSignedData) }, fails},
		{"outer content type", func(s *sealed) {
			s.outer = func(b []byte) []byte { return seq(oid(oidSignedData), ctx(0, b)) }
		}, fails},
		{"CRY-16 AuthEnvelopedData", func(s *sealed) {
			s.outer = func(b []byte) []byte { return seq(oid("\x2a\x86\x48\x86\xf7\x0d\x01\x09\x10\x01\x17"), ctx(0, b)) }
		}, fails},
		{"CMS-07 SKI", func(s *sealed) {
			s.version = 2
			s.recipients = [][]byte{ktri(tlv(0x80, rsaID().c.SubjectKeyID), algID(oidRSA, null), transport(contentKey))}
		}, opens},
		{"CMS-08 other recipients", func(s *sealed) {
			s.recipients = [][]byte{
				ctx(1, integer(3)), ktri(seq(seq(), integer(1)), algID(oidRSA, null), []byte("key")),
				ctx(2), s.recipients[0], ctx(3), ctx(4),
			}
		}, opens},
		{"recipient of no kind", func(s *sealed) { s.recipients = append(s.recipients, ctx(5)) }, fails},
		{"recipient primitive", func(s *sealed) { s.recipients = append(s.recipients, tlv(0x81, nil)) }, fails},
		{"64 recipients", func(s *sealed) { s.recipients = append(s.recipients, slices.Repeat([][]byte{ctx(1)}, 63)...) }, opens},
		{"65 recipients", func(s *sealed) { s.recipients = append(s.recipients, slices.Repeat([][]byte{ctx(1)}, 64)...) }, fails},
		{"no recipients", func(s *sealed) { s.recipients = nil }, fails},
		{"recipient version", func(s *sealed) { s.recipients[0][6]++ }, fails},
		{"empty encrypted key", one(algID(oidRSA, null), nil), parses},
		{"large encrypted key", one(algID(oidRSA, null), make([]byte, 10000)), parses},
		{"key transport parameters absent", func(s *sealed) {
			key := must(ParseEnvelope(s.der())).Recipients[0].EncryptedKey
			s.recipients = [][]byte{ktri(ourRID(), algID(oidRSA), key)}
		}, opens},
		{"unknown key transport", one(algID("\x2a\x03\x04"), nil), parses},
		{"CRY-08 OAEP, no parameters", one(algID(oidOAEP), sha1Key), opens},
		{"CRY-08 OAEP, NULL", one(algID(oidOAEP, null), sha1Key), opens},
		{"CRY-08 OAEP, empty", one(algID(oidOAEP, seq()), sha1Key), opens},
		{"CRY-08 OAEP, explicit SHA-1", one(algID(oidOAEP, seq(ctx(0, algID(oidSHA1, null)), mgf(oidSHA1), ctx(2, algID(oidPSpecific, octets(nil))))), sha1Key), opens},
		{"CRY-08 OAEP, SHA-256", one(algID(oidOAEP, seq(ctx(0, algID(oidSHA256)), mgf(oidSHA256))), oaepKey(crypto.SHA256, crypto.SHA256, nil)), opens},
		{"CRY-08 OAEP, SHA-256 with MGF1-SHA-1", one(algID(oidOAEP, seq(ctx(0, algID(oidSHA256)))), oaepKey(crypto.SHA256, crypto.SHA1, nil)), opens},
		{"CRY-08 OAEP, SHA-1 with MGF1-SHA-512", one(algID(oidOAEP, seq(mgf(oidSHA512))), oaepKey(crypto.SHA1, crypto.SHA512, nil)), opens},
		{"CRY-08 OAEP, label", one(algID(oidOAEP, seq(ctx(2, algID(oidPSpecific, octets([]byte("label")))))), oaepKey(crypto.SHA1, crypto.SHA1, []byte("label"))), opens},
		{"CRY-08 OAEP, unknown hash", one(algID(oidOAEP, seq(ctx(0, algID("\x2a\x03")))), sha1Key), parses},
		{"CRY-08 OAEP, unknown MGF", one(algID(oidOAEP, seq(ctx(1, algID("\x2a\x03")))), sha1Key), parses},
		{"CRY-08 OAEP, unknown MGF hash", one(algID(oidOAEP, seq(mgf("\x2a\x03"))), sha1Key), parses},
		{"CRY-08 OAEP, MGF without a hash", one(algID(oidOAEP, seq(ctx(1, algID(oidMGF1)))), sha1Key), parses},
		{"CRY-08 OAEP, unknown label source", one(algID(oidOAEP, seq(ctx(2, algID("\x2a\x03", octets(nil))))), sha1Key), parses},
		{"CRY-08 OAEP, parameters of another kind", one(algID(oidOAEP, integer(1)), sha1Key), parses},
		{"CRY-08 OAEP, something behind", one(algID(oidOAEP, seq(ctx(3))), sha1Key), parses},
		{"no IV", func(s *sealed) { s.alg = algID(oidAES128CBC) }, parses},
		{"empty IV", func(s *sealed) { s.alg = algID(oidAES128CBC, octets(nil)) }, parses},
		{"large IV", func(s *sealed) { s.alg = algID(oidAES128CBC, octets(make([]byte, 10000))) }, parses},
		{"IV of another type", func(s *sealed) { s.alg = algID(oidAES128CBC, null) }, parses},
		{"CRY-07 unknown cipher", func(s *sealed) {
			s.alg = algID("\x2a\x86\x48\x86\xf7\x0d\x03\x02", seq(integer(58), octets(make([]byte, 8))))
		}, parses},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSealed()
			test.change(s)
			der := s.der()
			for form, ber := range map[string][]byte{"DER": der, "indefinite": indefinite(der, 0), "pieces": indefinite(der, 5)} {
				e, err := ParseEnvelope(ber)
				if test.want == fails {
					if !errors.Is(err, ErrSyntax) || e != nil {
						t.Errorf("%s: got %v, %v; want ErrSyntax", form, e, err)
					}
					continue
				}
				if err != nil {
					t.Fatalf("%s: %v", form, err)
				}
				plain, err := open(e, rsaKey())
				if (err == nil) != (test.want == opens) || err == nil && string(plain) != "content" {
					t.Errorf("%s: opened to %q, %v", form, plain, err)
				}
			}
		})
	}
}

func TestParseEnvelopeFields(t *testing.T) {
	s := newSealed()
	s.alg = algID("\x2a\x86\x48\x86\xf7\x0d\x03\x02", octets([]byte("iv")))
	e := must(ParseEnvelope(s.der()))
	if e.Cipher != 0 || e.CipherOID.String() != "1.2.840.113549.3.2" || string(e.IV) != "iv" {
		t.Errorf("%v %v %x", e.Cipher, e.CipherOID, e.IV)
	}
	r := e.Recipients[0]
	if !bytes.Equal(r.RawIssuer, rsaID().c.RawIssuer) || !bytes.Equal(r.RawSerial, rsaID().c.RawSerial) || r.SubjectKeyID != nil ||
		r.AlgorithmOID.String() != "1.2.840.113549.1.1.1" || len(r.EncryptedKey) != 256 {
		t.Errorf("%+v", r)
	}
	s.alg = algID("\x69\x83\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f")
	if e := must(ParseEnvelope(s.der())); e.Cipher != 0 || e.CipherOID != nil {
		t.Errorf("huge arcs: %v %v", e.Cipher, e.CipherOID)
	}
}

// FZ03: prefixes and changed bytes are errors or envelopes, never a panic.
func TestParseEnvelopeDamaged(t *testing.T) {
	der := newSealed().der()
	for n := range der {
		if _, err := ParseEnvelope(der[:n]); !errors.Is(err, ErrSyntax) {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
	for i := range der {
		for _, x := range []byte{0x01, 0x20, 0x55, 0x80, 0xff} {
			bad := bytes.Clone(der)
			bad[i] ^= x
			if e, err := ParseEnvelope(bad); err == nil {
				e.Decrypt(contentKey)
			}
		}
	}
}

// referenceDecrypt is Decrypt as one would write it without an adversary.
func referenceDecrypt(e *Envelope, key []byte) ([]byte, bool) {
	var block cipher.Block
	var err error
	switch e.Cipher {
	case DES:
		block, err = des.NewCipher(key)
	case TripleDES:
		block, err = des.NewTripleDESCipher(key)
	case AES128, AES192, AES256:
		if len(key) != e.Cipher.KeySize() {
			return nil, false
		}
		block, err = aes.NewCipher(key)
	default:
		return nil, false
	}
	if err != nil || len(e.IV) != block.BlockSize() || len(e.Ciphertext) == 0 || len(e.Ciphertext)%block.BlockSize() != 0 {
		return nil, false
	}
	out := make([]byte, len(e.Ciphertext))
	cipher.NewCBCDecrypter(block, e.IV).CryptBlocks(out, e.Ciphertext)
	p := int(out[len(out)-1])
	if p == 0 || p > block.BlockSize() || !bytes.HasSuffix(out, bytes.Repeat([]byte{byte(p)}, p)) {
		return nil, false
	}
	return out[:len(out)-p], true
}

func checkDecrypt(t testing.TB, e *Envelope, key []byte) {
	t.Helper()
	before := slices.Concat(e.IV, e.Ciphertext, key)
	got, ok := e.Decrypt(key)
	want, wantOK := referenceDecrypt(e, key)
	if ok != wantOK || ok && !bytes.Equal(got, want) {
		t.Fatalf("%v: got %x, %v; want %x, %v", e.Cipher, got, ok, want, wantOK)
	}
	if !ok && len(got) == 0 {
		t.Fatalf("%v: failed with nothing to go on with", e.Cipher)
	}
	for i := range got {
		got[i] ^= 0xff
	}
	if !bytes.Equal(before, slices.Concat(e.IV, e.Ciphertext, key)) {
		t.Fatal("plain shares memory with the input")
	}
}

// Every length of padding, each of its bytes wrong, and every last byte.
func TestDecryptPadding(t *testing.T) {
	for _, c := range []Cipher{DES, TripleDES, AES128, AES192, AES256} {
		key := bytes.Repeat([]byte("k3Y!"), 8)[:c.KeySize()]
		if c == TripleDES {
			key = []byte("0123456789abcdefGHIJKLMN")
		}
		block := must(c.block(key))
		n := block.BlockSize()
		iv := bytes.Repeat([]byte{7}, n)
		try := func(plain []byte) {
			checkDecrypt(t, &Envelope{Cipher: c, IV: iv, Ciphertext: cbc(block, iv, plain)}, key)
		}
		for blocks := 1; blocks <= 2; blocks++ {
			for last := range 256 {
				b := bytes.Repeat([]byte{byte(last)}, n*blocks)
				try(b)
				for i := range b {
					bad := bytes.Clone(b)
					bad[i]++
					try(bad)
				}
			}
		}
		for size := range 3 * n {
			e := &Envelope{Cipher: c, IV: iv, Ciphertext: cbc(block, iv, pad(make([]byte, size), n))}
			if plain, ok := e.Decrypt(key); !ok || !bytes.Equal(plain, make([]byte, size)) {
				t.Errorf("%v, %d bytes: %x, %v", c, size, plain, ok)
			}
		}
	}
}

func TestDecryptLengths(t *testing.T) {
	lengths := []int{0, 1, 7, 8, 15, 16, 17, 24, 31, 32, 33, 48, 100}
	for c := range AES256 + 2 {
		for _, key := range lengths {
			for _, iv := range lengths {
				for _, text := range lengths {
					checkDecrypt(t, &Envelope{Cipher: c, IV: make([]byte, iv), Ciphertext: make([]byte, text)}, make([]byte, key))
				}
			}
		}
	}
	checkDecrypt(t, &Envelope{Cipher: AES128}, nil)
	checkDecrypt(t, &Envelope{}, nil)
}

func TestEncrypt(t *testing.T) {
	for _, c := range []Cipher{TripleDES, AES128, AES192, AES256} {
		for _, size := range []int{0, 1, 7, 8, 15, 16, 17, 1000, 70000} {
			content := bytes.Repeat([]byte{3}, size)
			der, err := Encrypt(content, c, rsaID().c, &rsaKey().PublicKey)
			if err != nil {
				t.Fatal(err)
			}
			if n := 0; !isDER(der, 0, &n) {
				t.Error("not DER")
			}
			e := must(ParseEnvelope(der))
			if plain, err := open(e, rsaKey()); err != nil || !bytes.Equal(plain, content) {
				t.Errorf("%v, %d bytes: %v", c, size, err)
			}
			if e.Cipher != c || !e.CipherOID.Equal(c.OID()) {
				t.Errorf("%v: %v %v", c, e.Cipher, e.CipherOID)
			}
		}
	}
	a, b := must(Encrypt(nil, AES128, rsaID().c, &rsaKey().PublicKey)), must(Encrypt(nil, AES128, rsaID().c, &rsaKey().PublicKey))
	if bytes.Equal(must(ParseEnvelope(a)).IV, must(ParseEnvelope(b)).IV) {
		t.Error("the IV repeats")
	}
}

func TestEncryptKeepsIdentifier(t *testing.T) {
	r := goodCert()
	r.serial, r.issuer = []byte{0xff, 0xff, 0x80}, seq()
	der := must(Encrypt([]byte("x"), AES128, must(ParseCertificate(r.der())), &rsaKey().PublicKey))
	if rec := must(ParseEnvelope(der)).Recipients[0]; !bytes.Equal(rec.RawSerial, r.serial) || !bytes.Equal(rec.RawIssuer, r.issuer) {
		t.Errorf("%x, %x", rec.RawIssuer, rec.RawSerial)
	}
}

func TestEncryptRefuses(t *testing.T) {
	pub := &rsaKey().PublicKey
	for name, err := range map[string]error{
		"DES":         second(Encrypt(nil, DES, rsaID().c, pub)),
		"no cipher":   second(Encrypt(nil, 0, rsaID().c, pub)),
		"cipher 99":   second(Encrypt(nil, 99, rsaID().c, pub)),
		"EC key":      second(Encrypt(nil, AES128, ecID().c, ecID().key.Public())),
		"no key":      second(Encrypt(nil, AES128, rsaID().c, nil)),
		"exponent 1":  second(Encrypt(nil, AES128, rsaID().c, &rsa.PublicKey{N: pub.N, E: 1})),
		"bare modulo": second(Encrypt(nil, AES128, rsaID().c, &rsa.PublicKey{E: 3})),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestSetParity(t *testing.T) {
	for c := range 256 {
		b := []byte{byte(c)}
		setParity(b)
		ones := 0
		for i := range 8 {
			ones += int(b[0] >> i & 1)
		}
		if ones%2 != 1 || b[0]>>1 != byte(c)>>1 {
			t.Errorf("%#x became %#x", c, b[0])
		}
	}
}
