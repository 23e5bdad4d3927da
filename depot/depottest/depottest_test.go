package depottest

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
)

// TestFaults runs every clause over every fault: those that it breaks must fail, and no others.
func TestFaults(t *testing.T) {
	for i := range faults {
		tt := &faults[i]
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := Harness{
				Open: func(*testing.T) scep.Depot {
					return &broken{
						create: tt.b.create, update: tt.b.update, get: tt.b.get, latest: tt.b.latest, serial: tt.b.serial,
						list: tt.b.list, revoked: tt.b.revoked, prune: tt.b.prune, scan: tt.b.scan, load: tt.b.load, put: tt.b.put, find: tt.b.find, spend: tt.b.spend,
						both: tt.b.both,
					}
				},
				Reopen: func(t *testing.T, d scep.Depot) scep.Depot {
					if tt.b.forgets {
						return new(depot.Memory)
					}
					return d
				},
			}
			var failed []string
			for _, c := range clauses {
				err := c.run(t, h)
				var gap gap
				if err != nil && !errors.As(err, &gap) {
					failed = append(failed, c.name)
				}
			}
			want, also := strings.Fields(tt.want), strings.Fields(tt.also)
			for _, name := range want {
				if !slices.Contains(failed, name) {
					t.Errorf("clause %s did not find it; failed: %q", name, failed)
				}
			}
			for _, name := range failed {
				if !slices.Contains(want, name) && !slices.Contains(also, name) {
					t.Errorf("clause %s failed for no reason", name)
				}
			}
		})
	}
}

// TestEveryClauseIsSeenToFail holds the table of faults to the table of clauses.
func TestEveryClauseIsSeenToFail(t *testing.T) {
	seen := map[string]bool{}
	for i := range faults {
		for _, name := range strings.Fields(faults[i].want) {
			seen[name] = true
		}
	}
	for _, c := range clauses {
		if !seen[c.name] {
			t.Errorf("no fault makes clause %s fail", c.name)
		}
	}
}

// TestGaps has depots that can do no more than they must: what they do not offer is not held
// against them.
func TestGaps(t *testing.T) {
	memory := new(depot.Memory)
	for _, d := range []scep.Depot{
		struct{ scep.Depot }{memory},
		struct {
			scep.Depot
			scep.ChallengeStore
		}{memory, memory},
	} {
		h := Harness{Open: func(*testing.T) scep.Depot { return d }, Reopen: func(*testing.T, scep.Depot) scep.Depot { return d }}
		for _, c := range spendingClauses {
			var gap gap
			if err := c.run(t, h); !errors.As(err, &gap) {
				t.Errorf("%s over %T: %v", c.name, d, err)
			}
		}
	}
}
