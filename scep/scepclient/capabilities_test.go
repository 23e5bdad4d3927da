package scepclient

import (
	"crypto"
	"encoding/base64"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/internal/cms"
	"github.com/scepkit/scepkit/scep/sceptest"
)

func TestParseCapabilities(t *testing.T) { // CLI-01
	all := []string{"AES", "POSTPKIOperation", "SHA-256"}
	tests := []struct {
		name, body string
		want       []string
	}{
		{"LF", "AES\nPOSTPKIOperation\nSHA-256", all},
		{"CRLF", "AES\r\nPOSTPKIOperation\r\nSHA-256\r\n", all},
		{"CR", "AES\rPOSTPKIOperation\rSHA-256\r", all},
		{"blank lines and blanks", "\n\n AES\t\n\r\n\nPOSTPKIOperation \n \nSHA-256\n\n\n", all},
		{"byte order mark", "\xef\xbb\xbfAES\nPOSTPKIOperation\nSHA-256", all},
		{"trailing NUL", "AES\nPOSTPKIOperation\nSHA-256\x00", all},
		{"unknown words", "AES\nExample.com-Foo\nSHA-256", []string{"AES", "Example.com-Foo", "SHA-256"}},
		{"empty", "", nil},
		{"HTML", "<html>\n<p>AES is here</p>\n</html>", nil},
		{"binary", "\x30\x82\x01\x00\nAES\n\xff\xfe", []string{"AES"}},
		{"endless word", strings.Repeat("A", 10_000) + "\nAES", []string{"AES"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := parseCapabilities([]byte(test.body)).Keywords; !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
	if n := len(parseCapabilities([]byte(strings.Repeat("AES\n", 10_000))).Keywords); n > maxKeywords {
		t.Errorf("%d keywords", n)
	}
}

func TestHas(t *testing.T) {
	caps := Capabilities{[]string{"scepSTANDARD", "renewal"}}
	for word, want := range map[string]bool{
		"AES": true, "aes": true, "SHA-256": true, "POSTPKIOperation": true, "SCEPStandard": true,
		"Renewal": true, "SHA-512": false, "DES3": false, "GetNextCACert": false,
	} {
		if caps.Has(word) != want {
			t.Errorf("Has(%q) is %v", word, !want)
		}
	}
}

func TestChooseSuite(t *testing.T) { // CLI-02, CLI-13, CLI-14
	const both = scep.TripleDES | scep.SHA1
	tests := []struct {
		caps   string
		legacy scep.Legacy
		hash   crypto.Hash
		cipher cms.Cipher
		digest crypto.Hash
		post   bool
		want   string
	}{
		{caps: "SCEPStandard", cipher: cms.AES128, digest: crypto.SHA256, post: true},
		{caps: "AES POSTPKIOperation SHA-256 SHA-512 DES3 SHA-1", legacy: both, cipher: cms.AES128, digest: crypto.SHA256, post: true},
		{caps: "aes sha-256", cipher: cms.AES128, digest: crypto.SHA256},
		{caps: "AES SHA-512 POSTPKIOperation", cipher: cms.AES128, digest: crypto.SHA512, post: true},
		{caps: "AES SHA-384", cipher: cms.AES128, digest: crypto.SHA384},
		{caps: "SCEPStandard SHA-512", hash: crypto.SHA512, cipher: cms.AES128, digest: crypto.SHA512, post: true},
		{caps: "SCEPStandard", hash: crypto.SHA512, want: "SHA-512, which Client.Hash asks for"},
		{caps: "", cipher: cms.AES128, digest: crypto.SHA256, post: true},
		{caps: "", hash: crypto.SHA384, cipher: cms.AES128, digest: crypto.SHA384, post: true},
		{caps: "", legacy: both, cipher: cms.TripleDES, digest: crypto.SHA1},
		{caps: "", legacy: scep.SHA1, cipher: cms.AES128, digest: crypto.SHA1},
		{caps: "", legacy: scep.TripleDES, cipher: cms.TripleDES, digest: crypto.SHA256},
		{caps: "POSTPKIOperation SHA-1 DES3", want: "AES"},
		{caps: "POSTPKIOperation SHA-1 DES3", legacy: scep.TripleDES, want: "SHA-256"},
		{caps: "POSTPKIOperation SHA-1 DES3", legacy: both, cipher: cms.TripleDES, digest: crypto.SHA1, post: true},
		{caps: "POSTPKIOperation", want: "nor SHA-256"},
		{caps: "POSTPKIOperation", legacy: both, cipher: cms.TripleDES, digest: crypto.SHA1, post: true},
		{caps: "Renewal SHA-256", want: "it offers"},
	}
	for _, test := range tests {
		c := &Client{URL: "http://scep.example", Legacy: test.legacy, Hash: test.hash}
		got, err := c.Choose(Capabilities{strings.Fields(test.caps)})
		if test.want != "" {
			wantError(t, err, test.want)
			continue
		}
		if err != nil || got.cipher != test.cipher || got.Hash != test.digest || got.POST != test.post || got.Cipher != test.cipher.String() {
			t.Errorf("%q with %v: %+v, %v", test.caps, test.legacy, got, err)
		}
	}
	_, err := (&Client{URL: "http://scep.example", Legacy: scep.SingleDES}).Choose(Capabilities{})
	wantError(t, err, "nothing weaker")
	_, err = (&Client{URL: "http://scep.example", Hash: crypto.SHA1}).Choose(Capabilities{})
	wantError(t, err, "Client.Hash")
}

// CLI-02: a server that says nothing of itself.
func TestNoCapabilities(t *testing.T) {
	for _, test := range []struct {
		name string
		caps func(w http.ResponseWriter)
	}{
		{"empty", func(w http.ResponseWriter) {}},
		{"404", func(w http.ResponseWriter) { w.WriteHeader(http.StatusNotFound) }},
		{"500", func(w http.ResponseWriter) { w.WriteHeader(http.StatusInternalServerError) }},
		{"closed", func(w http.ResponseWriter) { hijack(t, w).Close() }},
		{"reset", func(w http.ResponseWriter) {
			conn := hijack(t, w)
			conn.(*net.TCPConn).SetLinger(0)
			conn.Close()
		}},
		{"broken off", func(w http.ResponseWriter) { w.Header().Set("Content-Length", "100") }},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newLiar(t)
			l.http = func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Query().Get("operation") != "GetCACaps" {
					return false
				}
				test.caps(w)
				return true
			}
			caps, err := l.client().Capabilities(t.Context())
			if err != nil || len(caps.Keywords) > 0 {
				t.Fatalf("%q, %v", caps.Keywords, err)
			}
			if _, err := l.client().Enroll(t.Context(), request()); err != nil {
				t.Fatal(err)
			}
			q := l.asked()[0]
			env, err := cms.ParseEnvelope(q.msg.Content)
			if err != nil || env.Cipher != cms.AES128 || q.msg.Digest != crypto.SHA256 || q.request.Method != http.MethodPost {
				t.Errorf("message in %v and %v by %s, %v", env.Cipher, q.msg.Digest, q.request.Method, err)
			}
		})
	}
	c := newLiar(t).client()
	c.URL = "http://127.0.0.1:1/"
	_, err := c.Capabilities(t.Context())
	wantError(t, err, "no answer to GetCACaps from 127.0.0.1:1")
}

