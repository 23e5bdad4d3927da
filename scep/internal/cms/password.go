package cms

import (
	"crypto"
	"crypto/cipher"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

const (
	oidPBKDF2         = "\x2a\x86\x48\x86\xf7\x0d\x01\x05\x0c"         // 1.2.840.113549.1.5.12
	oidPWRIKEK        = "\x2a\x86\x48\x86\xf7\x0d\x01\x09\x10\x03\x09" // 1.2.840.113549.1.9.16.3.9
	oidHMACWithSHA1   = "\x2a\x86\x48\x86\xf7\x0d\x02\x07"             // 1.2.840.113549.2.7
	oidHMACWithSHA224 = "\x2a\x86\x48\x86\xf7\x0d\x02\x08"
	oidHMACWithSHA256 = "\x2a\x86\x48\x86\xf7\x0d\x02\x09"
	oidHMACWithSHA384 = "\x2a\x86\x48\x86\xf7\x0d\x02\x0a"
	oidHMACWithSHA512 = "\x2a\x86\x48\x86\xf7\x0d\x02\x0b"
)

const (
	// MaxIterations is how many rounds of PBKDF2 a sender may ask of a recipient. OpenSSL asks
	// for 2048 and Bouncy Castle for 1024; what this costs is some hundredths of a second.
	MaxIterations = 100_000

	iterations = 10_000 // that are written

	maxSalt       = 128
	maxWrappedKey = 256
)

// A PasswordRecipient is a PasswordRecipientInfo (RFC 5652, 6.2.4), whose key-encryption key is
// made of a password by PBKDF2 (RFC 8018, 5.2) and wraps as id-alg-PWRI-KEK does (RFC 3211, 2.3).
type PasswordRecipient struct {
	Cipher     Cipher // of the key-encryption key: AES or TripleDES
	Iterations int    // 1 to MaxIterations

	hash         crypto.Hash
	salt, iv     []byte
	encryptedKey []byte
	err          error
}

// Check returns an [*AlgorithmError] if r cannot be opened by any password: for its algorithms or
// its parameters, which everybody can see.
func (r *PasswordRecipient) Check() error { return r.err }

// UnwrapKey returns the content-encryption key of n bytes. If password is wrong, or what was
// wrapped is no key of n bytes, it returns n random bytes in the same time, and no error. An error
// is that of [PasswordRecipient.Check], or says that the process may not compute this.
func (r *PasswordRecipient) UnwrapKey(password []byte, n int) ([]byte, error) {
	if r.err != nil {
		return nil, r.err
	}
	block, err := passwordKey(password, r.hash, r.salt, r.Iterations, r.Cipher)
	if err != nil {
		return nil, err
	}
	key := make([]byte, n)
	rand.Read(key)
	unwrapKey(block, r.iv, r.encryptedKey, key)
	return key, nil
}

// passwordKey returns the cipher of a key-encryption key.
func passwordKey(password []byte, hash crypto.Hash, salt []byte, iterations int, c Cipher) (cipher.Block, error) {
	kek, err := pbkdf2.Key(hash.New, string(password), salt, iterations, c.KeySize())
	if err != nil {
		return nil, fmt.Errorf("cms: %w", err)
	}
	block, err := c.block(kek)
	if err != nil {
		return nil, fmt.Errorf("cms: %w", err)
	}
	return block, nil
}

// unwrapKey sets key to what wrapped holds, if that is a key of this length; in constant time.
func unwrapKey(block cipher.Block, iv, wrapped, key []byte) {
	n := block.BlockSize()
	if len(wrapped)%n != 0 || len(wrapped) < 2*n || len(wrapped) < 4+len(key) {
		return
	}
	// The IV of the outer encryption was the last block of the inner one.
	last := make([]byte, n)
	cipher.NewCBCDecrypter(block, wrapped[len(wrapped)-2*n:len(wrapped)-n]).CryptBlocks(last, wrapped[len(wrapped)-n:])
	plain := make([]byte, len(wrapped))
	cipher.NewCBCDecrypter(block, last).CryptBlocks(plain, wrapped)
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(plain, plain)

	good := subtle.ConstantTimeByteEq(plain[0], byte(len(key)))
	for i := 1; i <= 3; i++ {
		good &= subtle.ConstantTimeByteEq(plain[i]^0xff, plain[3+i])
	}
	subtle.ConstantTimeCopy(good, key, plain[4:4+len(key)])
}

// wrapKey is the inverse of unwrapKey. A key has at least 3 bytes.
func wrapKey(block cipher.Block, iv, key []byte) []byte {
	n := block.BlockSize()
	wrapped := make([]byte, max(2*n, (4+len(key)+n-1)/n*n))
	rand.Read(wrapped)
	wrapped[0], wrapped[1], wrapped[2], wrapped[3] = byte(len(key)), ^key[0], ^key[1], ^key[2]
	copy(wrapped[4:], key)
	encrypter := cipher.NewCBCEncrypter(block, iv)
	encrypter.CryptBlocks(wrapped, wrapped)
	encrypter.CryptBlocks(wrapped, wrapped) // goes on with the last block
	return wrapped
}

// EncryptPassword writes a ContentInfo(EnvelopedData) in DER that password opens: one password
// recipient, with PBKDF2 by HMAC-SHA-256 and a key-encryption key for c. It refuses DES, and an
// empty password.
func EncryptPassword(content []byte, c Cipher, password []byte) ([]byte, error) {
	if len(password) == 0 {
		return nil, errors.New("cms: cannot encrypt with an empty password")
	}
	s, err := encryptContent(content, c)
	if err != nil {
		return nil, err
	}
	salt := make([]byte, 16)
	rand.Read(salt)
	block, err := passwordKey(password, crypto.SHA256, salt, iterations, c)
	if err != nil {
		return nil, err
	}
	iv := make([]byte, block.BlockSize())
	rand.Read(iv)
	wrapped := wrapKey(block, iv, s.key)
	return s.write(3, len(wrapped), func(b *cryptobyte.Builder) {
		b.AddASN1(explicit(3), func(b *cryptobyte.Builder) {
			b.AddASN1Int64(0)
			b.AddASN1(explicit(0), func(b *cryptobyte.Builder) { // implicit: an AlgorithmIdentifier without its tag
				addOID(b, oidPBKDF2)
				b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1OctetString(salt)
					b.AddASN1Int64(iterations)
					b.AddASN1Int64(int64(c.KeySize()))
					addAlgorithm(b, oidHMACWithSHA256, true)
				})
			})
			b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
				addOID(b, oidPWRIKEK)
				b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
					addOID(b, c.oid())
					b.AddASN1OctetString(iv)
				})
			})
			b.AddASN1OctetString(wrapped)
		})
	})
}

