package scep_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// inProcess is a handler in place of a network.
type inProcess struct{ h http.Handler }

func (p inProcess) RoundTrip(req *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	p.h.ServeHTTP(w, req)
	return w.Result(), nil
}

// fuzzed returns a handler and a device that talks to it. What is the fault of the server, and
// not of a client, is an error: nothing is unavailable here.
func fuzzed(f *testing.F, c scep.Config) (*scep.Handler, *sceptest.Device, *depot.Memory) {
	f.Helper()
	memory := new(depot.Memory)
	c.Depot, c.Log, c.Next = memory, silent, newNext(f)
	c.Renewal = scep.Renewal{On: true, Anytime: true}
	c.Legacy = scep.TripleDES | scep.SHA1 | scep.SingleDES
	h, err := scep.New(sceptest.Fill(f, c))
	if err != nil {
		f.Fatal(err)
	}
	d := sceptest.NewDevice("http://device.test/scep", sceptest.RSA(0), "device")
	d.Client = &http.Client{Transport: inProcess{h}}
	return h, d, memory
}

var nobody = scep.ChallengeFunc(func(context.Context, *scep.Request) error { return scep.Reject(scep.BadRequest, "nobody") })

func wantEmpty(t *testing.T, memory *depot.Memory) {
	t.Helper()
	all, err := memory.List(t.Context(), scep.Query{})
	if err != nil || len(all) != 0 {
		t.Fatalf("the depot has %d records, %v", len(all), err)
	}
}

// FuzzServeHTTP sends anything to a server that admits nobody. It never fails, and remembers
// nothing.
func FuzzServeHTTP(f *testing.F) {
	h, d, memory := fuzzed(f, scep.Config{Challenge: prepared{nobody, nil}, PasswordRecipients: true})
	const operation = "operation=PKIOperation"
	for _, change := range []bend{
		func(*sceptest.Message) {},
		func(m *sceptest.Message) {
			m.Indefinite, m.Pieces, m.Envelope.Indefinite, m.Envelope.Pieces = true, 100, true, 100
		},
		func(m *sceptest.Message) { m.Hash, m.Envelope.Cipher = crypto.SHA1, sceptest.SingleDES },
		func(m *sceptest.Message) { m.Envelope.Recipients[0].OAEP = &sceptest.OAEP{Hash: crypto.SHA256} },
		func(m *sceptest.Message) { m.Scheme = sceptest.PSS },
		byPassword(sceptest.Password{Secret: sceptest.Secret, Iterations: 1}),
		func(m *sceptest.Message) {
			m.Key = sceptest.P256()
			m.Certificate = sceptest.Certificate{Key: m.Key}.DER()
		},
		func(m *sceptest.Message) { m.Type = sceptest.TypeCertPoll },
		func(m *sceptest.Message) {
			m.Certificate = sceptest.Certificate{Key: m.Key, V1: true, Serial: []byte{0xff}}.DER()
		},
	} {
		m := d.PKCSReq(f)
		change(m)
		body := m.BER()
		f.Add(http.MethodPost, operation, body)
		f.Add(http.MethodPost, "", []byte(base64.StdEncoding.EncodeToString(body)))
		f.Add(http.MethodGet, operation+"&message="+url.QueryEscape(base64.StdEncoding.EncodeToString(body)), []byte(nil))
	}
	f.Add(http.MethodPost, operation, d.Message(f, sceptest.TypeGetCert, sceptest.TLV(0x30, sceptest.CN("CA"), sceptest.Integer(1))).BER())
	f.Add(http.MethodGet, "operation=GetCACaps", []byte(nil))
	f.Add(http.MethodGet, "operation=GetCACert&message=%%%", []byte(nil))
	f.Add(http.MethodHead, "message=;operation=GetNextCACert", []byte(nil))
	f.Add(http.MethodPost, "operation=pkioperation&message=AAAA", []byte("0\x80\x00\x00"))
	f.Add("OPTIONS", "%", []byte("x"))
	f.Fuzz(func(t *testing.T, method, query string, body []byte) {
		req := &http.Request{
			Method: method, URL: &url.URL{Path: "/scep", RawQuery: query}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
			Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)), RemoteAddr: "192.0.2.1:1234",
		}
		w := httptest.NewRecorder()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		h.ServeHTTP(w, req)
		runtime.ReadMemStats(&after)
		if w.Code >= 500 {
			t.Errorf("HTTP %d", w.Code)
		}
		if got, most := after.TotalAlloc-before.TotalAlloc, uint64(4<<20+32*len(query)); got > most {
			t.Errorf("%d bytes allocated for a body of %d and a query of %d", got, len(body), len(query))
		}
		wantEmpty(t, memory)
	})
}

