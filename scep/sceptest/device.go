package sceptest

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"sync"
	"testing"
)

// A Device is a SCEP client. Make one with [Server.Device]; for a server that you started
// yourself, set at least URL and Key. Its methods may be called concurrently, but fields must not
// be changed meanwhile.
type Device struct {
	URL           string        // of the SCEP service, without a query
	Key           crypto.Signer // for which it wants a certificate
	Subject       []byte        // DER of Name; if nil, CN=device
	Challenge     string        // also opens replies if the key that signs cannot decrypt
	TransactionID string        // if empty, made of Key
	Client        *http.Client  // if nil, http.DefaultClient

	// Signer and Certificate sign messages in place of Key and a self-signed certificate.
	Signer      crypto.Signer
	Certificate []byte

	ca     *caAnswer
	nonces *sync.Map // of replies: each must be new
}

type caAnswer struct {
	once  sync.Once
	certs []*x509.Certificate
	err   error
}

// Device returns a device of s that has the key RSA(i), the subject CN=device i, and the challenge
// password [Secret].
func (s *Server) Device(i int) *Device { return NewDevice(s.URL, RSA(i), fmt.Sprintf("device %d", i)) }

// NewDevice returns a device for any server. Its challenge password is [Secret].
func NewDevice(url string, key crypto.Signer, commonName string) *Device {
	return &Device{URL: url, Key: key, Subject: CN(commonName), Challenge: Secret, ca: new(caAnswer), nonces: new(sync.Map)}
}

// As returns a copy of d whose messages are signed by the holder of cert, as for a renewal, and
// have no challenge password.
func (d *Device) As(cert *x509.Certificate, key crypto.Signer) *Device {
	c := *d
	c.Certificate, c.Signer, c.Challenge = cert.Raw, key, ""
	return &c
}

// To returns a copy of d that takes these certificates for the answer to GetCACert, as those of the
// next CA (RFC 8894, 5.1): messages are encrypted to one of them, and replies must be signed by one.
func (d *Device) To(ca ...*x509.Certificate) *Device {
	c := *d
	c.ca = &caAnswer{certs: ca}
	c.ca.once.Do(func() {})
	return &c
}

// CA returns what the server answers to GetCACert.
func (d *Device) CA(t testing.TB) []*x509.Certificate {
	t.Helper()
	answer := d.ca
	if answer == nil {
		answer = new(caAnswer)
	}
	answer.once.Do(func() { answer.certs, answer.err = d.getCACert() })
	if answer.err != nil {
		t.Fatal(answer.err)
	}
	return answer.certs
}

func (d *Device) getCACert() ([]*x509.Certificate, error) {
	res, err := d.client().Get(d.URL + "?operation=GetCACert")
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("sceptest: GetCACert: HTTP %s", res.Status)
	}
	switch res.Header.Get("Content-Type") {
	case "application/x-x509-ca-cert":
		cert, err := x509.ParseCertificate(body)
		return []*x509.Certificate{cert}, err
	case "application/x-x509-ca-ra-cert":
		return ParseCertsOnly(body)
	}
	return nil, fmt.Errorf("sceptest: GetCACert: Content-Type is %q", res.Header.Get("Content-Type"))
}

func (d *Device) client() *http.Client {
	if d.Client != nil {
		return d.Client
	}
	return http.DefaultClient
}

// recipient returns the certificate that requests are encrypted to: the first RSA one that
// allows it, as Apple's client has it.
func (d *Device) recipient(t testing.TB) *x509.Certificate {
	t.Helper()
	for _, cert := range d.CA(t) {
		if _, ok := cert.PublicKey.(*rsa.PublicKey); ok && (cert.KeyUsage == 0 || cert.KeyUsage&x509.KeyUsageKeyEncipherment != 0) {
			return cert
		}
	}
	t.Fatal("sceptest: GetCACert has no certificate that a request could be encrypted to")
	return nil
}

// CSR returns what [Device.PKCSReq] asks for, to be changed and handed to [Device.Request].
func (d *Device) CSR() CSR { return CSR{Key: d.Key, Subject: d.Subject, Challenge: d.Challenge} }

// PKCSReq returns an enrolment request.
func (d *Device) PKCSReq(t testing.TB) *Message {
	t.Helper()
	return d.Request(t, TypePKCSReq, d.CSR())
}

// RenewalReq returns a renewal request; see [Device.As].
func (d *Device) RenewalReq(t testing.TB) *Message {
	t.Helper()
	return d.Request(t, TypeRenewalReq, d.CSR())
}

// Request returns a request with this CSR.
func (d *Device) Request(t testing.TB, messageType string, csr CSR) *Message {
	t.Helper()
	m := d.Message(t, messageType, csr.DER())
	m.CSR, m.Password = m.Envelope.Content, csr.Challenge
	return m
}

