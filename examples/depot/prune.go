package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/scepkit/scepkit/scep"
)

func (c *command) prune(ctx context.Context, args []string) error {
	var expired, denied, abandoned age
	where := c.database("db")
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
	timeout := patience
	if *dry {
		timeout = countingPatience
	}
	db, err := c.open(ctx, *where, false, timeout)
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
	total, p := 0, c.newProgress("deleted")
	for {
		n, err := db.Prune(ctx, q)
		total += n
		p.count(total)
		if n == 0 || err != nil {
			p.end()
			fmt.Fprintf(c.stdout, "deleted: %d\n", total)
			return err
		}
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
