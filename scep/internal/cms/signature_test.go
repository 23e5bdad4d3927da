package cms

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"math/big"
	"strings"
	"testing"
)

func TestVerifySignature(t *testing.T) {
	data := []byte("data")
	key := rsaKey()
	ec := otherKey()
	edPub, ed, _ := ed25519.GenerateKey(rand.Reader)
	v15 := func(h crypto.Hash) []byte { return must(key.Sign(rand.Reader, hashed(h, data), h)) }
	pss := func(h crypto.Hash, salt int) []byte {
		return must(key.Sign(rand.Reader, hashed(h, data), &rsa.PSSOptions{Hash: h, SaltLength: salt}))
	}
	ecSig := func(h crypto.Hash) []byte { return must(ec.Sign(rand.Reader, hashed(h, data), h)) }
	pssAlg := func(fields ...[]byte) []byte { return algID(oidPSS, seq(fields...)) }
	hashField := func(s string) []byte { return ctx(0, algID(s, null)) }
	mgfField := func(s string) []byte { return ctx(1, algID(oidMGF1, algID(s, null))) }
	salt := func(n int64) []byte { return ctx(2, integer(n)) }
	sha256 := [][]byte{hashField(oidSHA256), mgfField(oidSHA256), salt(32)}

	for _, test := range []struct {
		name   string
		pub    crypto.PublicKey
		alg    []byte
		digest crypto.Hash
		sig    []byte
		want   result
		hash   crypto.Hash
	}{
		{"rsaEncryption", &key.PublicKey, algID(oidRSA, null), crypto.SHA256, v15(crypto.SHA256), good, crypto.SHA256},
		{"rsaEncryption without a hash", &key.PublicKey, algID(oidRSA, null), 0, v15(crypto.SHA256), unsupported, 0},
		{"rsaEncryption, hash not linked in", &key.PublicKey, algID(oidRSA, null), crypto.BLAKE2b_256, v15(crypto.SHA256), unsupported, 0},
		{"rsaEncryption, another hash", &key.PublicKey, algID(oidRSA, null), crypto.SHA1, v15(crypto.SHA256), unverified, 0},
		{"CRY-06 MD5", &key.PublicKey, algID(oidMD5WithRSA, null), 0, v15(crypto.MD5), good, crypto.MD5},
		{"SHA-1", &key.PublicKey, algID(oidSHA1WithRSA, null), 0, v15(crypto.SHA1), good, crypto.SHA1},
		{"SHA-1, OIW", &key.PublicKey, algID(oidOIWSHA1RSA, null), 0, v15(crypto.SHA1), good, crypto.SHA1},
		{"SHA-224", &key.PublicKey, algID(oidSHA224WithRSA, null), 0, v15(crypto.SHA224), good, crypto.SHA224},
		{"SHA-384", &key.PublicKey, algID(oidSHA384WithRSA, null), 0, v15(crypto.SHA384), good, crypto.SHA384},
		{"SHA-512", &key.PublicKey, algID(oidSHA512WithRSA), crypto.SHA512, v15(crypto.SHA512), good, crypto.SHA512},
		{"digest is another", &key.PublicKey, algID(oidSHA512WithRSA), crypto.SHA256, v15(crypto.SHA512), unverified, 0},
		{"CRY-10 PSS", &key.PublicKey, pssAlg(sha256...), crypto.SHA256, pss(crypto.SHA256, 32), good, crypto.SHA256},
		{"CRY-10 PSS, digest is another", &key.PublicKey, pssAlg(sha256...), crypto.SHA1, pss(crypto.SHA256, 32), unverified, 0},
		{"CRY-10 PSS, defaults", &key.PublicKey, pssAlg(), 0, pss(crypto.SHA1, 20), good, crypto.SHA1},
		{"CRY-10 PSS, trailer 1", &key.PublicKey, pssAlg(append(sha256, ctx(3, integer(1)))...), 0, pss(crypto.SHA256, 32), good, crypto.SHA256},
		{"CRY-10 PSS, trailer 2", &key.PublicKey, pssAlg(append(sha256, ctx(3, integer(2)))...), 0, pss(crypto.SHA256, 32), unsupported, 0},
		{"CRY-10 PSS, no parameters", &key.PublicKey, algID(oidPSS), 0, pss(crypto.SHA1, 20), unsupported, 0},
		{"CRY-10 PSS, NULL", &key.PublicKey, algID(oidPSS, null), 0, pss(crypto.SHA1, 20), unsupported, 0},
		{"CRY-10 PSS, long salt", &key.PublicKey, pssAlg(sha256[0], sha256[1], salt(222)), 0, pss(crypto.SHA256, 222), good, crypto.SHA256},
		{"CRY-10 PSS, no salt", &key.PublicKey, pssAlg(sha256[0], sha256[1], salt(0)), 0, must(pssNoSalt(key, data)), good, crypto.SHA256},
		{"CRY-10 PSS, salt is another", &key.PublicKey, pssAlg(sha256[0], sha256[1], salt(31)), 0, pss(crypto.SHA256, 32), unverified, 0},
		{"CRY-10 PSS, negative salt", &key.PublicKey, pssAlg(sha256[0], sha256[1], salt(-1)), 0, pss(crypto.SHA256, 32), unsupported, 0},
		{"CRY-10 PSS, huge salt", &key.PublicKey, pssAlg(sha256[0], sha256[1], salt(1<<62)), 0, pss(crypto.SHA256, 32), unsupported, 0},
		{"CRY-10 PSS, salt beyond the key", &key.PublicKey, pssAlg(sha256[0], sha256[1], salt(1000)), 0, pss(crypto.SHA256, 32), unverified, 0},
		{"CRY-10 PSS, unknown hash", &key.PublicKey, pssAlg(hashField("\x2a\x03")), 0, pss(crypto.SHA1, 20), unsupported, 0},
		{"CRY-10 PSS, MGF with another hash", &key.PublicKey, pssAlg(sha256[0], mgfField(oidSHA1), salt(32)), 0, pss(crypto.SHA256, 32), unsupported, 0},
		{"CRY-10 PSS, fields in another order", &key.PublicKey, pssAlg(sha256[1], sha256[0]), 0, pss(crypto.SHA256, 32), unsupported, 0},
		{"CRY-11 ECDSA", &ec.PublicKey, algID(oidECDSAWithSHA384), 0, ecSig(crypto.SHA384), good, crypto.SHA384},
		{"CRY-11 ECDSA with SHA-1", &ec.PublicKey, algID(oidECDSAWithSHA1), 0, ecSig(crypto.SHA1), good, crypto.SHA1},
		{"CRY-11 ECDSA with SHA-224", &ec.PublicKey, algID(oidECDSAWithSHA224), 0, ecSig(crypto.SHA224), good, crypto.SHA224},
		{"CRY-11 ECDSA with SHA-512", &ec.PublicKey, algID(oidECDSAWithSHA512), 0, ecSig(crypto.SHA512), good, crypto.SHA512},
		{"ECDSA with rsaEncryption", &ec.PublicKey, algID(oidRSA), crypto.SHA256, ecSig(crypto.SHA256), unverified, 0},
		{"RSA with ecdsa-with-SHA256", &key.PublicKey, algID(oidECDSAWithSHA256), 0, v15(crypto.SHA256), unverified, 0},
		{"id-ecPublicKey", &ec.PublicKey, algID(oidECPublicKey), crypto.SHA256, ecSig(crypto.SHA256), unsupported, 0},
		{"Ed25519", edPub, algID(oidEd25519), crypto.SHA512, ed25519.Sign(ed, data), good, 0},
		{"Ed25519, RSA algorithm", edPub, algID(oidRSA), crypto.SHA512, ed25519.Sign(ed, data), unverified, 0},
		{"RSA, Ed25519 algorithm", &key.PublicKey, algID(oidEd25519), crypto.SHA512, v15(crypto.SHA512), unverified, 0},
		{"algorithm malformed", &key.PublicKey, []byte{0x30, 0x05}, crypto.SHA256, v15(crypto.SHA256), unverified, 0},
		{"algorithm with something behind", &key.PublicKey, append(algID(oidRSA), 0), crypto.SHA256, v15(crypto.SHA256), unverified, 0},
		{"algorithm empty", &key.PublicKey, nil, crypto.SHA256, v15(crypto.SHA256), unverified, 0},
		{"CRY-14 exponent 1", &rsa.PublicKey{N: key.N, E: 1}, algID(oidRSA), crypto.SHA256, v15(crypto.SHA256), unsupported, 0},
	} {
		hash, err := VerifySignature(test.pub, test.alg, test.digest, data, test.sig)
		if got := resultOf(err); got != test.want || hash != test.hash {
			t.Errorf("%s: %v, %v", test.name, hash, err)
		}
		if test.want == good {
			if _, err := VerifySignature(test.pub, test.alg, test.digest, []byte("other"), test.sig); !errors.Is(err, ErrSignature) {
				t.Errorf("%s: other data: %v", test.name, err)
			}
		}
	}
}

