package scepclient

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/internal/cms"
)

// maxCACertificates is more than any answer to GetCACert has.
const maxCACertificates = 32

// A CA is what a server answered to GetCACert.
type CA struct {
	// Certificates are all of the answer, in its order.
	Certificates []*x509.Certificate

	// Authenticated says that the fields below were held to Client.Fingerprints or Client.Roots.
	// If there are none of these it is false, nothing here can be relied on, and the fields
	// below may be nil.
	Authenticated bool

	// Issuer is the certificate of the CA that issues.
	Issuer *x509.Certificate

	// Recipient is the certificate that requests are encrypted to: that of an RA, or Issuer.
	Recipient *x509.Certificate

	// Signers are those certificates that replies may be signed with.
	Signers []*x509.Certificate

	issuers []*x509.Certificate // CA certificates that are trusted
	anchors []*x509.Certificate // what the trust comes from
}

// CACertificates asks for the certificates of the CA and holds them to Client.Fingerprints and
// Client.Roots. Every certificate that is used chains to one that these name, through
// certificates that are valid now.
//
// If Client has no Fingerprints and no Roots, the answer is returned as it is, to be shown to a
// person: see [Fingerprint] and CA.Authenticated.
func (c *Client) CACertificates(ctx context.Context) (*CA, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	a, err := c.get(ctx, "GetCACert", c.Name)
	if err != nil {
		return nil, err
	}
	certificates, err := parseCACertificates(a.body)
	if err != nil {
		return nil, a.unexpected("GetCACert", "a certificate or a certs-only message", err)
	}
	return c.authenticate(ctx, certificates)
}

// Fingerprint returns the SHA-256 fingerprint of cert as Client.Fingerprints takes it.
func Fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// parseFingerprint returns the digest that a person typed.
func (c *Client) parseFingerprint(text string) ([]byte, error) {
	sum, err := hex.DecodeString(strings.NewReplacer(":", "", " ", "").Replace(text))
	switch {
	case err != nil || len(sum) != sha256.Size && len(sum) != sha1.Size:
		return nil, fmt.Errorf("scepclient: Client.Fingerprints: %.100q is not the SHA-256 of a certificate, 64 hexadecimal digits", text)
	case len(sum) == sha1.Size && c.Legacy&scep.SHA1 == 0:
		return nil, fmt.Errorf("scepclient: Client.Fingerprints: %.100q is SHA-1, which needs Client.Legacy to have scep.SHA1; better ask for the SHA-256 fingerprint", text)
	}
	return sum, nil
}

func matches(cert *x509.Certificate, sum []byte) bool {
	if len(sum) == sha1.Size {
		got := sha1.Sum(cert.Raw)
		return bytes.Equal(got[:], sum)
	}
	got := sha256.Sum256(cert.Raw)
	return bytes.Equal(got[:], sum)
}

// parseCACertificates reads the answer to GetCACert, which is one certificate or a certs-only
// message, whatever its Content-Type says: a certificate begins with SEQUENCE, SEQUENCE and a
// message with SEQUENCE, OBJECT IDENTIFIER.
func parseCACertificates(body []byte) ([]*x509.Certificate, error) {
	der, err := cms.Normalize(body)
	if err != nil {
		return nil, err
	}
	var (
		s       = cryptobyte.String(der)
		content cryptobyte.String
		certs   []*x509.Certificate
	)
	if !s.ReadASN1(&content, casn1.SEQUENCE) {
		return nil, errors.New("it does not begin with a SEQUENCE")
	}
	if content.PeekASN1Tag(casn1.SEQUENCE) {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		return []*x509.Certificate{cert}, nil
	}
	if certs, _, err = cms.ParseCertsOnly(der); err != nil {
		return nil, err
	}
	switch {
	case len(certs) == 0:
		return nil, errors.New("it has no certificates")
	case len(certs) > maxCACertificates:
		return nil, fmt.Errorf("it has %d certificates", len(certs))
	}
	return certs, nil
}

// forRA reports whether a certificate is for no special purpose, or for that of an RA:
// certificate request agent (Microsoft), id-kp-cmcCA or id-kp-cmcRA (RFC 6402).
func forRA(cert *x509.Certificate) bool {
	if len(cert.ExtKeyUsage) > 0 {
		return false // crypto/x509 has no name for those
	}
	for _, oid := range cert.UnknownExtKeyUsage {
		switch oid.String() {
		case "1.3.6.1.4.1.311.20.2.1", "1.3.6.1.5.5.7.3.27", "1.3.6.1.5.5.7.3.28":
		default:
			return false
		}
	}
	return true
}

