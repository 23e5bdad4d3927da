//lint:file-ignore SA1019 SCEP devices send PKCS #1 v1.5

package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/scep"
)

// soon is how long before its end a certificate is warned about.
const soon = 30 * 24 * time.Hour

func (c *command) line(name, format string, args ...any) {
	fmt.Fprintf(c.stdout, "%-22s %s\n", name, fmt.Sprintf(format, args...))
}

func (c *command) warn(texts ...string) {
	for _, text := range texts {
		c.line("WARNING", "%s", text)
	}
	c.record.Warnings = append(c.record.Warnings, texts...)
}

// show prints what is known about a key and its certificates.
func (c *command) show(k *backend.Key) {
	for _, a := range k.Description {
		c.line(a.Name, "%s", a.Value)
	}
	c.line("SPKI SHA-256", "%s", spki(k))
	for i, cert := range k.Certificates {
		name := "certificate"
		if i > 0 {
			name = "issued by"
		}
		c.line(name, "%s", certificate(cert))
	}
}

func certificate(cert *x509.Certificate) string {
	return fmt.Sprintf("%s, serial number %s, valid from %s to %s, SHA-256 %s", cert.Subject, serial(cert),
		cert.NotBefore.UTC().Format(time.RFC3339), cert.NotAfter.UTC().Format(time.RFC3339), fingerprint(cert.Raw))
}

func (c *command) check(ctx context.Context) error {
	return c.with(ctx, func(k *backend.Key) error { return c.examine(ctx, k) })
}

// examine prints what is known about a key, tries it, and returns an error if it, or its
// certificates, are not in order.
func (c *command) examine(ctx context.Context, k *backend.Key) error {
	c.record.Key = recordKey(k)
	c.record.Tests = map[string]string{}
	c.show(k)
	var problems []string
	test := func(name string, err error) {
		result := "works"
		if err != nil {
			result = err.Error()
			problems = append(problems, name+": "+result)
		}
		c.line(name, "%s", result)
		c.record.Tests[name] = result
	}
	test("sign and verify", trySign(ctx, k.Key))
	u, decrypts := k.Key.(scep.Unwrapper)
	if decrypts {
		test("decrypt", tryDecrypt(ctx, u, k.Key.Public()))
	} else {
		c.line("decrypt", "cannot")
		c.record.Tests["decrypt"] = "cannot"
	}

	if len(k.Certificates) == 0 {
		problems = append(problems, "there is no certificate; make one with self-sign, or with csr, a CA above, and import")
	} else {
		own := k.Certificate()
		problems = append(problems, flaws(k.Certificates)...)
		const encipher = x509.KeyUsageKeyEncipherment
		switch {
		case !own.IsCA && !decrypts:
			problems = append(problems, "the certificate is an RA's, and the key cannot decrypt")
		case own.IsCA && !decrypts && own.KeyUsage&encipher != 0:
			c.warn("the certificate has the usage keyEncipherment, and the key cannot decrypt: devices may encrypt to it and not to the RA")
		case own.IsCA && !decrypts:
			c.line("note", "the CA needs an RA beside it, to open requests; make it with ra")
		}
	}
	c.warn(weaknesses(c.key, k)...)
	for _, cert := range k.Certificates {
		if left := time.Until(cert.NotAfter); left > 0 && left < soon {
			c.warn(fmt.Sprintf("the certificate of %q ends on %s", cert.Subject, cert.NotAfter.UTC().Format(time.RFC3339)))
		}
	}
	c.record.Problems = problems
	for _, text := range problems {
		c.line("PROBLEM", "%s", text)
	}
	if len(problems) > 0 {
		return errors.New("the key is not in order: " + problems[0])
	}
	return nil
}

