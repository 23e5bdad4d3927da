package scepclient

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/scepkit/scepkit/scep/internal/cms"
)

// A Pending is a request that waits for approval: all that [Client.Poll] needs but the private
// key. It has no secret and can be kept as JSON, but must be kept from being changed: it also
// says which CA is to be trusted.
type Pending struct {
	URL           string   `json:"url"`           // of the service, without a password
	TransactionID string   `json:"transactionID"` // of the request
	Signer        []byte   `json:"signer"`        // DER of the certificate that signed the request
	PublicKey     []byte   `json:"publicKey"`     // DER of the key that the certificate is for
	Subject       []byte   `json:"subject"`       // DER of the name that was asked for
	CA            [][]byte `json:"ca"`            // DER of the answer to GetCACert
	Anchors       [][]byte `json:"anchors"`       // DER of the certificates that authenticated it
}

// restore reads a Pending back.
func (p *Pending) restore(key crypto.Signer) (by party, pub crypto.PublicKey, certificates, anchors []*x509.Certificate, err error) {
	fail := func(field string, cause error) (party, crypto.PublicKey, []*x509.Certificate, []*x509.Certificate, error) {
		return party{}, nil, nil, nil, fmt.Errorf("scepclient: Pending.%s: %w", field, cause)
	}
	if err := checkTransactionID(p.TransactionID); err != nil {
		return fail("TransactionID", errors.New("is no PrintableString"))
	}
	if by.cert, err = cms.ParseCertificate(p.Signer); err != nil {
		return fail("Signer", err)
	}
	by.raw, by.key = p.Signer, key
	signer, err := cms.ParsePublicKey(by.cert.RawSPKI)
	if err != nil {
		return fail("Signer", err)
	}
	if !equalKeys(signer, key.Public()) {
		return fail("Signer", errors.New("belongs to another key; give the one that signed the request"))
	}
	if pub, err = cms.ParsePublicKey(p.PublicKey); err != nil {
		return fail("PublicKey", err)
	}
	if certificates, err = parseAll(p.CA); err != nil {
		return fail("CA", err)
	}
	if anchors, err = parseAll(p.Anchors); err != nil {
		return fail("Anchors", err)
	}
	return by, pub, certificates, anchors, nil
}

func parseAll(ders [][]byte) ([]*x509.Certificate, error) {
	if len(ders) == 0 {
		return nil, errors.New("is empty")
	}
	var certs []*x509.Certificate
	for _, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	return certs, nil
}

func rawAll(certs []*x509.Certificate) [][]byte {
	var out [][]byte
	for _, cert := range certs {
		out = append(out, cert.Raw)
	}
	return out
}
