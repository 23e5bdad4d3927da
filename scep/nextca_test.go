package scep_test

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/internal/cms"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// TestNextCASignedOnce asks for the next CA again and again: the key is used once. Where it fails,
// it is left alone for some seconds.
func TestNextCASignedOnce(t *testing.T) {
	ca := sceptest.NewCA(t)
	var signed, ahead atomic.Int64
	var broken atomic.Bool
	wait := make(chan bool)
	key := sceptest.Key{Signer: ca.Key, On: func(op string) error {
		<-wait
		signed.Add(1)
		if broken.Load() {
			return errors.New("token is gone")
		}
		return nil
	}}
	c := scep.Config{
		CA: &scep.Identity{Certificates: ca.Certificates, Key: key}, Next: newNext(t), Log: silent,
		Time: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) },
	}
	ask := func(h *scep.Handler, ctx context.Context) int {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, "/scep?operation=GetNextCACert", nil))
		return w.Code
	}

	h := handler(t, c)
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	var ok atomic.Int64
	for i := range 20 {
		all.Go(func() {
			if i == 0 {
				ask(h, ctx) // goes away
			} else if ask(h, t.Context()) == http.StatusOK {
				ok.Add(1)
			}
		})
	}
	time.Sleep(10 * time.Millisecond)
	cancel()
	close(wait)
	all.Wait()
	if ok.Load() != 19 || signed.Load() != 1 {
		t.Errorf("%d answers, %d signatures", ok.Load(), signed.Load())
	}

	h = handler(t, c)
	broken.Store(true)
	signed.Store(0)
	for range 20 {
		if code := ask(h, t.Context()); code != http.StatusServiceUnavailable {
			t.Errorf("HTTP %d", code)
		}
	}
	if signed.Load() != 1 {
		t.Errorf("a key that fails was asked %d times", signed.Load())
	}
	broken.Store(false)
	ahead.Store(int64(11 * time.Second))
	if code := ask(h, t.Context()); code != http.StatusOK {
		t.Errorf("HTTP %d after the key is back", code)
	}
}

// TestNextCAAtTheEnd lets a CA come to its end with the next one at hand.
func TestNextCAAtTheEnd(t *testing.T) {
	day := 24 * time.Hour
	end := time.Now().Add(10 * day)
	ca := reissue(t, sceptest.NewCA(t), func(c *x509.Certificate) { c.NotAfter = end })
	next := newNext(t)
	for _, validity := range []time.Duration{5 * day, 365 * day} {
		var ahead atomic.Int64
		c := scep.Config{
			CA: ca, Next: next, Policy: &scep.Profile{Validity: validity}, Log: silent,
			Time: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) },
		}
		srv := sceptest.NewServer(t, c)
		for _, left := range []int{1, 0, -1} {
			ahead.Store(int64(time.Duration(10-left)*day + time.Minute*time.Duration(1-left)))
			getNextCA(t, srv, "")
			d := newConformer(srv)
			r := d.Send(t, d.PKCSReq(t))
			if left > 0 && validity < 10*day {
				if wantOK(t, r); r.Certificate.NotAfter.After(end) {
					t.Errorf("%d days left: certificate ends at %v", left, r.Certificate.NotAfter)
				}
			} else {
				wantHTTP(t, r, http.StatusServiceUnavailable)
			}
			d = d.To(next.Certificate())
			if r = d.Send(t, d.PKCSReq(t)); r.Certificate == nil || r.Certificate.CheckSignatureFrom(next.Certificate()) != nil {
				t.Errorf("%d days left: the next CA answers %v", left, r)
			}
			_, err := scep.New(srv.Config)
			if left < 0 && (err == nil || !strings.Contains(err.Error(), "has expired")) || left > 0 && err != nil {
				t.Errorf("%d days left: New returned %v", left, err)
			}
		}
	}
}

