package scep

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/scepkit/scepkit/scep/internal/cms"
)

// nextCA is the answer to GetNextCACert (RFC 8894, 4.7.1): SignedData around a certs-only message
// with the certificates of the next CA, and of its RA.
//
// It is signed as replies are: by the RA or the Responder, if there is one, in place of the CA.
// jscep and xipki compare the signer with who signs replies, and sscep takes whatever chains to the
// CA. The content type is id-data, and what is inside is a whole ContentInfo, as sscep has it. The
// signer's certificate is outside, where sscep looks for it, and so are the others, because jscep
// does not look inside.
type nextCA struct {
	by           *opener
	content      []byte
	certificates [][]byte

	signed atomic.Pointer[[]byte]
	turn   gate      // of one, who signs: the others wait for that
	failed time.Time // when it could not be signed
	err    error     // why
}

// failedFor is how long nobody tries again to sign what could not be signed.
const failedFor = 10 * time.Second

func newNextCA(c *Config, chain []*x509.Certificate, by *opener) (*nextCA, error) {
	var message []*x509.Certificate
	if c.NextRA != nil {
		message = append(message, c.NextRA.Certificate())
	}
	message = append(message, chain[0])
	if root := chain[len(chain)-1]; c.Chain != ChainIssuer && c.Chain != ChainSingle && len(chain) > 1 {
		if c.Chain == ChainFull && selfSigned(root) {
			chain = chain[:len(chain)-1]
		}
		message = append(message, chain[1:]...)
	}
	n := &nextCA{by: by, turn: newGate(1)}
	for _, cert := range message {
		n.certificates = append(n.certificates, cert.Raw)
	}
	var err error
	if n.content, err = cms.CertsOnly(n.certificates...); err != nil {
		return nil, err
	}
	if signer := by.replier.Certificate(); !slices.ContainsFunc(message, signer.Equal) {
		n.certificates = append(n.certificates, signer.Raw)
	}
	return n, nil
}

// message returns the answer. It is signed once, when somebody asks first: nothing in it can change
// in the life of a Handler, and strangers must not keep the key busy.
func (n *nextCA) message(ctx context.Context, now func() time.Time, limit time.Duration) ([]byte, error) {
	err := n.turn.do(ctx, func() error {
		if n.signed.Load() != nil {
			return nil
		}
		if since := now().Sub(n.failed); n.err != nil && since >= 0 && since < failedFor {
			return n.err
		}
		// Others wait for it: who asked first may go away.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
		defer cancel()
		n.err = n.by.replies.do(ctx, func() error {
			cert := n.by.replier.Certificate()
			signed, err := cms.SignMessage(ctx, n.content, &cms.Attributes{}, cms.FromX509(cert), n.by.replier.Key, crypto.SHA256, n.certificates...)
			if err == nil {
				n.signed.Store(&signed)
			}
			return err
		})
		n.failed = now()
		return n.err
	})
	if err != nil {
		return nil, fmt.Errorf("scep: signing the answer to GetNextCACert: %w", err)
	}
	return *n.signed.Load(), nil
}

// sendNextCA answers GetNextCACert.
func (h *Handler) sendNextCA(w http.ResponseWriter, r *http.Request, rep *report) {
	if h.next == nil {
		rep.fail(w, http.StatusNotFound, ReasonHTTP, errors.New("scep: there is no next CA"))
		return
	}
	if signed := h.next.signed.Load(); signed != nil {
		rep.send(w, typeNextCACert, *signed)
		return
	}
	select {
	case h.requests <- struct{}{}:
		defer func() { <-h.requests }()
	default:
		rep.fail(w, http.StatusServiceUnavailable, ReasonBusy, errors.New("scep: Limits.Requests are under way"))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), h.c.Limits.Time)
	defer cancel()
	body, err := h.next.message(ctx, h.c.Time, h.c.Limits.Time)
	if err != nil {
		h.sorry(w, r, rep, err)
		return
	}
	rep.send(w, typeNextCACert, body)
}
