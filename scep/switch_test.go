package scep_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/internal/cms"
	"github.com/scepkit/scepkit/scep/sceptest"
)

func TestSwitchEmpty(t *testing.T) {
	h := handler(t, scep.Config{})
	for name, s := range map[string]*scep.Switch{"zero": {}, "nil": scep.NewSwitch(nil)} {
		ask := func() *httptest.ResponseRecorder {
			w := httptest.NewRecorder()
			s.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/scep?operation=GetCACaps", nil))
			return w
		}
		if w := ask(); w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" || s.Handler() != nil {
			t.Errorf("%s: HTTP %d, %v", name, w.Code, w.Header())
		}
		if old := s.Set(h); old != nil || s.Handler() != h || ask().Code != http.StatusOK {
			t.Errorf("%s: Set returned %p", name, old)
		}
		if old := s.Set(nil); old != h || ask().Code != http.StatusServiceUnavailable {
			t.Errorf("%s: Set(nil) returned %p", name, old)
		}
	}
}

// TestSwitchUnderWay replaces a Handler while a request is under way: that one answers it.
func TestSwitchUnderWay(t *testing.T) {
	old, next := sceptest.NewCA(t), newNext(t)
	begun, goOn := make(chan bool), make(chan bool)
	sw := scep.NewSwitch(handler(t, scep.Config{CA: old, Challenge: scep.ChallengeFunc(func(context.Context, *scep.Request) error {
		close(begun)
		<-goOn
		return nil
	})}))
	srv := httptest.NewServer(sw)
	defer srv.Close()
	slow := sceptest.NewDevice(srv.URL, sceptest.RSA(0), "slow").To(old.Certificate())
	answered := make(chan *sceptest.Reply)
	go func() { answered <- slow.Send(t, slow.PKCSReq(t)) }()
	<-begun
	sw.Set(handler(t, scep.Config{CA: next}))
	if err := sceptest.NewDevice(srv.URL, sceptest.RSA(1), "quick").Enroll(t).CheckSignatureFrom(next.Certificate()); err != nil {
		t.Error(err)
	}
	close(goOn)
	r := <-answered
	if wantOK(t, r); r.Certificate.CheckSignatureFrom(old.Certificate()) != nil {
		t.Error("not by the CA that it began with")
	}
}

