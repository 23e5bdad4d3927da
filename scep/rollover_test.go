package scep_test

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/scepclient"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// rolloverSteps are those of a change of CA, as Switch has them: before, with the next CA, with the old
// one, and with the old one's certificate alone.
func rolloverSteps(c scep.Config, old, next, oldRA, nextRA *scep.Identity) [4]scep.Config {
	var all [4]scep.Config
	for i := range all {
		all[i] = c
		all[i].CA, all[i].RA = old, oldRA
	}
	all[1].Next, all[1].NextRA = next, nextRA
	for i := 2; i < 4; i++ {
		all[i].CA, all[i].RA = next, nextRA
	}
	all[2].PastRA = []*scep.Identity{old}
	if oldRA != nil {
		all[2].PastRA, all[2].PastCA = []*scep.Identity{oldRA}, []scep.CA{old}
	}
	all[3].PastCA = []scep.CA{&scep.Identity{Certificates: old.Certificates}}
	return all
}

// arrangements are CAs that do everything, CAs with RAs, and CAs that have one name.
func arrangements(t *testing.T, f func(t *testing.T, old, next, oldRA, nextRA *scep.Identity)) {
	for name, ids := range map[string]func() [4]*scep.Identity{
		"alone": func() [4]*scep.Identity { return [4]*scep.Identity{sceptest.NewCA(t), newNext(t)} },
		"with RAs": func() [4]*scep.Identity {
			old, next := newCA(t), sceptest.NewCA(t, sceptest.P384())
			return [4]*scep.Identity{old, next, newRA(t, old), sceptest.NewRA(t, next, sceptest.RSA(6))}
		},
		"one name": func() [4]*scep.Identity {
			old, next := sceptest.NewCA(t), newNext(t)
			return [4]*scep.Identity{old, reissue(t, next, func(c *x509.Certificate) { c.RawSubject = old.Certificate().RawSubject })}
		},
	} {
		ids := ids()
		t.Run(name, func(t *testing.T) { f(t, ids[0], ids[1], ids[2], ids[3]) })
	}
}

