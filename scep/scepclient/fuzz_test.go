package scepclient

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/internal/cms"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// FuzzReply reads hostile replies: nothing that was not signed by the CA for this very message is
// accepted, and nothing panics. With sign set, the attacker has got the CA to sign any content.
func FuzzReply(f *testing.F) { // FZ15
	ca := sceptest.NewCA(f)
	key := sceptest.RSA(0)
	c := &Client{URL: "http://scep.example", Legacy: scep.TripleDES | scep.SHA1}
	raw, err := c.selfSigned(f.Context(), key, nil)
	if err != nil {
		f.Fatal(err)
	}
	cert, err := cms.ParseCertificate(raw)
	if err != nil {
		f.Fatal(err)
	}
	nonce := []byte("0123456789abcdef")
	s := &session{
		c: c, id: "transaction", by: party{cert, raw, key},
		ca: &CA{Certificates: ca.Certificates, Issuer: ca.Certificate(), Recipient: ca.Certificate(), Signers: ca.Certificates, issuers: ca.Certificates},
	}
	message := func(status string) *sceptest.Message {
		return &sceptest.Message{
			Type: typeCertRep, TransactionID: s.id, SenderNonce: nonce, Key: ca.Key, Certificate: ca.Certificate().Raw,
			Attributes: sceptest.With(
				attribute(sceptest.OIDPKIStatus, sceptest.TagPrintableString, status),
				attribute(sceptest.OIDRecipientNonce, sceptest.TagOctetString, string(nonce)),
				attribute(sceptest.OIDFailInfo, sceptest.TagPrintableString, "2"),
				attribute(sceptest.OIDFailInfoText, sceptest.TagUTF8String, "no"),
				attribute(oidHRESULT, sceptest.TagInteger, "no")),
		}
	}
	good := message(statusSuccess)
	edit(good, sceptest.Without(sceptest.OIDFailInfo))
	signer := mustParse(f, raw)
	good.Envelope = &sceptest.Envelope{Content: certsOnly(ca.Certificate().Raw), Recipients: []sceptest.Recipient{{Certificate: signer}}}
	f.Add(good.BER(), false)
	f.Add(good.Envelope.BER(), true)
	f.Add(certsOnly(ca.Certificate().Raw), true)
	f.Add(message(statusFailure).BER(), false)
	f.Add(message(statusPending).BER(), false)
	good.Indefinite, good.Pieces, good.Envelope.Indefinite = true, 10, true
	f.Add(good.BER(), false)
	f.Fuzz(func(t *testing.T, body []byte, sign bool) {
		if sign {
			m := message(statusSuccess)
			edit(m, sceptest.Without(sceptest.OIDFailInfo))
			m.Content = body
			body = m.BER()
		}
		certs, _, err := s.open(t.Context(), &answer{body: body}, nonce)
		if err == nil {
			_, err = s.accept(t.Context(), certs, key.Public())
		}
		if err != nil && (!strings.HasPrefix(err.Error(), "scepclient: ") || len(err.Error()) > 4000) {
			t.Errorf("error of %d bytes: %.100q", len(err.Error()), err)
		}
	})
}

func FuzzCapabilities(f *testing.F) { // FZ17
	for _, seed := range []string{standardCaps, "AES\r\n\r\nSHA-1", "\xef\xbb\xbfDES3\rRenewal", "<html>", "\x00\n\x1b[31m"} {
		f.Add([]byte(seed))
	}
	c := &Client{URL: "http://scep.example"}
	f.Fuzz(func(t *testing.T, body []byte) {
		caps := parseCapabilities(body)
		if len(caps.Keywords) > maxKeywords {
			t.Errorf("%d keywords", len(caps.Keywords))
		}
		for _, word := range caps.Keywords {
			if word == "" || len(word) > maxKeyword || strings.ContainsFunc(word, notInKeyword) || !caps.Has(word) {
				t.Errorf("keyword %q", word)
			}
		}
		again := parseCapabilities([]byte(strings.Join(caps.Keywords, "\r\n")))
		if strings.Join(again.Keywords, " ") != strings.Join(caps.Keywords, " ") {
			t.Errorf("%q became %q", caps.Keywords, again.Keywords)
		}
		if suite, err := c.Choose(caps); err == nil && (suite.cipher != cms.AES128 || suite.Hash.Size() < 32) {
			t.Errorf("%q: %+v", caps.Keywords, suite)
		}
	})
}

// FuzzCACertificates reads hostile answers to GetCACert.
func FuzzCACertificates(f *testing.F) { // FZ16
	ca, other := sceptest.NewCA(f), sceptest.NewCA(f, sceptest.RSA(3))
	ra := sceptest.NewRA(f, ca)
	f.Add(ca.Certificate().Raw)
	f.Add(certsOnly(ra.Certificate().Raw, ca.Certificate().Raw))
	f.Add(certsOnly(other.Certificate().Raw))
	f.Add([]byte("<html>"))
	roots := ca.Certificates
	f.Fuzz(func(t *testing.T, body []byte) {
		certs, err := parseCACertificates(body)
		if err != nil {
			return
		}
		got, err := choose(certs, roots, time.Now())
		if err != nil {
			return
		}
		for _, cert := range append(got.Signers, got.Recipient) {
			if !cert.Equal(ca.Certificate()) && cert.CheckSignatureFrom(ca.Certificate()) != nil {
				t.Errorf("%v was trusted", cert.Subject)
			}
		}
	})
}

// FuzzPending reads handles that were damaged on disk.
func FuzzPending(f *testing.F) {
	key := sceptest.RSA(0)
	raw, err := (&Client{}).selfSigned(f.Context(), key, nil)
	if err != nil {
		f.Fatal(err)
	}
	ca := sceptest.NewCA(f).Certificate().Raw
	cert := mustParse(f, raw)
	seed, err := json.Marshal(&Pending{
		URL: "http://scep.example", TransactionID: "transaction", Signer: raw, PublicKey: cert.RawSubjectPublicKeyInfo,
		Subject: cert.RawSubject, CA: [][]byte{ca}, Anchors: [][]byte{ca},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, body []byte) {
		var p Pending
		if json.NewDecoder(bytes.NewReader(body)).Decode(&p) != nil {
			return
		}
		by, pub, _, _, err := p.restore(key)
		if err == nil && (pub == nil || by.cert == nil) {
			t.Error("neither a key nor an error")
		}
	})
}

// FuzzNextCA reads answers to GetNextCACert. Nobody but the CA says who comes next.
func FuzzNextCA(f *testing.F) {
	ca, next := sceptest.NewCA(f), sceptest.NewCA(f, sceptest.RSA(6))
	good := nextAnswer(ca, next.Certificate().Raw)
	f.Add(good.BER())
	good.Indefinite, good.Pieces = true, 64
	f.Add(good.BER())
	f.Add(nextAnswer(next, next.Certificate().Raw).BER())
	f.Add(certsOnly(next.Certificate().Raw))
	f.Fuzz(func(t *testing.T, body []byte) {
		msg, certs, err := cms.ParseNextCA(body)
		if err != nil || msg.Verify(ca.Certificate().PublicKey) != nil {
			return
		}
		for _, cert := range certs {
			if !cert.Equal(next.Certificate()) {
				t.Errorf("%v was never signed", cert.Subject)
			}
		}
	})
}
