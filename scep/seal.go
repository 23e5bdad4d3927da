package scep

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/scepkit/scepkit/scep/internal/cms"
)

const (
	statusSuccess = "0"
	statusFailure = "2"
	statusPending = "3"
)

// seal writes the CertRep (RFC 8894, 3.3.2) for an outcome or a refusal.
func (h *Handler) seal(ctx context.Context, in *inbound, out *outcome, why *Error) ([]byte, error) {
	nonce := make([]byte, 16)
	rand.Read(nonce)
	attrs := &cms.Attributes{
		MessageType:      string(certRep),
		TransactionID:    in.msg.TransactionID,
		TransactionIDTag: in.msg.TransactionIDTag,
		SenderNonce:      nonce,
		RecipientNonce:   in.msg.SenderNonce,
	}
	content := []byte{} // there, and empty: certmonger and openssl insist on eContent
	if h.c.AbsentContent {
		content = nil
	}
	switch {
	case why != nil:
		attrs.PKIStatus = statusFailure
		attrs.FailInfo = strconv.Itoa(int(why.FailInfo))
		if !h.c.NoFailInfoText {
			attrs.FailInfoText = failInfoText(why.Text)
		}
	case out.crl != nil:
		attrs.PKIStatus = statusSuccess
		inner, err := cms.CRLOnly(out.crl)
		if err != nil {
			return nil, err
		}
		if content, err = in.encrypt(inner); err != nil {
			return nil, err
		}
	case out.cert == nil:
		attrs.PKIStatus = statusPending
	default:
		attrs.PKIStatus = statusSuccess
		var err error
		if content, err = h.envelope(in, out.cert); err != nil {
			return nil, err
		}
	}
	var reply []byte
	err := in.gate.do(ctx, func() (err error) {
		cert := in.replier.Certificate()
		reply, err = cms.SignMessage(ctx, content, attrs, cms.FromX509(cert), in.replier.Key, in.hash, cert.Raw)
		return err
	})
	return reply, err
}

// envelope encrypts cert for whoever signed the request.
func (h *Handler) envelope(in *inbound, cert *x509.Certificate) ([]byte, error) {
	certificates := [][]byte{cert.Raw} // the issued one first, never in DER order
	if a := h.namedBy(cert); h.c.ReplyChain && a != nil {
		for _, c := range a.chain {
			certificates = append(certificates, c.Raw)
		}
	}
	inner, err := cms.CertsOnly(certificates...)
	if err != nil {
		return nil, err
	}
	return in.encrypt(inner)
}

// failInfoText bounds what a refusal says and keeps it to one line.
func failInfoText(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || 0x7f <= r && r < 0xa0 || r == utf8.RuneError {
			return '?'
		}
		return r
	}, s)
	for len(s) > 200 {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return s
}
