package scep_test

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// waiting makes a handler that holds every request back, and one request that waits.
func waiting(t *testing.T, change func(c *scep.Config)) (h *scep.Handler, s *depot.Memory, d *device, ra *x509.Certificate, id scep.ID) {
	t.Helper()
	ca := sceptest.NewCA(t)
	s = &depot.Memory{}
	c := scep.Config{CA: ca, Depot: s, Challenge: sceptest.Pend("x"), Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&c)
	}
	h, err := scep.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ra = ca.Certificate()
	d = newDevice(t, sceptest.RSA(1), "waiting", "x")
	if a := d.send(t, h, d.pkcsReq(t, ra), ra); a.status != "3" {
		t.Fatalf("%v, want PENDING", a)
	}
	return h, s, d, ra, only(t, s).ID
}

func only(t *testing.T, s scep.Lister) *scep.Record {
	t.Helper()
	all, err := s.List(context.Background(), scep.Query{})
	if err != nil || len(all) != 1 {
		t.Fatalf("%d records, %v; want 1", len(all), err)
	}
	return all[0]
}

func TestApprove(t *testing.T) {
	h, s, d, ra, id := waiting(t, nil)
	ctx := context.Background()
	if rec := only(t, s); rec.State != scep.Pending || rec.Serial != nil || rec.Issuer != nil {
		t.Errorf("while waiting: %+v", rec)
	}
	for range 2 { // polls, and repeats the request as some clients do
		if a := d.send(t, h, d.certPoll(t, ra), ra); a.status != "3" {
			t.Errorf("%v, want PENDING", a)
		}
		if a := d.send(t, h, d.pkcsReq(t, ra), ra); a.status != "3" {
			t.Errorf("%v, want PENDING", a)
		}
	}
	certs := make([]*x509.Certificate, 8)
	var wg sync.WaitGroup
	for i := range certs {
		wg.Go(func() {
			cert, err := h.Approve(ctx, id, scep.Decision{})
			if err != nil {
				t.Error(err)
			}
			certs[i] = cert
		})
	}
	wg.Wait()
	a := d.send(t, h, d.certPoll(t, ra), ra)
	if a.cert == nil {
		t.Fatal(a)
	}
	for _, cert := range certs {
		if !cert.Equal(a.cert) {
			t.Fatal("Approve returned another certificate than the device got")
		}
	}
	if err := h.Deny(ctx, id, nil, scep.Decision{}); err == nil {
		t.Error("an approved request was denied")
	}
	if a := d.send(t, h, d.pkcsReq(t, ra), ra); a.cert == nil || !a.cert.Equal(certs[0]) {
		t.Errorf("the request again: %v", a)
	}
}

