package sceptest

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/pbkdf2"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

var (
	oidPBKDF2  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}
	oidPWRIKEK = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 3, 9}

	hmacOIDs = map[crypto.Hash]asn1.ObjectIdentifier{
		crypto.SHA1:   {1, 2, 840, 113549, 2, 7},
		crypto.SHA256: {1, 2, 840, 113549, 2, 9},
		crypto.SHA384: {1, 2, 840, 113549, 2, 10},
		crypto.SHA512: {1, 2, 840, 113549, 2, 11},
	}
)

// A Password describes a PasswordRecipientInfo (RFC 5652, 6.2.4) with PBKDF2 and a key-encryption
// key for AES-128.
type Password struct {
	Secret     string
	Hash       crypto.Hash // of the HMAC: SHA-1, SHA-256, SHA-384 or SHA-512; if zero, SHA-1, which is not written
	Iterations int64       // if zero, 2048
	Said       int64       // in place of Iterations
}

// der returns the RecipientInfo around key, whose encrypted form is edited if edit is not nil.
func (p Password) der(key []byte, edit func([]byte) []byte) []byte {
	rounds, hash := p.Iterations, p.Hash
	if rounds == 0 {
		rounds = 2048
	}
	if hash == 0 {
		hash = crypto.SHA1
	}
	salt, iv := Nonce(8), Nonce(16)
	block := must(aes.NewCipher(must(pbkdf2.Key(hash.New, p.Secret, salt, int(rounds), 16))))
	wrapped := []byte{byte(len(key)), ^key[0], ^key[1], ^key[2]}
	wrapped = append(wrapped, key...)
	for len(wrapped)%16 != 0 || len(wrapped) < 32 {
		wrapped = append(wrapped, Nonce(1)...)
	}
	for _, iv := range [][]byte{iv, nil} {
		if iv == nil {
			iv = slices.Clone(wrapped[len(wrapped)-16:])
		}
		cipher.NewCBCEncrypter(block, iv).CryptBlocks(wrapped, wrapped)
	}
	if edit != nil {
		wrapped = edit(wrapped)
	}
	if p.Said != 0 {
		rounds = p.Said
	}
	params := [][]byte{TLV(TagOctetString, salt), Integer(rounds)}
	if p.Hash != 0 {
		params = append(params, Algorithm(hmacOIDs[hash], null))
	}
	return TLV(0xa3,
		Integer(0),
		TLV(0xa0, OID(oidPBKDF2), TLV(TagSequence, params...)),
		Algorithm(oidPWRIKEK, Algorithm(ciphers[AES128].oid, TLV(TagOctetString, iv))),
		TLV(TagOctetString, wrapped))
}

// passwordKey opens a PasswordRecipientInfo that a server wrote.
func passwordKey(info cryptobyte.String, password string) ([]byte, error) {
	var version, rounds, length int
	var derivation, params, salt, prf, kek, inner, iv, wrapped cryptobyte.String
	var oids [4]asn1.ObjectIdentifier
	ok := info.ReadASN1Integer(&version) && version == 0 &&
		info.ReadASN1(&derivation, tagged(0)) && derivation.ReadASN1ObjectIdentifier(&oids[0]) &&
		derivation.ReadASN1(&params, cbasn1.SEQUENCE) && derivation.Empty() &&
		params.ReadASN1(&salt, cbasn1.OCTET_STRING) && params.ReadASN1Integer(&rounds) &&
		(!params.PeekASN1Tag(cbasn1.INTEGER) || params.ReadASN1Integer(&length)) &&
		params.ReadASN1(&prf, cbasn1.SEQUENCE) && params.Empty() && prf.ReadASN1ObjectIdentifier(&oids[1]) &&
		info.ReadASN1(&kek, cbasn1.SEQUENCE) && kek.ReadASN1ObjectIdentifier(&oids[2]) &&
		kek.ReadASN1(&inner, cbasn1.SEQUENCE) && kek.Empty() && inner.ReadASN1ObjectIdentifier(&oids[3]) &&
		inner.ReadASN1(&iv, cbasn1.OCTET_STRING) && inner.Empty() &&
		info.ReadASN1(&wrapped, cbasn1.OCTET_STRING) && info.Empty()
	i := slices.IndexFunc(ciphers, func(c cipherAlgorithm) bool { return c.oid.Equal(oids[3]) })
	switch {
	case !ok || !oids[0].Equal(oidPBKDF2) || !oids[2].Equal(oidPWRIKEK) || i < 0 || Cipher(i) == SingleDES:
		return nil, errors.New("password recipient is malformed")
	case !oids[1].Equal(hmacOIDs[crypto.SHA256]) || rounds < 10_000 || len(salt) < 16:
		return nil, fmt.Errorf("password recipient has HMAC %v, %d rounds and %d bytes of salt", oids[1], rounds, len(salt))
	}
	key, err := pbkdf2.Key(crypto.SHA256.New, password, salt, rounds, ciphers[i].key)
	if err != nil {
		return nil, err
	}
	block, err := ciphers[i].new(key)
	if err != nil {
		return nil, err
	}
	n, size := block.BlockSize(), len(wrapped)
	if len(iv) != n || size < 2*n || size%n != 0 {
		return nil, errors.New("wrapped key has the wrong length")
	}
	last := make([]byte, n)
	cipher.NewCBCDecrypter(block, wrapped[size-2*n:size-n]).CryptBlocks(last, wrapped[size-n:])
	plain := make([]byte, size)
	cipher.NewCBCDecrypter(block, last).CryptBlocks(plain, wrapped)
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(plain, plain)
	if plain[1] != ^plain[4] || plain[2] != ^plain[5] || plain[3] != ^plain[6] || int(plain[0]) > size-4 {
		return nil, errors.New("the challenge password does not open the reply")
	}
	return plain[4 : 4+int(plain[0])], nil
}
