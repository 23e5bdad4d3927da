package scep

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/scepkit/scepkit/scep/internal/cms"
)

// claimsRenewal reports whether a message must be judged as a renewal: by who signed it, not
// by its type, because many clients renew with PKCSReq.
func (h *Handler) claimsRenewal(in *inbound) bool {
	signer := in.msg.Signer
	return h.c.Renewal.On && slices.ContainsFunc(h.cas, func(a *authority) bool {
		return bytes.Equal(signer.RawIssuer, a.cert().RawSubject) && !bytes.Equal(signer.RawSubject, a.cert().RawSubject)
	})
}

// owned is a certificate of this handler's, with its record.
type owned struct {
	cert *x509.Certificate
	rec  *Record
}

// ownCertificate returns signer as a CA of this handler's issued it: in the depot, under this
// profile, byte for byte, with a signature that verifies. If it is no such certificate, nil.
func (h *Handler) ownCertificate(ctx context.Context, signer *cms.Certificate) (*owned, error) {
	serial := new(big.Int).SetBytes(signer.RawSerial) // ours are positive
	rec, err := h.c.Depot.GetSerial(ctx, signer.RawIssuer, serial)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("scep: looking up the signer's certificate: %w", err)
	}
	if rec.Profile != h.c.Profile || rec.Unconfirmed || !bytes.Equal(rec.Certificate, signer.Raw) {
		return nil, nil
	}
	cert, err := x509.ParseCertificate(rec.Certificate)
	if err != nil {
		return nil, depotError("reading", rec.ID, err)
	}
	// Only certificates of our own CAs are tried as the issuer, never one from the message.
	if h.issuerOf(cert) == nil {
		return nil, nil
	}
	return &owned{cert, rec}, nil
}

const notIssuedHere = "the certificate that signed the message was not issued here"

// checkRenewal holds a message to the rules of Config.Renewal and returns the certificate
// that is renewed.
func (h *Handler) checkRenewal(ctx context.Context, in *inbound, now time.Time) (*owned, error) {
	refuse := func(text string) error { return refuse(BadRequest, ReasonRenewal, text, nil) }
	old, err := h.ownCertificate(ctx, in.msg.Signer)
	if err != nil {
		return nil, err
	}
	if old == nil {
		return nil, refuse(notIssuedHere)
	}
	rule, life := h.c.Renewal, old.cert.NotAfter.Sub(old.cert.NotBefore)
	window := rule.Window
	if window == 0 {
		window = life / 3
	}
	switch {
	case old.rec.State != Issued:
		return nil, refuse(textRevoked)
	case now.Before(old.cert.NotBefore):
		return nil, refuse("the certificate that signed the message is not yet valid")
	case now.After(old.cert.NotAfter.Add(rule.Grace)):
		return nil, refuse("the certificate that signed the message has expired")
	case !rule.Anytime && now.Before(old.cert.NotAfter.Add(-window)):
		return nil, refuse("it is too early to renew; from " + old.cert.NotAfter.Add(-window).UTC().Format(time.RFC3339))
	case rule.NewKey && equalKeys(old.cert.PublicKey, in.csr.PublicKey):
		return nil, refuse("a renewal needs a new key")
	}
	return old, nil
}

// claimRenewal notes in the record of a certificate that it authorises this renewal, unless it
// has authorised as many as it may. A retry is noted once. Where there is no room, one that has
// not come to a certificate has to give way, unless it has spent what this one is to spend.
func (h *Handler) claimRenewal(ctx context.Context, old *Record, id ID, spends []spend) error {
	for {
		if old.State != Issued {
			return refuse(BadRequest, ReasonRenewal, textRevoked, nil)
		}
		if slices.Contains(old.RenewedBy, id) || h.c.Renewal.Max < 0 {
			return nil
		}
		next := old.Clone()
		if len(next.RenewedBy) >= h.c.Renewal.Max {
			i, err := h.unissued(ctx, next.RenewedBy, func() error { return h.checkUnspent(ctx, id, spends) })
			if err != nil {
				return err
			}
			if i < 0 {
				return refuse(BadRequest, ReasonRenewal, "the certificate that signed the message has been renewed often enough", nil)
			}
			next.RenewedBy = slices.Delete(next.RenewedBy, i, i+1)
		}
		next.RenewedBy = append(next.RenewedBy, id)
		err := h.c.Depot.Update(ctx, next)
		if err == nil {
			return nil
		}
		if !errors.Is(err, ErrStale) {
			return depotError("updating", next.ID, err)
		}
		if old, err = h.c.Depot.Get(ctx, next.ID); err != nil {
			return depotError("reading", next.ID, err)
		}
	}
}

