package scep

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"
)

// A Profile is the [Policy] that most servers want. Its zero value issues certificates for
// client authentication that are valid for one year, with the subject and the usual
// alternative names that the CSR asks for, and nothing else that it asks for. Use it by
// pointer, and do not change it after it was given to [New].
type Profile struct {
	// Validity is the time between now and the end; if zero, 365 days. The server sees to
	// it that the certificate does not outlive the CA.
	Validity time.Duration

	// Backdate is how long before now the certificate begins to be valid, for devices
	// whose clock is slow; if zero, 5 minutes. Negative: not at all.
	Backdate time.Duration

	// SAN says which kinds of alternative names the CSR may ask for; others are left out.
	// If zero, SANDNS|SANEmail|SANURI|SANIP. SANUPN, which Windows takes as a log-on
	// name, must be named to be admitted.
	SAN SANKind

	// MaxNames is how many alternative names a CSR may ask for; if zero, 100.
	MaxNames int

	// KeyUsage has the bits that a CSR may ask for; if zero, digitalSignature and
	// keyEncipherment. A CSR gets those that it asks for. If it asks for none of them, it
	// gets digitalSignature and, for an RSA key, keyEncipherment, as far as they are
	// among these.
	KeyUsage x509.KeyUsage

	// ExtKeyUsage has the usages that a CSR may ask for; if nil, client authentication.
	// A CSR gets those that it asks for, and all of these if it asks for none of them.
	// An empty list that is not nil leaves the extension out.
	ExtKeyUsage []x509.ExtKeyUsage

	// MinRSABits and MaxRSABits bound RSA keys; if zero, 2048 and 8192, and never outside
	// 1024 to 8192.
	MinRSABits, MaxRSABits int

	// NoEC refuses CSRs with EC or Ed25519 keys.
	NoEC bool

	// OCSPServer, IssuingCertificateURL and CRLDistributionPoints are written into each
	// certificate as they are.
	OCSPServer, IssuingCertificateURL, CRLDistributionPoints []string

	// Change, if not nil, may change or refuse the template, with errors as those of
	// [Policy]. To change the subject, set Subject and clear RawSubject. Alternative
	// names are in their fields; if there are UPNs, all are in ExtraExtensions.
	Change func(ctx context.Context, req *Request, tmpl *x509.Certificate) error
}

// extKeyUsages is fixed; indexes are x509.ExtKeyUsage.
var extKeyUsages = [...]asn1.ObjectIdentifier{
	x509.ExtKeyUsageAny:                            {2, 5, 29, 37, 0},
	x509.ExtKeyUsageServerAuth:                     {1, 3, 6, 1, 5, 5, 7, 3, 1},
	x509.ExtKeyUsageClientAuth:                     {1, 3, 6, 1, 5, 5, 7, 3, 2},
	x509.ExtKeyUsageCodeSigning:                    {1, 3, 6, 1, 5, 5, 7, 3, 3},
	x509.ExtKeyUsageEmailProtection:                {1, 3, 6, 1, 5, 5, 7, 3, 4},
	x509.ExtKeyUsageIPSECEndSystem:                 {1, 3, 6, 1, 5, 5, 7, 3, 5},
	x509.ExtKeyUsageIPSECTunnel:                    {1, 3, 6, 1, 5, 5, 7, 3, 6},
	x509.ExtKeyUsageIPSECUser:                      {1, 3, 6, 1, 5, 5, 7, 3, 7},
	x509.ExtKeyUsageTimeStamping:                   {1, 3, 6, 1, 5, 5, 7, 3, 8},
	x509.ExtKeyUsageOCSPSigning:                    {1, 3, 6, 1, 5, 5, 7, 3, 9},
	x509.ExtKeyUsageMicrosoftServerGatedCrypto:     {1, 3, 6, 1, 4, 1, 311, 10, 3, 3},
	x509.ExtKeyUsageNetscapeServerGatedCrypto:      {2, 16, 840, 1, 113730, 4, 1},
	x509.ExtKeyUsageMicrosoftCommercialCodeSigning: {1, 3, 6, 1, 4, 1, 311, 2, 1, 22},
	x509.ExtKeyUsageMicrosoftKernelCodeSigning:     {1, 3, 6, 1, 4, 1, 311, 61, 1, 1},
}

