package backend

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"math/bits"
	"strings"
	"time"

	"github.com/scepkit/scepkit/backend/internal/custody"
	"github.com/scepkit/scepkit/scep"
)

// CAOptions say what certificate [SelfSign] makes and [Request] asks for. The zero CAOptions is
// usable.
type CAOptions struct {
	// Subject is the name of the CA. If empty, CN=SCEP CA.
	Subject pkix.Name

	// Validity is how long the certificate is valid from now on. If zero, ten years of 365
	// days. Request leaves it to the issuer.
	Validity time.Duration

	// MaxPathLen is how many CAs there may be below this one. If zero, none.
	MaxPathLen int

	// Time returns the current time. If nil, time.Now is used.
	Time func() time.Time
}

// SelfSign makes a self-signed CA certificate for key. It may sign certificates, CRLs and
// messages, with an RSA key that can decrypt (one that implements [scep.Unwrapper] or
// [crypto.Decrypter]) also decrypt. It starts an hour back, for devices with slow clocks.
//
// Key is any signer, and used as [Wrap] says.
func SelfSign(ctx context.Context, key crypto.Signer, o CAOptions) (*x509.Certificate, error) {
	signer, err := o.prepare(ctx, key)
	if err != nil {
		return nil, err
	}
	now := clock(o.Time)
	tmpl := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               o.Subject,
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(o.Validity),
		KeyUsage:              caKeyUsage(key, signer.Public()),
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            o.MaxPathLen,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, signer.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("backend: signing the CA certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("backend: reading the CA certificate just made: %w", err)
	}
	return cert, nil
}

// Request makes a certificate request (PKCS #10, DER) for key, for the CA above to issue a CA
// certificate from: with the name, basic constraints and key usage that [SelfSign] would give
// it. Many CAs take those from their own settings: look at what they issue before importing it.
func Request(ctx context.Context, key crypto.Signer, o CAOptions) (csr []byte, err error) {
	signer, err := o.prepare(ctx, key)
	if err != nil {
		return nil, err
	}
	constraints, err := asn1.Marshal(struct {
		CA         bool
		MaxPathLen int
	}{true, o.MaxPathLen})
	if err != nil {
		return nil, fmt.Errorf("backend: encoding the request: %w", err)
	}
	// Go and X.509 number the bits from different ends; the usages of a CA are in the first byte.
	b := bits.Reverse8(byte(caKeyUsage(key, signer.Public())))
	usage, err := asn1.Marshal(asn1.BitString{Bytes: []byte{b}, BitLength: 8 - bits.TrailingZeros8(b)})
	if err != nil {
		return nil, fmt.Errorf("backend: encoding the request: %w", err)
	}
	csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: o.Subject,
		ExtraExtensions: []pkix.Extension{
			{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: constraints},
			{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Critical: true, Value: usage},
		},
	}, signer)
	if err != nil {
		return nil, fmt.Errorf("backend: signing the request: %w", err)
	}
	return csr, nil
}

// prepare fills in what is zero, and returns the key to sign with.
func (o *CAOptions) prepare(ctx context.Context, key crypto.Signer) (crypto.Signer, error) {
	switch {
	case key == nil:
		return nil, errors.New("backend: no key given")
	case o.Validity < 0:
		return nil, fmt.Errorf("backend: CAOptions.Validity is negative (%v)", o.Validity)
	case o.MaxPathLen < 0:
		return nil, fmt.Errorf("backend: CAOptions.MaxPathLen is negative (%d)", o.MaxPathLen)
	}
	if o.Validity == 0 {
		o.Validity = 10 * 365 * 24 * time.Hour
	}
	if len(o.Subject.ToRDNSequence()) == 0 {
		o.Subject = pkix.Name{CommonName: "SCEP CA"}
	}
	guarded, err := guard(ctx, key, "backend: the key of the new CA")
	if err != nil {
		return nil, err
	}
	return bound{guarded, ctx}, nil
}

// bound is a crypto.Signer that ends with ctx.
type bound struct {
	crypto.Signer
	ctx context.Context // for the length of one call, in which the signer is used
}

func (b bound) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return b.Signer.(contextSigner).SignContext(b.ctx, rand, digest, opts)
}

// caKeyUsage returns what the key of a CA may do.
func caKeyUsage(key crypto.Signer, pub crypto.PublicKey) x509.KeyUsage {
	usage := x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
	_, isRSA := pub.(*rsa.PublicKey)
	_, unwraps := key.(scep.Unwrapper)
	_, decrypts := key.(crypto.Decrypter)
	if isRSA && (unwraps || decrypts) {
		usage |= x509.KeyUsageKeyEncipherment
	}
	return usage
}

// RAOptions say what certificate [IssueRA] makes. The zero RAOptions is usable.
type RAOptions struct {
	// Validity is how long the certificate is valid from now on, if the CA's does not end
	// before that; at least an hour. If zero, 365 days.
	Validity time.Duration

	// Time returns the current time. If nil, time.Now is used.
	Time func() time.Time
}

func (o *RAOptions) check() error {
	if o.Validity == 0 {
		o.Validity = 365 * 24 * time.Hour
	}
	if o.Validity < time.Hour {
		return fmt.Errorf("backend: RAOptions.Validity is %v; use an hour or more", o.Validity)
	}
	return nil
}

