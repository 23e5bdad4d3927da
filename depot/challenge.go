package depot

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// memoryChallenges are the one-time challenges of a [Memory], under its mutex.
type memoryChallenges struct {
	all     map[scep.ID]*scep.OneTimeChallenge
	unspent map[string]int // by profile
	due     dueHeap        // one entry for each in all
}

// PutChallenge implements [scep.ChallengeStore].
func (m *Memory) PutChallenge(ctx context.Context, c *scep.OneTimeChallenge, now time.Time, limit int) error {
	if err := checkIDs(ctx, c.Hash); err != nil {
		return err
	}
	if c.SpentBy != "" {
		return errors.New("depot: a challenge that has been spent cannot be put")
	}
	kept := *c
	kept.Created = kept.Created.UTC().Truncate(time.Microsecond)
	kept.Expires = kept.Expires.UTC().Truncate(time.Microsecond)
	kept.Spent = time.Time{}

	m.mu.Lock()
	defer m.mu.Unlock()
	s := &m.challenges
	s.forget(now)
	if _, taken := s.all[kept.Hash]; taken {
		return scep.ErrExists
	}
	if limit > 0 && s.unspent[kept.Profile] >= limit {
		return scep.ErrLimit
	}
	if s.all == nil {
		s.all = make(map[scep.ID]*scep.OneTimeChallenge)
		s.unspent = make(map[string]int)
	}
	s.all[kept.Hash] = &kept
	s.unspent[kept.Profile]++
	heap.Push(&s.due, due{kept.Expires, kept.Hash})
	return nil
}

// GetChallenge implements [scep.ChallengeStore].
func (m *Memory) GetChallenge(ctx context.Context, hash scep.ID) (*scep.OneTimeChallenge, error) {
	if err := checkIDs(ctx, hash); err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	c, found := m.challenges.all[hash]
	if !found {
		return nil, scep.ErrNotFound
	}
	out := *c
	return &out, nil
}

// SpendChallenge implements [scep.ChallengeStore].
func (m *Memory) SpendChallenge(ctx context.Context, hash, by scep.ID, now time.Time) (scep.ID, error) {
	if err := checkIDs(ctx, hash, by); err != nil {
		return "", err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	c, found := m.challenges.all[hash]
	if !found {
		return "", scep.ErrNotFound
	}
	m.challenges.spend(c, by, now)
	return c.SpentBy, nil
}

// CreateSpending implements [scep.Spender].
func (m *Memory) CreateSpending(ctx context.Context, rec *scep.Record, challenge scep.ID, now time.Time) error {
	kept, err := keep(ctx, rec)
	if err != nil {
		return err
	}
	if err := checkIDs(ctx, challenge); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	c, found := m.challenges.all[challenge]
	_, taken := m.records[kept.ID]
	switch {
	case taken:
		return scep.ErrExists
	case !found:
		return scep.ErrNotFound
	case c.SpentBy != "" && c.SpentBy != kept.ID:
		return fmt.Errorf("%w: %s", scep.ErrSpent, c.SpentBy)
	}
	if err := m.create(kept); err != nil {
		return err
	}
	m.challenges.spend(c, kept.ID, now)
	rec.Version = 1
	return nil
}

// spend marks c as spent, unless it is.
func (s *memoryChallenges) spend(c *scep.OneTimeChallenge, by scep.ID, now time.Time) {
	if c.SpentBy != "" {
		return
	}
	c.SpentBy = by
	c.Spent = now.UTC().Truncate(time.Microsecond)
	s.left(c.Profile)
}

// forget drops the unspent challenges that have expired at now, and the spent ones that
// need no longer be remembered.
func (s *memoryChallenges) forget(now time.Time) {
	for len(s.due) > 0 && !s.due[0].at.After(now) {
		c := s.all[s.due[0].hash]
		if c.SpentBy != "" {
			if until := c.Spent.Add(scep.ChallengeMemory); until.After(now) {
				s.due[0].at = until
				heap.Fix(&s.due, 0)
				continue
			}
		} else {
			s.left(c.Profile)
		}
		delete(s.all, c.Hash)
		heap.Pop(&s.due)
	}
}

// left counts one unspent challenge less.
func (s *memoryChallenges) left(profile string) {
	if s.unspent[profile]--; s.unspent[profile] == 0 {
		delete(s.unspent, profile)
	}
}

// due says when to look at a challenge again, to forget it.
type due struct {
	at   time.Time
	hash scep.ID
}

// dueHeap has what is due first in front. It implements [heap.Interface].
type dueHeap []due

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h dueHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *dueHeap) Push(x any)        { *h = append(*h, x.(due)) }
func (h *dueHeap) Pop() any {
	last := len(*h) - 1
	d := (*h)[last]
	*h = (*h)[:last]
	return d
}