func hijack(t *testing.T, w http.ResponseWriter) net.Conn {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestPOST(t *testing.T) { // CLI-13
	l := newLiar(t)
	if _, err := l.client().Enroll(t.Context(), request()); err != nil {
		t.Fatal(err)
	}
	r := l.asked()[0].request
	if r.Method != http.MethodPost || r.URL.RawQuery != "operation=PKIOperation" || r.ContentLength <= 0 ||
		r.Header.Get("Content-Type") != "application/x-pki-message" {
		t.Errorf("%s %s with %v", r.Method, r.URL.RawQuery, r.Header)
	}
}

func TestGET(t *testing.T) { // CLI-14
	l := newLiar(t)
	l.caps = "AES\nSHA-256\n"
	if _, err := l.client().Enroll(t.Context(), request()); err != nil {
		t.Fatal(err)
	}
	q := l.asked()[0]
	_, message, _ := strings.Cut(q.request.URL.RawQuery, "operation=PKIOperation&message=")
	if q.request.Method != http.MethodGet || message == "" || strings.ContainsAny(message, "+/=-_ ") {
		t.Fatalf("%s %s", q.request.Method, q.request.URL.RawQuery)
	}
	if !strings.Contains(message, "%2B") || !strings.Contains(message, "%2F") {
		t.Errorf("message has no + and /, which is unlikely: %s", message)
	}
	if _, err := base64.StdEncoding.DecodeString(q.request.URL.Query().Get("message")); err != nil {
		t.Error(err)
	}
}

func TestRedirects(t *testing.T) {
	l := newLiar(t)
	l.http = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || strings.HasSuffix(r.URL.Path, "/moved") {
			return false
		}
		http.Redirect(w, r, r.URL.Path+"/moved?"+r.URL.RawQuery, http.StatusFound)
		return true
	}
	if _, err := l.client().Enroll(t.Context(), request()); err != nil {
		t.Errorf("within the host: %v", err)
	}
	other := newLiar(t)
	l.http = func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, other.URL+"?"+r.URL.RawQuery, http.StatusFound)
		return true
	}
	_, err := l.client().CACertificates(t.Context())
	wantError(t, err, "redirects to", other.URL)
	l.http = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Get("operation") != "PKIOperation" {
			return false
		}
		http.Redirect(w, r, r.URL.Path+"/moved?"+r.URL.RawQuery, http.StatusTemporaryRedirect)
		return true
	}
	for _, caps := range []string{standardCaps, "AES\nSHA-256"} {
		l.caps = caps
		_, err = l.client().Enroll(t.Context(), request())
		wantError(t, err, "redirects to", "/moved")
	}
}

func TestURL(t *testing.T) {
	for _, test := range []struct{ url, want string }{
		{"http://scep.example", "http://scep.example/cgi-bin/pkiclient.exe"},
		{"https://scep.example:8443?a=b", "https://scep.example:8443/cgi-bin/pkiclient.exe?a=b"},
		{"http://scep.example/", "http://scep.example/"},
		{"http://scep.example/scep#x", "http://scep.example/scep"},
	} {
		u, err := (&Client{URL: test.url}).base()
		if err != nil || u.String() != test.want {
			t.Errorf("%q became %v, %v", test.url, u, err)
		}
	}
	for _, bad := range []string{"", "scep.example/scep", "ftp://scep.example", "http://", "http://a b/"} {
		_, err := (&Client{URL: bad, Roots: sceptest.NewCA(t).Certificates}).Enroll(t.Context(), request())
		wantError(t, err, "Client.URL")
	}
}
