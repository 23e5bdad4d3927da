package scep

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"errors"
	"slices"
	"time"
)

// An authority is a CA of a Handler: the current one, the next one or a past one. What is
// addressed to it, or to an RA of its, it issues (RFC 8894, 5.1).
type authority struct {
	ca    CA // nil: only its certificate is known
	chain []*x509.Certificate
	gate  gate
	past  bool
}

// newAuthority asks ca for its certificates. If bare is set, an Identity may lack its key.
func newAuthority(ctx context.Context, ca CA, keys gates, bare bool) (*authority, error) {
	chain, err := ca.Chain(ctx)
	if err == nil {
		err = checkCA(chain)
	}
	if err != nil {
		return nil, err
	}
	a := &authority{ca: ca, chain: slices.Clone(chain)}
	id, _ := ca.(*Identity)
	switch {
	case id == nil:
		a.gate = newGate(keys.limit)
	case bare && id.Key == nil:
		a.ca = nil
		err = id.checkChain()
	default:
		a.gate = keys.gate(id)
		err = id.check()
	}
	return a, err
}

func (a *authority) cert() *x509.Certificate { return a.chain[0] }

// identity returns the CA if it is an Identity with a key, or nil.
func (a *authority) identity() *Identity {
	id, _ := a.ca.(*Identity)
	return id
}

// same reports whether certificates do not tell a from b: they have one name and one key.
func (a *authority) same(b *authority) bool {
	return bytes.Equal(a.cert().RawSubject, b.cert().RawSubject) && bytes.Equal(a.cert().SubjectKeyId, b.cert().SubjectKeyId) &&
		bytes.Equal(a.cert().RawSubjectPublicKeyInfo, b.cert().RawSubjectPublicKeyInfo)
}

// canIssue reports whether a has a key and has not come to its end.
func (a *authority) canIssue(now time.Time) bool { return a.ca != nil && !now.After(a.cert().NotAfter) }

// now is the CA that issues what is addressed to none of the others.
func (h *Handler) now() *authority { return h.cas[0] }

// namedBy returns the CA that a template or certificate names as its issuer, or nil. Of two with
// the same name and key, it is one that does not end before the certificate.
func (h *Handler) namedBy(cert *x509.Certificate) *authority {
	var found *authority
	for _, a := range h.cas {
		if !bytes.Equal(cert.RawIssuer, a.cert().RawSubject) || !bytes.Equal(cert.AuthorityKeyId, a.cert().SubjectKeyId) {
			continue
		}
		if !cert.NotAfter.After(a.cert().NotAfter) {
			return a
		}
		if found == nil {
			found = a
		}
	}
	return found
}

// issuerOf returns the CA that signed cert, or nil.
func (h *Handler) issuerOf(cert *x509.Certificate) *authority {
	for _, a := range h.cas {
		by := a.cert()
		if !bytes.Equal(cert.RawIssuer, by.RawSubject) ||
			len(cert.AuthorityKeyId) > 0 && len(by.SubjectKeyId) > 0 && !bytes.Equal(cert.AuthorityKeyId, by.SubjectKeyId) {
			continue
		}
		err := cert.CheckSignatureFrom(by)
		if errors.As(err, new(x509.InsecureAlgorithmError)) {
			// An import from an old server may have such a one. It is in the depot, byte for byte.
			err = checkSHA1(cert, by.PublicKey)
		}
		if err == nil {
			return a
		}
	}
	return nil
}

// checkSHA1 verifies a signature of cert that was made with SHA-1, which crypto/x509 does not.
func checkSHA1(cert *x509.Certificate, key crypto.PublicKey) error {
	pub, ok := key.(*rsa.PublicKey)
	if !ok || cert.SignatureAlgorithm != x509.SHA1WithRSA {
		return errors.ErrUnsupported
	}
	sum := sha1.Sum(cert.RawTBSCertificate)
	return rsa.VerifyPKCS1v15(pub, crypto.SHA1, sum[:], cert.Signature)
}

// authorityOf returns the CA that a record was written down for, or nil if that is none of ours.
func (h *Handler) authorityOf(rec *Record) *authority {
	if len(rec.Template) == 0 {
		return nil
	}
	tmpl, err := x509.ParseCertificate(rec.Template)
	if err != nil {
		return nil // what is wrong with it is told where it is used
	}
	return h.namedBy(tmpl)
}

// answers reports whether a record is an answer to what is addressed to a. A record of another CA
// of ours is not, unless that stands in for a; one of a CA that nobody knows any more is.
func (h *Handler) answers(rec *Record, a *authority) bool {
	of := h.authorityOf(rec)
	return of == nil || of.same(a) || a.past && of == h.now()
}

// sketch is the template of a request that waits: all that counts in it is which CA was addressed.
func sketch(a *authority, csr *x509.CertificateRequest) ([]byte, error) {
	tmpl := &x509.Certificate{RawSubject: csr.RawSubject, NotBefore: a.cert().NotBefore, NotAfter: a.cert().NotAfter}
	for _, e := range csr.Extensions {
		if e.Id.Equal(oidSubjectAltName) {
			tmpl.ExtraExtensions = append(tmpl.ExtraExtensions, e)
		}
	}
	der, _, err := marshalTemplate(tmpl, a.cert(), newSerial(), csr.RawSubjectPublicKeyInfo)
	var why *Error
	if errors.As(err, &why) { // names that the policy will not take as they are
		tmpl.RawSubject, tmpl.ExtraExtensions = a.cert().RawSubject, nil
		der, _, err = marshalTemplate(tmpl, a.cert(), newSerial(), csr.RawSubjectPublicKeyInfo)
	}
	return der, err
}
