package challenge_test

import (
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