// authenticate finds out which of these certificates can be used, and for what.
func (c *Client) authenticate(ctx context.Context, certificates []*x509.Certificate) (*CA, error) {
	anchors := slices.Clone(c.Roots)
	for _, text := range c.Fingerprints {
		sum, err := c.parseFingerprint(text)
		if err != nil {
			return nil, err
		}
		for _, cert := range certificates {
			if matches(cert, sum) {
				anchors = append(anchors, cert)
			}
		}
	}
	if !c.pinned() {
		anchors = tops(certificates)
	}
	if len(anchors) == 0 {
		return nil, fmt.Errorf("scepclient: the server has another CA: no certificate has a fingerprint of Client.Fingerprints; those it has are %s", describe(certificates))
	}
	ca, err := choose(certificates, anchors, c.now())
	if err != nil && !c.pinned() && !c.InsecureAnyCA {
		return &CA{Certificates: certificates}, nil
	}
	if err != nil {
		return nil, err
	}
	ca.Authenticated = c.pinned()
	c.debug(ctx, "CA", slog.Bool("authenticated", ca.Authenticated), slog.String("issuer", ca.Issuer.Subject.String()),
		slog.String("recipient", ca.Recipient.Subject.String()), slog.Int("signers", len(ca.Signers)))
	return ca, nil
}

// tops returns the certificates that none of the others issued.
func tops(certificates []*x509.Certificate) []*x509.Certificate {
	var out []*x509.Certificate
	for _, cert := range certificates {
		if !slices.ContainsFunc(certificates, func(p *x509.Certificate) bool { return !p.Equal(cert) && names(cert, p) }) {
			out = append(out, cert)
		}
	}
	if out == nil {
		return certificates
	}
	return out
}

// names reports whether cert names parent as its issuer.
func names(cert, parent *x509.Certificate) bool {
	return bytes.Equal(cert.RawIssuer, parent.RawSubject)
}

func describe(certificates []*x509.Certificate) string {
	var list []string
	for _, cert := range certificates[:min(len(certificates), 5)] {
		list = append(list, fmt.Sprintf("%.100q %s", cert.Subject, Fingerprint(cert)))
	}
	if len(certificates) > 5 {
		list = append(list, "and others")
	}
	return strings.Join(list, ", ")
}

// choose finds the certificates to use among those of an answer that chain to anchors.
func choose(certificates, anchors []*x509.Certificate, now time.Time) (*CA, error) {
	var (
		ca       = &CA{Certificates: certificates, anchors: anchors}
		trusted  []*x509.Certificate // of certificates
		reasons  []error             // why others are not
		pinnedRA = slices.ContainsFunc(anchors, isRA)
		opts     = x509.VerifyOptions{
			Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(),
			CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		}
	)
	for _, a := range anchors {
		opts.Roots.AddCert(a)
		if isCA(a) && within(a, now) {
			ca.issuers = append(ca.issuers, a)
		}
	}
	for _, cert := range certificates {
		opts.Intermediates.AddCert(cert)
	}
	for _, cert := range certificates {
		pinned := slices.ContainsFunc(anchors, cert.Equal)
		_, err := cert.Verify(opts)
		switch {
		case err != nil:
			err = fmt.Errorf("%.100q: %w", cert.Subject, err)
		case isRA(cert) && pinnedRA && !pinned:
			err = fmt.Errorf("%.100q is another RA than the one that is pinned", cert.Subject)
		case isRA(cert) && !pinned && !forRA(cert):
			// Any device or server has such a certificate, and could pose as an RA.
			err = fmt.Errorf("%.100q is for something else than an RA (extKeyUsage); if it is one all the same, add its fingerprint %s", cert.Subject, Fingerprint(cert))
		}
		if err != nil {
			reasons = append(reasons, err)
			continue
		}
		trusted = append(trusted, cert)
		if isCA(cert) && !slices.ContainsFunc(ca.issuers, cert.Equal) {
			ca.issuers = append(ca.issuers, cert)
		}
	}
	ca.addIssuersOfRA(trusted, now)
	// If there is an RA, it is there to be used: no CA takes the place of one that is not trusted.
	strangers := slices.ContainsFunc(certificates, isRA) && !slices.ContainsFunc(trusted, isRA)
	usable := slices.DeleteFunc(slices.Clone(trusted), func(cert *x509.Certificate) bool {
		return isCA(cert) && (strangers || hasStranger(cert, certificates, trusted))
	})
	if err := ca.pick(usable, certificates); err != nil {
		for _, reason := range reasons[:min(len(reasons), 3)] {
			err = fmt.Errorf("%w; %w", err, reason)
		}
		return nil, err
	}
	return ca, nil
}