// readPasswordRecipient reads the content of a PasswordRecipientInfo. What is wrong with it is an
// error of Check: the recipient may be another.
func readPasswordRecipient(s cryptobyte.String) (r PasswordRecipient) {
	var (
		version         int
		derivation, kek algorithm
		key             cryptobyte.String
	)
	fail := func(detail string) PasswordRecipient {
		r.err = &AlgorithmError{Use: "password recipient", OID: objectIdentifier(kek.oid), detail: detail}
		return r
	}
	if !s.ReadASN1Integer(&version) || version != 0 ||
		s.PeekASN1Tag(explicit(0)) && !readAlgorithm(&s, &derivation, explicit(0)) ||
		!readAlgorithm(&s, &kek, casn1.SEQUENCE) || !s.ReadASN1(&key, casn1.OCTET_STRING) || !s.Empty() {
		return fail("it cannot be read")
	}
	r.encryptedKey = key
	switch {
	case string(kek.oid) != oidPWRIKEK:
		return fail("")
	case string(derivation.oid) != oidPBKDF2:
		return fail("the key derivation is not PBKDF2")
	case len(key) > maxWrappedKey:
		return fail("the wrapped key is too long")
	case !r.readCipher(kek.params):
		return fail("the cipher of the key-encryption key is not supported")
	}
	if detail := r.readDerivation(derivation.params); detail != "" {
		return fail(detail)
	}
	return r
}

// readCipher reads the parameters of id-alg-PWRI-KEK.
func (r *PasswordRecipient) readCipher(p cryptobyte.String) bool {
	var (
		a  algorithm
		iv cryptobyte.String
	)
	if !readAlgorithm(&p, &a, casn1.SEQUENCE) || !a.params.ReadASN1(&iv, casn1.OCTET_STRING) {
		return false
	}
	r.iv = iv
	switch r.Cipher = cipherOf(a.oid); r.Cipher {
	case AES128, AES192, AES256:
		return len(iv) == 16
	case TripleDES:
		return len(iv) == 8
	}
	return false
}

// readDerivation reads PBKDF2-params (RFC 8018, A.2) and says what is wrong with them, or "".
func (r *PasswordRecipient) readDerivation(p cryptobyte.String) (detail string) {
	var (
		seq, salt cryptobyte.String
		length    int
		prf       = algorithm{oid: cryptobyte.String(oidHMACWithSHA1)}
	)
	if !p.ReadASN1(&seq, casn1.SEQUENCE) || !p.Empty() || !seq.ReadASN1(&salt, casn1.OCTET_STRING) || len(salt) > maxSalt {
		return "the salt of PBKDF2 is missing, of another kind or too long"
	}
	if !seq.ReadASN1Integer(&r.Iterations) || r.Iterations < 1 || r.Iterations > MaxIterations {
		r.Iterations = 0
		return fmt.Sprintf("the iteration count of PBKDF2 is not between 1 and %d", MaxIterations)
	}
	if seq.PeekASN1Tag(casn1.INTEGER) && (!seq.ReadASN1Integer(&length) || length != r.Cipher.KeySize()) {
		return "the key length of PBKDF2 is not that of the cipher"
	}
	if !seq.Empty() && (!readAlgorithm(&seq, &prf, casn1.SEQUENCE) || !seq.Empty()) {
		return "the parameters of PBKDF2 cannot be read"
	}
	r.salt, r.hash = salt, hmacHashOf(prf.oid)
	if r.hash == 0 || !prf.noParams() {
		return "the hash of PBKDF2 is not supported"
	}
	return ""
}

// hmacHashOf returns the hash of an HMAC, or 0.
func hmacHashOf(oid []byte) crypto.Hash {
	switch string(oid) {
	case oidHMACWithSHA1:
		return crypto.SHA1
	case oidHMACWithSHA224:
		return crypto.SHA224
	case oidHMACWithSHA256:
		return crypto.SHA256
	case oidHMACWithSHA384:
		return crypto.SHA384
	case oidHMACWithSHA512:
		return crypto.SHA512
	}
	return 0
}
