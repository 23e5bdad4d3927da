//go:build cgo

package pkcs11

import (
	"bytes"
	"context"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/ThalesGroup/crypto11"
	p11 "github.com/miekg/pkcs11"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/internal/custody"
)

// generation is how long a token may take to find the primes of a key. Smart cards take minutes.
const generation = 5 * time.Minute

// create implements impl. The private key never leaves the token, and may do only what it is for.
func (t *token) create(ctx context.Context, n keyName, spec backend.Spec) (*backend.Key, error) {
	if n.label == "" {
		return nil, fmt.Errorf("pkcs11: a new key needs a label; name it with object=")
	}
	if n.id == nil {
		n.id = make([]byte, 16)
		rand.Read(n.id)
	}
	if err := t.look(ctx, func(s *session) error { return s.vacant(n) }); err != nil {
		return nil, fmt.Errorf("pkcs11: %s: %w", t.c.String(), explain(err))
	}
	_, _, err := t.m.runFor(ctx, t, max(t.m.timeout, generation), func(c *crypto11.Context, _ uint64) ([]byte, error) {
		err := generate(c, n, spec, true)
		switch code(err) {
		case p11.CKR_ATTRIBUTE_TYPE_INVALID, p11.CKR_TEMPLATE_INCONSISTENT, p11.CKR_ATTRIBUTE_VALUE_INVALID, p11.CKR_ATTRIBUTE_READ_ONLY:
			err = generate(c, n, spec, false)
		}
		return nil, err
	})
	if err != nil {
		return nil, fmt.Errorf("pkcs11: making a key in %s: %w", t.c.String(), explain(err))
	}
	return t.open(ctx, keyName{label: n.label}, nil)
}

// vacant reports whether anything has the label or the id.
func (s *session) vacant(n keyName) error {
	for _, class := range []uint{p11.CKO_PRIVATE_KEY, p11.CKO_PUBLIC_KEY, p11.CKO_CERTIFICATE, p11.CKO_SECRET_KEY, p11.CKO_DATA} {
		for _, part := range []keyName{{label: n.label}, {id: n.id}} {
			if part.id != nil && class == p11.CKO_DATA {
				continue // which has none
			}
			handles, err := s.find(class, part)
			if err != nil {
				return err
			}
			if len(handles) == 0 {
				continue
			}
			if class == p11.CKO_PUBLIC_KEY { // there is no private key, or that would have been found
				return fmt.Errorf("there is a public key %v without its private key, as an interrupted Create leaves it; delete it (`pkcs11-tool --delete-object --type pubkey --label %q`), or choose another name; nothing is overwritten: %w", part, part.label, fs.ErrExist)
			}
			return fmt.Errorf("%v is in use; choose another name, nothing is overwritten: %w", part, fs.ErrExist)
		}
	}
	return nil
}

// generate makes the pair. full asks for what some tokens do not know, beside what matters.
func generate(c *crypto11.Context, n keyName, spec backend.Spec, full bool) error {
	private, err := crypto11.NewAttributeSetWithIDAndLabel(n.id, []byte(n.label))
	if err != nil {
		return err
	}
	public := private.Copy()
	set := func(s crypto11.AttributeSet, attribute uint, value bool) {
		err = errors.Join(err, s.Set(attribute, value))
	}
	set(public, p11.CKA_TOKEN, true)
	set(public, p11.CKA_VERIFY, true)
	set(private, p11.CKA_TOKEN, true)
	set(private, p11.CKA_PRIVATE, true)
	set(private, p11.CKA_SENSITIVE, true)
	set(private, p11.CKA_EXTRACTABLE, false)
	set(private, p11.CKA_SIGN, true)
	rsa := spec.KeyType != backend.P256 && spec.KeyType != backend.P384
	if rsa || full { // not all tokens know these of an EC key
		set(public, p11.CKA_ENCRYPT, rsa && spec.Decrypt)
		set(private, p11.CKA_DECRYPT, rsa && spec.Decrypt)
		set(private, p11.CKA_UNWRAP, false)
		set(public, p11.CKA_WRAP, false)
	}
	if full {
		set(public, p11.CKA_PRIVATE, false)
		set(public, p11.CKA_MODIFIABLE, false)
		set(private, p11.CKA_MODIFIABLE, false)
		set(private, p11.CKA_SIGN_RECOVER, false)
		set(private, p11.CKA_DERIVE, false)
	}
	if err != nil {
		return err
	}
	switch spec.KeyType {
	case backend.RSA2048:
		_, err = c.GenerateRSAKeyPairWithAttributes(public, private, 2048)
	case backend.RSA3072:
		_, err = c.GenerateRSAKeyPairWithAttributes(public, private, 3072)
	case backend.RSA4096:
		_, err = c.GenerateRSAKeyPairWithAttributes(public, private, 4096)
	case backend.P256:
		_, err = c.GenerateECDSAKeyPairWithAttributes(public, private, elliptic.P256())
	case backend.P384:
		_, err = c.GenerateECDSAKeyPairWithAttributes(public, private, elliptic.P384())
	default:
		err = fmt.Errorf("no token makes a key of kind %v; use RSA or ECDSA: %w", spec.KeyType, backend.ErrUnsupported)
	}
	return err
}

