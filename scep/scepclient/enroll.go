package scepclient

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/url"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/scepkit/scepkit/scep/internal/cms"
)

// A Result is a certificate that was issued. Its key is the one that was asked for, and its
// signature is that of the CA.
type Result struct {
	Certificate   *x509.Certificate
	Chain         []*x509.Certificate // its issuers as far as they are known, the lowest first
	TransactionID string
}

// Enroll asks for a certificate with a message that is signed by a self-made certificate. While
// the server lets the request wait, it polls: see Client.Retries. When it gives up polling, the
// error is a [*PendingError].
//
// An interrupted Enroll is begun anew, unless there is a [Pending] (RFC 8894, 5.2).
func (c *Client) Enroll(ctx context.Context, r Request) (*Result, error) {
	if err := c.checkPins(); err != nil {
		return nil, err
	}
	if err := r.check(nil, nil); err != nil {
		return nil, err
	}
	return c.request(ctx, r, nil, nil)
}

// Renew asks for a certificate in place of old, with a message that is signed by oldKey. No
// challenge is needed where the server offers renewal. r.Key is the new key; it may be of any
// kind and, if the server allows, the old one. Otherwise it is as Enroll.
func (c *Client) Renew(ctx context.Context, old *x509.Certificate, oldKey crypto.Signer, r Request) (*Result, error) {
	if err := c.checkPins(); err != nil {
		return nil, err
	}
	if old == nil || oldKey == nil {
		return nil, errors.New("scepclient: Renew needs the old certificate and its key")
	}
	if err := r.check(old, oldKey); err != nil {
		return nil, err
	}
	return c.request(ctx, r, old, oldKey)
}

// session asks the server what it can do and, if ca is nil, for its CA.
func (c *Client) session(ctx context.Context, ca *CA) (*session, Capabilities, error) {
	caps, err := c.Capabilities(ctx)
	if err != nil {
		return nil, caps, err
	}
	suite, err := c.Choose(caps)
	if err != nil {
		return nil, caps, err
	}
	if ca == nil {
		if ca, err = c.CACertificates(ctx); err != nil {
			return nil, caps, err
		}
	} else if !ca.Authenticated && !c.InsecureAnyCA {
		return nil, caps, errors.New("scepclient: Request.CA was taken from a server without Client.Fingerprints and Client.Roots")
	}
	return &session{c: c, ca: ca, suite: suite}, caps, nil
}

func (c *Client) request(ctx context.Context, r Request, old *x509.Certificate, oldKey crypto.Signer) (*Result, error) {
	s, caps, err := c.session(ctx, r.CA)
	if err != nil {
		return nil, err
	}
	w, err := c.prepare(ctx, r, old, oldKey, s.suite.Hash)
	if err != nil {
		return nil, err
	}
	messageType := typePKCSReq
	if old != nil && !r.RenewAsPKCSReq {
		if !caps.Has("Renewal") {
			return nil, errors.New("scepclient: the server does not offer Renewal; enrol anew, or set Request.RenewAsPKCSReq if it renews all the same")
		}
		messageType = typeRenewalReq
	}
	s.id, s.by = w.id, w.by
	if byPassword(s.by.key) {
		if s.password, err = challengeOf(w.csr); err != nil {
			return nil, err
		}
		s.messageType, s.csr = messageType, w.csr.Raw
	}
	certs, err := s.exchange(ctx, messageType, w.csr.Raw)
	if errors.Is(err, errPending) {
		p := &Pending{
			URL: c.publicURL(), TransactionID: s.id, Signer: s.by.raw,
			PublicKey: w.csr.RawSubjectPublicKeyInfo, Subject: w.csr.RawSubject,
			CA: rawAll(s.ca.Certificates), Anchors: rawAll(s.ca.anchors),
		}
		return s.poll(ctx, p, w.csr.PublicKey, 1)
	}
	if err != nil {
		return nil, err
	}
	return s.accept(ctx, certs, w.csr.PublicKey)
}

// publicURL returns the URL without a password.
func (c *Client) publicURL() string {
	u, err := url.Parse(c.URL)
	if err != nil {
		return ""
	}
	u.User = nil
	return u.String()
}

