package scep_test

import (
	"bytes"
	"crypto"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// The clients below do what the ones they are named after do, as far as it is known, from
// GetCACaps to a renewal or to what comes in its place.

// TestDeviceApple: a random common name in the signer, a transaction ID made of the key and the
// same in every attempt, BER, 3DES and SHA-1 where offered, polling, and renewal by PKCSReq.
func TestDeviceApple(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	srv := newServer(t, scep.Config{
		CA: ca, RA: newRA(t, ca), Challenge: sceptest.Pend(sceptest.Secret),
		Renewal: scep.Renewal{On: true, Anytime: true}, Legacy: scep.TripleDES | scep.SHA1,
	})
	_, caps := get(t, srv.URL+"?operation=GetCACaps&message=My%20Profile")
	for _, word := range []string{"POSTPKIOperation", "SHA-256", "AES", "DES3", "Renewal"} {
		if !strings.Contains(string(caps), word+"\n") {
			t.Errorf("no %s in %q", word, caps)
		}
	}
	d := newConformer(srv)
	sum := sha1.Sum(spki(d.Key.Public()))
	d.TransactionID = fmt.Sprintf("%X", sum)
	d.Certificate = sceptest.Certificate{Key: d.Key, Subject: sceptest.CN("B2B9E6B4-3C3D-4C0B-8C1E-5C3E0B3C7D11"), NotBefore: time.Now().Add(3 * time.Second)}.DER()
	apple := func(m *sceptest.Message) *sceptest.Message {
		m.Indefinite, m.Pieces, m.Envelope.Indefinite, m.Envelope.Pieces = true, 1000, true, 1000
		m.SenderNonce = sceptest.Nonce(8)
		return m
	}
	csr := d.CSR()
	csr.Extensions = []pkix.Extension{askSAN, askKeyUsage}
	m := apple(d.Request(t, sceptest.TypePKCSReq, csr))
	m.Envelope.Cipher, m.Hash = sceptest.TripleDES, crypto.SHA1
	r := d.Send(t, m)
	wantPending(t, r)
	if r.Hash != crypto.SHA1 {
		t.Errorf("reply has %v", r.Hash)
	}
	wantPending(t, d.Send(t, apple(d.CertPoll(t))))
	cert := approve(t, srv, recordOf(t, srv, d.TransactionID).ID)
	wantCert(t, d.Send(t, apple(d.CertPoll(t))), cert)

	// Renewal, with the same key and so with the same transaction ID.
	next := d.As(cert, d.Key)
	renewed := next.Request(t, sceptest.TypePKCSReq, sceptest.CSR{Key: d.Key, Subject: d.Subject, Extensions: csr.Extensions})
	r = next.Send(t, apple(renewed))
	if wantOK(t, r); r.Certificate.Equal(cert) {
		t.Error("renewal returned the old certificate")
	}
}

// TestDeviceWindows: the signer's certificate has a critical authorityKeyIdentifier and a SHA-1
// signature, the key is transported with OAEP, and the challenge is long.
func TestDeviceWindows(t *testing.T) {
	t.Parallel()
	long := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("intune"), 500))
	srv := newServer(t, scep.Config{
		CA: newSubCA(t, newCA(t)), Challenge: challenge.Static(long),
		Policy:  &scep.Profile{SAN: scep.SANUPN | scep.SANDNS},
		Renewal: scep.Renewal{On: true, Anytime: true},
	})
	d := newConformer(srv)
	d.URL = srv.HTTP.URL + "/scep/certsrv/mscep/mscep.dll/pkiclient.exe"
	if n := len(d.CA(t)); n != 2 {
		t.Errorf("GetCACert has %d certificates", n)
	}
	d.Challenge = long
	d.TransactionID = "{" + strings.ToUpper("5fe0b3a1-2f0c-4b54-a4b0-3b8ad3e7ba59") + "}"
	d.Certificate = sceptest.Certificate{
		Key: d.Key, Subject: sceptest.CN("SCEP Protocol Certificate"), Hash: crypto.SHA1,
		Serial:     []byte{0x8c, 0x21, 0x55, 0x01}, // negative
		Extensions: []pkix.Extension{sceptest.KeyUsageDSKE, sceptest.CriticalAKI},
	}.DER()
	upn := sceptest.TLV(0xa0, sceptest.OID(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 3}), sceptest.TLV(0xa0, sceptest.TLV(sceptest.TagUTF8String, []byte("jane@example.com"))))
	csr := d.CSR()
	csr.Extensions = []pkix.Extension{{Id: askSAN.Id, Value: sceptest.TLV(0x30, upn)}, askClient}
	csr.MSExtensions = true
	csr.Attributes = [][]byte{
		sceptest.Attr(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 13, 2, 3}, sceptest.TLV(sceptest.TagIA5String, []byte("10.0.22631.2"))),
		sceptest.Attr(oidUnknown, sceptest.TLV(0x30, sceptest.BMPString("CertificateTemplate"), sceptest.BMPString("User"))),
	}
	m := d.Request(t, sceptest.TypePKCSReq, csr)
	m.Envelope.Cipher, m.Hash, m.DigestNull = sceptest.AES256, crypto.SHA512, true
	m.Envelope.Recipients[0].OAEP = &sceptest.OAEP{Params: sceptest.OAEPEmpty}
	r := d.Send(t, m)
	wantOK(t, r)
	if r.Cipher != sceptest.AES256 || r.Hash != crypto.SHA512 {
		t.Errorf("reply has cipher %d and %v", r.Cipher, r.Hash)
	}
	if !bytes.Contains(r.Certificate.Raw, upn) {
		t.Error("the certificate lacks the ntPrincipalName")
	}
	next := d.As(r.Certificate, d.Key)
	next.Key = spare()
	renewal := next.CSR()
	renewal.Extensions = csr.Extensions
	m = next.Request(t, sceptest.TypeRenewalReq, renewal)
	m.Envelope.Recipients[0].OAEP = &sceptest.OAEP{Hash: crypto.SHA256}
	wantOK(t, next.Send(t, m))
}

