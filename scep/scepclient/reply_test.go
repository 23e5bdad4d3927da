package scepclient

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

func TestHonestReply(t *testing.T) {
	l := newLiar(t)
	r := request()
	res, err := l.client().Enroll(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if !equalKeys(res.Certificate.PublicKey, r.Key.Public()) || res.Certificate.Subject.CommonName != "device" {
		t.Errorf("certificate is for %v", res.Certificate.Subject)
	}
	if len(res.Chain) != 1 || !res.Chain[0].Equal(l.ca.Certificate()) {
		t.Errorf("chain has %d certificates; want that of the CA", len(res.Chain))
	}
	q := l.asked()[0]
	if string(q.msg.TransactionID) != res.TransactionID || len(q.msg.SenderNonce) != 16 || q.msg.Digest != crypto.SHA256 {
		t.Errorf("message has transaction ID %q, a nonce of %d bytes and digest %v", q.msg.TransactionID, len(q.msg.SenderNonce), q.msg.Digest)
	}
	signer := mustParse(t, q.msg.Signer.Raw)
	if signer.KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment || signer.Subject.CommonName != "device" {
		t.Errorf("signer has %v and subject %v", signer.KeyUsage, signer.Subject)
	}
}

// TestReplies has a case for each way in which a reply can lie; want is what the error says,
// nothing if the reply is to be accepted.
func TestReplies(t *testing.T) {
	stranger := sceptest.NewCA(t, sceptest.RSA(3)) // an unrelated key
	twin := func(l *liar) []byte {                 // issuer and serial number of the CA, and another key
		ca := l.ca.Certificate()
		return sceptest.Certificate{
			Key: stranger.Key, Serial: ca.SerialNumber.Bytes(), Issuer: ca.RawIssuer, Subject: ca.RawSubject,
		}.DER()
	}
	tests := []struct {
		name string
		lie  func(l *liar, q *query, m *sceptest.Message)
		want string
	}{
		{"CLI-05 another recipientNonce", func(l *liar, q *query, m *sceptest.Message) {
			set(m, sceptest.OIDRecipientNonce, sceptest.TagOctetString, "0123456789abcdef")
		}, "recipientNonce"},
		{"CLI-05 no recipientNonce", func(l *liar, q *query, m *sceptest.Message) {
			edit(m, sceptest.Without(sceptest.OIDRecipientNonce))
		}, "recipientNonce"},
		{"CLI-05 prefix of the nonce", func(l *liar, q *query, m *sceptest.Message) {
			set(m, sceptest.OIDRecipientNonce, sceptest.TagOctetString, string(q.msg.SenderNonce[:8]))
		}, "recipientNonce"},
		{"CLI-05 empty nonce", func(l *liar, q *query, m *sceptest.Message) {
			set(m, sceptest.OIDRecipientNonce, sceptest.TagOctetString, "")
		}, "recipientNonce"},
		{"CLI-06 another transaction", func(l *liar, q *query, m *sceptest.Message) { m.TransactionID = "another" }, "another transaction"},
		{"CLI-06 prefix of the transaction", func(l *liar, q *query, m *sceptest.Message) { m.TransactionID = m.TransactionID[:5] }, "another transaction"},
		{"CLI-06 longer transaction", func(l *liar, q *query, m *sceptest.Message) { m.TransactionID += "0" }, "another transaction"},
		{"CLI-06 no transaction", func(l *liar, q *query, m *sceptest.Message) {
			edit(m, sceptest.Without(sceptest.OIDTransactionID))
		}, "another transaction"},
		{"CLI-07 pkiStatus 1", func(l *liar, q *query, m *sceptest.Message) {
			set(m, sceptest.OIDPKIStatus, sceptest.TagPrintableString, "1")
		}, `unknown pkiStatus, "1"`},
		{"CLI-07 pkiStatus 11", func(l *liar, q *query, m *sceptest.Message) {
			set(m, sceptest.OIDPKIStatus, sceptest.TagPrintableString, "11")
		}, `unknown pkiStatus, "11"`},
		{"CLI-07 pkiStatus 00", func(l *liar, q *query, m *sceptest.Message) {
			set(m, sceptest.OIDPKIStatus, sceptest.TagPrintableString, "00")
		}, `unknown pkiStatus, "00"`},
		{"CLI-07 no pkiStatus", func(l *liar, q *query, m *sceptest.Message) {
			edit(m, sceptest.Without(sceptest.OIDPKIStatus))
		}, "unknown pkiStatus"},
		{"CLI-07 not a CertRep", func(l *liar, q *query, m *sceptest.Message) { m.Type = typePKCSReq }, "in place of CertRep"},
		{"CLI-08 another signer", func(l *liar, q *query, m *sceptest.Message) {
			m.Key, m.Certificate = stranger.Key, stranger.Certificate().Raw
		}, "not signed by"},
		{"CLI-08 another signer under the CA's name", func(l *liar, q *query, m *sceptest.Message) {
			m.Key = stranger.Key
		}, "not signed by"},
		{"CLI-08 unsigned", func(l *liar, q *query, m *sceptest.Message) {
			m.SignerInfos = func([][]byte) [][]byte { return nil }
		}, "not a pkiMessage"},
		{"CLI-08 signature broken", func(l *liar, q *query, m *sceptest.Message) {
			m.Signature = func(b []byte) []byte { b[9] ^= 1; return b }
		}, "not signed by"},
		{"X22 empty bag", func(l *liar, q *query, m *sceptest.Message) { m.Bag = [][]byte{} }, ""},
		{"X22 empty bag, another signer", func(l *liar, q *query, m *sceptest.Message) {
			m.Bag, m.Key = [][]byte{}, stranger.Key
		}, "not signed by"},
		{"X22 twin of the CA's certificate", func(l *liar, q *query, m *sceptest.Message) {
			m.Certificate, m.Key = twin(l), stranger.Key
		}, "not signed by"},
		{"X22 twin and original", func(l *liar, q *query, m *sceptest.Message) {
			m.Bag = [][]byte{twin(l), l.ca.Certificate().Raw}
			m.Certificate, m.Key = twin(l), stranger.Key
		}, "not signed by"},
		{"X22 signed by the device itself", func(l *liar, q *query, m *sceptest.Message) {
			m.Certificate, m.Key = q.msg.Signer.Raw, sceptest.RSA(0)
		}, "not signed by"},
		{"X22 no signed attributes", func(l *liar, q *query, m *sceptest.Message) { m.NoSignedAttrs = true }, "not a pkiMessage"},
		{"X22 two signers", func(l *liar, q *query, m *sceptest.Message) {
			m.SignerInfos = func(s [][]byte) [][]byte { return append(s, s[0]) }
		}, "not a pkiMessage"},
		{"X22 content swapped", func(l *liar, q *query, m *sceptest.Message) {
			m.MessageDigest = func(b []byte) []byte { b[0] ^= 1; return b }
		}, "not signed by"},
		{"X22 SUCCESS with failInfo", func(l *liar, q *query, m *sceptest.Message) {
			add(m, attribute(sceptest.OIDFailInfo, sceptest.TagPrintableString, "2"))
		}, "contradicts itself"},
		{"CLI-09 no senderNonce", func(l *liar, q *query, m *sceptest.Message) { m.SenderNonce = nil }, ""},
		{"signature named with hash", func(l *liar, q *query, m *sceptest.Message) { m.Scheme = sceptest.WithHash }, ""},
		{"signed with PSS", func(l *liar, q *query, m *sceptest.Message) { m.Scheme = sceptest.PSS }, ""},
		{"SHA-512", func(l *liar, q *query, m *sceptest.Message) { m.Hash = crypto.SHA512 }, ""},
		{"SHA-1", func(l *liar, q *query, m *sceptest.Message) { m.Hash = crypto.SHA1 }, "needs Client.Legacy to have scep.SHA1"},
		{"MD5", func(l *liar, q *query, m *sceptest.Message) { m.Hash = crypto.MD5 }, "not accepted"},
		{"indefinite lengths", func(l *liar, q *query, m *sceptest.Message) {
			m.Indefinite, m.Pieces, m.Envelope.Indefinite, m.Envelope.Pieces = true, 100, true, 100
		}, ""},
		{"OAEP", func(l *liar, q *query, m *sceptest.Message) {
			m.Envelope.Recipients[0].OAEP = &sceptest.OAEP{Hash: crypto.SHA256}
		}, ""},
		{"AES-256", func(l *liar, q *query, m *sceptest.Message) { m.Envelope.Cipher = sceptest.AES256 }, ""},
		{"CLI-17 Triple DES", func(l *liar, q *query, m *sceptest.Message) { m.Envelope.Cipher = sceptest.TripleDES }, "needs Client.Legacy to have scep.TripleDES"},
		{"CLI-17 single DES", func(l *liar, q *query, m *sceptest.Message) { m.Envelope.Cipher = sceptest.SingleDES }, "single DES, which is never accepted"},
		{"encrypted to two, neither the client", func(l *liar, q *query, m *sceptest.Message) {
			m.Envelope.Recipients = []sceptest.Recipient{{Certificate: stranger.Certificate()}, {Certificate: stranger.Certificate()}}
		}, "not encrypted to the certificate"},
		{"encrypted to another", func(l *liar, q *query, m *sceptest.Message) {
			m.Envelope.Recipients[0].Certificate = stranger.Certificate()
		}, "does not decrypt"},
		{"not encrypted", func(l *liar, q *query, m *sceptest.Message) { m.Content = m.Envelope.Content }, "holds no envelope"},
		{"no content", func(l *liar, q *query, m *sceptest.Message) { m.NoContent = true }, "holds no envelope"},
		{"content is no certs-only message", func(l *liar, q *query, m *sceptest.Message) {
			m.Envelope.Content = []byte("hello")
		}, "certs-only"},
		{"no certificate", func(l *liar, q *query, m *sceptest.Message) { m.Envelope.Content = certsOnly() }, "no certificate"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			l := newLiar(t)
			l.alter = func(q *query, m *sceptest.Message) { test.lie(l, q, m) }
			_, err := l.client().Enroll(t.Context(), request())
			switch {
			case test.want != "":
				wantError(t, err, test.want)
			case err != nil:
				t.Error(err)
			}
		})
	}
}

