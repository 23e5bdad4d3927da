package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// A ledger has what the devices know: what they asked for, and what they were given. At the end
// it is held against the depot. It is also the store of the challenges that are made here, which
// it notes and passes on.
type ledger struct {
	scep.ChallengeStore

	mu         sync.Mutex
	requests   map[string]*entry // by transaction ID
	challenges []scep.ID
}

// An entry is one request of a device.
type entry struct {
	certificates map[[sha256.Size]byte]string // that were delivered, and their serial numbers
	refusal      error
}

func newLedger(s scep.ChallengeStore) *ledger {
	return &ledger{ChallengeStore: s, requests: map[string]*entry{}}
}

// PutChallenge notes a challenge that was made.
func (l *ledger) PutChallenge(ctx context.Context, c *scep.OneTimeChallenge, now time.Time, limit int) error {
	err := l.ChallengeStore.PutChallenge(ctx, c, now, limit)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.challenges = append(l.challenges, c.Hash) // also after an error: it may be there
	return err
}

// asked notes that a device has begun to ask.
func (l *ledger) asked(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests[id] = &entry{certificates: map[[sha256.Size]byte]string{}}
}

// delivered notes what a device was given, and returns whether that is the first it was given.
func (l *ledger) delivered(id string, cert *x509.Certificate) (first bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.requests[id]
	first = len(e.certificates) == 0
	e.certificates[sha256.Sum256(cert.Raw)] = cert.SerialNumber.Text(16)
	return first
}

// refused notes that a device was told no, which none here deserves.
func (l *ledger) refused(id string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests[id].refusal = err
}

// Losses are what must not happen, a line for each case.
type losses struct {
	missing    []string // certificates delivered that the depot does not have
	twice      []string // requests with two serial numbers
	signing    []string // records that nobody brought to an end
	orphans    []string // challenges that were spent without a record
	refused    []string // requests that were refused
	unanswered []string // requests that have no answer
}

// A depotToAudit is what a depot must be for an audit.
type depotToAudit interface {
	scep.Depot
	scep.Lister
	scep.ChallengeStore
}

// audit holds the ledger against the depot. Records of others are left alone.
func (l *ledger) audit(ctx context.Context, d depotToAudit) (*losses, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := &losses{}
	kept := map[[sha256.Size]byte]string{} // transaction IDs by certificate
	serials := map[string][]string{}       // of each transaction
	records := map[scep.ID]bool{}
	for q := (scep.Query{Limit: 1000}); ; {
		page, err := d.List(ctx, q)
		if err != nil {
			return nil, err
		}
		if len(page) == 0 {
			break
		}
		for _, rec := range page {
			q.After = rec.ID
			records[rec.ID] = true
			if l.requests[rec.TransactionID] == nil {
				continue
			}
			switch rec.State {
			case scep.Signing:
				out.signing = append(out.signing, "record "+string(rec.ID))
			case scep.Issued:
				kept[sha256.Sum256(rec.Certificate)] = rec.TransactionID
			}
			serials[rec.TransactionID] = append(serials[rec.TransactionID], rec.Serial.Text(16))
		}
	}
	for id, e := range l.requests {
		all := serials[id]
		for sum, serial := range e.certificates {
			if kept[sum] != id {
				out.missing = append(out.missing, "certificate with serial number "+serial)
			}
			all = append(all, serial)
		}
		slices.Sort(all)
		if all = slices.Compact(all); len(all) > 1 {
			out.twice = append(out.twice, fmt.Sprintf("transaction %s: %s", id, all))
		}
		switch {
		case e.refusal != nil:
			out.refused = append(out.refused, fmt.Sprintf("transaction %s: %v", id, e.refusal))
		case len(e.certificates) == 0:
			out.unanswered = append(out.unanswered, "transaction "+id)
		}
	}
	for _, hash := range l.challenges {
		c, err := d.GetChallenge(ctx, hash)
		if errors.Is(err, scep.ErrNotFound) {
			continue // it was never stored, and nobody has it
		}
		if err != nil {
			return nil, err
		}
		if c.SpentBy != "" && !records[c.SpentBy] {
			out.orphans = append(out.orphans, "challenge spent by record "+string(c.SpentBy))
		}
	}
	return out, nil
}
