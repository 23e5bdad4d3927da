package scep_test

import (
	"context"
	"crypto"
	"errors"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// prepared is a challenge that knows its one password beforehand. It knows that of transactions
// named "stranger" for none.
type prepared struct {
	scep.Challenge
	err error
}

func (p prepared) Prepare(_ context.Context, _, transactionID string, _ crypto.PublicKey) (scep.Secret, error) {
	if transactionID == "stranger" {
		return scep.Secret{}, scep.ErrNotFound
	}
	return scep.NewSecret(sceptest.Secret), p.err
}

func newPrepared(err error) scep.Challenge {
	return prepared{scep.ChallengeFunc(func(_ context.Context, req *scep.Request) error {
		if req.Secret.Reveal() != sceptest.Secret {
			return scep.Reject(scep.BadRequest, "the challenge password is wrong")
		}
		return nil
	}), err}
}

// byPassword encrypts the request with p.
func byPassword(p sceptest.Password) bend {
	return func(m *sceptest.Message) { m.Envelope.Recipients = []sceptest.Recipient{{Password: &p}} }
}

// ecDevice is a device that can sign and not decrypt.
func ecDevice(srv *sceptest.Server, key crypto.Signer, name string) *sceptest.Device {
	d := sceptest.NewDevice(srv.URL, key, name)
	d.TransactionID = "transaction of " + name
	return d
}

func TestConformancePWR(t *testing.T) {
	c := newTable(t, "PWR")
	renewals := scep.Renewal{On: true, Anytime: true}
	refused := newServer(t, scep.Config{Renewal: renewals})
	refusedToo := newServer(t, scep.Config{PasswordRecipients: true, Challenge: newPrepared(nil)})
	t.Cleanup(func() {
		wantNothingIssued(t, refused)
		wantNothingIssued(t, refusedToo)
	})
	ec := newServer(t, scep.Config{CA: sceptest.NewCA(t, sceptest.P384()), PasswordRecipients: true, Challenge: newPrepared(nil)})
	c.run("PWR-01", func(t *testing.T) {
		bends(t, ec, map[string]bend{
			"HMAC-SHA-1":   byPassword(sceptest.Password{Secret: sceptest.Secret}),
			"HMAC-SHA-256": byPassword(sceptest.Password{Secret: sceptest.Secret, Hash: crypto.SHA256, Iterations: 10_000}),
			"HMAC-SHA-512": byPassword(sceptest.Password{Secret: sceptest.Secret, Hash: crypto.SHA512, Iterations: 1}),
			"AES-256": func(m *sceptest.Message) {
				byPassword(sceptest.Password{Secret: sceptest.Secret})(m)
				m.Envelope.Cipher = sceptest.AES256
			},
		}, ok)
		// Besides recipients that are others', or of no use.
		good, useless := sceptest.Recipient{Password: &sceptest.Password{Secret: sceptest.Secret}}, sceptest.Recipient{Password: &sceptest.Password{Said: 1 << 31}}
		bends(t, ec, map[string]bend{
			"a stranger's certificate": func(m *sceptest.Message) {
				m.Envelope.Recipients = []sceptest.Recipient{{Certificate: sceptest.NewCA(t).Certificate()}, good}
			},
			"our certificate": func(m *sceptest.Message) {
				m.Envelope.Recipients = []sceptest.Recipient{good, m.Envelope.Recipients[0]}
			},
			"our certificate and another password": func(m *sceptest.Message) {
				m.Envelope.Recipients = append(m.Envelope.Recipients, sceptest.Recipient{Password: &sceptest.Password{Secret: "other"}})
			},
			"too many rounds": func(m *sceptest.Message) { m.Envelope.Recipients = []sceptest.Recipient{useless, good} },
		}, ok)
		d := ecDevice(ec, sceptest.P256(), "EC by PWRI")
		m := d.PKCSReq(t)
		byPassword(sceptest.Password{Secret: sceptest.Secret})(m)
		wantOK(t, d.Send(t, m))
	})
	c.run("PWR-02", func(t *testing.T) {
		srv := newServer(t, scep.Config{PasswordRecipients: true})
		for name, key := range map[string]crypto.Signer{"P-256": sceptest.P256(), "P-384": sceptest.P384()} {
			for _, cipher := range []sceptest.Cipher{sceptest.AES128, sceptest.AES192, sceptest.AES256} {
				d := ecDevice(srv, key, name)
				m := d.PKCSReq(t)
				m.Envelope.Cipher = cipher
				r := d.Send(t, m)
				if wantOK(t, r); r.Cipher != cipher {
					t.Errorf("%s: cipher is %d, not %d", name, r.Cipher, cipher)
				}
			}
		}
	})
	c.run("PWR-03", func(t *testing.T) {
		for _, kind := range []string{sceptest.TypePKCSReq, sceptest.TypeRenewalReq, sceptest.TypeCertPoll, sceptest.TypeGetCert} {
			for _, key := range []crypto.Signer{sceptest.P256(), sceptest.P384()} {
				d := sceptest.NewDevice(refused.URL, key, "EC")
				m := d.PKCSReq(t)
				m.Type = kind
				wantFail(t, d.Send(t, m), scep.BadAlg, "")
			}
		}
		bends(t, refused, map[string]bend{"request by password": byPassword(sceptest.Password{Secret: sceptest.Secret})}, fails(scep.BadRequest, ""))
	})
	c.run("PWR-04", func(t *testing.T) {
		bends(t, refusedToo, map[string]bend{
			"another password": byPassword(sceptest.Password{Secret: "Secret"}),
			"empty password":   byPassword(sceptest.Password{}),
			"another transaction": func(m *sceptest.Message) {
				byPassword(sceptest.Password{Secret: sceptest.Secret})(m)
				m.TransactionID = "stranger"
			},
			"no password known, empty password": func(m *sceptest.Message) {
				byPassword(sceptest.Password{})(m)
				m.TransactionID = "stranger"
			},
			"another key": func(m *sceptest.Message) {
				m.Envelope.Recipients = []sceptest.Recipient{{Password: &sceptest.Password{Secret: sceptest.Secret}, Key: make([]byte, 16)}}
			},
			"short key": func(m *sceptest.Message) {
				m.Envelope.Recipients = []sceptest.Recipient{{Password: &sceptest.Password{Secret: sceptest.Secret}, Key: make([]byte, 15)}}
			},
			"wrapped key changed": func(m *sceptest.Message) {
				byPassword(sceptest.Password{Secret: sceptest.Secret})(m)
				m.Envelope.Recipients[0].EncryptedKey = func(b []byte) []byte { b[0] ^= 1; return b }
			},
			"wrapped key cut off": func(m *sceptest.Message) {
				byPassword(sceptest.Password{Secret: sceptest.Secret})(m)
				m.Envelope.Recipients[0].EncryptedKey = func(b []byte) []byte { return b[:16] }
			},
			"no wrapped key": func(m *sceptest.Message) {
				byPassword(sceptest.Password{Secret: sceptest.Secret})(m)
				m.Envelope.Recipients[0].EncryptedKey = func([]byte) []byte { return nil }
			},
			"garbage inside": func(m *sceptest.Message) {
				byPassword(sceptest.Password{Secret: sceptest.Secret})(m)
				m.Envelope.Content = []byte("garbage")
			},
			"padding": func(m *sceptest.Message) {
				byPassword(sceptest.Password{Secret: sceptest.Secret})(m)
				m.Envelope.Pad = func(b []byte) []byte { return append(b, make([]byte, 16-len(b)%16)...) }
			},
			"all zero key, empty password": func(m *sceptest.Message) {
				m.Envelope.Recipients = []sceptest.Recipient{{Password: &sceptest.Password{}}}
				m.Envelope.Key, m.TransactionID = make([]byte, 16), "stranger"
			},
		}, fails(scep.BadRequest, unreadable))
		d := ecDevice(refusedToo, sceptest.P256(), "wrong challenge")
		d.Challenge = "wrong"
		wantFail(t, d.Send(t, d.PKCSReq(t)), scep.BadRequest, "the challenge password is wrong")
		// Where nobody can say, nothing is wrong with the request.
		away := newServer(t, scep.Config{PasswordRecipients: true, Challenge: newPrepared(errors.New("away"))})
		bends(t, away, map[string]bend{"away": byPassword(sceptest.Password{Secret: sceptest.Secret})}, func(t *testing.T, _ *sceptest.Message, r *sceptest.Reply) {
			wantHTTP(t, r, 503)
		})
	})
	c.run("PWR-05", func(t *testing.T) {
		hostile := map[string]bend{}
		for name, rounds := range map[string]int64{"2^31 rounds": 1 << 31, "2^62 rounds": 1 << 62, "100,001 rounds": 100_001, "-1 rounds": -1} {
			hostile[name] = byPassword(sceptest.Password{Secret: sceptest.Secret, Iterations: 1, Said: rounds})
		}
		started := time.Now()
		bends(t, refusedToo, hostile, fails(scep.BadAlg, ""))
		bends(t, refused, hostile, fails(scep.BadRequest, ""))
		if took := time.Since(started); took > 10*time.Second {
			t.Errorf("took %v", took)
		}
		bends(t, refusedToo, map[string]bend{"100,000 rounds": byPassword(sceptest.Password{Secret: sceptest.Secret, Iterations: 1, Said: 100_000})}, fails(scep.BadRequest, unreadable))
	})
	c.run("PWR-06", func(t *testing.T) {
		bends(t, refused, map[string]bend{"CSR": func(m *sceptest.Message) { m.Content = m.CSR }}, fails(scep.BadRequest, unreadable))
		bends(t, refusedToo, map[string]bend{"CSR": func(m *sceptest.Message) { m.Content = m.CSR }}, fails(scep.BadRequest, unreadable))
	})
}
