package challenge_test

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/depot"
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

// TestPreparedReply has a challenge that let a request in unable to tell its password.
func TestPreparedReply(t *testing.T) {
	t.Parallel()
	known := ofTransaction{"away": "away"}
	for name, c := range map[string]scep.Challenge{
		"Any": challenge.Any(challenge.Prepared("x"), known),
		"All": challenge.All(admit, challenge.Any(refuse, known), challenge.Prepared("x")),
	} {
		p := c.(interface {
			PrepareReply(context.Context, *scep.Request, crypto.PublicKey) (scep.Secret, error)
		})
		req := &scep.Request{TransactionID: "away", Via: "1()"}
		if name == "All" {
			req.Via = "1(1())"
		}
		if secret, err := p.PrepareReply(t.Context(), req, nil); err == nil || errors.Is(err, scep.ErrNotFound) || !secret.Empty() {
			t.Errorf("%s: %v", name, err)
		}
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

// TestPreparedPolls has devices that cannot decrypt wait for a person, and poll. Who was let in by a
// challenge that knows its password gets a reply that it can read, and everybody else is told to send
// the request again, which is answered with the password that is in it.
func TestPreparedPolls(t *testing.T) {
	t.Parallel()
	a, b := "password of the first", "password of the second"
	known, static := func() scep.Challenge { return challenge.Prepared(a) }, func() scep.Challenge { return challenge.Static(b) }
	later := func(c scep.Challenge) scep.Challenge { return challenge.All(c, pend) }
	for _, tt := range []struct {
		name          string
		before, after scep.Challenge // after is what Config.Challenge is when the device polls
		carries       string
		polls         bool // the poll gets the certificate
	}{
		{"one", later(known()), nil, a, true},
		{"Any, the one that knows", later(challenge.Any(known(), static())), nil, a, true},
		{"Any, one that does not", later(challenge.Any(known(), static())), nil, b, false},
		{"Any, one that does not, first", later(challenge.Any(static(), known())), nil, b, false},
		{"Any, the second that knows", later(challenge.Any(known(), challenge.Prepared(b))), nil, b, true},
		{"Any outside", challenge.Any(later(known()), later(static())), nil, b, false},
		{"Any outside, the second that knows", challenge.Any(later(known()), later(challenge.Prepared(b))), nil, b, true},
		{"Any in Any", later(challenge.Any(challenge.Any(known(), static()), refuse)), nil, b, false},
		{"Any in Any in All", later(challenge.All(admit, challenge.Any(static(), challenge.Any(refuse, known())))), nil, a, true},
		{"a new secret, beside", later(challenge.Any(known(), static())), later(challenge.Any(known(), challenge.Prepared(b))), b, true},
		{"Any comes", challenge.All(challenge.Static(b), pend), challenge.Any(later(known()), later(static())), b, false},
		{"Any goes", challenge.Any(later(known()), later(static())), known(), b, false},
	} {
		after := tt.after
		if after == nil {
			after = tt.before
		}
		records := &depot.Memory{}
		ca := sceptest.NewCA(t)
		srv := sceptest.NewServer(t, scep.Config{CA: ca, Depot: records, Challenge: tt.before, PasswordRecipients: true})
		d := sceptest.NewDevice(srv.URL, sceptest.P256(), "polls")
		d.Challenge, d.TransactionID = tt.carries, "polls"
		m := d.PKCSReq(t)
		if r := d.Send(t, m); r.Status != sceptest.StatusPending {
			t.Errorf("%s: %v, want PENDING", tt.name, r)
			continue
		}
		all, err := records.List(t.Context(), scep.Query{})
		if err != nil || len(all) != 1 {
			t.Fatalf("%d records, %v", len(all), err)
		}
		cert, err := srv.Handler.Approve(t.Context(), all[0].ID, scep.Decision{})
		if err != nil {
			t.Fatal(err)
		}
		now := sceptest.NewServer(t, scep.Config{CA: ca, Depot: records, Challenge: after, PasswordRecipients: true})
		d.URL = now.URL
		ask := d.CertPoll(t)
		ask.Password = tt.carries // the reply is opened with it
		poll := d.Send(t, ask)
		if tt.polls && (poll.Certificate == nil || !poll.Certificate.Equal(cert)) ||
			!tt.polls && (poll.Status != sceptest.StatusFailure || !strings.Contains(poll.FailInfoText, "send the request again")) {
			t.Errorf("%s: the poll is answered %v", tt.name, poll)
		}
		if r := d.Send(t, m.Again()); r.Certificate == nil || !r.Certificate.Equal(cert) {
			t.Errorf("%s: the request, sent again, is answered %v", tt.name, r)
		}
	}
}
