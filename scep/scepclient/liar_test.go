package scepclient

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/internal/cms"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// A liar is a SCEP server that tells the truth unless one of its funcs says otherwise. What it
// sends is written by sceptest, which shares no code with the client.
type liar struct {
	t    *testing.T
	ca   *scep.Identity // issues
	ra   *scep.Identity // opens requests and signs replies
	caps string
	bag  [][]byte // answer to GetCACert, if there is more than ca
	URL  string

	http   func(w http.ResponseWriter, r *http.Request) bool // answers in place of the liar
	status func(q *query) string                             // pkiStatus; nil: SUCCESS
	certs  func(leaf *x509.Certificate) [][]byte             // in a SUCCESS; nil: leaf
	alter  func(q *query, m *sceptest.Message)               // has the last word on a reply
	body   func(q *query, reply []byte) []byte               // or this

	mu      sync.Mutex
	queries []*query
}

// A query is a pkiMessage as it arrived.
type query struct {
	number  int // from 1
	request *http.Request
	msg     *cms.Message
	content []byte
	csr     *x509.CertificateRequest
}

const standardCaps = "AES\nPOSTPKIOperation\nSHA-256\nSHA-512\nSCEPStandard\nRenewal\n"

func newLiar(t *testing.T) *liar {
	ca := sceptest.NewCA(t)
	l := &liar{t: t, ca: ca, ra: ca, caps: standardCaps}
	srv := httptest.NewServer(l)
	t.Cleanup(srv.Close)
	l.URL = srv.URL + "/scep"
	return l
}

// client returns a client that knows the liar's CA and does not sleep.
func (l *liar) client() *Client {
	return &Client{
		URL:          l.URL,
		Fingerprints: []string{Fingerprint(l.ca.Certificate())},
		wait:         func(ctx context.Context, d time.Duration) error { return ctx.Err() },
	}
}