func TestDeny(t *testing.T) {
	h, s, d, ra, id := waiting(t, nil)
	ctx := context.Background()
	for range 2 {
		if err := h.Deny(ctx, id, scep.Reject(scep.BadRequest, "not yours"), scep.Decision{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, msg := range [][]byte{d.certPoll(t, ra), d.pkcsReq(t, ra)} {
		if a := d.send(t, h, msg, ra); a.failInfo != "2" || a.text != "not yours" {
			t.Errorf("%v, want the refusal", a)
		}
	}
	var why *scep.Error
	if _, err := h.Approve(ctx, id, scep.Decision{}); !errors.As(err, &why) {
		t.Errorf("approving what was denied: %v", err)
	}
	if rec := only(t, s); rec.State != scep.Denied {
		t.Errorf("state %v", rec.State)
	}
}

func TestApproveUnknown(t *testing.T) {
	h, s, _, _, id := waiting(t, nil)
	ctx := context.Background()
	other, err := scep.New(scep.Config{CA: sceptest.NewCA(t), Depot: s, Challenge: quick("x"), Profile: "other"})
	if err != nil {
		t.Fatal(err)
	}
	missing := scep.ID("0000000000000000000000000000000000000000000000000000000000000000")
	for _, tt := range []struct {
		h  *scep.Handler
		id scep.ID
	}{{h, missing}, {h, "../etc/passwd"}, {h, ""}, {other, id}} {
		if _, err := tt.h.Approve(ctx, tt.id, scep.Decision{}); !errors.Is(err, scep.ErrNotFound) {
			t.Errorf("Approve %q: %v", tt.id, err)
		}
		if err := tt.h.Deny(ctx, tt.id, nil, scep.Decision{}); !errors.Is(err, scep.ErrNotFound) {
			t.Errorf("Deny %q: %v", tt.id, err)
		}
	}
}

// TestApproveWhenCAIsAway approves while the CA cannot sign: the device's poll finishes it.
func TestApproveWhenCAIsAway(t *testing.T) {
	var away atomic.Bool
	away.Store(true)
	gone := errors.New("token is gone")
	h, s, d, ra, id := waiting(t, func(c *scep.Config) {
		ca := c.CA.(*scep.Identity)
		c.RA = ca
		c.CA = sceptest.CA{CA: ca, On: func(op string, _ *x509.Certificate) (bool, error) {
			if op == "Sign" && away.Load() {
				return false, gone
			}
			return false, nil
		}}
	})
	if _, err := h.Approve(context.Background(), id, scep.Decision{}); !errors.Is(err, gone) {
		t.Fatalf("Approve: %v, want what the CA said", err)
	}
	if a := d.send(t, h, d.certPoll(t, ra), ra); a.status != "3" {
		t.Fatalf("%v, want PENDING", a)
	}
	serial := only(t, s).Serial
	away.Store(false)
	if a := d.send(t, h, d.certPoll(t, ra), ra); a.cert == nil || a.cert.SerialNumber.Cmp(serial) != 0 {
		t.Fatalf("%v, want the certificate with serial number %x", a, serial)
	}
}

// TestRetryWindow sends the same bytes later and later.
func TestRetryWindow(t *testing.T) {
	ca := sceptest.NewCA(t)
	var now atomic.Int64
	start := time.Now()
	asked := 0
	h, err := scep.New(scep.Config{
		CA: ca, Depot: &depot.Memory{}, Log: slog.New(slog.DiscardHandler), RetryWindow: time.Hour,
		Challenge: scep.ChallengeFunc(func(context.Context, *scep.Request) error { asked++; return nil }),
		Time:      func() time.Time { return start.Add(time.Duration(now.Load())) },
	})
	if err != nil {
		t.Fatal(err)
	}
	d := newDevice(t, sceptest.RSA(1), "window", "x")
	at := func(after time.Duration, msg []byte) answer {
		now.Store(int64(after))
		return d.send(t, h, msg, ca.Certificate())
	}
	msg := d.pkcsReq(t, ca.Certificate())
	poll := d.certPoll(t, ca.Certificate())
	first := at(0, msg)
	if again := at(59*time.Minute, msg); again.cert == nil || !again.cert.Equal(first.cert) || asked != 1 {
		t.Fatalf("within the window: %v, challenge asked %d times", again, asked)
	}
	if a := at(time.Hour+time.Second, poll); a.failInfo != "2" {
		t.Errorf("poll after the window: %v", a)
	}
	second := at(time.Hour+time.Second, msg)
	if second.cert == nil || second.cert.Equal(first.cert) || asked != 2 {
		t.Fatalf("after the window: %v, challenge asked %d times; want another certificate, judged afresh", second, asked)
	}
	if a := at(2*time.Hour, poll); a.cert == nil || !a.cert.Equal(second.cert) {
		t.Errorf("poll: %v, want the newest", a)
	}
	if third := at(3*time.Hour, msg); third.cert == nil || third.cert.Equal(first.cert) || third.cert.Equal(second.cert) {
		t.Errorf("the third time: %v", third)
	}
}

// confirmer is a Challenge with the last word.
type confirmer struct {
	scep.Challenge
	confirm func(*scep.Request, *x509.Certificate) error
}

func (c confirmer) Confirm(_ context.Context, req *scep.Request, cert *x509.Certificate) error {
	return c.confirm(req, cert)
}

func TestConfirm(t *testing.T) {
	ca := sceptest.NewCA(t)
	for _, tt := range []struct {
		name  string
		says  []error // of each call
		want  []string
		state scep.State
		calls int
	}{
		{"yes", []error{nil}, []string{"0", "0"}, scep.Issued, 1},
		{"no", []error{scep.Reject(scep.BadRequest, "unknown device")}, []string{"2", "2"}, scep.Revoked, 1},
		{"cannot tell, then yes", []error{errors.New("timeout"), errors.New("timeout"), nil}, []string{"", "", "0", "0"}, scep.Issued, 3},
		{"cannot tell, then no", []error{errors.New("timeout"), scep.Reject(scep.BadRequest, "no")}, []string{"", "2", "2"}, scep.Revoked, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &depot.Memory{}
			calls := 0
			h, err := scep.New(scep.Config{CA: ca, Depot: s, Log: slog.New(slog.DiscardHandler), Challenge: confirmer{quick("x"), func(req *scep.Request, cert *x509.Certificate) error {
				if req.CSR.Subject.CommonName != "confirm" || cert.Subject.CommonName != "confirm" {
					t.Errorf("asked to confirm %v for %v", cert.Subject, req.CSR.Subject)
				}
				calls++
				return tt.says[calls-1]
			}}})
			if err != nil {
				t.Fatal(err)
			}
			d := newDevice(t, sceptest.RSA(1), "confirm", "x")
			for i, want := range tt.want {
				msg := d.pkcsReq(t, ca.Certificate())
				if i%2 == 1 {
					msg = d.certPoll(t, ca.Certificate())
				}
				if a := d.send(t, h, msg, ca.Certificate()); a.status != want {
					t.Fatalf("answer %d: %v, want status %q", i, a, want)
				}
			}
			if rec := only(t, s); rec.State != tt.state || rec.Unconfirmed || calls != tt.calls {
				t.Errorf("state %v, unconfirmed %v, %d calls; want %v after %d", rec.State, rec.Unconfirmed, calls, tt.state, tt.calls)
			}
		})
	}
}

// TestApproveClock sets the clock back while a request is approved that has just expired: there is
// no certificate, and that is told.
func TestApproveClock(t *testing.T) {
	var ahead atomic.Bool
	h, _, d, ra, id := waiting(t, func(c *scep.Config) {
		c.Time = func() time.Time {
			if ahead.CompareAndSwap(true, false) {
				return time.Now().Add(31 * 24 * time.Hour)
			}
			return time.Now()
		}
	})
	ahead.Store(true)
	if cert, err := h.Approve(t.Context(), id, scep.Decision{}); cert != nil || !errors.Is(err, scep.ErrPending) {
		t.Errorf("%v, %v; want ErrPending", cert, err)
	}
	if a := d.send(t, h, d.certPoll(t, ra), ra); a.status != "3" {
		t.Errorf("%v, want PENDING", a)
	}
}
