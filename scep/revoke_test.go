package scep_test

import (
	"context"
	"crypto/x509"
	"errors"
	"math/big"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

var byAlice = scep.Decision{By: "alice", Remark: "the laptop was lost"}

// recordFor returns the record of a certificate.
func recordFor(t *testing.T, srv *sceptest.Server, cert *x509.Certificate) *scep.Record {
	t.Helper()
	rec, err := srv.Config.Depot.GetSerial(t.Context(), cert.RawIssuer, cert.SerialNumber)
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

func TestRevoke(t *testing.T) {
	var told []scep.Event
	srv := newServer(t, scep.Config{
		Renewal: scep.Renewal{On: true, Anytime: true},
		Events:  scep.Events{Revoked: func(_ context.Context, e scep.Event) { told = append(told, e) }},
	})
	d, cert := holder(t, srv)
	next := renewal(d, cert)
	id := recordFor(t, srv, cert).ID
	before := time.Now()
	if err := srv.Handler.Revoke(t.Context(), id, scep.AffiliationChanged, byAlice); err != nil {
		t.Fatal(err)
	}
	rec := recordFor(t, srv, cert)
	if rec.State != scep.Revoked || rec.RevocationReason != int(scep.AffiliationChanged) || rec.Revoked.Before(before.Truncate(time.Microsecond)) ||
		rec.DecidedBy != byAlice.By || rec.Remark != byAlice.Remark || string(rec.Certificate) != string(cert.Raw) {
		t.Errorf("record is %+v", rec)
	}
	if len(told) != 1 || told[0].Reason != scep.ReasonRevoked || told[0].ID != id || !told[0].Certificate.Equal(cert) {
		t.Errorf("told %+v", told)
	}
	// From now on it is no use to its holder.
	wantFail(t, next.Send(t, next.RenewalReq(t)), scep.BadRequest, "the certificate that signed the message is revoked")
	wantFail(t, next.Send(t, next.PKCSReq(t)), scep.BadRequest, "the certificate that signed the message is revoked")
	wantFail(t, d.Send(t, d.GetCert(t, cert.RawIssuer, cert.SerialNumber)), scep.BadCertID, "no such certificate")
	wantFail(t, d.Send(t, d.PKCSReq(t)), scep.BadRequest, "the certificate has been revoked")
	wantFail(t, d.Poll(t), scep.BadRequest, "the certificate has been revoked")

	steps := []struct {
		reason scep.RevocationReason
		want   scep.RevocationReason
		wrote  bool
	}{
		{scep.AffiliationChanged, scep.AffiliationChanged, false},
		{scep.Superseded, scep.AffiliationChanged, false},
		{scep.CertificateHold, scep.AffiliationChanged, false},
		{scep.KeyCompromise, scep.KeyCompromise, true},
		{scep.Unspecified, scep.KeyCompromise, false},
	}
	for _, s := range steps {
		was := recordFor(t, srv, cert)
		if err := srv.Handler.RevokeSerial(t.Context(), cert.SerialNumber, s.reason, scep.Decision{}); err != nil {
			t.Fatal(err)
		}
		got := recordFor(t, srv, cert)
		if got.RevocationReason != int(s.want) || !got.Revoked.Equal(was.Revoked) || (got.Version != was.Version) != s.wrote {
			t.Errorf("%v: reason %d, version %d after %d", s.reason, got.RevocationReason, got.Version, was.Version)
		}
	}
	if err := srv.Handler.Unrevoke(t.Context(), id, byAlice); err == nil || !strings.Contains(err.Error(), "final") {
		t.Errorf("unrevoking what is revoked for good: %v", err)
	}
}

func TestHold(t *testing.T) {
	var told []scep.Reason
	srv := newServer(t, scep.Config{
		Renewal: scep.Renewal{On: true, Anytime: true},
		Events:  scep.Events{Revoked: func(_ context.Context, e scep.Event) { told = append(told, e.Reason) }},
	})
	d, cert := holder(t, srv)
	id := recordFor(t, srv, cert).ID
	for range 2 {
		for range 2 {
			if err := srv.Handler.Revoke(t.Context(), id, scep.CertificateHold, byAlice); err != nil {
				t.Fatal(err)
			}
		}
		wantFail(t, d.Send(t, d.GetCert(t, cert.RawIssuer, cert.SerialNumber)), scep.BadCertID, "")
		for range 2 {
			if err := srv.Handler.Unrevoke(t.Context(), id, scep.Decision{By: "bob"}); err != nil {
				t.Fatal(err)
			}
		}
		wantCert(t, d.Send(t, d.GetCert(t, cert.RawIssuer, cert.SerialNumber)), cert)
		if rec := recordFor(t, srv, cert); rec.Unrevoked.IsZero() || !rec.Revoked.IsZero() || rec.RevocationReason != 0 || rec.DecidedBy != "bob" {
			t.Errorf("record is %+v", rec)
		}
	}
	if len(told) != 4 || told[0] != scep.ReasonRevoked || told[1] != scep.ReasonUnrevoked {
		t.Errorf("told %q", told)
	}
	renewal(d, cert).Enroll(t)
	if err := srv.Handler.Revoke(t.Context(), id, scep.CertificateHold, byAlice); err != nil {
		t.Fatal(err)
	}
	if err := srv.Handler.Revoke(t.Context(), id, scep.PrivilegeWithdrawn, byAlice); err != nil {
		t.Fatal(err)
	}
	if err := srv.Handler.Unrevoke(t.Context(), id, byAlice); err == nil {
		t.Error("unrevoked what was revoked for good")
	}
}

// A record without a certificate is denied.
func TestRevokeUnissued(t *testing.T) {
	var away atomic.Bool
	away.Store(true)
	srv := newServer(t, scep.Config{Challenge: sceptest.Pend(sceptest.Secret), CA: sceptest.CA{CA: newCA(t), On: func(op string, _ *x509.Certificate) (bool, error) {
		if op == "Sign" && away.Load() {
			return false, errors.New("the CA is away")
		}
		return false, nil
	}}})
	waiting, signing := newConformer(srv), newConformer(srv)
	wantPending(t, waiting.Send(t, waiting.PKCSReq(t)))
	wantPending(t, signing.Send(t, signing.PKCSReq(t)))
	if _, err := srv.Handler.Approve(t.Context(), recordOf(t, srv, signing.TransactionID).ID, scep.Decision{}); err == nil {
		t.Fatal("approved, although the CA is away")
	}
	away.Store(false)
	for _, d := range []*sceptest.Device{waiting, signing} {
		id := recordOf(t, srv, d.TransactionID).ID
		for range 2 {
			if err := srv.Handler.Revoke(t.Context(), id, scep.KeyCompromise, byAlice); err != nil {
				t.Fatal(err)
			}
		}
		if rec := recordOf(t, srv, d.TransactionID); rec.State != scep.Denied || !rec.Revoked.IsZero() {
			t.Errorf("record is %v, revoked %v", rec.State, rec.Revoked)
		}
		wantFail(t, d.Poll(t), scep.BadRequest, "the request was revoked")
		if err := srv.Handler.Unrevoke(t.Context(), id, byAlice); err == nil {
			t.Error("unrevoked what was never issued")
		}
	}
}

func TestRevokeRefuses(t *testing.T) {
	db := new(depot.Memory)
	ca := newCA(t)
	srv := newServer(t, scep.Config{CA: ca, Depot: db, Profile: "a"})
	other := newServer(t, scep.Config{CA: ca, Depot: db, Profile: "b"})
	_, cert := holder(t, srv)
	rec := recordFor(t, srv, cert)
	for _, reason := range []scep.RevocationReason{-1, 7, 8, 11} {
		if err := srv.Handler.Revoke(t.Context(), rec.ID, reason, byAlice); err == nil {
			t.Errorf("revoked for %v", reason)
		}
	}
	for name, err := range map[string]error{
		"of another profile":            other.Handler.Revoke(t.Context(), rec.ID, scep.Superseded, byAlice),
		"of another profile, by serial": other.Handler.RevokeSerial(t.Context(), cert.SerialNumber, scep.Superseded, byAlice),
		"unrevoke of another profile":   other.Handler.Unrevoke(t.Context(), rec.ID, byAlice),
		"of nobody":                     srv.Handler.Revoke(t.Context(), "x", scep.Superseded, byAlice),
		"of nobody, by serial":          srv.Handler.RevokeSerial(t.Context(), big.NewInt(1), scep.Superseded, byAlice),
	} {
		if !errors.Is(err, scep.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := recordFor(t, srv, cert); got.Version != rec.Version {
		t.Errorf("version %d after %d", got.Version, rec.Version)
	}
	if err := srv.Handler.RevokeSerial(t.Context(), nil, scep.Superseded, byAlice); err == nil {
		t.Error("revoked nothing")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := srv.Handler.Revoke(ended, rec.ID, scep.Superseded, byAlice); err == nil {
		t.Error("revoked after the context ended")
	}
}

// TestRevokeDuringRenewal revokes the old certificate at each step of a renewal: none is handed out,
// and none stays good.
func TestRevokeDuringRenewal(t *testing.T) {
	for _, step := range []string{"Create", "Sign", "Update"} {
		t.Run(step, func(t *testing.T) {
			var handler *scep.Handler
			var old scep.ID
			var armed atomic.Bool
			revoke := func(op string) {
				if op == step && armed.CompareAndSwap(true, false) {
					if err := handler.Revoke(context.Background(), old, scep.KeyCompromise, byAlice); err != nil {
						t.Error(err)
					}
				}
			}
			db := new(depot.Memory)
			srv := newServer(t, scep.Config{
				Renewal: scep.Renewal{On: true, Anytime: true, Max: -1},
				CA:      sceptest.CA{CA: newCA(t), On: func(op string, _ *x509.Certificate) (bool, error) { revoke(op); return false, nil }},
				Depot: sceptest.Depot{Depot: db, On: func(op string, rec *scep.Record) (bool, error) {
					if rec.ID != old {
						revoke(op)
					}
					return false, nil
				}},
			})
			handler = srv.Handler
			d, cert := holder(t, srv)
			old = recordFor(t, srv, cert).ID
			armed.Store(true)
			next := renewal(d, cert)
			m := next.RenewalReq(t)
			wantFail(t, next.Send(t, m), scep.BadRequest, "the certificate that signed the message is revoked")
			if r := next.Send(t, m.Again()); r.Certificate != nil {
				t.Errorf("sent again: %v", r)
			}
			all, err := db.List(t.Context(), scep.Query{State: scep.Issued})
			if err != nil || len(all) != 0 {
				t.Errorf("%d certificates are good, %v", len(all), err)
			}
		})
	}
}

// A renewal whose answer was lost is given again if the old certificate was superseded by it, and
// is withdrawn if that was revoked for another reason.
func TestRevokeAfterRenewal(t *testing.T) {
	for reason, good := range map[scep.RevocationReason]bool{scep.Superseded: true, scep.KeyCompromise: false} {
		srv := newServer(t, scep.Config{Renewal: scep.Renewal{On: true, Anytime: true}})
		d, cert := holder(t, srv)
		next := renewal(d, cert)
		m := next.RenewalReq(t)
		r := next.Send(t, m)
		wantOK(t, r)
		if err := srv.Handler.Revoke(t.Context(), recordFor(t, srv, cert).ID, reason, byAlice); err != nil {
			t.Fatal(err)
		}
		again := next.Send(t, m.Again())
		if good {
			wantCert(t, again, r.Certificate)
			continue
		}
		wantFail(t, again, scep.BadRequest, "the certificate that signed the message is revoked")
		if rec := recordFor(t, srv, r.Certificate); rec.State != scep.Revoked || rec.RevocationReason != int(reason) {
			t.Errorf("the renewal is %v for %d", rec.State, rec.RevocationReason)
		}
		wantFail(t, next.Poll(t), scep.BadRequest, "the certificate has been revoked")
	}
}

// TestRevokeRace revokes while devices renew: what begins after Revoke returned is refused.
func TestRevokeRace(t *testing.T) {
	srv := newServer(t, scep.Config{Renewal: scep.Renewal{On: true, Anytime: true, Max: -1}})
	d, cert := holder(t, srv)
	id := recordFor(t, srv, cert).ID
	var done atomic.Bool
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			next := renewal(d, cert)
			for n := range 20 {
				next.TransactionID = strings.Repeat("x", 20*i+n+1)
				after := done.Load()
				if r := next.Send(t, next.RenewalReq(t)); after && r.Certificate != nil {
					t.Error("renewed after Revoke returned")
				}
			}
		})
	}
	for range 3 {
		wg.Go(func() {
			time.Sleep(20 * time.Millisecond)
			if err := srv.Handler.Revoke(context.Background(), id, scep.KeyCompromise, byAlice); err != nil {
				t.Error(err)
			}
			done.Store(true)
		})
	}
	wg.Wait()
}

// The certificate of a renewal names the shard of its serial number, and a policy's own points stay.
func TestDistributionPoints(t *testing.T) {
	ca := newCA(t)
	source := located{&oneCRL{t: t, ca: ca}}
	srv := newServer(t, scep.Config{CA: ca, CRL: source})
	_, cert := holder(t, srv)
	if want := source.DistributionPoints(cert.RawIssuer, cert.SerialNumber); len(cert.CRLDistributionPoints) != 1 || cert.CRLDistributionPoints[0] != want[0] {
		t.Errorf("CRLDistributionPoints is %v, want %v", cert.CRLDistributionPoints, want)
	}
	own := []string{"http://own.example/crl"}
	srv = newServer(t, scep.Config{CA: ca, CRL: source, Policy: &scep.Profile{CRLDistributionPoints: own}})
	if _, cert = holder(t, srv); len(cert.CRLDistributionPoints) != 1 || cert.CRLDistributionPoints[0] != own[0] {
		t.Errorf("CRLDistributionPoints is %v, want %v", cert.CRLDistributionPoints, own)
	}
	if _, cert = holder(t, newServer(t, scep.Config{CA: ca, CRL: (*oneCRL)(nil)})); len(cert.CRLDistributionPoints) != 0 {
		t.Errorf("CRLDistributionPoints is %v", cert.CRLDistributionPoints)
	}
}

type located struct{ *oneCRL }

func (located) DistributionPoints(issuer []byte, serial *big.Int) []string {
	return []string{"http://pki.example/" + serial.Text(16)[:2]}
}
