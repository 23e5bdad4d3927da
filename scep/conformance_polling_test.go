package scep_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// pendingServer asks a person.
func pendingServer(t *testing.T) *sceptest.Server {
	return newServer(t, scep.Config{Challenge: sceptest.Pend(sceptest.Secret)})
}

// recordOf returns the one record of a device with this transaction ID.
func recordOf(t *testing.T, srv *sceptest.Server, transactionID string) *scep.Record {
	t.Helper()
	var found []*scep.Record
	for _, rec := range records(t, srv) {
		if rec.TransactionID == transactionID {
			found = append(found, rec)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d records of %q", len(found), transactionID)
	}
	return found[0]
}

func approve(t *testing.T, srv *sceptest.Server, id scep.ID) *x509.Certificate {
	t.Helper()
	cert, err := srv.Handler.Approve(t.Context(), id, scep.Decision{})
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func wantCert(t *testing.T, r *sceptest.Reply, want *x509.Certificate) {
	t.Helper()
	if wantOK(t, r); !r.Certificate.Equal(want) {
		t.Errorf("certificate is %x, not %x", r.Certificate.SerialNumber, want.SerialNumber)
	}
}

func TestConformancePOL(t *testing.T) {
	c := newTable(t, "POL")

	c.run("POL-01", func(t *testing.T) {
		srv := pendingServer(t)
		d := newConformer(srv)
		r := d.Send(t, d.PKCSReq(t))
		if wantPending(t, r); !r.HasContent { // certmonger needs it
			t.Error("no eContent")
		}
		wantNothingIssued(t, srv)
		srv = newServer(t, scep.Config{Challenge: sceptest.Pend(sceptest.Secret), AbsentContent: true})
		d = newConformer(srv)
		r = d.Send(t, d.PKCSReq(t))
		if wantPending(t, r); r.HasContent {
			t.Error("eContent is there")
		}
		d.Challenge = "wrong"
		d.Subject = sceptest.CN("wrong")
		wantFail(t, d.Send(t, d.PKCSReq(t)), scep.BadRequest, "")
	})
	c.run("POL-02", func(t *testing.T) {
		srv := pendingServer(t)
		d := newConformer(srv)
		wantPending(t, d.Send(t, d.PKCSReq(t)))
		for range 3 {
			wantPending(t, d.Poll(t))
		}
		recordOf(t, srv, d.TransactionID)
	})
	c.run("POL-03", func(t *testing.T) {
		srv := pendingServer(t)
		d := newConformer(srv)
		wantPending(t, d.Send(t, d.PKCSReq(t)))
		cert := approve(t, srv, recordOf(t, srv, d.TransactionID).ID)
		wantCert(t, d.Poll(t), cert)
		if !bytes.Equal(cert.RawSubject, d.Subject) {
			t.Errorf("subject is %q", cert.Subject)
		}
	})
	c.run("POL-04", func(t *testing.T) {
		srv := pendingServer(t)
		d := newConformer(srv)
		m := d.PKCSReq(t)
		wantPending(t, d.Send(t, m))
		cert := approve(t, srv, recordOf(t, srv, d.TransactionID).ID)
		for range 2 {
			wantCert(t, d.Poll(t), cert)
			wantCert(t, d.Send(t, m.Again()), cert)
		}
	})
	c.run("POL-05", func(t *testing.T) {
		srv := pendingServer(t)
		d := newConformer(srv)
		m := d.PKCSReq(t)
		wantPending(t, d.Send(t, m))
		if err := srv.Handler.Deny(t.Context(), recordOf(t, srv, d.TransactionID).ID, scep.Reject(scep.BadRequest, "not you"), scep.Decision{}); err != nil {
			t.Fatal(err)
		}
		wantFail(t, d.Poll(t), scep.BadRequest, "not you")
		wantFail(t, d.Send(t, m.Again()), scep.BadRequest, "not you")
		// Another request with the same transaction ID and key is judged afresh.
		d.Subject = sceptest.CN("not me")
		wantPending(t, d.Send(t, d.PKCSReq(t)))
	})
	c.run("POL-06", func(t *testing.T) {
		srv := pendingServer(t)
		wantFail(t, newConformer(srv).Poll(t), scep.BadRequest, "no such transaction")
		srv = newServer(t, scep.Config{})
		wantFail(t, newConformer(srv).Poll(t), scep.BadRequest, "no such transaction")
	})
	c.run("POL-07", func(t *testing.T) {
		srv := pendingServer(t)
		d := newConformer(srv)
		wantPending(t, d.Send(t, d.PKCSReq(t)))
		cert := approve(t, srv, recordOf(t, srv, d.TransactionID).ID)
		issuer := d.CA(t)[0].RawSubject
		for name, content := range map[string][]byte{
			"swapped": sceptest.TLV(0x30, d.Subject, issuer),
			"wrong":   sceptest.TLV(0x30, sceptest.CN("some CA"), sceptest.CN("some device")),
			"empty":   sceptest.TLV(0x30, sceptest.Name(), sceptest.Name()),
		} {
			if r := d.Send(t, d.Message(t, sceptest.TypeCertPoll, content)); r.Certificate == nil || !r.Certificate.Equal(cert) {
				t.Errorf("%s: answer is %v", name, r)
			}
		}
	})
	c.run("POL-08", func(t *testing.T) {
		srv := pendingServer(t)
		d := withKey(srv, sceptest.RSA(0), "victim")
		wantPending(t, d.Send(t, d.PKCSReq(t)))
		thief := *d
		thief.Key = sceptest.RSA(1)
		wantFail(t, thief.Poll(t), scep.BadRequest, "no such transaction")
		approve(t, srv, recordOf(t, srv, d.TransactionID).ID)
		wantFail(t, thief.Poll(t), scep.BadRequest, "no such transaction")
		// The victim's certificate in the bag, with the thief's signature.
		m := d.CertPoll(t)
		m.Key = thief.Key
		wantFail(t, d.Send(t, m), scep.BadMessageCheck, "")
	})
	c.run("POL-09", func(t *testing.T) {
		srv := pendingServer(t)
		d := newConformer(srv)
		m := d.PKCSReq(t)
		body := m.BER()
		for range 3 {
			wantPending(t, d.SendBytes(t, m, body))
		}
		cert := approve(t, srv, recordOf(t, srv, d.TransactionID).ID)
		wantCert(t, d.SendBytes(t, m, body), cert)
	})
	c.run("POL-10", func(t *testing.T) {
		srv := pendingServer(t)
		d := newConformer(srv)
		m := d.PKCSReq(t)
		wantPending(t, d.Send(t, m))
		second := m.Again()
		second.TransactionID = "another"
		wantPending(t, d.Send(t, second))
		if n := len(records(t, srv)); n != 2 {
			t.Errorf("%d records", n)
		}
	})
	c.run("POL-11", func(t *testing.T) {
		var ahead atomic.Int64
		srv := newServer(t, scep.Config{
			Challenge:   sceptest.Pend(sceptest.Secret),
			RetryWindow: time.Hour,
			Time:        func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) },
		})
		d := newConformer(srv)
		wantPending(t, d.Send(t, d.PKCSReq(t)))
		ahead.Store(int64(48 * time.Hour))
		wantPending(t, d.Poll(t)) // what is open stays
		approve(t, srv, recordOf(t, srv, d.TransactionID).ID)
		wantOK(t, d.Poll(t))
		ahead.Add(int64(59 * time.Minute))
		wantOK(t, d.Poll(t))
		ahead.Add(int64(2 * time.Minute))
		wantFail(t, d.Poll(t), scep.BadRequest, "no such transaction")
	})
	c.run("POL-12", func(t *testing.T) {
		srv := pendingServer(t)
		d := newConformer(srv)
		wantPending(t, d.Send(t, d.PKCSReq(t)))
		m := d.CertPoll(t)
		m.SenderNonce = nil
		wantPending(t, d.Send(t, m))
		m.SenderNonce = []byte{1}
		wantPending(t, d.Send(t, m))
	})
}

