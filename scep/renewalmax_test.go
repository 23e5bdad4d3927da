package scep_test

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// renewing enrols a device and returns it with its certificate as the signer.
func renewing(t *testing.T, h *scep.Handler, ra *x509.Certificate) *device {
	t.Helper()
	d := newDevice(t, sceptest.RSA(1), "renewing", "x")
	a := d.send(t, h, d.pkcsReq(t, ra), ra)
	if a.cert == nil {
		t.Fatal(a)
	}
	old := *d
	old.signer = a.cert
	old.csr = newCSR(t, sceptest.RSA(2), "renewing", "")
	return &old
}

// TestRenewalMax renews with one certificate until that is enough.
func TestRenewalMax(t *testing.T) {
	for _, tt := range []struct{ max, want, noted int }{{0, 10, 10}, {1, 1, 1}, {-1, 15, 0}} {
		h, s, ra := serve(t, func(c *scep.Config) { c.Renewal = scep.Renewal{On: true, Anytime: true, Max: tt.max} })
		d := renewing(t, h, ra)
		first := only(t, s)
		made := 0
		for i := range 15 {
			d.id = fmt.Sprint("renewal ", i)
			a := d.send(t, h, d.message(t, "17", d.csr, ra), ra)
			if a.cert == nil {
				break
			}
			if again := d.send(t, h, d.message(t, "17", d.csr, ra), ra); again.cert == nil || !again.cert.Equal(a.cert) {
				t.Fatalf("the same renewal again: %v", again)
			}
			made++
		}
		rec, err := s.Get(t.Context(), first.ID)
		if err != nil || made != tt.want || len(rec.RenewedBy) != tt.noted {
			t.Errorf("Max %d: renewed %d times, noted %d, want %d and %d (%v)", tt.max, made, len(rec.RenewedBy), tt.want, tt.noted, err)
		}
	}
}

// TestRenewalMaxCountsCertificates asks for renewals while the CA is away: what did not come to a
// certificate gives way.
func TestRenewalMaxCountsCertificates(t *testing.T) {
	var away atomic.Bool
	h, _, ra := serve(t, func(c *scep.Config) {
		ca := c.CA.(*scep.Identity)
		c.RA, c.Renewal = ca, scep.Renewal{On: true, Anytime: true, Max: 2}
		c.CA = sceptest.CA{CA: ca, On: func(op string, _ *x509.Certificate) (bool, error) {
			if op == "Sign" && away.Load() {
				return false, errors.New("token is gone")
			}
			return false, nil
		}}
	})
	d := renewing(t, h, ra)
	away.Store(true)
	for i := range 5 {
		d.id = fmt.Sprint("away ", i)
		if a := d.send(t, h, d.message(t, "17", d.csr, ra), ra); a.status != "3" {
			t.Fatal(a)
		}
	}
	away.Store(false)
	issued := 0
	for i := range 5 { // the first ones had to give way
		d.id = fmt.Sprint("away ", i)
		if a := d.send(t, h, d.certPoll(t, ra), ra); a.cert != nil {
			issued++
		} else if a.text != "another renewal took its place" {
			t.Error(a)
		}
	}
	if issued != 2 {
		t.Errorf("%d renewals came to a certificate, want 2", issued)
	}
	d.id = "one more"
	if a := d.send(t, h, d.message(t, "17", d.csr, ra), ra); a.failInfo != "2" {
		t.Errorf("the third: %v", a)
	}
}

// TestRenewalMaxAtOnce has a renewal overtaken just before it is written down, by one that takes its
// place: the certificate is renewed as often as it may be, and not once more.
func TestRenewalMaxAtOnce(t *testing.T) {
	var rival func()
	records := &depot.Memory{}
	h, _, ra := serve(t, func(c *scep.Config) {
		c.Renewal = scep.Renewal{On: true, Anytime: true, Max: 1}
		c.Depot = sceptest.Depot{Depot: records, On: func(op string, rec *scep.Record) (bool, error) {
			if op == "Create" && rec.TransactionID == "overtaken" && rival != nil {
				overtake := rival
				rival = nil
				overtake()
			}
			return false, nil
		}}
	})
	first := renewing(t, h, ra)
	first.id = "overtaken"
	second := *first
	second.id, second.csr = "rival", newCSR(t, sceptest.RSA(3), "renewing", "")
	var won answer
	rival = func() { won = second.send(t, h, second.message(t, "17", second.csr, ra), ra) }
	msg := first.message(t, "17", first.csr, ra)
	if lost := first.send(t, h, msg, ra); won.cert == nil || lost.text != "another renewal took its place" {
		t.Fatalf("the rival: %v; the one that was overtaken: %v", won, lost)
	}
	if again := first.send(t, h, msg, ra); again.cert != nil {
		t.Errorf("sent again: %v", again)
	}
	if all, err := records.List(t.Context(), scep.Query{State: scep.Issued}); err != nil || len(all) != 2 {
		t.Errorf("%d certificates, %v; want the first and one renewal", len(all), err)
	}
}

