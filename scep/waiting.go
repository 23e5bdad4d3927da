package scep

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// waiting bounds how many requests wait for approval. They are counted in the depot, because other
// replicas and people change them too; not each time, because that costs as much as they are many.
type waiting struct {
	turn    locks // of one, who counts: the others wait for that, and are told if it fails
	n       int   // how many there were when they were counted, and have been let in since
	counted time.Time
	good    time.Duration // how long n is good; 0: never counted
}

const (
	countEvery = time.Second
	countShare = 20  // of the time, at most one part in so many is spent on counting
	countPage  = 500 // so many records are listed at once
	expireFew  = 100 // when there is no room, at most so many are expired at once
)

var errQueueFull = errors.New("scep: Limits.Pending requests wait for approval")

// enqueue makes sure that there is room for one more request that waits for approval.
func (h *Handler) enqueue(ctx context.Context) error {
	l, ok := h.c.Depot.(Lister)
	if !ok || h.c.Limits.Pending < 0 {
		return nil
	}
	w := &h.waiting
	end, err := w.turn.lock(ctx, "")
	if err != nil {
		return err
	}
	var failure error
	defer func() { end(failure) }()
	if age := h.c.Time().Sub(w.counted); w.good == 0 || age < 0 || age >= w.good {
		begun := time.Now()
		n, err := h.countWaiting(ctx, l)
		if err != nil {
			err = fmt.Errorf("scep: counting what waits for approval: %w", err)
			if ctx.Err() == nil { // otherwise it is this client's own affair
				failure = err
			}
			return err
		}
		w.n, w.counted, w.good = n, h.c.Time(), max(countEvery, countShare*time.Since(begun))
	}
	if w.n >= h.c.Limits.Pending {
		return fmt.Errorf("%w (%d); approve or deny some, or raise it", errQueueFull, h.c.Limits.Pending)
	}
	w.n++
	return nil
}

// countWaiting returns how many requests wait for approval, or Limits.Pending if they are more. Where
// there is no room it expires some, if some have waited too long.
func (h *Handler) countWaiting(ctx context.Context, l Lister) (n int, err error) {
	limit := h.c.Limits.Pending
	q := Query{Profile: &h.c.Profile, State: Pending}
	var late []ID
	for n < limit {
		q.Limit = min(countPage, limit-n)
		page, err := l.List(ctx, q)
		if err != nil {
			return 0, err
		}
		if len(page) == 0 {
			return n, nil
		}
		n += len(page)
		q.After = page[len(page)-1].ID
		for _, rec := range page {
			if h.expired(rec) && len(late) < expireFew {
				late = append(late, rec.ID)
			}
		}
	}
	for _, id := range late {
		if _, err := h.expire(ctx, id); err != nil {
			return 0, err
		}
		n-- // by this or by somebody else
	}
	return n, nil
}
