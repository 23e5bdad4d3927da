package scepclient

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// certsUsage is that of a CA that does everything.
const certsUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment

// nextAnswer is a good answer to GetNextCACert, to be bent.
func nextAnswer(signer *scep.Identity, next ...[]byte) *sceptest.Message {
	return &sceptest.Message{
		Content: certsOnly(next...), Bag: append(slices.Clone(next), signer.Certificate().Raw),
		Key: signer.Key, Certificate: signer.Certificate().Raw, Scheme: sceptest.PlainRSA,
		Attributes: sceptest.Without(sceptest.OIDMessageType, sceptest.OIDTransactionID),
	}
}

// unwrapped returns the SignedData of a ContentInfo.
func unwrapped(t *testing.T, der []byte) []byte {
	t.Helper()
	var id asn1.ObjectIdentifier
	rest, err := asn1.Unmarshal(contentOf(t, der), &id)
	if err != nil {
		t.Fatal(err)
	}
	return contentOf(t, rest)
}

// contentOf returns what is in an element.
func contentOf(t *testing.T, der []byte) []byte {
	t.Helper()
	var seq asn1.RawValue
	if _, err := asn1.Unmarshal(der, &seq); err != nil {
		t.Fatal(err)
	}
	return seq.Bytes
}

// CLI-15: the next CA is what the current one signed, in every form that servers have, and nothing
// else.
func TestNextCA(t *testing.T) {
	var (
		signed   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
		ca       = sceptest.NewCA(t)
		ra       = sceptest.NewRA(t, ca)
		next     = sceptest.NewCA(t, sceptest.RSA(6))
		nextRA   = sceptest.NewRA(t, next, sceptest.RSA(4))
		stranger = sceptest.NewCA(t, sceptest.RSA(3))
		named    = newCertificate(t, &x509.Certificate{RawSubject: ca.Certificate().RawSubject, KeyUsage: certsUsage, IsCA: true}, nil, sceptest.RSA(3))
		member   = newIdentity(t, "device", x509.KeyUsageDigitalSignature, false, ca, sceptest.RSA(2))
		expired  = newCertificate(t, &x509.Certificate{RawSubject: sceptest.CN("expired"), KeyUsage: certsUsage, IsCA: true, NotAfter: time.Now().Add(-time.Minute)}, nil, sceptest.RSA(2))
		later    = newCertificate(t, &x509.Certificate{RawSubject: sceptest.CN("later"), KeyUsage: certsUsage, IsCA: true, NotBefore: time.Now().Add(time.Hour)}, nil, sceptest.RSA(2))
		der      = next.Certificate().Raw
		inner    = certsOnly(der)
	)
	type answer struct {
		name string
		body []byte
		want string // in the error; "": accepted
	}
	bend := func(change func(m *sceptest.Message)) []byte {
		m := nextAnswer(ca, der)
		change(m)
		return m.BER()
	}
	pkcs7 := func(content []byte) []byte { // content that is no OCTET STRING
		m := nextAnswer(ca, der)
		m.ContentType, m.Content = signed, contentOf(t, content)
		return bytes.Replace(m.BER(), sceptest.TLV(sceptest.TagOctetString, m.Content), content, 1)
	}
	const unsigned, wrong = "is not a message signed by the CA", "is not signed by"
	tests := []answer{
		{"id-data, ContentInfo", bend(func(m *sceptest.Message) {}), ""},
		{"id-data, SignedData", bend(func(m *sceptest.Message) { m.Content = unwrapped(t, inner) }), ""},
		{"id-signedData, ContentInfo", bend(func(m *sceptest.Message) { m.ContentType = signed }), ""},
		{"id-signedData, SignedData", bend(func(m *sceptest.Message) { m.ContentType, m.Content = signed, unwrapped(t, inner) }), ""},
		{"PKCS #7, ContentInfo", pkcs7(inner), ""},
		{"PKCS #7, SignedData", pkcs7(unwrapped(t, inner)), ""},
		{"BER", bend(func(m *sceptest.Message) { m.Indefinite, m.Pieces = true, 100 }), ""},
		{"inner certificates only", bend(func(m *sceptest.Message) { m.Bag = [][]byte{ca.Certificate().Raw} }), ""},
		{"no signer's certificate", bend(func(m *sceptest.Message) { m.Bag = [][]byte{der} }), ""},
		{"current one inside", bend(func(m *sceptest.Message) { m.Content = certsOnly(ca.Certificate().Raw, der) }), ""},
		{"signed by the RA", nextAnswer(ra, der).BER(), ""},
		{"another outside", bend(func(m *sceptest.Message) { m.Bag = [][]byte{stranger.Certificate().Raw} }), ""},
		{"with SHA-512", bend(func(m *sceptest.Message) { m.Hash = crypto.SHA512 }), ""},

		{"outer certificates only, no content", bend(func(m *sceptest.Message) { m.NoContent = true }), unsigned},
		{"outer certificates only, empty content", bend(func(m *sceptest.Message) { m.Content = []byte{} }), unsigned},
		{"FAILURE with a stranger outside", (&sceptest.Message{
			Type: typeCertRep, TransactionID: "1", Content: []byte{}, Bag: [][]byte{stranger.Certificate().Raw},
			Key: ca.Key, Certificate: ca.Certificate().Raw, Scheme: sceptest.PlainRSA,
		}).BER(), unsigned},
		{"as GetCACert", inner, unsigned},
		{"one certificate", der, unsigned},
		{"HTML", []byte("<html>"), unsigned},
		{"nothing", nil, unsigned},
		{"no signer", bend(func(m *sceptest.Message) { m.SignerInfos = func([][]byte) [][]byte { return nil } }), unsigned},
		{"two signers", bend(func(m *sceptest.Message) {
			m.SignerInfos = func(infos [][]byte) [][]byte { return append(infos, infos[0]) }
		}), unsigned},
		{"other content type", bend(func(m *sceptest.Message) { m.ContentType = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 3} }), unsigned},
		{"stranger", nextAnswer(stranger, der).BER(), wrong},
		{"next CA itself", nextAnswer(next, der).BER(), wrong},
		{"stranger with the CA's name", nextAnswer(&scep.Identity{Key: sceptest.RSA(3), Certificates: []*x509.Certificate{named}}, der).BER(), wrong},
		{"stranger with the CA's certificate", bend(func(m *sceptest.Message) { m.Key = sceptest.RSA(3) }), wrong},
		{"device of the CA", nextAnswer(member, der).BER(), wrong},
		{"signature broken", bend(func(m *sceptest.Message) {
			m.Signature = func(sig []byte) []byte { sig = bytes.Clone(sig); sig[9] ^= 1; return sig }
		}), wrong},
		{"digest of something else", bend(func(m *sceptest.Message) {
			m.MessageDigest = func(d []byte) []byte { return make([]byte, len(d)) }
		}), wrong},
		{"no signed attributes", bend(func(m *sceptest.Message) { m.NoSignedAttrs = true }), unsigned},
		{"contentType of another", bend(func(m *sceptest.Message) {
			before := m.Attributes
			m.Attributes = func(a []sceptest.Attribute) []sceptest.Attribute {
				return sceptest.Replace(sceptest.OIDContentType, sceptest.OID(signed))(before(a))
			}
		}), wrong},
		{"content swapped", bytes.Replace(nextAnswer(ca, der).BER(), der, append(bytes.Clone(der[:len(der)-1]), der[len(der)-1]^1), 1), wrong},
		{"with SHA-1", bend(func(m *sceptest.Message) { m.Hash = crypto.SHA1 }), "SHA-1"},
		{"with MD5", bend(func(m *sceptest.Message) { m.Hash = crypto.MD5 }), "not accepted"},
		{"only the current one", bend(func(m *sceptest.Message) { m.Content = certsOnly(ca.Certificate().Raw) }), "no certificate of a next CA"},
		{"only a device", nextAnswer(ca, member.Certificate().Raw).BER(), "no certificate of a next CA"},
		{"inner message is signed", bend(func(m *sceptest.Message) { m.Content = nextAnswer(stranger, der).BER() }), unsigned},
		{"content is none", bend(func(m *sceptest.Message) { m.Content = []byte("next") }), unsigned},
		{"expired", nextAnswer(ca, expired.Raw).BER(), "expired"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newLiar(t)
			l.ca, l.ra = ca, ra
			l.bag = [][]byte{ra.Certificate().Raw, ca.Certificate().Raw}
			l.caps += "GetNextCACert\n"
			l.http = func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Query().Get("operation") != "GetNextCACert" {
					return false
				}
				w.Write(tt.body)
				return true
			}
			got, err := l.client().NextCA(t.Context())
			if tt.want != "" {
				wantError(t, err, tt.want)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !got.Issuer.Equal(next.Certificate()) || !got.Recipient.Equal(next.Certificate()) || !got.Authenticated {
				t.Errorf("issuer %q, recipient %q, authenticated %t", got.Issuer.Subject, got.Recipient.Subject, got.Authenticated)
			}
		})
	}
	l := newLiar(t)
	l.caps += "GetNextCACert\n"
	var body []byte
	l.http = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Get("operation") == "GetNextCACert" {
			w.Write(body)
			return true
		}
		return false
	}
	body = nextAnswer(l.ca, nextRA.Certificate().Raw, der).BER()
	got, err := l.client().NextCA(t.Context())
	if err != nil || !got.Recipient.Equal(nextRA.Certificate()) || !got.Issuer.Equal(next.Certificate()) || len(got.Certificates) != 2 {
		t.Errorf("with an RA: %+v, %v", got, err)
	}
	body = nextAnswer(l.ca, later.Raw).BER()
	if got, err = l.client().NextCA(t.Context()); err != nil || !got.Issuer.Equal(later) {
		t.Errorf("not valid yet: %+v, %v", got, err)
	}
	// Nobody vouches for the current CA.
	c := l.client()
	c.Fingerprints = nil
	_, err = c.NextCA(t.Context())
	wantError(t, err, "nothing authenticates the CA")
	c.InsecureAnyCA = true
	if got, err = c.NextCA(t.Context()); err != nil || got.Authenticated {
		t.Errorf("without a pin: %+v, %v", got, err)
	}
	c = l.client()
	if _, err = c.Enroll(t.Context(), withCA(request(), got)); err == nil || !strings.Contains(err.Error(), "Request.CA was taken from a server without") {
		t.Errorf("enrolled with a CA that nobody vouches for: %v", err)
	}
	if _, err = c.Enroll(t.Context(), withCA(request(), &CA{Recipient: next.Certificate(), Authenticated: true})); err == nil || !strings.Contains(err.Error(), "Request.CA is no") {
		t.Errorf("enrolled with a CA made by hand: %v", err)
	}
	if n := len(l.asked()); n != 0 {
		t.Errorf("%d messages were sent", n)
	}
}

