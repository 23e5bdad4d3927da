package scepclient

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
)

// GetCRL asks for the CRL that would have the certificate with this issuer and serial number
// (RFC 8894, 2.7). issuer is the DER of the name, or nil for that of the CA; serial may be nil, for
// that of the CA's own certificate, where the server has one CRL for all. The message is signed
// with cert, which may be a self-signed one, and key.
//
// The CRL is signed by the issuer, and is valid now.
func (c *Client) GetCRL(ctx context.Context, issuer []byte, serial *big.Int, cert *x509.Certificate, key crypto.Signer) (*x509.RevocationList, error) {
	if cert == nil {
		return nil, errors.New("scepclient: GetCRL needs a certificate to sign the message with")
	}
	s, issuer, content, err := c.about(ctx, issuer, serial, cert, key)
	if err != nil {
		return nil, err
	}
	_, crls, err := s.ask(ctx, typeGetCRL, content)
	if errors.Is(err, errPending) {
		return nil, errors.New("scepclient: the reply to GetCRL says PENDING, which it must not")
	}
	if err != nil {
		return nil, err
	}
	return s.ca.crl(crls, issuer, c.now().Unix())
}

// crl returns the CRL of this issuer among those of a reply.
func (ca *CA) crl(crls [][]byte, issuer []byte, now int64) (*x509.RevocationList, error) {
	for _, der := range crls {
		crl, err := x509.ParseRevocationList(der)
		if err != nil {
			return nil, fmt.Errorf("scepclient: the CRL in the reply: %w", err)
		}
		if !bytes.Equal(crl.RawIssuer, issuer) {
			continue
		}
		for _, by := range append([]*x509.Certificate{ca.Issuer}, ca.issuers...) {
			if !bytes.Equal(by.RawSubject, issuer) || crl.CheckSignatureFrom(by) != nil {
				continue
			}
			if now < crl.ThisUpdate.Unix() || !crl.NextUpdate.IsZero() && now > crl.NextUpdate.Unix() {
				return nil, fmt.Errorf("scepclient: the CRL in the reply is valid from %v to %v, not now", crl.ThisUpdate, crl.NextUpdate)
			}
			return crl, nil
		}
		return nil, fmt.Errorf("scepclient: the CRL in the reply is not signed by %.100q", ca.Issuer.Subject)
	}
	return nil, errors.New("scepclient: the reply to GetCRL has no CRL of the issuer that was asked for")
}
