//go:build cgo

package hsmtest_test

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/pkcs11"
	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/hsmtest"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// A site is a server whose keys are in devices, and the devices that enrol there.
type site struct {
	*sceptest.Server
	t       *testing.T
	devices atomic.Int64
	turns   [3]atomic.Int64 // answers that were SUCCESS, PENDING, HTTP 503
}

// newSite serves with the CA's key, and the RA's unless ra is nil.
func newSite(t *testing.T, ca, ra *backend.Key, limits scep.Limits) *site {
	t.Helper()
	c := scep.Config{CA: sceptest.NewCA(t, ca.Key), Limits: limits, Log: slog.New(slog.DiscardHandler)}
	if ra != nil {
		c.RA = sceptest.NewRA(t, c.CA.(*scep.Identity), ra.Key)
	}
	s := &site{Server: sceptest.NewServer(t, c), t: t}
	s.HTTP.Client().Transport.(*http.Transport).MaxIdleConnsPerHost = 100
	return s
}

// softwareKey is a key in memory, as beside one in a device.
func softwareKey(i int) *backend.Key {
	return &backend.Key{Identity: &scep.Identity{Key: sceptest.RSA(i)}}
}

// newKey makes a key for the length of a test.
func newKey(t *testing.T, uri string, d backend.Driver) *backend.Key {
	t.Helper()
	k, err := backend.Create(t.Context(), uri, backend.Spec{Decrypt: true}, d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return k
}

// newDevice returns one that nobody has seen.
func (s *site) newDevice() *sceptest.Device {
	n := s.devices.Add(1)
	d := sceptest.NewDevice(s.URL, sceptest.RSA(int(n%5)), fmt.Sprintf("device %d", n))
	d.TransactionID, d.Client = fmt.Sprintf("transaction %d", n), s.HTTP.Client()
	return d
}

// enroll has a device ask until it has its certificate, with the same message or by polls, and
// once more after that, which must give the same.
func (s *site) enroll() error {
	d := s.newDevice()
	m := d.PKCSReq(s.t)
	var cert *x509.Certificate
	for try := 0; ; try++ {
		if err := s.t.Context().Err(); err != nil {
			return err
		}
		ask := m
		if try%2 == 1 {
			ask = d.CertPoll(s.t)
		}
		switch r := d.Send(s.t, ask); {
		case r.Certificate != nil && cert == nil:
			s.turns[0].Add(1)
			cert = r.Certificate
			continue
		case r.Certificate != nil && !r.Certificate.Equal(cert):
			return fmt.Errorf("%s: a second certificate", d.TransactionID)
		case r.Certificate != nil:
			return nil
		case r.Status == sceptest.StatusPending:
			s.turns[1].Add(1)
		case r.StatusCode == http.StatusServiceUnavailable && r.Header.Get("Retry-After") != "":
			s.turns[2].Add(1)
		case ask != m && try > 0 && strings.Contains(r.FailInfoText, "no such transaction"): // which its first message did not open
		default:
			return fmt.Errorf("%s: answer is %v", d.TransactionID, r)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// crowd has so many devices enrol at once, one after the other, until stop is called.
func (s *site) crowd(n int) (stop func()) {
	var wg sync.WaitGroup
	end := make(chan struct{})
	for range n {
		wg.Go(func() {
			for {
				select {
				case <-end:
					return
				default:
				}
				if err := s.enroll(); err != nil {
					s.t.Error(err)
					return
				}
			}
		})
	}
	return func() { close(end); wg.Wait() }
}

// past waits for n more certificates.
func (s *site) past(n int64) {
	s.t.Helper()
	for from := s.turns[0].Load(); s.turns[0].Load() < from+n; time.Sleep(time.Millisecond) {
		if s.t.Failed() || s.t.Context().Err() != nil {
			s.t.FailNow()
		}
	}
}

// checkDepot wants one certificate for each device, and nothing left open.
func (s *site) checkDepot() {
	s.t.Helper()
	all, err := s.Config.Depot.(*depot.Memory).List(s.t.Context(), scep.Query{Limit: 1 << 20})
	if err != nil {
		s.t.Fatal(err)
	}
	names := map[string]bool{}
	for _, rec := range all {
		if rec.State != scep.Issued {
			s.t.Errorf("record of %s is %v", rec.TransactionID, rec.State)
		}
		names[rec.TransactionID] = true
	}
	if len(all) != len(names) || int64(len(all)) != s.turns[0].Load() {
		s.t.Errorf("%d records of %d transactions, and %d devices with a certificate", len(all), len(names), s.turns[0].Load())
	}
}

// hostile sends an envelope with a block of random bytes.
func (s *site) hostile() {
	d := s.newDevice()
	m := d.PKCSReq(s.t)
	block := make([]byte, 256)
	rand.Read(block[1:])
	m.Envelope.Recipients[0].EncryptedKey = func([]byte) []byte { return block }
	if r := d.Send(s.t, m); r.StatusCode != http.StatusServiceUnavailable {
		if info, refused := r.Refusal(); !refused || info != scep.BadRequest || r.FailInfoText != "the request could not be read" {
			s.t.Errorf("answer to a hostile envelope is %v", r)
		}
	}
}

func quiet(c *pkcs11.Driver) *pkcs11.Driver {
	c.Log = slog.New(slog.DiscardHandler)
	return c
}

// Sessions are lost ten times and one is poisoned while 64 devices at a time enrol and others
// send hostile envelopes.
func TestStorm(t *testing.T) {
	j := hsmtest.Fault(t, hsmtest.SoftHSM(t))
	driver := quiet(&pkcs11.Driver{})
	s := newSite(t, newKey(t, j.URI("ca"), driver), newKey(t, j.URI("ra"), driver), scep.Limits{})
	for range 50 {
		s.hostile()
	}
	finalized := j.Calls("C_Finalize")
	for range 50 {
		s.hostile()
	}
	if n := j.Calls("C_Finalize") - finalized; n != 0 {
		t.Errorf("hostile envelopes had the token opened again %d times", n)
	}

	stop := s.crowd(64)
	var hostile sync.WaitGroup
	end := make(chan struct{})
	for range 2 {
		hostile.Go(func() {
			for {
				select {
				case <-end:
					return
				default:
					s.hostile()
				}
			}
		})
	}
	s.past(64)
	for range 10 {
		j.Drop()
		s.past(30)
	}
	j.Poison(1)
	s.past(64)
	close(end)
	hostile.Wait()
	stop()
	s.checkDepot()
	if n := s.turns[2].Load() + s.turns[1].Load(); n > 0 {
		t.Logf("%d answers were PENDING, %d HTTP 503", s.turns[1].Load(), s.turns[2].Load())
	}

	// With another PIN there is one attempt, and nobody is refused.
	logins := j.Calls("C_Login")
	j.ChangePIN(t, "13572468")
	j.Drop()
	for range 20 {
		d := s.newDevice()
		if r := d.Send(t, d.PKCSReq(t)); r.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("answer is %v", r)
		}
	}
	// CA and RA are opened apart, each with the PIN of its own.
	if n := j.Calls("C_Login") - logins; n != 1 {
		t.Errorf("%d logins", n)
	}
}

// outage has devices enrol while what holds the keys is away for some seconds.
func outage(t *testing.T, s *site, pending bool, away, back func()) {
	t.Helper()
	stop := s.crowd(16)
	s.past(32)
	away()
	time.Sleep(3 * time.Second) // this long it is away; nothing is waited for
	back()
	returned := time.Now()
	s.past(32)
	if d := time.Since(returned); d > 5*time.Second+10*time.Second { // 32 enrolments take their time too
		t.Errorf("served again after %v", d)
	}
	stop()
	s.checkDepot()
	t.Logf("%d certificates; %d answers were PENDING, %d HTTP 503", s.turns[0].Load(), s.turns[1].Load(), s.turns[2].Load())
	if (s.turns[1].Load() > 0) != pending {
		t.Errorf("%d answers were PENDING", s.turns[1].Load())
	}
	if s.turns[1].Load()+s.turns[2].Load() == 0 {
		t.Error("nobody noticed")
	}
}

// A token that hangs keeps no request beyond its time, and no memory.
func TestHungToken(t *testing.T) {
	for _, keys := range []string{"CA", "CA and RA"} {
		t.Run(keys, func(t *testing.T) {
			j := hsmtest.Fault(t, hsmtest.SoftHSM(t))
			driver := quiet(&pkcs11.Driver{Timeout: 2 * time.Second})
			ca := newKey(t, j.URI("ca"), driver)
			ra := softwareKey(6)
			if keys != "CA" {
				ra = newKey(t, j.URI("ra"), driver)
			}
			s := newSite(t, ca, ra, scep.Limits{Time: 4 * time.Second})
			if err := s.enroll(); err != nil {
				t.Fatal(err)
			}
			before := runtime.NumGoroutine()
			release := j.Hang("C_Sign")
			var wg sync.WaitGroup
			var answered atomic.Int64
			for range 100 {
				d := s.newDevice()
				m := d.PKCSReq(t)
				wg.Go(func() {
					begin := time.Now()
					r := d.Send(t, m)
					if r.StatusCode != http.StatusServiceUnavailable && r.Status != sceptest.StatusPending {
						t.Errorf("answer is %v", r)
					}
					if took := time.Since(begin); took > 20*time.Second {
						t.Errorf("answered after %v", took)
					}
					answered.Add(1)
					for r.Certificate == nil && t.Context().Err() == nil { // which they get later
						time.Sleep(50 * time.Millisecond)
						r = d.Send(t, m)
					}
				})
			}
			for answered.Load() < 100 {
				time.Sleep(time.Millisecond)
			}
			if n := j.Running("C_Sign"); n > 32 {
				t.Errorf("%d calls inside the token", n)
			}
			if err := ca.Check(t.Context()); !errors.Is(err, backend.ErrUnavailable) {
				t.Errorf("Check: %v", err)
			}
			release()
			wg.Wait()
			for ca.Check(t.Context()) != nil {
				time.Sleep(10 * time.Millisecond)
			}
			s.HTTP.Client().CloseIdleConnections()
			for n := 0; runtime.NumGoroutine() > before+20; n++ {
				if n > 1000 {
					t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
				}
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
}

// dial connects to a TPM as tpm.Config wants it.
func dial(c *hsmtest.Chip) func(context.Context) (io.ReadWriteCloser, error) {
	return func(ctx context.Context) (io.ReadWriteCloser, error) { return c.Dial(ctx) }
}
