package cms

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"errors"
	"fmt"
	"testing"
	"time"
)

// pwri is a PasswordRecipientInfo with everything open to change.
type pwri struct {
	version    []byte
	derivation []byte // the [0] element
	kek        []byte
	key        []byte
}

func pbkdf2Params(rounds int64, more ...[]byte) []byte {
	return seq(append([][]byte{octets([]byte("saltsalt")), integer(rounds)}, more...)...)
}

func newPWRI() *pwri {
	block, err := passwordKey([]byte("secret"), crypto.SHA1, []byte("saltsalt"), 1, AES128)
	if err != nil {
		panic(err)
	}
	return &pwri{
		version:    integer(0),
		derivation: ctx(0, oid(oidPBKDF2), pbkdf2Params(1)),
		kek:        algID(oidPWRIKEK, algID(oidAES128CBC, octets(make([]byte, 16)))),
		key:        octets(wrapKey(block, make([]byte, 16), contentKey)),
	}
}

func (p *pwri) der() []byte { return ctx(3, p.version, p.derivation, p.kek, p.key) }

func openPassword(e *Envelope, password string) ([]byte, error) {
	if len(e.Passwords) == 0 {
		return nil, errors.New("no recipient")
	}
	key, err := e.Passwords[0].UnwrapKey([]byte(password), e.Cipher.KeySize())
	if err != nil {
		return nil, err
	}
	plain, ok := e.Decrypt(key)
	if !ok {
		return nil, errors.New("content cannot be decrypted")
	}
	return plain, nil
}

func TestPasswordRecipient(t *testing.T) {
	prf := func(hash string) func(*pwri) {
		return func(p *pwri) { p.derivation = ctx(0, oid(oidPBKDF2), pbkdf2Params(1, algID(hash, null))) }
	}
	rounds := func(params []byte) func(*pwri) {
		return func(p *pwri) { p.derivation = ctx(0, oid(oidPBKDF2), params) }
	}
	const opens, garbage, unusable = 0, 1, 2
	for _, test := range []struct {
		name   string
		change func(*pwri)
		want   int
	}{
		{"plain", func(*pwri) {}, opens},
		{"key length", rounds(pbkdf2Params(1, integer(16))), opens},
		{"HMAC-SHA-1 by name", prf(oidHMACWithSHA1), opens},
		{"key length and hash", rounds(pbkdf2Params(1, integer(16), algID(oidHMACWithSHA1))), opens},
		{"another hash", prf(oidHMACWithSHA512), garbage},
		{"another count", rounds(pbkdf2Params(2)), garbage},
		{"most rounds", rounds(pbkdf2Params(MaxIterations)), garbage},
		{"one byte changed", func(p *pwri) { p.key = bytes.Clone(p.key); p.key[5] ^= 1 }, garbage},
		{"wrapped key empty", func(p *pwri) { p.key = octets(nil) }, garbage},
		{"wrapped key of one block", func(p *pwri) { p.key = octets(make([]byte, 16)) }, garbage},
		{"wrapped key of no whole block", func(p *pwri) { p.key = octets(make([]byte, 33)) }, garbage},
		{"wrapped key of 272 bytes", func(p *pwri) { p.key = octets(make([]byte, 272)) }, unusable},
		{"no rounds", rounds(pbkdf2Params(0)), unusable},
		{"negative rounds", rounds(pbkdf2Params(-1)), unusable},
		{"a round too many", rounds(pbkdf2Params(MaxIterations + 1)), unusable},
		{"PWR-05 2^31 rounds", rounds(pbkdf2Params(1 << 31)), unusable},
		{"rounds of 2^80", rounds(seq(octets(nil), tlv(2, append([]byte{1}, make([]byte, 10)...)))), unusable},
		{"no count", rounds(seq(octets(nil))), unusable},
		{"key length 32", rounds(pbkdf2Params(1, integer(32))), unusable},
		{"salt of 129 bytes", rounds(seq(octets(make([]byte, 129)), integer(1))), unusable},
		{"salt elsewhere", rounds(seq(algID(oidData), integer(1))), unusable},
		{"MD5", prf(oidMD5), unusable},
		{"something behind", rounds(append(pbkdf2Params(1), 5, 0)), unusable},
		{"no derivation", func(p *pwri) { p.derivation = nil }, unusable},
		{"another derivation", func(p *pwri) { p.derivation = ctx(0, oid(oidData), pbkdf2Params(1)) }, unusable},
		{"another wrap", func(p *pwri) { p.kek = algID(oidAES128CBC, octets(make([]byte, 16))) }, unusable},
		{"DES", func(p *pwri) { p.kek = algID(oidPWRIKEK, algID(oidDESCBC, octets(make([]byte, 8)))) }, unusable},
		{"no IV", func(p *pwri) { p.kek = algID(oidPWRIKEK, algID(oidAES128CBC)) }, unusable},
		{"short IV", func(p *pwri) { p.kek = algID(oidPWRIKEK, algID(oidAES128CBC, octets(make([]byte, 8)))) }, unusable},
		{"version 1", func(p *pwri) { p.version = integer(1) }, unusable},
		{"empty", func(p *pwri) { *p = pwri{} }, unusable},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPWRI()
			test.change(p)
			s := newSealed()
			s.version, s.recipients = 3, [][]byte{p.der()}
			e, err := ParseEnvelope(s.der())
			if err != nil || len(e.Passwords) != 1 || len(e.Recipients) != 0 {
				t.Fatal(err)
			}
			r := &e.Passwords[0]
			started := time.Now()
			key, err := r.UnwrapKey([]byte("secret"), 16)
			if took := time.Since(started); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
			var alg *AlgorithmError
			switch {
			case test.want == unusable:
				if !errors.As(err, &alg) || r.Check() != err || key != nil {
					t.Errorf("%x, %v, %v", key, err, r.Check())
				}
			case err != nil || r.Check() != nil || len(key) != 16:
				t.Errorf("%x, %v, %v", key, err, r.Check())
			case bytes.Equal(key, contentKey) != (test.want == opens):
				t.Errorf("key is %q", key)
			}
			if test.want == opens {
				if plain, err := openPassword(e, "secret"); err != nil || string(plain) != "content" {
					t.Errorf("%q, %v", plain, err)
				}
				if again, err := r.UnwrapKey([]byte("Secret"), 16); err != nil || bytes.Equal(again, contentKey) {
					t.Errorf("the wrong password: %q, %v", again, err)
				}
				if other, err := r.UnwrapKey([]byte("secret"), 24); err != nil || len(other) != 24 || bytes.HasPrefix(other, contentKey) {
					t.Errorf("a key of another length: %q, %v", other, err)
				}
			}
		})
	}
}

