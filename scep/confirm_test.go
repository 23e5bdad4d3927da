package scep_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// withheld makes a certificate that its Confirmer could not tell about.
func withheld(t *testing.T, name string) (s store, d *device, ra *x509.Certificate) {
	t.Helper()
	h, s, ra := serve(t, func(c *scep.Config) {
		c.Challenge = confirmer{quick("x"), func(*scep.Request, *x509.Certificate) error { return errors.New("timeout") }}
	})
	d = newDevice(t, sceptest.RSA(1), name, "x")
	if a := d.send(t, h, d.pkcsReq(t, ra), ra); a.http != 503 {
		t.Fatal(a)
	}
	if rec := only(t, s); rec.State != scep.Issued || !rec.Unconfirmed {
		t.Fatalf("the record is %v, unconfirmed %v", rec.State, rec.Unconfirmed)
	}
	return s, d, ra
}

// TestConfirmerIsGone takes the Confirmer away while a certificate is withheld: there is nobody left
// to ask. It is handed out, also to a device that has always polled, and the log says so, once.
func TestConfirmerIsGone(t *testing.T) {
	for _, first := range []string{"poll", "resend"} {
		s, d, ra := withheld(t, first)
		var log bytes.Buffer
		h, err := scep.New(scep.Config{CA: sceptest.NewCA(t), Depot: s, Challenge: quick("y"), Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		messages := [][]byte{d.certPoll(t, ra), d.pkcsReq(t, ra)}
		if first == "resend" {
			messages[0], messages[1] = messages[1], messages[0]
		}
		for i, msg := range messages {
			if a := d.send(t, h, msg, ra); a.cert == nil || !bytes.Equal(a.cert.Raw, only(t, s).Certificate) {
				t.Errorf("%s, answer %d: %v", first, i, a)
			}
		}
		rec := only(t, s)
		if rec.State != scep.Issued || rec.Unconfirmed {
			t.Errorf("%s: the record is %v, unconfirmed %v", first, rec.State, rec.Unconfirmed)
		}
		if n := strings.Count(log.String(), "level=WARN"); n != 1 || !strings.Contains(log.String(), "no Confirmer any more") || !strings.Contains(log.String(), string(rec.ID)) {
			t.Errorf("%s: %d warnings: %s", first, n, &log)
		}
	}
}

// TestConfirmerIsGoneRevoked revokes what was withheld before the Confirmer is taken away.
func TestConfirmerIsGoneRevoked(t *testing.T) {
	s, d, ra := withheld(t, "revoked before")
	h, err := scep.New(scep.Config{CA: sceptest.NewCA(t), Depot: s, Challenge: quick("x"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Revoke(t.Context(), only(t, s).ID, scep.CessationOfOperation, scep.Decision{}); err != nil {
		t.Fatal(err)
	}
	for _, msg := range [][]byte{d.certPoll(t, ra), d.pkcsReq(t, ra)} {
		if a := d.send(t, h, msg, ra); a.failInfo != "2" {
			t.Error(a)
		}
	}
}

// TestConfirmersDisagree has a Confirmer refuse a certificate that another worker, which has none any
// more, hands out meanwhile: it is revoked all the same.
func TestConfirmersDisagree(t *testing.T) {
	var meanwhile func()
	h, s, ra := serve(t, func(c *scep.Config) {
		c.Challenge = confirmer{quick("x"), func(*scep.Request, *x509.Certificate) error {
			meanwhile()
			return scep.Reject(scep.BadRequest, "unknown device")
		}}
	})
	other, err := scep.New(scep.Config{CA: sceptest.NewCA(t), Depot: s, Challenge: quick("x"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	d := newDevice(t, sceptest.RSA(1), "disputed", "x")
	poll := d.certPoll(t, ra)
	meanwhile = func() {
		if a := d.send(t, other, poll, ra); a.cert == nil {
			t.Errorf("without a Confirmer: %v", a)
		}
	}
	if a := d.send(t, h, d.pkcsReq(t, ra), ra); a.failInfo != "2" || a.text != "unknown device" {
		t.Errorf("with one that refuses: %v", a)
	}
	if rec := only(t, s); rec.State != scep.Revoked || rec.Unconfirmed {
		t.Errorf("the record is %v, unconfirmed %v", rec.State, rec.Unconfirmed)
	}
}

// TestConfirmSuperseded has the old certificate revoked while that of its renewal is withheld: if it
// is Superseded the new one goes out as soon as it is confirmed, otherwise it is revoked as well.
func TestConfirmSuperseded(t *testing.T) {
	for reason, good := range map[scep.RevocationReason]bool{scep.Superseded: true, scep.KeyCompromise: false} {
		var says error
		var asked []*scep.Request
		h, s, ra := serve(t, func(c *scep.Config) {
			c.Renewal = scep.Renewal{On: true, Anytime: true, Challenge: true}
			c.Challenge = confirmer{scep.ChallengeFunc(func(context.Context, *scep.Request) error { return nil }), func(req *scep.Request, _ *x509.Certificate) error {
				asked = append(asked, req)
				return says
			}}
		})
		d := renewing(t, h, ra)
		d.id = "the renewal"
		says = errors.New("timeout")
		if a := d.send(t, h, d.message(t, "17", d.csr, ra), ra); a.http != 503 {
			t.Fatal(a)
		}
		if err := h.RevokeSerial(t.Context(), d.signer.SerialNumber, reason, scep.Decision{}); err != nil {
			t.Fatal(err)
		}
		says, asked = nil, nil
		a := d.send(t, h, d.certPoll(t, ra), ra)
		if good != (a.cert != nil) || good != (len(asked) == 1) {
			t.Errorf("%v: %v, and the Confirmer is asked %d times", reason, a, len(asked))
		}
		if len(asked) > 0 && (asked[0].Renews == nil || !asked[0].Renews.Equal(d.signer)) {
			t.Errorf("%v: the Confirmer is not told what is renewed", reason)
		}
		if all, err := s.List(t.Context(), scep.Query{State: scep.Issued}); err != nil || good != (len(all) == 1) {
			t.Errorf("%v: %d certificates are good, %v", reason, len(all), err)
		}
	}
}

// TestConfirmerAndRetryWindow has a Confirmer, and requests that were decided before it was to be asked,
// or whose certificates ended while they were withheld: after Config.RetryWindow the same message is a
// new request.
func TestConfirmerAndRetryWindow(t *testing.T) {
	for _, name := range []string{"denied", "ended"} {
		var later time.Duration
		begun := time.Now()
		says := error(scep.ErrPending)
		h, s, ra := serve(t, func(c *scep.Config) {
			c.Time = func() time.Time { return begun.Add(later) }
			c.Challenge = confirmer{scep.ChallengeFunc(func(context.Context, *scep.Request) error {
				if name == "denied" {
					return scep.ErrPending
				}
				return nil
			}), func(*scep.Request, *x509.Certificate) error { return says }}
			c.Policy = &scep.Profile{Validity: time.Hour}
		})
		d := newDevice(t, sceptest.RSA(1), name, "x")
		msg := d.pkcsReq(t, ra)
		want := "3"
		if name == "ended" {
			says, want = errors.New("timeout"), ""
		}
		if a := d.send(t, h, msg, ra); a.status != want {
			t.Fatal(a)
		}
		rec := only(t, s)
		if name == "denied" {
			if err := h.Deny(t.Context(), rec.ID, nil, scep.Decision{}); err != nil {
				t.Fatal(err)
			}
			if a := d.send(t, h, msg, ra); a.failInfo != "2" {
				t.Errorf("denied: %v", a)
			}
		}
		later, says = 25*time.Hour, nil
		a := d.send(t, h, msg, ra)
		if name == "denied" && a.status != "3" || name == "ended" && (a.cert == nil || bytes.Equal(a.cert.Raw, rec.Certificate)) {
			t.Errorf("%s, after the window: %v, want it judged afresh", name, a)
		}
	}
}
