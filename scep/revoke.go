package scep

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"slices"
	"time"
)

// A RevocationReason is a CRLReason (RFC 5280, 5.3.1).
type RevocationReason int

const (
	Unspecified          RevocationReason = 0
	KeyCompromise        RevocationReason = 1
	CACompromise         RevocationReason = 2
	AffiliationChanged   RevocationReason = 3
	Superseded           RevocationReason = 4
	CessationOfOperation RevocationReason = 5
	CertificateHold      RevocationReason = 6 // the only one that can be taken back
	PrivilegeWithdrawn   RevocationReason = 9
	AACompromise         RevocationReason = 10
)

var revocationReasonNames = [...]string{
	"unspecified", "keyCompromise", "cACompromise", "affiliationChanged", "superseded",
	"cessationOfOperation", "certificateHold", "", "removeFromCRL", "privilegeWithdrawn", "aACompromise",
}

// Valid reports whether a certificate can be revoked for r: it is one of the constants.
// removeFromCRL (8) is not, as it is no reason.
func (r RevocationReason) Valid() bool {
	return Unspecified <= r && r <= AACompromise && r != 7 && r != 8
}

// String returns the name in the RFC, as "keyCompromise".
func (r RevocationReason) String() string {
	if r >= 0 && int(r) < len(revocationReasonNames) && revocationReasonNames[r] != "" {
		return revocationReasonNames[r]
	}
	return fmt.Sprintf("reason %d", int(r))
}

// A Decision says who decided something about a record, and why. Both are kept in the record and
// logged; no client is told.
type Decision struct {
	By     string
	Remark string
}

// Revoke revokes the certificate of a record. When it returns nil that is in the depot: no renewal
// is granted to the certificate any more, and GetCert does not hand it out. A renewal that is under
// way, or ended less than Limits.Time ago and is asked for again, is revoked too, unless reason is
// Superseded. Others that came before are not: see [Record].RenewedBy.
//
// A record that is Pending or Signing has no certificate yet, and never will: it becomes Denied.
// Revoking again changes nothing, with two exceptions: every reason replaces CertificateHold, and
// KeyCompromise replaces every reason. The time of the revocation stays that of the first. Errors
// are [ErrNotFound] for a record of another profile or none, and whatever the depot says, after
// which the certificate may or may not be revoked.
func (h *Handler) Revoke(ctx context.Context, id ID, reason RevocationReason, d Decision) error {
	if !reason.Valid() {
		return fmt.Errorf("scep: a certificate cannot be revoked for %v", reason)
	}
	return h.revoke(ctx, id, nil, reason, d)
}

// revoke revokes the certificate of a record: cert, if that is not nil and the record does not have it.
func (h *Handler) revoke(ctx context.Context, id ID, cert *x509.Certificate, reason RevocationReason, d Decision) error {
	return h.decide(ctx, id, "Revoke", d, func(rec *Record, now time.Time) (bool, error) {
		switch {
		case cert == nil:
		case rec.Serial == nil || rec.Serial.Cmp(cert.SerialNumber) != 0:
			return false, depotError("revoking", id, ErrStale) // it has been given another one
		case len(rec.Certificate) > 0 && !bytes.Equal(rec.Certificate, cert.Raw):
			return false, fmt.Errorf("scep: record %s has another certificate with serial number %x; revoke it by its ID", id, cert.SerialNumber)
		case rec.State == Signing, rec.State == Denied:
			rec.State, rec.Revoked, rec.RevocationReason = Revoked, now, int(reason)
			rec.Certificate, rec.NotAfter = cert.Raw, cert.NotAfter
			return true, nil
		}
		had := RevocationReason(rec.RevocationReason)
		switch rec.State {
		case Pending, Signing:
			rec.State, rec.FailInfo, rec.Reason = Denied, BadRequest, "the request was revoked"
			return true, nil
		case Denied:
			return false, nil
		case Revoked:
			if had == reason || had != CertificateHold && reason != KeyCompromise {
				return false, nil
			}
		case Issued:
			rec.State, rec.Revoked = Revoked, now
		default:
			return false, fmt.Errorf("scep: record %s is %s and cannot be revoked", rec.ID, rec.State)
		}
		rec.RevocationReason = int(reason)
		return true, nil
	})
}

// RevokeSerial is [Handler.Revoke] for the certificate with this serial number. If several CAs
// of the handler's have issued one under its profile, it is the current one's; for that of another,
// take its ID from [Depot].GetSerial, or see [Handler.RevokeCertificate].
func (h *Handler) RevokeSerial(ctx context.Context, serial *big.Int, reason RevocationReason, d Decision) error {
	if serial == nil {
		return errors.New("scep: no serial number")
	}
	for _, ca := range h.cas {
		rec, err := h.c.Depot.GetSerial(ctx, ca.cert().RawSubject, serial)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return fmt.Errorf("scep: looking up certificate %x: %w", serial, err)
		}
		if err == nil && rec.Profile == h.c.Profile {
			return h.Revoke(ctx, rec.ID, reason, d)
		}
	}
	return fmt.Errorf("scep: looking up certificate %x: %w", serial, ErrNotFound)
}

