package cms

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// RSA moduli outside of this are refused: crypto/rsa has no upper bound, and the work grows with
// the square of the size.
const (
	minRSABits = 1024
	maxRSABits = 8192
)

// CheckKey refuses keys that are dangerous to compute with, before any arithmetic: RSA outside
// 1024 to 8192 bits, with an even modulus, or an exponent that is even, below 3 or above 2^31-1;
// and key types other than RSA, ECDSA (P-256, P-384, P-521) and Ed25519. It does not depend on
// GODEBUG. Its error is an [*AlgorithmError].
func CheckKey(pub crypto.PublicKey) error {
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		switch {
		case pub == nil || pub.N == nil || pub.N.Sign() <= 0:
			return keyError(oidRSA, "RSA key without a modulus")
		case pub.N.BitLen() < minRSABits || pub.N.BitLen() > maxRSABits:
			return keyError(oidRSA, fmt.Sprintf("RSA modulus of %d bits", pub.N.BitLen()))
		case pub.N.Bit(0) == 0:
			return keyError(oidRSA, "RSA modulus is even")
		case pub.E < 3 || pub.E&1 == 0 || pub.E > 1<<31-1:
			return keyError(oidRSA, fmt.Sprintf("RSA exponent %d", pub.E))
		}
		return nil
	case *ecdsa.PublicKey:
		if pub == nil || pub.Curve != elliptic.P256() && pub.Curve != elliptic.P384() && pub.Curve != elliptic.P521() {
			return keyError(oidECPublicKey, "curve is not supported")
		}
		return nil
	case ed25519.PublicKey:
		if len(pub) != ed25519.PublicKeySize {
			return keyError(oidEd25519, fmt.Sprintf("Ed25519 key of %d bytes", len(pub)))
		}
		return nil
	}
	return keyError("", fmt.Sprintf("keys of type %T are not supported", pub))
}

func keyError(oid, detail string) error {
	return &AlgorithmError{Use: "public key", OID: objectIdentifier(oid), detail: detail}
}

// ParsePublicKey reads a SubjectPublicKeyInfo and checks it with [CheckKey], the sizes of RSA keys
// before anything is computed with them. Its errors wrap ErrSyntax or are an [*AlgorithmError].
func ParsePublicKey(spki []byte) (crypto.PublicKey, error) {
	var (
		s    = cryptobyte.String(spki)
		seq  cryptobyte.String
		alg  algorithm
		bits []byte
	)
	if !s.ReadASN1(&seq, casn1.SEQUENCE) || !s.Empty() ||
		!readAlgorithm(&seq, &alg, casn1.SEQUENCE) ||
		!seq.ReadASN1BitStringAsBytes(&bits) || !seq.Empty() {
		return nil, syntaxError("SubjectPublicKeyInfo")
	}
	switch string(alg.oid) {
	case oidRSA:
		if !alg.noParams() {
			return nil, syntaxError("RSA public key")
		}
		return parseRSAPublicKey(bits)
	case oidECPublicKey:
		var curve cryptobyte.String
		if !readOID(&alg.params, &curve) {
			return nil, keyError(oidECPublicKey, "parameters are not a named curve")
		}
		switch string(curve) {
		case oidP256, oidP384, oidP521:
		default:
			return nil, &AlgorithmError{Use: "public key", OID: objectIdentifier(curve), detail: "curve is not supported"}
		}
	case oidEd25519:
	default:
		return nil, &AlgorithmError{Use: "public key", OID: objectIdentifier(alg.oid)}
	}
	pub, err := x509.ParsePKIXPublicKey(spki) // the point is on the curve
	if err != nil {
		return nil, fmt.Errorf("%w public key: %w", ErrSyntax, err)
	}
	return pub, CheckKey(pub)
}

func parseRSAPublicKey(der cryptobyte.String) (crypto.PublicKey, error) {
	var (
		seq  cryptobyte.String
		n, e []byte
	)
	if !der.ReadASN1(&seq, casn1.SEQUENCE) || !der.Empty() ||
		!seq.ReadASN1Integer(&n) || !seq.ReadASN1Integer(&e) || !seq.Empty() {
		return nil, syntaxError("RSA public key")
	}
	if len(n) > maxRSABits/8 {
		return nil, keyError(oidRSA, fmt.Sprintf("RSA modulus of %d bytes", len(n)))
	}
	if len(e) > 4 || len(e) == 4 && e[0] >= 0x80 {
		return nil, keyError(oidRSA, "RSA exponent is too large")
	}
	pub := &rsa.PublicKey{N: new(big.Int).SetBytes(n)}
	for _, c := range e {
		pub.E = pub.E<<8 | int(c)
	}
	if err := CheckKey(pub); err != nil {
		return nil, err
	}
	return pub, nil
}
