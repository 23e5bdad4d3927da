package status

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"slices"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// single is the answer for one certificate.
type single struct {
	certID  []byte // DER, as it came
	serial  *big.Int
	status  byte // 0 good, 1 revoked, 2 unknown
	revoked time.Time
	reason  scep.RevocationReason
	record  scep.ID // empty if there is none
	version int64
	cert    []byte // DER, of good
}

// look asks the depot.
func (o *OCSP) look(ctx context.Context, id *certID) (*single, error) {
	s := &single{certID: id.raw, serial: id.serial, status: 2}
	if !o.ours(id) {
		return s, nil
	}
	rec, err := o.c.Depot.GetSerial(ctx, o.c.Issuer.RawSubject, id.serial)
	if errors.Is(err, scep.ErrNotFound) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("status: looking up certificate %x: %w", id.serial, err)
	}
	s.record, s.version = rec.ID, rec.Version
	switch rec.State {
	case scep.Issued:
		s.status, s.cert = 0, rec.Certificate
	case scep.Revoked:
		s.status, s.revoked, s.reason = 1, rec.Revoked, scep.RevocationReason(rec.RevocationReason)
	}
	return s, nil
}

// vouch makes sure that what is called good was issued: a row that somebody wrote is not enough.
func (o *OCSP) vouch(s *single) {
	if s.status != 0 {
		return
	}
	cert, err := x509.ParseCertificate(s.cert)
	if err != nil || cert.SerialNumber.Cmp(s.serial) != 0 || cert.CheckSignatureFrom(o.c.Issuer) != nil {
		s.status = 2
	}
}

// ours reports whether a request means our issuer.
func (o *OCSP) ours(id *certID) bool {
	return slices.ContainsFunc(o.issuer, func(h issuerHash) bool {
		return h.algorithm == id.algorithm && bytes.Equal(h.name, id.name) && bytes.Equal(h.key, id.key)
	})
}

// issuerHash is an issuer as a CertID has it.
type issuerHash struct {
	algorithm crypto.Hash
	name, key []byte
}

func hashesOf(name, key []byte) (all []issuerHash) {
	for _, algorithm := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		sum := func(b []byte) []byte {
			h := algorithm.New()
			h.Write(b)
			return h.Sum(nil)
		}
		all = append(all, issuerHash{algorithm, sum(name), sum(key)})
	}
	return all
}

// an answer is a signed OCSPResponse.
type answer struct {
	der        []byte
	this, next time.Time
	signed     time.Time
	known      bool // no certificate in it is unknown
	record     scep.ID
	version    int64
	line       *int // of who signed it
}

// renew is when an answer is signed anew.
func (a *answer) renew() time.Time { return a.signed.Add(a.next.Sub(a.signed) / 2) }

// flightKey names an answer that is being signed.
type flightKey struct {
	certID  string
	record  scep.ID
	version int64
	line    *int
}

// flight is an answer on its way, for all who ask for it meanwhile.
type flight struct {
	done chan struct{} // closed when it has ended
	a    *answer
	err  error
}

// errExpired says that the responder's certificate has come to its end.
var errExpired = errors.New("renew it and call OCSP.Replace, or set OCSPConfig.Renew")

// answer returns the answer to a request, perhaps one that was signed before.
func (o *OCSP) answer(ctx context.Context, q *request) (*answer, error) {
	ctx, cancel := context.WithTimeout(ctx, o.c.Timeout)
	defer cancel()
	if o.c.NoNonce {
		q.nonce = nil
	}
	var all []*single
	ours := false
	for i := range q.ids {
		s, err := o.look(ctx, &q.ids[i])
		if err != nil {
			return nil, err
		}
		ours = ours || o.ours(&q.ids[i])
		all = append(all, s)
	}
	if !ours {
		return nil, errUnauthorized
	}
	by, err := o.signs(ctx)
	if err != nil {
		return nil, err
	}
	if q.nonce == nil && len(all) == 1 && all[0].record != "" {
		return o.shared(ctx, by, all[0])
	}
	return o.sign(ctx, by, all, q.nonce, true)
}

// shared returns an answer that is good for all who ask about this certificate. One of them has it
// signed.
func (o *OCSP) shared(ctx context.Context, by *responder, s *single) (*answer, error) {
	key := flightKey{string(s.certID), s.record, s.version, by.line}
	kept := func() (a *answer, fresh bool) {
		now := o.c.Time()
		if a = o.cache.get(key.certID); a == nil || a.record != s.record || a.version != s.version || a.line != by.line ||
			now.Before(a.this) || !now.Before(a.next) {
			return nil, false
		}
		return a, now.Before(a.renew())
	}
	had, fresh := kept()
	if fresh || had != nil && o.lately(o.failed.Load()) {
		return had, nil
	}
	o.mu.Lock()
	f := o.flights[key]
	if f != nil {
		o.mu.Unlock()
		if had != nil {
			return had, nil
		}
		select {
		case <-f.done:
			return f.a, f.err
		case <-ctx.Done():
			return nil, o.waited(ctx, by)
		}
	}
	f = &flight{done: make(chan struct{}), err: errors.New("status: OCSP answer: panic")}
	o.flights[key] = f
	o.mu.Unlock()
	defer func() {
		o.mu.Lock()
		delete(o.flights, key)
		o.mu.Unlock()
		close(f.done)
	}()
	if a, fresh := kept(); fresh { // somebody was quicker
		f.a, f.err = a, nil
		return a, nil
	}
	// Others wait for it: who asked first may go away.
	alone, cancel := context.WithTimeout(context.WithoutCancel(ctx), o.c.Timeout)
	defer cancel()
	f.a, f.err = o.sign(alone, by, []*single{s}, nil, had == nil)
	if f.err == nil && f.a.known {
		o.cache.put(key.certID, f.a)
	}
	if f.err != nil && had != nil {
		if !errors.Is(f.err, errBusy) {
			o.tell(ctx, slog.LevelError, f.err)
		}
		f.a, f.err = had, nil
	}
	return f.a, f.err
}

