package scep_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// clock is one that a test moves on.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time                   { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) moveOn(d time.Duration)           { c.ahead.Add(int64(d)) }
func (c *clock) before(d time.Duration) time.Time { return c.now().Add(-d) }

// prune prunes until nothing is left that q selects, and wants this many.
func prune(t *testing.T, p scep.Pruner, q scep.PruneQuery, want int) {
	t.Helper()
	n, err := p.Prune(t.Context(), q)
	if err != nil || n != want {
		t.Errorf("%d pruned, %v; want %d", n, err, want)
	}
}

// TestPruneRenewed forgets a certificate whose renewal has not arrived: the device that asks again
// gets that, not an error for ever.
func TestPruneRenewed(t *testing.T) {
	var c clock
	memory := new(depot.Memory)
	srv := sceptest.NewServer(t, scep.Config{
		Depot: memory, Policy: &scep.Profile{Validity: time.Hour}, Renewal: scep.Renewal{On: true, Anytime: true}, Time: c.now,
	})
	d := newConformer(srv)
	old := d.Enroll(t)
	c.moveOn(59 * time.Minute)
	r := renewal(d, old)
	m := r.RenewalReq(t)
	first := r.Send(t, m)
	wantOK(t, first) // and is lost

	c.moveOn(2 * time.Minute)
	prune(t, memory, scep.PruneQuery{Expired: c.now()}, 1)
	wantCert(t, r.Send(t, m.Again()), first.Certificate)
	wantCert(t, r.Poll(t), first.Certificate)

	// What is forgotten renews nothing any more.
	other := renewal(d, old)
	other.TransactionID += ", other"
	wantFail(t, other.Send(t, other.RenewalReq(t)), scep.BadRequest, "the certificate that signed the message was not issued here")
}

// TestPruneOneTime forgets what a one-time challenge was spent for. The message that spent it is
// not good for another certificate, whoever kept it: the device, or somebody who listened.
func TestPruneOneTime(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, h *scep.Handler, id scep.ID){
		"expired": func(*testing.T, *scep.Handler, scep.ID) {},
		"revoked": func(t *testing.T, h *scep.Handler, id scep.ID) {
			if err := h.Revoke(t.Context(), id, scep.KeyCompromise, scep.Decision{}); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			var c clock
			memory := new(depot.Memory)
			secrets := &challenge.OneTime{Store: memory, Time: c.now}
			srv := sceptest.NewServer(t, scep.Config{Depot: memory, Challenge: secrets, Policy: &scep.Profile{Validity: 24 * time.Hour}, Time: c.now})
			secret, err := secrets.New(context.Background(), challenge.Binding{})
			if err != nil {
				t.Fatal(err)
			}
			d := newConformer(srv)
			d.Challenge = secret.Reveal()
			m := d.PKCSReq(t)
			first := d.Send(t, m)
			wantOK(t, first)
			end(t, srv.Handler, recordOf(t, srv, d.TransactionID).ID)
			c.moveOn(3 * 24 * time.Hour)
			prune(t, memory, scep.PruneQuery{Expired: c.before(24 * time.Hour), Denied: c.before(24 * time.Hour)}, 1)
			wantFail(t, d.Send(t, m.Again()), scep.BadRequest, "")
			wantNothingIssued(t, srv)
		})
	}
}

// TestPruneDuringRenewal forgets a certificate while its renewal is under way: that is refused, and
// not asked to come back for ever.
func TestPruneDuringRenewal(t *testing.T) {
	for name, max := range map[string]int{"Update": 10, "Create": 10, "Create, any number": -1} {
		t.Run(name, func(t *testing.T) {
			var c clock
			memory := new(depot.Memory)
			var armed atomic.Bool
			srv := sceptest.NewServer(t, scep.Config{
				Depot: sceptest.Depot{Depot: memory, On: func(op string, _ *scep.Record) (bool, error) {
					if strings.HasPrefix(name, op) && armed.Swap(false) {
						prune(t, memory, scep.PruneQuery{Expired: c.now()}, 1)
					}
					return true, nil
				}},
				Policy: &scep.Profile{Validity: time.Hour}, Renewal: scep.Renewal{On: true, Grace: time.Hour, Max: max}, Time: c.now,
			})
			d := newConformer(srv)
			old := d.Enroll(t)
			c.moveOn(61 * time.Minute) // in its grace, which the pruning does not heed
			r := renewal(d, old)
			m := r.RenewalReq(t)
			armed.Store(true)
			first := r.Send(t, m)
			if armed.Load() || first.StatusCode != 503 && first.Status != sceptest.StatusFailure {
				t.Errorf("answer is %v", first)
			}
			wantFail(t, r.Send(t, m.Again()), scep.BadRequest, "the certificate that signed the message was not issued here")
		})
	}
}