// Poll goes on with a request that waits: it asks at once, and then as Enroll does. key is the
// one that signed the request: Request.SignerKey or Request.Key, and for a renewal the old key.
// If c.URL is empty, p.URL is used; Fingerprints and Roots are not, because p says which CA it
// is. Unless the server has decided, the error is a [*PendingError] again.
func (c *Client) Poll(ctx context.Context, p *Pending, key crypto.Signer) (*Result, error) {
	if p == nil {
		return nil, errors.New("scepclient: Poll needs a Pending")
	}
	if c.URL == "" {
		withURL := *c
		withURL.URL = p.URL
		c = &withURL
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	if key != nil && byPassword(key) {
		return nil, errors.New("scepclient: the key is no RSA key, and Poll cannot open a reply with the challenge password: call Enroll or Renew again, with the same Request.TransactionID and the same of everything else")
	}
	if err := checkSignerKey("the key", key); err != nil {
		return nil, err
	}
	by, pub, certificates, anchors, err := p.restore(key)
	if err != nil {
		return nil, err
	}
	ca, err := choose(certificates, anchors, c.now())
	if err != nil {
		return nil, err
	}
	caps, err := c.Capabilities(ctx)
	if err != nil {
		return nil, &PendingError{p, err}
	}
	suite, err := c.Choose(caps)
	if err != nil {
		return nil, &PendingError{p, err}
	}
	s := &session{c: c, ca: ca, suite: suite, id: p.TransactionID, by: by}
	return s.poll(ctx, p, pub, 0)
}

// poll asks about a request that waits. Poll number 0 comes at once, the others after a wait.
func (s *session) poll(ctx context.Context, p *Pending, pub crypto.PublicKey, number int) (*Result, error) {
	content, err := sequence(s.ca.Issuer.RawSubject, p.Subject)
	if err != nil {
		return nil, err
	}
	messageType := typeCertPoll
	if !s.password.Empty() {
		messageType, content = s.messageType, s.csr
	}
	var last error // of the poll before
	next := s.c.retryDelay()
	for ; number <= s.c.retries(); number++ {
		if number > 0 {
			s.c.debug(ctx, "waiting", slog.Int("poll", number), slog.Duration("next", next))
			if s.c.OnPending != nil {
				s.c.OnPending(p, number, next)
			}
			if err := s.c.sleep(ctx, next); err != nil {
				return nil, &PendingError{p, err}
			}
		}
		certs, err := s.exchange(ctx, messageType, content)
		next = s.c.retryDelay()
		var (
			failure   *FailureError
			busy      *UnavailableError
			transport *transportError
			status    *statusError
		)
		switch {
		case err == nil:
			return s.accept(ctx, certs, pub)
		case errors.Is(err, errPending):
			last = nil
		case errors.As(err, &failure):
			return nil, err
		case ctx.Err() != nil:
			return nil, &PendingError{p, err}
		case errors.As(err, &busy):
			last, next = err, max(next, busy.RetryAfter)
		case errors.As(err, &transport), errors.As(err, &status):
			last = err
		default:
			return nil, &PendingError{p, err}
		}
	}
	return nil, &PendingError{p, last}
}

// GetCert asks for the certificate with this issuer and serial number, which should be the
// client's own (RFC 8894, 2.6). issuer is the DER of the name, or nil for that of the CA. The
// message is signed with cert, which may be a certificate of the CA or a self-signed one, and key;
// servers tell their own clients by either.
func (c *Client) GetCert(ctx context.Context, issuer []byte, serial *big.Int, cert *x509.Certificate, key crypto.Signer) (*x509.Certificate, error) {
	if serial == nil || cert == nil {
		return nil, errors.New("scepclient: GetCert needs a serial number, and a certificate to sign the message with")
	}
	s, issuer, content, err := c.about(ctx, issuer, serial, cert, key)
	if err != nil {
		return nil, err
	}
	certs, err := s.exchange(ctx, typeGetCert, content)
	if errors.Is(err, errPending) {
		return nil, errors.New("scepclient: the reply to GetCert says PENDING, which it must not")
	}
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(certs, func(got *x509.Certificate) bool {
		return got.SerialNumber.Cmp(serial) == 0 && bytes.Equal(got.RawIssuer, issuer)
	})
	if i < 0 {
		return nil, errors.New("scepclient: the reply to GetCert holds another certificate than the one that was asked for")
	}
	if _, err := s.ca.chain(certs[i], certs); err != nil {
		return nil, err
	}
	return certs[i], nil
}

// about returns a session that signs with cert and key, and the IssuerAndSerial (RFC 8894, 3.3.4)
// of what is asked about. Without issuer or serial those are of the CA's certificate.
func (c *Client) about(ctx context.Context, issuer []byte, serial *big.Int, cert *x509.Certificate, key crypto.Signer) (s *session, name, content []byte, err error) {
	if err := c.checkPins(); err != nil {
		return nil, nil, nil, err
	}
	if err := checkSignerKey("the key", key); err != nil {
		return nil, nil, nil, err
	}
	if !equalKeys(cert.PublicKey, key.Public()) {
		return nil, nil, nil, fmt.Errorf("scepclient: the key is not that of the certificate %.100q", cert.Subject)
	}
	if s, _, err = c.session(ctx, nil); err != nil {
		return nil, nil, nil, err
	}
	if issuer == nil {
		issuer = s.ca.Issuer.RawSubject
	}
	if serial == nil {
		serial = s.ca.Issuer.SerialNumber
	}
	var b cryptobyte.Builder
	b.AddASN1BigInt(serial)
	der, err := b.Bytes()
	if err != nil {
		return nil, nil, nil, fmt.Errorf("scepclient: serial number: %w", err)
	}
	content, err = sequence(issuer, der)
	s.id, s.by = rand.Text(), party{cms.FromX509(cert), cert.Raw, key}
	return s, issuer, content, err
}

// sequence writes a SEQUENCE of these elements.
func sequence(elements ...[]byte) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, e := range elements {
			b.AddBytes(e)
		}
	})
	return b.Bytes()
}