// isCA reports whether cert may issue certificates. Version 1 has no way to say so.
func isCA(cert *x509.Certificate) bool {
	return cert.IsCA || cert.Version < 3 && names(cert, cert)
}

func isRA(cert *x509.Certificate) bool { return !isCA(cert) }

func within(cert *x509.Certificate, now time.Time) bool {
	return !now.Before(cert.NotBefore) && !now.After(cert.NotAfter)
}

// addIssuersOfRA adds who issued an RA that is trusted: if only the RA is pinned, its CA is known
// by it.
func (ca *CA) addIssuersOfRA(trusted []*x509.Certificate, now time.Time) {
	for _, ra := range trusted {
		for _, cert := range ca.Certificates {
			if isRA(ra) && isCA(cert) && !slices.ContainsFunc(ca.issuers, cert.Equal) &&
				names(ra, cert) && within(cert, now) && ra.CheckSignatureFrom(cert) == nil {
				ca.issuers = append(ca.issuers, cert)
			}
		}
	}
}

// hasStranger reports whether a certificate that names cert as its issuer is not trusted: then
// cert does not take its place.
func hasStranger(cert *x509.Certificate, certificates, trusted []*x509.Certificate) bool {
	return slices.ContainsFunc(certificates, func(other *x509.Certificate) bool {
		return !other.Equal(cert) && names(other, cert) && !slices.ContainsFunc(trusted, other.Equal)
	})
}

// pick sets Recipient, Signers and Issuer.
func (ca *CA) pick(usable, certificates []*x509.Certificate) error {
	best := -1
	for _, cert := range usable {
		if rank := recipientRank(cert, certificates); rank > best {
			ca.Recipient, best = cert, rank
		}
		if cert.KeyUsage == 0 || cert.KeyUsage&x509.KeyUsageDigitalSignature != 0 {
			ca.Signers = append(ca.Signers, cert)
		}
	}
	if ca.Recipient == nil {
		return fmt.Errorf("scepclient: the server's answer to GetCACert has no RSA certificate that requests could be encrypted to and that chains to one which is known; it has %s", describe(certificates))
	}
	if len(ca.Signers) == 0 {
		ca.Signers = []*x509.Certificate{ca.Recipient} // it does not say that it may, but who else?
	}
	for _, cert := range append([]*x509.Certificate{ca.Recipient}, ca.Signers...) {
		if ca.Issuer = cert; isCA(cert) {
			return nil
		}
		for _, issuer := range ca.issuers {
			if names(cert, issuer) && cert.CheckSignatureFrom(issuer) == nil {
				ca.Issuer = issuer
				return nil
			}
		}
	}
	// A self-signed RA says nothing of the CA.
	for _, cert := range ca.issuers {
		ca.Issuer = cert
		if !slices.ContainsFunc(ca.issuers, func(other *x509.Certificate) bool { return !other.Equal(cert) && names(other, cert) }) {
			break
		}
	}
	if len(ca.issuers) == 0 {
		return errors.New("scepclient: the certificate of the CA that issues is not known: it is not in the answer to GetCACert; add it to Client.Roots")
	}
	return nil
}

// recipientRank says how well requests can be encrypted to cert; below 0, not at all. First
// comes whether it says so, then how low in the hierarchy it is, because RA and issuing CA are
// below the others.
func recipientRank(cert *x509.Certificate, certificates []*x509.Certificate) int {
	key, ok := cert.PublicKey.(*rsa.PublicKey)
	if !ok || cms.CheckKey(key) != nil {
		return -1
	}
	rank := 0
	if cert.KeyUsage == 0 || cert.KeyUsage&x509.KeyUsageKeyEncipherment != 0 {
		rank += 8
	}
	switch {
	case isRA(cert):
		rank += 4
	case !slices.ContainsFunc(certificates, func(other *x509.Certificate) bool { return isCA(other) && !other.Equal(cert) && names(other, cert) }):
		rank += 2
	}
	if cert.KeyUsage&x509.KeyUsageKeyEncipherment != 0 {
		rank++
	}
	return rank
}