func TestIssuedCertificates(t *testing.T) {
	other := sceptest.NewCA(t, sceptest.RSA(3))
	tests := []struct {
		name  string
		certs func(l *liar, leaf *x509.Certificate) [][]byte
		want  string
	}{
		{"CLI-10 leaf last", func(l *liar, leaf *x509.Certificate) [][]byte {
			return [][]byte{l.ca.Certificate().Raw, other.Certificate().Raw, leaf.Raw}
		}, ""},
		{"CLI-11 another public key", func(l *liar, leaf *x509.Certificate) [][]byte {
			return [][]byte{newCertificate(t, &x509.Certificate{Subject: leaf.Subject}, l.ca, sceptest.RSA(2).Public()).Raw}
		}, "no certificate for the key"},
		{"CLI-11 only the CA's", func(l *liar, leaf *x509.Certificate) [][]byte {
			return [][]byte{l.ca.Certificate().Raw}
		}, "no certificate for the key"},
		{"another CA", func(l *liar, leaf *x509.Certificate) [][]byte {
			return [][]byte{newCertificate(t, &x509.Certificate{Subject: leaf.Subject}, other, leaf.PublicKey).Raw, other.Certificate().Raw}
		}, "not by the CA of this server"},
		{"another CA under the same name", func(l *liar, leaf *x509.Certificate) [][]byte {
			fake := &scep.Identity{Key: other.Key, Certificates: []*x509.Certificate{newCertificate(t,
				&x509.Certificate{RawSubject: l.ca.Certificate().RawSubject, IsCA: true}, nil, other.Key)}}
			return [][]byte{newCertificate(t, &x509.Certificate{Subject: leaf.Subject}, fake, leaf.PublicKey).Raw, fake.Certificate().Raw}
		}, "not by the CA of this server"},
		{"through a CA that the reply brings", func(l *liar, leaf *x509.Certificate) [][]byte {
			sub := sceptest.NewSubCA(t, l.ca)
			return [][]byte{newCertificate(t, &x509.Certificate{Subject: leaf.Subject}, sub, leaf.PublicKey).Raw, sub.Certificate().Raw}
		}, ""},
		{"through a device that poses as a CA", func(l *liar, leaf *x509.Certificate) [][]byte {
			device := newIdentity(t, "device", x509.KeyUsageDigitalSignature, false, l.ca, sceptest.RSA(3))
			return [][]byte{newCertificate(t, &x509.Certificate{Subject: leaf.Subject}, device, leaf.PublicKey).Raw, device.Certificate().Raw}
		}, "not by the CA of this server"},
		{"self-signed", func(l *liar, leaf *x509.Certificate) [][]byte {
			return [][]byte{newCertificate(t, &x509.Certificate{Subject: pkix.Name{CommonName: "device"}}, nil, sceptest.RSA(0)).Raw}
		}, "not by the CA of this server"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			l := newLiar(t)
			l.certs = func(leaf *x509.Certificate) [][]byte { return test.certs(l, leaf) }
			res, err := l.client().Enroll(t.Context(), request())
			switch {
			case test.want != "":
				wantError(t, err, test.want)
			case err != nil:
				t.Error(err)
			case !equalKeys(res.Certificate.PublicKey, sceptest.RSA(0).Public()):
				t.Error("certificate has another key")
			}
		})
	}
}

