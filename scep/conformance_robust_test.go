package scep_test

import (
	"bytes"
	"context"
	"crypto"
	"encoding/asn1"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

func TestConformanceROB(t *testing.T) {
	c := newTable(t, "ROB")
	c.run("ROB-01", func(t *testing.T) {
		srv := newServer(t, scep.Config{
			Challenge: scep.ChallengeFunc(func(context.Context, *scep.Request) error { return scep.Reject(scep.BadRequest, "") }),
			Log:       slog.New(slog.DiscardHandler),
		})
		good := newConformer(srv).PKCSReq(t).BER()
		random := rand.New(rand.NewPCG(1, 2))
		for range 2000 {
			body := mutate(random, good)
			w := httptest.NewRecorder()
			srv.Handler.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/?operation=PKIOperation", bytes.NewReader(body)))
			if w.Code >= 500 {
				t.Errorf("HTTP %d for %x", w.Code, body)
			}
		}
		if n := len(records(t, srv)); n != 0 {
			t.Errorf("%d records", n)
		}
		newConformer(srv).CA(t)
	})
	c.run("ROB-02", func(t *testing.T) {
		srv := newServer(t, scep.Config{Log: slog.New(slog.DiscardHandler)})
		const clients, each = 10, 20
		var all sync.WaitGroup
		var mu sync.Mutex
		serials := map[string]bool{}
		for i := range clients {
			all.Go(func() {
				for j := range each {
					d := withKey(srv, sceptest.RSA(i%5), fmt.Sprintf("device %d.%d", i, j))
					r := d.Send(t, d.PKCSReq(t))
					if r.Certificate == nil {
						t.Errorf("answer is %v", r)
						continue
					}
					mu.Lock()
					serials[r.Certificate.SerialNumber.String()] = true
					mu.Unlock()
				}
			})
		}
		all.Wait()
		if len(serials) != clients*each || len(records(t, srv)) != clients*each {
			t.Errorf("%d serial numbers, %d records", len(serials), len(records(t, srv)))
		}
	})
	c.run("ROB-03", func(t *testing.T) {
		// The shape of the sample in RFC 8894, made by cryptlib for a CA that is not this one.
		srv := newServer(t, scep.Config{})
		d := newConformer(srv)
		d.TransactionID = "7XXEY-ERLPU-2JDR9"
		m := d.PKCSReq(t)
		m.Envelope.Recipients[0].Certificate = newCA(t, sceptest.RSA(5)).Certificate()
		m.Attributes = sceptest.With(
			sceptest.Attribute{Type: sceptest.OIDSigningTime, Values: [][]byte{sceptest.UTCTime(time.Date(2015, 9, 1, 0, 0, 0, 0, time.UTC))}},
			sceptest.Attribute{Type: oidRandomExt, Values: [][]byte{sceptest.TLV(4, sceptest.Nonce(16))}})
		r := d.Send(t, m)
		wantFail(t, r, scep.BadRequest, "the request is encrypted to another certificate")
		if r.TransactionID != "7XXEY-ERLPU-2JDR9" {
			t.Errorf("transactionID is %q", r.TransactionID)
		}
	})
	c.run("ROB-05", func(t *testing.T) {
		srv := newServer(t, scep.Config{})
		for _, change := range []bend{
			func(m *sceptest.Message) { m.Envelope.Cipher, m.Hash = sceptest.TripleDES, crypto.SHA1 },
			func(m *sceptest.Message) { m.Envelope.Cipher, m.Hash = sceptest.SingleDES, crypto.MD5 },
		} {
			d := newConformer(srv)
			m := d.PKCSReq(t)
			change(m)
			r := d.Send(t, m)
			if wantFail(t, r, scep.BadAlg, ""); r.Hash == crypto.MD5 || r.Hash == crypto.SHA1 {
				t.Errorf("the refusal has a digest by %v", r.Hash)
			}
		}
		wantNothingIssued(t, srv)
	})
	c.run("ROB-06", canaries)
}

// mutate changes a few bytes, or the length.
func mutate(random *rand.Rand, good []byte) []byte {
	b := bytes.Clone(good)
	for range 1 + random.IntN(4) {
		i := random.IntN(len(b))
		switch random.IntN(6) {
		case 0:
			b[i] ^= 1 << random.IntN(8)
		case 1:
			b[i] = []byte{0, 1, 0x7f, 0x80, 0x81, 0x84, 0xff, 0x30, 0x31, 0xa0}[random.IntN(10)]
		case 2:
			b = append(b[:i], b[min(len(b), i+1+random.IntN(20)):]...)
		case 3:
			b = append(b[:i:i], append(bytes.Clone(b[random.IntN(len(b)):]), b[i:]...)...)
		case 4:
			b = b[:i]
		default:
			b[random.IntN(min(len(b), 64))] = byte(random.IntN(256)) // the headers
		}
		if len(b) == 0 {
			return []byte{0x30}
		}
	}
	return b
}

// canaries plants a challenge password and looks for it wherever anybody could read.
func canaries(t *testing.T) {
	const canary = "CANARY-4f1e9d"
	const subject = "private-7c21"
	var mu sync.Mutex
	var seen bytes.Buffer
	note := func(s string) {
		mu.Lock()
		defer mu.Unlock()
		seen.WriteString(s + "\n")
	}
	events, outcomes := 0, map[scep.Reason]bool{}
	event := func(_ context.Context, e scep.Event) {
		mu.Lock()
		events++
		outcomes[e.Reason] = true
		mu.Unlock()
		note(fmt.Sprintf("%v %+v %q", e.Err, e.Request, e.MessageType))
		if e.Request != nil {
			note(fmt.Sprintf("%s %v %#v", e.Request.Via, e.Request.Secret, e.Request.Secret))
		}
	}
	logs := slog.New(slog.NewJSONHandler(writerFunc(func(b []byte) { note(string(b)) }), &slog.HandlerOptions{Level: slog.Level(-100)}))
	var mode string
	memory := new(depot.Memory)
	srv := newServer(t, scep.Config{
		Depot:  memory,
		Log:    logs,
		Events: scep.Events{Issued: event, Repeated: event, Waiting: event, Refused: event, Failed: event},
		Challenge: scep.ChallengeFunc(func(_ context.Context, req *scep.Request) error {
			if !strings.HasPrefix(req.Secret.Reveal(), canary) {
				t.Error("the canary did not arrive")
			}
			switch mode {
			case "refuse":
				return scep.Reject(scep.BadRequest, "no")
			case "pend":
				return scep.ErrPending
			case "break":
				return fmt.Errorf("asking about %v failed", req.Secret)
			case "panic":
				panic(fmt.Sprintf("at %+v", req))
			}
			return nil
		}),
	})
	for _, m := range []string{"admit", "refuse", "pend", "break", "panic"} {
		mode = m
		d := newConformer(srv)
		for name, change := range map[string]bend{
			"good": func(*sceptest.Message) {},
			"two":  resign(func(c *sceptest.CSR) { c.ChallengeValues = [][]byte{printable(canary), printable(canary)} }),
			"sig":  resign(func(c *sceptest.CSR) { c.Challenge, c.Signature = canary, flip }),
			"ext": resign(func(c *sceptest.CSR) {
				c.Challenge = canary
				c.Attributes = [][]byte{sceptest.Attr(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}, printable(canary))}
			}),
			"plain": func(m *sceptest.Message) { m.Content = m.CSR },
			"cut":   func(m *sceptest.Message) { m.Envelope.Content = m.CSR[:len(m.CSR)-20] },
		} {
			d.Challenge, d.Subject = canary+"-"+m, sceptest.CN(subject+" "+m+" "+name)
			msg := d.PKCSReq(t)
			change(msg)
			r := d.Send(t, msg)
			if bytes.Contains(r.Body, []byte(canary)) || strings.Contains(fmt.Sprint(r.Header), canary) {
				t.Errorf("%s, %s: the answer has the challenge", m, name)
			}
		}
	}
	for _, reason := range []scep.Reason{scep.ReasonIssued, scep.ReasonRefused, scep.ReasonPending, scep.ReasonUnavailable, scep.ReasonUnexpected, scep.ReasonUnreadable} {
		if !outcomes[reason] {
			t.Errorf("nothing was %s among %v", reason, outcomes)
		}
	}
	kept := records(t, srv)
	if len(kept) == 0 {
		t.Error("there are no records to look at")
	}
	for _, rec := range kept {
		note(fmt.Sprintf("%+v", rec))
		note(string(rec.CSR))
	}
	mu.Lock()
	defer mu.Unlock()
	if events == 0 || !strings.Contains(seen.String(), subject) {
		t.Error("there are no logs to look at")
	}
	for _, line := range strings.Split(seen.String(), "\n") {
		if strings.Contains(line, canary) {
			t.Errorf("the challenge shows: %s", line)
		}
	}
}