// FuzzMessage sends messages that are well signed but otherwise anything, to a server that admits
// nobody. It answers each as RFC 8894 has it, or with HTTP 400.
func FuzzMessage(f *testing.F) {
	_, d, memory := fuzzed(f, scep.Config{Challenge: nobody})
	good := d.PKCSReq(f)
	poll := d.CertPoll(f)
	for _, kind := range []string{"19", "17", "20", "21", "22", "3", ""} {
		f.Add(kind, "1", []byte("0123456789abcdef"), good.CSR, []byte(nil), []byte(nil), []byte(nil))
	}
	f.Add("20", "1", []byte{1}, poll.Envelope.Content, []byte(nil), []byte(nil), []byte(nil))
	f.Add("19", "id", []byte{}, []byte(nil), good.Envelope.BER(), good.Certificate, []byte(nil))
	f.Add("19", "id", []byte{1}, good.CSR, []byte(nil), sceptest.Certificate{Key: d.Key, V1: true, Serial: []byte{0x80}}.DER(),
		sceptest.Attr(sceptest.OIDSigningTime, sceptest.TLV(sceptest.TagUTCTime, []byte("260101000000Z"))))
	f.Fuzz(func(t *testing.T, kind, id string, nonce, content, envelope, cert, attribute []byte) {
		m := d.Message(t, kind, content)
		m.TransactionID, m.SenderNonce = id, nonce
		if len(envelope) > 0 {
			m.Content = envelope
		}
		if named(cert) {
			m.Certificate = cert
		}
		if len(attribute) > 0 {
			m.Attributes = sceptest.With(sceptest.Attribute{Type: oidRandomExt, Values: [][]byte{attribute}})
		}
		r := d.Send(t, m)
		if r.StatusCode != http.StatusOK && r.StatusCode != http.StatusBadRequest && r.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("answer is %v", r)
		}
		if r.Certificate != nil || r.Status == sceptest.StatusPending {
			t.Errorf("answer is %v", r)
		}
		wantEmpty(t, memory)
	})
}

// named reports whether der has an issuer and a serial number where a certificate has them.
func named(der []byte) bool {
	in := cryptobyte.String(der)
	var cert, tbs cryptobyte.String
	return in.ReadASN1(&cert, cbasn1.SEQUENCE) && cert.ReadASN1(&tbs, cbasn1.SEQUENCE) &&
		tbs.SkipOptionalASN1(cbasn1.Tag(0).ContextSpecific().Constructed()) && tbs.SkipASN1(cbasn1.INTEGER) &&
		tbs.SkipASN1(cbasn1.SEQUENCE) && tbs.SkipASN1(cbasn1.SEQUENCE)
}

// neverIssued are extensions that no certificate has because a CSR asked for them.
var neverIssued = []string{
	"2.5.29.30",               // nameConstraints
	"2.5.29.31",               // cRLDistributionPoints
	"2.5.29.32",               // certificatePolicies
	"2.5.29.33",               // policyMappings
	"2.5.29.36",               // policyConstraints
	"2.5.29.54",               // inhibitAnyPolicy
	"1.3.6.1.5.5.7.1.1",       // authorityInfoAccess
	"1.3.6.1.5.5.7.48.1.5",    // id-pkix-ocsp-nocheck
	"1.3.6.1.4.1.11129.2.4.3", // CT poison
	"1.3.6.1.4.1.311.20.2",    // certificate template name
	"1.3.6.1.4.1.311.21.7",    // certificate template
	"1.3.6.1.4.1.311.21.10",   // application policies
	"1.3.6.1.4.1.311.25.2",    // SID
}