// withoutKeyID returns a CA whose certificate has no subjectKeyIdentifier, all under one name.
func withoutKeyID(t *testing.T, ca *scep.Identity) *scep.Identity {
	t.Helper()
	return reissue(t, ca, func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.SubjectKeyId, c.RawSubject, c.Subject = false, false, nil, nil, pkix.Name{CommonName: "CA"}
		c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}}
	})
}

func TestNewNext(t *testing.T) {
	ca, next := sceptest.NewCA(t), newNext(t)
	ra := sceptest.NewRA(t, ca)
	changed := func(change func(c *x509.Certificate)) *scep.Identity { return reissue(t, newNext(t), change) }
	var none *scep.Identity
	for want, c := range map[string]scep.Config{
		"Config.Next: is Config.CA":                                  {Next: ca},
		"Config.Next: scep: identity has no certificate":             {Next: &scep.Identity{}},
		"Config.Next: certificate":                                   {Next: &scep.Identity{Certificates: ra.Certificates, Key: ra.Key}},
		"Config.Next: the key does not belong to":                    {Next: &scep.Identity{Certificates: next.Certificates, Key: ca.Key}},
		"was not issued by the next one":                             {Next: &scep.Identity{Certificates: []*x509.Certificate{next.Certificate(), ca.Certificate()}}},
		"has expired":                                                {Next: changed(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })},
		"lacks digitalSignature and keyEncipherment":                 {Next: changed(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign })},
		"which cannot decrypt; use an RSA key; or set Config.NextRA": {Next: sceptest.NewCA(t, sceptest.P256())},
		"Config.NextRA is required with a Config.Next of type":       {Next: remoteCA{next}},
		"Config.NextRA: is set without Config.Next":                  {NextRA: ra},
		"Config.NextRA: is of no use while Config.Next has no key":   {Next: &scep.Identity{Certificates: next.Certificates}, NextRA: ra},
		"Config.NextRA: certificate":                                 {Next: next, NextRA: &scep.Identity{Certificates: next.Certificates}},
		"has issuer and serial number of another": {Next: changed(func(c *x509.Certificate) {
			c.RawSubject, c.SerialNumber = ca.Certificate().RawSubject, ca.Certificate().SerialNumber
		})},
		"Config.Next: certificate \"CN=CA\" has name and subjectKeyIdentifier () of another CA": {CA: withoutKeyID(t, ca), Next: withoutKeyID(t, next)},
		"Config.PastCA[0]: certificate \"CN=CA\" has name":                                      {CA: withoutKeyID(t, ca), PastCA: []scep.CA{withoutKeyID(t, next)}},
		"Config.PastRA[0]: certificate \"CN=CA\" has name":                                      {CA: withoutKeyID(t, ca), PastRA: []*scep.Identity{withoutKeyID(t, next)}},
		"\x00one without a key identifier":                                                      {CA: withoutKeyID(t, ca), Next: reissue(t, next, func(c *x509.Certificate) { c.RawSubject = withoutKeyID(t, ca).Certificate().RawSubject })},
		"Config.PastCA[1]: is nil":                                                              {PastCA: []scep.CA{next, none}},
		"Config.PastCA[0]: certificate":                                                         {PastCA: []scep.CA{ra}},
		"Config.PastRA[0]: is nil":                                                              {PastRA: []*scep.Identity{nil}},
		"Config.PastRA[0]: certificate":                                                         {PastRA: []*scep.Identity{{Certificates: next.Certificates}}},
		"":                                                                                      {Next: none, PastCA: []scep.CA{next}, PastRA: []*scep.Identity{ca, next, ra}},
		"\x00not valid yet":                                                                     {Next: changed(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) })},
		"\x00past, expired":                                                                     {PastCA: []scep.CA{changed(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })}},
		"\x00next CA known by its certificate":                                                  {Next: &scep.Identity{Certificates: next.Certificates}},
		"\x00same key, same name, new certificate":                                              {Next: reissue(t, ca, func(c *x509.Certificate) { c.SerialNumber = next.Certificate().SerialNumber })},
	} {
		if c.Log = silent; c.CA == nil {
			c.CA = ca
		}
		filled := sceptest.Fill(t, scep.Config{CA: ca, Log: silent})
		c.Depot, c.Challenge = filled.Depot, filled.Challenge
		_, err := scep.New(c)
		if want == "" || want[0] == 0 {
			if err != nil {
				t.Errorf("%q: %v", want, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestNextCAWithoutKey tells of a next CA whose key is not here.
func TestNextCAWithoutKey(t *testing.T) {
	next := newNext(t)
	srv := sceptest.NewServer(t, scep.Config{Next: &scep.Identity{Certificates: next.Certificates}})
	getNextCA(t, srv, "")
	d := newConformer(srv)
	m := d.PKCSReq(t)
	m.Envelope.Recipients = []sceptest.Recipient{{Certificate: next.Certificate()}}
	wantFail(t, d.Send(t, m), scep.BadRequest, "the request is encrypted to another certificate")
	d.Enroll(t)
}

// TestSameKeyNext has a next CA with name and key of the current one: both answer the same requests.
func TestSameKeyNext(t *testing.T) {
	ca := sceptest.NewCA(t)
	next := reissue(t, ca, func(c *x509.Certificate) {
		c.SerialNumber, c.NotAfter = newNext(t).Certificate().SerialNumber, c.NotAfter.AddDate(10, 0, 0)
	})
	srv := sceptest.NewServer(t, scep.Config{CA: ca, Next: next, ReplyChain: true, Policy: &scep.Profile{Validity: 15 * 365 * 24 * time.Hour}})
	for i, ca := range []*scep.Identity{ca, next} {
		d := newConformer(srv).To(ca.Certificate())
		m := d.PKCSReq(t)
		r := d.Send(t, m)
		wantOK(t, r)
		wantCert(t, d.Send(t, m.Again()), r.Certificate)
		if beyond := r.Certificate.NotAfter.After(srv.Config.CA.(*scep.Identity).Certificate().NotAfter); beyond != (i == 1) {
			t.Errorf("CA %d: certificate ends at %v", i, r.Certificate.NotAfter)
		}
		if len(r.Certificates) != 2 || !r.Certificates[1].Equal(ca.Certificate()) {
			t.Errorf("CA %d: reply has another chain", i)
		}
	}
	if n := issued(t, srv); n != 2 {
		t.Errorf("%d certificates", n)
	}
}

// TestPastCAAtTheEnd has the current CA stand in for a past one that has too little time left.
func TestPastCAAtTheEnd(t *testing.T) {
	old := reissue(t, sceptest.NewCA(t), func(c *x509.Certificate) { c.NotAfter = time.Now().Add(time.Hour) })
	now := newNext(t)
	var calls atomic.Int64
	srv := sceptest.NewServer(t, scep.Config{CA: now, PastRA: []*scep.Identity{old}, Challenge: scep.ChallengeFunc(func(context.Context, *scep.Request) error {
		calls.Add(1)
		return nil
	})})
	d := newConformer(srv).To(old.Certificate())
	m := d.PKCSReq(t)
	r := d.Send(t, m)
	wantOK(t, r)
	if err := r.Certificate.CheckSignatureFrom(now.Certificate()); err != nil {
		t.Error(err)
	}
	wantCert(t, d.Send(t, m.Again()), r.Certificate)
	if calls.Load() != 1 {
		t.Error("the retry was judged anew")
	}
}

// TestRecipientInOtherWords has two CAs with the same serial number, and clients that write the
// issuer's name in their own way.
func TestRecipientInOtherWords(t *testing.T) {
	ca := sceptest.NewCA(t)
	next := reissue(t, newNext(t), func(c *x509.Certificate) { c.SerialNumber = ca.Certificate().SerialNumber })
	srv := sceptest.NewServer(t, scep.Config{CA: ca, Next: next})
	for i, id := range []*scep.Identity{ca, next} {
		cert := id.Certificate()
		d := newConformer(srv).To(cert)
		m := d.PKCSReq(t)
		m.Envelope.Recipients = []sceptest.Recipient{{Certificate: cert, Issuer: sceptest.Name(
			sceptest.RDN{{Type: asn1.ObjectIdentifier{2, 5, 4, 10}, Tag: sceptest.TagUTF8String, Value: cert.Subject.Organization[0]}},
			sceptest.RDN{{Type: sceptest.OIDCommonName, Tag: sceptest.TagUTF8String, Value: cert.Subject.CommonName}},
		)}}
		r := d.Send(t, m)
		wantOK(t, r)
		if err := r.Certificate.CheckSignatureFrom(cert); err != nil {
			t.Errorf("CA %d: %v", i, err)
		}
	}
}

// TestPastCAWithResponder has replies to those who know a past CA alone signed by that one.
func TestPastCAWithResponder(t *testing.T) {
	old, now := sceptest.NewCA(t), newNext(t)
	ra, responder := sceptest.NewRA(t, now, sceptest.RSA(5)), sceptest.NewRA(t, now, sceptest.RSA4096())
	srv := sceptest.NewServer(t, scep.Config{CA: now, RA: ra, Responder: responder, PastRA: []*scep.Identity{old}})
	for _, ca := range [][]*x509.Certificate{old.Certificates, {ra.Certificate(), responder.Certificate()}} {
		d := newConformer(srv).To(ca...)
		r := d.Send(t, d.PKCSReq(t))
		if wantOK(t, r); !r.Signer.Equal(ca[len(ca)-1]) {
			t.Errorf("signed by %q", r.Signer.Subject)
		}
	}
}

// TestNextCAChain has what Config.Chain says in the answer, and always the CA that will issue.
func TestNextCAChain(t *testing.T) {
	ca := sceptest.NewCA(t)
	sub, top := sceptest.NewSubCA(t, ca), ca.Certificate()
	next, nextRA := sub.Certificate(), sceptest.NewRA(t, sub)
	for mode, want := range map[scep.ChainMode][]*x509.Certificate{
		scep.ChainAuto:   {nextRA.Certificate(), next, top},
		scep.ChainRoot:   {nextRA.Certificate(), next, top},
		scep.ChainFull:   {nextRA.Certificate(), next},
		scep.ChainIssuer: {nextRA.Certificate(), next},
		scep.ChainSingle: {nextRA.Certificate(), next},
	} {
		srv := sceptest.NewServer(t, scep.Config{CA: sceptest.NewCA(t, sceptest.RSA4096()), Next: sub, NextRA: nextRA, Chain: mode})
		msg, err := cms.ParseMessage(getNextCA(t, srv, ""))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := sceptest.ParseCertsOnly(msg.Content); err != nil || !slices.EqualFunc(got, want, (*x509.Certificate).Equal) {
			t.Errorf("mode %d: %d certificates, or others, %v", mode, len(got), err)
		}
	}
}

// TestNextOfAnotherReplica has a server that tells of no next CA, but serves those who know of it.
func TestNextOfAnotherReplica(t *testing.T) {
	next := newNext(t)
	srv := sceptest.NewServer(t, scep.Config{CA: sceptest.NewCA(t), PastRA: []*scep.Identity{next}})
	if res, _ := get(t, srv.URL+"?operation=GetNextCACert"); res.StatusCode != http.StatusNotFound {
		t.Errorf("HTTP %s", res.Status)
	}
	if err := newConformer(srv).To(next.Certificate()).Enroll(t).CheckSignatureFrom(next.Certificate()); err != nil {
		t.Error(err)
	}

	// The same with RAs of their own.
	nextRA := sceptest.NewRA(t, next)
	srv = sceptest.NewServer(t, scep.Config{CA: sceptest.NewCA(t), PastRA: []*scep.Identity{nextRA}, PastCA: []scep.CA{next}})
	if err := newConformer(srv).To(nextRA.Certificate(), next.Certificate()).Enroll(t).CheckSignatureFrom(next.Certificate()); err != nil {
		t.Error(err)
	}
}
