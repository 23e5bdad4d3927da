package status

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"math/big"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// CRLConfig says what a [CRL] is made of. Issuer and Depot are required; every other field is safe
// when zero.
type CRLConfig struct {
	// Issuer is the CA, whose key signs.
	Issuer *scep.Identity

	// Depot tells what is revoked.
	Depot scep.RevocationLister

	// URL is where clients get the CRL. Certificates name it if the CRL is [scep.Config].CRL.
	// With Shards, it has {n} in it, in its last element, where the number of the shard goes,
	// from 0 on.
	URL string

	// Shards is into how many CRLs the certificates are divided, by serial number; if zero, 1,
	// and at most 10000. Each says in a critical extension that it is for one distribution point
	// only, so it says nothing of a certificate that does not name its URL, as that of an RA or of
	// the CA itself: for these, serve a CRL without Shards as well. A shard is signed when it
	// changes, and when Refresh says so or, together with others, up to an eighth of that before.
	// Their number must not change while there are certificates that name the URL; to have another,
	// take another URL, and go on serving the old.
	Shards int

	// Validity is how long clients may use a CRL, from when it is made to nextUpdate; if zero, 24
	// hours. So it is for how long the signer may be away. thisUpdate is five minutes back, for
	// clients whose clock is slow.
	Validity time.Duration

	// Refresh is how old a CRL becomes before it is made anew, if nothing is revoked meanwhile;
	// if zero, an hour, or a quarter of Validity if that is less. Caches are told the same.
	Refresh time.Duration

	// Keep is how long after its end a revoked certificate stays on the CRL; if zero, twice
	// Validity. RFC 5280, 3.3 wants it on one at least.
	Keep time.Duration

	// Delta, if its URL is not empty, also makes delta CRLs.
	Delta Delta

	// Timeout bounds making a CRL, all shards together; if zero, a minute.
	Timeout time.Duration

	// Log receives a record for each CRL that is made (Debug) or could not be made (Error). If
	// nil, [slog.Default] is used.
	Log *slog.Logger

	// Time returns the current time. If nil, time.Now is used.
	Time func() time.Time
}

// Delta says how delta CRLs are made: they have what has changed since the oldest full CRL of this
// process that has not reached its nextUpdate, and are good with that and all later ones, which name
// them (RFC 5280, 5.2.4 and 5.2.6).
type Delta struct {
	URL      string        // as CRLConfig.URL
	Validity time.Duration // if zero, Refresh of the full CRL
	Refresh  time.Duration // if zero, a quarter of Validity
}

// A CRL makes certificate revocation lists when they are asked for and due, and serves them. It
// implements [scep.CRLSource], and is a handler that serves the newest under the last elements of
// URL and Delta.URL; without Shards and Delta, or without URL, the full CRL under any other path too.
//
// While no new one can be made the last one is served, until its nextUpdate; then 503. It starts no
// goroutine: a CRL is made by the first request that finds it due, while others get the last one.
//
// The memory that it takes is that of the lists, some 50 bytes for each revoked certificate, and as
// much again while the next ones are made, whatever the number of records. A process that makes a
// list of a million certificates again and again stays below 200 MiB.
//
// A CRL is also due when the depot has other revocations than it, whoever made them: a request finds
// that out by asking the depot for the most recent ones. It does so at most once a second, and takes
// no more than a fifth of the time with it and with what has to be made. So the CRLs of several
// processes over one depot follow a revocation within seconds; see [CRL.Renew] for at once.
//
// CRL numbers are the time in nanoseconds, one sequence for full and delta CRLs. They rise with each
// CRL, whatever the clock does; from process to process, and among several, as long as the clock of
// the one is not behind that of the other.
type CRL struct {
	c      CRLConfig
	signer *signer
	full   *edition
	delta  *edition // or nil
	names  map[string]place
	number atomic.Int64 // the last one
	watch  watch
}

// place is where a path leads.
type place struct {
	e     *edition
	shard int
}

