package depot_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
)

// steps is a Pruner that has so many records left, of which it deletes seven at a time.
type steps struct {
	left int
	asks []scep.PruneQuery
	err  error
}

func (s *steps) Prune(_ context.Context, q scep.PruneQuery) (int, error) {
	s.asks = append(s.asks, q)
	n := min(7, s.left)
	s.left -= n
	if s.left == 0 && s.err != nil {
		return n, s.err
	}
	return n, nil
}

func TestRetention(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	day := 24 * time.Hour
	r := depot.Retention{Expired: 90 * day, Abandoned: day, Time: func() time.Time { return now }}
	p := &steps{left: 20}
	if n, err := r.Prune(t.Context(), p); n != 20 || err != nil || len(p.asks) != 4 {
		t.Errorf("%d in %d steps, %v", n, len(p.asks), err)
	}
	for _, q := range p.asks {
		if q != (scep.PruneQuery{Expired: now.Add(-90 * day), Abandoned: now.Add(-day)}) {
			t.Errorf("asked for %+v", q)
		}
	}
	broken := &steps{left: 20, err: errors.New("the disk is full")}
	if n, err := r.Prune(t.Context(), broken); n != 20 || !errors.Is(err, broken.err) {
		t.Errorf("an error: %d, %v", n, err)
	}
	for name, r := range map[string]depot.Retention{
		"Expired": {Expired: day - 1}, "Denied": {Denied: time.Hour}, "Abandoned": {Expired: day, Abandoned: -day},
	} {
		p := &steps{left: 20}
		if n, err := r.Prune(t.Context(), p); n != 0 || err == nil || !strings.Contains(err.Error(), "Retention."+name) || len(p.asks) > 0 {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
	if _, err := r.Prune(t.Context(), nil); err == nil {
		t.Error("no Pruner: no error")
	}
}

// A program that serves for years has its records pruned once a day, in a goroutine that it ends
// before it closes the depot.
func ExampleRetention() {
	db := new(depot.Memory) // or sqlite.Open, or postgres.Open
	keep := depot.Retention{Expired: 90 * 24 * time.Hour, Denied: 30 * 24 * time.Hour, Abandoned: 60 * 24 * time.Hour}
	prune := func(ctx context.Context) {
		for tick := time.NewTicker(24 * time.Hour); ; {
			if n, err := keep.Prune(ctx, db); err != nil && ctx.Err() == nil {
				fmt.Println("pruning:", err) // and again tomorrow
			} else {
				fmt.Println("pruned:", n)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				tick.Stop()
				return
			}
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); prune(ctx) }()
	// ... serve until the program is to end ...
	cancel()
	<-done
	// Output: pruned: 0
}
