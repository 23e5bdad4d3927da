package scep_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/internal/cms"
)

// A device makes the messages of one well-behaved client. It shares its CMS code with the
// server, which is right for tests of what the server remembers; how it reads and writes is
// tested with peers that share nothing.
type device struct {
	key    *rsa.PrivateKey
	signer *x509.Certificate // signs the messages; self-signed if it is not a renewal
	csr    []byte
	id     string // transaction ID
}

var oidChallenge = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}

func newDevice(t testing.TB, key *rsa.PrivateKey, name, challenge string) *device {
	t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &device{key: key, signer: cert, csr: newCSR(t, key, name, challenge), id: "transaction of " + name}
}

func newCSR(t testing.TB, key crypto.Signer, name, challenge string) []byte {
	t.Helper()
	req := &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}
	der, err := x509.CreateCertificateRequest(rand.Reader, req, key)
	if err != nil {
		t.Fatal(err)
	}
	if challenge == "" {
		return der
	}
	return setChallenge(t, der, key, challenge)
}

type csrAttribute struct {
	Type   asn1.ObjectIdentifier
	Values []string `asn1:"set"`
}

// setChallenge puts a challengePassword into a CSR, which crypto/x509 cannot write, and signs
// it anew.
func setChallenge(t testing.TB, der []byte, key crypto.Signer, challenge string) []byte {
	t.Helper()
	return rebuildCSR(t, der, key, func(subject, spki asn1.RawValue) any {
		return struct {
			Version    int
			Subject    asn1.RawValue
			Key        asn1.RawValue
			Attributes []csrAttribute `asn1:"tag:0,set"`
		}{0, subject, spki, []csrAttribute{{oidChallenge, []string{challenge}}}}
	})
}

// withoutAttributes leaves out even the place for attributes.
func withoutAttributes(t testing.TB, der []byte, key crypto.Signer) []byte {
	t.Helper()
	return rebuildCSR(t, der, key, func(subject, spki asn1.RawValue) any {
		return struct {
			Version      int
			Subject, Key asn1.RawValue
		}{0, subject, spki}
	})
}

// rebuildCSR writes a CSR with another inside.
func rebuildCSR(t testing.TB, der []byte, key crypto.Signer, info func(subject, spki asn1.RawValue) any) []byte {
	t.Helper()
	req, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	tbs, err := asn1.Marshal(info(asn1.RawValue{FullBytes: req.RawSubject}, asn1.RawValue{FullBytes: req.RawSubjectPublicKeyInfo}))
	if err != nil {
		t.Fatal(err)
	}
	h := crypto.SHA256.New()
	h.Write(tbs)
	sig, err := key.Sign(rand.Reader, h.Sum(nil), crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	out, err := asn1.Marshal(struct {
		Info asn1.RawValue
		Alg  pkix.AlgorithmIdentifier
		Sig  asn1.BitString
	}{
		asn1.RawValue{FullBytes: tbs},
		pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, Parameters: asn1.NullRawValue},
		asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// message signs and seals content as a message of this type.
func (d *device) message(t testing.TB, kind string, content []byte, to *x509.Certificate) []byte {
	t.Helper()
	return d.messageWith(t, kind, content, to, cms.AES128, crypto.SHA256)
}

// old is a PKCSReq in Triple DES and SHA-1.
func (d *device) old(t testing.TB, to *x509.Certificate) []byte {
	t.Helper()
	return d.messageWith(t, "19", d.csr, to, cms.TripleDES, crypto.SHA1)
}

func (d *device) messageWith(t testing.TB, kind string, content []byte, to *x509.Certificate, cipher cms.Cipher, hash crypto.Hash) []byte {
	t.Helper()
	env, err := cms.Encrypt(content, cipher, cms.FromX509(to), to.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return d.sign(t, kind, env, hash)
}

// sign signs an envelope as a message of this type.
func (d *device) sign(t testing.TB, kind string, env []byte, hash crypto.Hash) []byte {
	t.Helper()
	nonce := make([]byte, 16)
	rand.Read(nonce)
	msg, err := cms.SignMessage(context.Background(), env, &cms.Attributes{
		MessageType: kind, TransactionID: []byte(d.id), SenderNonce: nonce,
	}, cms.FromX509(d.signer), d.key, hash, d.signer.Raw)
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

func (d *device) pkcsReq(t testing.TB, to *x509.Certificate) []byte {
	return d.message(t, "19", d.csr, to)
}

func (d *device) certPoll(t testing.TB, to *x509.Certificate) []byte {
	return d.message(t, "20", sequence(t, to.RawSubject, d.signer.RawSubject), to)
}

func sequence(t testing.TB, elements ...[]byte) []byte {
	t.Helper()
	var list []asn1.RawValue
	for _, e := range elements {
		list = append(list, asn1.RawValue{FullBytes: e})
	}
	der, err := asn1.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// An answer is what a device makes of a reply.
type answer struct {
	http     int
	status   string // pkiStatus; "" if there is no CertRep
	failInfo string
	text     string
	cert     *x509.Certificate
}

func (a answer) String() string {
	s := fmt.Sprintf("HTTP %d status %q failInfo %q %q", a.http, a.status, a.failInfo, a.text)
	if a.cert != nil {
		s += fmt.Sprintf(" certificate %x", a.cert.SerialNumber)
	}
	return s
}

// send posts a message to h and reads the reply, which must be signed by from.
func (d *device) send(t testing.TB, h http.Handler, msg []byte, from *x509.Certificate) answer {
	t.Helper()
	r := httptest.NewRequest("POST", "/scep?operation=PKIOperation", strings.NewReader(string(msg)))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return d.read(t, w.Code, w.Body.Bytes(), from)
}

func (d *device) read(t testing.TB, code int, body []byte, from *x509.Certificate) answer {
	t.Helper()
	a := answer{http: code}
	if code != http.StatusOK {
		return a
	}
	msg, err := cms.ParseMessage(body)
	if err != nil {
		t.Fatal(err)
	}
	if err := msg.Verify(from.PublicKey); err != nil {
		t.Fatal(err)
	}
	if string(msg.TransactionID) != d.id {
		t.Fatalf("transaction ID %q, want %q", msg.TransactionID, d.id)
	}
	a.status, a.failInfo, a.text = msg.PKIStatus, msg.FailInfo, msg.FailInfoText
	if a.status != "0" {
		return a
	}
	env, err := cms.ParseEnvelope(msg.Content)
	if err != nil {
		t.Fatal(err)
	}
	key, err := d.key.Decrypt(nil, env.Recipients[0].EncryptedKey, env.Recipients[0].Options)
	if err != nil {
		t.Fatal(err)
	}
	plain, ok := env.Decrypt(key)
	if !ok {
		t.Fatal("reply does not decrypt")
	}
	certs, _, err := cms.ParseCertsOnly(plain)
	if err != nil {
		t.Fatal(err)
	}
	a.cert = certs[0]
	if !d.key.PublicKey.Equal(a.cert.PublicKey) && msg.MessageType == "3" && len(certs) != 1 {
		t.Fatalf("%d certificates, the first for another key", len(certs))
	}
	return a
}

// quick is a scep.Challenge that admits one secret.
func quick(secret string) scep.Challenge {
	return scep.ChallengeFunc(func(ctx context.Context, req *scep.Request) error {
		if req.Secret.Reveal() != secret {
			return scep.Reject(scep.BadRequest, "challenge refused")
		}
		return nil
	})
}