type writerFunc func(b []byte)

func (f writerFunc) Write(b []byte) (int, error) {
	f(b)
	return len(b), nil
}

var _ io.Writer = writerFunc(nil)

// TestKeyWork counts what a message costs the private keys: nothing is unwrapped before all that is
// cheaper has been checked, and nothing twice.
func TestKeyWork(t *testing.T) {
	t.Parallel()
	var unwraps, signs, issues atomic.Int32
	ca := newCA(t)
	ra := newRA(t, ca)
	ra.Key = sceptest.Key{Signer: ra.Key, On: func(op string) error {
		if op == "Unwrap" {
			unwraps.Add(1)
		} else {
			signs.Add(1)
		}
		return nil
	}}
	ca.Key = sceptest.Key{Signer: ca.Key, On: func(string) error { issues.Add(1); return nil }}
	srv := newServer(t, scep.Config{CA: ca, RA: ra})
	stranger := newCA(t, sceptest.RSA(5)).Certificate()
	for _, tt := range []struct {
		name                  string
		change                bend
		unwraps, signs, issue int32
	}{
		{"good", func(*sceptest.Message) {}, 1, 1, 1},
		{"malformed", func(m *sceptest.Message) { m.NoSignedAttrs = true }, 0, 0, 0},
		{"no transaction ID", attributes(sceptest.Without(sceptest.OIDTransactionID)), 0, 0, 0},
		{"signature", func(m *sceptest.Message) { m.Signature = flip }, 0, 1, 0},
		{"message type", func(m *sceptest.Message) { m.Type = "18" }, 0, 1, 0},
		{"renewal off", func(m *sceptest.Message) { m.Type = sceptest.TypeRenewalReq }, 0, 1, 0},
		{"cipher", cipher(sceptest.SingleDES), 0, 1, 0},
		{"digest", digest(crypto.SHA1), 0, 1, 0},
		{"stranger", func(m *sceptest.Message) { m.Envelope.Recipients[0].Certificate = stranger }, 0, 1, 0},
		{"60 times to us", func(m *sceptest.Message) { m.Envelope.Recipients = manyRecipients(m, 60) }, 1, 1, 1},
		{"60 times to us, all broken", func(m *sceptest.Message) {
			m.Envelope.Recipients[0].Key = sceptest.Nonce(16)
			m.Envelope.Recipients = manyRecipients(m, 60)
		}, 1, 1, 0},
		{"longer than the modulus", envelopeBreaks["RSA long"], 1, 1, 0},
		{"above the modulus", envelopeBreaks["RSA above modulus"], 1, 1, 0},
		{"challenge", resign(func(c *sceptest.CSR) { c.Challenge = "wrong" }), 1, 1, 0},
	} {
		d := newConformer(srv)
		m := d.PKCSReq(t)
		tt.change(m)
		unwraps.Store(0)
		signs.Store(0)
		issues.Store(0)
		r := d.Send(t, m)
		if unwraps.Load() != tt.unwraps || signs.Load() != tt.signs || issues.Load() != tt.issue {
			t.Errorf("%s: %d unwrapped, %d replies signed, %d certificates signed: answer is %v", tt.name, unwraps.Load(), signs.Load(), issues.Load(), r)
		}
	}
}