// RevokeCertificate is [Handler.Revoke] for a certificate that a CA of the handler's has signed, also
// if the depot does not know it, as that of an RA or an OCSP responder, or one from before: then it
// writes a record of it, which is Revoked. A record that is Signing or Denied, but whose certificate
// the CA has signed all the same, becomes Revoked with it. The CA's own certificates cannot be revoked
// by it.
func (h *Handler) RevokeCertificate(ctx context.Context, cert *x509.Certificate, reason RevocationReason, d Decision) error {
	switch {
	case !reason.Valid():
		return fmt.Errorf("scep: a certificate cannot be revoked for %v", reason)
	case cert == nil:
		return errors.New("scep: no certificate")
	case slices.ContainsFunc(h.cas, func(a *authority) bool { return a.cert().Equal(cert) }):
		return fmt.Errorf("scep: %q is a CA; have its issuer revoke it", cert.Subject)
	case h.issuerOf(cert) == nil:
		return fmt.Errorf("scep: certificate %q was not signed by Config.CA, Next or PastCA; have the handler of its CA revoke it", cert.Subject)
	}
	id := hashID("scepkit certificate", cert.RawIssuer, cert.SerialNumber.Bytes())
	for range 3 {
		rec, err := h.c.Depot.GetSerial(ctx, cert.RawIssuer, cert.SerialNumber)
		if err == nil {
			if err = h.revoke(ctx, rec.ID, cert, reason, d); errors.Is(err, ErrStale) {
				continue
			}
			return err
		}
		if !errors.Is(err, ErrNotFound) {
			return fmt.Errorf("scep: looking up certificate %x: %w", cert.SerialNumber, err)
		}
		now := h.c.Time()
		rec = &Record{
			ID: id, Transaction: id, Profile: h.c.Profile, State: Revoked, Issuer: cert.RawIssuer, Serial: cert.SerialNumber,
			Certificate: cert.Raw, NotAfter: cert.NotAfter, Revoked: now, RevocationReason: int(reason),
			DecidedBy: d.By, Remark: d.Remark, Created: now, Changed: now,
		}
		if err = h.c.Depot.Create(ctx, rec); err == nil {
			h.tellDecision(ctx, "Revoke", rec)
			return nil
		}
		if !errors.Is(err, ErrExists) { // somebody was quicker
			return depotError("creating", id, err)
		}
	}
	return depotError("creating", id, ErrExists)
}

// Unrevoke makes a certificate good again that was revoked for CertificateHold. For one that is not
// revoked it does nothing; for one that is revoked for another reason, or has never been issued, it
// is an error. Otherwise it is as [Handler.Revoke].
func (h *Handler) Unrevoke(ctx context.Context, id ID, d Decision) error {
	return h.decide(ctx, id, "Unrevoke", d, func(rec *Record, now time.Time) (bool, error) {
		reason := RevocationReason(rec.RevocationReason)
		switch {
		case rec.State == Issued:
			return false, nil
		case rec.State != Revoked || len(rec.Certificate) == 0:
			return false, fmt.Errorf("scep: record %s is %s and has no certificate on hold", rec.ID, rec.State)
		case reason != CertificateHold:
			return false, fmt.Errorf("scep: record %s is revoked for %v, which is final", rec.ID, reason)
		}
		rec.State, rec.Revoked, rec.RevocationReason, rec.Unrevoked = Issued, time.Time{}, 0, now
		return true, nil
	})
}

// decide changes a record as change says, which reports whether it changed anything, and tells of it.
func (h *Handler) decide(ctx context.Context, id ID, operation string, d Decision, change func(rec *Record, now time.Time) (bool, error)) error {
	for {
		rec, err := h.pending(ctx, id)
		if err != nil {
			return err
		}
		now := h.c.Time()
		if changed, err := change(rec, now); err != nil || !changed {
			return err
		}
		rec.Changed, rec.DecidedBy, rec.Remark = now, d.By, d.Remark
		if err = h.c.Depot.Update(ctx, rec); errors.Is(err, ErrStale) {
			continue
		} else if err != nil {
			return depotError("updating", id, err)
		}
		h.tellDecision(ctx, operation, rec)
		return nil
	}
}

// tellDecision writes the log, and if there is a certificate has the CRL renewed, and calls
// Events.Revoked.
func (h *Handler) tellDecision(ctx context.Context, operation string, rec *Record) {
	attrs := []slog.Attr{
		slog.String("operation", operation), slog.String("record", string(rec.ID)), slog.String("state", rec.State.String()),
		slog.String("by", rec.DecidedBy), slog.String("remark", rec.Remark),
	}
	if rec.State == Revoked {
		attrs = append(attrs, slog.String("reason", RevocationReason(rec.RevocationReason).String()))
	}
	if rec.Serial != nil {
		attrs = append(attrs, slog.String("serial", rec.Serial.Text(16)))
	}
	h.c.Log.LogAttrs(ctx, slog.LevelInfo, "scep", attrs...)
	if rec.State != Revoked && rec.State != Issued {
		return
	}
	if crl, ok := h.c.CRL.(interface{ Renew() }); ok {
		crl.Renew()
	}
	if h.c.Events.Revoked == nil {
		return
	}
	e := Event{Time: rec.Changed, Operation: operation, Reason: ReasonRevoked, ID: rec.ID, TransactionID: rec.TransactionID, RemoteAddr: rec.RemoteAddr}
	if rec.State == Issued {
		e.Reason = ReasonUnrevoked
	}
	if cert, err := x509.ParseCertificate(rec.Certificate); err == nil {
		e.Certificate = cert
	}
	h.c.Events.Revoked(ctx, e)
}
