package scep_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// A crowd are devices that all have to wait for approval.
type crowd struct {
	ca     *scep.Identity
	depot  scep.Depot
	now    atomic.Int64 // since begun
	begun  time.Time
	reason atomic.Value // of the last event
}

func newCrowd(t *testing.T, s scep.Depot) *crowd {
	c := &crowd{ca: sceptest.NewCA(t), depot: s, begun: time.Now()}
	c.reason.Store(scep.Reason(""))
	return c
}

func (c *crowd) handler(t *testing.T, limit int, profile string) *scep.Handler {
	t.Helper()
	told := func(_ context.Context, e scep.Event) { c.reason.Store(e.Reason) }
	h, err := scep.New(scep.Config{
		CA: c.ca, Depot: c.depot, Challenge: sceptest.Pend("x"), Profile: profile, Limits: scep.Limits{Pending: limit},
		Time: func() time.Time { return c.begun.Add(time.Duration(c.now.Load())) },
		Log:  slog.New(slog.DiscardHandler), Events: scep.Events{Waiting: told, Failed: told},
	})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// ask has a device send its request, and reports whether it waits; if not it must have been asked to
// come again.
func (c *crowd) ask(t *testing.T, h *scep.Handler, name string) (waits bool) {
	t.Helper()
	ra := c.ca.Certificate()
	d := newDevice(t, sceptest.RSA(1), name, "x")
	a := d.send(t, h, d.pkcsReq(t, ra), ra)
	if a.status != "3" && a.http != 503 {
		t.Errorf("%s: %v", name, a)
	}
	return a.status == "3"
}

func (c *crowd) stored(t *testing.T, state scep.State) int {
	t.Helper()
	all, err := c.depot.(scep.Lister).List(t.Context(), scep.Query{State: state})
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// TestLimitsPending fills the queue for approval. Who waits goes on waiting, others are told to come
// again and leave nothing behind, and get in when there is room.
func TestLimitsPending(t *testing.T) {
	for _, st := range stores {
		t.Run(st.name, func(t *testing.T) {
			t.Parallel()
			c := newCrowd(t, st.open(t))
			h, replica := c.handler(t, 3, ""), c.handler(t, 3, "")
			for i := range 3 {
				if !c.ask(t, h, fmt.Sprint("early ", i)) {
					t.Fatalf("%d do not wait together", i+1)
				}
			}
			for name, at := range map[string]*scep.Handler{"the same server": h, "a replica": replica} {
				if c.ask(t, at, "late") || c.reason.Load() != scep.ReasonBusy {
					t.Errorf("%s: let in, or for another reason: %v", name, c.reason.Load())
				}
				if !c.ask(t, at, "early 1") {
					t.Errorf("%s: who waits is sent away", name)
				}
			}
			if got := c.stored(t, 0); got != 3 {
				t.Fatalf("%d records, want 3", got)
			}
			if !c.ask(t, c.handler(t, 3, "another profile"), "late") || !c.ask(t, c.handler(t, -1, ""), "no limit") {
				t.Error("another profile is full too, or one without limit")
			}
			waiting, err := c.depot.(scep.Lister).List(t.Context(), scep.Query{Profile: new(string), State: scep.Pending})
			if err != nil || len(waiting) != 4 {
				t.Fatalf("%d wait, %v", len(waiting), err)
			}
			for i, rec := range waiting[:2] {
				if i == 0 {
					_, err = h.Approve(t.Context(), rec.ID, scep.Decision{})
				} else {
					err = replica.Deny(t.Context(), rec.ID, nil, scep.Decision{})
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			c.now.Add(int64(time.Hour)) // however long it took to count
			if !c.ask(t, h, "late") || c.ask(t, h, "too late") {
				t.Error("there is room for one, and for one only")
			}
		})
	}
}

// TestLimitsPendingExpired has no room but for those who have waited too long.
func TestLimitsPendingExpired(t *testing.T) {
	c := newCrowd(t, &depot.Memory{})
	h := c.handler(t, 4, "")
	for i := range 4 {
		if i == 2 {
			c.now.Add(int64(time.Hour))
		}
		if !c.ask(t, h, fmt.Sprint("early ", i)) {
			t.Fatal("not let in")
		}
	}
	c.now.Store(int64(30*24*time.Hour + time.Minute)) // too long for the first two
	for i, want := range []bool{true, true, false} {
		if got := c.ask(t, h, fmt.Sprint("late ", i)); got != want {
			t.Errorf("device %d waits: %v, want %v", i, got, want)
		}
	}
	if pending, denied := c.stored(t, scep.Pending), c.stored(t, scep.Denied); pending != 4 || denied != 2 {
		t.Errorf("%d wait and %d are denied, want 4 and 2", pending, denied)
	}
}

// TestLimitsPendingAtOnce has many come at once.
func TestLimitsPendingAtOnce(t *testing.T) {
	c := newCrowd(t, &depot.Memory{})
	h := c.handler(t, 5, "")
	var in atomic.Int32
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if c.ask(t, h, fmt.Sprint("device ", i)) {
				in.Add(1)
			}
		})
	}
	wg.Wait()
	if got := c.stored(t, scep.Pending); got != 5 || in.Load() != 5 {
		t.Errorf("%d records, %d wait; want 5", got, in.Load())
	}
}

// A lister is a depot whose List can fail.
type lister struct {
	*depot.Memory
	calls atomic.Int32
	err   error
}

func (l *lister) List(ctx context.Context, q scep.Query) ([]*scep.Record, error) {
	l.calls.Add(1)
	if l.err != nil {
		return nil, l.err
	}
	return l.Memory.List(ctx, q)
}

// TestLimitsPendingLister counts no more often than once a second, lets nobody in while it cannot
// count, and any number where a depot cannot be asked.
func TestLimitsPendingLister(t *testing.T) {
	l := &lister{Memory: &depot.Memory{}}
	c := newCrowd(t, l)
	h := c.handler(t, 0, "")
	for i := range 3 {
		if !c.ask(t, h, fmt.Sprint("device ", i)) {
			t.Error("not let in")
		}
	}
	if calls := l.calls.Load(); calls != 1 {
		t.Errorf("listed %d times for one second", calls)
	}
	c.now.Add(int64(time.Hour))
	l.err = errors.New("failover")
	if c.ask(t, h, "away") {
		t.Error("let in, although nobody knows how many wait")
	}
	l.err = nil
	if got := c.stored(t, 0); got != 3 {
		t.Errorf("%d records, want 3", got)
	}
	if !c.ask(t, h, "back") {
		t.Error("not let in when it can be counted again")
	}

	c = newCrowd(t, sceptest.Depot{Depot: &depot.Memory{}}) // hides its List
	h = c.handler(t, 1, "")
	for i := range 3 {
		if !c.ask(t, h, fmt.Sprint("device ", i)) {
			t.Error("not let in to a depot that is no Lister")
		}
	}
}

// A slow lister is a depot that takes a while to say that it cannot list.
type slowLister struct {
	*depot.Memory
	calls   atomic.Int32
	asked   chan struct{} // List has been called
	proceed chan struct{}
}

func (l *slowLister) List(context.Context, scep.Query) ([]*scep.Record, error) {
	l.calls.Add(1)
	l.asked <- struct{}{}
	<-l.proceed
	return nil, errors.New("hangs")
}

// TestLimitsPendingHangs has many wait for one who counts. When that fails all are told, and do not
// try one after the other, each as long as the depot takes.
func TestLimitsPendingHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &slowLister{Memory: &depot.Memory{}, asked: make(chan struct{}, 10), proceed: make(chan struct{})}
		c := newCrowd(t, l)
		h := c.handler(t, 0, "")
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				if c.ask(t, h, fmt.Sprint("device ", i)) {
					t.Error("let in, although nobody knows how many wait")
				}
			})
		}
		synctest.Wait() // for one that counts, and others that wait for it
		<-l.asked
		time.Sleep(time.Millisecond)
		close(l.proceed)
		wg.Wait()
		if calls := l.calls.Load(); calls != 1 {
			t.Errorf("listed %d times for those that came at once", calls)
		}
		if c.ask(t, h, "later") || l.calls.Load() != 2 {
			t.Errorf("listed %d times when another came", l.calls.Load())
		}
	})
}

// TestLimitsPendingAdmitted does not count where nobody has to wait.
func TestLimitsPendingAdmitted(t *testing.T) {
	l := &lister{Memory: &depot.Memory{}, err: errors.New("away")}
	h, _, ra := serve(t, func(c *scep.Config) { c.Depot, c.Limits.Pending = l, 1 })
	d := newDevice(t, sceptest.RSA(1), "admitted", "x")
	if a := d.send(t, h, d.pkcsReq(t, ra), ra); a.cert == nil || l.calls.Load() != 0 {
		t.Errorf("%v, listed %d times", a, l.calls.Load())
	}
}
