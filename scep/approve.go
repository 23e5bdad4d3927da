package scep

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// Approve lets a request pass that [ErrPending] held back, and returns its certificate. The
// device gets it at its next poll. The Challenge is not asked again, the Policy is. d is written
// down with it; approving again changes nothing, and returns the same certificate. If the CA cannot
// sign now that is the error, and the device's next poll tries again.
//
// Errors are [ErrNotFound] for a record of another profile or none, [ErrPending] if the policy heeds
// no approval, and an [*Error] for a request that can have no certificate: it was denied or revoked,
// has expired, or is a renewal that may be no longer, because the old certificate has been revoked or
// has authorised others in place of it, as many as [Renewal].Max. Then the record is Denied, if it was
// not before, and the device is told why. Two kinds of [*Error] leave it Pending, to be approved again
// when the cause is gone, or denied: that of the policy, and that of a renewal whose old certificate
// is on hold.
func (h *Handler) Approve(ctx context.Context, id ID, d Decision) (*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, h.c.Limits.Time)
	defer cancel()
	rec, err := h.pending(ctx, id)
	for err == nil && rec.State == Pending && !h.expired(rec) {
		var req *Request
		if req, err = h.request(rec); err != nil {
			return nil, err
		}
		req.Approved = true
		if rec.Renews != "" { // whose names the policy must keep to
			if req.Renews, err = h.renewed(ctx, rec); err != nil {
				if errors.Is(err, errOnHold) {
					return nil, err
				}
				if err = h.deny(ctx, &outcome{rec: rec}, err); err != nil && !errors.Is(err, ErrStale) {
					return nil, err
				}
				rec, err = h.pending(ctx, id)
				continue
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
		next.State, next.Changed, next.DecidedBy, next.Remark = Signing, h.c.Time(), d.By, d.Remark
		if err = h.c.Depot.Update(ctx, &next); err == nil {
			h.tellDecision(ctx, "Approve", &next)
			rec = &next
		} else if errors.Is(err, ErrStale) || errors.Is(err, ErrExists) {
			rec, err = h.pending(ctx, id)
		} else {
			err = depotError("updating", id, err)
		}
	}
	if err != nil {
		return nil, err
	}
	out, err := h.resume(ctx, rec, Secret{})
	if err != nil {
		return nil, err
	}
	if out.cert == nil && out.err == nil { // the clock went back to before it had expired
		return nil, ErrPending
	}
	return out.cert, out.err
}

// Deny refuses a request that [ErrPending] held back. The device is told why at its next poll;
// nil stands for a BadRequest without text. d is written down with it; denying again changes
// nothing. A request that was approved before is an error.
func (h *Handler) Deny(ctx context.Context, id ID, why *Error, d Decision) error {
	if why == nil {
		why = Reject(BadRequest, "denied")
	}
	return h.decide(ctx, id, "Deny", d, func(rec *Record, _ time.Time) (bool, error) {
		switch rec.State {
		case Denied:
			return false, nil
		case Pending:
			rec.State, rec.FailInfo, rec.Reason = Denied, why.FailInfo, why.Text
			return true, nil
		}
		return false, fmt.Errorf("scep: record %s is %s and can no longer be denied", id, rec.State)
	})
}

// Expire denies the requests that have waited for approval longer than Config.ApprovalWindow, and
// returns how many they were. One whose device polls, or that somebody wants to approve, expires
// without it; call it now and then, so that a list of those that wait has no others. It reads all
// that wait, by pages. The depot must be a [Lister]. After an error, call it again.
func (h *Handler) Expire(ctx context.Context) (n int, err error) {
	l, ok := h.c.Depot.(Lister)
	if !ok {
		return 0, fmt.Errorf("scep: %T cannot list what waits for approval: it is no Lister", h.c.Depot)
	}
	q := Query{Profile: &h.c.Profile, State: Pending}
	for {
		page, err := l.List(ctx, q)
		if err != nil {
			return n, fmt.Errorf("scep: listing what waits for approval: %w", err)
		}
		if len(page) == 0 {
			return n, nil
		}
		for _, rec := range page {
			if q.After = rec.ID; !h.expired(rec) {
				continue
			}
			waited, err := h.expire(ctx, rec.ID)
			if err != nil {
				return n, err
			}
			if waited {
				n++
			}
		}
	}
}

// expire denies a request that has waited too long, and reports whether it still waited.
func (h *Handler) expire(ctx context.Context, id ID) (waited bool, err error) {
	err = h.decide(ctx, id, "Expire", Decision{}, func(rec *Record, _ time.Time) (bool, error) {
		if waited = rec.State == Pending; waited {
			rec.State, rec.FailInfo, rec.Reason = Denied, BadRequest, textExpired
		}
		return waited, nil
	})
	if errors.Is(err, ErrNotFound) { // pruned meanwhile
		return false, nil
	}
	return waited && err == nil, err
}

const textExpired = "nobody approved the request in time"

// expired reports whether a request has waited too long for approval.
func (h *Handler) expired(rec *Record) bool {
	return rec.State == Pending && h.c.Time().Sub(rec.Created) > h.c.ApprovalWindow
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