// CertPoll asks for the outcome of a request that is pending.
func (d *Device) CertPoll(t testing.TB) *Message {
	t.Helper()
	subject := d.Subject
	if subject == nil {
		subject = CN("device")
	}
	return d.Message(t, TypeCertPoll, TLV(TagSequence, d.recipient(t).RawSubject, subject))
}

// GetCert asks for a certificate by issuer (DER of Name) and serial number.
func (d *Device) GetCert(t testing.TB, issuer []byte, serial *big.Int) *Message {
	t.Helper()
	return d.Message(t, TypeGetCert, TLV(TagSequence, issuer, bigInteger(serial)))
}

// GetCRL asks for the CRL that covers a certificate.
func (d *Device) GetCRL(t testing.TB, issuer []byte, serial *big.Int) *Message {
	t.Helper()
	return d.Message(t, TypeGetCRL, TLV(TagSequence, issuer, bigInteger(serial)))
}

// Message returns a message with any content in its envelope.
func (d *Device) Message(t testing.TB, messageType string, content []byte) *Message {
	t.Helper()
	m := &Message{
		Type:          messageType,
		TransactionID: d.TransactionID,
		SenderNonce:   Nonce(16),
		Envelope:      &Envelope{Content: content, Recipients: []Recipient{{Certificate: d.recipient(t)}}},
		Key:           d.Signer,
		Certificate:   d.Certificate,
		Scheme:        PlainRSA,
	}
	if m.TransactionID == "" {
		sum := sha1.Sum(must(x509.MarshalPKIXPublicKey(d.Key.Public())))
		m.TransactionID = fmt.Sprintf("%X", sum)
	}
	if m.Key == nil {
		m.Key = d.Key
	}
	if m.Certificate == nil {
		m.Certificate = Certificate{Key: m.Key, Subject: d.Subject}.DER()
	}
	return m
}

// Send posts m and returns the answer. A CertRep is held to [ParseReply]; what it finds is the
// test's error. Whether the answer is the right one is for the caller to say.
func (d *Device) Send(t testing.TB, m *Message) *Reply {
	t.Helper()
	return d.SendBytes(t, m, m.BER())
}

// SendBytes posts body, which is what m.BER returned, perhaps with changes.
func (d *Device) SendBytes(t testing.TB, m *Message, body []byte) *Reply {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, d.URL+"?operation=PKIOperation", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-pki-message")
	return d.Do(t, m, req)
}

// Do sends req, which brings m, and returns the answer as [Device.Send] does.
func (d *Device) Do(t testing.TB, m *Message, req *http.Request) *Reply {
	t.Helper()
	res, err := d.client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return d.Read(t, m, res, body)
}

// Read reads an answer to m.
func (d *Device) Read(t testing.TB, m *Message, res *http.Response, body []byte) *Reply {
	t.Helper()
	r := &Reply{}
	if res.StatusCode == http.StatusOK {
		var err error
		if r, err = ParseReply(body, m, d.CA(t)); err != nil {
			t.Error(err)
		}
		if got := res.Header.Values("Content-Type"); len(got) != 1 || got[0] != "application/x-pki-message" {
			t.Errorf("INV-1: Content-Type is %q, not application/x-pki-message", got)
		}
		if d.nonces != nil {
			if _, seen := d.nonces.LoadOrStore(string(r.SenderNonce), true); seen {
				t.Errorf("INV-10: senderNonce %x was in another reply", r.SenderNonce)
			}
		}
	}
	r.StatusCode, r.Header, r.Body = res.StatusCode, res.Header, body
	return r
}

// Enroll sends a PKCSReq and returns the certificate. If there is none in the answer, the test
// ends.
func (d *Device) Enroll(t testing.TB) *x509.Certificate {
	t.Helper()
	return d.certificate(t, d.PKCSReq(t))
}

// Renew sends a RenewalReq signed by the holder of cert and returns the new certificate. If there
// is none in the answer, the test ends.
func (d *Device) Renew(t testing.TB, cert *x509.Certificate, key crypto.Signer) *x509.Certificate {
	t.Helper()
	d = d.As(cert, key)
	return d.certificate(t, d.RenewalReq(t))
}

// Poll sends a CertPoll and returns the answer.
func (d *Device) Poll(t testing.TB) *Reply {
	t.Helper()
	return d.Send(t, d.CertPoll(t))
}

func (d *Device) certificate(t testing.TB, m *Message) *x509.Certificate {
	t.Helper()
	r := d.Send(t, m)
	if r.Certificate == nil {
		t.Fatalf("the server answered %v, not SUCCESS", r)
	}
	return r.Certificate
}
