package sceptest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	_ "crypto/md5"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha1"
	_ "crypto/sha256"
	_ "crypto/sha512"
)

// A Scheme is a way to sign, and to name it.
type Scheme uint8

const (
	WithHash      Scheme = iota // as sha256WithRSAEncryption, or ecdsa-with-SHA256
	PlainRSA                    // PKCS#1 v1.5 under the name rsaEncryption
	PSS                         // RSASSA-PSS with all parameters
	WithHashNoNil               // WithHash without the NULL that RSA's parameters are
)

// algorithm returns the AlgorithmIdentifier of a signature by key.
func (s Scheme) algorithm(key crypto.PublicKey, hash crypto.Hash) []byte {
	if _, ok := key.(*ecdsa.PublicKey); ok {
		return Algorithm(ecdsaSignatureOIDs[hash], nil)
	}
	if _, ok := key.(ed25519.PublicKey); ok {
		return Algorithm(oidEd25519, nil)
	}
	switch s {
	case PlainRSA:
		return Algorithm(oidRSA, null)
	case PSS:
		h := Algorithm(hashOIDs[hash], null)
		return Algorithm(oidPSS, TLV(TagSequence,
			TLV(0xa0, h),
			TLV(0xa1, Algorithm(oidMGF1, h)),
			TLV(0xa2, Integer(int64(hash.Size())))))
	case WithHashNoNil:
		return Algorithm(rsaSignatureOIDs[hash], nil)
	}
	return Algorithm(rsaSignatureOIDs[hash], null)
}

// sign signs data.
func (s Scheme) sign(key crypto.Signer, hash crypto.Hash, data []byte) []byte {
	if _, ok := key.Public().(ed25519.PublicKey); ok {
		return must(key.Sign(nil, data, crypto.Hash(0)))
	}
	h := hash.New()
	h.Write(data)
	var opts crypto.SignerOpts = hash
	if s == PSS {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
	}
	return must(key.Sign(rand.Reader, h.Sum(nil), opts))
}
