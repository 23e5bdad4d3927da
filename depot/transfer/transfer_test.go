package transfer_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/depot/sqlite"
	"github.com/scepkit/scepkit/depot/transfer"
	"github.com/scepkit/scepkit/scep"
)

func open(t *testing.T) *sqlite.DB {
	t.Helper()
	db, err := sqlite.Open(filepath.Join(t.TempDir(), "scep.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func id(n int) scep.ID {
	sum := sha256.Sum256(fmt.Append(nil, n))
	return scep.ID(hex.EncodeToString(sum[:]))
}

// record returns record n, that is expired if n is odd.
func record(n int) *scep.Record {
	at := time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)
	return &scep.Record{
		ID: id(n), Transaction: id(-n), TransactionID: fmt.Sprint(n), State: scep.Issued, RemoteAddr: "192.0.2.1:1234",
		CSR: bytes.Repeat([]byte{1}, 700), Issuer: []byte("issuer"), Serial: new(big.Int).SetBytes([]byte(id(n))[:20]),
		Template: bytes.Repeat([]byte{2}, 800), Certificate: bytes.Repeat([]byte{3}, 1000),
		NotAfter: at.AddDate(0, 1-n%2*2, 0), Created: at, Changed: at,
	}
}

// odd returns records as they are seldom.
func odd() []*scep.Record {
	var all []*scep.Record
	for i, s := range []string{"", "\xff\xfe", "a\x00b", "\xed\xa0\x80", "ü 例 \u2028 <&>\"\\", strings.Repeat("x", 100000)} {
		rec := record(1000 + i)
		rec.Profile, rec.TransactionID, rec.RemoteAddr, rec.Via, rec.Reason, rec.DecidedBy, rec.Remark = s, s, s, s, s, s, s
		rec.State = scep.Pending + scep.State(i%5)
		all = append(all, rec)
	}
	for i, serial := range []*big.Int{nil, big.NewInt(0), big.NewInt(-1), big.NewInt(1), new(big.Int).Lsh(big.NewInt(1), 159), new(big.Int).Lsh(big.NewInt(-1), 100)} {
		rec := record(2000 + i)
		rec.Serial = serial
		rec.RenewedBy, rec.Renews = []scep.ID{id(1), id(2)}, id(3)
		rec.FailInfo, rec.Generation, rec.Unconfirmed = scep.BadTime, i, i%2 == 0
		rec.NotAfter = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
		rec.Revoked, rec.RevocationReason, rec.Unrevoked = rec.Created, 6, rec.Changed
		all = append(all, rec)
	}
	return append(all, &scep.Record{ID: id(3000), Transaction: id(3000)})
}

func fill(t *testing.T, to scep.Depot, all []*scep.Record) {
	t.Helper()
	for _, rec := range all {
		if err := to.Create(t.Context(), rec.Clone()); err != nil {
			t.Fatal(err)
		}
	}
}

func export(t *testing.T, from scep.Lister) string {
	t.Helper()
	var out bytes.Buffer
	if err := transfer.Export(t.Context(), from, &out, nil); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// sameLines reports whether two files have the same records, in whatever order.
func sameLines(a, b string) bool {
	x, y := strings.SplitAfter(a, "\n"), strings.SplitAfter(b, "\n")
	slices.Sort(x)
	slices.Sort(y)
	return slices.Equal(x, y)
}

func TestRoundTrip(t *testing.T) {
	all := odd()
	for i := range 500 {
		all = append(all, record(i))
	}
	first, second, third := new(depot.Memory), open(t), new(depot.Memory)
	fill(t, first, all)
	data, told := export(t, first), 0
	if n, skipped, err := transfer.Import(t.Context(), strings.NewReader(data), second, func(n int) { told = n }); n != len(all) || skipped != 0 || err != nil || told != n {
		t.Fatalf("%d, %d skipped, told %d, %v; want %d", n, skipped, told, err, len(all))
	}
	if again := export(t, second); !sameLines(again, data) {
		t.Error("what SQLite exports is not what Memory did")
	}
	if n, _, err := transfer.Import(t.Context(), strings.NewReader(export(t, second)), third, nil); n != len(all) || err != nil {
		t.Fatal(n, err)
	}
	for _, want := range all {
		got, err := third.Get(t.Context(), want.ID)
		if err != nil {
			t.Fatal(err)
		}
		want.Version = 1
		if !reflect.DeepEqual(fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want)) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	}
	if n, skipped, err := transfer.Import(t.Context(), strings.NewReader(data), second, nil); n != 0 || skipped != len(all) || err != nil {
		t.Errorf("again: %d, %d skipped, %v; want %d skipped", n, skipped, err, len(all))
	}
}

func TestImportConflicts(t *testing.T) {
	from := new(depot.Memory)
	fill(t, from, []*scep.Record{record(1), record(2)})
	data := export(t, from)

	changed := record(1)
	changed.Reason = "another"
	to := open(t)
	fill(t, to, []*scep.Record{changed})
	_, _, err := transfer.Import(t.Context(), strings.NewReader(data), to, nil)
	if !errors.Is(err, scep.ErrExists) || !strings.Contains(err.Error(), string(changed.ID)) || !strings.Contains(err.Error(), "another reason") {
		t.Errorf("another record of the ID: %v", err)
	}

	other := record(3)
	other.Serial = record(1).Serial
	to = open(t)
	fill(t, to, []*scep.Record{other})
	_, _, err = transfer.Import(t.Context(), strings.NewReader(data), to, nil)
	if !errors.Is(err, scep.ErrExists) || !strings.Contains(err.Error(), string(record(1).ID)) || !strings.Contains(err.Error(), string(other.ID)) {
		t.Errorf("another record of the serial number: %v", err)
	}
}

func TestImportRefuses(t *testing.T) {
	from := new(depot.Memory)
	fill(t, from, []*scep.Record{record(1), record(2)})
	data := export(t, from)
	lines := strings.SplitAfter(data, "\n")
	if len(lines) != 5 {
		t.Fatalf("%d lines", len(lines))
	}
	for name, tt := range map[string]struct{ data, want string }{
		"empty":         {"", "no file of scepkit records"},
		"another":       {"hello\n", "no file of scepkit records"},
		"newer":         {strings.Replace(data, `"version":1`, `"version":2`, 1), "newer version"},
		"no version":    {strings.Replace(data, `"version":1`, `"version":0`, 1), "no file of scepkit records"},
		"cut off":       {strings.Join(lines[:3], ""), "cut off"},
		"cut in a line": {data[:len(data)-len(lines[3])-10], "line 3 is not whole"},
		"a line lost":   {lines[0] + lines[1] + lines[3], "should be 2 records"},
		"goes on":       {data + lines[1], "comes after the last"},
		"unknown field": {strings.Replace(data, `"state"`, `"more":1,"state"`, 1), "more"},
		"state":         {strings.Replace(data, `"issued"`, `"odd"`, 1), "no state"},
		"renews":        {strings.Replace(data, `"state"`, `"renews":"..","state"`, 1), "not an ID"},
		"serial":        {strings.Replace(data, `"serial":"`, `"serial":"x`, 1), "serial number"},
		"ID":            {strings.Replace(data, `"id":"`, `"id":"..`, 1), "not an ID"},
		"blank line":    {lines[0] + "\n" + strings.Join(lines[1:], ""), "line 2"},
		"two in one":    {lines[0] + strings.TrimSpace(lines[1]) + lines[2] + lines[3], "more than one"},
		"long line":     {lines[0] + strings.Repeat(" ", 9<<20) + data, "longer than"},
	} {
		if _, _, err := transfer.Import(t.Context(), strings.NewReader(tt.data), new(depot.Memory), nil); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", name, err, tt.want)
		}
	}
}

