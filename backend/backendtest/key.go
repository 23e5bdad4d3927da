package backendtest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha1" // what is signed
	_ "crypto/sha256"
	_ "crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// A contextSigner is a key that can be told when to stop waiting.
type contextSigner interface {
	SignContext(ctx context.Context, rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error)
}

// digest returns something to sign for the key under hash; 0: a message.
func digest(hash crypto.Hash) []byte {
	message := make([]byte, 100)
	rand.Read(message)
	if hash == 0 {
		return message
	}
	h := hash.New()
	h.Write(message)
	return h.Sum(nil)
}

// verify reports why sig is not a signature of digest.
func verify(pub crypto.PublicKey, digest, sig []byte, opts crypto.SignerOpts) error {
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		if pss, ok := opts.(*rsa.PSSOptions); ok {
			return rsa.VerifyPSS(pub, pss.Hash, digest, sig, pss)
		}
		return rsa.VerifyPKCS1v15(pub, opts.HashFunc(), digest, sig)
	case *ecdsa.PublicKey:
		if ecdsa.VerifyASN1(pub, digest, sig) {
			return nil
		}
	case ed25519.PublicKey:
		if ed25519.Verify(pub, digest, sig) {
			return nil
		}
	default:
		return fmt.Errorf("there is no way to verify with a %T", pub)
	}
	return errors.New("it does not verify")
}

// A way is one that a kind of key signs in.
type way struct {
	algorithm x509.SignatureAlgorithm
	opts      crypto.SignerOpts
}

// ways returns those that the key must know.
func (b *bench) ways() ([]way, error) {
	pss := func(h crypto.Hash) crypto.SignerOpts {
		return &rsa.PSSOptions{Hash: h, SaltLength: rsa.PSSSaltLengthEqualsHash}
	}
	var all []way
	switch pub := b.Key.Public().(type) {
	case *rsa.PublicKey:
		all = []way{
			{x509.SHA256WithRSA, crypto.SHA256}, {x509.SHA384WithRSA, crypto.SHA384}, {x509.SHA512WithRSA, crypto.SHA512}, {x509.SHA1WithRSA, crypto.SHA1},
			{x509.SHA256WithRSAPSS, pss(crypto.SHA256)}, {x509.SHA384WithRSAPSS, pss(crypto.SHA384)}, {x509.SHA512WithRSAPSS, pss(crypto.SHA512)},
		}
	case *ecdsa.PublicKey:
		all = []way{
			{x509.ECDSAWithSHA256, crypto.SHA256}, {x509.ECDSAWithSHA384, crypto.SHA384}, {x509.ECDSAWithSHA512, crypto.SHA512}, {x509.ECDSAWithSHA1, crypto.SHA1},
		}
	case ed25519.PublicKey:
		all = []way{{x509.PureEd25519, crypto.Hash(0)}}
	default:
		return nil, fmt.Errorf("the public key is a %T", pub)
	}
	all = slices.DeleteFunc(all, func(w way) bool { return slices.Contains(b.h.Lacks, w.algorithm) })
	if len(all) == 0 {
		return nil, errors.New("the harness says that the key lacks everything")
	}
	return all, nil
}

// sign signs once, in the first way that the key knows, and verifies.
func (b *bench) sign(ctx context.Context) error {
	ways, err := b.ways()
	if err != nil {
		return err
	}
	return b.signAs(ctx, ways[0])
}

func (b *bench) signAs(ctx context.Context, w way) error {
	d := digest(w.opts.HashFunc())
	var sig []byte
	var err error
	if cs, ok := b.Key.(contextSigner); ok {
		sig, err = cs.SignContext(ctx, rand.Reader, d, w.opts)
	} else {
		sig, err = b.Key.Sign(rand.Reader, d, w.opts)
	}
	if err != nil {
		return fmt.Errorf("signing with %v: %w", w.algorithm, err)
	}
	if err := verify(b.Key.Public(), d, sig, w.opts); err != nil {
		return fmt.Errorf("signature with %v: %w", w.algorithm, err)
	}
	return nil
}

