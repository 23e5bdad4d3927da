package status_test

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/scepkit/scepkit/depot/postgres"
	"github.com/scepkit/scepkit/depot/postgres/postgrestest"
	"github.com/scepkit/scepkit/depot/sqlite"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
	"github.com/scepkit/scepkit/scep/status"
)

func TestMain(m *testing.M) { os.Exit(postgrestest.Run(m)) }

// TestOtherReplica revokes in one process: the OCSP answers of another over the same database say so
// at once, and its CRL lists it soon, although nobody tells it. Nothing is signed while nothing changes.
func TestOtherReplica(t *testing.T) {
	onBoth(t, otherReplica)
}

// onBoth runs a test over SQLite and PostgreSQL. open opens the same database each time.
func onBoth(t *testing.T, test func(t *testing.T, open func() (database, error))) {
	t.Parallel()
	t.Run("SQLite", func(t *testing.T) {
		t.Parallel()
		path := t.TempDir() + "/scep.db"
		test(t, func() (database, error) { return sqlite.Open(path) })
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		t.Parallel()
		url := postgrestest.Shared(t).Database(t)
		test(t, func() (database, error) { return postgres.Open(t.Context(), postgres.Config{URL: url}) })
	})
}

type database interface {
	scep.Depot
	scep.RevocationLister
	io.Closer
}

func otherReplica(t *testing.T, open func() (database, error)) {
	ca, dbs := sceptest.NewCA(t), two(t, open)
	srv := sceptest.NewServer(t, scep.Config{CA: ca, Depot: dbs[0]})
	cert := srv.Device(0).Enroll(t)
	id, k := withKey(ca)
	c := newClock()
	crl := newCRL(t, status.CRLConfig{
		Issuer: id, Depot: dbs[1], Time: c.now, Shards: 2, URL: "http://pki.example/{n}.crl", Delta: status.Delta{URL: "http://pki.example/delta-{n}.crl"},
	})
	point := "/" + new(big.Int).Mod(cert.SerialNumber, big.NewInt(2)).String() + ".crl"
	listed := func(at string) *x509.RevocationListEntry {
		w := httptest.NewRecorder()
		crl.ServeHTTP(w, httptest.NewRequest(http.MethodGet, at, nil))
		got := parse(t, w.Body.Bytes(), ca)
		i := slices.IndexFunc(got.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool { return e.SerialNumber.Cmp(cert.SerialNumber) == 0 })
		if i < 0 {
			return nil
		}
		return &got.RevokedCertificateEntries[i]
	}
	await := func(at string, ok func(*x509.RevocationListEntry) bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			e := listed(at)
			if ok(e) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s has %+v", at, e)
			}
		}
	}
	reason := func(want scep.RevocationReason) func(*x509.RevocationListEntry) bool {
		return func(e *x509.RevocationListEntry) bool { return e != nil && e.ReasonCode == int(want) }
	}
	none := func(e *x509.RevocationListEntry) bool { return e == nil }
	rec, err := dbs[0].GetSerial(t.Context(), cert.RawIssuer, cert.SerialNumber)
	if err != nil {
		t.Fatal(err)
	}
	o := newOCSP(t, status.OCSPConfig{Issuer: ca.Certificate(), Responder: newResponder(t, ca, sceptest.P256()), Depot: dbs[1]})
	ask := func() *ocsp.Response {
		w := httptest.NewRecorder()
		o.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path(question(t, ca, cert.SerialNumber, crypto.SHA1)), nil))
		got, err := ocsp.ParseResponse(w.Body.Bytes(), ca.Certificate())
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	await(point, none)
	await("/delta-"+point[1:], none)
	if got := ask(); got.Status != ocsp.Good {
		t.Errorf("OCSP: %d", got.Status)
	}
	for _, step := range []struct {
		revoke     scep.RevocationReason
		full, next func(*x509.RevocationListEntry) bool
	}{
		{scep.CertificateHold, reason(scep.CertificateHold), reason(scep.CertificateHold)},
		{-1, none, reason(8)},
		{scep.Superseded, reason(scep.Superseded), reason(scep.Superseded)},
		{scep.KeyCompromise, reason(scep.KeyCompromise), reason(scep.KeyCompromise)},
	} {
		if step.revoke < 0 {
			err = srv.Handler.Unrevoke(t.Context(), rec.ID, scep.Decision{})
		} else {
			err = srv.Handler.Revoke(t.Context(), rec.ID, step.revoke, scep.Decision{})
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := ask(); (got.Status == ocsp.Good) != (step.revoke < 0) || step.revoke >= 0 && got.RevocationReason != int(step.revoke) {
			t.Errorf("OCSP after %v: status %d, reason %d", step.revoke, got.Status, got.RevocationReason)
		}
		await(point, step.full)
		await("/delta-"+point[1:], step.next)
	}
	before := k.count()
	for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		listed(point)
	}
	if k.count() != before {
		t.Errorf("signed %d times although nothing changed", k.count()-before)
	}
}

func two(t *testing.T, open func() (database, error)) (dbs []database) {
	for range 2 {
		db, err := open()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		dbs = append(dbs, db)
	}
	return dbs
}

// TestRevokeThereRenewHere revokes on one replica while devices renew on the other: no renewal, GetCert
// or poll that begins when Revoke has returned is granted.
func TestRevokeThereRenewHere(t *testing.T) {
	onBoth(t, func(t *testing.T, open func() (database, error)) {
		ca, dbs := sceptest.NewCA(t), two(t, open)
		config := scep.Config{CA: ca, Renewal: scep.Renewal{On: true, Anytime: true, Max: -1}, Log: quiet()}
		config.Depot = dbs[0]
		there := sceptest.NewServer(t, config)
		config.Depot = dbs[1]
		here := sceptest.NewServer(t, config)
		for round := range 5 {
			d := here.Device(round)
			cert := d.Enroll(t)
			rec, err := dbs[0].GetSerial(t.Context(), cert.RawIssuer, cert.SerialNumber)
			if err != nil {
				t.Fatal(err)
			}
			var returned atomic.Bool
			var wg sync.WaitGroup
			for i := range 3 {
				wg.Go(func() {
					next := d.As(cert, d.Key)
					for n := 0; n < 100; n++ {
						next.TransactionID = fmt.Sprintf("renewal %d-%d", i, n)
						after := returned.Load()
						if r := next.Send(t, next.RenewalReq(t)); after && r.Certificate != nil {
							t.Error("renewed after Revoke had returned")
						}
						if after {
							return
						}
					}
				})
			}
			time.Sleep(time.Duration(round) * 7 * time.Millisecond)
			if err := there.Handler.Revoke(t.Context(), rec.ID, scep.KeyCompromise, scep.Decision{}); err != nil {
				t.Error(err)
			}
			returned.Store(true)
			if r := d.Send(t, d.GetCert(t, cert.RawIssuer, cert.SerialNumber)); r.Certificate != nil {
				t.Error("GetCert gave what is revoked")
			}
			if r := d.Poll(t); r.Certificate != nil {
				t.Error("a poll gave what is revoked")
			}
			if r := d.Send(t, d.PKCSReq(t)); r.Certificate != nil && r.Certificate.Equal(cert) {
				t.Error("a retry gave what is revoked")
			}
			wg.Wait()
		}
	})
}
