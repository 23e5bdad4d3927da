package scepclient

import (
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// CLI-03: nothing is sent to a CA that is another, or that nobody vouches for.
func TestFingerprintBeforeChallenge(t *testing.T) {
	tests := []struct {
		name   string
		change func(c *Client)
		want   string
	}{
		{"differs", func(c *Client) { c.Fingerprints = []string{strings.Repeat("ab", 32)} }, "the server has another CA"},
		{"none", func(c *Client) { c.Fingerprints = nil }, "nothing authenticates the CA"},
		{"other root", func(c *Client) {
			c.Fingerprints, c.Roots = nil, sceptest.NewCA(t, sceptest.RSA(3)).Certificates
		}, "chains to one which is known"},
		{"root with the same name", func(c *Client) {
			ca := sceptest.NewCA(t).Certificate()
			c.Fingerprints = nil
			c.Roots = []*x509.Certificate{newCertificate(t, &x509.Certificate{RawSubject: ca.RawSubject, IsCA: true}, nil, sceptest.RSA(3))}
		}, "chains to one which is known"},
		{"SHA-1 without Legacy", func(c *Client) { c.Fingerprints = []string{strings.Repeat("ab", 20)} }, "needs Client.Legacy"},
		{"too short", func(c *Client) { c.Fingerprints = []string{"abcd"} }, "64 hexadecimal digits"},
		{"no digits", func(c *Client) { c.Fingerprints = []string{"fingerprint"} }, "64 hexadecimal digits"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			l := newLiar(t)
			c := l.client()
			test.change(c)
			_, err := c.Enroll(t.Context(), request())
			wantError(t, err, test.want)
			_, err = c.Renew(t.Context(), l.ca.Certificate(), l.ca.Key, request())
			wantError(t, err, test.want)
			_, err = c.GetCert(t.Context(), nil, l.ca.Certificate().SerialNumber, l.ca.Certificate(), l.ca.Key)
			wantError(t, err, test.want)
			if n := len(l.asked()); n > 0 {
				t.Errorf("client sent %d messages", n)
			}
		})
	}
}

func TestFingerprintForms(t *testing.T) {
	l := newLiar(t)
	fp := Fingerprint(l.ca.Certificate())
	var colons []string
	for i := 0; i < len(fp); i += 2 {
		colons = append(colons, strings.ToUpper(fp[i:i+2]))
	}
	sum := sha1.Sum(l.ca.Certificate().Raw)
	for _, text := range []string{fp, strings.ToUpper(fp), strings.Join(colons, ":"), strings.Join(colons, " "), " " + fp, hex.EncodeToString(sum[:])} {
		c := l.client()
		c.Legacy = scep.SHA1
		c.Fingerprints = []string{strings.Repeat("0", 64), text}
		if ca, err := c.CACertificates(t.Context()); err != nil || !ca.Authenticated {
			t.Errorf("%q: %v", text, err)
		}
	}
	c := l.client()
	c.Fingerprints, c.InsecureAnyCA = nil, true
	if _, err := c.Enroll(t.Context(), request()); err != nil {
		t.Errorf("InsecureAnyCA: %v", err)
	}
	c.InsecureAnyCA = false
	if ca, err := c.CACertificates(t.Context()); err != nil || ca.Authenticated || !ca.Certificates[0].Equal(l.ca.Certificate()) {
		t.Errorf("without anything: %v", err)
	}
}

// CLI-20: which of the two forms came is seen by its bytes.
func TestGetCACertForms(t *testing.T) {
	ca := sceptest.NewCA(t).Certificate().Raw
	for _, test := range []struct {
		name, contentType string
		body              []byte
		want              string
	}{
		{"single", "application/x-x509-ca-cert", ca, ""},
		{"single as chain", "application/x-x509-ca-ra-cert", ca, ""},
		{"chain as single", "application/x-x509-ca-cert", certsOnly(ca), ""},
		{"single with a line break", "application/octet-stream", append(append([]byte{}, ca...), '\r', '\n'), ""},
		{"no type", "", certsOnly(ca), ""},
		{"HTML", "text/html", []byte("<html>"), "text/html"},
		{"empty", "", nil, "GetCACert"},
		{"no certificates", "", certsOnly(), "it has no certificates"},
		{"many certificates", "", certsOnly(manyTimes(ca, 40)...), "it has 40 certificates"},
		{"truncated", "application/x-x509-ca-cert", ca[:100], "GetCACert"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newLiar(t)
			l.http = func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Query().Get("operation") != "GetCACert" {
					return false
				}
				w.Header().Set("Content-Type", test.contentType)
				w.Write(test.body)
				return true
			}
			c := l.client()
			c.Fingerprints = nil
			c.Roots = []*x509.Certificate{mustParse(t, ca)}
			got, err := c.CACertificates(t.Context())
			switch {
			case test.want != "":
				wantError(t, err, test.want)
			case err != nil:
				t.Error(err)
			case len(got.Certificates) != 1:
				t.Errorf("%d certificates", len(got.Certificates))
			}
		})
	}
}

