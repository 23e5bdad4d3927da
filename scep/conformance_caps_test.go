package scep_test

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// everything is a configuration that offers all there is.
func everything() scep.Config {
	return scep.Config{
		Renewal: scep.Renewal{On: true, Anytime: true},
		Legacy:  scep.TripleDES | scep.SHA1 | scep.SingleDES,
	}
}

func TestConformanceCAP(t *testing.T) {
	c := newTable(t, "CAP")
	plain := newServer(t, scep.Config{})
	full := newServer(t, everything())
	servers := []*sceptest.Server{plain, full}
	caps := func(t *testing.T, srv *sceptest.Server, query string) []byte {
		t.Helper()
		res, body := get(t, srv.URL+"?"+query)
		if res.StatusCode != http.StatusOK {
			t.Fatalf("HTTP %s", res.Status)
		}
		return body
	}
	words := func(t *testing.T, srv *sceptest.Server) []string {
		t.Helper()
		return strings.Split(strings.TrimSuffix(string(caps(t, srv, "operation=GetCACaps")), "\n"), "\n")
	}
	standard := []string{"AES", "DES3", "GetNextCACert", "POSTPKIOperation", "Renewal", "SHA-1", "SHA-256", "SHA-512", "SCEPStandard"}

	c.run("CAP-01", func(t *testing.T) {
		for _, srv := range servers {
			if len(words(t, srv)) == 0 {
				t.Error("no capabilities")
			}
		}
	})
	c.run("CAP-02", func(t *testing.T) {
		res, _ := get(t, plain.URL+"?operation=GetCACaps")
		if got := res.Header.Get("Content-Type"); got != "text/plain" {
			t.Errorf("Content-Type is %q, not text/plain without parameters", got)
		}
	})
	c.run("CAP-03", func(t *testing.T) {
		for _, srv := range servers {
			for _, w := range words(t, srv) {
				for _, s := range standard {
					if strings.EqualFold(w, s) && w != s {
						t.Errorf("%q is not written %q", w, s)
					}
				}
			}
		}
	})
	c.run("CAP-04", func(t *testing.T) {
		if body := caps(t, full, "operation=GetCACaps"); bytes.Contains(body, []byte("\r")) || !bytes.Contains(body, []byte("\n")) {
			t.Errorf("separators are not LF alone: %q", body)
		}
	})
	c.run("CAP-05", func(t *testing.T) {
		for _, srv := range servers {
			if body := caps(t, srv, "operation=GetCACaps"); len(body) >= 512 {
				t.Errorf("%d bytes", len(body))
			}
			for _, w := range words(t, srv) {
				if w == "" || w != strings.TrimSpace(w) || w[0] > '~' {
					t.Errorf("line %q", w)
				}
				for _, s := range standard { // strongSwan compares prefixes
					if w != s && strings.HasPrefix(strings.ToLower(s), strings.ToLower(w)) {
						t.Errorf("%q is a prefix of %q", w, s)
					}
				}
			}
		}
	})
	c.run("CAP-06", func(t *testing.T) {
		if !slices.Contains(words(t, plain), "SCEPStandard") {
			t.Error("no SCEPStandard")
		}
		newConformer(plain).Enroll(t) // POST, AES-128, SHA-256
	})
	c.run("CAP-07", func(t *testing.T) {
		for _, w := range []string{"AES", "POSTPKIOperation", "SHA-256", "SHA-384"} {
			if !slices.Contains(words(t, plain), w) {
				t.Errorf("no %s", w)
			}
		}
	})
	c.run("CAP-08", func(t *testing.T) {
		for _, srv := range servers {
			for _, w := range words(t, srv) {
				if w = strings.ToUpper(w); w == "DES" || w == "DES-CBC" || strings.Contains(w, "MD5") {
					t.Errorf("%s is offered", w)
				}
			}
		}
	})
	c.run("CAP-09", func(t *testing.T) {
		want := caps(t, plain, "operation=GetCACaps")
		for _, query := range []string{"&message=", "&message=MyCA", "&message=0", "&message=%%%"} {
			if got := caps(t, plain, "operation=GetCACaps"+query); !bytes.Equal(got, want) {
				t.Errorf("with %q: %q", query, got)
			}
		}
	})
	c.run("CAP-10", func(t *testing.T) {
		want := caps(t, plain, "operation=GetCACaps")
		for _, query := range []string{"operation=getcacaps", "OPERATION=GETCACAPS", "Operation=GetCaCaps"} {
			if got := caps(t, plain, query); !bytes.Equal(got, want) {
				t.Errorf("with %q: %q", query, got)
			}
		}
	})
	c.run("CAP-11", func(t *testing.T) {
		for srv, want := range map[*sceptest.Server][]string{
			plain: {"AES", "POSTPKIOperation", "SHA-256", "SHA-384", "SHA-512", "SCEPStandard"},
			full:  {"AES", "POSTPKIOperation", "SHA-256", "SHA-384", "SHA-512", "SCEPStandard", "Renewal", "DES3", "SHA-1"},
		} {
			if got := words(t, srv); !slices.Equal(got, want) {
				t.Errorf("capabilities are %q, not %q", got, want)
			}
		}
		for word, change := range map[string]func(m *sceptest.Message){
			"SHA-384": func(m *sceptest.Message) { m.Hash = crypto.SHA384 },
			"SHA-512": func(m *sceptest.Message) { m.Hash = crypto.SHA512 },
			"SHA-1":   func(m *sceptest.Message) { m.Hash = crypto.SHA1 },
			"DES3":    func(m *sceptest.Message) { m.Envelope.Cipher = sceptest.TripleDES },
		} {
			d := newConformer(full)
			m := d.PKCSReq(t)
			change(m)
			if r := d.Send(t, m); r.Certificate == nil {
				t.Errorf("%s: answer is %v", word, r)
			}
		}
		d := newConformer(full)
		d.Renew(t, d.Enroll(t), d.Key)
	})
	c.run("CAP-12", func(t *testing.T) {
		for _, operation := range []string{"GetCACaps", "GetCACert"} {
			res, err := http.DefaultTransport.RoundTrip(mustRequest(t, http.MethodHead, plain.URL+"?operation="+operation, nil))
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode != http.StatusOK || res.ContentLength <= 0 {
				t.Errorf("HEAD %s: HTTP %s, length %d", operation, res.Status, res.ContentLength)
			}
		}
	})
	c.run("CAP-13", func(t *testing.T) {
		res, body := rawHTTP(t, plain, "GET /scep/pkiclient.exe?operation=GetCACaps&message=trust HTTP/1.0\r\nUser-Agent: Mozilla/4.0 (compatible; MSIE 5.0; Cisco PKI)\r\nConnection: close\r\n\r\n")
		if want := caps(t, plain, "operation=GetCACaps"); res.StatusCode != http.StatusOK || !bytes.Equal(body, want) {
			t.Errorf("HTTP %s %q", res.Status, body)
		}
	})
	c.run("CAP-14", func(t *testing.T) {
		want := caps(t, plain, "operation=GetCACaps")
		for _, query := range []string{"operation=GetCACaps&foo=bar", "foo=bar&operation=GetCACaps", "a;b=%zz&operation=GetCACaps", "foo&&operation=GetCACaps&"} {
			if got := caps(t, plain, query); !bytes.Equal(got, want) {
				t.Errorf("with %q: %q", query, got)
			}
		}
	})
}

