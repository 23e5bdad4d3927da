package transfer_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/depot/transfer"
	"github.com/scepkit/scepkit/scep"
)

// many is how many records TestMemory moves; ten million take as much memory.
const many = 200_000

// TestMemory imports, lists, exports and prunes many records, and has the process stay small.
func TestMemory(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("takes a while")
	}
	var peak atomic.Int64
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			peak.Store(max(peak.Load(), resident()))
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	start := time.Now()
	step := func(what string, n int) {
		t.Helper()
		t.Logf("%s %d: %v, %d MiB at most", what, n, time.Since(start).Round(time.Millisecond), peak.Load()>>20)
		if peak.Load() > 200<<20 {
			t.Errorf("%s takes %d MiB", what, peak.Load()>>20)
		}
		start = time.Now()
	}

	db := open(t)
	r, w := io.Pipe()
	go func() { w.CloseWithError(synthetic(w)) }()
	told := 0
	n, _, err := transfer.Import(t.Context(), r, db, func(n int) { told++ })
	if n != many || err != nil || told < 100 {
		t.Fatalf("%d, told %d times, %v", n, told, err)
	}
	step("importing", n)

	var count counter
	if err := transfer.Export(t.Context(), db, &count, nil); err != nil || count.lines != many+2 {
		t.Fatal(count, err)
	}
	step("exporting", many)

	q := scep.PruneQuery{Expired: record(0).Created, Limit: 1 << 30, DryRun: true}
	if n, err := db.Prune(t.Context(), q); n != many/2 || err != nil {
		t.Fatal(n, err)
	}
	step("looking for", many/2)
	q.Limit, q.DryRun = 0, false
	total := 0
	for {
		n, err := db.Prune(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		if total += n; n == 0 {
			break
		}
	}
	if total != many/2 {
		t.Fatal(total)
	}
	step("pruning", total)
}

// synthetic writes a file of many records.
func synthetic(w io.Writer) error {
	one := new(depot.Memory)
	if err := one.Create(context.Background(), record(1)); err != nil {
		return err
	}
	var file bytes.Buffer
	if err := transfer.Export(context.Background(), one, &file, nil); err != nil {
		return err
	}
	lines := strings.SplitAfter(file.String(), "\n")
	out := bufio.NewWriterSize(w, 1<<20)
	out.WriteString(lines[0])
	var fields map[string]any
	if err := json.Unmarshal([]byte(lines[1]), &fields); err != nil {
		return err
	}
	for _, large := range []string{"csr", "template", "certificate"} { // or most of the time is the disk's
		fields[large] = fields[large].(string)[:300]
	}
	for i := range many {
		rec := record(i)
		fields["id"], fields["transaction"], fields["serial"] = rec.ID, rec.Transaction, rec.Serial.Text(16)
		fields["not_after"] = rec.NotAfter
		data, err := json.Marshal(fields)
		if err != nil {
			return err
		}
		out.Write(append(data, '\n'))
	}
	fmt.Fprintf(out, "{\"end\":%d}\n", many)
	return out.Flush()
}

// counter counts lines.
type counter struct{ lines int }

func (c *counter) Write(p []byte) (int, error) {
	c.lines += bytes.Count(p, []byte("\n"))
	return len(p), nil
}

// resident is how much memory the process has.
func resident() int64 {
	data, _ := os.ReadFile("/proc/self/statm")
	var size, pages int64
	fmt.Sscan(string(data), &size, &pages)
	return pages * int64(os.Getpagesize())
}
