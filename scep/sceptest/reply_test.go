package sceptest_test

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"net/http"
	"strings"
	"testing"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// A forge makes CertReps that are wrong in one thing.
type forge struct {
	ca      *scep.Identity
	request *sceptest.Message
	signer  *x509.Certificate // of the request
	issued  []byte
}

func newForge(t *testing.T) *forge {
	ca := sceptest.NewCA(t)
	srv := sceptest.NewServer(t, scep.Config{CA: ca})
	d := srv.Device(0)
	f := &forge{ca: ca, request: d.PKCSReq(t)}
	var err error
	if f.signer, err = x509.ParseCertificate(f.request.Certificate); err != nil {
		t.Fatal(err)
	}
	f.issued = sceptest.Certificate{Key: d.Key, SignedBy: ca.Key, Issuer: ca.Certificate().RawSubject, Subject: d.Subject}.DER()
	return f
}

func text(id asn1.ObjectIdentifier, tag byte, s string) sceptest.Attribute {
	return sceptest.Attribute{Type: id, Values: [][]byte{sceptest.TLV(tag, []byte(s))}}
}

// certRep returns a good reply with this status.
func (f *forge) certRep(status string) *sceptest.Message {
	m := &sceptest.Message{
		Type: "3", TransactionID: f.request.TransactionID, SenderNonce: sceptest.Nonce(16),
		Key: f.ca.Key, Certificate: f.ca.Certificate().Raw, Scheme: sceptest.PlainRSA, Content: []byte{},
	}
	attrs := []sceptest.Attribute{
		text(sceptest.OIDPKIStatus, sceptest.TagPrintableString, status),
		text(sceptest.OIDRecipientNonce, sceptest.TagOctetString, string(f.request.SenderNonce)),
	}
	switch status {
	case sceptest.StatusFailure:
		attrs = append(attrs, text(sceptest.OIDFailInfo, sceptest.TagPrintableString, "2"), text(sceptest.OIDFailInfoText, sceptest.TagUTF8String, "no"))
	case sceptest.StatusSuccess:
		m.Content = nil
		m.Envelope = &sceptest.Envelope{Content: certsOnly(f.issued), Recipients: []sceptest.Recipient{{Certificate: f.signer}}}
	}
	m.Attributes = sceptest.With(attrs...)
	return m
}

func certsOnly(certs ...[]byte) []byte {
	return sceptest.TLV(0x30, sceptest.OID(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}), sceptest.TLV(0xa0, sceptest.TLV(0x30,
		sceptest.Integer(1), sceptest.TLV(0x31), sceptest.TLV(0x30, sceptest.OID(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1})),
		sceptest.TLV(0xa0, certs...), sceptest.TLV(0x31))))
}

// edit adds an edit of the attributes to those that m has.
func edit(next func([]sceptest.Attribute) []sceptest.Attribute) func(m *sceptest.Message) {
	return func(m *sceptest.Message) {
		first := m.Attributes
		m.Attributes = func(a []sceptest.Attribute) []sceptest.Attribute { return next(first(a)) }
	}
}

