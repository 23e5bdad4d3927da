// Package keycheck refuses public keys that ought not to be certified.
//
// It does not depend on GODEBUG, holds no state and may be used concurrently.
package keycheck

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"fmt"
)

// The sizes of RSA keys, in bits, that Check never leaves.
const (
	leastRSA = 1024
	mostRSA  = 8192
)

// Check reports why pub, the key of a certificate request, must not be certified. It admits
//
//   - RSA of minRSA to maxRSA bits, a multiple of 8, unless it can be factored by one of the
//     attacks that keys made by faulty programs have fallen to: small factors, primes close
//     to one another, and the primes of CVE-2017-15361 (ROCA). The exponent is odd, at least
//     65537 and below 2^31.
//   - ECDSA on P-256, P-384 and P-521, the point being on the curve.
//   - Ed25519.
//
// A zero bound means 1024 or 8192 bits, and one outside that range the end of it.
//
// The time is bounded: sizes are looked at before any arithmetic. The text of an error is short,
// has nothing of the key in it but its size and kind, and may be shown to who sent the key.
func Check(pub crypto.PublicKey, minRSA, maxRSA int) error {
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		if pub == nil || pub.N == nil {
			break
		}
		if maxRSA == 0 {
			maxRSA = mostRSA
		}
		minRSA = min(max(minRSA, leastRSA), mostRSA)
		maxRSA = min(max(maxRSA, leastRSA), mostRSA)
		return checkRSA(pub, minRSA, maxRSA)
	case *ecdsa.PublicKey:
		if pub == nil {
			break
		}
		return checkECDSA(pub)
	case ed25519.PublicKey:
		if len(pub) != ed25519.PublicKeySize {
			return fmt.Errorf("Ed25519 key has %d bytes; it must have %d", len(pub), ed25519.PublicKeySize)
		}
		return nil
	}
	return errors.New("key type is not known; use RSA, ECDSA or Ed25519")
}

func checkECDSA(pub *ecdsa.PublicKey) error {
	switch pub.Curve {
	case elliptic.P256(), elliptic.P384(), elliptic.P521():
	default:
		return errors.New("ECDSA curve is not allowed; use P-256, P-384 or P-521")
	}
	//lint:ignore SA1019 Bytes and ECDH would panic on nil
	if pub.X == nil || pub.Y == nil {
		return errors.New("ECDSA key has no point")
	}
	// Bytes and ECDH refuse coordinates out of range and points off the curve.
	if _, err := pub.ECDH(); err != nil {
		return errors.New("ECDSA point is not on its curve")
	}
	return nil
}

func checkRSA(pub *rsa.PublicKey, least, most int) error {
	n, e := pub.N, int64(pub.E)
	bits := n.BitLen()
	switch {
	case n.Sign() <= 0:
		return errors.New("RSA modulus is not positive")
	case bits < least || bits > most:
		return fmt.Errorf("RSA key has %d bits; %d to %d are allowed", bits, least, most)
	case bits%8 != 0:
		return fmt.Errorf("RSA key has %d bits; it must be a multiple of 8", bits)
	case n.Bit(0) == 0:
		return errors.New("RSA modulus is even")
	case e < 65537 || e >= 1<<31 || e%2 == 0:
		return errors.New("RSA exponent is not allowed; use 65537")
	}
	t := rsaTables()
	residue := t.residue(n)
	switch {
	case t.smallFactor(residue):
		return errors.New("RSA modulus has a small factor; make a new key")
	case t.roca(residue):
		return errors.New("RSA key can be factored (CVE-2017-15361); make a new key with updated software")
	case t.closePrimes(n):
		return errors.New("RSA key can be factored, its primes are close together; make a new key with other software")
	}
	return nil
}