// TestDeviceJSCEP: octet-stream, an empty message parameter, attributes out of order in BER, SHA-512
// as soon as it is offered, GetCert with a counter as its transaction ID.
func TestDeviceJSCEP(t *testing.T) {
	t.Parallel()
	srv := newServer(t, scep.Config{Challenge: sceptest.Pend(sceptest.Secret)})
	for _, operation := range []string{"GetCACaps", "GetCACert"} {
		if res, body := get(t, srv.URL+"?operation="+operation+"&message="); res.StatusCode != http.StatusOK || len(body) == 0 {
			t.Errorf("%s: HTTP %s", operation, res.Status)
		}
	}
	d := newConformer(srv)
	sum := sha1.Sum(spki(d.Key.Public()))
	d.TransactionID = fmt.Sprintf("%X", sum)
	d.Subject = sceptest.Name(
		sceptest.RDN{{Type: sceptest.OIDCommonName, Tag: sceptest.TagUTF8String, Value: "androïde"}},
		sceptest.RDN{{Type: sceptest.OIDOrganization, Tag: sceptest.TagUTF8String, Value: "Example"}})
	post := func(m *sceptest.Message) *sceptest.Reply {
		t.Helper()
		m.Hash, m.Scheme, m.Order, m.Attributes = crypto.SHA512, sceptest.WithHash, sceptest.AsListed, sceptest.Reverse
		m.Indefinite, m.Pieces, m.Envelope.Indefinite = true, 1000, true
		req := mustRequest(t, http.MethodPost, srv.URL+"?operation=PKIOperation&message=", bytes.NewReader(m.BER()))
		req.Header.Set("Content-Type", "application/octet-stream")
		return d.Do(t, m, req)
	}
	csr := d.CSR()
	csr.ChallengeTag = sceptest.TagUTF8String
	r := post(d.Request(t, sceptest.TypePKCSReq, csr))
	if wantPending(t, r); r.Hash != crypto.SHA512 {
		t.Errorf("reply has %v", r.Hash)
	}
	wantPending(t, post(d.CertPoll(t)))
	cert := approve(t, srv, recordOf(t, srv, d.TransactionID).ID)
	wantCert(t, post(d.CertPoll(t)), cert)
	for i := range 2 {
		d.TransactionID = fmt.Sprint(i)
		wantCert(t, post(d.GetCert(t, cert.RawIssuer, cert.SerialNumber)), cert)
	}
}

