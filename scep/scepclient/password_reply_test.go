package scepclient

import (
	"crypto"
	"testing"

	"github.com/scepkit/scepkit/scep/sceptest"
)

// A server that answers with another password, or with anything but a password, is found out.
func TestPasswordReplyLies(t *testing.T) {
	password := func(p sceptest.Password) func(q *query, m *sceptest.Message) {
		return func(_ *query, m *sceptest.Message) {
			m.Envelope.Recipients = []sceptest.Recipient{{Password: &p}}
		}
	}
	for _, test := range []struct {
		name  string
		alter func(q *query, m *sceptest.Message)
		want  string // "": it is the truth
	}{
		{"SHA-1", password(sceptest.Password{Secret: "hunter2"}), ""},
		{"SHA-384", password(sceptest.Password{Secret: "hunter2", Hash: crypto.SHA384}), ""},
		{"another password", password(sceptest.Password{Secret: "hunter3"}), "does not decrypt"},
		{"no password", password(sceptest.Password{}), "does not decrypt"},
		{"2^31 rounds", password(sceptest.Password{Secret: "hunter2", Iterations: 1, Said: 1 << 31}), "iteration count"},
		{"key transport", func(_ *query, m *sceptest.Message) {
			m.Envelope.Recipients = []sceptest.Recipient{{Certificate: mustParse(t, m.Certificate)}}
		}, "not encrypted with the challenge password"},
		{"Triple DES", func(q *query, m *sceptest.Message) {
			password(sceptest.Password{Secret: "hunter2"})(q, m)
			m.Envelope.Cipher = sceptest.TripleDES
		}, "Triple DES"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newLiar(t)
			l.alter = test.alter
			r := request()
			r.Key, r.PasswordReply = sceptest.P256(), true
			for range 3 { // by chance a padding may look right, and what it hides is then no message
				_, err := l.client().Enroll(t.Context(), r)
				if test.want == "" {
					if err != nil {
						t.Error(err)
					}
				} else if test.want == "does not decrypt" {
					wantError(t, err)
				} else {
					wantError(t, err, test.want)
				}
			}
		})
	}

	// An RSA key does not open a reply by password, asked for or not.
	l := newLiar(t)
	l.alter = password(sceptest.Password{Secret: "hunter2"})
	r := request()
	r.PasswordReply = true
	_, err := l.client().Enroll(t.Context(), r)
	wantError(t, err, "not encrypted to the certificate")
}
