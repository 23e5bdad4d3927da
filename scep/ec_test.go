package scep_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"path/filepath"
	"testing"

	"github.com/scepkit/scepkit/backend/file"
	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/depot/sqlite"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

func ecKey(t *testing.T, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestECIssuers has CAs that cannot decrypt, made by openssl, serve every kind of device by way of an RSA RA: first
// certificate and renewal, with requests by certificate and by password.
func TestECIssuers(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{
		"P-256": {"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"}, "P-384": {"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"}, "Ed25519": {"-algorithm", "ed25519"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			openSSL(t, dir, append([]string{"genpkey", "-out", "ca.key"}, args...)...)
			openSSL(t, dir, "req", "-x509", "-new", "-key", "ca.key", "-subj", "/CN=CA", "-days", "3650", "-out", "ca.pem", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
			ca, err := file.Open(filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key"))
			if err != nil {
				t.Fatal(err)
			}
			ra, _, err := file.RA(t.Context(), ca, filepath.Join(dir, "ra"), file.RAOptions{})
			if err != nil {
				t.Fatal(err)
			}
			srv := sceptest.NewServer(t, scep.Config{
				CA: ca, RA: ra, PasswordRecipients: true, Challenge: newPrepared(nil),
				Renewal: scep.Renewal{On: true, Anytime: true}, Log: silent,
			})
			devices := signers(t)
			devices["RSA"] = sceptest.RSA(1)
			var issued []*x509.Certificate
			for device, key := range devices {
				for by, request := range map[string]bend{"certificate": func(*sceptest.Message) {}, "password": byPassword(sceptest.Password{Secret: sceptest.Secret})} {
					if by == "password" && device != "RSA" && device != "P-256" {
						continue // no different
					}
					d := ecDevice(srv, key, device+" by "+by)
					m := d.PKCSReq(t)
					request(m)
					r := d.Send(t, m)
					wantOK(t, r)
					over := d.As(r.Certificate, key)
					over.Challenge, over.TransactionID = sceptest.Secret, d.TransactionID+", renewal"
					m = over.RenewalReq(t)
					request(m)
					next := over.Send(t, m)
					wantOK(t, next)
					issued = append(issued, r.Certificate, next.Certificate)
				}
			}
			verify := []string{"verify", "-CAfile", "ca.pem"}
			for i, cert := range issued {
				name := string(rune('a'+i)) + ".pem"
				write(t, dir, name, pemOf(cert))
				verify = append(verify, name)
			}
			if out := openSSL(t, dir, verify...); bytes.Count(out, []byte(": OK")) != len(issued) {
				t.Errorf("openssl: %s", out)
			}
		})
	}
}

// TestPasswordOneTime loses the reply to a device that cannot decrypt and has a one-time challenge:
// it gets the same certificate, encrypted anew, and nobody gets another.
func TestPasswordOneTime(t *testing.T) {
	t.Parallel()
	db, err := sqlite.Open(filepath.Join(t.TempDir(), "scep.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	secrets := &challenge.OneTime{Store: db}
	srv := sceptest.NewServer(t, scep.Config{Depot: db, Challenge: secrets, PasswordRecipients: true})
	for name, key := range signers(t) {
		secret, err := secrets.New(t.Context(), challenge.Binding{Subject: "CN=" + name})
		if err != nil {
			t.Fatal(err)
		}
		d := ecDevice(srv, key, name)
		d.Challenge = secret.Reveal()
		m := d.PKCSReq(t)
		first := d.Send(t, m)
		wantOK(t, first)
		again := d.Send(t, m.Again())
		wantCert(t, again, first.Certificate)
		if tail := first.Body[len(first.Body)/3 : len(first.Body)/3+64]; bytes.Contains(again.Body, tail) {
			t.Errorf("%s: the same ciphertext", name)
		}
		csr := d.CSR()
		csr.ChallengeTag = sceptest.TagUTF8String // which makes it another
		wantFail(t, d.Send(t, d.Request(t, sceptest.TypePKCSReq, csr)), scep.BadRequest, "")
		other := ecDevice(srv, sceptest.P256(), name)
		other.Challenge = d.Challenge
		wantFail(t, other.Send(t, other.PKCSReq(t)), scep.BadRequest, "")
	}
	list, err := db.List(t.Context(), scep.Query{})
	if err != nil || len(list) != len(signers(t)) {
		t.Errorf("%d records, %v", len(list), err)
	}
}

// TestPasswordText has challenges in other scripts and string types: what counts is the text, in
// UTF-8.
func TestPasswordText(t *testing.T) {
	t.Parallel()
	for text, tags := range map[string][]byte{
		"пароль 密码 🔑": {sceptest.TagUTF8String},
		"größe":       {sceptest.TagUTF8String, sceptest.TagBMPString},
		"under_score": {sceptest.TagPrintableString, sceptest.TagIA5String, sceptest.TagUTF8String},
		string(bytes.Repeat([]byte("long "), 200)): {sceptest.TagUTF8String},
	} {
		srv := sceptest.NewServer(t, scep.Config{PasswordRecipients: true, Challenge: challenge.Prepared(text)})
		for _, tag := range tags {
			d := ecDevice(srv, ecKey(t, elliptic.P256()), "text")
			d.Challenge = text
			csr := d.CSR()
			csr.ChallengeTag = tag
			m := d.Request(t, sceptest.TypePKCSReq, csr)
			wantOK(t, d.Send(t, m))
			m = d.Request(t, sceptest.TypePKCSReq, csr)
			byPassword(sceptest.Password{Secret: text})(m)
			wantOK(t, d.Send(t, m))
		}
		wrong := ecDevice(srv, sceptest.P256(), "wrong")
		m := wrong.PKCSReq(t)
		byPassword(sceptest.Password{Secret: text + " "})(m)
		wantFail(t, wrong.Send(t, m), scep.BadRequest, unreadable)
	}
}

// pendsPrepared is a prepared challenge after which a person decides.
type pendsPrepared struct{ prepared }

func (p pendsPrepared) Validate(ctx context.Context, req *scep.Request) error {
	if err := p.prepared.Validate(ctx, req); err != nil {
		return err
	}
	return scep.ErrPending
}

// TestPasswordPolls answers polls of devices that cannot decrypt where the password is known
// beforehand, and only there.
func TestPasswordPolls(t *testing.T) {
	t.Parallel()
	const again = "send the request again in place of a poll: the reply is encrypted with its challenge password"
	know := pendsPrepared{newPrepared(nil).(prepared)}
	away := know
	away.err = errors.New("away")
	srv := sceptest.NewServer(t, scep.Config{PasswordRecipients: true, Challenge: know, Renewal: scep.Renewal{On: true, Anytime: true}})
	approve := func(transaction string) {
		t.Helper()
		if _, err := srv.Handler.Approve(t.Context(), recordOf(t, srv, transaction).ID, scep.Decision{}); err != nil {
			t.Fatal(err)
		}
	}
	for name, key := range signers(t) {
		d := ecDevice(srv, key, name)
		m := d.PKCSReq(t)
		byPassword(sceptest.Password{Secret: sceptest.Secret})(m)
		wantPending(t, d.Send(t, m))
		wantPending(t, d.Poll(t))
		approve(d.TransactionID)
		poll := d.CertPoll(t)
		poll.Password = sceptest.Secret
		r := d.Send(t, poll)
		wantOK(t, r)
		wantCert(t, d.Send(t, m.Again()), r.Certificate)

		// The password of a renewal nobody but the device knows.
		over := d.As(r.Certificate, key)
		over.Challenge, over.TransactionID = "another", d.TransactionID+", renewal"
		wantOK(t, over.Send(t, over.RenewalReq(t)))
		wantFail(t, over.Poll(t), scep.BadRequest, again)
	}

	d := ecDevice(srv, sceptest.P256(), "stranger")
	d.TransactionID = "stranger" // for whom there is no password
	wantPending(t, d.Send(t, d.PKCSReq(t)))
	approve("stranger")
	wantFail(t, d.Poll(t), scep.BadRequest, again)

	d = ecDevice(srv, sceptest.P256(), "away")
	wantPending(t, d.Send(t, d.PKCSReq(t)))
	approve(d.TransactionID)
	c := srv.Config
	c.Challenge = away
	poll := d.CertPoll(t)
	poll.Password = sceptest.Secret
	d.URL = sceptest.NewServer(t, c).URL
	wantHTTP(t, d.Send(t, poll), 503)
}