// TestDeviceCertmonger: everything by GET, GetCAChain, GetCACert for message=0, 1, ..., a v1
// signer whose serial number has 32 octets, polling by a repeated PKCSReq with a fresh nonce.
func TestDeviceCertmonger(t *testing.T) {
	t.Parallel()
	srv := newServer(t, scep.Config{Challenge: sceptest.Pend(sceptest.Secret), Renewal: scep.Renewal{On: true, Anytime: true}})
	_, first := get(t, srv.URL+"?operation=GetCACert&message=0")
	_, second := get(t, srv.URL+"?operation=GetCACert&message=1")
	if !bytes.Equal(first, second) {
		t.Error("message=1 has another certificate")
	}
	if res, _ := get(t, srv.URL+"?operation=GetCAChain&message=0"); res.StatusCode != http.StatusBadRequest {
		t.Errorf("GetCAChain: HTTP %s", res.Status)
	}
	d := newConformer(srv)
	sum := sha256.Sum256(spki(d.Key.Public()))
	d.TransactionID = new(big.Int).SetBytes(sum[:]).String()
	d.Certificate = sceptest.Certificate{Key: d.Key, Subject: d.Subject, V1: true, Serial: sum[:]}.DER()
	ask := func(d *sceptest.Device, m *sceptest.Message) *sceptest.Reply {
		t.Helper()
		req := mustRequest(t, http.MethodGet, srv.URL, nil)
		req.URL.RawQuery = "operation=PKIOperation&message=" + url.QueryEscape(wrap64(base64.StdEncoding.EncodeToString(m.BER()), "\n"))
		r := d.Do(t, m, req)
		if r.StatusCode == http.StatusOK && (!r.HasContent || r.SenderNonce == nil || r.RecipientNonce == nil) {
			t.Errorf("certmonger cannot read %v", r)
		}
		return r
	}
	m := d.PKCSReq(t)
	wantPending(t, ask(d, m))
	wantPending(t, ask(d, m.Again()))
	cert := approve(t, srv, recordOf(t, srv, d.TransactionID).ID)
	wantCert(t, ask(d, m.Again()), cert)

	next := d.As(cert, d.Key)
	next.Key = spare()
	next.TransactionID = "renewal"
	wantOK(t, ask(next, next.RenewalReq(t)))
}

