package scep

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/scepkit/scepkit/scep/internal/keycheck"
)

// A request becomes a record before it becomes a certificate:
//
//	Get       a retry finds its record and gets the same answer
//	Validate  may it have a certificate?
//	Template  which?
//	Create    written down, state Signing, with template and serial number; spends the challenge
//	Sign
//	Update    state Issued, with the certificate
//	Confirm
//
// A crash, or an error whose change has happened all the same, leaves a record from which the
// next retry or poll goes on.

// outcome is what a request came to, where that is not a refusal.
type outcome struct {
	rec    *Record
	req    *Request
	cert   *x509.Certificate // nil: the client must poll
	issued bool              // cert was signed just now
	fresh  bool              // there was no certificate when the request came to it
	err    error             // why cert is nil, if no person must decide
	crl    []byte            // of GetCRL, which has nothing of the above
}

func (o *outcome) reason() Reason {
	switch {
	case o.crl != nil:
		return ReasonCRL
	case o.issued:
		return ReasonIssued
	case o.cert != nil:
		return ReasonRepeated
	case o.err != nil:
		return ReasonSigning
	}
	return ReasonPending
}

// hashID hashes fields such that no two lists of fields make the same input.
func hashID(domain string, fields ...[]byte) ID {
	h := sha256.New()
	h.Write([]byte(domain))
	for _, f := range fields {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(f)))
		h.Write(n[:])
		h.Write(f)
	}
	return ID(hex.EncodeToString(h.Sum(nil)))
}

// transaction names all that one key asked for under one transaction ID.
func (h *Handler) transaction(in *inbound) ID {
	return hashID("scepkit transaction", []byte(h.c.Profile), in.msg.TransactionID, in.msg.Signer.RawSPKI)
}

// enroll answers PKCSReq and RenewalReq.
func (h *Handler) enroll(ctx context.Context, in *inbound, remote string) (out *outcome, err error) {
	var old []byte // the certificate that claims to be renewed
	if h.claimsRenewal(in) {
		old = in.msg.Signer.Raw
	}
	transaction := h.transaction(in)
	id := func(generation int) ID {
		return hashID("scepkit request", []byte(transaction), in.csr.Raw, old, binary.BigEndian.AppendUint64(nil, uint64(generation)))
	}
	unlock, err := h.locks.lock(ctx, id(0))
	if err != nil {
		return nil, err
	}
	defer func() {
		var why *Error
		if ctx.Err() != nil || errors.As(err, &why) {
			unlock(nil) // this client's own affair
			return
		}
		unlock(err)
	}()

	rec := &Record{Transaction: transaction, Profile: h.c.Profile, TransactionID: string(in.msg.TransactionID), RemoteAddr: remote}
	for {
		rec.ID = id(rec.Generation)
		found, err := h.c.Depot.Get(ctx, rec.ID)
		if errors.Is(err, ErrNotFound) {
			break
		}
		if err != nil {
			return nil, depotError("reading", rec.ID, err)
		}
		if h.current(found) && h.answers(found, in.ca) {
			return h.resume(ctx, found, in.csr.secret)
		}
		rec.Generation++
	}
	return h.begin(ctx, in, rec, old != nil)
}

// current reports whether the same message still means the same request.
func (h *Handler) current(rec *Record) bool {
	switch rec.State {
	case Pending, Signing, Revoked: // what was revoked does not come back by being sent again
		return true
	}
	now := h.c.Time()
	withheld := rec.State == Issued && rec.Unconfirmed && now.Before(rec.NotAfter)
	return withheld || now.Sub(rec.Changed) <= h.c.RetryWindow
}

func depotError(doing string, id ID, err error) error {
	return fmt.Errorf("scep: %s record %s: %w", doing, id, err)
}

