package scep_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// serve makes a handler over a fresh depot, that admits "x", and the certificate it answers with.
func serve(t *testing.T, change func(c *scep.Config)) (*scep.Handler, *depot.Memory, *x509.Certificate) {
	t.Helper()
	ca := sceptest.NewCA(t)
	s := &depot.Memory{}
	c := scep.Config{CA: ca, Depot: s, Challenge: quick("x"), Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&c)
	}
	h, err := scep.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return h, s, ca.Certificate()
}

func newChallenge(t testing.TB, o *challenge.OneTime) string {
	t.Helper()
	secret, err := o.New(context.Background(), challenge.Binding{})
	if err != nil {
		t.Fatal(err)
	}
	return secret.Reveal()
}

// TestNoOracle sends contents that are what the message type asks for and contents that are
// garbage: whoever wants to know what is in other people's messages must not see which it was.
func TestNoOracle(t *testing.T) {
	h, _, ra := serve(t, nil)
	d := newDevice(t, sceptest.RSA(1), "oracle", "x")
	names := sequence(t, ra.RawSubject, d.signer.RawSubject)
	serial := sequence(t, ra.RawSubject, []byte("\x02\x01\x07"))
	contents := [][]byte{names, serial, d.csr, []byte("garbage"), {}, bytes.Repeat([]byte{0x30}, 500)}
	for _, when := range []string{"unknown", "known"} {
		for _, kind := range []string{"20", "21"} {
			var first answer
			for i, content := range contents {
				a := d.send(t, h, d.message(t, kind, content, ra), ra)
				a.cert = nil // the device's own, after it has enrolled
				if i == 0 {
					first = a
				} else if a != first {
					t.Errorf("%s transaction, type %s: content %d is answered %v, and content 0 %v", when, kind, i, a, first)
				}
			}
		}
		if a := d.send(t, h, d.pkcsReq(t, ra), ra); a.cert == nil {
			t.Fatal(a)
		}
	}
}