func extKeyUsageOID(u x509.ExtKeyUsage) (asn1.ObjectIdentifier, bool) {
	if u < 0 || int(u) >= len(extKeyUsages) {
		return nil, false
	}
	return extKeyUsages[u], true
}

const (
	minRSABits = 1024
	maxRSABits = 8192
)

func (p *Profile) rsaBits() (low, high int) {
	low, high = p.MinRSABits, p.MaxRSABits
	if low == 0 {
		low = 2048
	}
	if high == 0 {
		high = maxRSABits
	}
	return low, high
}

func (p *Profile) allowedKeyUsage() x509.KeyUsage {
	if p.KeyUsage == 0 {
		return x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	}
	return p.KeyUsage
}

// Check reports what makes the profile useless. [New] calls it.
func (p *Profile) Check() error {
	low, high := p.rsaBits()
	switch {
	case p.Validity < 0:
		return errors.New("has a negative Validity")
	case low < minRSABits || high > maxRSABits || low > high:
		return fmt.Errorf("has MinRSABits %d and MaxRSABits %d, which are not within %d to %d", low, high, minRSABits, maxRSABits)
	case p.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return errors.New("has bits of a CA in KeyUsage, which SCEP must not issue")
	case p.SAN&SANNone != 0 && p.SAN != SANNone:
		return errors.New("has SANNone together with other kinds in SAN")
	}
	for _, u := range p.ExtKeyUsage {
		if u == x509.ExtKeyUsageAny || u == x509.ExtKeyUsageOCSPSigning {
			return errors.New("has anyExtendedKeyUsage or OCSPSigning in ExtKeyUsage, which devices must not have")
		}
		if _, ok := extKeyUsageOID(u); !ok {
			return fmt.Errorf("has an unknown ExtKeyUsage, %d", u)
		}
	}
	return nil
}

// Template implements [Policy].
func (p *Profile) Template(ctx context.Context, req *Request) (*x509.Certificate, error) {
	tmpl, err := p.template(req)
	if err == nil && p.Change != nil {
		err = p.Change(ctx, req, tmpl)
	}
	if err != nil {
		return nil, err
	}
	return tmpl, nil
}

// template is Template without Change: what the fields say, of the CSR alone.
func (p *Profile) template(req *Request) (*x509.Certificate, error) {
	if err := p.checkKey(req.CSR); err != nil {
		return nil, &Error{FailInfo: BadAlg, Reason: ReasonKey, Text: err.Error()}
	}
	if err := checkSubject(req.CSR.RawSubject); err != nil {
		return nil, &Error{FailInfo: BadRequest, Reason: ReasonNames, Text: err.Error()}
	}
	usage, err := p.keyUsage(req.CSR)
	if err != nil {
		return nil, &Error{FailInfo: BadRequest, Reason: ReasonPolicy, Text: "keyUsage is malformed", Err: err}
	}
	extUsage, err := p.extKeyUsage(req.CSR)
	if err != nil {
		return nil, &Error{FailInfo: BadRequest, Reason: ReasonPolicy, Text: "extKeyUsage is malformed", Err: err}
	}
	validity, backdate := p.Validity, p.Backdate
	if validity == 0 {
		validity = 365 * 24 * time.Hour
	}
	switch {
	case backdate == 0:
		backdate = 5 * time.Minute
	case backdate < 0:
		backdate = 0
	}
	now := req.now()
	tmpl := &x509.Certificate{
		Subject:               req.CSR.Subject,
		RawSubject:            req.CSR.RawSubject,
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(validity),
		KeyUsage:              usage,
		ExtKeyUsage:           extUsage,
		OCSPServer:            slices.Clone(p.OCSPServer), // Change may write into them
		IssuingCertificateURL: slices.Clone(p.IssuingCertificateURL),
		CRLDistributionPoints: slices.Clone(p.CRLDistributionPoints),
	}
	if err := p.names(req.CSR, tmpl); err != nil {
		return nil, err
	}
	return tmpl, nil
}

