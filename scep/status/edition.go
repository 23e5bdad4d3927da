package status

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"runtime"
	"sync"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// edition is the full CRL, or the delta CRL, in all its shards.
type edition struct {
	urls              []string // of the shards, or nil
	validity, refresh time.Duration

	mu     sync.Mutex
	newest *generation
	making *making
	wanted int       // how often Renew was called
	tried  time.Time // when it could not be made
	failed error     // why not
	past   []issued  // that delta CRLs may be for
}

// generation are the CRLs that were made together.
type generation struct {
	lists      [][]byte // DER, by shard
	number     *big.Int
	listed     time.Time // when the depot was asked
	this, next time.Time
	wanted     int           // edition.wanted when the depot was asked
	seen       *seen         // of the full CRL: how to tell that another one is due
	took       time.Duration // to make
}

// making is a generation on its way.
type making struct {
	done chan struct{} // closed when it has ended
	err  error
}

// retryAfter is how long after a failure another attempt is made.
const retryAfter = 10 * time.Second

// collect is after how many entries garbage is collected. By itself the runtime would wait until
// what the depot leaves behind is as much as the lists.
const collect = 1 << 16

// margin is by how much clocks may differ: what changed so long before a full CRL was made is in
// its delta CRLs all the same.
const margin = 10 * time.Minute

// current returns the generation to hand out. It makes it, if it is due and nobody else does.
func (crl *CRL) current(ctx context.Context, e *edition) (*generation, error) {
	ctx, cancel := context.WithTimeout(ctx, crl.c.Timeout)
	defer cancel()
	asked := -1 // what is wanted after that is for those who ask later
	for {
		now := crl.c.Time()
		e.mu.Lock()
		if asked < 0 {
			asked = e.wanted
		}
		g := e.newest
		back := g != nil && now.Before(g.this) // the clock was set back: the CRL is from the future
		usable := g != nil && now.Before(g.next)
		wanted := g == nil || g.wanted < asked || back
		due := wanted || !usable || !now.Before(g.listed.Add(e.refresh))
		if since := now.Sub(e.tried); due && e.failed != nil && since >= 0 && since < retryAfter {
			due, wanted = false, false // it would fail again
		}
		m := e.making
		switch {
		case usable && (!due || m != nil && !wanted):
			e.mu.Unlock()
			return g, nil
		case !due:
			err := e.failed
			e.mu.Unlock()
			return nil, err
		case m == nil:
			m = &making{done: make(chan struct{})}
			e.making = m
			seen := e.wanted
			e.mu.Unlock()
			crl.make(ctx, e, m, g, seen)
		default:
			e.mu.Unlock()
			select {
			case <-m.done:
			case <-ctx.Done():
				if usable {
					return g, nil
				}
				return nil, fmt.Errorf("status: waiting for a CRL: %w", context.Cause(ctx))
			}
		}
		if m.err != nil {
			if usable {
				return g, nil
			}
			return nil, m.err
		}
	}
}

// make makes the next generation. It ends with Timeout, not with the request that it is made for.
func (crl *CRL) make(ctx context.Context, e *edition, m *making, last *generation, wanted int) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), crl.c.Timeout)
	defer cancel()
	m.err = errors.New("status: making a CRL: panic")
	var next *generation
	defer func() {
		e.mu.Lock()
		e.making = nil
		if e.failed = m.err; m.err == nil {
			e.newest = next
			e.remember(next)
		} else {
			e.tried = crl.c.Time()
		}
		e.mu.Unlock()
		close(m.done)
	}()
	started := time.Now()
	next, m.err = crl.build(ctx, e, last)
	if m.err != nil {
		crl.c.Log.LogAttrs(ctx, slog.LevelError, "CRL", slog.String("issuer", crl.signer.cert.Subject.String()), slog.String("error", m.err.Error()))
		return
	}
	next.wanted, next.took = wanted, time.Since(started)
	size := 0
	for _, der := range next.lists {
		size += len(der)
	}
	crl.c.Log.LogAttrs(ctx, slog.LevelDebug, "CRL", slog.String("issuer", crl.signer.cert.Subject.String()), slog.String("number", next.number.String()),
		slog.Bool("delta", e == crl.delta), slog.Int("shards", len(next.lists)), slog.Int("bytes", size), slog.Duration("duration", next.took))
}

// build asks the depot once and signs every shard.
func (crl *CRL) build(ctx context.Context, e *edition, last *generation) (*generation, error) {
	cert := crl.signer.cert
	q := scep.RevocationQuery{Issuer: cert.RawSubject}
	t := &terms{issuer: cert.RawSubject, authorityKeyID: cert.SubjectKeyId, algorithm: crl.signer.algorithm}
	if e == crl.delta {
		if _, err := crl.current(ctx, crl.full); err != nil {
			return nil, err
		}
		base := crl.full.base()
		q.Since, t.base = base.listed.Add(-margin), base.number
	}
	now := crl.c.Time()
	q.NotAfter = now.Add(-crl.c.Keep)
	g := &generation{listed: now.Round(0), this: thisUpdate(now, cert, last)}
	if g.next = now.UTC().Truncate(time.Second).Add(e.validity); g.next.After(cert.NotAfter) {
		g.next = cert.NotAfter
	}
	if !now.Before(g.next) || now.Before(cert.NotBefore) {
		return nil, fmt.Errorf("status: certificate %q is valid from %s to %s", cert.Subject, cert.NotBefore.Format(time.RFC3339), cert.NotAfter.Format(time.RFC3339))
	}
	if e == crl.full {
		var err error
		if g.seen, err = crl.look(ctx, scep.RevocationQuery{Issuer: q.Issuer, NotAfter: q.NotAfter, Since: now.Add(-margin)}); err != nil {
			return nil, err
		}
	}
	g.number = crl.nextNumber()
	t.number, t.this, t.next = g.number, g.this, g.next

	lists := make([]*draft, crl.c.Shards)
	for i := range lists {
		size := 0
		if last != nil {
			size = len(last.lists[i]) + len(last.lists[i])/32 + 2048
		}
		lists[i] = newDraft(i, cert.RawSubject, size)
	}
	read := 0
	err := crl.c.Depot.Revocations(ctx, q, func(r scep.Revocation) error {
		if read++; read%collect == 0 {
			runtime.GC()
		}
		return lists[crl.shard(r.Serial)].add(r)
	})
	if err != nil {
		return nil, fmt.Errorf("status: listing revocations: %w", err)
	}
	for i, l := range lists {
		if crl.c.Shards > 1 { // both must be for the same certificates
			t.point = crl.full.urls[i]
		}
		if e == crl.full && crl.delta != nil {
			t.freshest = crl.delta.urls[i]
		}
		der, err := l.finish(ctx, crl.signer, t)
		if err != nil {
			return nil, err
		}
		g.lists = append(g.lists, der)
	}
	return g, nil
}