// pssNoSalt signs with an empty salt, which the options of crypto/rsa cannot say: EMSA-PSS
// (RFC 8017, 9.1.1) with SHA-256 and a 2048-bit key.
func pssNoSalt(key *rsa.PrivateKey, data []byte) ([]byte, error) {
	h := hashed(crypto.SHA256, append(make([]byte, 8), hashed(crypto.SHA256, data)...))
	db := make([]byte, 256-32-1)
	db[len(db)-1] = 1
	var mask []byte
	for i := byte(0); len(mask) < len(db); i++ {
		mask = append(mask, hashed(crypto.SHA256, append(bytes.Clone(h), 0, 0, 0, i))...)
	}
	for i := range db {
		db[i] ^= mask[i]
	}
	db[0] &= 0x7f
	em := new(big.Int).SetBytes(append(append(db, h...), 0xbc))
	return em.Exp(em, key.D, key.N).FillBytes(make([]byte, 256)), nil
}

func rsaSPKI(n, e *big.Int) []byte {
	return seq(algID(oidRSA, null), tlv(3, []byte{0}, must(asn1.Marshal(struct{ N, E *big.Int }{n, e}))))
}

// CRY-13, CRY-14, and keys that cost seconds to compute with.
func TestKeys(t *testing.T) {
	n := rsaKey().N
	bits := func(n uint) *big.Int {
		x := new(big.Int).Lsh(big.NewInt(1), n-1)
		return x.SetBit(x, 0, 1)
	}
	e := big.NewInt(65537)
	for _, test := range []struct {
		name string
		n, e *big.Int
		ok   bool
	}{
		{"2048", n, e, true},
		{"1024", bits(1024), e, true},
		{"1023", bits(1023), e, false},
		{"512", bits(512), e, false},
		{"8192", bits(8192), e, true},
		{"8193", bits(8193), e, false},
		{"16384", bits(16384), e, false},
		{"1 Mbit", bits(1 << 20), e, false},
		{"16 Mbit", bits(1 << 24), e, false},
		{"even", new(big.Int).Sub(n, big.NewInt(1)), e, false},
		{"zero", new(big.Int), e, false},
		{"negative", new(big.Int).Neg(n), e, false},
		{"exponent 3", n, big.NewInt(3), true},
		{"exponent 1", n, big.NewInt(1), false},
		{"exponent 0", n, big.NewInt(0), false},
		{"exponent 2", n, big.NewInt(2), false},
		{"exponent 4", n, big.NewInt(4), false},
		{"exponent -3", n, big.NewInt(-3), false},
		{"exponent 2^31-1", n, big.NewInt(1<<31 - 1), true},
		{"exponent 2^31+1", n, big.NewInt(1<<31 + 1), false},
		{"exponent 2^32+1", n, big.NewInt(1<<32 + 1), false},
		{"exponent of 2048 bits", n, n, false},
	} {
		pub, err := ParsePublicKey(rsaSPKI(test.n, test.e))
		if (err == nil) != test.ok || err != nil && pub != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		if err != nil && resultOf(err) != unsupported && !errors.Is(err, ErrSyntax) {
			t.Errorf("%s: error of no kind: %v", test.name, err)
		}
		if test.ok {
			if err := CheckKey(pub); err != nil {
				t.Errorf("%s: %v", test.name, err)
			}
			if x, err := x509.ParsePKIXPublicKey(rsaSPKI(test.n, test.e)); err != nil || !x.(*rsa.PublicKey).Equal(pub) {
				t.Errorf("%s: differs from crypto/x509: %v", test.name, err)
			}
		}
	}
}