func (p *Profile) checkKey(csr *x509.CertificateRequest) error {
	switch pub := csr.PublicKey.(type) {
	case *rsa.PublicKey:
		low, high := p.rsaBits()
		if n := pub.N.BitLen(); n < low || n > high {
			return fmt.Errorf("RSA key has %d bits; %d to %d are allowed", n, low, high)
		}
	case *ecdsa.PublicKey, ed25519.PublicKey:
		if p.NoEC {
			return errors.New("only RSA keys are allowed")
		}
	}
	return nil
}

// names copies the alternative names that are admitted.
func (p *Profile) names(csr *x509.CertificateRequest, tmpl *x509.Certificate) error {
	kinds, limit := p.SAN, p.MaxNames
	if kinds == 0 {
		kinds = SANDNS | SANEmail | SANURI | SANIP
	}
	if limit == 0 {
		limit = 100
	}
	all, err := subjectAltNames(csr.Extensions)
	if err != nil {
		return &Error{FailInfo: BadRequest, Reason: ReasonNames, Text: "subjectAltName is malformed", Err: err}
	}
	names := slices.DeleteFunc(all, func(n generalName) bool { return n.kind&kinds == 0 })
	if len(names) > limit {
		return &Error{FailInfo: BadRequest, Reason: ReasonNames, Text: fmt.Sprintf("more than %d alternative names", limit)}
	}
	upn := slices.ContainsFunc(names, func(n generalName) bool { return n.kind == SANUPN })
	if upn {
		tmpl.ExtraExtensions = append(tmpl.ExtraExtensions, pkix.Extension{
			Id:       oidSubjectAltName,
			Critical: emptyName(csr.RawSubject),
			Value:    marshalNames(names),
		})
		return nil
	}
	for _, n := range names {
		switch n.kind {
		case SANDNS:
			tmpl.DNSNames = append(tmpl.DNSNames, n.text)
		case SANEmail:
			tmpl.EmailAddresses = append(tmpl.EmailAddresses, n.text)
		case SANURI:
			tmpl.URIs = append(tmpl.URIs, n.uri)
		case SANIP:
			tmpl.IPAddresses = append(tmpl.IPAddresses, n.value)
		}
	}
	return nil
}

// keyUsage returns exactly the bits that the CSR asks for, as far as they are allowed.
func (p *Profile) keyUsage(csr *x509.CertificateRequest) (x509.KeyUsage, error) {
	allowed := p.allowedKeyUsage()
	for _, ext := range csr.Extensions {
		if !ext.Id.Equal(oidKeyUsage) {
			continue
		}
		asked, err := parseKeyUsage(ext.Value)
		if err != nil {
			return 0, err
		}
		if got := asked & allowed; got != 0 {
			return got, nil
		}
	}
	usage := x509.KeyUsageDigitalSignature
	if _, ok := csr.PublicKey.(*rsa.PublicKey); ok {
		usage |= x509.KeyUsageKeyEncipherment
	}
	if got := usage & allowed; got != 0 {
		return got, nil
	}
	return allowed, nil
}

func (p *Profile) extKeyUsage(csr *x509.CertificateRequest) ([]x509.ExtKeyUsage, error) {
	allowed := p.ExtKeyUsage
	if allowed == nil {
		allowed = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	for _, ext := range csr.Extensions {
		if !ext.Id.Equal(oidExtKeyUsage) {
			continue
		}
		var asked []asn1.ObjectIdentifier
		if rest, err := asn1.Unmarshal(ext.Value, &asked); err != nil || len(rest) > 0 {
			return nil, errors.New("scep: extKeyUsage is malformed")
		}
		var got []x509.ExtKeyUsage
		for _, u := range allowed {
			oid, _ := extKeyUsageOID(u)
			if slices.ContainsFunc(asked, oid.Equal) {
				got = append(got, u)
			}
		}
		if got != nil {
			return got, nil
		}
	}
	return slices.Clone(allowed), nil
}
