package scep_test

import (
	"testing"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// TestPastRA seals requests for an RA that has been replaced: it opens and answers them, and so
// do the new one and the CA theirs.
func TestPastRA(t *testing.T) {
	ca := sceptest.NewCA(t)
	old := sceptest.NewRA(t, ca, sceptest.RSA(4))
	now := sceptest.NewRA(t, ca, sceptest.RSA(5))
	h, _, _ := serve(t, func(c *scep.Config) { c.CA, c.RA, c.PastRA = ca, now, []*scep.Identity{old} })
	d := newDevice(t, sceptest.RSA(1), "rollover", "x")
	for i, ra := range []*scep.Identity{now, old} {
		d.id = string(rune('a' + i))
		cert := ra.Certificate()
		if a := d.send(t, h, d.pkcsReq(t, cert), cert); a.cert == nil { // send verifies the reply with cert
			t.Errorf("sealed for RA %d: %v", i, a)
		}
		if a := d.send(t, h, d.certPoll(t, cert), cert); a.cert == nil {
			t.Errorf("poll sealed for RA %d: %v", i, a)
		}
	}
	d.id = "c"
	if a := d.send(t, h, d.pkcsReq(t, ca.Certificate()), now.Certificate()); a.failInfo != "2" {
		t.Errorf("sealed for the CA, which opens nothing: %v", a)
	}
}

// TestResponder has one key for opening and another for signing.
func TestResponder(t *testing.T) {
	ca := sceptest.NewCA(t)
	opens := sceptest.NewRA(t, ca, sceptest.RSA(4))
	signs := sceptest.NewRA(t, ca, sceptest.RSA(5))
	opens.Key = sceptest.Key{Signer: opens.Key, On: func(op string) error {
		if op == "Sign" {
			t.Error("the RA's key signed")
		}
		return nil
	}}
	signs.Key = sceptest.Key{Signer: signs.Key, On: func(op string) error {
		if op != "Sign" {
			t.Error("the responder's key decrypted")
		}
		return nil
	}}
	h, _, _ := serve(t, func(c *scep.Config) { c.CA, c.RA, c.Responder = ca, opens, signs })
	d := newDevice(t, sceptest.RSA(1), "responder", "x")
	if a := d.send(t, h, d.pkcsReq(t, opens.Certificate()), signs.Certificate()); a.cert == nil {
		t.Error(a)
	}
	d.id = "refused"
	d.csr = newCSR(t, d.key, "responder", "wrong")
	if a := d.send(t, h, d.pkcsReq(t, opens.Certificate()), signs.Certificate()); a.failInfo != "2" {
		t.Error(a)
	}
}