// NewCRL returns a CRL, or an error that names the field of c that cannot work. It signs nothing.
func NewCRL(c CRLConfig) (*CRL, error) {
	fail := func(field string, err error) (*CRL, error) {
		return nil, fmt.Errorf("status: CRLConfig.%s: %w", field, err)
	}
	if c.Issuer == nil {
		return fail("Issuer", errors.New("is required"))
	}
	s, err := newSigner(c.Issuer)
	if err != nil {
		return fail("Issuer", err)
	}
	if u := s.cert.KeyUsage; !s.cert.IsCA || u != 0 && u&x509.KeyUsageCRLSign == 0 {
		return fail("Issuer", fmt.Errorf("certificate %q may not sign CRLs (basicConstraints CA:TRUE, keyUsage cRLSign)", s.cert.Subject))
	}
	if c.Depot == nil {
		return fail("Depot", errors.New("is required"))
	}
	if c.Validity < 0 || c.Refresh < 0 || c.Keep < 0 || c.Timeout < 0 || c.Delta.Validity < 0 || c.Delta.Refresh < 0 {
		return nil, errors.New("status: CRLConfig has a negative time")
	}
	c.setDefaults()
	if c.Shards < 1 || c.Shards > 10000 {
		return fail("Shards", fmt.Errorf("is %d; use 1 to 10000", c.Shards))
	}
	if c.Refresh >= c.Validity || c.Delta.Refresh >= c.Delta.Validity {
		return fail("Refresh", errors.New("must be shorter than Validity, or there is a time without a CRL"))
	}
	crl := &CRL{c: c, signer: s, names: map[string]place{}}
	crl.watch.seed = maphash.MakeSeed()
	crl.full = &edition{validity: c.Validity, refresh: c.Refresh}
	if crl.full.urls, err = expand(c.URL, c.Shards); err != nil {
		return fail("URL", err)
	}
	if c.Delta.URL != "" {
		crl.delta = &edition{validity: c.Delta.Validity, refresh: c.Delta.Refresh}
		if crl.delta.urls, err = expand(c.Delta.URL, c.Shards); err != nil {
			return fail("Delta.URL", err)
		}
	}
	for _, e := range []*edition{crl.full, crl.delta} {
		for i := range c.Shards {
			if e == nil || e.urls == nil {
				continue
			}
			name := lastElement(e.urls[i])
			if _, taken := crl.names[name]; taken {
				return fail("URL", fmt.Errorf("%q ends like another", e.urls[i]))
			}
			crl.names[name] = place{e, i}
		}
	}
	return crl, nil
}