// X23: the same request again gets the reply to the one before.
func TestReplayedReply(t *testing.T) {
	l := newLiar(t)
	var old []byte
	l.body = func(q *query, reply []byte) []byte {
		if old == nil {
			old = reply
		}
		return old
	}
	r := request()
	r.TransactionID = "always the same"
	if _, err := l.client().Enroll(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	_, err := l.client().Enroll(t.Context(), r)
	wantError(t, err, "not to this message")
}

func TestFailures(t *testing.T) {
	hresult := sceptest.Attribute{Type: oidHRESULT, Values: [][]byte{sceptest.TLV(sceptest.TagInteger, []byte{0x80, 0x09, 0x48, 0x09})}}
	tests := []struct {
		name string
		lie  func(m *sceptest.Message)
		info scep.FailInfo
		want []string
	}{
		{"plain", func(m *sceptest.Message) {}, scep.BadRequest, []string{"badRequest"}},
		{"with text", func(m *sceptest.Message) {
			add(m, attribute(sceptest.OIDFailInfoText, sceptest.TagUTF8String, "wrong password"))
		}, scep.BadRequest, []string{"badRequest", "wrong password"}},
		{"content absent", func(m *sceptest.Message) { m.NoContent = true }, scep.BadRequest, nil},
		{"CLI-07 failInfo 9", func(m *sceptest.Message) {
			set(m, sceptest.OIDFailInfo, sceptest.TagPrintableString, "9")
		}, 9, []string{"failInfo 9"}},
		{"no failInfo", func(m *sceptest.Message) {
			edit(m, sceptest.Without(sceptest.OIDFailInfo))
		}, NoFailInfo, []string{"no reason given"}},
		{"failInfo is no number", func(m *sceptest.Message) {
			set(m, sceptest.OIDFailInfo, sceptest.TagPrintableString, "badAlg")
		}, NoFailInfo, []string{"no reason given"}},
		{"CLI-16 NDES", func(m *sceptest.Message) {
			m.Content, m.Bag = []byte{0}, [][]byte{}
			add(m, hresult)
		}, scep.BadRequest, []string{"badRequest", "80094809"}},
		{"CLI-22 control characters", func(m *sceptest.Message) {
			add(m, attribute(sceptest.OIDFailInfoText, sceptest.TagUTF8String, "a\x1b[31mb\r\nc\u202ed\xffe"))
		}, scep.BadRequest, []string{`"a?[31mb??c?d?e"`}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			l := newLiar(t)
			l.status = func(*query) string { return statusFailure }
			l.alter = func(q *query, m *sceptest.Message) { test.lie(m) }
			_, err := l.client().Enroll(t.Context(), request())
			wantError(t, err, test.want...)
			var failure *FailureError
			if !errors.As(err, &failure) || failure.FailInfo != test.info || !errors.Is(err, test.info) {
				t.Fatalf("error %#v; want a FailureError with %v", err, test.info)
			}
			if other := scep.BadAlg; errors.Is(err, other) {
				t.Errorf("error is %v", other)
			}
			if strings.HasPrefix(test.name, "CLI-16") && !bytes.Equal(failure.HRESULT, hresult.Values[0]) {
				t.Errorf("HRESULT %x", failure.HRESULT)
			}
		})
	}
}

