package scepclient_test

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/scepclient"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// byPassword is a request by a key that cannot decrypt.
func byPassword(name string, key crypto.Signer) scepclient.Request {
	r := enrolment(name)
	r.Key, r.PasswordReply = key, true
	return r
}

func TestPasswordReply(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	srv := sceptest.NewServer(t, scep.Config{PasswordRecipients: true, Renewal: scep.Renewal{On: true, Anytime: true}})
	off := sceptest.NewServer(t, scep.Config{})
	for name, key := range map[string]crypto.Signer{"P-256": sceptest.P256(), "P-384": sceptest.P384(), "Ed25519": ed} {
		t.Run(name, func(t *testing.T) {
			c := clientOf(srv)
			res, err := c.Enroll(t.Context(), byPassword(name, key))
			if err != nil {
				t.Fatal(err)
			}
			if !key.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(res.Certificate.PublicKey) {
				t.Error("certificate is for another key")
			}
			r := byPassword(name, key)
			r.Template = nil
			if _, err := c.Renew(t.Context(), res.Certificate, key, r); err != nil {
				t.Error(err)
			}

			if _, err := clientOf(off).Enroll(t.Context(), byPassword(name, key)); !errors.Is(err, scep.BadAlg) {
				t.Errorf("a server that does not offer it: %v", err)
			}
			r = byPassword(name, key)
			r.Challenge = scep.NewSecret("wrong")
			if _, err := c.Enroll(t.Context(), r); !errors.Is(err, scep.BadRequest) {
				t.Errorf("wrong challenge: %v", err)
			}
			r.Challenge = scep.Secret{}
			if _, err := c.Enroll(t.Context(), r); err == nil || !strings.Contains(err.Error(), "Request.Challenge is empty") {
				t.Errorf("no challenge: %v", err)
			}
			r = byPassword(name, key)
			r.PasswordReply = false
			if _, err := c.Enroll(t.Context(), r); err == nil || !strings.Contains(err.Error(), "Request.PasswordReply") {
				t.Errorf("not asked for: %v", err)
			}
		})
	}
}

// A ready-made CSR brings the challenge password.
func TestPasswordReplyCSR(t *testing.T) {
	srv := sceptest.NewServer(t, scep.Config{PasswordRecipients: true})
	for _, tag := range []byte{sceptest.TagPrintableString, sceptest.TagUTF8String, sceptest.TagIA5String} {
		csr := sceptest.CSR{Key: sceptest.P256(), Challenge: sceptest.Secret, ChallengeTag: tag}.DER()
		if _, err := clientOf(srv).Enroll(t.Context(), scepclient.Request{Key: sceptest.P256(), CSR: csr, PasswordReply: true}); err != nil {
			t.Errorf("tag %d: %v", tag, err)
		}
	}
	for name, csr := range map[string]sceptest.CSR{
		"none":      {Key: sceptest.P256()},
		"empty":     {Key: sceptest.P256(), ChallengeValues: [][]byte{sceptest.TLV(sceptest.TagUTF8String)}},
		"no value":  {Key: sceptest.P256(), ChallengeValues: [][]byte{}},
		"BMPString": {Key: sceptest.P256(), Challenge: sceptest.Secret, ChallengeTag: sceptest.TagBMPString},
	} {
		_, err := clientOf(srv).Enroll(t.Context(), scepclient.Request{Key: sceptest.P256(), CSR: csr.DER(), PasswordReply: true})
		if err == nil || !strings.Contains(err.Error(), "Request.CSR has no challenge password") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What waits is sent again, and is the same request.
func TestPasswordReplyPends(t *testing.T) {
	var records depot.Memory
	srv := sceptest.NewServer(t, scep.Config{PasswordRecipients: true, Challenge: sceptest.Pend(sceptest.Secret), Depot: &records})
	only := func() *scep.Record {
		t.Helper()
		list, err := records.List(t.Context(), scep.Query{})
		if err != nil || len(list) != 1 {
			t.Fatalf("%d requests, %v", len(list), err)
		}
		return list[0]
	}
	c := clientOf(srv)
	r := byPassword("waits", sceptest.P256())
	_, err := c.Enroll(t.Context(), r)
	var pending *scepclient.PendingError
	if !errors.As(err, &pending) {
		t.Fatal(err)
	}
	if _, err := c.Poll(t.Context(), pending.Pending, sceptest.P256()); err == nil || errors.Is(err, scep.ErrPending) {
		t.Errorf("Poll: %v", err)
	}
	r.TransactionID = pending.Pending.TransactionID
	c.Retries, c.RetryDelay = 2, time.Millisecond
	c.OnPending = func(_ *scepclient.Pending, poll int, _ time.Duration) {
		if rec := only(); poll == 2 {
			if _, err := srv.Handler.Approve(t.Context(), rec.ID, scep.Decision{}); err != nil {
				t.Error(err)
			}
		}
	}
	first, err := c.Enroll(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	again, err := c.Enroll(t.Context(), r)
	if err != nil || !again.Certificate.Equal(first.Certificate) {
		t.Errorf("another certificate, %v", err)
	}
	only()
}
