package depot

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// Retention says how long records are kept once they are over. A field that is zero keeps them
// for ever; otherwise it is a day at least, because retries of a request are told from new ones by
// its record. See [scep.PruneQuery] for what else counts.
type Retention struct {
	// Expired is how long after its end a certificate is remembered, whether it was revoked or
	// not: longer than Grace of [scep.Renewal], and as long as CRLs are to list it.
	Expired time.Duration

	// Denied is how long a request is remembered after it was refused by a person.
	Denied time.Duration

	// Abandoned is how long a request may wait for a person after it last changed: longer than
	// ApprovalWindow of [scep.Config], after which its device is told that it was denied. Where
	// [scep.Handler.Expire] is called, none waits longer than that, and Denied sees to it.
	Abandoned time.Duration

	// Time returns the current time; if nil, time.Now.
	Time func() time.Time
}

// Prune deletes from p all records whose time is over, in small steps between which others have
// their turn, and returns how many. It can be called again after an error, and by several
// processes at the same time; call it once a day or so.
func (r Retention) Prune(ctx context.Context, p scep.Pruner) (n int, err error) {
	if r.Time == nil {
		r.Time = time.Now
	}
	now := r.Time()
	var q scep.PruneQuery
	for _, f := range []struct {
		name   string
		keep   time.Duration
		before *time.Time
	}{{"Expired", r.Expired, &q.Expired}, {"Denied", r.Denied, &q.Denied}, {"Abandoned", r.Abandoned, &q.Abandoned}} {
		switch {
		case f.keep == 0:
		case f.keep < 24*time.Hour:
			return 0, fmt.Errorf("depot: Retention.%s is %v; use 24 hours or more, or 0 to keep records for ever", f.name, f.keep)
		default:
			*f.before = now.Add(-f.keep)
		}
	}
	if p == nil {
		return 0, errors.New("depot: nothing to prune: the Pruner is nil")
	}
	for {
		some, err := p.Prune(ctx, q)
		if n += some; err != nil || some == 0 {
			return n, err
		}
	}
}