var keyClauses = []clause{{
	name:     "KeyBelongs",
	contract: "Key belongs to the first certificate.",
	check: func(_ context.Context, b *bench) error {
		if len(b.Certificates) == 0 {
			return errors.New("there is no certificate")
		}
		pub, ok := b.Key.Public().(interface{ Equal(crypto.PublicKey) bool })
		if !ok {
			return fmt.Errorf("the public key is a %T", b.Key.Public())
		}
		if !pub.Equal(b.Certificates[0].PublicKey) {
			return errors.New("the public key is not that of the certificate")
		}
		return nil
	},
}, {
	name:     "Chain",
	contract: "Each certificate was issued by the next one.",
	check: func(_ context.Context, b *bench) error {
		for i, cert := range b.Certificates[:max(len(b.Certificates)-1, 0)] {
			issuer := b.Certificates[i+1]
			if !bytes.Equal(cert.RawIssuer, issuer.RawSubject) {
				return fmt.Errorf("%d is issued by %q, and %d is that of %q", i, cert.Issuer, i+1, issuer.Subject)
			}
			if err := cert.CheckSignatureFrom(issuer); err != nil {
				return fmt.Errorf("%d is not issued by %d: %w", i, i+1, err)
			}
		}
		return nil
	},
}, {
	name:     "Signs",
	contract: "Key signs what crypto.Signer is handed: RSA (PKCS #1 v1.5 and PSS) and ECDSA sign digests, Ed25519 signs messages.",
	check: func(ctx context.Context, b *bench) error {
		ways, err := b.ways()
		if err != nil {
			return err
		}
		for _, w := range ways {
			d := digest(w.opts.HashFunc())
			before := bytes.Clone(d)
			sig, err := b.Key.Sign(rand.Reader, d, w.opts)
			if err != nil {
				return fmt.Errorf("%v: %w", w.algorithm, err)
			}
			if !bytes.Equal(d, before) {
				return fmt.Errorf("%v: what was to be signed was changed", w.algorithm)
			}
			if err := verify(b.Key.Public(), d, sig, w.opts); err != nil {
				return fmt.Errorf("%v: %w", w.algorithm, err)
			}
		}
		return nil
	},
}, {
	name:     "Digests",
	contract: "A hash that is not SHA-1, SHA-256, SHA-384 or SHA-512, or a digest of another length than its hash has, is an error.",
	check: func(ctx context.Context, b *bench) error {
		type bad struct {
			n    int
			opts crypto.SignerOpts
		}
		all := []bad{{32, nil}}
		if _, ok := b.Key.Public().(ed25519.PublicKey); ok {
			all = append(all, bad{32, crypto.SHA256}, bad{64, crypto.SHA512}, bad{64, &ed25519.Options{Hash: crypto.SHA512}})
		} else {
			all = append(all, bad{32, crypto.Hash(0)}, bad{16, crypto.MD5}, bad{36, crypto.MD5SHA1}, bad{28, crypto.SHA224},
				bad{32, crypto.SHA3_256}, bad{32, crypto.Hash(99)}, bad{0, crypto.SHA256}, bad{31, crypto.SHA256}, bad{33, crypto.SHA256},
				bad{32, crypto.SHA384}, bad{64, crypto.SHA256}, bad{20, crypto.SHA512})
		}
		if _, ok := b.Key.Public().(*rsa.PublicKey); ok {
			all = append(all, bad{28, &rsa.PSSOptions{Hash: crypto.SHA224}}, bad{31, &rsa.PSSOptions{Hash: crypto.SHA256}})
		}
		for _, tt := range all {
			sig, err := b.Key.Sign(rand.Reader, make([]byte, tt.n), tt.opts)
			if err == nil || sig != nil {
				return fmt.Errorf("%d bytes under %v (%T): signed", tt.n, tt.opts, tt.opts)
			}
		}
		return b.sign(ctx)
	},
}, {
	name:     "X509",
	contract: "Key signs what crypto.Signer is handed: crypto/x509 makes certificates, requests and CRLs with it.",
	check:    x509Check,
}, {
	name:     "SignContext",
	contract: "Key has the method SignContext that scep.Identity describes.",
	check: func(ctx context.Context, b *bench) error {
		cs, ok := b.Key.(contextSigner)
		if !ok {
			return fmt.Errorf("%T has none", b.Key)
		}
		ways, err := b.ways()
		if err != nil {
			return err
		}
		d := digest(ways[0].opts.HashFunc())
		sig, err := cs.SignContext(ctx, rand.Reader, d, ways[0].opts)
		if err != nil {
			return err
		}
		return verify(b.Key.Public(), d, sig, ways[0].opts)
	},
}, {
	name:     "Redacted",
	contract: `Key prints as "[redacted]".`,
	check:    redactedCheck,
}}