// reissue returns a self-signed CA with a changed certificate.
func reissue(t testing.TB, ca *scep.Identity, change func(c *x509.Certificate)) *scep.Identity {
	t.Helper()
	tmpl := *ca.Certificate()
	change(&tmpl)
	tmpl.Raw = nil
	der, err := x509.CreateCertificate(rand.Reader, &tmpl, &tmpl, ca.Key.Public(), ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &scep.Identity{Certificates: []*x509.Certificate{cert}, Key: ca.Key}
}

func handler(t *testing.T, c scep.Config) *scep.Handler {
	t.Helper()
	h, err := scep.New(sceptest.Fill(t, c))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// certsOf returns what GetCACert would say.
func certsOf(ca, ra *scep.Identity) []*x509.Certificate {
	if ra == nil {
		return ca.Certificates
	}
	return append([]*x509.Certificate{ra.Certificate()}, ca.Certificates...)
}

// TestRolloverUnderLoad has 50 clients enrol while a CA is taken over from. The client refuses
// whatever is not signed and issued by the CA that it addressed.
func TestRolloverUnderLoad(t *testing.T) {
	arrangements(t, func(t *testing.T, old, next, oldRA, nextRA *scep.Identity) {
		const clients, rounds = 50, 4
		memory := new(depot.Memory)
		configs := rolloverSteps(scep.Config{Depot: memory, Log: silent}, old, next, oldRA, nextRA)
		handlers := [3]*scep.Handler{handler(t, configs[0]), handler(t, configs[1]), handler(t, configs[2])}
		sw := scep.NewSwitch(handlers[0])
		srv := httptest.NewServer(sw)
		defer srv.Close()

		var done atomic.Int64
		var mu sync.Mutex
		var got []*x509.Certificate
		by := map[string]int{}
		var all sync.WaitGroup
		for i := range clients {
			all.Go(func() {
				client := &scepclient.Client{URL: srv.URL + "/scep", Fingerprints: []string{
					scepclient.Fingerprint(old.Certificate()), scepclient.Fingerprint(next.Certificate()),
				}}
				for round := range rounds {
					ca, err := client.CACertificates(t.Context())
					if err == nil && i%2 == 0 {
						var upcoming *scepclient.CA
						if upcoming, err = client.NextCA(t.Context()); err == nil {
							ca = upcoming
						} else if errors.Is(err, scepclient.ErrNoNextCA) {
							err = nil
						}
					}
					if err != nil {
						t.Errorf("client %d: %v", i, err)
						continue
					}
					res, err := client.Enroll(t.Context(), scepclient.Request{
						Key: sceptest.RSA(i % 5), CA: ca, Challenge: scep.NewSecret(sceptest.Secret),
						Template: &x509.CertificateRequest{Subject: pkix.Name{CommonName: fmt.Sprintf("client %d, %d", i, round)}},
					})
					if err != nil {
						t.Errorf("client %d, which addressed %q: %v", i, ca.Recipient.Subject, err)
					} else if err := res.Certificate.CheckSignatureFrom(ca.Issuer); err != nil {
						t.Errorf("client %d: %v", i, err)
					} else {
						mu.Lock()
						got = append(got, res.Certificate)
						by[scepclient.Fingerprint(ca.Issuer)]++
						mu.Unlock()
					}
					switch done.Add(1) {
					case clients:
						if sw.Set(handlers[1]) != handlers[0] {
							t.Error("Set returned another Handler")
						}
					case 3 * clients:
						sw.Set(handlers[2])
					}
				}
			})
		}
		all.Wait()
		if len(got) != clients*rounds {
			t.Errorf("%d certificates, not %d", len(got), clients*rounds)
		}
		for _, ca := range []*scep.Identity{old, next} {
			if by[scepclient.Fingerprint(ca.Certificate())] == 0 {
				t.Errorf("none is by %q", ca.Certificate().Subject)
			}
		}
		for _, cert := range got { // what clients have is what the depot has
			rec, err := memory.GetSerial(t.Context(), cert.RawIssuer, cert.SerialNumber)
			if err != nil || !slices.Equal(rec.Certificate, cert.Raw) {
				t.Errorf("certificate %x: %v", cert.SerialNumber, err)
			}
		}
	})
}

// TestRolloverAcross follows requests and certificates over every step: an answer is by the CA that
// was addressed, whichever step it comes in.
func TestRolloverAcross(t *testing.T) {
	arrangements(t, func(t *testing.T, old, next, oldRA, nextRA *scep.Identity) {
		c := scep.Config{
			Depot: new(depot.Memory), Renewal: scep.Renewal{On: true, Anytime: true},
			Challenge: scep.ChallengeFunc(func(_ context.Context, req *scep.Request) error {
				if strings.HasPrefix(req.CSR.Subject.CommonName, "waits") && !req.Approved {
					return scep.ErrPending
				}
				return nil
			}),
		}
		configs := rolloverSteps(c, old, next, oldRA, nextRA)
		sw := new(scep.Switch)
		srv := httptest.NewServer(sw)
		defer srv.Close()
		at := func(step int) *scep.Handler {
			h := handler(t, configs[step])
			sw.Set(h)
			return h
		}
		toOld, toNext := certsOf(old, oldRA), certsOf(next, nextRA)
		device := func(i int, name string, to []*x509.Certificate) *sceptest.Device {
			d := sceptest.NewDevice(srv.URL, sceptest.RSA(i), name)
			d.TransactionID = "transaction of " + name
			return d.To(to...)
		}
		wantBy := func(r *sceptest.Reply, ca *scep.Identity) *x509.Certificate {
			t.Helper()
			wantOK(t, r)
			if err := r.Certificate.CheckSignatureFrom(ca.Certificate()); err != nil {
				t.Error(err)
			}
			return r.Certificate
		}
		idOf := func(d *sceptest.Device) scep.ID {
			t.Helper()
			list, err := c.Depot.(scep.Lister).List(t.Context(), scep.Query{})
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(list, func(r *scep.Record) bool { return r.TransactionID == d.TransactionID })
			return list[i].ID
		}

		at(0)
		first := device(0, "first", toOld)
		firstReq := first.PKCSReq(t)
		firstCert := wantBy(first.Send(t, firstReq), old)
		waitsOld := device(1, "waits for the old", toOld)
		wantPending(t, waitsOld.Send(t, waitsOld.PKCSReq(t)))
		lateOld := device(1, "waits for the old, for long", toOld)
		wantPending(t, lateOld.Send(t, lateOld.PKCSReq(t)))

		at(1)
		second := device(2, "second", toNext)
		secondReq := second.PKCSReq(t)
		secondCert := wantBy(second.Send(t, secondReq), next)
		waitsNext := device(3, "waits for the next", toNext)
		waitsReq := waitsNext.PKCSReq(t)
		wantPending(t, waitsNext.Send(t, waitsReq))
		over := renewal(first, firstCert).To(toNext...)
		wantBy(over.Send(t, over.RenewalReq(t)), next)

		h := at(2)
		// Retries and polls of before.
		wantCert(t, first.Send(t, firstReq.Again()), firstCert)
		wantCert(t, second.Send(t, secondReq.Again()), secondCert)
		for _, w := range []struct {
			d  *sceptest.Device
			ca *scep.Identity
		}{{waitsOld, old}, {waitsNext, next}} {
			wantPending(t, w.d.Poll(t))
			cert, err := h.Approve(t.Context(), idOf(w.d), scep.Decision{})
			if err != nil {
				t.Fatal(err)
			}
			wantCert(t, w.d.Poll(t), cert)
			wantBy(w.d.Poll(t), w.ca)
		}
		wantOK(t, waitsNext.Send(t, waitsReq.Again()))
		late := device(4, "late", toOld)
		wantBy(late.Send(t, late.PKCSReq(t)), old)

		at(3)
		// The old certificate can be renewed, from the next CA, and asked for.
		again := renewal(first, firstCert).To(toNext...)
		again.TransactionID += " again"
		wantBy(again.Send(t, again.RenewalReq(t)), next)
		ask := first.To(toNext...)
		wantCert(t, ask.Send(t, ask.GetCert(t, firstCert.RawIssuer, firstCert.SerialNumber)), firstCert)
		wantFail(t, first.To(toNext...).Send(t, firstReq.Again()), scep.BadRequest, "the request is encrypted to another certificate")
		// Whom the old one keeps waiting no longer gets its certificate from the next.
		if cert, err := sw.Handler().Approve(t.Context(), idOf(lateOld), scep.Decision{}); err != nil || cert.CheckSignatureFrom(next.Certificate()) != nil {
			t.Errorf("approved after the old key was gone: %v", err)
		}
	})
}