func withCA(r Request, ca *CA) Request {
	r.CA = ca
	return r
}

func TestNoNextCA(t *testing.T) {
	for name, caps := range map[string]string{"not offered": standardCaps, "offered": standardCaps + "GetNextCACert\n", "silent": ""} {
		l := newLiar(t)
		l.caps = caps
		var asked bool
		l.http = func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Query().Get("operation") == "GetNextCACert" {
				asked = true
				http.NotFound(w, r)
				return true
			}
			return false
		}
		if _, err := l.client().NextCA(t.Context()); !errors.Is(err, ErrNoNextCA) || asked != (name != "not offered") {
			t.Errorf("%s: %v, asked %t", name, err, asked)
		}
	}
}

// TestEnrollWithNextCA enrols, renews and polls with the next CA before it takes over.
func TestEnrollWithNextCA(t *testing.T) {
	old, next := sceptest.NewCA(t), sceptest.NewCA(t, sceptest.P384())
	wait := false
	srv := sceptest.NewServer(t, scep.Config{
		CA: old, Next: next, Renewal: scep.Renewal{On: true, Anytime: true},
		Challenge: scep.ChallengeFunc(func(_ context.Context, req *scep.Request) error {
			if wait {
				return scep.ErrPending
			}
			return nil
		}),
	})
	c := &Client{URL: srv.URL, Fingerprints: []string{Fingerprint(old.Certificate())}, Retries: -1}
	first, err := c.Enroll(t.Context(), request())
	if err != nil {
		t.Fatal(err)
	}
	ca, err := c.NextCA(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.Renew(t.Context(), first.Certificate, sceptest.RSA(0), Request{Key: sceptest.RSA(1), CA: ca})
	if err != nil {
		t.Fatal(err)
	}
	if !res.Chain[0].Equal(next.Certificate()) {
		t.Errorf("issued by %q", res.Chain[0].Subject)
	}
	wait = true
	_, err = c.Enroll(t.Context(), Request{Key: sceptest.RSA(2), CA: ca, Template: request().Template})
	var pending *PendingError
	if !errors.As(err, &pending) {
		t.Fatal(err)
	}
	text, err := json.Marshal(pending.Pending)
	if err != nil {
		t.Fatal(err)
	}
	var handle Pending
	if err := json.Unmarshal(text, &handle); err != nil {
		t.Fatal(err)
	}
	list, err := srv.Config.Depot.(scep.Lister).List(t.Context(), scep.Query{State: scep.Pending})
	if err != nil || len(list) != 1 {
		t.Fatal(len(list), err)
	}
	if _, err := srv.Handler.Approve(t.Context(), list[0].ID, scep.Decision{}); err != nil {
		t.Fatal(err)
	}
	if res, err = c.Poll(t.Context(), &handle, sceptest.RSA(2)); err != nil || !res.Chain[0].Equal(next.Certificate()) {
		t.Errorf("poll: %v", err)
	}
}
