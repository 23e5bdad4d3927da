package status

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// ResponderOptions say what certificate [IssueResponder] makes. The zero ResponderOptions is usable.
type ResponderOptions struct {
	// Validity is how long the certificate is valid from now on, if the CA's does not end
	// before that; at least an hour. If zero, 30 days. Clients do not ask whether it is
	// revoked, so a short life is what limits the damage of a stolen key.
	Validity time.Duration

	// Time returns the current time. If nil, time.Now is used.
	Time func() time.Time
}

// oidNoCheck is id-pkix-ocsp-nocheck.
func oidNoCheck() asn1.ObjectIdentifier { return asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5} }

// IssueResponder has ca issue a certificate for pub, the key of an OCSP responder: for OCSP signing,
// with id-pkix-ocsp-nocheck. It starts ten minutes back, but not before the CA. If ca signs something
// else than it was asked for there is an error and no certificate. The certificate is not in any
// depot. When it ends soon, make another and call [OCSP.Replace].
func IssueResponder(ctx context.Context, ca scep.CA, pub crypto.PublicKey, o ResponderOptions) (*x509.Certificate, error) {
	if o.Validity == 0 {
		o.Validity = 30 * 24 * time.Hour
	}
	if o.Validity < time.Hour {
		return nil, fmt.Errorf("status: ResponderOptions.Validity is %v; use an hour or more", o.Validity)
	}
	now := time.Now()
	if o.Time != nil {
		now = o.Time()
	}
	now = now.UTC().Truncate(time.Second)
	chain, err := ca.Chain(ctx)
	if err != nil {
		return nil, fmt.Errorf("status: asking the CA for its chain: %w", err)
	}
	if len(chain) == 0 || chain[0] == nil || !chain[0].IsCA {
		return nil, errors.New("status: the CA has no certificate, or one that is not that of a CA")
	}
	issuer := chain[0]
	start, end := now.Add(-10*time.Minute), now.Add(o.Validity)
	if start.Before(issuer.NotBefore) {
		start = issuer.NotBefore
	}
	if end.After(issuer.NotAfter) {
		end = issuer.NotAfter
	}
	if !end.After(now) {
		return nil, fmt.Errorf("status: certificate %q has expired at %s; renew it", issuer.Subject, issuer.NotAfter.Format(time.RFC3339))
	}
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("status: the key of the responder: %w", err)
	}
	key, err := keyBits(spki)
	if err != nil {
		return nil, err
	}
	id := sha256.Sum256(key) // RFC 7093, 2 (1)
	serial := make([]byte, 20)
	rand.Read(serial)
	serial[0] = serial[0]&0x3f | 0x40
	tmpl := &x509.Certificate{
		SerialNumber:          new(big.Int).SetBytes(serial),
		Subject:               pkix.Name{CommonName: responderName(issuer.Subject.CommonName)},
		NotBefore:             start,
		NotAfter:              end,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning},
		BasicConstraintsValid: true,
		SubjectKeyId:          id[:20],
		AuthorityKeyId:        issuer.SubjectKeyId,
		ExtraExtensions:       []pkix.Extension{{Id: oidNoCheck(), Value: []byte{5, 0}}},
	}
	asked := *tmpl // a CA may have its own idea of it
	cert, err := ca.Sign(ctx, &asked, pub)
	if err != nil {
		return nil, fmt.Errorf("status: having the responder's certificate signed: %w", err)
	}
	if err := checkIssued(cert, tmpl, issuer, spki); err != nil {
		return nil, fmt.Errorf("status: the CA signed a certificate that does not do for a responder: %w", err)
	}
	return cert, nil
}

func checkIssued(cert, tmpl, issuer *x509.Certificate, spki []byte) error {
	if cert == nil {
		return errors.New("it returned none")
	}
	if err := checkResponder(cert, issuer); err != nil {
		return err
	}
	switch {
	case string(cert.RawSubjectPublicKeyInfo) != string(spki):
		return errors.New("it is for another key")
	case cert.IsCA || len(cert.ExtKeyUsage)+len(cert.UnknownExtKeyUsage) != 1:
		return errors.New("it is a CA certificate, or for other uses too")
	case !cert.NotBefore.Equal(tmpl.NotBefore) || !cert.NotAfter.Equal(tmpl.NotAfter):
		return fmt.Errorf("it is valid from %v to %v; asked for was %v to %v", cert.NotBefore, cert.NotAfter, tmpl.NotBefore, tmpl.NotAfter)
	case !slices.ContainsFunc(cert.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidNoCheck()) }):
		return errors.New("it lacks id-pkix-ocsp-nocheck")
	}
	return nil
}

// responderName returns the common name of a responder for the CA of that name, of at most 64
// characters.
func responderName(ca string) string {
	const suffix = " OCSP responder"
	if r := []rune(ca); len(r) > 64-len(suffix) {
		ca = string(r[:64-len(suffix)])
	}
	return strings.TrimSpace(strings.TrimSpace(ca) + suffix)
}
