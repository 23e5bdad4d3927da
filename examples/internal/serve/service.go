package serve

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/scep"
)

// A service is the server with the keys of now.
type service struct {
	program Program
	options Options
	config  scep.Config // but for the keys

	scep.Switch
	keys   atomic.Pointer[Keys]
	opened []*Keys // all that were, oldest first; a request that is under way may use them
}

// open opens the keys, and serves with them from now on, if they are others.
func (s *service) open(ctx context.Context) error {
	keys, err := s.program.Keys(ctx, s.options)
	if err != nil {
		return err
	}
	if now := s.keys.Load(); now != nil && same(now, keys) {
		return keys.close()
	}
	c := s.config
	c.CA, c.RA, c.PastRA = keys.CA, keys.RA, keys.PastRA
	handler, err := scep.New(c)
	if err != nil {
		return errors.Join(err, keys.close())
	}
	s.opened = append(s.opened, keys)
	s.keys.Store(keys)
	s.Set(handler)
	return nil
}

// same reports whether a and b have the same RAs.
func same(a, b *Keys) bool {
	equal := func(a, b *scep.Identity) bool { return a.Certificate().Equal(b.Certificate()) }
	return equal(a.RA, b.RA) && slices.EqualFunc(a.PastRA, b.PastRA, equal)
}

// renew has a new RA take over long before the certificate of the one in use ends. It returns
// when ctx ends.
func (s *service) renew(ctx context.Context) {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.look(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// look opens the keys again, if the RA should be replaced. That makes a new one at first, which
// takes over a day later.
func (s *service) look(ctx context.Context) {
	keys := s.keys.Load()
	if keys.RA == nil {
		return
	}
	due, err := backend.RADue(keys.RA.Certificate(), keys.CA.Certificate(), backend.RAOptions{})
	if err == nil && due {
		err = s.open(ctx)
	}
	switch now := s.keys.Load(); {
	case err != nil:
		s.options.Log.Error("renewing the RA; next try in an hour", slog.Any("error", err))
	case now == keys:
	case now.RA.Certificate().Equal(keys.RA.Certificate()):
		s.options.Log.Info("a new RA has been made; it takes over in a day")
	default:
		s.options.Log.Info("a new RA has taken over; the one before still opens requests", slog.Time("until", now.RA.Certificate().NotAfter))
	}
}

// close closes the keys. Nothing may be under way any more.
func (s *service) close() (err error) {
	for _, k := range s.opened {
		err = errors.Join(err, k.close())
	}
	return err
}

// close closes the keys, if there is something to close.
func (k *Keys) close() error {
	if k.Close == nil {
		return nil
	}
	return k.Close()
}