// FuzzCSR has anything signed as a CertificationRequestInfo and enrols with it at a server that
// admits everybody. No certificate has what a device must not have.
func FuzzCSR(f *testing.F) {
	everybody := scep.ChallengeFunc(func(context.Context, *scep.Request) error { return nil })
	_, d, _ := fuzzed(f, scep.Config{Challenge: everybody})
	info := func(csr sceptest.CSR) []byte {
		in := cryptobyte.String(csr.DER())
		var whole, info cryptobyte.String
		if !in.ReadASN1(&whole, cbasn1.SEQUENCE) || !whole.ReadASN1Element(&info, cbasn1.SEQUENCE) {
			f.Fatal("CSR is malformed")
		}
		return info
	}
	asks := func(critical bool, value []byte, oid ...int) pkix.Extension {
		return pkix.Extension{Id: asn1.ObjectIdentifier(oid), Critical: critical, Value: value}
	}
	for _, exts := range [][]pkix.Extension{
		nil,
		{askSAN, askKeyUsage, askClient},
		{asks(true, sceptest.TLV(0x30, []byte{1, 1, 0xff}), 2, 5, 29, 19)},                                                                         // CA:TRUE
		{asks(true, []byte{3, 2, 1, 6}, 2, 5, 29, 15)},                                                                                             // keyCertSign, cRLSign
		{asks(false, sceptest.TLV(0x30, sceptest.OID(asn1.ObjectIdentifier{2, 5, 29, 37, 0})), 2, 5, 29, 37)},                                      // any usage
		{asks(false, sceptest.TLV(4, []byte("SID")), 1, 3, 6, 1, 4, 1, 311, 25, 2), asks(true, sceptest.TLV(0x30), 1, 3, 6, 1, 4, 1, 311, 21, 10)}, // Windows
		{asks(true, sceptest.TLV(0x30), 2, 5, 29, 30), asks(false, []byte{5, 0}, 1, 3, 6, 1, 5, 5, 7, 48, 1, 5)},                                   // constraints
		{asks(false, sceptest.TLV(0x30, sceptest.TLV(0x87, []byte{127, 0, 0, 1}), sceptest.TLV(0x86, []byte("urn:x")), sceptest.TLV(0x81, []byte("a@b"))), 2, 5, 29, 17)},
	} {
		f.Add(info(sceptest.CSR{Key: d.Key, Challenge: "x", Extensions: exts}))
		f.Add(info(sceptest.CSR{Key: d.Key, Extensions: exts, MSExtensions: true, Subject: sceptest.CN(strings.Repeat("n", 65))}))
	}
	f.Fuzz(func(t *testing.T, info []byte) {
		if len(info) > 32<<10 {
			t.Skip("over Limits.Bytes")
		}
		h := crypto.SHA256.New()
		h.Write(info)
		signature, err := d.Key.Sign(nil, h.Sum(nil), crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		csr := sceptest.TLV(0x30, info, sceptest.Algorithm(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, []byte{5, 0}), sceptest.BitString(signature))
		m := d.Message(t, sceptest.TypePKCSReq, csr)
		m.CSR = csr
		r := d.Send(t, m)
		if r.StatusCode != http.StatusOK || r.Status == sceptest.StatusPending {
			t.Fatalf("answer is %v", r)
		}
		cert := r.Certificate
		if cert == nil {
			return
		}
		if cert.IsCA || !cert.BasicConstraintsValid || cert.KeyUsage&^(x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment) != 0 ||
			!slices.Equal(cert.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) || len(cert.UnknownExtKeyUsage) > 0 || len(cert.UnhandledCriticalExtensions) > 0 {
			t.Errorf("certificate: CA %t, keyUsage %b, extKeyUsage %v %v, critical %v", cert.IsCA, cert.KeyUsage, cert.ExtKeyUsage, cert.UnknownExtKeyUsage, cert.UnhandledCriticalExtensions)
		}
		for _, ext := range cert.Extensions {
			if slices.Contains(neverIssued, ext.Id.String()) {
				t.Errorf("certificate has the extension %v", ext.Id)
			}
		}
		if len(cert.RawSubject) <= 2 && len(cert.DNSNames)+len(cert.EmailAddresses)+len(cert.IPAddresses)+len(cert.URIs) == 0 {
			t.Error("certificate names nobody")
		}
	})
}