// TestRenewalMaxLate has a renewal find that another is not written down, and take its place only
// after that has been written down and signed: it comes too late.
func TestRenewalMaxLate(t *testing.T) {
	records := &depot.Memory{}
	var started bool
	var slow scep.ID
	var rival func()
	taking, done := make(chan struct{}), make(chan struct{})
	h, _, ra := serve(t, func(c *scep.Config) {
		c.Renewal = scep.Renewal{On: true, Anytime: true, Max: 1}
		c.Depot = sceptest.Depot{Depot: records, On: func(op string, rec *scep.Record) (bool, error) {
			switch {
			case op == "Create" && rec.TransactionID == "slow" && !started:
				started, slow = true, rec.ID
				go rival()
				select {
				case <-taking:
				case <-time.After(10 * time.Second):
					t.Error("the rival does not take the place")
				}
			case op == "Update" && started && len(rec.RenewedBy) == 1 && rec.RenewedBy[0] != slow:
				close(taking)
				<-done
			}
			return false, nil
		}}
	})
	first := renewing(t, h, ra)
	first.id = "slow"
	second := *first
	second.id, second.csr = "rival", newCSR(t, sceptest.RSA(3), "renewing", "")
	msg := second.message(t, "17", second.csr, ra)
	answered := make(chan answer, 1)
	rival = func() { answered <- second.send(t, h, msg, ra) }
	if won := first.send(t, h, first.message(t, "17", first.csr, ra), ra); won.cert == nil {
		t.Error(won)
	}
	close(done)
	if late := <-answered; late.text != "the certificate that signed the message has been renewed often enough" {
		t.Errorf("the one that is late: %v", late)
	}
	if all, err := records.List(t.Context(), scep.Query{State: scep.Issued}); err != nil || len(all) != 2 {
		t.Errorf("%d certificates, %v; want the first and one renewal", len(all), err)
	}
}

// TestRenewalMaxOneChallenge has two renewals with one challenge, of a certificate that may be
// renewed once more. The second takes the place of the first, which is not written down yet, and
// then finds the challenge spent by it: one of them comes to a certificate, not none.
func TestRenewalMaxOneChallenge(t *testing.T) {
	for _, st := range stores {
		t.Run(st.name, func(t *testing.T) {
			t.Parallel()
			s := &sceptest.Store{Spender: st.open(t).(sceptest.Spender)}
			taking, taken, proceed := make(chan struct{}), make(chan struct{}), make(chan struct{})
			wait := func(c chan struct{}, what string) {
				select {
				case <-c:
				case <-time.After(20 * time.Second):
					t.Errorf("%s does not come", what)
				}
			}
			var once [2]sync.Once
			s.On = func(op string, rec *scep.Record) (bool, error) {
				switch {
				case op != "Create":
				case rec.TransactionID == "first":
					once[0].Do(func() {
						close(taking)
						wait(taken, "the second")
					})
				case rec.TransactionID == "second":
					once[1].Do(func() {
						close(taken)
						wait(proceed, "the answer to the first")
					})
				}
				return false, nil
			}
			ca := sceptest.NewCA(t)
			h, err := scep.New(scep.Config{CA: ca, Depot: s, Challenge: &challenge.OneTime{Store: s}, Log: slog.New(slog.DiscardHandler),
				Renewal: scep.Renewal{On: true, Anytime: true, Max: 1, Challenge: true}})
			if err != nil {
				t.Fatal(err)
			}
			ra := ca.Certificate()
			secret, _ := mint(t, s)
			d := newDevice(t, sceptest.RSA(1), "renewing", secret)
			a := d.send(t, h, d.pkcsReq(t, ra), ra)
			if a.cert == nil {
				t.Fatal(a)
			}
			secret, hash := mint(t, s)
			renewal := func(id string, key int) (*device, []byte) {
				r := *d
				r.signer, r.id, r.csr = a.cert, id, newCSR(t, sceptest.RSA(key), "renewing", secret)
				return &r, r.message(t, "17", r.csr, ra)
			}
			one, first := renewal("first", 2)
			two, second := renewal("second", 3)
			var won, lost answer
			var wg sync.WaitGroup
			wg.Go(func() {
				won = one.send(t, h, first, ra)
				close(proceed)
			})
			wg.Go(func() {
				wait(taking, "the first")
				lost = two.send(t, h, second, ra)
			})
			wg.Wait()
			if won.cert == nil || lost.failInfo != "2" || lost.text != "challenge refused" {
				t.Fatalf("the first: %v; the second: %v", won, lost)
			}
			var again []*x509.Certificate
			for range 2 {
				again = append(again, one.send(t, h, first, ra).cert)
			}
			if again[0] == nil || !again[0].Equal(won.cert) || !again[0].Equal(again[1]) {
				t.Error("sent again, the first gets another certificate, or none")
			}
			all, err := s.Spender.(scep.Lister).List(t.Context(), scep.Query{State: scep.Issued})
			if err != nil || len(all) != 2 {
				t.Errorf("%d certificates, %v; want the first and one renewal", len(all), err)
			}
			c, err := s.GetChallenge(t.Context(), hash)
			if err != nil {
				t.Fatal(err)
			}
			if rec, err := s.Get(t.Context(), c.SpentBy); err != nil || rec.State != scep.Issued || rec.TransactionID != "first" {
				t.Errorf("the challenge was spent by %v, %v", rec, err)
			}
		})
	}
}
