package scep

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
)

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
		a := h.authorityOf(rec)
		if a == nil || a.ca == nil {
			a = h.now()
		}
		if err = h.template(ctx, req, &next, a); err != nil {
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