// begin judges a new request, writes it down and goes on with it.
func (h *Handler) begin(ctx context.Context, in *inbound, rec *Record, renewal bool) (*outcome, error) {
	now := h.c.Time()
	req := &Request{
		ID: rec.ID, Profile: rec.Profile, TransactionID: rec.TransactionID, RemoteAddr: rec.RemoteAddr,
		CSR: in.csr.CertificateRequest, Secret: in.csr.secret, Time: now, spending: &spending{depot: h.c.Depot},
	}
	rec.CSR, rec.Created, rec.Changed = in.csr.forRecord(), now, now
	out := &outcome{rec: rec, req: req}

	if err := keycheck.Check(req.CSR.PublicKey, minRSABits, maxRSABits); err != nil {
		return out, refuse(BadAlg, ReasonKey, err.Error(), nil)
	}
	for _, own := range h.ownKeys {
		if equalKeys(own, req.CSR.PublicKey) {
			return out, refuse(BadRequest, ReasonKey, "the key in the CSR belongs to the CA", nil)
		}
	}
	var old *owned
	if renewal {
		var err error
		if old, err = h.checkRenewal(ctx, in, now); err != nil {
			return out, err
		}
		req.Renews, rec.Renews = old.cert, old.rec.ID
	}

	if p, ok := h.c.Policy.(*Profile); ok {
		// What a profile refuses in any case is nothing to ask others about, and spends no
		// challenge of those that are spent by being asked.
		if _, err := p.template(req); err != nil {
			return out, err
		}
	}
	asked := !renewal || h.c.Renewal.Challenge
	var err error
	if asked {
		err = h.c.Challenge.Validate(ctx, req)
		rec.Via = req.Via
	}
	spends := req.spending.close()
	req.spending = nil
	if err == nil {
		err = h.template(ctx, req, rec, in.ca)
	}
	var why *Error
	switch {
	case err == nil:
		rec.State = Signing
	case errors.Is(err, ErrPending):
		if err := h.enqueue(ctx); err != nil {
			return out, err
		}
		rec.State = Pending
		if rec.Template, err = sketch(in.ca, req.CSR); err != nil {
			return out, err
		}
	case errors.As(err, &why):
		return out, err
	default:
		return out, fmt.Errorf("scep: judging request %s: %w", rec.ID, err)
	}
	if _, ok := h.c.Challenge.(Confirmer); ok && asked {
		rec.Unconfirmed = true
	}
	if renewal {
		if err := h.claimRenewal(ctx, old.rec, rec.ID, spends); err != nil {
			return out, err
		}
	}

	for tries := 0; ; tries++ {
		err := h.create(ctx, rec, spends)
		if err == nil {
			return h.goOn(ctx, out)
		}
		if !errors.Is(err, ErrExists) {
			return out, err
		}
		// Somebody else was quicker with the same message, or the serial number is taken.
		found, err := h.c.Depot.Get(ctx, rec.ID)
		switch {
		case err == nil && h.answers(found, in.ca):
			return h.resume(ctx, found, req.Secret)
		case err == nil: // to another CA; next time there is another generation
			return out, depotError("creating", rec.ID, ErrExists)
		case !errors.Is(err, ErrNotFound):
			return out, depotError("reading", rec.ID, err)
		case rec.State != Signing || tries == 3:
			return out, depotError("creating", rec.ID, ErrExists)
		}
		if err := h.template(ctx, req, rec, in.ca); err != nil {
			return out, err
		}
	}
}

// template asks the policy and fills in what a is to sign, or the current CA if a is a past one
// that no longer can.
func (h *Handler) template(ctx context.Context, req *Request, rec *Record, a *authority) error {
	tmpl, err := h.c.Policy.Template(ctx, req)
	if err != nil {
		return err
	}
	if tmpl == nil {
		return errors.New("scep: Policy returned neither a template nor an error")
	}
	t := *tmpl
	now := req.now()
	if a.past && (!a.canIssue(now) || a.endsTooSoon(&t, now)) {
		a = h.now()
	}
	issuer := a.cert()
	if t.NotBefore.Before(issuer.NotBefore) {
		t.NotBefore = issuer.NotBefore
	}
	if t.NotAfter.After(issuer.NotAfter) {
		if a.endsTooSoon(&t, now) {
			return fmt.Errorf("scep: CA certificate %q ends at %s, too soon to issue from; renew it", issuer.Subject, issuer.NotAfter.Format(time.RFC3339))
		}
		t.NotAfter = issuer.NotAfter
	}
	if !t.NotAfter.After(t.NotBefore) || !t.NotAfter.After(now) {
		return fmt.Errorf("scep: template is valid from %s to %s", t.NotBefore.Format(time.RFC3339), t.NotAfter.Format(time.RFC3339))
	}
	t.RawSubject = renewedSubject(req, t.RawSubject)
	serial := newSerial()
	if p, ok := h.c.CRL.(interface {
		DistributionPoints([]byte, *big.Int) []string
	}); ok && len(t.CRLDistributionPoints) == 0 {
		t.CRLDistributionPoints = p.DistributionPoints(issuer.RawSubject, serial)
	}
	der, whole, err := marshalTemplate(&t, issuer, serial, req.CSR.RawSubjectPublicKeyInfo)
	if err != nil {
		return err
	}
	if req.Renews != nil {
		if err := checkRenewedNames(req.Renews, whole); err != nil {
			return err
		}
	}
	rec.Template, rec.Serial, rec.Issuer, rec.NotAfter = der, serial, issuer.RawSubject, whole.NotAfter
	return nil
}

// endsTooSoon reports whether less than a tenth of the life that t asks for would be left.
func (a *authority) endsTooSoon(t *x509.Certificate, now time.Time) bool {
	return a.cert().NotAfter.Sub(now) < t.NotAfter.Sub(now)/10
}

// newSerial returns 20 octets, of which 158 bits are random: positive, and as long as
// RFC 5280, 4.1.2.2 allows.
func newSerial() *big.Int {
	b := make([]byte, 20)
	rand.Read(b)
	b[0] = b[0]&0x3f | 0x40
	return new(big.Int).SetBytes(b)
}

// resume goes on with a record that a retry or a poll found.
func (h *Handler) resume(ctx context.Context, rec *Record, secret Secret) (*outcome, error) {
	req, err := h.request(rec)
	if err != nil {
		return nil, err
	}
	req.Secret = secret
	return h.goOn(ctx, &outcome{rec: rec, req: req})
}

// request makes the request that a record is of.
func (h *Handler) request(rec *Record) (*Request, error) {
	csr, err := storedCSR(rec.CSR)
	if err != nil {
		return nil, depotError("reading", rec.ID, err)
	}
	return &Request{
		ID: rec.ID, Profile: rec.Profile, TransactionID: rec.TransactionID, RemoteAddr: rec.RemoteAddr,
		CSR: csr.CertificateRequest, Time: h.c.Time(), Via: rec.Via,
	}, nil
}