// importCertificates implements impl. The key's own certificate gets the key's id and label, so
// that a lost public key object does no harm.
func (t *token) importCertificates(ctx context.Context, n keyName, certs []*x509.Certificate, file string, replace bool) error {
	var k *found
	if err := t.look(ctx, func(s *session) (err error) { k, err = s.private(n); return err }); err != nil {
		return fmt.Errorf("pkcs11: %s: %w", t.c.String(), explain(err))
	}
	_, d, err := t.try(ctx, k)
	if err != nil {
		return err
	}
	if err := custody.CheckChain(d.pub, fmt.Sprintf("key %v", k.name), certs, "what is to be imported"); err != nil {
		return fmt.Errorf("pkcs11: %w", err)
	}
	if file != "" {
		if err := custody.WriteChain(file, certs, replace); err != nil {
			return fmt.Errorf("pkcs11: %w", err)
		}
		return nil
	}
	var have []stored
	if err := t.look(ctx, func(s *session) error { have = s.certificates(keyName{}); return nil }); err != nil {
		return fmt.Errorf("pkcs11: %s: %w", t.c.String(), explain(err))
	}
	var old []p11.ObjectHandle
	missing := slices.Clone(certs)
	for _, c := range have {
		missing = slices.DeleteFunc(missing, func(m *x509.Certificate) bool { return m.Equal(c.cert) })
		if (bytes.Equal(c.id, k.name.id) || bytes.Equal(c.cert.RawSubjectPublicKeyInfo, certs[0].RawSubjectPublicKeyInfo)) && !c.cert.Equal(certs[0]) {
			old = append(old, c.h)
			if !replace {
				return fmt.Errorf("pkcs11: there is a certificate %q for the key %v in %s already; nothing is overwritten: %w", c.cert.Subject, k.name, t.c.String(), fs.ErrExist)
			}
		}
	}
	_, _, err = t.m.run(ctx, t, func(c *crypto11.Context, _ uint64) ([]byte, error) {
		for _, cert := range missing {
			sum := sha1.Sum(cert.RawSubjectPublicKeyInfo)
			name := keyName{id: sum[:], label: cert.Subject.CommonName}
			if cert == certs[0] {
				name = k.name
			}
			set, err := crypto11.NewAttributeSetWithID(name.id)
			if err == nil && name.label != "" {
				err = set.Set(crypto11.CkaLabel, []byte(name.label))
			}
			if err == nil {
				err = c.ImportCertificateWithAttributes(set, cert)
			}
			if err != nil {
				return nil, err
			}
		}
		return nil, nil
	})
	if err == nil && len(old) > 0 {
		// Only now, so that a crash leaves one too many and not one too few.
		err = t.look(ctx, func(s *session) error {
			var errs []error
			for _, h := range old {
				errs = append(errs, s.lib.DestroyObject(s.h, h))
			}
			return errors.Join(errs...)
		})
	}
	if err != nil {
		return fmt.Errorf("pkcs11: writing certificates to %s: %w", t.c.String(), explain(err))
	}
	return nil
}
