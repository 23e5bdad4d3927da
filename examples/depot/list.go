package main

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/scepkit/scepkit/depot/transfer"
	"github.com/scepkit/scepkit/scep"
)

func (c *command) list(ctx context.Context, args []string) error {
	where := c.database("db")
	state := c.flags.String("state", "", "only records in this `state`: pending, signing, issued, denied or revoked")
	profile := c.flags.String("profile", "", "only records of this Config.Profile, which may be empty: `name`")
	asJSON := c.flags.Bool("json", false, "print one JSON object a line")
	if err := c.parse(args, 0, "db"); err != nil {
		return err
	}
	var q scep.Query
	if *state != "" {
		if q.State = stateOf(*state); q.State == 0 {
			return c.wrong("-state is pending, signing, issued, denied or revoked")
		}
	}
	if c.given("profile") {
		q.Profile = profile
	}
	db, err := c.open(ctx, *where, false, patience)
	if err != nil {
		return err
	}
	defer db.Close()
	p := c.newProgress("listed")
	if isTerminal(c.stdout) {
		p.w = io.Discard // what is listed shows it
	}
	out := bufio.NewWriter(c.stdout)
	n := 0
	err = transfer.Each(ctx, db, q, func(all []*scep.Record) error {
		for _, rec := range all {
			if *asJSON {
				err = json.NewEncoder(out).Encode(describe(rec))
			} else {
				_, err = fmt.Fprintln(out, strings.Join(describe(rec).columns(), "\t"))
			}
			if err != nil {
				return err
			}
		}
		n += len(all)
		p.part(position(all[len(all)-1].ID))
		p.count(n)
		return out.Flush()
	})
	listed := p.end()
	if err != nil {
		fmt.Fprintf(c.stderr, "listed: %s, not all\n", listed)
	}
	return err
}

// given reports whether a flag is there, if only to be empty.
func (c *command) given(name string) (found bool) {
	c.flags.Visit(func(f *flag.Flag) { found = found || f.Name == name })
	return found
}

func stateOf(name string) scep.State {
	for s := scep.Pending; s <= scep.Revoked; s++ {
		if s.String() == name {
			return s
		}
	}
	return 0
}

// A description is what list prints of a record.
type description struct {
	ID       scep.ID   `json:"id"`
	State    string    `json:"state"`
	Profile  string    `json:"profile,omitempty"`
	Subject  string    `json:"subject,omitempty"`
	Serial   string    `json:"serial,omitempty"` // hexadecimal
	Created  time.Time `json:"created,omitzero"`
	NotAfter time.Time `json:"not_after,omitzero"`
	Revoked  time.Time `json:"revoked,omitzero"`
	Reason   string    `json:"revocation_reason,omitempty"`
	By       string    `json:"by,omitempty"`
	Remark   string    `json:"remark,omitempty"`
}

func describe(rec *scep.Record) *description {
	d := &description{
		ID: rec.ID, State: rec.State.String(), Profile: rec.Profile, Subject: subject(rec),
		Created: rec.Created.UTC(), NotAfter: rec.NotAfter.UTC(), Revoked: rec.Revoked.UTC(), By: rec.DecidedBy, Remark: rec.Remark,
	}
	if rec.Serial != nil {
		d.Serial = rec.Serial.Text(16)
	}
	if rec.State == scep.Revoked {
		d.Reason = scep.RevocationReason(rec.RevocationReason).String()
	}
	return d
}

// subject returns the name in the certificate, or what is nearest to it.
func subject(rec *scep.Record) string {
	for _, der := range [][]byte{rec.Certificate, rec.Template} {
		if cert, err := x509.ParseCertificate(der); err == nil {
			return cert.Subject.String()
		}
	}
	if csr, err := x509.ParseCertificateRequest(rec.CSR); err == nil {
		return csr.Subject.String()
	}
	return ""
}

// columns returns what is printed, with "-" for what is not there.
func (d *description) columns() []string {
	day := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.Format(time.RFC3339)
	}
	all := []string{string(d.ID), d.State, printable(d.Subject), d.Serial, day(d.Created), day(d.NotAfter), printable(d.By)}
	for i, s := range all {
		if s == "" {
			all[i] = "-"
		}
	}
	return all
}

// printable returns s, in quotes if something in it could play tricks on a terminal or in a table.
func printable(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar || r == '"' }) {
		return strconv.Quote(s)
	}
	return s
}
