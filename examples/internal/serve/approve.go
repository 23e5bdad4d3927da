package serve

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// heldBack is a policy that waits for approval.
type heldBack struct{ *scep.Profile }

func (p heldBack) Template(ctx context.Context, req *scep.Request) (*x509.Certificate, error) {
	tmpl, err := p.Profile.Template(ctx, req)
	if err == nil && !req.Approved {
		err = scep.ErrPending
	}
	return tmpl, err
}

// approve approves each request that has waited long enough.
func approve(ctx context.Context, s *scep.Switch, l scep.Lister, hold time.Duration, log *slog.Logger) {
	tick := time.NewTicker(min(hold, time.Second/4))
	defer tick.Stop()
	decision := scep.Decision{By: "-hold", Remark: fmt.Sprintf("waited %v", hold)}
	failed := map[scep.ID]time.Time{} // when approving them last failed
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		var last scep.ID
		for {
			page, err := l.List(ctx, scep.Query{State: scep.Pending, After: last})
			if err != nil && ctx.Err() == nil {
				log.Error("listing requests that wait", slog.Any("error", err))
			}
			if len(page) == 0 {
				break
			}
			for _, rec := range page {
				if last = rec.ID; time.Since(rec.Created) < hold || time.Since(failed[rec.ID]) < time.Minute {
					continue
				}
				if _, err := s.Handler().Approve(ctx, rec.ID, decision); err != nil {
					failed[rec.ID] = time.Now()
					log.Error("approving", slog.String("record", string(rec.ID)), slog.Any("error", err))
				}
			}
		}
	}
}
