package status

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"log/slog"
	"sync"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// A watch finds out that the depot has other revocations than when the newest full CRL was made,
// because another process revoked something, or nobody called Renew.
type watch struct {
	seed maphash.Seed

	mu   sync.Mutex
	next time.Time // by the computer's clock: the depot is not asked before that
}

// seen is what the depot told of recent changes just before a full CRL was made.
type seen struct {
	query scep.RevocationQuery
	sum   uint64
}

// look asks the depot what q selects, and keeps a sum of it, whatever its order.
func (crl *CRL) look(ctx context.Context, q scep.RevocationQuery) (*seen, error) {
	s := &seen{query: q}
	var h maphash.Hash
	h.SetSeed(crl.watch.seed)
	var fixed [24]byte
	err := crl.c.Depot.Revocations(ctx, q, func(r scep.Revocation) error {
		binary.BigEndian.PutUint64(fixed[:], uint64(r.Revoked.UnixMicro()))
		binary.BigEndian.PutUint64(fixed[8:], uint64(r.Unrevoked.UnixMicro()))
		binary.BigEndian.PutUint64(fixed[16:], uint64(r.Reason))
		h.Reset()
		h.Write(fixed[:])
		if r.Serial != nil {
			h.Write(r.Serial.Bytes())
		}
		s.sum += h.Sum64()
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("status: listing recent revocations: %w", err)
	}
	return s, nil
}

// noticeEvery is how often the depot is asked what has changed, at most; if that, and making the
// CRL, takes long, less often.
const noticeEvery = time.Second

// noticeTime is how long a request waits for the depot to say what has changed.
const noticeTime = 5 * time.Second

// notice calls Renew if the depot has other revocations than the newest full CRL.
func (crl *CRL) notice(ctx context.Context) {
	if !crl.watch.mu.TryLock() { // somebody else does
		return
	}
	defer crl.watch.mu.Unlock()
	started := time.Now()
	if started.Before(crl.watch.next) {
		return
	}
	crl.full.mu.Lock()
	g := crl.full.newest
	crl.full.mu.Unlock()
	if g == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, noticeTime)
	defer cancel()
	now, err := crl.look(ctx, g.seen.query)
	if err != nil {
		crl.watch.next = time.Now().Add(retryAfter)
		crl.c.Log.LogAttrs(ctx, slog.LevelError, "CRL", slog.String("issuer", crl.signer.cert.Subject.String()), slog.String("error", err.Error()))
		return
	}
	ended := time.Now()
	crl.watch.next = ended.Add(max(noticeEvery, 4*(ended.Sub(started)+g.took)))
	if now.sum != g.seen.sum {
		crl.Renew()
	}
}
