package scep_test

import (
	"context"
	"crypto/x509"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// TestIssuedOnce has a poll overtake the request that it asks about, while that is being signed: both
// get the same certificate, which was issued once.
func TestIssuedOnce(t *testing.T) {
	var issued, repeated int
	var overtake func()
	h, s, ra := serve(t, func(c *scep.Config) {
		ca := c.CA.(*scep.Identity)
		c.RA = ca
		c.CA = sceptest.CA{CA: ca, On: func(op string, _ *x509.Certificate) (bool, error) {
			if poll := overtake; op == "Sign" && poll != nil {
				overtake = nil
				poll()
			}
			return false, nil
		}}
		c.Events.Issued = func(context.Context, scep.Event) { issued++ }
		c.Events.Repeated = func(context.Context, scep.Event) { repeated++ }
	})
	d := newDevice(t, sceptest.RSA(1), "twice", "x")
	var polled answer
	overtake = func() { polled = d.send(t, h, d.certPoll(t, ra), ra) }
	a := d.send(t, h, d.pkcsReq(t, ra), ra)
	if a.cert == nil || polled.cert == nil || !a.cert.Equal(polled.cert) {
		t.Fatalf("the request: %v; the poll: %v", a, polled)
	}
	oneCertificate(t, s, a.cert)
	if issued != 1 || repeated != 1 {
		t.Errorf("issued %d times, repeated %d times; want once each", issued, repeated)
	}
}

// TestRevokeAheadTwice has another worker sign a renewal first, and then the old certificate revoked on
// a replica whose clock is an hour ahead: the one that comes second does not hand the new one out.
func TestRevokeAheadTwice(t *testing.T) {
	var ahead *scep.Handler
	var overtake func()
	var config scep.Config
	h, s, ra := serve(t, func(c *scep.Config) {
		ca := c.CA.(*scep.Identity)
		c.RA = ca
		c.CA = sceptest.CA{CA: ca, On: func(op string, _ *x509.Certificate) (bool, error) {
			if f := overtake; op == "Sign" && f != nil {
				overtake = nil
				f()
			}
			return false, nil
		}}
		c.Renewal = scep.Renewal{On: true, Anytime: true}
		config = *c
	})
	config.Time = func() time.Time { return time.Now().Add(time.Hour) }
	var err error
	if ahead, err = scep.New(config); err != nil {
		t.Fatal(err)
	}
	d := renewing(t, h, ra)
	old := only(t, s).ID
	d.id = "renewal"
	overtake = func() {
		if a := d.send(t, h, d.certPoll(t, ra), ra); a.cert == nil {
			t.Error(a)
		}
		if err := ahead.Revoke(t.Context(), old, scep.KeyCompromise, byAlice); err != nil {
			t.Error(err)
		}
	}
	if a := d.send(t, h, d.message(t, "17", d.csr, ra), ra); a.text != "the certificate that signed the message is revoked" {
		t.Error(a)
	}
	all, err := s.List(t.Context(), scep.Query{})
	if err != nil || len(all) != 2 {
		t.Fatalf("%d records, %v", len(all), err)
	}
	for _, rec := range all {
		if rec.State != scep.Revoked || rec.DecidedBy != byAlice.By || rec.Remark != byAlice.Remark {
			t.Errorf("record is %v, by %q: %q", rec.State, rec.DecidedBy, rec.Remark)
		}
	}
}
