package depot_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/depot/depottest"
	"github.com/scepkit/scepkit/scep"
)

func TestMemory(t *testing.T) {
	depottest.TestDepot(t, depottest.Harness{
		Open: func(*testing.T) scep.Depot { return new(depot.Memory) },
	})
}

// The zero Memory is ready. It also keeps one-time challenges.
func ExampleMemory() {
	records := new(depot.Memory)
	_ = scep.Config{Depot: records}

	all, err := records.List(context.Background(), scep.Query{})
	fmt.Println(len(all), err)
	// Output: 0 <nil>
}
