package scep_test

import (
	"bufio"
	"bytes"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// wrap64 breaks s into lines of 64.
func wrap64(s, end string) string {
	var b strings.Builder
	for len(s) > 64 {
		b.WriteString(s[:64] + end)
		s = s[64:]
	}
	return b.String() + s + end
}

func TestConformanceHTP(t *testing.T) {
	c := newTable(t, "HTP")
	srv := newServer(t, scep.Config{})
	slow := newServer(t, scep.Config{Limits: scep.Limits{ReadTime: 50 * time.Millisecond}})
	alive := func(t *testing.T, srv *sceptest.Server) {
		t.Helper()
		newConformer(srv).Enroll(t)
	}
	// post sends m in a body and with headers that edit chooses.
	post := func(t *testing.T, query string, edit func(req *http.Request, body []byte)) *sceptest.Reply {
		t.Helper()
		d := newConformer(srv)
		m := d.PKCSReq(t)
		body := m.BER()
		req := mustRequest(t, http.MethodPost, srv.URL+query, bytes.NewReader(body))
		edit(req, body)
		return d.Do(t, m, req)
	}
	setBody := func(req *http.Request, body string) {
		req.Body, req.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
	}
	const operation = "?operation=PKIOperation"

	c.run("HTP-01", func(t *testing.T) {
		for _, query := range []string{"", "?", "?message=x", "?operation="} {
			if res, _ := get(t, srv.URL+query); res.StatusCode != http.StatusBadRequest {
				t.Errorf("%q: HTTP %s", query, res.Status)
			}
		}
	})
	c.run("HTP-02", func(t *testing.T) {
		for _, op := range []string{"Nonsense", "GetCAChain", "PKIOperation%00", strings.Repeat("x", 5000), "%0d%0aX: y"} {
			res, body := get(t, srv.URL+"?operation="+op)
			if res.StatusCode != http.StatusBadRequest || len(body) > 100 || res.Header.Get("X") != "" {
				t.Errorf("%.40q: HTTP %s %q", op, res.Status, body)
			}
		}
	})
	c.run("HTP-03", func(t *testing.T) {
		for _, method := range []string{http.MethodPut, http.MethodDelete, http.MethodOptions, http.MethodPatch, "SCEP"} {
			res, err := http.DefaultTransport.RoundTrip(mustRequest(t, method, srv.URL+operation, nil))
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode != http.StatusMethodNotAllowed || res.Header.Get("Allow") == "" {
				t.Errorf("%s: HTTP %s, Allow %q", method, res.Status, res.Header.Get("Allow"))
			}
		}
	})
	c.run("HTP-04", func(t *testing.T) {
		wantHTTP(t, post(t, operation, func(req *http.Request, _ []byte) { setBody(req, "") }), http.StatusBadRequest)
	})
	c.run("HTP-05", func(t *testing.T) {
		wantHTTP(t, post(t, operation, func(req *http.Request, _ []byte) { setBody(req, string(sceptest.Nonce(2048))) }), http.StatusBadRequest)
	})
	c.run("HTP-06", func(t *testing.T) {
		// The client may find the connection closed before it has written all.
		body := io.LimitReader(endless{}, 10<<20)
		res, err := http.DefaultTransport.RoundTrip(mustRequest(t, http.MethodPost, srv.URL+operation, body))
		if err == nil {
			res.Body.Close()
			if res.StatusCode != http.StatusRequestEntityTooLarge {
				t.Errorf("HTTP %s", res.Status)
			}
		}
		wantHTTP(t, post(t, operation, func(req *http.Request, _ []byte) { setBody(req, strings.Repeat("0", 64<<10+1)) }), http.StatusRequestEntityTooLarge)
		alive(t, srv)
	})
	for id, contentType := range map[string]string{"HTP-07": "", "HTP-08": "application/octet-stream", "HTP-09": "application/x-www-form-urlencoded"} {
		c.run(id, func(t *testing.T) {
			wantOK(t, post(t, operation, func(req *http.Request, _ []byte) {
				if contentType != "" {
					req.Header.Set("Content-Type", contentType)
				}
			}))
		})
	}
	c.run("HTP-10", func(t *testing.T) {
		wantOK(t, post(t, operation, func(req *http.Request, _ []byte) { req.ContentLength = -1 }))
	})
	c.run("HTP-11", func(t *testing.T) {
		wantOK(t, post(t, operation, func(req *http.Request, _ []byte) { req.Header.Set("Expect", "100-continue") }))
	})
	c.run("HTP-12", func(t *testing.T) {
		for name, encode := range map[string]func(string) string{
			"one line": func(s string) string { return s },
			"64":       func(s string) string { return wrap64(s, "\n") },
			"64 CRLF":  func(s string) string { return wrap64(s, "\r\n") },
			"blanks":   func(s string) string { return "\n  " + s + " \n" },
			"no =":     func(s string) string { return strings.TrimRight(s, "=") },
		} {
			r := post(t, operation, func(req *http.Request, body []byte) {
				setBody(req, encode(base64.StdEncoding.EncodeToString(body)))
			})
			if r.Certificate == nil {
				t.Errorf("%s: answer is %v", name, r)
			}
		}
	})
	c.run("HTP-13", func(t *testing.T) {
		for _, query := range []string{"", "?", "?operation=pkioperation", "?Operation=PKIOPERATION", "?message=&operation=PKIOperation"} {
			if r := post(t, query, func(*http.Request, []byte) {}); r.Certificate == nil {
				t.Errorf("%q: answer is %v", query, r)
			}
		}
	})
	c.run("HTP-14", func(t *testing.T) {
		for _, path := range []string{"/pkiclient.exe", "/", "//"} {
			if r := post(t, path+operation, func(*http.Request, []byte) {}); r.Certificate == nil {
				t.Errorf("%q: answer is %v", path, r)
			}
		}
	})
	c.run("HTP-15", func(t *testing.T) {
		d := newConformer(srv)
		m := d.PKCSReq(t)
		body := m.BER()
		res, reply := rawHTTP(t, srv, fmt.Sprintf("POST /scep?operation=PKIOperation HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
		wantOK(t, d.Read(t, m, res, reply))
		// Without a length, HTTP/1.0 has no body.
		res, reply = rawHTTP(t, srv, fmt.Sprintf("POST /scep?operation=PKIOperation HTTP/1.0\r\n\r\n%s", body))
		wantHTTP(t, d.Read(t, m, res, reply), http.StatusBadRequest)
	})
	c.run("HTP-16", func(t *testing.T) {
		r := post(t, operation, func(*http.Request, []byte) {})
		wantOK(t, r)
		for name, want := range map[string]string{
			"Content-Type":           "application/x-pki-message",
			"Content-Length":         fmt.Sprint(len(r.Body)),
			"Cache-Control":          "no-store",
			"X-Content-Type-Options": "nosniff",
		} {
			if got := r.Header.Values(name); len(got) != 1 || got[0] != want {
				t.Errorf("%s is %q, not %q", name, got, want)
			}
		}
	})
	c.run("HTP-17", func(t *testing.T) {
		srv := newServer(t, scep.Config{})
		body := newConformer(srv).PKCSReq(t).BER()
		conn, err := net.Dial("tcp", srv.HTTP.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(30 * time.Second))
		fmt.Fprintf(conn, "POST /scep HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body[:len(body)/2])
		conn.(*net.TCPConn).CloseWrite()
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err == nil && res.StatusCode != http.StatusBadRequest {
			t.Errorf("HTTP %s", res.Status)
		}
		if n := len(records(t, srv)); n != 0 {
			t.Errorf("depot has %d records", n)
		}
		alive(t, srv)
	})
	c.run("HTP-18", func(t *testing.T) {
		conn, err := net.Dial("tcp", slow.HTTP.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(30 * time.Second))
		io.WriteString(conn, "POST /scep HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n0") // and no more
		in := bufio.NewReader(conn)
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != http.StatusBadRequest {
			t.Errorf("HTTP %s", res.Status)
		}
		io.Copy(io.Discard, res.Body)
		if _, err := in.ReadByte(); err != io.EOF {
			t.Errorf("the connection is not closed: %v", err)
		}
		if n := len(records(t, slow)); n != 0 {
			t.Errorf("depot has %d records", n)
		}
	})
}

// endless reads zeros.
type endless struct{}

func (endless) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

func TestConformanceGET(t *testing.T) {
	c := newTable(t, "GET")
	srv := newServer(t, scep.Config{})
	// send sends a message in the query that encode makes.
	send := func(t *testing.T, change func(m *sceptest.Message), encode func(der []byte) (query string)) *sceptest.Reply {
		t.Helper()
		d := newConformer(srv)
		m := d.PKCSReq(t)
		if change != nil {
			change(m)
		}
		req := mustRequest(t, http.MethodGet, srv.URL, nil)
		req.URL.RawQuery = encode(m.BER())
		return d.Do(t, m, req)
	}
	std := func(der []byte) string { return base64.StdEncoding.EncodeToString(der) }
	// hard makes messages whose base64 has both special digits.
	hard := func(m *sceptest.Message) {
		m.Unsigned = []sceptest.Attribute{{Type: sceptest.OIDSenderNonce, Values: [][]byte{sceptest.TLV(sceptest.TagOctetString, bytes.Repeat([]byte{0xfb, 0xff, 0xbf}, 20))}}}
	}
	for id, cases := range map[string]map[string]func(der []byte) string{
		"GET-01": {"escaped": func(der []byte) string { return "operation=PKIOperation&message=" + url.QueryEscape(std(der)) }},
		"GET-02": {
			"raw": func(der []byte) string { return "operation=PKIOperation&message=" + std(der) },
			"only + =": func(der []byte) string {
				return "operation=PKIOperation&message=" + strings.NewReplacer("+", "%2B", "=", "%3D").Replace(std(der))
			},
		},
		"GET-03": {
			"LF": func(der []byte) string {
				return "operation=PKIOperation&message=" + url.QueryEscape(wrap64(std(der), "\n"))
			},
			"CR LF": func(der []byte) string {
				return "operation=PKIOperation&message=" + strings.NewReplacer("+", "%2B", "\r", "%0D", "\n", "%0A").Replace(wrap64(std(der), "\r\n"))
			},
			"raw, LF": func(der []byte) string { return "operation=PKIOperation&message=" + wrap64(std(der), "%0a") },
		},
		"GET-04": {"blank": func(der []byte) string {
			return "operation=PKIOperation&message=" + strings.ReplaceAll(std(der), "+", "%20")
		}},
		"GET-05": {
			"no padding": func(der []byte) string {
				return "operation=PKIOperation&message=" + base64.RawURLEncoding.EncodeToString(der)
			},
			"padding": func(der []byte) string {
				return "operation=PKIOperation&message=" + base64.URLEncoding.EncodeToString(der)
			},
		},
		"GET-06": {"twice": func(der []byte) string {
			return "operation=PKIOperation&message=" + url.QueryEscape(url.QueryEscape(std(der)))
		}},
		"GET-09": {
			"message first": func(der []byte) string { return "message=" + url.QueryEscape(std(der)) + "&operation=PKIOperation" },
			"more": func(der []byte) string {
				return "x=y&operation=PKIOperation&foo&message=" + url.QueryEscape(std(der)) + "&bar=%zz"
			},
			"other case": func(der []byte) string { return "OPERATION=pkioperation&Message=" + url.QueryEscape(std(der)) },
			"semicolon":  func(der []byte) string { return "operation=PKIOperation;message=" + url.QueryEscape(std(der)) },
		},
	} {
		c.run(id, func(t *testing.T) {
			for name, encode := range cases {
				for _, change := range []func(m *sceptest.Message){nil, hard} {
					if r := send(t, change, encode); r.Certificate == nil {
						t.Errorf("%s: answer is %v", name, r)
					}
				}
			}
		})
	}
	c.run("GET-07", func(t *testing.T) {
		for _, query := range []string{"operation=PKIOperation", "operation=PKIOperation&message", "operation=PKIOperation&message="} {
			wantHTTP(t, send(t, nil, func([]byte) string { return query }), http.StatusBadRequest)
		}
	})
	c.run("GET-08", func(t *testing.T) {
		for _, message := range []string{"garbage", "!!!!", "%", "%%%", "MIIB", "AAAA", "====", "%00", strings.Repeat("A", 100_000)} {
			wantHTTP(t, send(t, nil, func([]byte) string { return "operation=PKIOperation&message=" + message }), http.StatusBadRequest)
		}
	})
	c.run("GET-10", func(t *testing.T) {
		long := func(m *sceptest.Message) {
			m.Bag = [][]byte{m.Certificate}
			for i := range 4 {
				ext := sceptest.SubjectKeyID(bytes.Repeat([]byte{byte(i)}, 3<<10))
				m.Bag = append(m.Bag, sceptest.Certificate{Key: sceptest.RSA(i), Extensions: []pkix.Extension{ext}}.DER())
			}
		}
		r := send(t, long, func(der []byte) string {
			if len(der) < 16<<10 {
				t.Errorf("message has only %d bytes", len(der))
			}
			return "operation=PKIOperation&message=" + url.QueryEscape(std(der))
		})
		wantOK(t, r)
	})
}
