package scep

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"slices"
	"time"

	"github.com/scepkit/scepkit/scep/internal/keycheck"
)

// A request becomes a record before it becomes a certificate:
//
//	Get       a retry finds its record and gets the same answer
//	Validate  may it have a certificate?
//	Template  which?
//	Create    written down, state Signing, with template and serial number
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
	err    error             // why cert is nil, if no person must decide
}

func (o *outcome) reason() Reason {
	switch {
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
func (h *Handler) enroll(ctx context.Context, in *inbound, remote string) (*outcome, error) {
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
	defer unlock()

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
		if h.current(found) {
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
	return rec.Unconfirmed || h.c.Time().Sub(rec.Changed) <= h.c.RetryWindow
}

func depotError(doing string, id ID, err error) error {
	return fmt.Errorf("scep: %s record %s: %w", doing, id, err)
}

// begin judges a new request, writes it down and goes on with it.
func (h *Handler) begin(ctx context.Context, in *inbound, rec *Record, renewal bool) (*outcome, error) {
	now := h.c.Time()
	req := &Request{
		ID: rec.ID, Profile: rec.Profile, TransactionID: rec.TransactionID, RemoteAddr: rec.RemoteAddr,
		CSR: in.csr.CertificateRequest, Secret: in.csr.secret, Time: now,
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
		// What a profile refuses in any case does not spend a challenge.
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
	if err == nil {
		err = h.template(ctx, req, rec)
	}
	var why *Error
	switch {
	case err == nil:
		rec.State = Signing
	case errors.Is(err, ErrPending):
		rec.State = Pending
	case errors.As(err, &why):
		return out, err
	default:
		return out, fmt.Errorf("scep: judging request %s: %w", rec.ID, err)
	}
	if _, ok := h.c.Challenge.(Confirmer); ok && asked {
		rec.Unconfirmed = true
	}
	if renewal {
		if err := h.claimRenewal(ctx, old.rec, rec.ID); err != nil {
			return out, err
		}
	}

	for tries := 0; ; tries++ {
		err := h.c.Depot.Create(ctx, rec)
		if err == nil {
			return h.goOn(ctx, out)
		}
		if !errors.Is(err, ErrExists) {
			return out, depotError("creating", rec.ID, err)
		}
		// Somebody else was quicker with the same message, or the serial number is taken.
		found, err := h.c.Depot.Get(ctx, rec.ID)
		switch {
		case err == nil:
			return h.resume(ctx, found, req.Secret)
		case !errors.Is(err, ErrNotFound):
			return out, depotError("reading", rec.ID, err)
		case rec.State != Signing || tries == 3:
			return out, depotError("creating", rec.ID, ErrExists)
		}
		if err := h.template(ctx, req, rec); err != nil {
			return out, err
		}
	}
}

// template asks the policy and fills in what is to be signed.
func (h *Handler) template(ctx context.Context, req *Request, rec *Record) error {
	tmpl, err := h.c.Policy.Template(ctx, req)
	if err != nil {
		return err
	}
	if tmpl == nil {
		return errors.New("scep: Policy returned neither a template nor an error")
	}
	t := *tmpl
	now := req.now()
	issuer := h.chain[0]
	if t.NotBefore.Before(issuer.NotBefore) {
		t.NotBefore = issuer.NotBefore
	}
	if t.NotAfter.After(issuer.NotAfter) {
		if issuer.NotAfter.Sub(now) < t.NotAfter.Sub(now)/10 {
			return fmt.Errorf("scep: CA certificate %q ends at %s, too soon to issue from; renew it", issuer.Subject, issuer.NotAfter.Format(time.RFC3339))
		}
		t.NotAfter = issuer.NotAfter
	}
	if !t.NotAfter.After(t.NotBefore) || !t.NotAfter.After(now) {
		return fmt.Errorf("scep: template is valid from %s to %s", t.NotBefore.Format(time.RFC3339), t.NotAfter.Format(time.RFC3339))
	}
	serial := newSerial()
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

// goOn takes out.rec as far as it will go. The record is in the depot.
func (h *Handler) goOn(ctx context.Context, out *outcome) (*outcome, error) {
	// The client may go away; what has been begun is brought to an end in any case.
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(context.WithoutCancel(ctx), deadline)
		defer cancel()
	}
	for range 8 { // each round, another worker may have been quicker
		rec := out.rec
		var err error
		switch {
		case rec.State == Pending:
			return out, nil
		case rec.State == Signing:
			if err = h.sign(ctx, out); err == nil && out.err != nil {
				return out, nil // the CA cannot sign now
			}
		case rec.State == Denied:
			return out, refuse(rec.FailInfo, ReasonDenied, rec.Reason, nil)
		case rec.State == Revoked:
			return out, refuse(BadRequest, ReasonRevoked, "the certificate has been revoked", nil)
		case rec.State != Issued:
			return out, depotError("reading", rec.ID, fmt.Errorf("state is %d", rec.State))
		case rec.Unconfirmed:
			err = h.confirm(ctx, out)
		default:
			if out.cert == nil {
				if out.cert, err = x509.ParseCertificate(rec.Certificate); err != nil {
					return out, depotError("reading", rec.ID, err)
				}
			}
			return out, nil
		}
		if errors.Is(err, ErrStale) {
			newer, err := h.c.Depot.Get(ctx, rec.ID)
			if err != nil {
				return out, depotError("reading", rec.ID, err)
			}
			out.rec, out.cert, out.issued = newer, nil, false
		} else if err != nil {
			return out, err
		}
	}
	return out, depotError("updating", out.rec.ID, ErrStale)
}

// sign turns a record that is Signing into one that is Issued. If the CA cannot sign now it
// sets out.err, which is not an error of the request: the client polls.
func (h *Handler) sign(ctx context.Context, out *outcome) error {
	tmpl, err := parseTemplate(out.rec.Template)
	if err != nil {
		return depotError("reading", out.rec.ID, err)
	}
	if out.rec.Renews != "" {
		if out.req.Renews, err = h.renewed(ctx, out.rec.Renews); err != nil {
			return h.deny(ctx, out, err)
		}
	}
	if ca := h.chain[0]; !bytes.Equal(tmpl.RawIssuer, ca.RawSubject) || !bytes.Equal(tmpl.AuthorityKeyId, ca.SubjectKeyId) ||
		!out.req.now().Before(tmpl.NotAfter) {
		// Written down for a CA that has been replaced, or too long ago. Nobody has it.
		return h.retemplate(ctx, out)
	}
	signCtx := ctx
	if deadline, ok := ctx.Deadline(); ok {
		// What is left after that is for telling the client to poll.
		var cancel context.CancelFunc
		signCtx, cancel = context.WithDeadline(ctx, deadline.Add(-h.c.Limits.Time/4))
		defer cancel()
	}
	var cert *x509.Certificate
	err = h.caGate.do(signCtx, func() (err error) {
		cert, err = h.c.CA.Sign(signCtx, tmpl, out.req.CSR.PublicKey)
		return err
	})
	if err == nil {
		if err := h.checkIssued(cert, out.rec.Template); err != nil {
			return h.shelve(ctx, out, cert, err)
		}
	}
	if err != nil {
		out.err = fmt.Errorf("scep: the CA did not sign record %s: %w", out.rec.ID, err)
		return nil
	}
	rec := *out.rec
	rec.State = Issued
	rec.Certificate = cert.Raw
	rec.Changed = h.c.Time()
	if err := h.c.Depot.Update(ctx, &rec); err != nil {
		// It may have happened all the same.
		found, reading := h.c.Depot.Get(ctx, rec.ID)
		if reading != nil || found.State != Issued || !bytes.Equal(found.Certificate, cert.Raw) {
			return depotError("updating", rec.ID, err)
		}
		rec = *found
	}
	out.rec, out.cert, out.issued, out.err = &rec, cert, true, nil
	if h.c.Events.Issued != nil {
		h.c.Events.Issued(ctx, Event{
			Time: rec.Changed, Reason: ReasonIssued, ID: rec.ID, TransactionID: rec.TransactionID, RemoteAddr: rec.RemoteAddr,
			Request: out.req.public(), Certificate: cert,
		})
	}
	return nil
}

// retemplate writes down anew what is to be signed.
func (h *Handler) retemplate(ctx context.Context, out *outcome) error {
	req, rec := *out.req, *out.rec
	req.Approved = true // it was, or did not have to be
	if err := h.template(ctx, &req, &rec); err != nil {
		return h.deny(ctx, out, err)
	}
	rec.Changed = h.c.Time()
	if err := h.c.Depot.Update(ctx, &rec); err != nil {
		return depotError("updating", rec.ID, err)
	}
	out.rec = &rec
	return nil
}

// shelve keeps what a CA signed in place of what it was asked to sign, and closes the record:
// asked again, it would sign the like again.
func (h *Handler) shelve(ctx context.Context, out *outcome, cert *x509.Certificate, why error) error {
	rec := *out.rec
	rec.State, rec.Revoked, rec.Changed = Revoked, h.c.Time(), h.c.Time()
	if cert != nil {
		rec.Certificate = cert.Raw
	}
	if err := h.c.Depot.Update(ctx, &rec); err != nil {
		return depotError("updating", rec.ID, err)
	}
	out.rec = &rec
	return fmt.Errorf("scep: the CA did not keep to the template of record %s, which is closed: %w", rec.ID, why)
}

// deny closes a record that can no longer be signed, if err is a refusal.
func (h *Handler) deny(ctx context.Context, out *outcome, err error) error {
	var why *Error
	if !errors.As(err, &why) {
		return err
	}
	rec := *out.rec
	rec.State, rec.FailInfo, rec.Reason, rec.Changed = Denied, why.FailInfo, why.Text, h.c.Time()
	if err := h.c.Depot.Update(ctx, &rec); err != nil {
		return depotError("updating", rec.ID, err)
	}
	out.rec = &rec
	return nil
}

// checkIssued makes sure that a CA signed what it was asked to sign.
func (h *Handler) checkIssued(cert *x509.Certificate, template []byte) error {
	if _, ok := h.c.CA.(*Identity); ok {
		return nil // signs what it is asked to, and has verified its signature
	}
	tmpl, err := parseTemplate(template) // not the one that the CA was given, and may have changed
	if err != nil {
		return err
	}
	switch {
	case cert == nil:
		return errors.New("it returned no certificate")
	case cert.SerialNumber.Cmp(tmpl.SerialNumber) != 0,
		!bytes.Equal(cert.RawSubjectPublicKeyInfo, tmpl.RawSubjectPublicKeyInfo),
		!bytes.Equal(cert.RawIssuer, tmpl.RawIssuer), !bytes.Equal(cert.RawSubject, tmpl.RawSubject):
		return errors.New("it returned a certificate with another serial number, key or name than asked for")
	case !cert.NotBefore.Equal(tmpl.NotBefore), !cert.NotAfter.Equal(tmpl.NotAfter):
		return errors.New("it returned a certificate with other dates than asked for")
	case cert.IsCA:
		return errors.New("it returned a certificate of a CA")
	}
	for _, want := range tmpl.Extensions {
		if want.Id.Equal(oidSubjectKeyID) {
			continue // CAs have ways of their own to compute it
		}
		if !slices.ContainsFunc(cert.Extensions, func(e pkix.Extension) bool {
			return e.Id.Equal(want.Id) && e.Critical == want.Critical && bytes.Equal(e.Value, want.Value)
		}) {
			return fmt.Errorf("it returned a certificate without the extension %v that was asked for", want.Id)
		}
	}
	return cert.CheckSignatureFrom(h.chain[0])
}

// confirm asks the Confirmer for the last word on an issued certificate.
func (h *Handler) confirm(ctx context.Context, out *outcome) error {
	confirmer, ok := h.c.Challenge.(Confirmer)
	if !ok {
		return fmt.Errorf("scep: record %s waits to be confirmed, and Config.Challenge is no Confirmer any more", out.rec.ID)
	}
	cert, err := x509.ParseCertificate(out.rec.Certificate)
	if err != nil {
		return depotError("reading", out.rec.ID, err)
	}
	if out.rec.Renews != "" && out.req.Renews == nil {
		if out.req.Renews, err = h.renewed(ctx, out.rec.Renews); err != nil {
			return err
		}
	}
	var refusal error
	var why *Error
	if err := confirmer.Confirm(ctx, out.req, cert); errors.As(err, &why) {
		refusal = err
	} else if err != nil {
		return fmt.Errorf("scep: confirming record %s: %w", out.rec.ID, err)
	}
	rec := *out.rec
	rec.Unconfirmed = false
	rec.Changed = h.c.Time()
	if refusal != nil {
		rec.State, rec.Revoked, rec.RevocationReason = Revoked, rec.Changed, 5 // cessationOfOperation
	}
	if err := h.c.Depot.Update(ctx, &rec); err != nil {
		return depotError("updating", rec.ID, err)
	}
	out.rec = &rec
	return refusal
}

// poll answers CertPoll: it goes on with the newest request of this transaction ID and key.
// There is no badCertId for others, because a poll is not opened, and might hold something else.
func (h *Handler) poll(ctx context.Context, in *inbound) (*outcome, error) {
	rec, err := h.c.Depot.Latest(ctx, h.transaction(in))
	if errors.Is(err, ErrNotFound) || err == nil && !h.current(rec) {
		return nil, refuse(BadRequest, ReasonUnknown, "no such transaction", nil)
	}
	if err != nil {
		return nil, fmt.Errorf("scep: looking up a transaction: %w", err)
	}
	return h.resume(ctx, rec, Secret{})
}

// getCert answers GetCert: a client gets its own certificate, which it shows by signing with
// that certificate's key, or with a valid certificate of the same subject.
func (h *Handler) getCert(ctx context.Context, in *inbound) (*outcome, error) {
	unknown := refuse(BadCertID, ReasonUnknown, "no such certificate", nil)
	rec, err := h.c.Depot.GetSerial(ctx, in.issuer, in.serial)
	if errors.Is(err, ErrNotFound) {
		return nil, unknown
	}
	if err != nil {
		return nil, fmt.Errorf("scep: looking up a certificate: %w", err)
	}
	out := &outcome{rec: rec}
	if rec.Profile != h.c.Profile || rec.State != Issued || rec.Unconfirmed {
		return out, unknown
	}
	if out.cert, err = x509.ParseCertificate(rec.Certificate); err != nil {
		return out, depotError("reading", rec.ID, err)
	}
	if out.cert.CheckSignatureFrom(h.chain[0]) != nil { // a row that we did not write
		out.cert = nil
		return out, unknown
	}
	if equalKeys(in.signer, out.cert.PublicKey) {
		return out, nil
	}
	signer, err := h.ownCertificate(ctx, in.msg.Signer)
	if err != nil {
		return out, err
	}
	now := h.c.Time()
	if signer == nil || signer.rec.State != Issued || now.Before(signer.cert.NotBefore) || now.After(signer.cert.NotAfter) ||
		!bytes.Equal(signer.cert.RawSubject, out.cert.RawSubject) {
		out.cert = nil
		return out, unknown
	}
	return out, nil
}

// Approve lets a request pass that [ErrPending] held back, and returns its certificate. The
// device gets it at its next poll. Approving again returns the same certificate. If the CA
// cannot sign now that is the error, and the device's next poll tries again. Errors are
// [ErrNotFound] for a record of another profile or none, an [*Error] for a request that was
// denied or that the policy refuses, and [ErrPending] if the policy heeds no approval.
func (h *Handler) Approve(ctx context.Context, id ID) (*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, h.c.Limits.Time)
	defer cancel()
	rec, err := h.pending(ctx, id)
	for err == nil && rec.State == Pending {
		var req *Request
		if req, err = h.request(rec); err != nil {
			return nil, err
		}
		req.Approved = true
		if rec.Renews != "" { // whose names the policy must keep to
			if req.Renews, err = h.renewed(ctx, rec.Renews); err != nil {
				return nil, err
			}
		}
		next := *rec
		if err = h.template(ctx, req, &next); err != nil {
			return nil, err
		}
		next.State, next.Changed = Signing, h.c.Time()
		if err = h.c.Depot.Update(ctx, &next); err == nil {
			rec = &next
		} else if errors.Is(err, ErrStale) || errors.Is(err, ErrExists) {
			rec, err = h.pending(ctx, id)
		}
	}
	if err != nil {
		return nil, err
	}
	out, err := h.resume(ctx, rec, Secret{})
	if err != nil {
		return nil, err
	}
	if out.cert == nil {
		return nil, out.err
	}
	h.c.Log.LogAttrs(ctx, slog.LevelInfo, "scep", slog.String("operation", "Approve"), slog.String("record", string(id)),
		slog.String("subject", out.cert.Subject.String()), slog.String("serial", out.cert.SerialNumber.Text(16)))
	return out.cert, nil
}

// Deny refuses a request that [ErrPending] held back. The device is told why at its next poll;
// nil stands for a BadRequest without text. Denying again changes nothing. A request that was
// approved before is an error.
func (h *Handler) Deny(ctx context.Context, id ID, why *Error) error {
	if why == nil {
		why = Reject(BadRequest, "denied")
	}
	for {
		rec, err := h.pending(ctx, id)
		if err != nil {
			return err
		}
		switch rec.State {
		case Denied:
			return nil
		case Pending:
		default:
			return fmt.Errorf("scep: record %s is %s and can no longer be denied", id, rec.State)
		}
		rec.State, rec.FailInfo, rec.Reason, rec.Changed = Denied, why.FailInfo, why.Text, h.c.Time()
		if err := h.c.Depot.Update(ctx, rec); !errors.Is(err, ErrStale) {
			return err
		}
	}
}

// pending reads a record of this handler's.
func (h *Handler) pending(ctx context.Context, id ID) (*Record, error) {
	if !id.Valid() {
		return nil, depotError("reading", id, ErrNotFound)
	}
	rec, err := h.c.Depot.Get(ctx, id)
	if err != nil {
		return nil, depotError("reading", id, err)
	}
	if rec.Profile != h.c.Profile {
		return nil, depotError("reading", id, ErrNotFound)
	}
	return rec, nil
}
