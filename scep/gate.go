package scep

import (
	"context"
	"sync"
)

// A gate lets so many callers do something at once; the others wait in order of arrival.
type gate chan struct{}

func newGate(n int) gate { return make(gate, n) }

// do calls f when it is the caller's turn, unless ctx ends before.
func (g gate) do(ctx context.Context, f func() error) error {
	select {
	case g <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-g }()
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	return f()
}

// locks are mutexes by name, for requests that this process would otherwise work on twice
// at the same time. That one request is answered once does not rest on them: other
// processes know nothing of them.
type locks struct {
	mu   sync.Mutex
	held map[ID]*lock
}

type lock struct {
	turn    chan struct{} // holds a token while nobody works; closed when the work failed
	failure error         // why, for those who waited
	waiters int
}

// lock waits for its turn with id and returns the func that ends it, with the error with which
// the work failed for all who wait for it, or nil: they would fail in the same way, one after the
// other, each as late as the depot is slow to say that it is away.
func (l *locks) lock(ctx context.Context, id ID) (unlock func(failure error), err error) {
	l.mu.Lock()
	if l.held == nil {
		l.held = make(map[ID]*lock)
	}
	k := l.held[id]
	if k == nil {
		k = &lock{turn: make(chan struct{}, 1)}
		k.turn <- struct{}{}
		l.held[id] = k
	}
	k.waiters++
	l.mu.Unlock()

	leave := func(failure error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if failure != nil {
			k.failure = failure
			close(k.turn)
		}
		if k.waiters--; (k.waiters == 0 || failure != nil) && l.held[id] == k {
			delete(l.held, id)
		}
	}
	select {
	case _, ok := <-k.turn:
		if !ok {
			leave(nil)
			return nil, k.failure
		}
		return func(failure error) {
			if failure == nil {
				k.turn <- struct{}{}
			}
			leave(failure)
		}, nil
	case <-ctx.Done():
		leave(nil)
		return nil, context.Cause(ctx)
	}
}
