package status_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
	"github.com/scepkit/scepkit/scep/status"
)

// asked counts how often all revocations are asked for.
type asked struct {
	scep.RevocationLister
	all int
}

func (a *asked) Revocations(ctx context.Context, q scep.RevocationQuery, yield func(scep.Revocation) error) error {
	if q.Since.IsZero() {
		a.all++
	}
	return a.RevocationLister.Revocations(ctx, q, yield)
}

// Shards that were signed one after another become due together: the depot is not asked for all
// revocations because of each.
func TestShardsDueTogether(t *testing.T) {
	const shards = 40
	c, db := newClock(), new(depot.Memory)
	id, k := withKey(sceptest.NewCA(t, sceptest.P256()))
	a := &asked{RevocationLister: db}
	crl := newCRL(t, status.CRLConfig{Issuer: id, Depot: a, Time: c.now, Shards: shards, URL: "http://pki.example/{n}.crl", Log: quiet()})
	refresh := func() {
		t.Helper()
		if err := crl.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	refresh()
	for serial := range int64(shards) {
		c.add(time.Minute)
		store(t, db, id, 100+serial, revoked(c.now(), scep.Superseded))
		crl.Renew()
		refresh()
	}
	a.all = 0
	signed := k.count()
	for range 4 * 60 {
		c.add(time.Minute)
		refresh()
	}
	if a.all > 4*8 {
		t.Errorf("in four hours without a revocation the depot was asked for all %d times, want 32 at most", a.all)
	}
	if n := k.count() - signed; n < 3*shards || n > 5*shards {
		t.Errorf("%d shards were signed %d times in four hours, want about four times each", shards, n)
	}
}

// When the clock is set back nobody knows what changed since, so delta CRLs begin anew; then a full
// CRL must not be older than they are.
func TestShardsClockSetBack(t *testing.T) {
	const shards = 4
	c, db := newClock(), new(depot.Memory)
	id, _ := withKey(sceptest.NewCA(t, sceptest.P256()))
	crl := newCRL(t, status.CRLConfig{
		Issuer: id, Depot: db, Time: c.now, Shards: shards, URL: "http://pki.example/{n}.crl", Log: quiet(),
		Delta: status.Delta{URL: "http://pki.example/delta-{n}.crl"},
	})
	get := func(name string) *x509.RevocationList {
		t.Helper()
		w := httptest.NewRecorder()
		crl.ServeHTTP(w, httptest.NewRequest(http.MethodGet, name, nil))
		list, err := x509.ParseRevocationList(w.Body.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	get("/0.crl")
	c.add(50 * time.Minute)
	store(t, db, id, 100, revoked(c.now(), scep.Superseded))
	crl.Renew()
	get("/0.crl")
	c.add(-10 * time.Minute)
	for i := range shards {
		full, delta := get(fmt.Sprintf("/%d.crl", i)), get(fmt.Sprintf("/delta-%d.crl", i))
		base := new(big.Int)
		for _, e := range delta.Extensions {
			if e.Id.String() == "2.5.29.27" { // deltaCRLIndicator
				base.SetBytes(e.Value[2:])
			}
		}
		if base.Sign() == 0 || full.Number.Cmp(base) < 0 {
			t.Errorf("shard %d has number %v, and its delta CRL is for %v and later", i, full.Number, base)
		}
	}
}

// While the signer is away each shard is served until its own nextUpdate.
func TestShardsSignerAway(t *testing.T) {
	c, db := newClock(), new(depot.Memory)
	id, k := withKey(sceptest.NewCA(t, sceptest.P256()))
	crl := newCRL(t, status.CRLConfig{Issuer: id, Depot: db, Time: c.now, Shards: 2, URL: "http://pki.example/{n}.crl", Log: quiet()})
	want := func(shard int64, served bool) {
		t.Helper()
		w := httptest.NewRecorder()
		crl.ServeHTTP(w, httptest.NewRequest(http.MethodGet, fmt.Sprintf("/%d.crl", shard), nil))
		_, err := crl.CRL(t.Context(), id.Certificate().RawSubject, big.NewInt(shard))
		if served != (w.Code == http.StatusOK) || served != (err == nil) {
			t.Errorf("shard %d: HTTP %d, %v", shard, w.Code, err)
		}
	}
	want(0, true)
	c.add(30 * time.Minute)
	store(t, db, id, 101, revoked(c.now(), scep.Superseded))
	crl.Renew()
	want(1, true)
	k.become(errAway, false)
	c.add(23*time.Hour + 29*time.Minute)
	want(0, true)
	c.add(2 * time.Minute)
	want(0, false)
	want(1, true)
	c.add(30 * time.Minute)
	want(1, false)
	k.become(nil, false)
	c.add(time.Minute)
	want(0, true)
	want(1, true)
}
