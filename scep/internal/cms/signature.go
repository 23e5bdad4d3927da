package cms

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// ErrSignature says that a signature or a digest does not verify.
var ErrSignature = errors.New("cms: signature does not verify")

func signatureError(why string) error { return fmt.Errorf("%w: %s", ErrSignature, why) }

// VerifySignature checks a signature made with the algorithm in alg (DER of AlgorithmIdentifier)
// over data. digest is the hash for an algorithm that does not imply one (rsaEncryption), or 0;
// an algorithm that implies another does not verify.
//
// It knows RSA PKCS#1 v1.5 (rsaEncryption or xxxWithRSA, MD5 and SHA-1 included: the caller
// decides on them), RSASSA-PSS, ECDSA and Ed25519. It checks the key first (see [CheckKey]). It
// returns the hash that was used, 0 for Ed25519. Its error wraps ErrSignature or is an
// [*AlgorithmError].
func VerifySignature(pub crypto.PublicKey, alg []byte, digest crypto.Hash, data, sig []byte) (crypto.Hash, error) {
	if err := CheckKey(pub); err != nil {
		return 0, err
	}
	var (
		s = cryptobyte.String(alg)
		a algorithm
	)
	if !readAlgorithm(&s, &a, casn1.SEQUENCE) || !s.Empty() {
		return 0, signatureError("malformed algorithm")
	}
	m, err := a.signature(digest)
	if err != nil {
		return 0, err
	}
	if digest != 0 && m.hash != 0 && m.hash != digest {
		return 0, signatureError("made with another hash than the digest")
	}
	hashed := data
	if m.hash != 0 {
		h := m.hash.New()
		h.Write(data)
		hashed = h.Sum(nil)
	}
	ok := false
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		switch m.scheme {
		case pkcs1v15:
			ok = rsa.VerifyPKCS1v15(pub, m.hash, hashed, sig) == nil
		case pss:
			ok = rsa.VerifyPSS(pub, m.hash, hashed, sig, &rsa.PSSOptions{SaltLength: m.salt}) == nil
		}
	case *ecdsa.PublicKey:
		ok = m.scheme == ecdsaDER && ecdsa.VerifyASN1(pub, hashed, sig)
	case ed25519.PublicKey:
		ok = m.scheme == pureEd25519 && ed25519.Verify(pub, hashed, sig)
	}
	if !ok {
		return 0, ErrSignature
	}
	return m.hash, nil
}

type scheme uint8

const (
	pkcs1v15 scheme = iota + 1
	pss
	ecdsaDER
	pureEd25519
)

type signatureMethod struct {
	scheme scheme
	hash   crypto.Hash
	salt   int
}

// signature says how signatures with the algorithm are verified. digest is the hash for those
// that name none.
func (a *algorithm) signature(digest crypto.Hash) (signatureMethod, error) {
	unsupported := func(detail string) error {
		return &AlgorithmError{Use: "signature", OID: objectIdentifier(a.oid), detail: detail}
	}
	var m signatureMethod
	switch string(a.oid) {
	case oidRSA:
		m = signatureMethod{scheme: pkcs1v15, hash: digest}
		if digest == 0 || !digest.Available() {
			return m, unsupported("no hash to go with it")
		}
	case oidPSS:
		return a.pss()
	case oidEd25519:
		m = signatureMethod{scheme: pureEd25519}
	default:
		if h := rsaHashOf(a.oid); h != 0 {
			m = signatureMethod{scheme: pkcs1v15, hash: h}
		} else if h := ecdsaHashOf(a.oid); h != 0 {
			m = signatureMethod{scheme: ecdsaDER, hash: h}
		} else {
			return m, unsupported("")
		}
	}
	if !a.noParams() {
		return m, unsupported("unexpected parameters")
	}
	return m, nil
}

// pss reads RSASSA-PSS-params (RFC 4055, 3.1).
func (a *algorithm) pss() (signatureMethod, error) {
	var (
		m         = signatureMethod{scheme: pss, hash: crypto.SHA1}
		mgf       = crypto.SHA1
		salt      = int64(20)
		trailer   = int64(1)
		p         = a.params
		seq, f    cryptobyte.String
		present   bool
		malformed = &AlgorithmError{Use: "signature", OID: objectIdentifier(oidPSS), detail: "parameters cannot be read"}
	)
	if !p.ReadASN1(&seq, casn1.SEQUENCE) || !p.Empty() {
		return m, malformed
	}
	if !readMaskedHash(&seq, &m.hash, &mgf) {
		return m, malformed
	}
	if !seq.ReadOptionalASN1(&f, &present, explicit(2)) || present && (!f.ReadASN1Integer(&salt) || !f.Empty()) {
		return m, malformed
	}
	if !seq.ReadOptionalASN1(&f, &present, explicit(3)) || present && (!f.ReadASN1Integer(&trailer) || !f.Empty()) {
		return m, malformed
	}
	if !seq.Empty() || salt < 0 || salt > maxRSABits/8 || trailer != 1 {
		return m, malformed
	}
	if m.hash == 0 || mgf == 0 {
		return m, &AlgorithmError{Use: "signature", OID: objectIdentifier(oidPSS), detail: "unknown hash"}
	}
	if mgf != m.hash {
		// crypto/rsa cannot, and nothing else here computes with RSA keys.
		return m, &AlgorithmError{Use: "signature", OID: objectIdentifier(oidPSS), detail: "mask generation with another hash"}
	}
	m.salt = int(salt) // 0 lets crypto/rsa take any
	return m, nil
}

// readMaskedHash reads hashAlgorithm [0] and maskGenAlgorithm [1], in which RSASSA-PSS-params and
// RSAES-OAEP-params agree. Those that are absent leave hash and mgf alone; unknown ones make
// them 0.
func readMaskedHash(s *cryptobyte.String, hash, mgf *crypto.Hash) bool {
	var (
		f       cryptobyte.String
		present bool
		a       algorithm
	)
	if !s.ReadOptionalASN1(&f, &present, explicit(0)) {
		return false
	}
	if present {
		if !readAlgorithm(&f, &a, casn1.SEQUENCE) || !f.Empty() {
			return false
		}
		*hash = hashOf(a.oid)
	}
	if !s.ReadOptionalASN1(&f, &present, explicit(1)) {
		return false
	}
	if present {
		if !readAlgorithm(&f, &a, casn1.SEQUENCE) || !f.Empty() {
			return false
		}
		*mgf = 0
		if string(a.oid) == oidMGF1 {
			p := a.params
			if !readAlgorithm(&p, &a, casn1.SEQUENCE) || !p.Empty() {
				return false
			}
			*mgf = hashOf(a.oid)
		}
	}
	return true
}

// explicit returns the tag of a constructed, context-specific element.
func explicit(number uint8) casn1.Tag { return casn1.Tag(number).ContextSpecific().Constructed() }
