package backendtest

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// TestFaults runs every clause over every fault: those that it breaks must fail, and no others.
func TestFaults(t *testing.T) {
	for i := range faults {
		f := &faults[i]
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			h := f.harness()
			var failed []string
			for _, c := range clauses {
				err := c.run(t, h, 3*time.Second)
				var gap gap
				if err != nil && !errors.As(err, &gap) {
					t.Logf("%s: %v", c.name, err)
					failed = append(failed, c.name)
				}
			}
			want := strings.Fields(f.want)
			for _, name := range want {
				if !slices.Contains(failed, name) {
					t.Errorf("clause %s did not find it; failed: %q", name, failed)
				}
			}
			for _, name := range failed {
				if !slices.Contains(want, name) {
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
		if c.contract == "" || c.check == nil {
			t.Errorf("clause %s is not whole", c.name)
		}
	}
}

// TestIdentity itself, with and without what a harness may leave out.
func TestWhole(t *testing.T) {
	h := (&fault{}).harness()
	TestIdentity(t, h)
	TestIdentity(t, Harness{Open: h.Open})
	TestIdentity(t, (&fault{ec: true}).harness())
}

// A harness that ends the test, and identities that are none, fail and do not hang.
func TestHarness(t *testing.T) {
	h := (&fault{}).harness()
	good := h.Open
	if err := clauses[0].run(t, Harness{Open: (&fault{nothing: true}).harness().Open}, promptly); err == nil {
		t.Error("no identity: no error")
	}
	c := clause{name: "x", check: deviceClauses[2].check}
	opened := 0
	t.Run("ends", func(t *testing.T) {
		err := c.run(t, Harness{Open: func(t *testing.T) *scep.Identity {
			if opened++; opened > 1 {
				t.SkipNow()
			}
			return good(t)
		}}, promptly)
		if err == nil || !strings.Contains(err.Error(), "the harness ended the test") {
			t.Errorf("got %v", err)
		}
	})
}
