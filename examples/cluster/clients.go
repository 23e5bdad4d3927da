package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/scepclient"
)

// A fleet is many devices that never give up.
type fleet struct {
	client     scepclient.Client
	challenges *challenge.OneTime
	ledger     *ledger
	keys       []*rsa.PrivateKey
	devices    int
	forgetful  bool // not where costs are measured
	begun      time.Time
	took       time.Duration // until devices were told that it is enough
	inTime     int64         // certificates until then

	enrolled, renewed, repeated atomic.Int64 // certificates that came; that came again
	polls, again, unavailable   atomic.Int64 // polls; requests that were sent again; answers with 503
	slowest, longest            atomic.Int64 // nanoseconds: an HTTP answer; from asking to having
}

const (
	renewals = 2                      // of each device; then it is replaced by a new one
	hurry    = 300 * time.Millisecond // before asking again. Retry-After says more, for fleets that are larger.
)

// newFleet makes the devices, and the keys that they use: a few for all, because making one takes
// longer than all that the server does.
func newFleet(ctx context.Context, c *cluster, ca *scep.Identity) (*fleet, error) {
	l := newLedger(c.db)
	f := &fleet{ledger: l, devices: c.o.clients, forgetful: c.o.killEvery > 0, challenges: &challenge.OneTime{Store: l, Limit: -1}}
	transport := &http.Transport{MaxIdleConnsPerHost: max(2, c.o.clients), ResponseHeaderTimeout: time.Minute}
	f.client = scepclient.Client{
		URL:          c.service(),
		Fingerprints: []string{scepclient.Fingerprint(ca.Certificate())},
		HTTP:         &http.Client{Transport: timed{f, transport}},
		Retries:      -1, // polls are made by obtain
	}
	f.keys = make([]*rsa.PrivateKey, min(2*f.devices, 8))
	errs := make([]error, len(f.keys))
	var all sync.WaitGroup
	for i := range f.keys {
		all.Go(func() { f.keys[i], errs[i] = rsa.GenerateKey(rand.Reader, 2048) })
	}
	all.Wait()
	return f, errors.Join(append(errs, ctx.Err())...)
}

// A timed transport takes the time of answers.
type timed struct {
	f    *fleet
	next http.RoundTripper
}

func (t timed) RoundTrip(r *http.Request) (*http.Response, error) {
	begun := time.Now()
	res, err := t.next.RoundTrip(r)
	if err == nil {
		raise(&t.f.slowest, time.Since(begun))
		if res.StatusCode == http.StatusServiceUnavailable {
			t.f.unavailable.Add(1)
		}
	}
	return res, err
}

func raise(highest *atomic.Int64, d time.Duration) {
	for {
		old := highest.Load()
		if int64(d) <= old || highest.CompareAndSwap(old, int64(d)) {
			return
		}
	}
}

// run has the devices enrol and renew until enough ends. What they have begun then they bring to
// an end, unless ctx ends before.
func (f *fleet) run(enough, ctx context.Context) {
	var all sync.WaitGroup
	for i := range f.devices {
		all.Go(func() {
			for n := 0; enough.Err() == nil; n++ {
				f.live(enough, ctx, i, n)
			}
		})
	}
	all.Wait()
	f.client.HTTP.CloseIdleConnections()
}

// live is the life of one device.
func (f *fleet) live(enough, ctx context.Context, i, n int) {
	name := pkix.Name{CommonName: fmt.Sprintf("device-%d-%d", i+1, n+1)}
	secret := f.challenge(ctx, name)
	if secret.Empty() {
		return
	}
	key := func(n int) *rsa.PrivateKey { return f.keys[(i+n)%len(f.keys)] }
	tmpl := &x509.CertificateRequest{Subject: name}
	cert := f.obtain(ctx, func(id string) (*scepclient.Result, error) {
		return f.client.Enroll(ctx, scepclient.Request{Key: key(n), Template: tmpl, Challenge: secret, TransactionID: id})
	}, key(n), &f.enrolled)
	for range renewals {
		if cert == nil || enough.Err() != nil {
			return
		}
		n++
		old := cert
		cert = f.obtain(ctx, func(id string) (*scepclient.Result, error) {
			return f.client.Renew(ctx, old, key(n-1), scepclient.Request{Key: key(n), TransactionID: id})
		}, key(n-1), &f.renewed)
	}
}

// challenge makes a challenge for a device, as soon as the database is there.
func (f *fleet) challenge(ctx context.Context, name pkix.Name) scep.Secret {
	for {
		secret, err := f.challenges.New(ctx, challenge.Binding{Subject: name.String()})
		if err == nil || !pause(ctx) {
			return secret
		}
	}
}

// obtain asks until it has a certificate, and each time for the same one: a request with the same
// transaction ID, names and key is the same request. Where devices are forgetful, of four times
// once it asks again when it has been answered, as a device does whose answer got lost. The ledger
// is told everything.
func (f *fleet) obtain(ctx context.Context, ask func(id string) (*scepclient.Result, error), signer *rsa.PrivateKey, count *atomic.Int64) *x509.Certificate {
	id := rand.Text()
	f.ledger.asked(id)
	begun := time.Now()
	again := ask
	for {
		res, err := again(id)
		var waits *scepclient.PendingError
		var refused *scepclient.FailureError
		switch {
		case err == nil:
			if f.ledger.delivered(id, res.Certificate) {
				count.Add(1)
				raise(&f.longest, time.Since(begun))
			} else {
				f.repeated.Add(1)
				return res.Certificate
			}
			if !f.forgetful || mrand.IntN(4) > 0 {
				return res.Certificate
			}
			again = ask
			continue
		case errors.As(err, &refused):
			f.ledger.refused(id, err)
			return nil
		case errors.As(err, &waits):
			again = func(string) (*scepclient.Result, error) {
				f.polls.Add(1)
				return f.client.Poll(ctx, waits.Pending, signer)
			}
		}
		if waits == nil || waits.Err != nil {
			f.again.Add(1)
		}
		if !pause(ctx) {
			return nil
		}
	}
}

// pause waits before something is tried again, and returns false if ctx ends.
func pause(ctx context.Context) bool {
	select {
	case <-time.After(hurry/2 + mrand.N(hurry)):
		return true
	case <-ctx.Done():
		return false
	}
}

// progress is one line on where things stand.
func (f *fleet) progress(c *cluster) string {
	var up strings.Builder
	for i, addr := range c.proxy.there() {
		if addr == "" {
			up.WriteString(" -")
		} else {
			fmt.Fprintf(&up, " %d", i+1)
		}
	}
	killed, database := c.kills()
	state := ""
	if c.server != nil {
		state = "database up"
		if runs, _ := c.server.child.state(); !runs {
			state = "database down"
		}
		state = fmt.Sprintf("%-13s  killed %d", state, database)
	}
	return fmt.Sprintf("%5.0fs  enrolled %-6d renewed %-6d polls %-5d sent again %-5d  replicas%s  killed %-4d  %s",
		time.Since(f.begun).Seconds(), f.enrolled.Load(), f.renewed.Load(), f.polls.Load(), f.again.Load(), up.String(), killed, state)
}