// Each of the three check bytes, and the length, is checked.
func TestUnwrapKeyChecks(t *testing.T) {
	block, iv := must(aes.NewCipher(contentKey)), make([]byte, 16)
	for i := range 4 {
		wrapped := wrapKey(block, iv, contentKey)
		got := make([]byte, 16)
		if unwrapKey(block, iv, wrapped, got); !bytes.Equal(got, contentKey) {
			t.Fatalf("%q", got)
		}
		plain := pad(contentKey, 32)
		inner := append([]byte{16, ^contentKey[0], ^contentKey[1], ^contentKey[2]}, plain[:28]...)
		inner[i] ^= 0x10
		once := cbc(block, iv, inner)
		twice := cbc(block, once[len(once)-16:], once)
		got = make([]byte, 16)
		if unwrapKey(block, iv, twice, got); !bytes.Equal(got, make([]byte, 16)) {
			t.Errorf("byte %d is not checked: %q", i, got)
		}
	}
}

func TestEncryptPassword(t *testing.T) {
	for _, c := range []Cipher{TripleDES, AES128, AES192, AES256} {
		der := must(EncryptPassword([]byte("content"), c, []byte("secret")))
		if got := must(Normalize(der)); &got[0] != &der[0] {
			t.Errorf("%v: writes what is not DER", c)
		}
		e := must(ParseEnvelope(der))
		if plain, err := openPassword(e, "secret"); err != nil || string(plain) != "content" || e.Cipher != c || e.Passwords[0].Cipher != c || e.Passwords[0].Iterations != iterations {
			t.Errorf("%v: %q, %v", c, plain, err)
		}
		for range 20 { // by chance a padding may look right
			if plain, _ := openPassword(e, "secre"); string(plain) == "content" {
				t.Errorf("%v: opened with the wrong password", c)
			}
		}
	}
	for _, c := range []Cipher{0, DES, AES256 + 1} {
		if der, err := EncryptPassword(nil, c, []byte("secret")); err == nil {
			t.Errorf("%v: %x", c, der)
		}
	}
	if der, err := EncryptPassword(nil, AES128, nil); err == nil {
		t.Errorf("empty password: %x", der)
	}
}

func TestOpenSSLReadsPassword(t *testing.T) {
	o := newOpenSSL(t)
	for _, c := range []Cipher{TripleDES, AES128, AES192, AES256} {
		der := must(EncryptPassword(opensslContent, c, []byte("secret")))
		out, err := o.run(der, "-decrypt -inform DER -pwri_password secret")
		if err != nil || !bytes.Equal(out, opensslContent) {
			t.Errorf("%v: %v", c, err)
		}
		if out, err := o.run(der, "-decrypt -inform DER -pwri_password other"); err == nil && bytes.Equal(out, opensslContent) {
			t.Errorf("%v: opened with the wrong password", c)
		}
	}
}

func TestReadsOpenSSLPassword(t *testing.T) {
	o := newOpenSSL(t)
	for args, c := range map[string]Cipher{
		"-des3 -pwri_password secret": TripleDES, "-aes128 -pwri_password secret": AES128, "-aes192 -pwri_password secret": AES192,
		"-aes256 -pwri_password secret": AES256, "-aes256 -stream -recip rsa.crt -pwri_password secret": AES256,
	} {
		out, err := o.run(opensslContent, "-encrypt -outform DER "+args)
		if err != nil {
			t.Fatal(err)
		}
		e, err := ParseEnvelope(out)
		if err != nil {
			t.Fatal(err)
		}
		if plain, err := openPassword(e, "secret"); err != nil || !bytes.Equal(plain, opensslContent) || e.Cipher != c {
			t.Errorf("%s: %v", args, err)
		}
		if plain, err := openPassword(e, "other"); err == nil && bytes.Equal(plain, opensslContent) {
			t.Errorf("%s: opened with the wrong password", args)
		}
	}
}

func BenchmarkUnwrapPassword(b *testing.B) {
	for _, hash := range []string{oidHMACWithSHA1, oidHMACWithSHA256, oidHMACWithSHA512} {
		b.Run(fmt.Sprint(hmacHashOf([]byte(hash))), func(b *testing.B) {
			p := newPWRI()
			p.derivation = ctx(0, oid(oidPBKDF2), pbkdf2Params(MaxIterations, algID(hash, null)))
			p.kek = algID(oidPWRIKEK, algID(oidAES256CBC, octets(make([]byte, 16))))
			s := newSealed()
			s.recipients = [][]byte{p.der()}
			e := must(ParseEnvelope(s.der()))
			for b.Loop() {
				must(e.Passwords[0].UnwrapKey([]byte("secret"), 16))
			}
		})
	}
}