// TestRevokedStaysRevoked sends a message again, long after its certificate was revoked.
func TestRevokedStaysRevoked(t *testing.T) {
	var later atomic.Int64
	h, s, ra := serve(t, func(c *scep.Config) {
		c.Time = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	})
	d := newDevice(t, sceptest.RSA(1), "revoked", "x")
	msg := d.pkcsReq(t, ra)
	if a := d.send(t, h, msg, ra); a.cert == nil {
		t.Fatal(a)
	}
	rec := only(t, s)
	rec.State, rec.Revoked = scep.Revoked, time.Now()
	if err := s.Update(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	for _, after := range []time.Duration{0, 25 * time.Hour, 1000 * time.Hour} {
		later.Store(int64(after))
		if a := d.send(t, h, msg, ra); a.failInfo != "2" || a.text != "the certificate has been revoked" {
			t.Errorf("after %v: %v", after, a)
		}
	}
}

// TestSecretAtRest looks for the challenge in what is kept, told and printed.
func TestSecretAtRest(t *testing.T) {
	const secret = "planted-7f31c0de"
	var told []string
	tell := func(_ context.Context, e scep.Event) {
		text, err := json.Marshal(e)
		if err != nil {
			t.Error(err)
		}
		told = append(told, string(text), fmt.Sprintf("%+v %#v %+v", e, e, e.Request))
		if e.Request != nil && e.Request.Secret.Reveal() != "" {
			t.Error("an event reveals the challenge")
		}
	}
	var log bytes.Buffer
	h, s, ra := serve(t, func(c *scep.Config) {
		c.Challenge = challenge.Static(secret)
		c.Events = scep.Events{Issued: tell, Repeated: tell, Waiting: tell, Refused: tell, Failed: tell}
		c.Log = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		told = append(told, fmt.Sprintf("%+v %#v", *c, *c))
	})
	d := newDevice(t, sceptest.RSA(1), "secret", secret)
	for range 2 {
		if a := d.send(t, h, d.pkcsReq(t, ra), ra); a.cert == nil {
			t.Fatal(a)
		}
	}
	bad := newDevice(t, sceptest.RSA(2), "secret", secret+"!")
	if a := bad.send(t, h, bad.pkcsReq(t, ra), ra); a.failInfo != "2" {
		t.Fatal(a)
	}
	rec := only(t, s)
	if len(rec.CSR) != len(d.csr) {
		t.Errorf("the CSR in the record has %d bytes, want %d", len(rec.CSR), len(d.csr))
	}
	if stars := bytes.Repeat([]byte{'*'}, 256); !bytes.HasSuffix(rec.CSR, stars) {
		t.Error("the CSR in the record still has its signature, by which guesses can be tried")
	}
	told = append(told, log.String(), fmt.Sprintf("%s %+v", rec.CSR, rec))
	if len(told) < 6 {
		t.Fatalf("%d texts to look at; the test needs more", len(told))
	}
	encoded, _ := json.Marshal([]byte(secret))
	for _, text := range told {
		if strings.Contains(text, secret) || strings.Contains(text, string(encoded[1:12])) {
			t.Errorf("the challenge is in %.300s", text)
		}
	}
}

// TestIssuedIsTold counts Issued against what is in the depot, however it got there.
func TestIssuedIsTold(t *testing.T) {
	var issued atomic.Int64
	count := func(c *scep.Config) {
		c.Events.Issued = func(_ context.Context, e scep.Event) {
			if e.Certificate == nil || e.ID == "" || e.Request == nil {
				t.Errorf("told of %+v", e)
			}
			issued.Add(1)
		}
	}
	t.Run("by a request", func(t *testing.T) {
		issued.Store(0)
		h, _, ra := serve(t, count)
		d := newDevice(t, sceptest.RSA(1), "told", "x")
		for range 2 {
			d.send(t, h, d.pkcsReq(t, ra), ra)
		}
		if n := issued.Load(); n != 1 {
			t.Errorf("told %d times", n)
		}
	})
	t.Run("by approval", func(t *testing.T) {
		issued.Store(0)
		h, _, d, ra, id := waiting(t, count)
		if _, err := h.Approve(t.Context(), id, scep.Decision{}); err != nil {
			t.Fatal(err)
		}
		d.send(t, h, d.certPoll(t, ra), ra)
		if n := issued.Load(); n != 1 {
			t.Errorf("told %d times", n)
		}
	})
	t.Run("withheld", func(t *testing.T) {
		issued.Store(0)
		h, _, ra := serve(t, func(c *scep.Config) {
			count(c)
			c.Challenge = confirmer{quick("x"), func(*scep.Request, *x509.Certificate) error { return errors.New("timeout") }}
		})
		d := newDevice(t, sceptest.RSA(1), "told", "x")
		if a := d.send(t, h, d.pkcsReq(t, ra), ra); a.http != 503 || issued.Load() != 1 {
			t.Errorf("%v, told %d times", a, issued.Load())
		}
	})
}

// TestStaleAndGone has another worker win, and the depot fail when it is read again.
func TestStaleAndGone(t *testing.T) {
	var gone atomic.Bool
	h, _, ra := serve(t, func(c *scep.Config) {
		c.Depot = sceptest.Depot{Depot: c.Depot, On: func(op string, _ *scep.Record) (bool, error) {
			switch {
			case op == "Update":
				gone.Store(true)
				return false, scep.ErrStale
			case op == "Get" && gone.Load():
				return false, errors.New("failover")
			}
			return false, nil
		}}
	})
	d := newDevice(t, sceptest.RSA(1), "stale", "x")
	if a := d.send(t, h, d.pkcsReq(t, ra), ra); a.http != 503 {
		t.Errorf("%v, want 503", a)
	}
}

// TestCAReplaced finishes with a new CA what was written down for an old one.
func TestCAReplaced(t *testing.T) {
	old := sceptest.NewRA(t, sceptest.NewCA(t))
	ra := old.Certificate()
	h, s, _ := serve(t, func(c *scep.Config) {
		c.RA = old
		c.CA = sceptest.CA{CA: c.CA, On: func(op string, _ *x509.Certificate) (bool, error) {
			if op == "Sign" {
				return false, errors.New("token is gone")
			}
			return false, nil
		}}
	})
	d := newDevice(t, sceptest.RSA(1), "replaced", "x")
	if a := d.send(t, h, d.pkcsReq(t, ra), ra); a.status != "3" {
		t.Fatal(a)
	}
	next := sceptest.NewCA(t, sceptest.P256())
	h2, err := scep.New(scep.Config{CA: next, RA: sceptest.NewRA(t, next), PastRA: []*scep.Identity{old},
		Depot: s, Challenge: quick("x"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	a := d.send(t, h2, d.certPoll(t, ra), ra)
	if a.cert == nil || a.cert.CheckSignatureFrom(next.Certificate()) != nil {
		t.Fatalf("%v, want a certificate of the new CA", a)
	}
	if rec := only(t, s); string(rec.Certificate) != string(a.cert.Raw) || rec.Serial.Cmp(a.cert.SerialNumber) != 0 {
		t.Error("the record has another certificate")
	}
}

// TestCAKeepsToTemplate has CAs that sign something else than they are asked to.
func TestCAKeepsToTemplate(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(tmpl *x509.Certificate)
		good   bool
	}{
		{"nothing", func(*x509.Certificate) {}, true},
		{"another subject", func(tmpl *x509.Certificate) { tmpl.RawSubject = nil; tmpl.Subject.CommonName = "admin" }, false},
		{"another end", func(tmpl *x509.Certificate) { tmpl.NotAfter = tmpl.NotAfter.Add(time.Hour) }, false},
		{"fewer extensions", func(tmpl *x509.Certificate) { tmpl.ExtraExtensions, tmpl.ExtKeyUsage = nil, nil }, false},
		{"another serial number", func(tmpl *x509.Certificate) { tmpl.SerialNumber = big.NewInt(7) }, false},
	} {
		signed, told := 0, 0
		h, s, ra := serve(t, func(c *scep.Config) {
			ca := c.CA.(*scep.Identity)
			c.RA = ca
			c.Events.Revoked = func(_ context.Context, e scep.Event) {
				if told++; e.Operation != "Shelve" || e.Certificate == nil {
					t.Errorf("%s: told %+v", tt.name, e)
				}
			}
			c.CA = sceptest.CA{CA: ca, On: func(op string, tmpl *x509.Certificate) (bool, error) {
				if op == "Sign" {
					signed++
					tt.change(tmpl)
				}
				return false, nil
			}}
		})
		d := newDevice(t, sceptest.RSA(1), "template", "x")
		for range 3 {
			if a := d.send(t, h, d.pkcsReq(t, ra), ra); tt.good != (a.cert != nil) {
				t.Errorf("%s: %v", tt.name, a)
			}
		}
		if signed != 1 || tt.good != (told == 0) || told > 1 {
			t.Errorf("%s: the CA signed %d times, and a revocation is told %d times", tt.name, signed, told)
		}
		if rec := only(t, s); !tt.good && (rec.State != scep.Revoked || len(rec.Certificate) == 0) {
			t.Errorf("%s: the record is %v, with %d bytes of certificate", tt.name, rec.State, len(rec.Certificate))
		}
	}
}

// TestTemplateThatHasEnded has a policy that makes no sense.
func TestTemplateThatHasEnded(t *testing.T) {
	h, s, ra := serve(t, func(c *scep.Config) {
		c.Policy = &scep.Profile{Change: func(_ context.Context, _ *scep.Request, tmpl *x509.Certificate) error {
			tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
			return nil
		}}
	})
	d := newDevice(t, sceptest.RSA(1), "ended", "x")
	if a := d.send(t, h, d.pkcsReq(t, ra), ra); a.http != 503 {
		t.Error(a)
	}
	if all, err := s.List(t.Context(), scep.Query{}); err != nil || len(all) != 0 {
		t.Errorf("%d records, %v", len(all), err)
	}
}

// TestCSRWithoutAttributes renews with a CSR that leaves them out, as some clients do.
func TestCSRWithoutAttributes(t *testing.T) {
	h, _, ra := serve(t, func(c *scep.Config) { c.Renewal = scep.Renewal{On: true, Anytime: true} })
	d := renewing(t, h, ra)
	d.csr = withoutAttributes(t, d.csr, sceptest.RSA(2))
	if a := d.send(t, h, d.message(t, "17", d.csr, ra), ra); a.cert == nil {
		t.Error(a)
	}
}

// TestRevokedMeanwhile revokes a certificate while its renewal waits for the CA.
func TestRevokedMeanwhile(t *testing.T) {
	var away atomic.Bool
	h, s, ra := serve(t, func(c *scep.Config) {
		ca := c.CA.(*scep.Identity)
		c.RA, c.Renewal = ca, scep.Renewal{On: true, Anytime: true}
		c.CA = sceptest.CA{CA: ca, On: func(op string, _ *x509.Certificate) (bool, error) {
			if op == "Sign" && away.Load() {
				return false, errors.New("token is gone")
			}
			return false, nil
		}}
	})
	d := renewing(t, h, ra)
	first := only(t, s)
	away.Store(true)
	d.id = "renewal"
	if a := d.send(t, h, d.message(t, "17", d.csr, ra), ra); a.status != "3" {
		t.Fatal(a)
	}
	rec, err := s.Get(t.Context(), first.ID)
	if err != nil {
		t.Fatal(err)
	}
	rec.State, rec.Revoked = scep.Revoked, time.Now()
	if err := s.Update(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	away.Store(false)
	for range 2 {
		if a := d.send(t, h, d.certPoll(t, ra), ra); a.failInfo != "2" {
			t.Errorf("the renewal of a revoked certificate: %v", a)
		}
	}
}

// TestProfileRefusesFirst asks for what the profile never grants: that spends no challenge.
func TestProfileRefusesFirst(t *testing.T) {
	s := &depot.Memory{}
	oneTime := &challenge.OneTime{Store: s}
	h, _, ra := serve(t, func(c *scep.Config) { c.Depot, c.Challenge = s, oneTime })
	secret := newChallenge(t, oneTime)
	small := newDevice(t, sceptest.RSA1024(), "small", secret)
	if a := small.send(t, h, small.pkcsReq(t, ra), ra); a.failInfo != "0" {
		t.Fatal(a)
	}
	large := newDevice(t, sceptest.RSA(1), "large", secret)
	if a := large.send(t, h, large.pkcsReq(t, ra), ra); a.cert == nil {
		t.Errorf("the challenge was spent by a request that was refused: %v", a)
	}
}

// gigabyte is a body of zeros that counts what was read of it.
type gigabyte struct {
	left, read int64
}

func (e *gigabyte) Read(p []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), e.left)
	e.left, e.read = e.left-n, e.read+n
	return int(n), nil
}

// TestHugeBody sends a gigabyte, with and without saying so: no more of it is read than the limit.
func TestHugeBody(t *testing.T) {
	h, _, _ := serve(t, nil)
	for _, length := range []int64{1 << 30, -1} {
		body := &gigabyte{left: 1 << 30}
		r := httptest.NewRequest("POST", "/scep?operation=PKIOperation", body)
		r.ContentLength = length
		w := httptest.NewRecorder()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		h.ServeHTTP(w, r)
		runtime.ReadMemStats(&after)
		if w.Code != 413 || body.read > 1<<17 {
			t.Errorf("length %d: HTTP %d after %d bytes", length, w.Code, body.read)
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > 1<<20 {
			t.Errorf("length %d: %d bytes were allocated", length, used)
		}
	}
}
