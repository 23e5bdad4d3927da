package scep_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"math/big"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// TestRevokeAhead revokes the old certificate, on a replica whose clock is an hour ahead, while a renewal is signed.
func TestRevokeAhead(t *testing.T) {
	var handler *scep.Handler
	var old scep.ID
	var armed atomic.Bool
	db, ca := new(depot.Memory), newCA(t)
	srv := newServer(t, scep.Config{
		Renewal: scep.Renewal{On: true, Anytime: true}, Depot: db,
		CA: sceptest.CA{CA: ca, On: func(op string, _ *x509.Certificate) (bool, error) {
			if op == "Sign" && armed.CompareAndSwap(true, false) {
				if err := handler.Revoke(context.Background(), old, scep.KeyCompromise, byAlice); err != nil {
					t.Error(err)
				}
			}
			return false, nil
		}},
	})
	ahead := srv.Config
	ahead.Time = func() time.Time { return time.Now().Add(time.Hour) }
	var err error
	if handler, err = scep.New(ahead); err != nil {
		t.Fatal(err)
	}
	d, cert := holder(t, srv)
	old = recordFor(t, srv, cert).ID
	armed.Store(true)
	next := renewal(d, cert)
	wantFail(t, next.Send(t, next.RenewalReq(t)), scep.BadRequest, "the certificate that signed the message is revoked")
	if all, err := db.List(t.Context(), scep.Query{State: scep.Issued}); err != nil || len(all) != 0 {
		t.Errorf("%d certificates are good, %v", len(all), err)
	}
}