// TestDeviceMicromdm: single DES and SHA-1 and nothing else, encrypted to all certificates of
// GetCACert, the same bytes again every 30 seconds, and a RenewalReq as soon as there is any
// certificate in its folder, be it self-signed.
func TestDeviceMicromdm(t *testing.T) {
	t.Parallel()
	ca := newSubCA(t, newCA(t))
	c := scep.Config{
		CA: ca, RA: newRA(t, ca), Challenge: sceptest.Pend(sceptest.Secret),
		Legacy: scep.SingleDES | scep.SHA1, Renewal: scep.Renewal{On: true, Anytime: true},
	}
	srv := newServer(t, c)
	enrol := func(d *sceptest.Device, kind string) *sceptest.Message {
		sum := sha256.Sum256(spki(d.Key.Public()))
		d.TransactionID = base64.StdEncoding.EncodeToString(sum[:])
		m := d.Request(t, kind, d.CSR())
		m.Hash, m.Envelope.Cipher, m.Scheme = crypto.SHA1, sceptest.SingleDES, sceptest.WithHash
		m.Envelope.Recipients = nil
		for _, cert := range d.CA(t) {
			m.Envelope.Recipients = append(m.Envelope.Recipients, sceptest.Recipient{Certificate: cert})
		}
		return m
	}
	d := newConformer(srv)
	m := enrol(d, sceptest.TypePKCSReq)
	if len(m.Envelope.Recipients) != 3 {
		t.Errorf("%d recipients", len(m.Envelope.Recipients))
	}
	body := m.BER()
	wantPending(t, d.SendBytes(t, m, body))
	wantPending(t, d.SendBytes(t, m, body))
	cert := approve(t, srv, recordOf(t, srv, d.TransactionID).ID)
	r := d.SendBytes(t, m, body)
	if wantCert(t, r, cert); r.Cipher != sceptest.AES128 || r.Hash != crypto.SHA1 {
		t.Errorf("reply has cipher %d and %v", r.Cipher, r.Hash)
	}
	next := d.As(cert, d.Key)
	next.Subject = d.Subject
	wantOK(t, next.Send(t, enrol(next, sceptest.TypeRenewalReq)))

	// Self-signed: only the challenge counts.
	srv = newServer(t, scep.Config{Legacy: scep.SingleDES | scep.SHA1, Renewal: c.Renewal})
	d = newConformer(srv)
	wantOK(t, d.Send(t, enrol(d, sceptest.TypeRenewalReq)))
	d = newConformer(srv)
	d.Challenge = ""
	wantFail(t, d.Send(t, enrol(d, sceptest.TypeRenewalReq)), scep.BadRequest, "")
}

// TestDeviceCisco: HTTP/1.0 without a Host, GET in lines ended by %0A, a subject without a common
// name whose attributes are one RDN, 3DES and SHA-1, a poll close behind the request, and renewal by
// PKCSReq. It wants the CA's certificate in the reply.
func TestDeviceCisco(t *testing.T) {
	t.Parallel()
	srv := newServer(t, scep.Config{
		Legacy: scep.TripleDES | scep.SHA1, ReplyChain: true, Renewal: scep.Renewal{On: true, Anytime: true},
	})
	const agent = "HTTP/1.0\r\nUser-Agent: Mozilla/4.0 (compatible; MSIE 5.0; Cisco PKI)\r\n\r\n"
	const path = "GET /scep/pkiclient.exe?operation="
	for _, operation := range []string{"GetCACaps", "GetCACert"} {
		if res, _ := rawHTTP(t, srv, path+operation+"&message=TRUSTPOINT "+agent); res.StatusCode != http.StatusOK {
			t.Errorf("%s: HTTP %s", operation, res.Status)
		}
	}
	d := newConformer(srv)
	sum := md5.Sum(spki(d.Key.Public()))
	d.TransactionID = fmt.Sprintf("%X", sum)
	d.Subject = sceptest.Name(sceptest.RDN{
		{Type: sceptest.OIDSerialNumber, Value: "FTX1840ABCD"},
		{Type: sceptest.OIDUnstructuredName, Tag: sceptest.TagIA5String, Value: "router.example"},
	})
	ask := func(d *sceptest.Device, m *sceptest.Message) *sceptest.Reply {
		t.Helper()
		m.Hash, m.Envelope.Cipher = crypto.SHA1, sceptest.TripleDES
		message := wrap64(base64.StdEncoding.EncodeToString(m.BER()), "%0A")
		res, body := rawHTTP(t, srv, path+"PKIOperation&message="+message+" "+agent)
		return d.Read(t, m, res, body)
	}
	r := ask(d, d.PKCSReq(t))
	wantOK(t, r)
	if len(r.Certificates) != 2 || r.Cipher != sceptest.TripleDES || r.Hash != crypto.SHA1 {
		t.Errorf("%d certificates, cipher %d, %v", len(r.Certificates), r.Cipher, r.Hash)
	}
	wantCert(t, ask(d, d.CertPoll(t)), r.Certificate)
	next := d.As(r.Certificate, d.Key)
	next.Key = spare()
	wantOK(t, ask(next, next.PKCSReq(t)))
}
