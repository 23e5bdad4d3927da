package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/scepkit/scepkit/depot/transfer"
	"github.com/scepkit/scepkit/scep"
)

func (c *command) export(ctx context.Context, args []string) (err error) {
	from := c.flags.String("from", "", "database `file`")
	out := c.flags.String("out", "", "write to this new `file`")
	if err := c.parse(args, 0, "from", "out"); err != nil {
		return err
	}
	db, err := open(*from, false)
	if err != nil {
		return err
	}
	defer db.Close()
	file, err := os.OpenFile(*out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	total := 0
	progress := c.progress("exported")
	err = transfer.Export(ctx, db, file, func(n int) { total = n; progress(n) })
	if err == nil {
		err = file.Sync()
	}
	if closing := file.Close(); err == nil {
		err = closing
	}
	if err != nil {
		return errors.Join(err, os.Remove(*out)) // it is ours, and not whole
	}
	fmt.Fprintf(c.stdout, "exported: %d\n", total)
	return nil
}

func (c *command) load(ctx context.Context, args []string) error {
	into := c.flags.String("into", "", "database `file`")
	if err := c.parse(args, 1, "into"); err != nil {
		return err
	}
	file, err := os.Open(c.flags.Arg(0))
	if err != nil {
		return err
	}
	defer file.Close()
	db, err := open(*into, true)
	if err != nil {
		return err
	}
	n, skipped, err := transfer.Import(ctx, file, db, c.progress("done"))
	fmt.Fprintf(c.stdout, "imported: %d, there already: %d\n", n, skipped)
	return errors.Join(err, db.Close())
}

func (c *command) micromdm(ctx context.Context, args []string) error {
	from := c.flags.String("from", "", "`directory` of the micromdm/scep server, with index.txt")
	into := c.flags.String("into", "", "database `file`")
	ca := c.flags.String("ca", "", "PEM `file` with the CA's certificate")
	profile := c.flags.String("profile", "", "Config.Profile of the `handler` that is to know the devices")
	keep := c.flags.Bool("keep-replaced", false, "import what is revoked without a reason, as micromdm does when it issues another certificate\nto the same subject, as not revoked")
	if err := c.parse(args, 0, "from", "into", "ca"); err != nil {
		return err
	}
	cert, err := readCertificate(*ca)
	if err != nil {
		return err
	}
	if _, err := os.Stat(*from); err != nil {
		return err
	}
	db, err := open(*into, true)
	if err != nil {
		return err
	}
	n, skipped, err := transfer.ImportMicroMDM(ctx, *from, db, transfer.MicroMDM{
		CA: cert, Profile: *profile, KeepReplaced: *keep,
		Report: func(name string, err error) { fmt.Fprintf(c.stderr, "%q: %v\n", name, err) },
	}, c.progress("done"))
	fmt.Fprintf(c.stdout, "imported: %d, there already: %d\n", n, skipped)
	return errors.Join(err, db.Close())
}

func readCertificate(name string) (*x509.Certificate, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s has no certificate in PEM", name)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return cert, nil
}

func (c *command) prune(ctx context.Context, args []string) error {
	var expired, denied, abandoned age
	path := c.flags.String("db", "", "database `file`")
	c.flags.Var(&expired, "expired-for", "delete records of certificates that ended so `long` ago, as 90d or 36h; more than the grace of renewals")
	c.flags.Var(&denied, "denied-for", "delete requests that were refused so `long` ago")
	c.flags.Var(&abandoned, "abandoned-for", "delete requests that have waited so `long` for approval")
	dry := c.flags.Bool("dry-run", false, "delete nothing, count")
	if err := c.parse(args, 0, "db"); err != nil {
		return err
	}
	now := time.Now()
	q := scep.PruneQuery{Expired: expired.before(now), Denied: denied.before(now), Abandoned: abandoned.before(now)}
	if !expired.set && !denied.set && !abandoned.set {
		return c.wrong("give at least one of -expired-for, -denied-for and -abandoned-for")
	}
	db, err := open(*path, false)
	if err != nil {
		return err
	}
	defer db.Close()
	if *dry {
		q.DryRun, q.Limit = true, math.MaxInt32
		n, err := db.Prune(ctx, q)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.stdout, "to be deleted: %d\n", n)
		return nil
	}
	total, progress := 0, c.progress("deleted")
	for {
		n, err := db.Prune(ctx, q)
		total += n
		if n == 0 || err != nil {
			fmt.Fprintf(c.stdout, "deleted: %d\n", total)
			return err
		}
		progress(total)
	}
}

// An age is a flag: a duration, also in days.
type age struct {
	set      bool
	duration time.Duration
}

func (a *age) String() string {
	if !a.set {
		return ""
	}
	return a.duration.String()
}

func (a *age) Set(s string) (err error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		var n uint64
		n, err = strconv.ParseUint(days, 10, 16)
		a.duration = time.Duration(n) * 24 * time.Hour
	} else {
		a.duration, err = time.ParseDuration(s)
	}
	if err != nil || a.duration < 0 {
		return errors.New("want days or hours, as 90d or 36h")
	}
	a.set = true
	return nil
}

// before returns the time that is so long ago, or the zero time if the flag is not set.
func (a *age) before(now time.Time) time.Time {
	if !a.set {
		return time.Time{}
	}
	return now.Add(-a.duration)
}
