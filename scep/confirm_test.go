package scep_test

import (
	"bytes"
	"crypto/x509"
	"errors"
	"log/slog"
	"strings"
	"testing"

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