func TestParseReply(t *testing.T) {
	t.Parallel()
	f := newForge(t)
	ca := f.ca.Certificates
	for _, status := range []string{sceptest.StatusSuccess, sceptest.StatusFailure, sceptest.StatusPending} {
		r, err := sceptest.ParseReply(f.certRep(status).BER(), f.request, ca)
		if err != nil || r.Status != status || (r.Certificate != nil) != (status == sceptest.StatusSuccess) {
			t.Errorf("%v, %v", r, err)
		}
		if info, refused := r.Refusal(); refused != (status == sceptest.StatusFailure) || refused && info != scep.BadRequest {
			t.Errorf("refusal of %v is %v, %t", r, info, refused)
		}
	}
	replace := func(id asn1.ObjectIdentifier, tag byte, s string) func(m *sceptest.Message) {
		return edit(sceptest.Replace(id, sceptest.TLV(tag, []byte(s))))
	}
	without := func(id asn1.ObjectIdentifier) func(m *sceptest.Message) { return edit(sceptest.Without(id)) }
	with := func(a sceptest.Attribute) func(m *sceptest.Message) { return edit(sceptest.With(a)) }
	other := sceptest.NewCA(t, sceptest.RSA(5))
	const success, failure, pending = sceptest.StatusSuccess, sceptest.StatusFailure, sceptest.StatusPending
	for _, tt := range []struct {
		want   string
		status string
		change func(m *sceptest.Message)
	}{
		{"INV-2", pending, func(m *sceptest.Message) { m.Indefinite = true }},
		{"INV-2", pending, func(m *sceptest.Message) { m.Trailer = []byte{0} }},
		{"INV-2", success, func(m *sceptest.Message) { m.Pieces = 100 }},
		{"INV-3", pending, func(m *sceptest.Message) { m.ContentType = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 3} }},
		{"INV-4", pending, func(m *sceptest.Message) { m.SignerInfos = func(i [][]byte) [][]byte { return nil } }},
		{"INV-4", pending, func(m *sceptest.Message) { m.SignerInfos = func(i [][]byte) [][]byte { return append(i, i[0]) } }},
		{"INV-4", pending, func(m *sceptest.Message) { m.Signature = func(b []byte) []byte { b[5] ^= 1; return b } }},
		{"INV-4", pending, func(m *sceptest.Message) { m.Key, m.Certificate = other.Key, other.Certificate().Raw }},
		{"INV-4", pending, func(m *sceptest.Message) { m.Bag = [][]byte{} }},
		{"INV-4", pending, func(m *sceptest.Message) { m.Unsigned = []sceptest.Attribute{text(oidSome, 4, "x")} }},
		{"INV-4", pending, func(m *sceptest.Message) { m.DigestAlgorithm = sceptest.Algorithm(oidSome, nil) }},
		{"INV-5", pending, func(m *sceptest.Message) { m.NoSignedAttrs = true }},
		{"INV-5", pending, func(m *sceptest.Message) { m.Order = sceptest.AsListed; edit(sceptest.Reverse)(m) }},
		{"INV-5", pending, without(sceptest.OIDContentType)},
		{"INV-5", pending, without(sceptest.OIDMessageDigest)},
		{"INV-5", success, func(m *sceptest.Message) { m.MessageDigest = func(b []byte) []byte { b[0] ^= 1; return b } }},
		{"INV-6", pending, func(m *sceptest.Message) { m.Type = "19" }},
		{"INV-6", pending, func(m *sceptest.Message) { m.TypeTag = sceptest.TagUTF8String }},
		{"INV-7", pending, replace(sceptest.OIDPKIStatus, sceptest.TagPrintableString, "11")},
		{"INV-7", pending, replace(sceptest.OIDPKIStatus, sceptest.TagUTF8String, "3")},
		{"INV-7", pending, without(sceptest.OIDPKIStatus)},
		{"INV-8", pending, func(m *sceptest.Message) { m.TransactionID += "x" }},
		{"INV-8", pending, func(m *sceptest.Message) { m.TransactionIDTag = sceptest.TagIA5String }},
		{"INV-9", pending, without(sceptest.OIDRecipientNonce)},
		{"INV-9", pending, replace(sceptest.OIDRecipientNonce, sceptest.TagOctetString, "another")},
		{"INV-10", pending, without(sceptest.OIDSenderNonce)},
		{"INV-10", pending, func(m *sceptest.Message) { m.SenderNonce = []byte{1} }},
		{"INV-10", pending, func(m *sceptest.Message) { m.SenderNonce = f.request.SenderNonce }},
		{"INV-11", failure, without(sceptest.OIDFailInfo)},
		{"INV-11", failure, replace(sceptest.OIDFailInfo, sceptest.TagPrintableString, "9")},
		{"INV-11", pending, with(text(sceptest.OIDFailInfo, sceptest.TagPrintableString, "2"))},
		{"INV-12", failure, replace(sceptest.OIDFailInfoText, sceptest.TagPrintableString, "no")},
		{"INV-12", failure, replace(sceptest.OIDFailInfoText, sceptest.TagUTF8String, "\xff")},
		{"INV-12", pending, with(text(sceptest.OIDFailInfoText, sceptest.TagUTF8String, "no"))},
		{"INV-13", pending, func(m *sceptest.Message) { m.Content = []byte("x") }},
		{"INV-13", success, func(m *sceptest.Message) { m.NoContent = true }},
		{"INV-14", pending, with(text(sceptest.OIDMessageType, sceptest.TagPrintableString, "3"))},
		{"INV-14", pending, edit(sceptest.Replace(sceptest.OIDMessageType, sceptest.TLV(0x13, []byte("3")), sceptest.TLV(0x13, []byte("3"))))},
		{"INV-15", pending, func(m *sceptest.Message) { m.Hash = crypto.MD5 }},
		{"INV-15", pending, func(m *sceptest.Message) { m.Scheme = sceptest.WithHash }},
		{"ENV-1", success, func(m *sceptest.Message) { m.Content = certsOnly(f.issued) }},
		{"ENV-1", success, func(m *sceptest.Message) { m.Envelope.EncType = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2} }},
		{"ENV-2", success, func(m *sceptest.Message) {
			m.Envelope.Recipients = append(m.Envelope.Recipients, m.Envelope.Recipients[0])
		}},
		{"ENV-2", success, func(m *sceptest.Message) { m.Envelope.Recipients[0].Certificate = other.Certificate() }},
		{"ENV-2", success, func(m *sceptest.Message) { m.Envelope.Recipients[0].OAEP = &sceptest.OAEP{} }},
		{"ENV-3", success, func(m *sceptest.Message) { m.Envelope.Cipher = sceptest.SingleDES }},
		{"ENV-3", success, func(m *sceptest.Message) { m.Envelope.Cipher = sceptest.TripleDES }},
		{"ENV-3", success, func(m *sceptest.Message) { m.Envelope.Recipients[0].Key = sceptest.Nonce(15) }},
		{"ENV-3", success, func(m *sceptest.Message) {
			m.Envelope.Pad = func(b []byte) []byte { return append(bytes.Clone(b), make([]byte, 32-len(b)%16)...) }
		}},
		{"ENV-4", success, func(m *sceptest.Message) { m.Envelope.Content = f.issued }},
		{"ENV-4", success, func(m *sceptest.Message) { m.Envelope.Content = certsOnly() }},
		{"ENV-5", success, func(m *sceptest.Message) { m.Envelope.Content = certsOnly(other.Certificate().Raw) }},
		{"ENV-5", success, func(m *sceptest.Message) { m.Envelope.Content = certsOnly(other.Certificate().Raw, f.issued) }},
	} {
		m := f.certRep(tt.status)
		tt.change(m)
		r, err := sceptest.ParseReply(m.BER(), f.request, ca)
		if err == nil || !strings.Contains(err.Error(), tt.want+":") {
			t.Errorf("%s was not found: %v, %v", tt.want, r, err)
		}
	}
	for _, body := range [][]byte{nil, {0}, {0x30}, {0x30, 0x80}, []byte("<html>"), certsOnly(f.issued), bytes.Repeat([]byte{0x30, 0x80}, 10_000)} {
		if r, err := sceptest.ParseReply(body, f.request, ca); err == nil {
			t.Errorf("%.40x was read as %v", body, r)
		}
	}
}

var oidSome = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}

// A device notes what is wrong with an answer as errors of the test.
func TestDeviceNotes(t *testing.T) {
	t.Parallel()
	f := newForge(t)
	d := sceptest.NewServer(t, scep.Config{CA: f.ca}).Device(0)
	fake := newT()
	for range 2 { // the second reply has the same senderNonce
		res := &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"text/html"}}}
		m := f.certRep(sceptest.StatusPending)
		m.SenderNonce = []byte("0123456789abcdef")
		d.Read(fake, f.request, res, m.BER())
	}
	if got := strings.Join(fake.errors, "\n"); strings.Count(got, "INV-1:") != 2 || strings.Count(got, "INV-10:") != 1 {
		t.Errorf("noted: %s", got)
	}
}