// x509Check has crypto/x509 use the key.
func x509Check(ctx context.Context, b *bench) error {
	ways, err := b.ways()
	if err != nil {
		return err
	}
	issuer := &x509.Certificate{
		Subject: pkix.Name{CommonName: "backendtest issuer"}, SubjectKeyId: []byte{1}, PublicKey: b.Key.Public(),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, IsCA: true, BasicConstraintsValid: true,
	}
	switch b.Key.Public().(type) {
	case *rsa.PublicKey:
		issuer.PublicKeyAlgorithm = x509.RSA
	case *ecdsa.PublicKey:
		issuer.PublicKeyAlgorithm = x509.ECDSA
	case ed25519.PublicKey:
		issuer.PublicKeyAlgorithm = x509.Ed25519
	}
	now := time.Now()
	for _, w := range ways {
		if w.opts.HashFunc() == crypto.SHA1 { // crypto/x509 does not sign with it
			continue
		}
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "backendtest"}, SignatureAlgorithm: w.algorithm,
			NotBefore: now, NotAfter: now.Add(time.Hour),
		}, issuer, b.Key.Public(), b.Key)
		if err != nil {
			return fmt.Errorf("certificate with %v: %w", w.algorithm, err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("certificate with %v: %w", w.algorithm, err)
		}
		if err := cert.CheckSignatureFrom(issuer); err != nil {
			return fmt.Errorf("certificate with %v: %w", w.algorithm, err)
		}

		der, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
			Subject: pkix.Name{CommonName: "backendtest"}, SignatureAlgorithm: w.algorithm,
		}, b.Key)
		if err != nil {
			return fmt.Errorf("request with %v: %w", w.algorithm, err)
		}
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil {
			return fmt.Errorf("request with %v: %w", w.algorithm, err)
		}
		if err := csr.CheckSignature(); err != nil {
			return fmt.Errorf("request with %v: %w", w.algorithm, err)
		}

		der, err = x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
			Number: big.NewInt(1), SignatureAlgorithm: w.algorithm, ThisUpdate: now, NextUpdate: now.Add(time.Hour),
		}, issuer, b.Key)
		if err != nil {
			return fmt.Errorf("CRL with %v: %w", w.algorithm, err)
		}
		crl, err := x509.ParseRevocationList(der)
		if err != nil {
			return fmt.Errorf("CRL with %v: %w", w.algorithm, err)
		}
		if err := crl.CheckSignatureFrom(issuer); err != nil {
			return fmt.Errorf("CRL with %v: %w", w.algorithm, err)
		}
	}
	return nil
}

// redactedCheck prints the key in all ways that logs print it.
func redactedCheck(_ context.Context, b *bench) error {
	const redacted = "[redacted]"
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		if got := fmt.Sprintf(verb, b.Key); got != redacted {
			return fmt.Errorf("%s prints %.200q", verb, got)
		}
		if got := fmt.Sprintf(verb, scep.Identity{Key: b.Key}); !strings.Contains(got, redacted) {
			return fmt.Errorf("%s prints an identity as %.200q", verb, got)
		}
	}
	var text, js bytes.Buffer
	slog.New(slog.NewTextHandler(&text, nil)).Info("x", "key", b.Key)
	slog.New(slog.NewJSONHandler(&js, nil)).Info("x", "key", b.Key)
	if !strings.HasSuffix(text.String(), "key="+redacted+"\n") {
		return fmt.Errorf("slog prints %.200q", text.String())
	}
	if !strings.HasSuffix(js.String(), `"key":"`+redacted+`"}`+"\n") {
		return fmt.Errorf("slog prints %.200q", js.String())
	}
	data, err := json.Marshal(map[string]any{"key": b.Key})
	if err != nil || string(data) != `{"key":"`+redacted+`"}` {
		return fmt.Errorf("encoding/json prints %.200q, %v", data, err)
	}
	return nil
}