func (c *CRLConfig) setDefaults() {
	set := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	set(&c.Validity, 24*time.Hour)
	set(&c.Refresh, min(time.Hour, c.Validity/4))
	set(&c.Keep, 2*c.Validity)
	set(&c.Delta.Validity, c.Refresh)
	set(&c.Delta.Refresh, c.Delta.Validity/4)
	set(&c.Timeout, time.Minute)
	if c.Shards == 0 {
		c.Shards = 1
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Time == nil {
		c.Time = time.Now
	}
}

// expand returns the URL of each shard, or nil if there is none.
func expand(pattern string, shards int) ([]string, error) {
	const n = "{n}"
	if pattern == "" {
		if shards > 1 {
			return nil, errors.New("is required with Shards")
		}
		return nil, nil
	}
	u, err := url.Parse(strings.ReplaceAll(pattern, n, "0"))
	if err != nil {
		return nil, err
	}
	if u.Scheme == "" || u.Host == "" || lastElement(pattern) == "" {
		return nil, fmt.Errorf("%q is not absolute, or names no file", pattern)
	}
	if strings.ContainsAny(pattern, "?#") { // a handler goes by the path
		return nil, fmt.Errorf("%q has a query or fragment; tell CRLs apart by the last element of the path", pattern)
	}
	for i := range len(pattern) {
		if pattern[i] <= ' ' || pattern[i] >= 0x7f {
			return nil, fmt.Errorf("%q is not ASCII", pattern) // an IA5String in certificates
		}
	}
	if last := strings.Count(lastElement(pattern), n); shards > 1 && (last != 1 || strings.Count(pattern, n) != 1) {
		return nil, fmt.Errorf("%q needs one {n}, in its last element", pattern)
	}
	var urls []string
	for i := range shards {
		urls = append(urls, strings.ReplaceAll(pattern, n, strconv.Itoa(i)))
	}
	return urls, nil
}

func lastElement(url string) string {
	_, rest, _ := strings.Cut(url, "://")
	_, p, found := strings.Cut(rest, "/")
	if !found || p == "" || strings.HasSuffix(p, "/") {
		return ""
	}
	return path.Base(p)
}

// shard returns in which shard a certificate is.
func (crl *CRL) shard(serial *big.Int) int {
	if crl.c.Shards == 1 || serial == nil {
		return 0
	}
	return int(new(big.Int).Mod(serial, big.NewInt(int64(crl.c.Shards))).Int64())
}

// DistributionPoints returns what a certificate with this issuer (DER of the name) and serial
// number names as its CRLDistributionPoints: the URL of the shard that it is in. It returns nothing
// for another issuer's, or without a URL.
func (crl *CRL) DistributionPoints(issuer []byte, serial *big.Int) []string {
	if crl.full.urls == nil || !bytes.Equal(issuer, crl.signer.cert.RawSubject) {
		return nil
	}
	return []string{crl.full.urls[crl.shard(serial)]}
}

// CRL implements [scep.CRLSource]: it returns the newest full CRL in which a certificate with this
// serial number would be, or [scep.ErrNotFound] for another issuer's. Others get the same slice: do not
// change it.
func (crl *CRL) CRL(ctx context.Context, issuer []byte, serial *big.Int) ([]byte, error) {
	if !bytes.Equal(issuer, crl.signer.cert.RawSubject) {
		return nil, scep.ErrNotFound
	}
	crl.notice(ctx)
	shard := crl.shard(serial)
	g, err := crl.current(ctx, crl.full, shard)
	if err != nil {
		return nil, err
	}
	return g.lists[shard].der, nil
}

// Renew has the CRL made anew when it is asked for next (of shards, those that change), also if the
// depot was asked a moment ago for what is new. A [scep.Handler] whose Config.CRL it is calls it after
// each revocation, so that the next CRL that anybody gets from this process has it. Other processes
// know nothing of it.
func (crl *CRL) Renew() {
	for _, e := range []*edition{crl.full, crl.delta} {
		if e != nil {
			e.mu.Lock()
			e.wanted++
			e.mu.Unlock()
		}
	}
}

// CRLs are those of several CAs, as while one takes over from another. They are a [scep.CRLSource],
// and a handler that serves each under the last element of its URLs, which must differ.
type CRLs []*CRL

// ServeHTTP implements [http.Handler].
func (all CRLs) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := path.Base(r.URL.EscapedPath())
	for _, crl := range all {
		if _, found := crl.names[name]; found {
			crl.ServeHTTP(w, r)
			return
		}
	}
	fail(w, http.StatusNotFound)
}

// CRL implements [scep.CRLSource].
func (all CRLs) CRL(ctx context.Context, issuer []byte, serial *big.Int) ([]byte, error) {
	for _, crl := range all {
		if der, err := crl.CRL(ctx, issuer, serial); !errors.Is(err, scep.ErrNotFound) {
			return der, err
		}
	}
	return nil, scep.ErrNotFound
}

// DistributionPoints is [CRL.DistributionPoints] of the one that has this issuer.
func (all CRLs) DistributionPoints(issuer []byte, serial *big.Int) []string {
	for _, crl := range all {
		if points := crl.DistributionPoints(issuer, serial); points != nil {
			return points
		}
	}
	return nil
}

// Renew calls [CRL.Renew] of each.
func (all CRLs) Renew() {
	for _, crl := range all {
		crl.Renew()
	}
}

// Refresh makes what is due, in place of the next request. Call it at the start, and then from
// time to time, to have no request wait.
func (crl *CRL) Refresh(ctx context.Context) error {
	crl.notice(ctx)
	_, err := crl.current(ctx, crl.full, all)
	if err == nil && crl.delta != nil {
		_, err = crl.current(ctx, crl.delta, all)
	}
	return err
}
