package status

import (
	"crypto/x509"
	"math/big"
	"time"
)

// backdate is how long before it is made a CRL or an OCSP answer begins to be valid, for clients whose
// clock is slow. Certificates are backdated by the same.
const backdate = 5 * time.Minute

// backdated returns the thisUpdate of what is made now with the key of cert, which nothing precedes.
func backdated(now time.Time, cert *x509.Certificate) time.Time {
	this := now.Add(-backdate)
	if this.Before(cert.NotBefore) && !now.Before(cert.NotBefore) {
		this = cert.NotBefore
	}
	return this.UTC().Truncate(time.Second)
}

// thisUpdate returns it for a CRL that is made now. Of two CRLs, clients take the one with the later
// thisUpdate, and it has whole seconds: so each is later than the last one, as long as that is not
// after now.
func thisUpdate(now time.Time, cert *x509.Certificate, last *generation) time.Time {
	this := backdated(now, cert)
	if last != nil && !this.After(last.this) {
		this = last.this.Add(time.Second)
	}
	if this.After(now) {
		this = now.UTC().Truncate(time.Second)
	}
	return this
}

// nextNumber returns a CRL number above all before it. Full CRLs and delta CRLs share one sequence
// (RFC 5280, 5.2.3). It does not go by CRLConfig.Time, which may stand still.
func (crl *CRL) nextNumber() *big.Int {
	for {
		last := crl.number.Load()
		if next := max(last+1, time.Now().UnixNano()); crl.number.CompareAndSwap(last, next) {
			return big.NewInt(next)
		}
	}
}

// issued is a full CRL that clients may have.
type issued struct {
	number       *big.Int
	listed, next time.Time
}

// remember keeps what delta CRLs need to know of a full CRL: not of each, but so that the first in
// e.past was made when, or a little before, the oldest was that has not reached its nextUpdate.
// e.mu is held.
func (e *edition) remember(g *generation) {
	n := len(e.past)
	if n > 0 && g.listed.Before(e.past[n-1].listed.Add(-margin/2)) {
		e.past, n = nil, 0 // the clock was set back: nobody knows what changed since
	}
	if n == 0 || g.listed.Sub(e.past[n-1].listed) >= e.validity/32 {
		e.past = append(e.past, issued{g.number, g.listed, g.next})
	}
	for len(e.past) > 1 && !g.listed.Before(e.past[1].next) {
		e.past = e.past[1:]
	}
}

// base returns the full CRL that a delta CRL is for: with it, or a later one, clients can use the
// delta CRL (RFC 5280, 5.2.4). So those that have a full CRL need no other until its nextUpdate.
func (e *edition) base() issued {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.past[0]
}
