package scep

import (
	"context"
	"crypto/x509"
	"time"
)

// A Request is a SCEP request whose message signature, envelope and CSR have been verified.
// Outside tests only this package makes one. Whoever is handed one must not change it,
// except where a field says so.
type Request struct {
	// ID is that of the record that the request has or will have. The same message, sent
	// again, has the same ID.
	ID ID

	// Profile is Config.Profile of the handler.
	Profile string

	// TransactionID is as the client chose it: text of 1 to 255 bytes without control
	// characters. Many clients use one value again and again.
	TransactionID string

	// CSR is the PKCS#10 request. Its own signature has been verified, so the client has
	// the private key. Nothing else in it has been judged. Its Raw is as received while
	// the message that brought it is being answered; later, the challenge password and the
	// signature in it are overwritten.
	CSR *x509.CertificateRequest

	// Secret is the challenge password, perhaps empty. It is known only while the message
	// that brought it is being answered: it is empty when a poll or an approval goes on
	// with a request.
	Secret Secret

	// Renews is the certificate that signed a renewal, after the rules for renewal have
	// been kept, else nil.
	Renews *x509.Certificate

	// Approved says that a person has approved the request.
	Approved bool

	// RemoteAddr is the client's address as net/http gives it.
	RemoteAddr string

	// Time is now, by the handler's clock.
	Time time.Time

	// Via is for a Challenge that is made of others, to note which of them admitted the
	// request. It is kept in the record, and is here again when Confirm is called.
	Via string

	// spending is nil but while Validate is called by a handler.
	spending *spending
}

// public returns a copy for those who watch: without the challenge password. Nil if r is nil.
func (r *Request) public() *Request {
	if r == nil {
		return nil
	}
	c := *r
	c.Secret, c.spending = Secret{}, nil
	if c.CSR != nil {
		csr := *c.CSR
		csr.Raw, csr.RawTBSCertificateRequest, csr.Signature = nil, nil, nil
		//lint:ignore SA1019 it is not used, it is removed
		csr.Attributes = nil
		c.CSR = &csr
	}
	return &c
}

func (r *Request) now() time.Time {
	if r.Time.IsZero() {
		return time.Now()
	}
	return r.Time
}

// A Challenge decides whether a request may have a certificate. Methods may be called
// concurrently. Package challenge/challengetest tests implementations.
type Challenge interface {
	// Validate returns nil to admit req, an [*Error] (see [Reject]) to refuse it, and
	// [ErrPending] to have a person decide. Any other error means that it could not
	// tell: the client is asked to try again. Asked again about the same req.ID, it
	// answers the same, so that a lost reply or a crash locks nobody out. What is good
	// only once is best spent with [Request.Spend]: a policy may yet refuse what the
	// Challenge has admitted, and the process may die before it has been written down.
	// Neither its errors nor their texts contain the secret.
	//
	// A renewal that keeps the rules of [Renewal] is not brought here unless they say so.
	Validate(ctx context.Context, req *Request) error
}

// ChallengeFunc makes a [Challenge] of a func.
type ChallengeFunc func(ctx context.Context, req *Request) error

// Validate calls f.
func (f ChallengeFunc) Validate(ctx context.Context, req *Request) error { return f(ctx, req) }

// A Confirmer is a [Challenge] that has the last word on a certificate.
//
// Where Config.Challenge is one no more, what was let in under one is finished without, as it is
// when a Challenge is replaced: a certificate that was still withheld is handed out when its device
// asks again, with a warning in the log. If that must not be, revoke it before: its record is
// Issued and Unconfirmed.
type Confirmer interface {
	// Confirm is called after cert has been signed and stored, and before it is handed
	// out. An [*Error] revokes it and is what the client is told. Any other error means
	// that it could not tell: cert is withheld, and Confirm is called again when the
	// client asks again. After nil it is not called again for this certificate, unless
	// the process died before that could be written down. It may be called for one
	// certificate by several workers at once; if they are told different things, an
	// [*Error] counts, if it can be written down.
	Confirm(ctx context.Context, req *Request, cert *x509.Certificate) error
}
