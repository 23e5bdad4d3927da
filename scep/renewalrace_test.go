package scep_test

import (
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

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
