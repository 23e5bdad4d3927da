package scep_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

func ed25519Key(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// signers are keys that cannot decrypt.
func signers(t *testing.T) map[string]crypto.Signer {
	return map[string]crypto.Signer{"P-256": sceptest.P256(), "P-384": sceptest.P384(), "P-521": ecKey(t, elliptic.P521()), "Ed25519": ed25519Key(t)}
}

// TestPasswordReply enrols devices that cannot decrypt. What they lost they get again, without a
// second certificate.
func TestPasswordReply(t *testing.T) {
	t.Parallel()
	for name, key := range signers(t) {
		srv := sceptest.NewServer(t, scep.Config{PasswordRecipients: true})
		d := ecDevice(srv, key, name)
		m := d.PKCSReq(t)
		r := d.Send(t, m)
		wantOK(t, r)
		again := d.Send(t, m.Again())
		if wantOK(t, again); !again.Certificate.Equal(r.Certificate) || len(records(t, srv)) != 1 {
			t.Errorf("%s: another certificate", name)
		}
		wantFail(t, d.Send(t, d.GetCert(t, r.Certificate.RawIssuer, r.Certificate.SerialNumber)), scep.BadAlg, "")
		wantFail(t, d.Poll(t), scep.BadRequest, "send the request again in place of a poll: the reply is encrypted with its challenge password")
	}
}

// TestPasswordWaits has a person decide on a device that cannot decrypt.
func TestPasswordWaits(t *testing.T) {
	t.Parallel()
	srv := sceptest.NewServer(t, scep.Config{PasswordRecipients: true, Challenge: sceptest.Pend(sceptest.Secret)})
	d := ecDevice(srv, sceptest.P256(), "waits")
	m := d.PKCSReq(t)
	wantPending(t, d.Send(t, m))
	wantPending(t, d.Poll(t))
	wantPending(t, d.Send(t, m.Again()))
	cert, err := srv.Handler.Approve(t.Context(), recordOf(t, srv, d.TransactionID).ID, scep.Decision{})
	if err != nil {
		t.Fatal(err)
	}
	wantFail(t, d.Poll(t), scep.BadRequest, "send the request again in place of a poll: the reply is encrypted with its challenge password")
	r := d.Send(t, m.Again())
	if wantOK(t, r); !r.Certificate.Equal(cert) {
		t.Error("another certificate")
	}

	d = ecDevice(srv, sceptest.P256(), "denied")
	m = d.PKCSReq(t)
	wantPending(t, d.Send(t, m))
	if err := srv.Handler.Deny(t.Context(), recordOf(t, srv, d.TransactionID).ID, scep.Reject(scep.BadRequest, "no"), scep.Decision{}); err != nil {
		t.Fatal(err)
	}
	wantFail(t, d.Poll(t), scep.BadRequest, "no")
	wantFail(t, d.Send(t, m.Again()), scep.BadRequest, "no")
}

// TestPasswordMissing sends what could not be answered: nothing is asked, written or signed.
func TestPasswordMissing(t *testing.T) {
	t.Parallel()
	touched := func(what string) { t.Errorf("%s was called", what) }
	srv := sceptest.NewServer(t, scep.Config{
		PasswordRecipients: true,
		CA: sceptest.CA{CA: sceptest.NewCA(t), On: func(op string, _ *x509.Certificate) (bool, error) {
			if op == "Sign" {
				touched(op)
			}
			return false, nil
		}},
		Challenge: scep.ChallengeFunc(func(context.Context, *scep.Request) error { touched("Validate"); return nil }),
		Depot: sceptest.Depot{Depot: new(depot.Memory), On: func(op string, _ *scep.Record) (bool, error) {
			touched(op)
			return false, nil
		}},
	})
	for name, key := range signers(t) {
		d := ecDevice(srv, key, name)
		d.Challenge = ""
		wantFail(t, d.Send(t, d.PKCSReq(t)), scep.BadRequest, "the CSR has no challenge password to encrypt the reply with, and the key that signed the message cannot decrypt")
		wantFail(t, d.Send(t, d.GetCert(t, sceptest.CN("x"), d.CA(t)[0].SerialNumber)), scep.BadAlg, "")
	}
}

// TestPasswordRenewal renews the certificates of devices that cannot decrypt. The challenge
// password need not be one that anybody has given out.
func TestPasswordRenewal(t *testing.T) {
	t.Parallel()
	srv := sceptest.NewServer(t, scep.Config{PasswordRecipients: true, Renewal: scep.Renewal{On: true, Anytime: true}})
	for name, key := range signers(t) {
		d := ecDevice(srv, key, name)
		renewal := d.As(d.Enroll(t), key)
		renewal.TransactionID += " again"
		before := len(records(t, srv))
		wantFail(t, renewal.Send(t, renewal.RenewalReq(t)), scep.BadRequest, "the CSR has no challenge password to encrypt the reply with, and the key that signed the message cannot decrypt")
		if got := len(records(t, srv)); got != before {
			t.Errorf("%s: %d records more", name, got-before)
		}
		renewal.Challenge = rand.Text()
		wantOK(t, renewal.Send(t, renewal.RenewalReq(t)))
	}
}

// TestPasswordSigners signs for others: whoever re-signs a request does not learn what is in it.
func TestPasswordSigners(t *testing.T) {
	t.Parallel()
	srv := sceptest.NewServer(t, scep.Config{PasswordRecipients: true})
	victims := map[string]crypto.Signer{"RSA": sceptest.RSA(1), "P-256": sceptest.P256()}
	for name, key := range victims {
		victim := ecDevice(srv, key, name).PKCSReq(t)
		for other, key := range map[string]crypto.Signer{"RSA": sceptest.RSA(2), "P-384": sceptest.P384(), "Ed25519": ed25519Key(t)} {
			d := ecDevice(srv, key, "signer "+name+other)
			for _, content := range [][]byte{victim.CSR, []byte("garbage"), {}} {
				wantFail(t, d.Send(t, d.Message(t, sceptest.TypePKCSReq, content)), scep.BadRequest, unreadable)
			}
		}
	}
	wantNothingIssued(t, srv)
}

// TestPasswordLegacy answers in Triple DES, and opens it, where that is admitted only.
func TestPasswordLegacy(t *testing.T) {
	t.Parallel()
	srv := sceptest.NewServer(t, scep.Config{PasswordRecipients: true, Legacy: scep.TripleDES})
	d := ecDevice(srv, sceptest.P256(), "Triple DES")
	m := d.PKCSReq(t)
	m.Envelope.Cipher = sceptest.TripleDES
	r := d.Send(t, m)
	if wantOK(t, r); r.Cipher != sceptest.TripleDES {
		t.Errorf("cipher is %d", r.Cipher)
	}
}

// cmsTool runs `openssl cms` from in to out.
func cmsTool(t *testing.T, in []byte, args ...string) ([]byte, error) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "in"), in, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "openssl", append(append([]string{"cms"}, args...), "-binary", "-in", "in", "-out", "out")...)
	cmd.Dir = dir
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Logf("%s", msg)
		return nil, err
	}
	return os.ReadFile(filepath.Join(dir, "out"))
}

