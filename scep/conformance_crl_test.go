package scep_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math/big"
	"sync"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

func TestConformanceCRL(t *testing.T) {
	c := newTable(t, "CRL")
	refused := newServer(t, scep.Config{})
	offer := func(t *testing.T) (*sceptest.Server, *oneCRL) {
		source := &oneCRL{t: t, ca: newCA(t)}
		return newServer(t, scep.Config{CA: source.ca, CRL: source}), source
	}
	ask := func(t *testing.T, d *sceptest.Device, s *oneCRL, issuer []byte, serial *big.Int) {
		t.Helper()
		want := s.renew()
		if r := d.Send(t, d.GetCRL(t, issuer, serial)); r.Status != sceptest.StatusSuccess || !bytes.Equal(r.CRL, want) {
			t.Errorf("answer is %v with a CRL of %d bytes, want SUCCESS with the newest of %d", r, len(r.CRL), len(want))
		}
	}
	c.run("CRL-01", func(t *testing.T) {
		srv, source := offer(t)
		d, cert := holder(t, srv)
		ask(t, d, source, cert.RawIssuer, cert.SerialNumber)
		ask(t, d.As(cert, d.Key), source, cert.RawIssuer, cert.SerialNumber)
	})
	c.run("CRL-02", func(t *testing.T) {
		srv, source := offer(t)
		ca := source.ca.Certificate()
		ask(t, newConformer(srv), source, ca.RawSubject, ca.SerialNumber)
		if got := source.asked(); got.Cmp(ca.SerialNumber) != 0 {
			t.Errorf("a stranger is given the CRL that covers %x, want %x", got, ca.SerialNumber)
		}
		// Whoever has a certificate is given the shard in which that would be.
		d, cert := holder(t, srv)
		ask(t, d.As(cert, d.Key), source, ca.RawSubject, ca.SerialNumber)
		if got := source.asked(); got.Cmp(cert.SerialNumber) != 0 {
			t.Errorf("the holder of %x is given the CRL that covers %x", cert.SerialNumber, got)
		}
		other := new(big.Int).Add(cert.SerialNumber, big.NewInt(1))
		ask(t, d.As(cert, d.Key), source, ca.RawSubject, other)
		if got := source.asked(); got.Cmp(other) != 0 {
			t.Errorf("asked about %x, is given the CRL that covers %x", other, got)
		}
	})
	c.run("CRL-03", func(t *testing.T) {
		d, cert := holder(t, refused)
		wantFail(t, d.Send(t, d.GetCRL(t, cert.RawIssuer, cert.SerialNumber)), scep.BadRequest, "GetCRL is not offered")
		wantFail(t, d.Send(t, d.GetCRL(t, sceptest.CN("another CA"), cert.SerialNumber)), scep.BadRequest, "GetCRL is not offered")

		srv, source := offer(t)
		d, cert = holder(t, srv)
		wantFail(t, d.Send(t, d.GetCRL(t, sceptest.CN("another CA"), cert.SerialNumber)), scep.BadCertID, "no such CRL")
		wantFail(t, d.Send(t, d.Message(t, sceptest.TypeGetCRL, []byte("neither name nor number"))), scep.BadCertID, "no such CRL")
		source.become(make([]byte, 2<<20), nil)
		wantFail(t, d.Send(t, d.GetCRL(t, cert.RawIssuer, cert.SerialNumber)), scep.BadRequest, "the CRL is too large for SCEP; get it from its distribution point")
		source.become(nil, errors.New("the signer is away"))
		wantHTTP(t, d.Send(t, d.GetCRL(t, cert.RawIssuer, cert.SerialNumber)), 503)
		source.become(nil, nil)
		wantHTTP(t, d.Send(t, d.GetCRL(t, cert.RawIssuer, cert.SerialNumber)), 503)
	})
	c.run("CRL-04", func(t *testing.T) {
		d, cert := holder(t, refused)
		d.TransactionID = "SSCEP transactionId"
		for range 2 {
			wantFail(t, d.Send(t, d.GetCRL(t, cert.RawIssuer, cert.SerialNumber)), scep.BadRequest, "")
			wantCert(t, d.Send(t, d.GetCert(t, cert.RawIssuer, cert.SerialNumber)), cert)
		}
		srv, source := offer(t)
		d, cert = holder(t, srv)
		d.TransactionID = "SSCEP transactionId"
		for range 2 {
			ask(t, d, source, cert.RawIssuer, source.ca.Certificate().SerialNumber)
		}
	})
}

// oneCRL is a CRLSource.
type oneCRL struct {
	t    *testing.T
	ca   *scep.Identity
	mu   sync.Mutex
	n    int64
	der  []byte
	err  error
	last *big.Int // serial number
}

// asked returns the serial number that was asked for last.
func (s *oneCRL) asked() *big.Int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

func (s *oneCRL) become(der []byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.der, s.err = der, err
}

// renew makes another CRL and returns it.
func (s *oneCRL) renew() []byte {
	s.n++
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(s.n), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour),
	}, s.ca.Certificate(), s.ca.Key)
	if err != nil {
		s.t.Error(err)
	}
	s.become(der, nil)
	return der
}

func (s *oneCRL) CRL(_ context.Context, issuer []byte, serial *big.Int) ([]byte, error) {
	if !bytes.Equal(issuer, s.ca.Certificate().RawSubject) {
		return nil, scep.ErrNotFound
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = serial
	return s.der, s.err
}