// end returns when a certificate that issuer issues now would end.
func (o *RAOptions) end(issuer *x509.Certificate, now time.Time) time.Time {
	end := now.Add(o.Validity)
	if end.After(issuer.NotAfter) {
		return issuer.NotAfter
	}
	return end
}

// RADue reports whether [IssueRA] with o would make something better than ra, the certificate
// of an RA, under issuer, the certificate of the CA: ra is nil or not valid now, issuer has not
// issued it, or less than a third of its life is left and a new one would last longer.
func RADue(ra, issuer *x509.Certificate, o RAOptions) (bool, error) {
	if err := o.check(); err != nil {
		return false, err
	}
	now := clock(o.Time)
	if ra == nil || now.Before(ra.NotBefore) || now.After(ra.NotAfter) || custody.CheckIssued(ra, issuer) != nil {
		return true, nil
	}
	third := ra.NotAfter.Sub(ra.NotBefore) / 3
	return !now.Before(ra.NotAfter.Add(-third)) && ra.NotAfter.Before(o.end(issuer, now)), nil
}

// IssueRA has ca issue a certificate for pub, the RSA key of an RA, which opens requests and
// signs replies; put ca's chain after it. It starts ten minutes back, but not before the CA. If
// ca signs something else than it was asked for there is an error and no certificate. The
// certificate is not in any depot.
func IssueRA(ctx context.Context, ca scep.CA, pub crypto.PublicKey, o RAOptions) (*x509.Certificate, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	key, ok := pub.(*rsa.PublicKey)
	if !ok || key.N.BitLen() < 2048 {
		return nil, fmt.Errorf("backend: RA: the key of an RA must decrypt what devices send: use RSA with 2048 bits or more, not %s: %w", Describe(pub), ErrUnsupported)
	}
	chain, err := ca.Chain(ctx)
	if err != nil {
		return nil, fmt.Errorf("backend: RA: asking the CA for its chain: %w", err)
	}
	now := clock(o.Time)
	if err := custody.CheckCA(chain, now); err != nil {
		return nil, fmt.Errorf("backend: RA: %w", err)
	}
	issuer := chain[0]
	keyID, err := newKeyID(key)
	if err != nil {
		return nil, fmt.Errorf("backend: RA: encoding the key: %w", err)
	}
	start := now.Add(-custody.Backdated)
	if start.Before(issuer.NotBefore) {
		start = issuer.NotBefore
	}
	// No extended key usage: clients tell by the key usage which certificate to use for what.
	tmpl := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{CommonName: raName(issuer.Subject.CommonName)},
		NotBefore:             start,
		NotAfter:              o.end(issuer, now),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		BasicConstraintsValid: true,
		SubjectKeyId:          keyID,
		AuthorityKeyId:        issuer.SubjectKeyId,
	}
	asked := *tmpl // a CA may have its own idea of it
	cert, err := ca.Sign(ctx, &asked, key)
	if err != nil {
		return nil, fmt.Errorf("backend: RA: having the certificate signed: %w", err)
	}
	if err := checkSigned(cert, tmpl, issuer, key); err != nil {
		return nil, fmt.Errorf("backend: RA: the CA signed a certificate that does not do: %w", err)
	}
	return cert, nil
}

// raName returns the common name of an RA for the CA of that name. A common name has at most 64
// characters (RFC 5280, appendix A.1).
func raName(ca string) string {
	const suffix = " SCEP RA"
	if r := []rune(ca); len(r) > 64-len(suffix) {
		ca = string(r[:64-len(suffix)])
	}
	return strings.TrimSpace(strings.TrimSpace(ca) + suffix)
}

// checkSigned reports what is wrong with cert, which was to be like tmpl.
func checkSigned(cert, tmpl, issuer *x509.Certificate, pub *rsa.PublicKey) error {
	if err := custody.CheckIssued(cert, issuer); err != nil {
		return fmt.Errorf("it is not issued by %q: %w", issuer.Subject, err)
	}
	switch {
	case !pub.Equal(cert.PublicKey):
		return errors.New("it is for another key")
	case cert.IsCA:
		return errors.New("it is a CA certificate")
	case cert.KeyUsage != tmpl.KeyUsage:
		return errors.New("its key usage is not digitalSignature and keyEncipherment")
	case !cert.NotBefore.Equal(tmpl.NotBefore) || !cert.NotAfter.Equal(tmpl.NotAfter):
		return fmt.Errorf("it is valid from %v to %v; asked for was %v to %v", cert.NotBefore, cert.NotAfter, tmpl.NotBefore, tmpl.NotAfter)
	}
	return nil
}

// newSerial returns a serial number of 20 bytes, 158 bits of them random. The first byte is
// neither zero nor needs a sign octet before it: RFC 5280, 4.1.2.2 allows no 21st.
func newSerial() *big.Int {
	b := make([]byte, 20)
	rand.Read(b)
	b[0] = b[0]&0x3f | 0x40
	return new(big.Int).SetBytes(b)
}

// newKeyID returns a key identifier (RFC 7093, 2, method 1).
func newKeyID(pub crypto.PublicKey) ([]byte, error) {
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, err
	}
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(spki, &info); err != nil {
		return nil, err
	}
	id := sha256.Sum256(info.Key.Bytes)
	return id[:20], nil
}

// clock returns the time in whole seconds, as certificates have it.
func clock(now func() time.Time) time.Time {
	if now == nil {
		now = time.Now
	}
	return now().UTC().Truncate(time.Second)
}
