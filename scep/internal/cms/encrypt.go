package cms

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"crypto/rand"
	"crypto/rsa"
	"crypto/subtle"
	"fmt"
	"math/bits"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// block returns the block cipher with a key of the right length; AES-128 if c is none.
func (c Cipher) block(key []byte) (cipher.Block, error) {
	switch c {
	case DES:
		return des.NewCipher(key)
	case TripleDES:
		return des.NewTripleDESCipher(key)
	}
	return aes.NewCipher(key)
}

// Decrypt decrypts the content with key, which has e.Cipher.KeySize() bytes. ok is false if the
// length of key, IV or ciphertext is wrong, or the padding; then plain is not empty but
// meaningless, so that the caller can go on in the same way: it takes the same time. It checks
// padding in constant time. plain shares no memory with e.
func (e *Envelope) Decrypt(key []byte) (plain []byte, ok bool) {
	good := 1
	size := e.Cipher.KeySize()
	if size == 0 {
		size, good = AES128.KeySize(), 0
	}
	if len(key) != size || len(e.Ciphertext) == 0 {
		good = 0
	}
	var k [32]byte // the right length, whatever came
	copy(k[:size], key)
	block, err := e.Cipher.block(k[:size])
	if err != nil {
		// No cipher refuses a key of its length, unless the process may not use that cipher at all.
		return make([]byte, aes.BlockSize), false
	}
	n := block.BlockSize()
	var iv [aes.BlockSize]byte
	copy(iv[:n], e.IV)
	whole := len(e.Ciphertext) / n * n
	if len(e.IV) != n || len(e.Ciphertext) != whole {
		good = 0
	}
	plain = make([]byte, max(whole, n))
	copy(plain, e.Ciphertext[:whole])
	cipher.NewCBCDecrypter(block, iv[:n]).CryptBlocks(plain, plain)

	pad, padded := padding(plain[len(plain)-n:])
	good &= padded
	return plain[:len(plain)-subtle.ConstantTimeSelect(good, pad, 0)], good == 1
}

// padding returns the length of the padding (RFC 5652, 6.3) in the last block, and 1 if it is
// well-formed. It takes the same time whatever is in the block.
func padding(block []byte) (length, ok int) {
	last := block[len(block)-1]
	length = int(last)
	ok = subtle.ConstantTimeLessOrEq(1, length) & subtle.ConstantTimeLessOrEq(length, len(block))
	for i, c := range block {
		inside := subtle.ConstantTimeLessOrEq(len(block)-i, length)
		ok &= subtle.ConstantTimeSelect(inside, subtle.ConstantTimeByteEq(c, last), 1)
	}
	return length, ok
}

// Encrypt writes a ContentInfo(EnvelopedData) in DER that the RSA key pub opens, named by issuer
// and serial of to, exactly as they were received. The key transport is PKCS#1 v1.5, as all
// clients know no other. It refuses DES.
func Encrypt(content []byte, c Cipher, to *Certificate, pub crypto.PublicKey) ([]byte, error) {
	if err := CheckKey(pub); err != nil {
		return nil, err
	}
	rsaKey, ok := pub.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("cms: cannot encrypt for a key of type %T", pub)
	}
	s, err := encryptContent(content, c)
	if err != nil {
		return nil, err
	}
	//lint:ignore SA1019 SCEP has no other key transport that all clients know.
	encryptedKey, err := rsa.EncryptPKCS1v15(rand.Reader, rsaKey, s.key)
	if err != nil {
		return nil, fmt.Errorf("cms: %w", err)
	}
	return s.write(0, len(encryptedKey)+len(to.RawIssuer)+len(to.RawSerial), func(b *cryptobyte.Builder) {
		b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1Int64(0)
			addIssuerAndSerial(b, to)
			addAlgorithm(b, oidRSA, true)
			b.AddASN1OctetString(encryptedKey)
		})
	})
}

// encrypted is content under a fresh key.
type encrypted struct {
	cipher        Cipher
	key, iv, text []byte
}

func encryptContent(content []byte, c Cipher) (*encrypted, error) {
	if c == DES || c.KeySize() == 0 {
		return nil, fmt.Errorf("cms: cannot encrypt with %v", c)
	}
	key := make([]byte, c.KeySize())
	rand.Read(key) // never fails
	if c == TripleDES {
		setParity(key)
	}
	block, err := c.block(key)
	if err != nil {
		return nil, fmt.Errorf("cms: %w", err)
	}
	iv := make([]byte, block.BlockSize())
	rand.Read(iv)
	pad := len(iv) - len(content)%len(iv)
	text := make([]byte, len(content)+pad)
	for i := copy(text, content); i < len(text); i++ {
		text[i] = byte(pad)
	}
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(text, text)
	return &encrypted{c, key, iv, text}, nil
}

// write writes the ContentInfo(EnvelopedData) with one recipient, which has about size bytes.
func (s *encrypted) write(version int64, size int, recipient func(b *cryptobyte.Builder)) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, 256+size+len(s.text)))
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		addOID(b, oidEnvelopedData)
		b.AddASN1(explicit(0), func(b *cryptobyte.Builder) {
			b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(version)
				b.AddASN1(casn1.SET, func(b *cryptobyte.Builder) { recipient(b) })
				b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
					addOID(b, oidData)
					b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
						addOID(b, s.cipher.oid())
						b.AddASN1OctetString(s.iv)
					})
					b.AddASN1(casn1.Tag(0).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(s.text) })
				})
			})
		})
	})
	out, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("cms: %w", err)
	}
	return out, nil
}

// setParity gives the bytes of a DES key odd parity, which some tokens insist on.
func setParity(key []byte) {
	for i, c := range key {
		key[i] = c&^1 | byte(bits.OnesCount8(c>>1)&1^1)
	}
}