func TestParsePublicKey(t *testing.T) {
	point := func(c elliptic.Curve) []byte {
		return must(must(ecdsa.GenerateKey(c, rand.Reader)).PublicKey.Bytes())
	}
	p256 := point(elliptic.P256())
	off := bytes.Clone(p256)
	off[64] ^= 1
	ec := func(curve string, point []byte) []byte {
		return seq(algID(oidECPublicKey, oid(curve)), tlv(3, []byte{0}, point))
	}
	edPub, _, _ := ed25519.GenerateKey(rand.Reader)
	for _, test := range []struct {
		name string
		spki []byte
		want result
	}{
		{"P-256", ec(oidP256, p256), good},
		{"P-384", ec(oidP384, point(elliptic.P384())), good},
		{"P-521", ec(oidP521, point(elliptic.P521())), good},
		{"P-224", ec("\x2b\x81\x04\x00\x21", point(elliptic.P224())), unsupported},
		{"P-256, not on the curve", ec(oidP256, off), malformed},
		{"P-256, infinity", ec(oidP256, []byte{0}), malformed},
		{"P-256, P-384 point", ec(oidP256, point(elliptic.P384())), malformed},
		{"explicit curve", seq(algID(oidECPublicKey, seq()), tlv(3, []byte{0}, p256)), unsupported},
		{"no curve", seq(algID(oidECPublicKey), tlv(3, []byte{0}, p256)), unsupported},
		{"Ed25519", seq(algID(oidEd25519), tlv(3, []byte{0}, edPub)), good},
		{"Ed25519, short", seq(algID(oidEd25519), tlv(3, []byte{0}, edPub[:31])), malformed},
		{"X25519", seq(algID("\x2b\x65\x6e"), tlv(3, []byte{0}, edPub)), unsupported},
		{"unknown", seq(algID("\x2a\x03"), tlv(3, []byte{0})), unsupported},
		{"RSA, parameters absent", seq(algID(oidRSA), tlv(3, rsaID().c.RawSPKI[len(rsaID().c.RawSPKI)-271:])), good},
		{"RSA, parameters", seq(algID(oidRSA, seq()), tlv(3, rsaID().c.RawSPKI[len(rsaID().c.RawSPKI)-271:])), malformed},
		{"RSA, garbage", seq(algID(oidRSA, null), tlv(3, []byte{0, 1, 2})), malformed},
		{"unused bits", seq(algID(oidRSA, null), tlv(3, []byte{1, 0})), malformed},
		{"something behind", append(bytes.Clone(rsaID().c.RawSPKI), 0), malformed},
		{"empty", nil, malformed},
	} {
		pub, err := ParsePublicKey(test.spki)
		if got := resultOf(err); got != test.want || (pub == nil) != (err != nil) {
			t.Errorf("%s: %v, %v", test.name, pub, err)
		}
	}
	for _, pub := range []crypto.PublicKey{
		nil, "key", (*rsa.PublicKey)(nil), (*ecdsa.PublicKey)(nil), &ecdsa.PublicKey{}, ed25519.PublicKey("short"),
		rsaKey().PublicKey, &rsa.PublicKey{E: 3}, &must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader)).PublicKey,
	} {
		if err := CheckKey(pub); resultOf(err) != unsupported || !strings.HasPrefix(err.Error(), "cms: ") {
			t.Errorf("%T: %v", pub, err)
		}
	}
}

