package scep

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// depotPatience is how long a write that failed may have taken for it to be looked for: the client
// asks again in any case.
const depotPatience = time.Second

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
		case h.expired(rec):
			err = h.deny(ctx, out, refuse(BadRequest, ReasonDenied, textExpired, nil))
		case rec.State == Pending:
			return out, nil
		case rec.State == Signing:
			out.fresh = true
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
			if err = h.checkRenewed(ctx, out); err == nil {
				err = h.confirm(ctx, out)
			}
		default:
			if out.cert == nil {
				if out.cert, err = x509.ParseCertificate(rec.Certificate); err != nil {
					return out, depotError("reading", rec.ID, err)
				}
			}
			if err = h.checkRenewed(ctx, out); err == nil {
				return out, nil
			}
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
		if out.req.Renews, err = h.renewed(ctx, out.rec); err != nil {
			return h.deny(ctx, out, err)
		}
	}
	a := h.namedBy(tmpl)
	if a == nil || a.ca == nil || a.past && !a.canIssue(out.req.now()) {
		a = h.now() // which has replaced the one that it was written down for
		return h.retemplate(ctx, out, a)
	}
	if !out.req.now().Before(tmpl.NotAfter) { // too long ago; nobody has it
		return h.retemplate(ctx, out, a)
	}
	signCtx := ctx
	if deadline, ok := ctx.Deadline(); ok {
		// What is left after that is for telling the client to poll.
		var cancel context.CancelFunc
		signCtx, cancel = context.WithDeadline(ctx, deadline.Add(-h.c.Limits.Time/4))
		defer cancel()
	}
	var cert *x509.Certificate
	err = a.gate.do(signCtx, func() (err error) {
		cert, err = a.ca.Sign(signCtx, tmpl, out.req.CSR.PublicKey)
		return err
	})
	if err == nil {
		if err := a.checkIssued(cert, out.rec.Template); err != nil {
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
	begun := time.Now()
	if err := h.c.Depot.Update(ctx, &rec); errors.Is(err, ErrStale) {
		return depotError("updating", rec.ID, err) // who was quicker has issued it, perhaps with the same signature
	} else if err != nil {
		// It may have happened all the same. A depot that hangs is not waited for twice.
		lookCtx, cancel := context.WithDeadline(ctx, begun.Add(depotPatience))
		defer cancel()
		found, reading := h.c.Depot.Get(lookCtx, rec.ID)
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

// checkRenewed revokes the certificate of a renewal, and refuses to hand it out, if the old one was
// revoked before the new one had been written down: who did that may have returned by then. As
// the two times are read before the records are written, what a request may take lies between; of
// what was signed during this request, by whomever, no clock need be asked.
func (h *Handler) checkRenewed(ctx context.Context, out *outcome) error {
	if out.rec.Renews == "" || !out.rec.Unrevoked.IsZero() {
		return nil
	}
	old, err := h.c.Depot.Get(ctx, out.rec.Renews)
	if errors.Is(err, ErrNotFound) { // pruned: it had ended, and was there when the new one was written down
		return nil
	}
	if err != nil {
		return depotError("reading", out.rec.Renews, err)
	}
	if old.State != Revoked || old.RevocationReason == int(Superseded) ||
		!out.fresh && !old.Revoked.Before(out.rec.Changed.Add(h.c.Limits.Time)) {
		return nil
	}
	rec := *out.rec
	rec.State, rec.Revoked, rec.RevocationReason, rec.Changed = Revoked, h.c.Time(), old.RevocationReason, h.c.Time()
	rec.DecidedBy, rec.Remark = old.DecidedBy, old.Remark // not who approved the renewal
	if err := h.c.Depot.Update(ctx, &rec); err != nil {
		return depotError("updating", rec.ID, err)
	}
	out.rec, out.cert, out.issued = &rec, nil, false
	h.tellDecision(ctx, "Withdraw", &rec)
	return refuse(BadRequest, ReasonRenewal, textRevoked, nil)
}

// retemplate writes down anew what is to be signed, by a.
func (h *Handler) retemplate(ctx context.Context, out *outcome, a *authority) error {
	req, rec := *out.req, *out.rec
	req.Approved = true // it was, or did not have to be
	if err := h.template(ctx, &req, &rec, a); err != nil {
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
	h.tellDecision(ctx, "Shelve", &rec)
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
func (a *authority) checkIssued(cert *x509.Certificate, template []byte) error {
	if a.identity() != nil {
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
	return cert.CheckSignatureFrom(a.cert())
}

// confirm has the last word on an issued certificate written down. A refusal counts also if another
// worker has been told otherwise in the meantime, or had nobody to ask.
func (h *Handler) confirm(ctx context.Context, out *outcome) error {
	refusal, err := h.lastWord(ctx, out)
	if err != nil {
		return err
	}
	for rec := *out.rec; ; {
		rec.Unconfirmed = false
		rec.Changed = h.c.Time()
		if refusal != nil {
			rec.State, rec.Revoked, rec.RevocationReason = Revoked, rec.Changed, int(CessationOfOperation)
		}
		err := h.c.Depot.Update(ctx, &rec)
		if err == nil {
			out.rec = &rec
			break
		}
		if refusal != nil && errors.Is(err, ErrStale) {
			newer, err := h.c.Depot.Get(ctx, rec.ID)
			if err != nil {
				return depotError("reading", rec.ID, err)
			}
			if newer.State == Issued {
				rec = *newer
				continue
			}
		}
		return depotError("updating", rec.ID, err)
	}
	if refusal != nil {
		h.tellDecision(ctx, "Confirm", out.rec)
	} else if _, ok := h.c.Challenge.(Confirmer); !ok {
		h.c.Log.LogAttrs(ctx, slog.LevelWarn, "scep: a certificate that was to be confirmed is handed out as it is, because Config.Challenge is no Confirmer any more",
			slog.String("record", string(out.rec.ID)), slog.String("serial", out.rec.Serial.Text(16)))
	}
	return refusal
}

// lastWord asks the Confirmer, if there still is one.
func (h *Handler) lastWord(ctx context.Context, out *outcome) (refusal, err error) {
	confirmer, ok := h.c.Challenge.(Confirmer)
	if !ok {
		return nil, nil
	}
	cert, err := x509.ParseCertificate(out.rec.Certificate)
	if err != nil {
		return nil, depotError("reading", out.rec.ID, err)
	}
	if out.rec.Renews != "" && out.req.Renews == nil {
		old, err := h.c.Depot.Get(ctx, out.rec.Renews) // Superseded by now, perhaps
		if errors.Is(err, ErrNotFound) {
			return nil, refuse(BadRequest, ReasonRenewal, notIssuedHere, nil)
		}
		if err != nil {
			return nil, depotError("reading", out.rec.Renews, err)
		}
		if out.req.Renews, err = x509.ParseCertificate(old.Certificate); err != nil {
			return nil, depotError("reading", old.ID, err)
		}
	}
	var why *Error
	if err := confirmer.Confirm(ctx, out.req, cert); errors.As(err, &why) {
		return err, nil
	} else if err != nil {
		return nil, fmt.Errorf("scep: confirming record %s: %w", out.rec.ID, err)
	}
	return nil, nil
}