func manyTimes(der []byte, n int) (out [][]byte) {
	for range n {
		out = append(out, der)
	}
	return out
}

// TestChoose has answers to GetCACert, and what the client makes of them. The certificates are
// known by one letter each.
func TestChoose(t *testing.T) {
	const (
		sign    = x509.KeyUsageDigitalSignature
		encrypt = x509.KeyUsageKeyEncipherment
		issue   = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	)
	root := newIdentity(t, "root", issue, true, nil, sceptest.RSA(1))
	sub := newIdentity(t, "sub", issue|sign|encrypt, true, root, sceptest.RSA(2))
	plainSub := newIdentity(t, "plain sub", issue, true, root, sceptest.P256())
	expiring := func(id *scep.Identity, parent *scep.Identity, isCA bool) *x509.Certificate {
		return newCertificate(t, &x509.Certificate{
			RawSubject: id.Certificate().RawSubject, KeyUsage: issue | sign | encrypt, IsCA: isCA, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour),
		}, parent, id.Key.Public())
	}
	ra := newIdentity(t, "ra", sign|encrypt, false, sub, sceptest.RSA(3))
	certs := map[rune]*x509.Certificate{
		'R': root.Certificate(),
		'S': sub.Certificate(),
		'P': plainSub.Certificate(),
		'r': ra.Certificate(),                                                                    // by S
		'o': newIdentity(t, "other ra", sign|encrypt, false, sub, sceptest.RSA(4)).Certificate(), // by S
		'p': newIdentity(t, "ra of plain", sign|encrypt, false, plainSub, sceptest.RSA(4)).Certificate(),
		'e': newIdentity(t, "CEP encryption", encrypt, false, plainSub, sceptest.RSA(5)).Certificate(),
		's': newIdentity(t, "enrollment agent", sign, false, plainSub, sceptest.RSA(6)).Certificate(),
		'c': newIdentity(t, "EC ra", sign, false, sub, sceptest.P256()).Certificate(),
		'X': expiring(sub, root, true),
		'x': expiring(ra, sub, false),
		'F': newIdentity(t, "foreign", issue|sign|encrypt, true, nil, sceptest.RSA(5)).Certificate(),
		'f': newIdentity(t, "self-signed ra", sign|encrypt, false, nil, sceptest.RSA(6)).Certificate(),
		'B': newCertificate(t, &x509.Certificate{RawSubject: root.Certificate().RawSubject, KeyUsage: issue, IsCA: true}, nil, sceptest.RSA(5)),
		'd': newCertificate(t, &x509.Certificate{
			Subject: pkix.Name{CommonName: "device"}, KeyUsage: sign | encrypt, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}, sub, sceptest.RSA(4).Public()),
		't': newCertificate(t, &x509.Certificate{
			Subject: pkix.Name{CommonName: "server"}, KeyUsage: sign | encrypt, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		}, sub, sceptest.RSA(4).Public()),
		'm': newCertificate(t, &x509.Certificate{
			Subject: pkix.Name{CommonName: "NDES"}, KeyUsage: sign | encrypt,
			UnknownExtKeyUsage: []asn1.ObjectIdentifier{{1, 3, 6, 1, 4, 1, 311, 20, 2, 1}},
		}, sub, sceptest.RSA(4).Public()),
		'O': newIdentity(t, "old", 0, true, nil, sceptest.RSA(7)).Certificate(), // no keyUsage
	}
	tests := []struct {
		name, answer, pins string // pins in Roots, but the last test
		recipient, signers string
		issuer             string
		want               string // of the error
	}{
		{name: "self-signed CA alone", answer: "O", pins: "O", recipient: "O", signers: "O", issuer: "O"},
		{name: "issuing CA and root", answer: "SR", pins: "R", recipient: "S", signers: "S", issuer: "S"},
		{name: "root first", answer: "RS", pins: "R", recipient: "S", signers: "S", issuer: "S"},
		{name: "issuing CA pinned", answer: "SR", pins: "S", recipient: "S", signers: "S", issuer: "S"},
		{name: "root not sent", answer: "S", pins: "R", recipient: "S", signers: "S", issuer: "S"},
		{name: "RA", answer: "rSR", pins: "R", recipient: "r", signers: "rS", issuer: "S"},
		{name: "RA last", answer: "RSr", pins: "R", recipient: "r", signers: "Sr", issuer: "S"},
		{name: "RA of a CA without an RSA key", answer: "pPR", pins: "P", recipient: "p", signers: "p", issuer: "P"},
		{name: "RA pinned", answer: "rSR", pins: "r", recipient: "r", signers: "r", issuer: "S"},
		{name: "RA pinned, another there", answer: "orS", pins: "r", recipient: "r", signers: "r", issuer: "S"},
		{name: "RA pinned, only another there", answer: "oS", pins: "r", want: "unknown authority"},
		{name: "RA and CA pinned, only another there", answer: "oS", pins: "rS", want: "another RA than the one that is pinned"},
		{name: "RA alone, CA given", answer: "r", pins: "S", recipient: "r", signers: "r", issuer: "S"},
		{name: "RA alone and pinned", answer: "r", pins: "r", want: "add it to Client.Roots"},
		{name: "RA alone and pinned, CA given", answer: "r", pins: "rS", recipient: "r", signers: "r", issuer: "S"},
		{name: "self-signed RA pinned", answer: "fS", pins: "fS", recipient: "f", signers: "f S", issuer: "S"},
		{name: "self-signed RA not pinned", answer: "fS", pins: "S", want: "unknown authority"},
		{name: "CLI-16 NDES pair", answer: "esPR", pins: "R", recipient: "e", signers: "s", issuer: "P"},
		{name: "CLI-16 NDES pair, other order", answer: "sePR", pins: "P", recipient: "e", signers: "s", issuer: "P"},
		{name: "RA with an EC key signs, CA decrypts", answer: "cS", pins: "S", recipient: "S", signers: "cS", issuer: "S"},
		{name: "CLI-04 intermediate expired", answer: "XR", pins: "R", want: "expired"},
		{name: "CLI-04 intermediate of RA expired", answer: "rXR", pins: "R", want: "expired"},
		{name: "CLI-04 pinned CA expired", answer: "X", pins: "X", want: "expired"},
		{name: "CLI-04 RA expired", answer: "xS", pins: "S", want: "expired"},
		{name: "old RA expired, new one there", answer: "xrS", pins: "S", recipient: "r", signers: "r", issuer: "S"},
		{name: "CLI-04 chain broken", answer: "SB", pins: "B", want: "has no RSA certificate"},
		{name: "CLI-04 link missing", answer: "rR", pins: "R", want: "unknown authority"},
		{name: "foreign CA", answer: "F", pins: "R", want: "unknown authority"},
		{name: "foreign CA beside", answer: "FS", pins: "S", recipient: "S", signers: "S", issuer: "S"},
		{name: "a device's certificate in the place of an RA's", answer: "dSR", pins: "R", want: "something else than an RA"},
		{name: "a server's certificate in the place of an RA's", answer: "tSR", pins: "R", want: "something else than an RA"},
		{name: "an RA that says so", answer: "mSR", pins: "R", recipient: "m", signers: "mS", issuer: "S"},
		{name: "a device's certificate beside an RA's", answer: "drSR", pins: "R", recipient: "r", signers: "r", issuer: "S"},
		{name: "which is the RA's all the same", answer: "dSR", pins: "dS", recipient: "d", signers: "dS", issuer: "S"},
		{name: "no RSA key", answer: "PR", pins: "P", want: "no RSA certificate"},
	}
	pick := func(names string) (out []*x509.Certificate) {
		for _, name := range names {
			if name != ' ' {
				out = append(out, certs[name])
			}
		}
		return out
	}
	check := func(t *testing.T, ca *CA, recipient, signers, issuer string) {
		t.Helper()
		if !ca.Recipient.Equal(pick(recipient)[0]) {
			t.Errorf("recipient is %v", ca.Recipient.Subject)
		}
		if !ca.Issuer.Equal(pick(issuer)[0]) {
			t.Errorf("issuer is %v", ca.Issuer.Subject)
		}
		want := pick(signers)
		if len(ca.Signers) != len(want) {
			t.Fatalf("%d signers, want %d", len(ca.Signers), len(want))
		}
		for i := range want {
			if !ca.Signers[i].Equal(want[i]) {
				t.Errorf("signer %d is %v", i, ca.Signers[i].Subject)
			}
		}
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			ca, err := choose(pick(test.answer), pick(test.pins), time.Now())
			if test.want != "" {
				wantError(t, err, test.want)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			check(t, ca, test.recipient, test.signers, test.issuer)
		})
	}
	t.Run("fingerprints do what roots do", func(t *testing.T) {
		c := &Client{URL: "http://scep.example", Fingerprints: []string{Fingerprint(certs['r']), Fingerprint(certs['S'])}}
		ca, err := c.authenticate(t.Context(), pick("orSR"))
		if err != nil {
			t.Fatal(err)
		}
		check(t, ca, "r", "r", "S")
	})
	t.Run("any CA", func(t *testing.T) {
		c := &Client{URL: "http://scep.example", InsecureAnyCA: true}
		ca, err := c.authenticate(t.Context(), pick("rSR"))
		if err != nil {
			t.Fatal(err)
		}
		check(t, ca, "r", "rS", "S")
		if _, err = c.authenticate(t.Context(), pick("rXR")); err == nil {
			t.Error("expired intermediate was taken")
		}
	})
}