// TestSwitchUnderLoad changes RAs and CAs all the time, forth and back, while devices enrol, ask
// again and poll. Whatever a device is told by GetCACert or GetNextCACert is one CA with an RA of
// its own; what it then addresses to that RA is answered by that RA with a certificate of that CA.
func TestSwitchUnderLoad(t *testing.T) {
	old, next := sceptest.NewCA(t, sceptest.P256()), sceptest.NewCA(t, sceptest.P384())
	oldRA := [2]*scep.Identity{sceptest.NewRA(t, old, sceptest.RSA(4)), sceptest.NewRA(t, old, sceptest.RSA(5))}
	nextRA := [2]*scep.Identity{sceptest.NewRA(t, next, sceptest.RSA(6)), sceptest.NewRA(t, next, sceptest.RSA(7))}
	ofOld, ofNext := oldRA[:], nextRA[:]
	memory := new(depot.Memory)
	var steps []*scep.Handler
	for i := range 2 {
		others := []*scep.Identity{oldRA[1-i], nextRA[1-i]}
		base := scep.Config{Depot: memory, Log: silent}
		before, during, after := base, base, base
		before.CA, before.RA, before.PastRA, before.PastCA = old, oldRA[i], append(others, nextRA[i]), []scep.CA{next}
		during.CA, during.RA, during.Next, during.NextRA, during.PastRA = old, oldRA[i], next, nextRA[i], others
		after.CA, after.RA, after.PastRA, after.PastCA = next, nextRA[i], append(others, oldRA[i]), []scep.CA{old}
		steps = append(steps, handler(t, before), handler(t, during), handler(t, after))
	}
	sw := scep.NewSwitch(steps[0])
	srv := httptest.NewServer(sw)
	defer srv.Close()

	ask := func(operation string) (int, []byte) {
		w := httptest.NewRecorder()
		sw.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/scep?operation="+operation, nil))
		body, _ := io.ReadAll(w.Body)
		return w.Code, body
	}
	// known reports an RA and its CA.
	known := func(certs []*x509.Certificate, ca *scep.Identity, ras []*scep.Identity) bool {
		return len(certs) == 2 && certs[1].Equal(ca.Certificate()) &&
			slices.ContainsFunc(ras, func(ra *scep.Identity) bool { return certs[0].Equal(ra.Certificate()) })
	}
	told := func(t *testing.T, upcoming bool) []*x509.Certificate {
		if upcoming {
			code, body := ask("GetNextCACert")
			if code == http.StatusOK {
				msg, err := cms.ParseMessage(body)
				if err != nil {
					t.Error(err)
					return nil
				}
				certs, err := sceptest.ParseCertsOnly(msg.Content)
				signed := slices.ContainsFunc(ofOld, func(ra *scep.Identity) bool { return msg.Verify(ra.Certificate().PublicKey) == nil })
				if err != nil || !known(certs, next, ofNext) || !signed {
					t.Errorf("GetNextCACert: %d certificates, signed by the CA %t, %v", len(certs), signed, err)
				}
				return certs
			}
			if code != http.StatusNotFound {
				t.Errorf("GetNextCACert: HTTP %d", code)
			}
		}
		_, body := ask("GetCACert")
		certs, err := sceptest.ParseCertsOnly(body)
		if err != nil || !known(certs, old, ofOld) && !known(certs, next, ofNext) {
			t.Errorf("GetCACert: %d certificates, %v", len(certs), err)
		}
		return certs
	}

	const devices, rounds = 24, 4
	var all sync.WaitGroup
	var mu sync.Mutex
	issued := map[string]int{}
	for i := range devices {
		all.Go(func() {
			for round := range rounds {
				certs := told(t, round%2 == 1)
				if t.Failed() {
					return
				}
				d := sceptest.NewDevice(srv.URL, sceptest.RSA(i%4), fmt.Sprintf("device %d, %d", i, round)).To(certs...)
				d.TransactionID = fmt.Sprintf("transaction %d, %d", i, round)
				m := d.PKCSReq(t)
				var first *sceptest.Reply
				for j, message := range []*sceptest.Message{m, m.Again(), d.CertPoll(t)} {
					sw.Set(steps[rand.IntN(len(steps))])
					r := d.Send(t, message)
					if j == 0 {
						first = r
					}
					if r.Certificate == nil || !r.Signer.Equal(certs[0]) || r.Certificate.CheckSignatureFrom(certs[1]) != nil || !r.Certificate.Equal(first.Certificate) {
						t.Errorf("device %d, answer %d to what was addressed to %q: %v", i, j, certs[0].Subject, r)
						return
					}
				}
				mu.Lock()
				issued[certs[0].Subject.CommonName]++
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if len(issued) != 4 {
		t.Errorf("issued by way of %v", issued)
	}
	list, err := memory.List(t.Context(), scep.Query{Limit: 1 << 20})
	if err != nil || len(list) != devices*rounds {
		t.Errorf("%d records, %v", len(list), err)
	}
}

// TestSwitchRetriesAtOnce has one message arrive several times at once, at servers that have been
// switched and at one that has not: there is one certificate, though the CA never signs alike twice.
func TestSwitchRetriesAtOnce(t *testing.T) {
	old, next := sceptest.NewCA(t, sceptest.P256()), sceptest.NewCA(t, sceptest.P384())
	ra, nextRA := sceptest.NewRA(t, old), sceptest.NewRA(t, next, sceptest.RSA(6))
	memory := new(depot.Memory)
	var urls []string
	steps := rolloverSteps(scep.Config{Depot: memory, Log: silent}, old, next, ra, nextRA)
	for _, c := range steps[:3] {
		srv := httptest.NewServer(scep.NewSwitch(handler(t, c)))
		defer srv.Close()
		urls = append(urls, srv.URL, srv.URL)
	}
	for i := range 5 {
		d := sceptest.NewDevice(urls[0], sceptest.RSA(i%4), fmt.Sprint("device ", i)).To(certsOf(old, ra)...)
		m := d.PKCSReq(t)
		replies := make([]*sceptest.Reply, len(urls))
		var all sync.WaitGroup
		for j, url := range urls {
			all.Go(func() {
				d, m := *d, m.Again()
				d.URL = url
				replies[j] = d.Send(t, m)
			})
		}
		all.Wait()
		for _, r := range replies {
			if wantOK(t, r); !r.Certificate.Equal(replies[0].Certificate) || r.Certificate.CheckSignatureFrom(old.Certificate()) != nil {
				t.Errorf("device %d: another certificate", i)
			}
		}
		if list, err := memory.List(t.Context(), scep.Query{}); err != nil || len(list) != i+1 {
			t.Errorf("%d records, %v", len(list), err)
		}
	}
}
