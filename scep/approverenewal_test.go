package scep_test

import (
	"context"
	"crypto/x509"
	"errors"
	"testing"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// pendRenewals admits who has no certificate yet, and a renewal that is named "rival"; a person
// decides on all others.
var pendRenewals = scep.ChallengeFunc(func(_ context.Context, req *scep.Request) error {
	if req.Renews == nil || req.TransactionID == "rival" {
		return nil
	}
	return scep.ErrPending
})

// waitingRenewal has a renewal wait for approval. It returns who asked for it, and its record.
func waitingRenewal(t *testing.T, on func(op string, rec *scep.Record) (bool, error)) (h *scep.Handler, records *depot.Memory, d *device, ra *x509.Certificate, rec *scep.Record) {
	t.Helper()
	records = &depot.Memory{}
	h, _, ra = serve(t, func(c *scep.Config) {
		c.Challenge, c.Renewal = pendRenewals, scep.Renewal{On: true, Anytime: true, Max: 1, Challenge: true}
		c.Depot = records
		if on != nil {
			c.Depot = sceptest.Depot{Depot: records, On: on}
		}
	})
	d = renewing(t, h, ra)
	d.id = "waits"
	if a := d.send(t, h, d.message(t, "17", d.csr, ra), ra); a.status != "3" {
		t.Fatal(a)
	}
	return h, records, d, ra, onlyWaiting(t, records)
}

func onlyWaiting(t *testing.T, s scep.Lister) *scep.Record {
	t.Helper()
	all, err := s.List(t.Context(), scep.Query{State: scep.Pending})
	if err != nil || len(all) != 1 {
		t.Fatalf("%d wait, %v", len(all), err)
	}
	return all[0]
}

// wantRefused approves a renewal that can have no certificate any more: it waits no more, and the
// device is told why.
func wantRefused(t *testing.T, h *scep.Handler, d *device, ra *x509.Certificate, rec *scep.Record, depot scep.Depot, text string) {
	t.Helper()
	for range 2 {
		var why *scep.Error
		if cert, err := h.Approve(t.Context(), rec.ID, scep.Decision{By: "alice"}); cert != nil || !errors.As(err, &why) || why.Text != text {
			t.Fatalf("Approve: %v, %v; want %q", cert, err, text)
		}
	}
	now, err := depot.Get(t.Context(), rec.ID)
	if err != nil || now.State != scep.Denied || now.Reason != text || now.DecidedBy != "" || now.Serial != nil {
		t.Errorf("the record is %v for %q, decided by %q, %v", now.State, now.Reason, now.DecidedBy, err)
	}
	for _, msg := range [][]byte{d.certPoll(t, ra), d.message(t, "17", d.csr, ra)} {
		if a := d.send(t, h, msg, ra); a.failInfo != "2" || a.text != text {
			t.Errorf("the device is told %v, want %q", a, text)
		}
	}
}

// TestApproveRenewalRevoked approves a renewal whose old certificate has been revoked meanwhile.
func TestApproveRenewalRevoked(t *testing.T) {
	h, records, d, ra, rec := waitingRenewal(t, nil)
	if err := h.RevokeSerial(t.Context(), d.signer.SerialNumber, scep.KeyCompromise, scep.Decision{}); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, h, d, ra, rec, records, "the certificate that signed the message is revoked")
}

// TestApproveRenewalOvertaken approves a renewal whose place another has taken, just before it was
// written down.
func TestApproveRenewalOvertaken(t *testing.T) {
	records := &depot.Memory{}
	var rival func()
	h, _, ra := serve(t, func(c *scep.Config) {
		c.Challenge, c.Renewal = pendRenewals, scep.Renewal{On: true, Anytime: true, Max: 1, Challenge: true}
		c.Depot = sceptest.Depot{Depot: records, On: func(op string, rec *scep.Record) (bool, error) {
			if op == "Create" && rec.TransactionID == "waits" && rival != nil {
				overtake := rival
				rival = nil
				overtake()
			}
			return false, nil
		}}
	})
	d := renewing(t, h, ra)
	d.id = "waits"
	other := *d
	other.id, other.csr = "rival", newCSR(t, sceptest.RSA(3), "renewing", "")
	rival = func() {
		if a := other.send(t, h, other.message(t, "17", other.csr, ra), ra); a.cert == nil {
			t.Errorf("the rival: %v", a)
		}
	}
	if a := d.send(t, h, d.message(t, "17", d.csr, ra), ra); a.status != "3" {
		t.Fatal(a)
	}
	wantRefused(t, h, d, ra, onlyWaiting(t, records), records, "another renewal took its place")
}

// TestApproveRenewalOnHold approves a renewal while the old certificate is on hold: it goes on
// waiting, until the hold is lifted.
func TestApproveRenewalOnHold(t *testing.T) {
	h, _, d, ra, rec := waitingRenewal(t, nil)
	if err := h.RevokeSerial(t.Context(), d.signer.SerialNumber, scep.CertificateHold, scep.Decision{}); err != nil {
		t.Fatal(err)
	}
	var why *scep.Error
	if cert, err := h.Approve(t.Context(), rec.ID, scep.Decision{}); cert != nil || !errors.As(err, &why) {
		t.Fatalf("on hold: %v, %v", cert, err)
	}
	if a := d.send(t, h, d.certPoll(t, ra), ra); a.status != "3" {
		t.Errorf("on hold: %v", a)
	}
	if err := h.Unrevoke(t.Context(), rec.Renews, scep.Decision{}); err != nil {
		t.Fatal(err)
	}
	cert, err := h.Approve(t.Context(), rec.ID, scep.Decision{})
	if err != nil {
		t.Fatal(err)
	}
	if a := d.send(t, h, d.certPoll(t, ra), ra); a.cert == nil || !a.cert.Equal(cert) {
		t.Errorf("the hold is lifted: %v", a)
	}
}

// TestApproveRenewalGone has the record decided by somebody else just when it is refused.
func TestApproveRenewalGone(t *testing.T) {
	var meanwhile func(rec *scep.Record)
	h, records, d, _, rec := waitingRenewal(t, func(op string, rec *scep.Record) (bool, error) {
		if op == "Update" && rec.State == scep.Denied && meanwhile != nil {
			decide := meanwhile
			meanwhile = nil
			decide(rec)
		}
		return false, nil
	})
	if err := h.RevokeSerial(t.Context(), d.signer.SerialNumber, scep.KeyCompromise, scep.Decision{}); err != nil {
		t.Fatal(err)
	}
	meanwhile = func(rec *scep.Record) {
		if err := h.Deny(t.Context(), rec.ID, scep.Reject(scep.BadRequest, "not yours"), scep.Decision{By: "bob"}); err != nil {
			t.Error(err)
		}
	}
	var why *scep.Error
	if cert, err := h.Approve(t.Context(), rec.ID, scep.Decision{By: "alice"}); cert != nil || !errors.As(err, &why) || why.Text != "not yours" {
		t.Errorf("%v, %v", cert, err)
	}
	if now, err := records.Get(t.Context(), rec.ID); err != nil || now.DecidedBy != "bob" {
		t.Errorf("decided by %q, %v", now.DecidedBy, err)
	}
}