func TestConformanceRTX(t *testing.T) {
	c := newTable(t, "RTX")
	// counting admits Secret and counts how often it was asked.
	counting := func(t *testing.T, c scep.Config) (*sceptest.Server, *atomic.Int32) {
		var asked atomic.Int32
		static := challenge.Static(sceptest.Secret)
		c.Challenge = scep.ChallengeFunc(func(ctx context.Context, req *scep.Request) error {
			asked.Add(1)
			return static.Validate(ctx, req)
		})
		return newServer(t, c), &asked
	}

	c.run("RTX-01", func(t *testing.T) {
		srv, asked := counting(t, scep.Config{})
		d := newConformer(srv)
		m := d.PKCSReq(t)
		r := d.Send(t, m)
		wantOK(t, r)
		wantCert(t, d.Send(t, m.Again()), r.Certificate)
		if n := len(records(t, srv)); n != 1 || asked.Load() != 1 {
			t.Errorf("%d records, challenge asked %d times", n, asked.Load())
		}
	})
	c.run("RTX-02", func(t *testing.T) {
		srv, _ := counting(t, scep.Config{})
		d := newConformer(srv)
		m := d.PKCSReq(t)
		body := m.BER()
		first, second := d.SendBytes(t, m, body), d.SendBytes(t, m, body)
		wantOK(t, first)
		wantCert(t, second, first.Certificate) // the nonces are checked with every reply
	})
	c.run("RTX-03", func(t *testing.T) {
		srv, asked := counting(t, scep.Config{})
		d := newConformer(srv)
		m := d.PKCSReq(t)
		body := m.BER()
		replies := make([]*sceptest.Reply, 20)
		var all sync.WaitGroup
		for i := range replies {
			all.Go(func() { replies[i] = d.SendBytes(t, m, body) })
		}
		all.Wait()
		for _, r := range replies {
			if r == nil {
				t.Fatal("no answer")
			}
			wantCert(t, r, replies[0].Certificate)
		}
		if n := len(records(t, srv)); n != 1 || asked.Load() != 1 {
			t.Errorf("%d records, challenge asked %d times", n, asked.Load())
		}
	})
	c.run("RTX-04", func(t *testing.T) {
		srv, asked := counting(t, scep.Config{})
		d := newConformer(srv)
		first := d.Enroll(t)
		d.Challenge = "wrong"
		d.Subject = sceptest.CN("again")
		wantFail(t, d.Send(t, d.PKCSReq(t)), scep.BadRequest, "")
		d.Challenge = sceptest.Secret
		if second := d.Enroll(t); second.Equal(first) || asked.Load() != 3 {
			t.Errorf("certificate %x, challenge asked %d times", second.SerialNumber, asked.Load())
		}
	})
	c.run("RTX-05", func(t *testing.T) {
		srv := pendingServer(t)
		d := newConformer(srv)
		first := d.PKCSReq(t)
		wantPending(t, d.Send(t, first))
		old := recordOf(t, srv, d.TransactionID)
		d.Subject = sceptest.CN("second")
		second := d.PKCSReq(t)
		wantPending(t, d.Send(t, second))
		cert := approve(t, srv, old.ID)
		wantCert(t, d.Send(t, first.Again()), cert)
		wantPending(t, d.Send(t, second.Again()))
		wantPending(t, d.Poll(t)) // a poll is for the newest
	})
	c.run("RTX-06", func(t *testing.T) {
		srv := newServer(t, scep.Config{})
		a, b := withKey(srv, sceptest.RSA(0), "a"), withKey(srv, sceptest.RSA(1), "b")
		b.TransactionID = a.TransactionID
		certA, certB := a.Enroll(t), b.Enroll(t)
		wantCert(t, a.Poll(t), certA)
		wantCert(t, b.Poll(t), certB)
		// The same CSR in the message of somebody else.
		m := a.PKCSReq(t)
		m.Key, m.Certificate = b.Key, sceptest.Certificate{Key: b.Key}.DER()
		r := a.Send(t, m)
		if wantFail(t, r, scep.BadRequest, ""); r.StatusCode != http.StatusOK {
			t.Errorf("HTTP %d", r.StatusCode)
		}
	})
}
