package scep_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// holder enrols a device and returns it with its certificate.
func holder(t *testing.T, srv *sceptest.Server) (*sceptest.Device, *x509.Certificate) {
	t.Helper()
	d := newConformer(srv)
	return d, d.Enroll(t)
}

// spare is a key that none of the devices has.
func spare() crypto.Signer { return sceptest.RSA3072() }

// renewal is a device that renews cert with a new key.
func renewal(d *sceptest.Device, cert *x509.Certificate) *sceptest.Device {
	next := d.As(cert, d.Key)
	next.Key = spare()
	next.TransactionID += ", renewed"
	return next
}

// revoke marks the certificate as revoked.
func revoke(t *testing.T, srv *sceptest.Server, cert *x509.Certificate) {
	t.Helper()
	rec, err := srv.Config.Depot.GetSerial(t.Context(), cert.RawIssuer, cert.SerialNumber)
	if err != nil {
		t.Fatal(err)
	}
	rec.State, rec.Revoked = scep.Revoked, time.Now()
	if err := srv.Config.Depot.Update(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
}

func TestConformanceREN(t *testing.T) {
	c := newTable(t, "REN")
	ca := newCA(t)
	srv := newServer(t, scep.Config{CA: ca, Renewal: scep.Renewal{On: true, Anytime: true}})
	off := newServer(t, scep.Config{CA: ca})
	refuses := func(t *testing.T, d *sceptest.Device, text string) {
		t.Helper()
		for _, kind := range []string{sceptest.TypeRenewalReq, sceptest.TypePKCSReq} {
			wantFail(t, d.Send(t, d.Request(t, kind, d.CSR())), scep.BadRequest, text)
		}
	}

	c.run("REN-01", func(t *testing.T) {
		d, old := holder(t, srv)
		next := renewal(d, old)
		m := next.RenewalReq(t)
		r := next.Send(t, m) // the envelope is to the old certificate
		wantOK(t, r)
		if !bytes.Equal(r.Certificate.RawSubject, old.RawSubject) || r.Certificate.SerialNumber.Cmp(old.SerialNumber) == 0 {
			t.Errorf("subject %q, serial number %x", r.Certificate.Subject, r.Certificate.SerialNumber)
		}
		wantCert(t, next.Send(t, m.Again()), r.Certificate)
		wantCert(t, next.Poll(t), r.Certificate)
		for _, rec := range records(t, srv) {
			if bytes.Equal(rec.Certificate, r.Certificate.Raw) && rec.Renews == "" {
				t.Error("the record does not say what was renewed")
			}
		}
		// The new one can be renewed in its turn.
		third := renewal(next, r.Certificate)
		third.Signer = spare()
		third.Key, third.Subject = sceptest.RSA(5), d.Subject
		wantOK(t, third.Send(t, third.RenewalReq(t)))
	})
	c.run("REN-02", func(t *testing.T) {
		d, old := holder(t, srv)
		same := d.As(old, d.Key)
		r := same.Send(t, same.RenewalReq(t))
		if wantOK(t, r); r.Certificate.Equal(old) {
			t.Error("the old certificate again")
		}
		strict := newServer(t, scep.Config{Renewal: scep.Renewal{On: true, Anytime: true, NewKey: true}})
		d, old = holder(t, strict)
		refuses(t, d.As(old, d.Key), "a renewal needs a new key")
		wantOK(t, renewal(d, old).Send(t, renewal(d, old).RenewalReq(t)))
	})
	c.run("REN-03", func(t *testing.T) {
		d, old := holder(t, srv)
		renewal(d, old).Enroll(t)
	})
	c.run("REN-04", func(t *testing.T) {
		for _, challenge := range []string{sceptest.Secret, "of yesterday"} {
			d, old := holder(t, srv)
			next := renewal(d, old)
			next.Challenge = challenge
			wantOK(t, next.Send(t, next.RenewalReq(t)))
		}
		both := newServer(t, scep.Config{Renewal: scep.Renewal{On: true, Anytime: true, Challenge: true}})
		d, old := holder(t, both)
		refuses(t, renewal(d, old), "")
		next := renewal(d, old)
		next.Challenge = sceptest.Secret
		wantOK(t, next.Send(t, next.RenewalReq(t)))
	})
	c.run("REN-05", func(t *testing.T) {
		for name, values := range map[string][][]byte{"no value": {}, "empty": {printable("")}} {
			d, old := holder(t, srv)
			next := renewal(d, old)
			csr := next.CSR()
			csr.ChallengeValues = values
			if r := next.Send(t, next.Request(t, sceptest.TypeRenewalReq, csr)); r.Certificate == nil {
				t.Errorf("%s: answer is %v", name, r)
			}
		}
	})
	c.run("REN-06", func(t *testing.T) {
		d := newConformer(srv)
		d.Challenge = ""
		refuses(t, d, "")
	})
	c.run("REN-07", func(t *testing.T) {
		d, old := holder(t, srv)
		for name, cert := range map[string]sceptest.Certificate{
			"another key": {Key: sceptest.RSA(5), Issuer: old.RawIssuer, Subject: old.RawSubject, Serial: old.SerialNumber.Bytes()},
			"same key":    {Key: d.Key, SignedBy: sceptest.RSA(5), Issuer: old.RawIssuer, Subject: old.RawSubject, Serial: old.SerialNumber.Bytes()},
			"unsigned":    {Key: d.Key, Issuer: old.RawIssuer, Subject: old.RawSubject, Serial: old.SerialNumber.Bytes(), Signature: func([]byte) []byte { return nil }},
		} {
			for _, challenge := range []string{"", sceptest.Secret} {
				forger := *d
				forger.Signer, forger.Certificate, forger.Key, forger.Challenge = cert.Key, cert.DER(), spare(), challenge
				for _, kind := range []string{sceptest.TypeRenewalReq, sceptest.TypePKCSReq} {
					if r := forger.Send(t, forger.Request(t, kind, forger.CSR())); r.Certificate != nil {
						t.Errorf("%s, type %s, challenge %q: answer is %v", name, kind, challenge, r)
					}
				}
			}
		}
		// The real certificate, without its key.
		thief := renewal(d, old)
		thief.Signer = sceptest.RSA(5)
		wantFail(t, thief.Send(t, thief.RenewalReq(t)), scep.BadMessageCheck, "")
	})
	c.run("REN-08", func(t *testing.T) {
		d, old := holder(t, srv)
		revoke(t, srv, old)
		refuses(t, renewal(d, old), "the certificate that signed the message is revoked")
		next := renewal(d, old)
		next.Challenge = sceptest.Secret // does not help
		refuses(t, next, "the certificate that signed the message is revoked")
	})
	c.run("REN-09", func(t *testing.T) {
		var ahead atomic.Int64
		day := 24 * time.Hour
		srv := newServer(t, scep.Config{
			Renewal: scep.Renewal{On: true, Window: 10 * day, Grace: 2 * day},
			Policy:  &scep.Profile{Validity: 30 * day, Backdate: -1},
			Time:    func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) },
		})
		d, old := holder(t, srv)
		at := func(days int, text string) {
			t.Helper()
			ahead.Store(int64(time.Duration(days)*day + time.Hour))
			next := renewal(d, old)
			next.TransactionID = time.Duration(ahead.Load()).String()
			r := next.Send(t, next.RenewalReq(t))
			if text == "" {
				wantOK(t, r)
			} else {
				wantFail(t, r, scep.BadRequest, text)
			}
		}
		ahead.Store(0)
		next := renewal(d, old)
		r := next.Send(t, next.RenewalReq(t))
		if wantFail(t, r, scep.BadRequest, ""); len(r.FailInfoText) < 20 || r.FailInfoText[:20] != "it is too early to r" {
			t.Errorf("failInfoText is %q", r.FailInfoText)
		}
		at(20, "")
		at(29, "")
		at(30, "")
		at(31, "")
		at(32, "the certificate that signed the message has expired")
		at(-1, "the certificate that signed the message is not yet valid")
	})
	c.run("REN-10", func(t *testing.T) {
		stranger := newCA(t, sceptest.RSA(5))
		twin := newServer(t, scep.Config{CA: stranger})
		d, foreign := holder(t, twin)
		d.URL = srv.URL
		here := newConformer(srv)
		here.Key, here.Subject = d.Key, d.Subject
		refuses(t, renewal(here, foreign), "")
		// One with the name of our CA, which did not sign it.
		named := sceptest.Certificate{Key: d.Key, SignedBy: stranger.Key, Issuer: ca.Certificate().RawSubject, Subject: d.Subject}
		here.Signer, here.Certificate, here.Key = d.Key, named.DER(), spare()
		refuses(t, here, "")
		// The same, after somebody wrote it into the depot.
		planted, err := x509.ParseCertificate(here.Certificate)
		if err != nil {
			t.Fatal(err)
		}
		id := scep.ID(fmt.Sprintf("%064x", planted.SerialNumber))
		if err := srv.Config.Depot.Create(t.Context(), &scep.Record{
			ID: id, Transaction: id, State: scep.Issued, Issuer: planted.RawIssuer, Serial: planted.SerialNumber,
			Certificate: planted.Raw, NotAfter: planted.NotAfter, Created: time.Now(), Changed: time.Now(),
		}); err != nil {
			t.Fatal(err)
		}
		refuses(t, here, "the certificate that signed the message was not issued here")
		// One of our CA that is in another server's depot.
		other, old := holder(t, off)
		here = newConformer(srv)
		here.Key, here.Subject = other.Key, other.Subject
		refuses(t, renewal(here, old), "the certificate that signed the message was not issued here")
	})
	c.run("REN-11", func(t *testing.T) {
		d, old := holder(t, srv)
		next := renewal(d, old)
		next.Subject = sceptest.CN("administrator")
		refuses(t, next, "the subject is not that of the certificate that signed the message")
		next = renewal(d, old)
		csr := next.CSR()
		csr.Extensions = []pkix.Extension{askSAN}
		wantFail(t, next.Send(t, next.Request(t, sceptest.TypeRenewalReq, csr)), scep.BadRequest, "an alternative name is not in the certificate that signed the message")
		// The same name in another string type is the same name.
		next = renewal(d, old)
		next.Subject = sceptest.Name(sceptest.RDN{{Type: sceptest.OIDCommonName, Tag: sceptest.TagUTF8String, Value: old.Subject.CommonName}})
		wantOK(t, next.Send(t, next.RenewalReq(t)))
	})
	c.run("REN-12", func(t *testing.T) {
		d, old := holder(t, off)
		next := renewal(d, old)
		wantFail(t, next.Send(t, next.RenewalReq(t)), scep.BadRequest, "renewal is not offered")
		wantFail(t, next.Send(t, next.PKCSReq(t)), scep.BadRequest, "")
		d = newConformer(off)
		wantFail(t, d.Send(t, d.RenewalReq(t)), scep.BadRequest, "renewal is not offered")
	})
	c.run("REN-13", func(t *testing.T) {
		ra := newRA(t, ca)
		withRA := newServer(t, scep.Config{CA: ca, RA: ra, Renewal: scep.Renewal{On: true, Anytime: true}})
		for _, srv := range []*sceptest.Server{srv, withRA} {
			for _, id := range []*scep.Identity{ca, ra} {
				for _, challenge := range []string{"", sceptest.Secret} {
					d := newConformer(srv).As(id.Certificate(), id.Key)
					d.Subject, d.Challenge = id.Certificate().RawSubject, challenge
					refuses(t, d, "")
				}
			}
			// A certificate for the key of the CA.
			d := newConformer(srv)
			d.Key = ca.Key
			refuses(t, d, "the key in the CSR belongs to the CA")
		}
	})
	c.run("REN-14", func(t *testing.T) {
		plain := newServer(t, scep.Config{CA: ca, Policy: &scep.Profile{ExtKeyUsage: []x509.ExtKeyUsage{}}, Renewal: scep.Renewal{On: true, Anytime: true}})
		d, old := holder(t, plain)
		if len(old.ExtKeyUsage) != 0 {
			t.Errorf("extKeyUsage is %v", old.ExtKeyUsage)
		}
		renewal(d, old).Enroll(t)
		sub := newSubCA(t, ca) // issued by our CA, but not in the depot
		refuses(t, newConformer(srv).As(sub.Certificate(), sub.Key), "the certificate that signed the message was not issued here")
	})
}

