package scepclient

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/scepkit/scepkit/scep/internal/cms"
)

// ErrNoNextCA says that a server does not offer GetNextCACert, or has no next CA now.
var ErrNoNextCA = errors.New("scepclient: the server has no next CA")

// NextCA asks for the CA that will take over (RFC 8894, 4.7). The answer must be signed by the
// current CA, which is held to Client.Fingerprints and Client.Roots as ever, or by one that may sign
// its replies; that signature is all that makes the next CA known, and CA.Authenticated tells whether
// the current one was.
//
// With the result as Request.CA, certificates come from the next CA before it takes over. For what
// comes after, add Fingerprint(ca.Issuer) to Client.Fingerprints. One that is not valid yet is
// returned all the same: see its NotBefore.
func (c *Client) NextCA(ctx context.Context) (*CA, error) {
	if err := c.checkPins(); err != nil {
		return nil, err
	}
	caps, err := c.Capabilities(ctx)
	if err != nil {
		return nil, err
	}
	if len(caps.Keywords) > 0 && !caps.Has("GetNextCACert") {
		return nil, ErrNoNextCA
	}
	current, err := c.CACertificates(ctx)
	if err != nil {
		return nil, err
	}
	const operation = "GetNextCACert"
	a, err := c.get(ctx, operation, c.Name)
	var status *statusError
	if errors.As(err, &status) && status.status == http.StatusNotFound {
		return nil, ErrNoNextCA
	}
	if err != nil {
		return nil, err
	}
	msg, certificates, err := cms.ParseNextCA(a.body)
	if err != nil {
		return nil, a.unexpected(operation, "a message signed by the CA with certificates in it", err)
	}
	signers := current.Signers
	if !slices.ContainsFunc(signers, current.Issuer.Equal) {
		signers = append(slices.Clone(signers), current.Issuer)
	}
	if err := c.verify("answer to GetNextCACert", msg, signers); err != nil {
		return nil, err
	}
	// The current ones may be there as well, to verify the signature with.
	certificates = slices.DeleteFunc(certificates, func(cert *x509.Certificate) bool {
		return cert.Equal(current.Issuer) || slices.ContainsFunc(current.Signers, cert.Equal)
	})
	if len(certificates) > maxCACertificates {
		return nil, fmt.Errorf("scepclient: the answer to GetNextCACert has %d certificates", len(certificates))
	}
	var anchors []*x509.Certificate
	at := c.now()
	for _, cert := range certificates {
		if isCA(cert) {
			anchors = append(anchors, cert)
		}
	}
	if len(anchors) == 0 {
		return nil, errors.New("scepclient: the answer to GetNextCACert has no certificate of a next CA")
	}
	for _, cert := range certificates {
		if cert.NotBefore.After(at) {
			at = cert.NotBefore
		}
	}
	ca, err := choose(certificates, anchors, at)
	if err != nil {
		return nil, fmt.Errorf("scepclient: next CA: %w", err)
	}
	ca.Authenticated = current.Authenticated
	return ca, nil
}