func TestLongFailInfoText(t *testing.T) { // CLI-22
	l := newLiar(t)
	l.status = func(*query) string { return statusFailure }
	l.alter = func(q *query, m *sceptest.Message) {
		add(m, attribute(sceptest.OIDFailInfoText, sceptest.TagUTF8String, strings.Repeat("ü", 250_000)))
	}
	_, err := l.client().Enroll(t.Context(), request())
	var failure *FailureError
	if !errors.As(err, &failure) || len(failure.Text) > maxText || len(err.Error()) > 2*maxText {
		t.Errorf("error of %d bytes, text of %d", len(err.Error()), len(failure.Text))
	}
	if strings.Trim(failure.Text, "ü") != "" {
		t.Errorf("text is cut within a character: %q", failure.Text)
	}
}

// CLI-17: what Legacy admits, and what it does not.
func TestLegacyReplies(t *testing.T) {
	for _, test := range []struct {
		name   string
		cipher sceptest.Cipher
		hash   crypto.Hash
		want   string
	}{
		{"Triple DES and SHA-1", sceptest.TripleDES, crypto.SHA1, ""},
		{"single DES", sceptest.SingleDES, crypto.SHA1, "single DES, which is never accepted"},
		{"MD5", sceptest.TripleDES, crypto.MD5, "not accepted"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newLiar(t)
			l.alter = func(q *query, m *sceptest.Message) { m.Hash, m.Envelope.Cipher = test.hash, test.cipher }
			c := l.client()
			c.Legacy = scep.TripleDES | scep.SHA1
			_, err := c.Enroll(t.Context(), request())
			switch {
			case test.want != "":
				wantError(t, err, test.want)
			case err != nil:
				t.Error(err)
			}
		})
	}
}