func TestConformanceCAC(t *testing.T) {
	c := newTable(t, "CAC")
	ca := newCA(t)
	sub := newSubCA(t, ca)
	ra := newRA(t, sub)
	responder := newRA(t, sub, sceptest.RSA(4))
	single := sceptest.NewServer(t, scep.Config{CA: ca})
	servers := map[string]*sceptest.Server{
		"single":    single,
		"sub":       sceptest.NewServer(t, scep.Config{CA: sub}),
		"ra":        sceptest.NewServer(t, scep.Config{CA: sub, RA: ra}),
		"root ra":   sceptest.NewServer(t, scep.Config{CA: ca, RA: newRA(t, ca)}),
		"responder": sceptest.NewServer(t, scep.Config{CA: sub, RA: ra, Responder: responder}),
		"ec":        sceptest.NewServer(t, scep.Config{CA: newCA(t, sceptest.P256())}),
		"issuer":    sceptest.NewServer(t, scep.Config{CA: sub, RA: ra, Chain: scep.ChainIssuer}),
		"full":      sceptest.NewServer(t, scep.Config{CA: sub, RA: ra, Chain: scep.ChainFull}),
		"one ra":    sceptest.NewServer(t, scep.Config{CA: sub, RA: ra, Chain: scep.ChainSingle}),
	}
	certs := func(t *testing.T, name string) []*x509.Certificate {
		t.Helper()
		return sceptest.NewDevice(servers[name].URL, sceptest.RSA(0), "").CA(t)
	}

	c.run("CAC-01", func(t *testing.T) {
		for name, srv := range servers {
			want := "application/x-x509-ca-ra-cert"
			if name == "single" || name == "one ra" {
				want = "application/x-x509-ca-cert"
			}
			res, _ := get(t, srv.URL+"?operation=GetCACert")
			if got := res.Header.Get("Content-Type"); res.StatusCode != http.StatusOK || got != want {
				t.Errorf("%s: HTTP %s, Content-Type %q, not %q", name, res.Status, got, want)
			}
		}
	})
	c.run("CAC-02", func(t *testing.T) {
		if _, body := get(t, single.URL+"?operation=GetCACert"); !bytes.Equal(body, ca.Certificate().Raw) {
			t.Error("body is not the CA's certificate")
		}
		if _, body := get(t, servers["one ra"].URL+"?operation=GetCACert"); !bytes.Equal(body, ra.Certificate().Raw) {
			t.Error("body is not the RA's certificate")
		}
	})
	c.run("CAC-03", func(t *testing.T) {
		for _, name := range []string{"sub", "ra", "root ra", "responder", "ec", "issuer", "full"} {
			if got := certs(t, name); len(got) < 2 { // the form is checked as they are read
				t.Errorf("%s: %d certificates", name, len(got))
			}
		}
	})
	c.run("CAC-04", func(t *testing.T) {
		for name, want := range map[string][]*x509.Certificate{
			"sub":       {sub.Certificate(), ca.Certificate()},
			"ra":        {ra.Certificate(), sub.Certificate(), ca.Certificate()},
			"responder": {ra.Certificate(), responder.Certificate(), sub.Certificate(), ca.Certificate()},
			"issuer":    {ra.Certificate(), sub.Certificate()},
			"full":      {ra.Certificate(), sub.Certificate()},
		} {
			if got := certs(t, name); !slices.EqualFunc(got, want, (*x509.Certificate).Equal) {
				t.Errorf("%s: %d certificates, or another order", name, len(got))
			}
		}
	})
	c.run("CAC-05", func(t *testing.T) {
		for name := range servers {
			if got := certs(t, name)[0].KeyUsage; got&x509.KeyUsageDigitalSignature == 0 || got&x509.KeyUsageKeyEncipherment == 0 {
				t.Errorf("%s: keyUsage of the first is %b", name, got)
			}
		}
	})
	c.run("CAC-06", func(t *testing.T) {
		for _, name := range []string{"ra", "root ra", "responder", "ec", "issuer", "full"} {
			got := certs(t, name)
			i := slices.IndexFunc(got, func(c *x509.Certificate) bool { return c.IsCA })
			if i < 1 {
				t.Fatalf("%s: no RA before a CA", name)
			}
			for _, ra := range got[:i] {
				if err := ra.CheckSignatureFrom(got[i]); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	})
	c.run("CAC-07", func(t *testing.T) {
		for name := range servers {
			first := certs(t, name)[0]
			if first.PublicKeyAlgorithm != x509.RSA || time.Now().Before(first.NotBefore) || time.Now().After(first.NotAfter) {
				t.Errorf("%s: %v, valid from %v to %v", name, first.PublicKeyAlgorithm, first.NotBefore, first.NotAfter)
			}
		}
	})
	c.run("CAC-08", func(t *testing.T) {
		_, want := get(t, single.URL+"?operation=GetCACert")
		for _, message := range []string{"MyCA", "0", "1", "2", "", "%%%", "CAIdentifier", "default"} {
			res, got := get(t, single.URL+"?operation=GetCACert&message="+message)
			if res.StatusCode != http.StatusOK || !bytes.Equal(got, want) {
				t.Errorf("message=%s: HTTP %s, %d bytes", message, res.Status, len(got))
			}
		}
	})
	c.run("CAC-09", func(t *testing.T) {
		_, body := get(t, single.URL+"?operation=GetCACert")
		got, want := sha256.Sum256(body), sha256.Sum256(ca.Certificate().Raw)
		if got != want {
			t.Errorf("fingerprint is %s", hex.EncodeToString(got[:]))
		}
	})
	c.run("CAC-10", func(t *testing.T) {
		_, want := get(t, single.URL+"?operation=GetCACert")
		for _, path := range []string{"/scep/", "/scep/pkiclient.exe", "//scep", "/scep//pkiclient.exe", "/scep/certsrv/mscep/mscep.dll/pkiclient.exe"} {
			res, got := get(t, single.HTTP.URL+path+"?operation=GetCACert")
			if res.StatusCode != http.StatusOK || !bytes.Equal(got, want) {
				t.Errorf("%s: HTTP %s", path, res.Status)
			}
		}
	})
	c.run("CAC-11", func(t *testing.T) {
		_, want := get(t, servers["ra"].URL+"?operation=GetCACert")
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				if _, got := get(t, servers["ra"].URL+"?operation=GetCACert"); !bytes.Equal(got, want) {
					t.Errorf("another answer of %d bytes", len(got))
				}
			})
		}
		all.Wait()
	})
}
