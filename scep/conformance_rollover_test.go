package scep_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/internal/cms"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// newNext returns a CA to take over from newCA.
func newNext(t testing.TB) *scep.Identity { t.Helper(); return sceptest.NewCA(t, sceptest.RSA(6)) }

// getNextCA asks for the next CA.
func getNextCA(t *testing.T, srv *sceptest.Server, more string) []byte {
	t.Helper()
	res, body := get(t, srv.URL+"?operation=GetNextCACert"+more)
	if got := res.Header.Values("Content-Type"); res.StatusCode != http.StatusOK || len(got) != 1 || got[0] != "application/x-x509-next-ca-cert" {
		t.Fatalf("HTTP %s, Content-Type %q", res.Status, got)
	}
	return body
}

// openSSL runs openssl on files in dir.
func openSSL(t *testing.T, dir string, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("openssl is not installed")
	}
	cmd := exec.CommandContext(t.Context(), "openssl", args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return out
}

func write(t *testing.T, dir, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func pemOf(certs ...*x509.Certificate) (out []byte) {
	for _, cert := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return out
}

// rollover is a server in one of the arrangements that a next CA may be in.
type rollover struct {
	*sceptest.Server
	signer *x509.Certificate   // of the answer to GetNextCACert, and of replies
	root   *x509.Certificate   // above the signer
	next   []*x509.Certificate // what devices get of the next CA
}

// rollovers are servers without RAs, with them, and with CAs under one root.
func rollovers(t *testing.T) map[string]rollover {
	old, ca, next := newCA(t), sceptest.NewCA(t), newNext(t)
	ra, nextRA := newRA(t, old), sceptest.NewRA(t, next, sceptest.RSA4096())
	sub, nextSub := sceptest.NewSubCA(t, ca), sceptest.NewSubCA(t, ca, sceptest.P384())
	nextSubRA := sceptest.NewRA(t, nextSub, sceptest.RSA4096())
	start := func(c scep.Config) *sceptest.Server {
		c.Renewal = scep.Renewal{On: true, Anytime: true}
		return sceptest.NewServer(t, c)
	}
	return map[string]rollover{
		"CAs alone": {
			start(scep.Config{CA: ca, Next: next}),
			ca.Certificate(), ca.Certificate(), next.Certificates,
		},
		"RAs": {
			start(scep.Config{CA: old, RA: ra, Next: next, NextRA: nextRA}),
			ra.Certificate(), old.Certificate(), []*x509.Certificate{nextRA.Certificate(), next.Certificate()},
		},
		"under one root": {
			start(scep.Config{CA: sub, Next: nextSub, NextRA: nextSubRA}),
			sub.Certificate(), ca.Certificate(), []*x509.Certificate{nextSubRA.Certificate(), nextSub.Certificate(), ca.Certificate()},
		},
	}
}

func TestConformanceNXT(t *testing.T) {
	c := newTable(t, "NXT")
	without := newServer(t, everything())
	servers := rollovers(t)
	read := func(t *testing.T, srv rollover) (*cms.Message, []*x509.Certificate) {
		t.Helper()
		msg, err := cms.ParseMessage(getNextCA(t, srv.Server, ""))
		if err != nil {
			t.Fatal(err)
		}
		certs, err := sceptest.ParseCertsOnly(msg.Content)
		if err != nil {
			t.Fatal(err)
		}
		return msg, certs
	}

	c.run("NXT-01", func(t *testing.T) {
		for name, srv := range servers {
			msg, certs := read(t, srv)
			if msg.Signer == nil || !bytes.Equal(msg.Signer.Raw, srv.signer.Raw) {
				t.Errorf("%s: signer is not %q", name, srv.signer.Subject)
			}
			if err := msg.Verify(srv.signer.PublicKey); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if msg.MessageType != "" || msg.TransactionID != nil {
				t.Errorf("%s: attributes of a pkiMessage", name)
			}
			dir := t.TempDir()
			write(t, dir, "answer", getNextCA(t, srv.Server, ""))
			write(t, dir, "ca.pem", pemOf(srv.root))
			var content []byte
			for _, command := range []string{"cms", "smime"} { // the latter as sscep
				content = openSSL(t, dir, command, "-verify", "-inform", "DER", "-in", "answer", "-CAfile", "ca.pem", "-binary")
				if !bytes.Equal(content, msg.Content) {
					t.Errorf("%s: openssl %s reads other content", name, command)
				}
			}
			write(t, dir, "content", content)
			text := openSSL(t, dir, "pkcs7", "-inform", "DER", "-in", "content", "-print_certs")
			if n := bytes.Count(text, []byte("BEGIN CERTIFICATE")); n != len(certs) {
				t.Errorf("%s: openssl finds %d certificates", name, n)
			}
			res, err := http.DefaultTransport.RoundTrip(mustRequest(t, http.MethodHead, srv.URL+"?operation=GetNextCACert", nil))
			if err != nil {
				t.Fatal(err)
			}
			if res.Body.Close(); res.StatusCode != http.StatusOK || res.ContentLength <= 0 {
				t.Errorf("%s: HEAD: HTTP %s, length %d", name, res.Status, res.ContentLength)
			}
			if _, body := get(t, srv.URL+"?operation=GetCACaps"); !bytes.Contains(body, []byte("\nGetNextCACert\n")) {
				t.Errorf("%s: capabilities are %q", name, body)
			}
		}
	})
	c.run("NXT-02", func(t *testing.T) {
		for name, srv := range servers {
			if _, certs := read(t, srv); !slices.EqualFunc(certs, srv.next, (*x509.Certificate).Equal) {
				t.Errorf("%s: %d certificates, or others", name, len(certs))
			}
		}
	})
	c.run("NXT-03", func(t *testing.T) {
		for name, srv := range servers {
			msg, _ := read(t, srv)
			want := append(slices.Clone(srv.next), srv.signer)
			if !slices.EqualFunc(msg.Certificates, want, func(a *cms.Certificate, b *x509.Certificate) bool { return bytes.Equal(a.Raw, b.Raw) }) {
				t.Errorf("%s: %d certificates, or others", name, len(msg.Certificates))
			}
		}
	})
	c.run("NXT-04", func(t *testing.T) {
		for _, query := range []string{"operation=GetNextCACert", "operation=GetNextCACert&message=x", "operation=getnextcacert"} {
			if res, _ := get(t, without.URL+"?"+query); res.StatusCode != 404 {
				t.Errorf("%s: HTTP %s", query, res.Status)
			}
		}
		if _, body := get(t, without.URL+"?operation=GetCACaps"); bytes.Contains(body, []byte("GetNextCACert")) {
			t.Errorf("capabilities are %q", body)
		}
	})
	c.run("NXT-05", func(t *testing.T) {
		for name, srv := range servers {
			var issuer *x509.Certificate
			for _, cert := range srv.next {
				if issuer == nil && cert.IsCA {
					issuer = cert
				}
			}
			by := func(r *sceptest.Reply, issuer *x509.Certificate) *x509.Certificate {
				t.Helper()
				wantOK(t, r)
				if err := r.Certificate.CheckSignatureFrom(issuer); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				return r.Certificate
			}
			d := newConformer(srv.Server)
			next := d.To(srv.next...) // which also wants the reply to be signed by one of these
			m := next.PKCSReq(t)
			cert := by(next.Send(t, m), issuer)
			wantCert(t, next.Send(t, m.Again()), cert)
			wantCert(t, next.Poll(t), cert)
			wantCert(t, next.Send(t, next.GetCert(t, cert.RawIssuer, cert.SerialNumber)), cert)
			wantCert(t, d.Send(t, d.GetCert(t, cert.RawIssuer, cert.SerialNumber)), cert)

			// By key identifier.
			d = newConformer(srv.Server)
			next = d.To(srv.next...)
			m = next.PKCSReq(t)
			m.Envelope.Recipients = []sceptest.Recipient{{Certificate: srv.next[0], KeyID: true}}
			by(next.Send(t, m), issuer)

			// What is addressed to the current one goes on as before, the same request too.
			d = newConformer(srv.Server)
			next = d.To(srv.next...)
			now := srv.Config.CA.(*scep.Identity).Certificate()
			first := by(d.Send(t, d.PKCSReq(t)), now)
			second := by(next.Send(t, next.PKCSReq(t)), issuer)
			wantCert(t, d.Send(t, d.PKCSReq(t)), first)
			wantCert(t, next.Send(t, next.PKCSReq(t)), second)

			// Renewal from one to the other, and within the next.
			over := renewal(d, first).To(srv.next...)
			third := by(over.Send(t, over.RenewalReq(t)), issuer)
			within := renewal(next, second).To(srv.next...)
			by(within.Send(t, within.RenewalReq(t)), issuer)
			back := *over
			back.Signer, back.Certificate, back.Key = spare(), third.Raw, sceptest.RSA(5)
			back.TransactionID += ", and back"
			to := back.To(d.CA(t)...)
			if name != "RAs" { // RSA(5) is that of the RA
				by(to.Send(t, to.RenewalReq(t)), now)
			}

			// The keys of the next CA are no device's.
			thief := newConformer(srv.Server)
			thief.Key = srv.Config.Next.(*scep.Identity).Key
			thief.Signer, thief.Certificate = sceptest.RSA(0), sceptest.Certificate{Key: sceptest.RSA(0)}.DER()
			wantFail(t, thief.Send(t, thief.PKCSReq(t)), scep.BadRequest, "")
		}
	})
	c.run("NXT-06", func(t *testing.T) {
		for name, srv := range servers {
			want := getNextCA(t, srv.Server, "")
			for _, more := range []string{"", "&message=x", "&message=", "&message=%%%", "&foo=bar"} {
				if !bytes.Equal(getNextCA(t, srv.Server, more), want) {
					t.Errorf("%s: another answer with %q", name, more)
				}
			}
		}
	})
}