func TestHTTPAnswers(t *testing.T) {
	tests := []struct {
		name   string
		answer http.HandlerFunc
		want   []string
	}{
		{"CLI-18 HTML", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			io.WriteString(w, "<html>Please log in</html>")
		}, []string{"text/html", "is Client.URL that of a SCEP service?"}},
		{"empty", func(w http.ResponseWriter, r *http.Request) {}, []string{"0 bytes"}},
		{"CLI-19 100 MB", func(w http.ResponseWriter, r *http.Request) {
			block := make([]byte, 1<<16)
			for n := 0; n < 100<<20; n += len(block) {
				if _, err := w.Write(block); err != nil {
					return
				}
			}
			t.Error("the client read all of it")
		}, []string{"more than the 1048576 bytes"}},
		{"500", func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, "kaputt\x1b", http.StatusInternalServerError)
		}, []string{"HTTP 500", `"kaputt\x1b"`}},
		{"404", http.NotFound, []string{"HTTP 404", "is Client.URL right"}},
		{"redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://example.org/elsewhere", http.StatusTemporaryRedirect)
		}, []string{"HTTP 307", "http://example.org/elsewhere", "set Client.URL"}},
		{"broken off", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000")
			io.WriteString(w, "0")
		}, []string{"no answer"}},
	}
	for _, operation := range []string{"GetCACert", "PKIOperation"} {
		for _, test := range tests {
			t.Run(operation+" "+test.name, func(t *testing.T) {
				l := newLiar(t)
				l.http = func(w http.ResponseWriter, r *http.Request) bool {
					if r.URL.Query().Get("operation") != operation {
						return false
					}
					test.answer(w, r)
					return true
				}
				_, err := l.client().Enroll(t.Context(), request())
				wantError(t, err, append(test.want, operation)...)
			})
		}
	}
}

func TestUnavailable(t *testing.T) {
	for _, test := range []struct{ header, want string }{
		{"17", "17s"}, {"", "later"}, {"soon", "later"}, {"-5", "later"}, {"99999999", "24h"}, {"99999999999999", "later"},
	} {
		t.Run(test.header, func(t *testing.T) {
			l := newLiar(t)
			l.http = func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method != http.MethodPost {
					return false
				}
				w.Header().Set("Retry-After", test.header)
				http.Error(w, "busy", http.StatusServiceUnavailable)
				return true
			}
			_, err := l.client().Enroll(t.Context(), request())
			wantError(t, err, "503", test.want)
			var busy *UnavailableError
			if !errors.As(err, &busy) {
				t.Errorf("error is %T", err)
			}
		})
	}
}

func ExampleFailureError() {
	err := fmt.Errorf("device-1: %w", &FailureError{FailInfo: scep.BadRequest, Text: "challenge refused"})
	fmt.Println(errors.Is(err, scep.BadRequest))
	var refused *FailureError
	if errors.As(err, &refused) {
		fmt.Println(refused.Text)
	}
	// Output:
	// true
	// challenge refused
}