// flaws reports why certificates, the key's own first, are of no use to a server now.
func flaws(certs []*x509.Certificate) (list []string) {
	now := time.Now()
	for i, cert := range certs {
		if now.After(cert.NotAfter) {
			list = append(list, fmt.Sprintf("the certificate of %q ended on %s", cert.Subject, cert.NotAfter.UTC().Format(time.RFC3339)))
		}
		if now.Before(cert.NotBefore) {
			list = append(list, fmt.Sprintf("the certificate of %q begins on %s; is the clock right?", cert.Subject, cert.NotBefore.UTC().Format(time.RFC3339)))
		}
		if i > 0 && !cert.IsCA {
			list = append(list, fmt.Sprintf("the certificate of %q issued another and is not a CA's", cert.Subject))
		}
	}
	own := certs[0]
	const ca, ra = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	switch {
	case own.IsCA && own.KeyUsage&x509.KeyUsageCertSign == 0:
		list = append(list, fmt.Sprintf("the certificate of %q is a CA's and lacks the usage keyCertSign", own.Subject))
	case !own.IsCA && own.KeyUsage&ra != ra:
		list = append(list, fmt.Sprintf("the certificate of %q is neither a CA's nor an RA's: it has no CA:TRUE, and not the usages digitalSignature and keyEncipherment", own.Subject))
	}
	return list
}

// weaknesses reports what an auditor would not like about how a key is kept.
func weaknesses(uri string, k *backend.Key) (list []string) {
	if strings.HasPrefix(strings.ToLower(uri), "file:") {
		list = append(list, "the key is in a file: whoever reads it has the key")
	}
	for _, a := range k.Description {
		for _, w := range []struct{ name, value, text string }{
			{"CKA_EXTRACTABLE", "true", "the key can be taken out of the token"},
			{"CKA_NEVER_EXTRACTABLE", "false", "the key could once be taken out of the token"},
			{"CKA_SENSITIVE", "false", "the token shows the key to who is logged in"},
			{"CKA_ALWAYS_SENSITIVE", "false", "the token once showed the key to who was logged in"},
			{"CKA_PRIVATE", "false", "the token lets the key be used without a PIN"},
			{"CKA_LOCAL", "false", "the key was not made in the token"},
		} {
			if a.Name == w.name && a.Value == w.value {
				list = append(list, fmt.Sprintf("%s (%s is %s)", w.text, a.Name, a.Value))
			}
		}
		if a.Name == "protection" && strings.HasPrefix(strings.ToLower(uri), "tpm:") {
			for _, w := range []struct{ name, text string }{
				{"fixedTPM", "the key can be moved to another TPM"},
				{"sensitiveDataOrigin", "the key was not made in the TPM"},
			} {
				if !strings.Contains(a.Value, w.name) {
					list = append(list, fmt.Sprintf("%s (%s is not among its attributes)", w.text, w.name))
				}
			}
			if strings.Contains(a.Value, "no authorization value") {
				list = append(list, "the key can be used without an authorization value")
			}
		}
	}
	return list
}

// trySign has the key sign and verifies that here, whatever the key says of itself.
func trySign(ctx context.Context, key crypto.Signer) error {
	message := make([]byte, 64)
	rand.Read(message)
	sum := sha256.Sum256(message)
	digest, opts := sum[:], crypto.SignerOpts(crypto.SHA256)
	if _, ok := key.Public().(ed25519.PublicKey); ok {
		digest, opts = message, crypto.Hash(0)
	}
	sign := key.Sign
	if k, ok := key.(interface {
		SignContext(ctx context.Context, rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error)
	}); ok {
		sign = func(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
			return k.SignContext(ctx, rand, digest, opts)
		}
	}
	sig, err := sign(rand.Reader, digest, opts)
	if err != nil {
		return err
	}
	ok := false
	switch pub := key.Public().(type) {
	case *rsa.PublicKey:
		ok = rsa.VerifyPKCS1v15(pub, crypto.SHA256, digest, sig) == nil
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(pub, digest, sig)
	case ed25519.PublicKey:
		ok = ed25519.Verify(pub, digest, sig)
	}
	if !ok {
		return errors.New("the public key does not verify the signature")
	}
	return nil
}

// tryDecrypt has the key decrypt what is encrypted here.
func tryDecrypt(ctx context.Context, key scep.Unwrapper, pub crypto.PublicKey) error {
	secret := make([]byte, 32)
	rand.Read(secret)
	block, err := rsa.EncryptPKCS1v15(rand.Reader, pub.(*rsa.PublicKey), secret)
	if err != nil {
		return err
	}
	got, err := key.UnwrapKey(ctx, block, len(secret), &rsa.PKCS1v15DecryptOptions{SessionKeyLen: len(secret)})
	if err == nil && !bytes.Equal(got, secret) {
		err = errors.New("it gives something else than was encrypted")
	}
	return err
}
