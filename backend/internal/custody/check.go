package custody

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	_ "crypto/sha1" // the hashes of CheckDigest and OAEP
	_ "crypto/sha256"
	_ "crypto/sha512"
	"crypto/x509"
	"fmt"
	"time"
)

// CheckDigest reports whether digest is one that a key like pub signs under opts: of a known
// hash and of its length, or a message for Ed25519.
func CheckDigest(pub crypto.PublicKey, digest []byte, opts crypto.SignerOpts) error {
	if opts == nil {
		return fmt.Errorf("no hash given; use SHA-256, SHA-384 or SHA-512: %w", ErrUnsupported)
	}
	hash := opts.HashFunc()
	if _, ok := pub.(ed25519.PublicKey); ok {
		if o, ok := opts.(*ed25519.Options); hash != 0 || ok && o.Context != "" {
			return fmt.Errorf("an Ed25519 key signs messages, not digests, and without a context; use crypto.Hash(0): %w", ErrUnsupported)
		}
		return nil
	}
	if !KnownHash(hash) {
		return fmt.Errorf("hash %v; use SHA-256, SHA-384 or SHA-512: %w", hash, ErrUnsupported)
	}
	if len(digest) != hash.Size() {
		return fmt.Errorf("digest has %d bytes; %v has %d", len(digest), hash, hash.Size())
	}
	if pss, ok := opts.(*rsa.PSSOptions); ok {
		pub, ok := pub.(*rsa.PublicKey)
		if !ok {
			return fmt.Errorf("PSS is for RSA keys: %w", ErrUnsupported)
		}
		if n := SaltLength(pub, pss); n < 0 || n > longestSalt(pub, hash) {
			return fmt.Errorf("PSS with %d bytes of salt: %w", n, ErrUnsupported)
		}
	}
	return nil
}

// SaltLength returns how many bytes of salt a PSS signature by pub under o has.
func SaltLength(pub *rsa.PublicKey, o *rsa.PSSOptions) int {
	switch o.SaltLength {
	case rsa.PSSSaltLengthAuto:
		return longestSalt(pub, o.Hash)
	case rsa.PSSSaltLengthEqualsHash:
		return o.Hash.Size()
	}
	return o.SaltLength
}

// longestSalt returns how many bytes of salt fit (RFC 8017, 9.1.1).
func longestSalt(pub *rsa.PublicKey, h crypto.Hash) int {
	return (pub.N.BitLen()-1+7)/8 - 2 - h.Size()
}

// Verify reports whether sig is a signature of digest by pub.
func Verify(pub crypto.PublicKey, digest, sig []byte, opts crypto.SignerOpts) bool {
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		if pss, ok := opts.(*rsa.PSSOptions); ok {
			return rsa.VerifyPSS(pub, pss.Hash, digest, sig, pss) == nil
		}
		return rsa.VerifyPKCS1v15(pub, opts.HashFunc(), digest, sig) == nil
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(pub, digest, sig)
	case ed25519.PublicKey:
		return ed25519.Verify(pub, digest, sig)
	}
	return false
}

// KnownHash reports whether h is a hash that keys sign digests of, and use in OAEP.
func KnownHash(h crypto.Hash) bool {
	switch h {
	case crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512:
		return true
	}
	return false
}

// CheckChain reports why pub and certs do not make an identity: the first certificate must be
// that of the key, and each be issued by the next one. key and source name where they come
// from, as in `key "ca"` and `"ca.pem"`. Errors wrap ErrMismatch.
func CheckChain(pub crypto.PublicKey, key string, certs []*x509.Certificate, source string) error {
	own, ok := pub.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || len(certs) == 0 || !own.Equal(certs[0].PublicKey) {
		for _, cert := range certs {
			if ok && own.Equal(cert.PublicKey) {
				return fmt.Errorf("the %s belongs to the certificate %q; put that one first in %s: %w", key, cert.Subject, source, ErrMismatch)
			}
		}
		first := "there is none"
		if len(certs) > 0 {
			first = fmt.Sprintf("that is of %q", certs[0].Subject)
		}
		return fmt.Errorf("the %s does not belong to the first certificate in %s (%s); name the two halves of one pair: %w", key, source, first, ErrMismatch)
	}
	for i, issuer := range certs[1:] {
		if err := CheckIssued(certs[i], issuer); err != nil {
			return fmt.Errorf("in %s, certificate %q was not issued by the next one, %q (%v); put each before its issuer: %w",
				source, certs[i].Subject, issuer.Subject, err, ErrMismatch)
		}
	}
	return nil
}

// CheckIssued reports why issuer did not issue cert.
func CheckIssued(cert, issuer *x509.Certificate) error {
	if !bytes.Equal(cert.RawIssuer, issuer.RawSubject) {
		return fmt.Errorf("its issuer is named %q", cert.Issuer)
	}
	return cert.CheckSignatureFrom(issuer)
}

// A new RA certificate begins Backdated before it is made. It takes over from the one before a day
// after it was made, or a sixth of the life of either if that is less: so all processes that look in
// that time can open what is sealed to it before the first of them announces it.
const Backdated = 10 * time.Minute

// InUse returns which of these certificates of an RA, newest first, is to be used: the first, which
// must be good, or while that is too new the one before it, which may be too new itself.
func InUse(certs []*x509.Certificate, issuer *x509.Certificate, now time.Time) int {
	use := 0
	for i, before := range certs[1:] {
		if !announced(certs[use], before, issuer, now) {
			use = i + 1
		}
	}
	return use
}

// announced reports whether next, the certificate of an RA, is to be used in place of before, an
// older one that issuer issued: it is old enough for that, or before will not do for so long.
func announced(next, before, issuer *x509.Certificate, now time.Time) bool {
	handover := min(24*time.Hour, next.NotAfter.Sub(next.NotBefore)/6, before.NotAfter.Sub(before.NotBefore)/6)
	return now.Sub(next.NotBefore) >= Backdated+handover ||
		now.Before(before.NotBefore) || before.NotAfter.Sub(now) <= handover || CheckIssued(before, issuer) != nil
}

// CheckCA reports why the CA with this chain cannot issue a certificate now. Errors wrap
// ErrMismatch if it never can.
func CheckCA(chain []*x509.Certificate, now time.Time) error {
	if len(chain) == 0 || !chain[0].IsCA {
		return fmt.Errorf("the CA has no CA certificate, which another could be issued under: %w", ErrMismatch)
	}
	switch issuer := chain[0]; {
	case now.After(issuer.NotAfter):
		return fmt.Errorf("the CA certificate %q ended on %v; renew it", issuer.Subject, issuer.NotAfter)
	case now.Before(issuer.NotBefore):
		return fmt.Errorf("the CA certificate %q begins on %v; set the clock", issuer.Subject, issuer.NotBefore)
	}
	return nil
}