func TestConformanceCRT(t *testing.T) {
	c := newTable(t, "CRT")
	srv := newServer(t, scep.Config{Renewal: scep.Renewal{On: true, Anytime: true}})
	ask := func(t *testing.T, d *sceptest.Device, cert *x509.Certificate) *sceptest.Reply {
		t.Helper()
		return d.Send(t, d.GetCert(t, cert.RawIssuer, cert.SerialNumber))
	}

	c.run("CRT-01", func(t *testing.T) {
		d, cert := holder(t, srv)
		wantCert(t, ask(t, d, cert), cert)                 // by the key
		wantCert(t, ask(t, d.As(cert, d.Key), cert), cert) // by the certificate
		next := renewal(d, cert)
		renewed := next.Enroll(t)
		wantCert(t, ask(t, next.As(renewed, next.Key), cert), cert) // by one of the same subject

		stranger := newConformer(srv)
		stranger.Key, stranger.Subject = sceptest.RSA(5), d.Subject
		wantFail(t, ask(t, stranger, cert), scep.BadCertID, "") // the subject alone says nothing
		other, own := holder(t, srv)
		other.Key = sceptest.RSA(6)
		wantFail(t, ask(t, other.As(own, sceptest.RSA(6)), cert), scep.BadMessageCheck, "")

		revoke(t, srv, renewed)
		wantFail(t, ask(t, next.As(renewed, next.Key), cert), scep.BadCertID, "")
	})
	c.run("CRT-02", func(t *testing.T) {
		d, cert := holder(t, srv)
		wantFail(t, d.Send(t, d.GetCert(t, cert.RawIssuer, big.NewInt(5))), scep.BadCertID, "")
		wantFail(t, d.Send(t, d.GetCert(t, sceptest.CN("another CA"), cert.SerialNumber)), scep.BadCertID, "")
		revoke(t, srv, cert)
		wantFail(t, ask(t, d, cert), scep.BadCertID, "")
	})
	c.run("CRT-03", func(t *testing.T) {
		var sign atomic.Bool
		ca := newCA(t)
		srv := newServer(t, scep.Config{Challenge: sceptest.Pend(sceptest.Secret), CA: sceptest.CA{CA: ca, On: func(op string, _ *x509.Certificate) (bool, error) {
			if op == "Sign" && !sign.Load() {
				return false, context.DeadlineExceeded
			}
			return false, nil
		}}})
		d := newConformer(srv)
		wantPending(t, d.Send(t, d.PKCSReq(t)))
		if _, err := srv.Handler.Approve(t.Context(), recordOf(t, srv, d.TransactionID).ID, scep.Decision{}); err == nil {
			t.Error("approved, although the CA cannot sign")
		}
		rec := recordOf(t, srv, d.TransactionID) // has its serial number
		wantFail(t, d.Send(t, d.GetCert(t, ca.Certificate().RawSubject, rec.Serial)), scep.BadCertID, "")
		sign.Store(true)
		wantOK(t, d.Poll(t))
		wantOK(t, d.Send(t, d.GetCert(t, ca.Certificate().RawSubject, rec.Serial)))
	})
	c.run("CRT-05", func(t *testing.T) {
		d, cert := holder(t, srv)
		serial := func(content []byte) *sceptest.Reply {
			return d.Send(t, d.Message(t, sceptest.TypeGetCert, sceptest.TLV(0x30, cert.RawIssuer, sceptest.TLV(sceptest.TagInteger, content))))
		}
		wantFail(t, d.Send(t, d.GetCert(t, cert.RawIssuer, new(big.Int).Neg(cert.SerialNumber))), scep.BadCertID, "")
		wantFail(t, serial([]byte{0xff}), scep.BadCertID, "")
		wantFail(t, serial(append([]byte{0x7f}, make([]byte, 1000)...)), scep.BadCertID, "")
		wantFail(t, serial(append([]byte{0, 0}, cert.SerialNumber.Bytes()...)), scep.BadCertID, "no such certificate") // no INTEGER
		wantFail(t, serial(nil), scep.BadCertID, "no such certificate")
	})
}
