package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/depot/transfer"
	"github.com/scepkit/scepkit/scep"
)

// scanning is a Lister that can scan, and does not want to be listed.
type scanning struct {
	t     *testing.T
	ids   []scep.ID
	err   error // after them
	ended bool
}

func (s *scanning) List(context.Context, scep.Query) ([]*scep.Record, error) {
	s.t.Error("was listed")
	return nil, nil
}

func (s *scanning) Scan(ctx context.Context, yield func(all []*scep.Record, done float64) error) error {
	defer func() { s.ended = true }() // a data race if nobody waits for it
	for i, id := range s.ids {
		if err := yield([]*scep.Record{{ID: id}}, float64(i+1)/float64(len(s.ids))); err != nil {
			return err
		}
	}
	return s.err
}

// TestExportOrder exports in the order of the depot if it has one of its own, otherwise in that of
// the IDs.
func TestExportOrder(t *testing.T) {
	s := &scanning{t: t}
	l := newListing(300, id)
	for i := range l.ids {
		s.ids = append(s.ids, id(i))
	}
	for what, tt := range map[string]struct {
		from scep.Lister
		want []scep.ID
	}{"scanned": {s, s.ids}, "listed": {l, l.ids}} {
		var out bytes.Buffer
		told := 0
		if err := transfer.Export(t.Context(), tt.from, &out, func(n int) { told = n }); err != nil || told != 300 {
			t.Errorf("%s: told of %d, %v", what, told, err)
		}
		var got []scep.ID
		for line := range strings.Lines(out.String()) {
			if rest, ok := strings.CutPrefix(line, `{"id":"`); ok {
				got = append(got, scep.ID(rest[:64]))
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: not in order", what)
		}
	}
}

// bounded is a writer that calls f when it has taken more than so many bytes.
type bounded struct {
	left int
	f    func() error
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 {
		if err := b.f(); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// TestExportScanFails ends in the middle, whoever is the reason, and waits for the end of the scan.
func TestExportScanFails(t *testing.T) {
	var ids []scep.ID
	for i := range 5000 {
		ids = append(ids, id(i))
	}
	broken := errors.New("broken")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for what, tt := range map[string]struct {
		ctx  context.Context
		scan error
		out  *bounded
		want error
	}{
		"the depot":   {t.Context(), broken, &bounded{left: 1 << 30}, broken},
		"the writer":  {t.Context(), nil, &bounded{1 << 17, func() error { return broken }}, broken},
		"the context": {ctx, nil, &bounded{1 << 17, func() error { cancel(); return nil }}, context.Canceled},
	} {
		s := &scanning{t: t, ids: ids, err: tt.scan}
		if err := transfer.Export(tt.ctx, s, tt.out, nil); !errors.Is(err, tt.want) || !strings.HasPrefix(fmt.Sprint(err), "transfer: ") {
			t.Errorf("%s: %v, want %v", what, err, tt.want)
		}
		if !s.ended {
			t.Errorf("%s: the scan goes on", what)
		}
	}
}

// TestExportWhileWritten exports while records are made, changed and grow. What was there before is
// in the file, once, and the file can be imported.
func TestExportWhileWritten(t *testing.T) {
	const n = 2000
	db := open(t)
	for i := range n {
		if err := db.Create(t.Context(), record(i)); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	changed := 0
	err := transfer.Export(t.Context(), db, &out, func(int) {
		for i := range n {
			if i%97 != changed%97 {
				continue
			}
			rec, err := db.Get(t.Context(), id(i))
			if err != nil {
				t.Fatal(err)
			}
			rec.Template = bytes.Repeat([]byte{4}, 5000)
			if err := db.Update(t.Context(), rec); err != nil {
				t.Fatal(err)
			}
			if err := db.Create(t.Context(), record(n+changed*100+i)); err != nil && !errors.Is(err, scep.ErrExists) {
				t.Fatal(err)
			}
		}
		changed++
	})
	if err != nil || changed < 3 {
		t.Fatal(changed, err)
	}
	to := new(depot.Memory)
	if created, skipped, err := transfer.Import(t.Context(), &out, to, nil); created < n || skipped != 0 || err != nil {
		t.Fatalf("%d, %d skipped, %v", created, skipped, err)
	}
	for i := range n {
		if _, err := to.Get(t.Context(), id(i)); err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
	}
}