// CLI-16: two RA certificates with one use each, over the wire.
func TestNDES(t *testing.T) {
	l := newLiar(t)
	enc := newIdentity(t, "CEP encryption", x509.KeyUsageKeyEncipherment, false, l.ca, sceptest.RSA(5))
	sig := newIdentity(t, "enrollment agent", x509.KeyUsageDigitalSignature, false, l.ca, sceptest.RSA(6))
	l.ca.Certificates[0] = newCertificate(t, &x509.Certificate{RawSubject: l.ca.Certificate().RawSubject,
		SubjectKeyId: l.ca.Certificate().SubjectKeyId, IsCA: true, KeyUsage: x509.KeyUsageCertSign}, nil, l.ca.Key)
	l.bag = [][]byte{enc.Certificate().Raw, sig.Certificate().Raw, l.ca.Certificate().Raw}
	l.ra = enc
	l.caps = "POSTPKIOperation\r\nRenewal\r\nSHA-512\r\nSHA-256\r\nSHA-1\r\nDES3\r\n"
	l.alter = func(q *query, m *sceptest.Message) {
		m.Key, m.Certificate, m.Bag = sig.Key, sig.Certificate().Raw, [][]byte{}
		if m.Envelope != nil {
			m.Envelope.Cipher = sceptest.TripleDES
		}
	}
	c := l.client()
	_, err := c.Enroll(t.Context(), request())
	wantError(t, err, "does not offer AES", "scep.TripleDES")
	c.Legacy = scep.TripleDES
	if _, err := c.Enroll(t.Context(), request()); err != nil {
		t.Fatal(err)
	}
	l.alter = func(q *query, m *sceptest.Message) { m.Key, m.Certificate = enc.Key, enc.Certificate().Raw }
	_, err = c.Enroll(t.Context(), request())
	wantError(t, err, "not signed by") // the encryption certificate may not sign
}

func TestName(t *testing.T) {
	l := newLiar(t)
	var got []string
	l.http = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet {
			got = append(got, r.URL.RawQuery)
		}
		return false
	}
	c := l.client()
	c.Name = "a b&c+d"
	c.URL += "?profile=x%20y"
	if _, err := c.Enroll(t.Context(), request()); err != nil {
		t.Fatal(err)
	}
	want := "[profile=x%20y&operation=GetCACaps&message=a%20b%26c%2Bd profile=x%20y&operation=GetCACert&message=a%20b%26c%2Bd]"
	if fmt.Sprint(got) != want {
		t.Errorf("queries\n%v, want\n%v", got, want)
	}
}