func needOpenSSL(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("openssl is not installed")
	}
}

// TestPasswordOpenSSL has openssl open a reply and write a request.
func TestPasswordOpenSSL(t *testing.T) {
	t.Parallel()
	needOpenSSL(t)
	srv := sceptest.NewServer(t, scep.Config{PasswordRecipients: true, Challenge: newPrepared(nil)})
	for option, cipher := range map[string]sceptest.Cipher{"-aes128": sceptest.AES128, "-aes256": sceptest.AES256} {
		d := ecDevice(srv, sceptest.P256(), "openssl "+option)
		m := d.PKCSReq(t)
		m.Envelope.Cipher = cipher // which the reply is held to
		var err error
		if m.Content, err = cmsTool(t, m.CSR, "-encrypt", option, "-pwri_password", sceptest.Secret, "-outform", "DER"); err != nil {
			t.Fatal(err)
		}
		r := d.Send(t, m)
		wantOK(t, r)
		envelope, err := cmsTool(t, r.Body, "-verify", "-noverify", "-inform", "DER")
		if err != nil {
			t.Fatal(err)
		}
		plain, err := cmsTool(t, envelope, "-decrypt", "-inform", "DER", "-pwri_password", sceptest.Secret)
		if err != nil {
			t.Fatal(err)
		}
		if certs, err := sceptest.ParseCertsOnly(plain); err != nil || len(certs) != 1 || !certs[0].Equal(r.Certificate) {
			t.Errorf("%s: %v", option, err)
		}
		if other, err := cmsTool(t, envelope, "-decrypt", "-inform", "DER", "-pwri_password", "other"); err == nil && bytes.Equal(other, plain) {
			t.Errorf("%s: opened with the wrong password", option)
		}
		m.Content, err = cmsTool(t, m.CSR, "-encrypt", option, "-pwri_password", "other", "-outform", "DER")
		if err != nil {
			t.Fatal(err)
		}
		wantFail(t, d.Send(t, m.Again()), scep.BadRequest, unreadable)
	}
}
