package serve

import (
	"context"
	"errors"
	"log/slog"
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

// open opens the keys, and serves with them from now on.
func (s *service) open(ctx context.Context) error {
	keys, err := s.program.Keys(ctx, s.options)
	if err != nil {
		return err
	}
	s.opened = append(s.opened, keys)
	c := s.config
	c.CA, c.RA, c.PastRA = keys.CA, keys.RA, keys.PastRA
	handler, err := scep.New(c)
	if err != nil {
		return err
	}
	s.keys.Store(keys)
	s.Set(handler)
	return nil
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

// look opens the keys again, which makes a new RA, if that is due.
func (s *service) look(ctx context.Context) {
	keys := s.keys.Load()
	if keys.RA == nil {
		return
	}
	due, err := backend.RADue(keys.RA.Certificate(), keys.CA.Certificate(), backend.RAOptions{})
	if err == nil && due {
		err = s.open(ctx)
	}
	switch {
	case err != nil:
		s.options.Log.Error("renewing the RA; next try in an hour", slog.Any("error", err))
	case due:
		s.options.Log.Info("a new RA has taken over; the one before still opens requests",
			slog.Time("until", s.keys.Load().RA.Certificate().NotAfter))
	}
}

// close closes the keys. Nothing may be under way any more.
func (s *service) close() (err error) {
	for _, k := range s.opened {
		if k.Close != nil {
			err = errors.Join(err, k.Close())
		}
	}
	return err
}