// lately reports whether something failed so short a time ago that it would again.
func (o *OCSP) lately(failed *time.Time) bool {
	if failed == nil {
		return false
	}
	since := o.c.Time().Sub(*failed)
	return since >= 0 && since < retryAfter
}

func (o *OCSP) waited(ctx context.Context, by *responder) error {
	return fmt.Errorf("status: waiting for the key of %q: %w", by.cert.Subject, context.Cause(ctx))
}

// sign makes an answer. If the key is busy, it waits, or returns errBusy.
func (o *OCSP) sign(ctx context.Context, by *responder, all []*single, nonce []byte, wait bool) (*answer, error) {
	select {
	case o.turns <- struct{}{}:
	default:
		if !wait {
			return nil, errBusy
		}
		select {
		case o.waiting <- struct{}{}:
			defer func() { <-o.waiting }()
		default:
			return nil, errBusy
		}
		select {
		case o.turns <- struct{}{}:
		case <-ctx.Done():
			return nil, o.waited(ctx, by)
		}
	}
	defer func() { <-o.turns }()
	now := o.c.Time().UTC().Truncate(time.Second)
	a := &answer{this: backdated(now, by.cert), next: now.Add(o.c.Validity), signed: now, known: true, record: all[0].record, version: all[0].version, line: by.line}
	if a.next.After(by.cert.NotAfter) {
		a.next = by.cert.NotAfter
	}
	if !now.Before(a.next) {
		return nil, fmt.Errorf("status: certificate %q of the OCSP responder has expired at %s; %w", by.cert.Subject, by.cert.NotAfter.Format(time.RFC3339), errExpired)
	}
	for _, s := range all {
		o.vouch(s)
		a.known = a.known && s.status != 2
	}
	der, err := by.respond(ctx, all, now, a.this, a.next, nonce)
	if err != nil {
		failed := o.c.Time()
		o.failed.Store(&failed)
		return nil, err
	}
	o.failed.Store(nil)
	a.der = der
	return a, nil
}

// signs returns who signs now, after having had him renewed if that is due.
func (o *OCSP) signs(ctx context.Context) (*responder, error) {
	due := func() (r *responder, usable, due bool) {
		r, now := o.responder.Load(), o.c.Time()
		return r, r != nil && now.Before(r.cert.NotAfter), o.c.Renew != nil && (r == nil || !now.Before(r.renew))
	}
	r, usable, now := due()
	if !now {
		return r, nil
	}
	select {
	case o.renewing <- struct{}{}:
	default:
		if usable {
			return r, nil
		}
		select {
		case o.renewing <- struct{}{}:
		case <-ctx.Done():
			return nil, fmt.Errorf("status: waiting for OCSPConfig.Renew: %w", context.Cause(ctx))
		}
	}
	defer func() { <-o.renewing }()
	if r, usable, now = due(); !now { // somebody was quicker
		return r, nil
	}
	err := errors.New("status: OCSPConfig.Renew has failed a moment ago")
	if !o.lately(o.tried.Load()) {
		if err = o.renew(ctx, r); err == nil {
			return o.responder.Load(), nil
		}
		o.tell(ctx, slog.LevelError, err)
	}
	if usable {
		return o.responder.Load(), nil
	}
	return nil, err
}

// renew calls Renew. It ends with Timeout, not with the request that it is done for.
func (o *OCSP) renew(ctx context.Context, old *responder) (err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), o.c.Timeout)
	defer cancel()
	tried := o.c.Time()
	o.tried.Store(&tried)
	id, err := o.c.Renew(ctx)
	if err != nil {
		return fmt.Errorf("status: OCSPConfig.Renew: %w", err)
	}
	line := new(int)
	if old != nil {
		line = old.line
	}
	if err := o.replace(id, line); err != nil {
		return fmt.Errorf("%w (from OCSPConfig.Renew)", err)
	}
	if r := o.responder.Load(); !tried.Before(r.renew) {
		return fmt.Errorf("status: OCSPConfig.Renew returned certificate %q, which ends at %s already", r.cert.Subject, r.cert.NotAfter.Format(time.RFC3339))
	}
	o.tried.Store(nil)
	o.c.Log.LogAttrs(ctx, slog.LevelInfo, "OCSP responder", slog.String("issuer", o.c.Issuer.Subject.String()),
		slog.String("certificate", id.Certificate().Subject.String()), slog.Time("until", id.Certificate().NotAfter))
	return nil
}