// What went through Windows is as good as before.
func TestImportWindows(t *testing.T) {
	from := new(depot.Memory)
	fill(t, from, []*scep.Record{record(1), record(2)})
	data := strings.ReplaceAll(export(t, from)+"\n", "\n", "\r\n")
	if n, skipped, err := transfer.Import(t.Context(), strings.NewReader(data), new(depot.Memory), nil); n != 2 || skipped != 0 || err != nil {
		t.Errorf("%d, %d skipped, %v", n, skipped, err)
	}
}

// failing is a depot whose Create fails after a while, now and then having done it all the same, and
// whose Load does.
type failing struct {
	depot.Memory
	left  chan struct{}
	loads atomic.Int32
}

var errDisk = errors.New("the disk is full")

func (f *failing) Create(ctx context.Context, rec *scep.Record) error {
	select {
	case <-f.left:
		return f.Memory.Create(ctx, rec)
	default:
		if rec.ID[0] < '4' {
			f.Memory.Create(ctx, rec)
		}
		return errDisk
	}
}

func (f *failing) Load(ctx context.Context, recs []*scep.Record) error {
	f.loads.Add(1)
	for range recs {
		select {
		case <-f.left:
		default:
			if recs[0].ID[0] < '8' {
				f.Memory.Load(ctx, recs)
			}
			return errDisk
		}
	}
	return f.Memory.Load(ctx, recs)
}

// An import that was interrupted is taken up again, whether the depot takes many records at once or
// one by one.
func TestImportResumed(t *testing.T) {
	for _, many := range []bool{false, true} {
		t.Run(fmt.Sprint("many=", many), func(t *testing.T) {
			f := &failing{left: make(chan struct{}, 300)}
			var to interface {
				scep.Depot
				scep.Lister
			} = f
			if !many {
				to = struct { // is no scep.Loader
					scep.Depot
					scep.Lister
				}{f, f}
			}
			testImportResumed(t, f, to)
			if (f.loads.Load() > 0) != many {
				t.Errorf("Load was called %d times", f.loads.Load())
			}
		})
	}
}

func testImportResumed(t *testing.T, f *failing, to interface {
	scep.Depot
	scep.Lister
}) {
	from := new(depot.Memory)
	for i := range 700 {
		fill(t, from, []*scep.Record{record(i)})
	}
	data := export(t, from)
	sum := 0
	for range 3 {
		for range 300 {
			select {
			case f.left <- struct{}{}:
			default:
			}
		}
		n, skipped, err := transfer.Import(t.Context(), strings.NewReader(data), to, nil)
		if sum += n; err == nil {
			if sum > 700 || n+skipped != 700 {
				t.Errorf("%d in all, %d and %d skipped in the end", sum, n, skipped)
			}
			break
		}
		if !errors.Is(err, errDisk) {
			t.Fatal(err)
		}
		f.left = make(chan struct{}, 2000)
		for range 2000 {
			f.left <- struct{}{}
		}
	}
	if !sameLines(export(t, to), data) {
		t.Error("what came is not what went")
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := transfer.Import(ctx, strings.NewReader(data), new(depot.Memory), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
}

// A writer that fails is an error.
func TestExportFails(t *testing.T) {
	from := new(depot.Memory)
	fill(t, from, []*scep.Record{record(1)})
	full, err := os.Open(os.DevNull) // which cannot be written to
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	if err := transfer.Export(t.Context(), from, full, nil); err == nil {
		t.Error("no error")
	}
	rec := record(2)
	rec.State = 77
	fill(t, from, []*scep.Record{rec})
	if err := transfer.Export(t.Context(), from, new(bytes.Buffer), nil); err == nil || !strings.Contains(err.Error(), string(rec.ID)) {
		t.Errorf("a state that is none: %v", err)
	}
}