// accept takes the certificate for pub from those of a reply, wherever it stands among them,
// and holds it to the CA.
func (s *session) accept(ctx context.Context, certs []*x509.Certificate, pub crypto.PublicKey) (*Result, error) {
	i := slices.IndexFunc(certs, func(cert *x509.Certificate) bool { return equalKeys(cert.PublicKey, pub) })
	if i < 0 {
		return nil, errors.New("scepclient: the reply has no certificate for the key of the request")
	}
	chain, err := s.ca.chain(certs[i], certs)
	if err != nil {
		return nil, err
	}
	s.c.debug(ctx, "issued", slog.String("subject", certs[i].Subject.String()),
		slog.String("serial", certs[i].SerialNumber.Text(16)), slog.Time("notAfter", certs[i].NotAfter))
	return &Result{certs[i], chain, s.id}, nil
}

// chain returns the issuers of cert, the lowest first, as far as they are known. They come from
// the answer to GetCACert and from Client.Roots; certificates of a reply only lead to them.
func (ca *CA) chain(cert *x509.Certificate, reply []*x509.Certificate) ([]*x509.Certificate, error) {
	var path []*x509.Certificate
	known := false // path has reached what is trusted
	for at := cert; len(path) < 8; {
		next := issuerOf(at, ca.issuers)
		if next != nil {
			known = true
		} else if !known {
			next = issuerOf(at, reply)
		}
		if next == nil || slices.ContainsFunc(path, next.Equal) {
			break
		}
		path, at = append(path, next), next
	}
	if !known {
		return nil, fmt.Errorf("scepclient: the certificate in the reply was issued by %.100q, not by the CA of this server, %.100q, or its signature does not verify", cert.Issuer, ca.Issuer.Subject)
	}
	return path, nil
}

// issuerOf returns the certificate that cert is signed by, unless that is cert itself.
func issuerOf(cert *x509.Certificate, among []*x509.Certificate) *x509.Certificate {
	for _, issuer := range among {
		if names(cert, issuer) && !issuer.Equal(cert) && cert.CheckSignatureFrom(issuer) == nil {
			return issuer
		}
	}
	return nil
}
