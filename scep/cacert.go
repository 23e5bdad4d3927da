package scep

import (
	"bytes"
	"crypto/x509"
	"errors"
	"strings"

	"github.com/scepkit/scepkit/scep/internal/cms"
)

// The content types of RFC 8894, 4. Clients compare them whole: no parameters.
const (
	typeMessage    = "application/x-pki-message"
	typeCACert     = "application/x-x509-ca-cert"
	typeRACert     = "application/x-x509-ca-ra-cert"
	typeNextCACert = "application/x-x509-next-ca-cert"
	typeCaps       = "text/plain"
)

// capabilities is the answer to GetCACaps (RFC 8894, 3.5.2), computed from what is admitted.
// Each keyword is on a line of its own, because some clients know no SCEPStandard; none is a
// prefix of a private one and no line is empty, because some match by prefix.
func capabilities(c *Config) []byte {
	words := []string{"AES", "POSTPKIOperation", "SHA-256", "SHA-384", "SHA-512", "SCEPStandard"}
	if c.Renewal.On {
		words = append(words, "Renewal")
	}
	if c.Next != nil {
		words = append(words, "GetNextCACert")
	}
	if c.Legacy&TripleDES != 0 {
		words = append(words, "DES3")
	}
	if c.Legacy&SHA1 != 0 {
		words = append(words, "SHA-1")
	}
	return []byte(strings.Join(words, "\n") + "\n")
}

// caCertificates is the answer to GetCACert (RFC 8894, 4.2.1) and its content type.
func caCertificates(c *Config, ra *Identity, chain []*x509.Certificate) (body []byte, contentType string, err error) {
	message := []*x509.Certificate{ra.Certificate()}
	if c.Responder != nil {
		message = append(message, c.Responder.Certificate())
	}
	mode := c.Chain
	root := chain[len(chain)-1]
	if mode == ChainAuto {
		mode = ChainRoot
		if len(message) == 1 && message[0].Equal(chain[0]) && selfSigned(chain[0]) {
			mode = ChainSingle
		}
	}
	var all []*x509.Certificate
	switch mode {
	case ChainSingle:
		return message[0].Raw, typeCACert, nil
	case ChainIssuer:
		all = append(message, chain[0])
	case ChainFull:
		if len(chain) > 1 && selfSigned(root) {
			chain = chain[:len(chain)-1]
		}
		all = append(message, chain...)
	case ChainRoot:
		all = append(message, chain...)
	default:
		return nil, "", errors.New("is unknown")
	}
	var ders [][]byte
	for i, cert := range all {
		if i > 0 && cert.Equal(all[0]) {
			continue // the CA is its own RA
		}
		ders = append(ders, cert.Raw)
	}
	body, err = cms.CertsOnly(ders...)
	return body, typeRACert, err
}

func selfSigned(cert *x509.Certificate) bool {
	return bytes.Equal(cert.RawSubject, cert.RawIssuer) && cert.CheckSignatureFrom(cert) == nil
}
