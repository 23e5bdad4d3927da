package transfer_test

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/depot/transfer"
)

// FuzzImport has what is imported be exported, and imported again, without a difference.
func FuzzImport(f *testing.F) {
	ctx := context.Background()
	from := new(depot.Memory)
	for _, rec := range odd() {
		if len(rec.Reason) < 1000 {
			from.Create(ctx, rec)
		}
	}
	var whole bytes.Buffer
	if err := transfer.Export(ctx, from, &whole, nil); err != nil {
		f.Fatal(err)
	}
	lines := strings.SplitAfter(whole.String(), "\n")
	f.Add(whole.String())
	for _, l := range lines[1 : len(lines)-2] {
		f.Add(lines[0] + l + `{"end":1}`)
	}
	f.Fuzz(func(t *testing.T, data string) {
		first, second := new(depot.Memory), new(depot.Memory)
		n, skipped, err := transfer.Import(ctx, strings.NewReader(data), first, nil)
		if err != nil {
			return
		}
		var once, twice bytes.Buffer
		if err := transfer.Export(ctx, first, &once, nil); err != nil {
			t.Fatal(err)
		}
		m, again, err := transfer.Import(ctx, bytes.NewReader(once.Bytes()), second, nil)
		if m != n || again != 0 || err != nil {
			t.Fatalf("%d and %d skipped, then %d and %d skipped, %v", n, skipped, m, again, err)
		}
		if err := transfer.Export(ctx, second, &twice, nil); err != nil || !bytes.Equal(once.Bytes(), twice.Bytes()) {
			t.Fatalf("%v\n%s\n%s", err, once.Bytes(), twice.Bytes())
		}
	})
}