func TestCipher(t *testing.T) {
	for c, want := range map[Cipher]string{
		0:         "Cipher(0) 0 ",
		DES:       "DES-CBC 8 1.3.14.3.2.7",
		TripleDES: "DES-EDE3-CBC 24 1.2.840.113549.3.7",
		AES128:    "AES-128-CBC 16 2.16.840.1.101.3.4.1.2",
		AES192:    "AES-192-CBC 24 2.16.840.1.101.3.4.1.22",
		AES256:    "AES-256-CBC 32 2.16.840.1.101.3.4.1.42",
	} {
		if got := c.String() + " " + big.NewInt(int64(c.KeySize())).String() + " " + c.OID().String(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if cipherOf([]byte(c.oid())) != c {
			t.Errorf("%v is not found by its OID", c)
		}
	}
}

func TestAlgorithmError(t *testing.T) {
	for err, want := range map[*AlgorithmError]string{
		{Use: "digest", OID: []int{1, 2, 3}}:                       "cms: digest algorithm 1.2.3 is not supported",
		{Use: "signature"}:                                         "cms: signature algorithm is not supported",
		{Use: "public key", OID: []int{1, 2}, detail: "too large"}: "cms: public key algorithm 1.2: too large",
	} {
		if err.Error() != want {
			t.Errorf("got %q, want %q", err, want)
		}
	}
}
