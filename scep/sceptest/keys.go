package sceptest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	_ "embed"
	"encoding/pem"
	"fmt"
	"sync"
)

// The keys are marked as TESTING KEY, so that those who scan for leaked keys leave them alone.
//
//go:embed keys.pem
var keysPEM []byte

// RSAKeys is how many keys [RSA] has.
const RSAKeys = 8

// The first RSAKeys in keys.pem have 2048 bits.
const (
	rsa1024 = RSAKeys + iota
	rsa3072
	rsa4096
	p256
	p384
	keyCount
)

var keys = func() (parse [keyCount]func() crypto.Signer) {
	rest := bytes.ReplaceAll(keysPEM, []byte("TESTING KEY"), []byte("PRIVATE KEY"))
	for i := range parse {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			panic("sceptest: keys.pem is incomplete")
		}
		parse[i] = sync.OnceValue(func() crypto.Signer {
			key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				panic(fmt.Sprintf("sceptest: key %d: %v", i, err))
			}
			return key.(crypto.Signer)
		})
	}
	return parse
}()

// RSA returns the fixed test key i of 2048 bits, 0 <= i < [RSAKeys]. Of these, [NewCA] takes the
// last, [NewSubCA] the last but one and [NewRA] the last but two, unless told otherwise.
func RSA(i int) *rsa.PrivateKey {
	if i < 0 || i >= RSAKeys {
		panic(fmt.Sprintf("sceptest: there is no RSA key %d", i))
	}
	return keys[i]().(*rsa.PrivateKey)
}

// RSA1024 returns the fixed test key of 1024 bits.
func RSA1024() *rsa.PrivateKey { return keys[rsa1024]().(*rsa.PrivateKey) }

// RSA3072 returns the fixed test key of 3072 bits.
func RSA3072() *rsa.PrivateKey { return keys[rsa3072]().(*rsa.PrivateKey) }

// RSA4096 returns the fixed test key of 4096 bits.
func RSA4096() *rsa.PrivateKey { return keys[rsa4096]().(*rsa.PrivateKey) }

// P256 returns the fixed test key on the curve P-256.
func P256() *ecdsa.PrivateKey { return keys[p256]().(*ecdsa.PrivateKey) }

// P384 returns the fixed test key on the curve P-384.
func P384() *ecdsa.PrivateKey { return keys[p384]().(*ecdsa.PrivateKey) }
