package transfer_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/scepkit/scepkit/depot/transfer"
	"github.com/scepkit/scepkit/scep"
)

// listing is a Lister of records that have an ID and a state only.
type listing struct {
	ids []scep.ID // in order

	mu            sync.Mutex
	calls         int
	now, together int
	fail          int   // from this call on, if not 0
	err           error // with that
	wrong         bool  // begin from the start when asked for what is in the middle
}

func newListing(n int, id func(int) scep.ID) *listing {
	l := &listing{}
	for i := range n {
		l.ids = append(l.ids, id(i))
	}
	slices.Sort(l.ids)
	return l
}

func (l *listing) List(ctx context.Context, q scep.Query) (all []*scep.Record, err error) {
	l.mu.Lock()
	l.calls++
	l.now++
	l.together = max(l.together, l.now)
	failing := l.fail != 0 && l.calls >= l.fail
	l.mu.Unlock()
	defer func() { l.mu.Lock(); l.now--; l.mu.Unlock() }()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if failing && l.err != nil {
		return nil, l.err
	}
	from, found := slices.BinarySearch(l.ids, q.After)
	if found {
		from++
	}
	if failing && l.wrong {
		from = 0
	}
	for ; from < len(l.ids) && len(all) < q.Limit; from++ {
		if state := stateAt(l.ids[from]); q.State == 0 || state == q.State {
			all = append(all, &scep.Record{ID: l.ids[from], State: state})
		}
	}
	return all, nil
}

func stateAt(id scep.ID) scep.State { return scep.Pending + scep.State(id[63]%5) }

// inOrder are IDs that are no hashes.
func inOrder(n int) scep.ID { return scep.ID(fmt.Sprintf("%064x", n)) }

// atEnd are those that are as high as they can be.
func atEnd(n int) scep.ID { return scep.ID(strings.Repeat("f", 58) + fmt.Sprintf("%06x", n)) }

// TestEach lists few records and many, and has all of them in order.
func TestEach(t *testing.T) {
	for name, ids := range map[string]func(int) scep.ID{"hashes": id, "in order": inOrder, "at the end": atEnd} {
		for _, n := range []int{0, 1, 127, 128, 129, 1023, 1500, 30_000} {
			for _, q := range []scep.Query{{}, {State: scep.Denied}, {After: id(7)}, {Limit: 3}, {After: scep.ID(strings.Repeat("f", 64))}} {
				l := newListing(n, ids)
				var want, got []scep.ID
				for _, id := range l.ids {
					if id > q.After && (q.State == 0 || q.State == stateAt(id)) {
						want = append(want, id)
					}
				}
				err := transfer.Each(t.Context(), l, q, func(all []*scep.Record) error {
					if len(all) == 0 {
						t.Error("an empty page")
					}
					for _, rec := range all {
						got = append(got, rec.ID)
					}
					return nil
				})
				if err != nil || !slices.Equal(got, want) {
					t.Errorf("%d %s, %+v: %d listed, want %d; %v", n, name, q, len(got), len(want), err)
				}
				if l.together > 6 || l.now != 0 {
					t.Errorf("%d were listing at once, and %d still are", l.together, l.now)
				}
				if most := len(want)/100 + len(want)/1000 + 10; l.calls > most {
					t.Errorf("%d %s, %+v: %d calls for %d records", n, name, q, l.calls, len(want))
				}
			}
		}
	}
}

func TestEachFails(t *testing.T) {
	broken := errors.New("broken")
	for name, l := range map[string]*listing{"at first": {fail: 1, err: broken}, "later": {fail: 30, err: broken}, "order": {fail: 30, wrong: true}} {
		l.ids = newListing(20_000, id).ids
		n := 0
		err := transfer.Each(t.Context(), l, scep.Query{}, func(all []*scep.Record) error { n += len(all); return nil })
		if err == nil || n >= 20_000 || l.err != nil && !errors.Is(err, broken) || l.wrong && !strings.Contains(err.Error(), "comes after") {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
	l := newListing(20_000, id)
	n := 0
	if err := transfer.Each(t.Context(), l, scep.Query{}, func(all []*scep.Record) error {
		if n += len(all); n > 5000 {
			return broken
		}
		return nil
	}); err != broken || l.now != 0 {
		t.Errorf("%v; %d are still listing", err, l.now)
	}
	ctx, cancel := context.WithCancel(t.Context())
	n = 0
	if err := transfer.Each(ctx, l, scep.Query{}, func(all []*scep.Record) error {
		if n += len(all); n > 5000 {
			cancel()
		}
		return nil
	}); !errors.Is(err, context.Canceled) || n >= 20_000 || l.now != 0 {
		t.Errorf("%d, %v; %d are still listing", n, err, l.now)
	}
}
