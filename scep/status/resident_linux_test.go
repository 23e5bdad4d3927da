package status_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
	"github.com/scepkit/scepkit/scep/status"
)

// untidy leaves behind what a depot does for each certificate, which is more than is told of it.
type untidy struct {
	revocations
	left []byte
}

func (u *untidy) Revocations(ctx context.Context, q scep.RevocationQuery, yield func(scep.Revocation) error) error {
	return u.revocations.Revocations(ctx, q, func(r scep.Revocation) error {
		u.left = make([]byte, 512)
		return yield(r)
	})
}

// TestResident makes CRLs of a million certificates, three times, in a process of its own, and
// looks at the most memory that it had. Half of them come after the first time.
func TestResident(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("has other memory than the program has")
	}
	const n, most = 1_000_000, 200 << 20
	if shards := os.Getenv("STATUS_SHARDS"); shards != "" {
		c := status.CRLConfig{Issuer: sceptest.NewCA(t), URL: "http://pki.example/{n}.crl"}
		fmt.Sscan(shards, &c.Shards)
		depot := &untidy{revocations: revocations{at: time.Now(), n: n / 2}}
		c.Depot = depot
		crl := newCRL(t, c)
		for range 3 {
			crl.Renew()
			if err := crl.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			depot.n = n
		}
		state, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		_, line, _ := strings.Cut(string(state), "VmHWM:")
		fmt.Println("resident:", strings.Fields(line)[0])
		return
	}
	for _, shards := range []int{1, 64} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestResident$")
		cmd.Env = append(os.Environ(), fmt.Sprint("STATUS_SHARDS=", shards), "GOMEMLIMIT=off", "GOGC=100")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		_, line, found := strings.Cut(string(out), "resident: ")
		var size int
		if _, err := fmt.Sscan(line, &size); err != nil || !found {
			t.Fatalf("%v\n%s", err, out)
		}
		t.Logf("%d certificates in %d shards, again and again: %d MiB", n, shards, size>>10)
		if size<<10 > most {
			t.Errorf("%d MiB for %d shards, want at most %d", size>>10, shards, most>>20)
		}
	}
}