// unissued returns the index of the first renewal that has not come to a certificate, after
// having seen to it that it never will; or -1. check is asked before one is denied; if it is nil,
// none is.
func (h *Handler) unissued(ctx context.Context, renewals []ID, check func() error) (int, error) {
	for i, id := range renewals {
		rec, err := h.c.Depot.Get(ctx, id)
		if errors.Is(err, ErrNotFound) {
			return i, nil
		}
		if err != nil {
			return 0, depotError("reading", id, err)
		}
		switch rec.State {
		case Denied:
			return i, nil
		case Pending, Signing:
			if check == nil {
				continue
			}
			if err := check(); err != nil {
				return 0, err
			}
			rec.State, rec.FailInfo, rec.Reason, rec.Changed = Denied, BadRequest, tookItsPlace, h.c.Time()
			err := h.c.Depot.Update(ctx, rec)
			if err == nil {
				return i, nil
			}
			if !errors.Is(err, ErrStale) {
				return 0, depotError("updating", id, err)
			}
		}
	}
	return -1, nil
}

// renewedSubject returns the subject for a template: that of the certificate which is renewed, if it
// is what a server that is written in Go, as micromdm/scep, makes of the subject in the CSR: in an
// order of its own, and without attributes that crypto/x509/pkix does not know. The device asks for
// what it asked for then. Otherwise it is as the policy has it.
func renewedSubject(req *Request, subject []byte) []byte {
	if req.Renews == nil || !bytes.Equal(subject, req.CSR.RawSubject) || sameName(req.Renews.RawSubject, subject) {
		return subject
	}
	if der, err := asn1.Marshal(req.CSR.Subject.ToRDNSequence()); err != nil || !sameName(req.Renews.RawSubject, der) {
		return subject
	}
	return req.Renews.RawSubject
}

// checkRenewedNames holds what the policy made of a renewal to the names of the certificate
// that is renewed. The CSR is not what counts: it may ask for names that the policy never
// grants, as it did the first time.
func checkRenewedNames(old, next *x509.Certificate) error {
	refuse := func(text string) error { return refuse(BadRequest, ReasonRenewal, text, nil) }
	if !sameName(old.RawSubject, next.RawSubject) {
		return refuse("the subject is not that of the certificate that signed the message")
	}
	had, err := subjectAltNames(old.Extensions)
	if err != nil {
		return fmt.Errorf("scep: names of certificate %x: %w", old.SerialNumber, err)
	}
	want, err := subjectAltNames(next.Extensions)
	if err != nil {
		return fmt.Errorf("scep: names of the template: %w", err)
	}
	for _, n := range want {
		if !slices.ContainsFunc(had, func(o generalName) bool { return bytes.Equal(o.raw, n.raw) }) {
			return refuse("an alternative name is not in the certificate that signed the message")
		}
	}
	return nil
}

// renewed returns the certificate that rec renews, or a refusal if rec no longer may: the certificate
// has been revoked, or authorises other renewals, as many as it may, in place of this one.
//
// Who took the place of rec before that was created may never have come to be, as when both were to
// spend one challenge: then rec takes it back.
//
// If rec is about to be signed, and there is no room for more, it writes the record of the certificate
// anew: who looked for rec before it was created may still be about to give its place away.
func (h *Handler) renewed(ctx context.Context, rec *Record) (*x509.Certificate, error) {
	refuse := func(text string) error { return refuse(BadRequest, ReasonRenewal, text, nil) }
	limit := h.c.Renewal.Max
	for {
		old, err := h.c.Depot.Get(ctx, rec.Renews)
		if errors.Is(err, ErrNotFound) { // pruned meanwhile
			return nil, refuse(notIssuedHere)
		}
		if err != nil {
			return nil, depotError("reading", rec.Renews, err)
		}
		full := limit >= 0 && len(old.RenewedBy) >= limit
		switch {
		case old.State == Revoked && RevocationReason(old.RevocationReason) == CertificateHold:
			return nil, &Error{BadRequest, ReasonRenewal, textRevoked, errOnHold}
		case old.State != Issued:
			return nil, refuse(textRevoked)
		case full && !slices.Contains(old.RenewedBy, rec.ID):
			i, err := h.unissued(ctx, old.RenewedBy, nil)
			if err != nil {
				return nil, err
			}
			if i < 0 {
				return nil, refuse(tookItsPlace)
			}
			old.RenewedBy[i] = rec.ID
		case !full || rec.State != Signing:
			return x509.ParseCertificate(old.Certificate)
		}
		if err := h.c.Depot.Update(ctx, old); err == nil {
			return x509.ParseCertificate(old.Certificate)
		} else if !errors.Is(err, ErrStale) {
			return nil, depotError("updating", old.ID, err)
		}
	}
}

const (
	tookItsPlace = "another renewal took its place"
	textRevoked  = "the certificate that signed the message is revoked"
)

var errOnHold = errors.New("it is on hold, and can be unrevoked")

func equalKeys(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}