func (l *liar) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if l.http != nil && l.http(w, r) {
		return
	}
	switch r.URL.Query().Get("operation") {
	case "GetCACaps":
		fmt.Fprint(w, l.caps)
	case "GetCACert":
		if l.bag == nil {
			w.Header().Set("Content-Type", "application/x-x509-ca-cert")
			w.Write(l.ca.Certificate().Raw)
			return
		}
		w.Header().Set("Content-Type", "application/x-x509-ca-ra-cert")
		w.Write(certsOnly(l.bag...))
	case "PKIOperation":
		q, err := l.read(r)
		if err != nil {
			l.t.Errorf("client sent a message that cannot be read: %v", err)
			http.Error(w, "bad", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/x-pki-message")
		w.Write(l.answer(q))
	}
}

// read opens a message as a server does.
func (l *liar) read(r *http.Request) (*query, error) {
	body, err := io.ReadAll(r.Body)
	if r.Method == http.MethodGet {
		body, err = base64.StdEncoding.DecodeString(r.URL.Query().Get("message"))
	}
	if err != nil {
		return nil, err
	}
	q := &query{request: r}
	if q.msg, err = cms.ParseMessage(body); err != nil {
		return nil, err
	}
	pub, err := cms.ParsePublicKey(q.msg.Signer.RawSPKI)
	if err == nil {
		err = q.msg.Verify(pub)
	}
	if err != nil {
		return nil, err
	}
	env, err := cms.ParseEnvelope(q.msg.Content)
	if err != nil {
		return nil, err
	}
	//lint:ignore SA1019 SCEP has no other key transport that all clients know.
	key, err := l.ra.Key.(crypto.Decrypter).Decrypt(nil, env.Recipients[0].EncryptedKey, &rsa.PKCS1v15DecryptOptions{})
	if err != nil {
		return nil, err
	}
	var ok bool
	if q.content, ok = env.Decrypt(key); !ok {
		return nil, fmt.Errorf("it does not decrypt")
	}
	if t := q.msg.MessageType; t == typePKCSReq || t == typeRenewalReq {
		if q.csr, err = x509.ParseCertificateRequest(q.content); err == nil {
			err = q.csr.CheckSignature()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queries = append(l.queries, q)
	q.number = len(l.queries)
	return q, err
}

// asked returns the messages that came so far.
func (l *liar) asked() []*query {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.queries)
}

// answer makes a CertRep.
func (l *liar) answer(q *query) []byte {
	status := statusSuccess
	if l.status != nil {
		status = l.status(q)
	}
	m := &sceptest.Message{
		Type: typeCertRep, TransactionID: string(q.msg.TransactionID), SenderNonce: sceptest.Nonce(16),
		Key: l.ra.Key, Certificate: l.ra.Certificate().Raw, Scheme: sceptest.PlainRSA,
		Attributes: sceptest.With(
			attribute(sceptest.OIDPKIStatus, sceptest.TagPrintableString, status),
			attribute(sceptest.OIDRecipientNonce, sceptest.TagOctetString, string(q.msg.SenderNonce))),
	}
	switch status {
	case statusFailure:
		m.Content = []byte{}
		add(m, attribute(sceptest.OIDFailInfo, sceptest.TagPrintableString, "2"))
	case statusPending:
		m.NoContent = true
	default:
		m.Envelope = &sceptest.Envelope{Content: l.issue(q), Recipients: []sceptest.Recipient{{Certificate: mustParse(l.t, q.msg.Signer.Raw)}}}
	}
	if l.alter != nil {
		l.alter(q, m)
	}
	reply := m.BER()
	if l.body != nil {
		reply = l.body(q, reply)
	}
	return reply
}

// issue returns a certs-only message with a certificate for the first key that the client sent.
func (l *liar) issue(q *query) []byte {
	first := l.asked()[0]
	if first.csr == nil {
		return certsOnly(l.ca.Certificate().Raw)
	}
	leaf := newCertificate(l.t, &x509.Certificate{RawSubject: first.csr.RawSubject}, l.ca, first.csr.PublicKey)
	if l.certs != nil {
		return certsOnly(l.certs(leaf)...)
	}
	return certsOnly(leaf.Raw)
}

func attribute(oid []int, tag byte, value string) sceptest.Attribute {
	return sceptest.Attribute{Type: oid, Values: [][]byte{sceptest.TLV(tag, []byte(value))}}
}

// edit changes the attributes of a reply after what was done before.
func edit(m *sceptest.Message, f func([]sceptest.Attribute) []sceptest.Attribute) {
	before := m.Attributes
	m.Attributes = func(a []sceptest.Attribute) []sceptest.Attribute { return f(before(a)) }
}

func add(m *sceptest.Message, a ...sceptest.Attribute) { edit(m, sceptest.With(a...)) }

func set(m *sceptest.Message, oid []int, tag byte, value string) {
	edit(m, sceptest.Replace(oid, sceptest.TLV(tag, []byte(value))))
}

// certsOnly is a degenerate SignedData without cms.
func certsOnly(ders ...[]byte) []byte {
	signed := []int{1, 2, 840, 113549, 1, 7, 2}
	data := []int{1, 2, 840, 113549, 1, 7, 1}
	return sceptest.TLV(sceptest.TagSequence, sceptest.OID(signed), sceptest.TLV(0xa0, sceptest.TLV(sceptest.TagSequence,
		sceptest.Integer(1), sceptest.TLV(sceptest.TagSet), sceptest.TLV(sceptest.TagSequence, sceptest.OID(data)),
		sceptest.TLV(0xa0, ders...), sceptest.TLV(sceptest.TagSet))))
}

func mustParse(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// newCertificate issues what tmpl says, with defaults for the rest; parent nil: self-signed by
// the key, which must then be a signer.
func newCertificate(t *testing.T, tmpl *x509.Certificate, parent *scep.Identity, key any) *x509.Certificate {
	t.Helper()
	c := *tmpl
	c.SerialNumber, _ = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if c.NotBefore.IsZero() {
		c.NotBefore = time.Now().Add(-time.Hour)
	}
	if c.NotAfter.IsZero() {
		c.NotAfter = time.Now().Add(24 * time.Hour)
	}
	if c.IsCA {
		c.BasicConstraintsValid = true
	}
	issuer, signer, pub := &c, crypto.Signer(nil), key
	if s, ok := key.(crypto.Signer); ok {
		signer, pub = s, s.Public()
	}
	if parent != nil {
		issuer, signer = parent.Certificate(), parent.Key
	}
	der, err := x509.CreateCertificate(rand.Reader, &c, issuer, pub, signer)
	if err != nil {
		t.Fatal(err)
	}
	return mustParse(t, der)
}

// newIdentity is newCertificate with its key.
func newIdentity(t *testing.T, name string, usage x509.KeyUsage, isCA bool, parent *scep.Identity, key crypto.Signer) *scep.Identity {
	t.Helper()
	cert := newCertificate(t, &x509.Certificate{Subject: pkix.Name{CommonName: name}, KeyUsage: usage, IsCA: isCA}, parent, key)
	return &scep.Identity{Certificates: []*x509.Certificate{cert}, Key: key}
}

// request is a plain one, with a challenge.
func request() Request {
	return Request{
		Key:       sceptest.RSA(0),
		Template:  &x509.CertificateRequest{Subject: pkix.Name{CommonName: "device"}},
		Challenge: scep.NewSecret("hunter2"),
	}
}

// wantError reports whether err is there and says all of these.
func wantError(t *testing.T, err error, texts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want one that says %q", texts)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q does not say %q", err, text)
		}
	}
	if !strings.HasPrefix(err.Error(), "scepclient: ") && !strings.HasPrefix(err.Error(), "context ") {
		t.Errorf("error %q does not begin with scepclient:", err)
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("error %q has the challenge", err)
	}
}
