package scep_test

import (
	"testing"

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
