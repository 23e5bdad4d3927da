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

// generation are the CRLs that are handed out together. Where one would say nothing new, and is not
// due either, it is that of the generation before.
type generation struct {
	lists  []*signedCRL  // by shard
	stamp                // of those that were made for this generation
	first  time.Time     // signedCRL.listed of the oldest
	until  time.Time     // signedCRL.next of the oldest
	wanted int           // edition.wanted when the depot was asked
	seen   *seen         // of the full CRL: how to tell that another one is due
	took   time.Duration // to make
}

// stamp says which CRL one is.
type stamp struct {
	number     *big.Int
	listed     time.Time // when the depot was asked
	this, next time.Time
}

// signedCRL is a CRL of a generation, or of one before.
type signedCRL struct {
	stamp
	der     []byte
	entries []byte   // in der
	base    *big.Int // of a delta CRL
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

// all stands for every shard.
const all = -1

// current returns the generation to hand out a shard of. It makes it, if it is due and nobody else does.
func (crl *CRL) current(ctx context.Context, e *edition, shard int) (*generation, error) {
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
		usable := g != nil && now.Before(g.end(shard))
		wanted := g == nil || g.wanted < asked || back
		due := wanted || !now.Before(g.until) || !now.Before(g.first.Add(e.refresh))
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
	size, signed := 0, 0
	for _, l := range next.lists {
		size += len(l.der)
		if l.number == next.number {
			signed++
		}
	}
	crl.c.Log.LogAttrs(ctx, slog.LevelDebug, "CRL", slog.String("issuer", crl.signer.cert.Subject.String()), slog.String("number", next.number.String()),
		slog.Bool("delta", e == crl.delta), slog.Int("shards", len(next.lists)), slog.Int("signed", signed), slog.Int("bytes", size), slog.Duration("duration", next.took))
}

// build asks the depot once and signs the shards that change or are due.
func (crl *CRL) build(ctx context.Context, e *edition, last *generation) (*generation, error) {
	cert := crl.signer.cert
	q := scep.RevocationQuery{Issuer: cert.RawSubject}
	t := &terms{issuer: cert.RawSubject, authorityKeyID: cert.SubjectKeyId, algorithm: crl.signer.algorithm}
	if e == crl.delta {
		if _, err := crl.current(ctx, crl.full, all); err != nil {
			return nil, err
		}
		base := crl.full.base()
		q.Since, t.base = base.listed.Add(-margin), base.number
	}
	now := crl.c.Time()
	q.NotAfter = now.Add(-crl.c.Keep)
	g := &generation{stamp: stamp{listed: now.Round(0), this: thisUpdate(now, cert, last)}}
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
			size = len(last.lists[i].der) + len(last.lists[i].der)/32 + 2048
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
	g.first, g.until = g.listed, g.next
	for i, d := range lists {
		if l := last.shard(i, now); l != nil && l.good(now, e.refresh, t.base) && d.holds(l.entries) {
			g.lists = append(g.lists, l)
			if l.listed.Before(g.first) {
				g.first = l.listed
			}
			if l.next.Before(g.until) {
				g.until = l.next
			}
			continue
		}
		if crl.c.Shards > 1 { // both must be for the same certificates
			t.point = crl.full.urls[i]
		}
		if e == crl.full && crl.delta != nil {
			t.freshest = crl.delta.urls[i]
		}
		l := &signedCRL{stamp: g.stamp, base: t.base}
		if l.der, l.entries, err = d.finish(ctx, crl.signer, t); err != nil {
			return nil, err
		}
		g.lists = append(g.lists, l)
	}
	return g, nil
}

// shard returns the CRL of a shard, or nil if there is none or it is the only one: that is made anew
// whenever it is asked for. If the clock was set back all are, as delta CRLs may begin anew.
func (g *generation) shard(i int, now time.Time) *signedCRL {
	if g == nil || len(g.lists) == 1 || now.Before(g.listed) {
		return nil
	}
	return g.lists[i]
}

// end returns until when a shard may be handed out.
func (g *generation) end(shard int) time.Time {
	if shard == all {
		return g.until
	}
	return g.lists[shard].next
}

// good reports whether l need not be made anew yet, if its entries are the same: a full CRL, or a
// delta CRL for this base. What will be due soon is made with what is due: otherwise shards that
// were signed one after another would have the depot asked for all of them because of each.
func (l *signedCRL) good(now time.Time, refresh time.Duration, base *big.Int) bool {
	return now.Before(l.listed.Add(refresh-refresh/8)) && now.Before(l.next) && (base == nil || base.Cmp(l.base) == 0)
}