// A certificate that the depot does not know, as that of an RA, is written down as revoked.
func TestRevokeCertificate(t *testing.T) {
	ca, source := newCA(t), &renewedCRL{}
	source.ca, source.t = ca, t
	var told []scep.Event
	srv := newServer(t, scep.Config{CA: ca, CRL: source, Profile: "a", Events: scep.Events{Revoked: func(_ context.Context, e scep.Event) { told = append(told, e) }}})
	ra := sceptest.NewRA(t, ca).Certificate()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := srv.Handler.RevokeCertificate(t.Context(), ra, scep.CertificateHold, byAlice); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	rec := recordFor(t, srv, ra)
	if rec.State != scep.Revoked || rec.RevocationReason != int(scep.CertificateHold) || rec.Revoked.IsZero() || string(rec.Certificate) != string(ra.Raw) ||
		!rec.NotAfter.Equal(ra.NotAfter) || rec.DecidedBy != byAlice.By || rec.Profile != "a" {
		t.Errorf("record is %+v", rec)
	}
	if len(told) != 1 || !told[0].Certificate.Equal(ra) || source.n.Load() != 1 {
		t.Errorf("told %d times, renewed the CRL %d times", len(told), source.n.Load())
	}
	if err := srv.Handler.Unrevoke(t.Context(), rec.ID, byAlice); err != nil {
		t.Fatal(err)
	}
	if err := srv.Handler.RevokeCertificate(t.Context(), ra, scep.KeyCompromise, byAlice); err != nil {
		t.Fatal(err)
	}
	if rec := recordFor(t, srv, ra); rec.State != scep.Revoked || rec.RevocationReason != int(scep.KeyCompromise) || source.n.Load() != 3 {
		t.Errorf("record is %+v; renewed the CRL %d times", rec, source.n.Load())
	}
	_, cert := holder(t, srv)
	if err := srv.Handler.RevokeCertificate(t.Context(), cert, scep.Superseded, byAlice); err != nil || recordFor(t, srv, cert).State != scep.Revoked {
		t.Errorf("one that the depot knows: %v", err)
	}
	for want, err := range map[string]error{
		"is a CA":             srv.Handler.RevokeCertificate(t.Context(), ca.Certificate(), scep.Superseded, byAlice),
		"was not signed by":   srv.Handler.RevokeCertificate(t.Context(), sceptest.NewRA(t, sceptest.NewCA(t, sceptest.RSA(2))).Certificate(), scep.Superseded, byAlice),
		"no certificate":      srv.Handler.RevokeCertificate(t.Context(), nil, scep.Superseded, byAlice),
		"cannot be revoked":   srv.Handler.RevokeCertificate(t.Context(), ra, 7, byAlice),
		"another certificate": srv.Handler.RevokeCertificate(t.Context(), twin(t, ca, cert), scep.Superseded, byAlice),
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// twin returns another certificate with the serial number of cert.
func twin(t *testing.T, ca *scep.Identity, cert *x509.Certificate) *x509.Certificate {
	tmpl := &x509.Certificate{SerialNumber: cert.SerialNumber, NotBefore: cert.NotBefore, NotAfter: cert.NotAfter}
	other, err := ca.Sign(t.Context(), tmpl, sceptest.P256().Public())
	if err != nil {
		t.Fatal(err)
	}
	return other
}

// renewedCRL is a CRLSource that counts how often it is to be renewed.
type renewedCRL struct {
	oneCRL
	n atomic.Int32
}

func (r *renewedCRL) Renew() { r.n.Add(1) }

// RevokeSerial passes over a certificate of another profile with the same serial number.
func TestRevokeSerialOfPast(t *testing.T) {
	db, now, past := new(depot.Memory), newCA(t), sceptest.NewCA(t, sceptest.RSA(3))
	srv := newServer(t, scep.Config{CA: now, PastCA: []scep.CA{past}, Depot: db, Profile: "a"})
	for i, ca := range []*scep.Identity{now, past} {
		id := scep.ID(strings.Repeat(strings.Repeat("0", i)+"1", 64)[:64])
		rec := &scep.Record{ID: id, Transaction: id, Profile: []string{"b", "a"}[i], State: scep.Issued, Issuer: ca.Certificate().RawSubject, Serial: big.NewInt(7)}
		if err := db.Create(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
	}
	if err := srv.Handler.RevokeSerial(t.Context(), big.NewInt(7), scep.Superseded, byAlice); err != nil {
		t.Fatal(err)
	}
	for i, ca := range []*scep.Identity{now, past} {
		rec, err := db.GetSerial(t.Context(), ca.Certificate().RawSubject, big.NewInt(7))
		if want := []scep.State{scep.Issued, scep.Revoked}[i]; err != nil || rec.State != want {
			t.Errorf("record is %v, %v; want %v", rec.State, err, want)
		}
	}
}

// keepingCA signs, and says that it has not.
type keepingCA struct {
	scep.CA
	kept *x509.Certificate
}

func (c *keepingCA) Sign(ctx context.Context, tmpl *x509.Certificate, pub crypto.PublicKey) (cert *x509.Certificate, err error) {
	if c.kept, err = c.CA.Sign(ctx, tmpl, pub); err != nil {
		return nil, err
	}
	return nil, errors.New("the answer got lost")
}

// A certificate that was signed, but whose record does not have it, is in the CRL once it is revoked.
func TestRevokeCertificateLost(t *testing.T) {
	for _, state := range []scep.State{scep.Signing, scep.Denied} {
		ca := &keepingCA{CA: newCA(t)}
		srv := newServer(t, scep.Config{CA: ca, RA: sceptest.NewRA(t, ca.CA.(*scep.Identity))})
		d := newConformer(srv)
		msg := d.PKCSReq(t)
		if a := d.Send(t, msg); a.Status != "3" || ca.kept == nil {
			t.Fatalf("%+v", a)
		}
		rec := recordFor(t, srv, ca.kept)
		if state == scep.Denied {
			if err := srv.Handler.Revoke(t.Context(), rec.ID, scep.Unspecified, byAlice); err != nil {
				t.Fatal(err)
			}
		}
		if rec = recordFor(t, srv, ca.kept); rec.State != state {
			t.Fatalf("record is %v", rec.State)
		}
		if err := srv.Handler.RevokeCertificate(t.Context(), ca.kept, scep.KeyCompromise, byAlice); err != nil {
			t.Fatal(err)
		}
		var listed []scep.Revocation
		err := srv.Config.Depot.(scep.RevocationLister).Revocations(t.Context(), scep.RevocationQuery{Issuer: ca.kept.RawIssuer}, func(r scep.Revocation) error {
			listed = append(listed, r)
			return nil
		})
		if err != nil || len(listed) != 1 || listed[0].Serial.Cmp(ca.kept.SerialNumber) != 0 || listed[0].Reason != scep.KeyCompromise {
			t.Errorf("%v: revoked are %v, %v", state, listed, err)
		}
		if rec = recordFor(t, srv, ca.kept); !bytes.Equal(rec.Certificate, ca.kept.Raw) || rec.DecidedBy != byAlice.By {
			t.Errorf("%v: record is %+v", state, rec)
		}
		wantFail(t, d.Send(t, msg), scep.BadRequest, "the certificate has been revoked")
	}
}
