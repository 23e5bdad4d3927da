package challenge_test

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

func TestPrepared(t *testing.T) {
	t.Parallel()
	c := challenge.Prepared("New-secret-1")
	if secret, err := c.(scep.Preparer).Prepare(t.Context(), "", "", nil); err != nil || secret.Reveal() != "New-secret-1" {
		t.Errorf("Prepare: %v, %v", secret, err)
	}
	if got := fmt.Sprintf("%v %+v %#v", c, c, c); strings.Contains(got, "New-secret-1") {
		t.Errorf("it prints its secret: %s", got)
	}
	if err := challenge.Prepared("").(interface{ Check() error }).Check(); err == nil {
		t.Error("an empty secret passes the check")
	}
	srv := sceptest.NewServer(t, scep.Config{Challenge: c, PasswordRecipients: true})
	for i, password := range []string{"New-secret-1", "Old-secret-0", ""} {
		d := srv.Device(i)
		d.Challenge = "New-secret-1"
		m := d.PKCSReq(t)
		m.Envelope.Recipients = []sceptest.Recipient{{Password: &sceptest.Password{Secret: password}}}
		if r := d.Send(t, m); (r.Certificate != nil) != (i == 0) {
			t.Errorf("%q is answered %v", password, r)
		}
	}
}

// ofTransaction is a challenge that knows the passwords of some transactions.
type ofTransaction map[string]string

func (o ofTransaction) Validate(_ context.Context, req *scep.Request) error {
	if secret := o[req.TransactionID]; secret == "" || req.Secret.Reveal() != secret {
		return scep.Reject(scep.BadRequest, "no")
	}
	return nil
}

func (o ofTransaction) Prepare(_ context.Context, _, transactionID string, _ crypto.PublicKey) (scep.Secret, error) {
	switch secret := o[transactionID]; secret {
	case "":
		return scep.Secret{}, fmt.Errorf("transaction %q: %w", transactionID, scep.ErrNotFound)
	case "away":
		return scep.Secret{}, errors.New("database is away")
	default:
		return scep.NewSecret(secret), nil
	}
}

// TestPreparedCombined has who is asked for the password, with Any and All in one another.
func TestPreparedCombined(t *testing.T) {
	t.Parallel()
	known := ofTransaction{"a": "password of a", "away": "away"}
	common := challenge.Prepared("common password")
	for name, c := range map[string]scep.Challenge{
		"Any":        challenge.Any(challenge.Static("x"), known, common),
		"All":        challenge.All(admit, known, common),
		"Any of All": challenge.Any(challenge.All(admit, known), challenge.All(admit, challenge.Any(refuse, common))),
		"nil beside": challenge.Any(nil, known, common),
	} {
		p, ok := c.(scep.Preparer)
		if !ok {
			t.Errorf("%s is no Preparer", name)
			continue
		}
		for transaction, want := range map[string]string{"a": "password of a", "b": "common password"} {
			if secret, err := p.Prepare(t.Context(), "", transaction, nil); err != nil || secret.Reveal() != want {
				t.Errorf("%s, transaction %s: %q, %v", name, transaction, secret.Reveal(), err)
			}
		}
		if secret, err := p.Prepare(t.Context(), "", "away", nil); err == nil || errors.Is(err, scep.ErrNotFound) || !secret.Empty() {
			t.Errorf("%s, with one that could not tell: %v", name, err)
		}
		if _, ok := c.(scep.Confirmer); !ok {
			t.Errorf("%s is no Confirmer", name)
		}
	}
	if _, err := challenge.Any(known).(scep.Preparer).Prepare(t.Context(), "", "b", nil); !errors.Is(err, scep.ErrNotFound) {
		t.Errorf("a transaction that nobody knows: %v", err)
	}
	for _, c := range []scep.Challenge{challenge.Any(), challenge.All(), challenge.Any(admit, challenge.Static("x")), challenge.All(admit, challenge.Any(admit))} {
		if _, ok := c.(scep.Preparer); ok {
			t.Errorf("%T is a Preparer, and none of its parts is", c)
		}
	}
	if err := challenge.Any(common, challenge.Static("")).(interface{ Check() error }).Check(); err == nil {
		t.Error("Any with an empty secret passes the check")
	}
}

// TestPreparedServes sends requests that are encrypted with a password. Whoever can have one opened
// is not let in for that.
func TestPreparedServes(t *testing.T) {
	t.Parallel()
	a, b := "password of the first", "password of the second"
	for _, tt := range []struct {
		name           string
		c              scep.Challenge
		opens, carries string
		want           bool
	}{
		{"Any, the first", challenge.Any(challenge.Static(b), challenge.Prepared(a)), a, a, true},
		{"Any, another's password inside", challenge.Any(challenge.Static(b), challenge.Prepared(a)), a, b, true},
		{"Any, nobody's password inside", challenge.Any(challenge.Static(b), challenge.Prepared(a)), a, "guess", false},
		{"Any, none's password outside", challenge.Any(challenge.Static(b), challenge.Prepared(a)), b, b, false},
		{"Any, the second", challenge.Any(challenge.Prepared(a), challenge.Prepared(b)), b, b, false},
		{"All", challenge.All(admit, challenge.Prepared(a)), a, a, true},
		{"All, one refuses", challenge.All(challenge.Prepared(a), refuse), a, a, false},
		{"All, another password inside", challenge.All(challenge.Prepared(a), challenge.Static(b)), a, b, false},
		{"All, that never agree", challenge.All(challenge.Prepared(a), challenge.Prepared(b)), a, a, false},
	} {
		srv := sceptest.NewServer(t, scep.Config{Challenge: tt.c, PasswordRecipients: true})
		d := srv.Device(0)
		d.Challenge = tt.carries
		m := d.PKCSReq(t)
		m.Envelope.Recipients = []sceptest.Recipient{{Password: &sceptest.Password{Secret: tt.opens}}}
		if r := d.Send(t, m); (r.Certificate != nil) != tt.want {
			t.Errorf("%s: %v", tt.name, r)
		}
	}
}
