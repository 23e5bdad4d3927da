package status

import (
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// OCSPConfig says what an [OCSP] is made of. Issuer, Depot, and Responder or Renew are required;
// every other field is safe when zero.
type OCSPConfig struct {
	// Issuer is the certificate of the CA whose certificates are asked about.
	Issuer *x509.Certificate

	// Responder signs the answers. Its certificate is issued by Issuer for that
	// (see [IssueResponder]), or is Issuer itself. If it is nil, the first request calls Renew.
	Responder *scep.Identity

	// Renew, if not nil, returns the identity that signs from then on, for instance the same key
	// with a certificate that [IssueResponder] has just made. It is called when less than a
	// third of the life of the responder's certificate is left, by the request that finds it so,
	// and has Timeout; the others go on with the old one. If it fails, that is logged, and it is
	// called again 10 seconds later at the earliest.
	Renew func(ctx context.Context) (*scep.Identity, error)

	// Depot has the records. Each answer looks there.
	Depot scep.Depot

	// Validity is how long clients may use an answer: from when it is signed to nextUpdate; if
	// zero, an hour. thisUpdate is five minutes back, for clients whose clock is slow.
	Validity time.Duration

	// NoNonce leaves the nonce of a request out of the answer, so that all clients get answers
	// that were signed before (RFC 5019). Those who insist on a nonce will not take them.
	NoNonce bool

	// Cache is how many signed answers are kept; if zero, 10000, some two kilobytes each.
	// Negative: none. An answer is signed anew when the record has changed, or half of its
	// time is over; if it cannot be then, it is given until all of it is over.
	Cache int

	// Signatures is how many the key makes at once; if zero, 4, and at most 512. The others
	// wait in order of arrival.
	Signatures int

	// Timeout bounds one answer; if zero, 10 seconds. After it the answer is tryLater.
	Timeout time.Duration

	// Log receives a record for each answer (Debug) and for our own failures (Error; those that
	// come in thousands, one a second). If nil, [slog.Default] is used.
	Log *slog.Logger

	// Time returns the current time. If nil, time.Now is used.
	Time func() time.Time
}

// An OCSP answers whether certificates of a CA are revoked (RFC 6960): a handler for POST, and for
// GET with the request at the end of the path, whatever comes before it. A [http.ServeMux] redirects
// paths with a doubled slash, which requests in base64 that a client did not escape can have: send
// such GET requests to the OCSP before they come to a mux. A request that asks about more than 32
// certificates is refused as malformed.
//
// Good is what the depot has as issued, with a signature of Issuer's that verifies; revoked what
// it has as revoked; unknown everything else. Each answer is as the depot says when it is asked
// for: what another process revoked is not good any more either, and while the depot is away the
// answer is tryLater. It starts no goroutine.
//
// While the responder's key is away, answers that were signed before are given until their
// nextUpdate; others are tryLater.
type OCSP struct {
	c         OCSPConfig
	issuer    []issuerHash
	responder atomic.Pointer[responder]
	renewing  chan struct{}             // holds a token while Renew is called
	tried     atomic.Pointer[time.Time] // when Renew failed last, or nil
	failed    atomic.Pointer[time.Time] // when signing failed last, or nil if it did not since
	told      atomic.Int64              // the second in which a failure was logged last
	turns     chan struct{}             // holds one token for each signature under way
	waiting   chan struct{}             // and for each request that waits for one, too
	cache     *cache

	mu      sync.Mutex
	flights map[flightKey]*flight
}

// maxWaiting is how many requests may wait for a signature at once; the others are told tryLater.
const maxWaiting = 512

// responder is who signs.
type responder struct {
	*signer
	id       []byte    // ResponderID, DER
	embedded bool      // its certificate goes with the answers
	renew    time.Time // when another is due
	line     *int      // shared with those that Renew replaced it with: what one signed is good with all
}

// NewOCSP returns an OCSP, or an error that names the field of c that cannot work. It signs nothing.
func NewOCSP(c OCSPConfig) (*OCSP, error) {
	fail := func(field, text string) (*OCSP, error) {
		return nil, fmt.Errorf("status: OCSPConfig.%s: %s", field, text)
	}
	switch {
	case c.Issuer == nil:
		return fail("Issuer", "is required")
	case c.Depot == nil:
		return fail("Depot", "is required")
	case c.Validity < 0 || c.Timeout < 0 || c.Signatures < 0:
		return nil, errors.New("status: OCSPConfig has a negative time or number")
	case c.Signatures > maxWaiting:
		return fail("Signatures", fmt.Sprintf("is above %d", maxWaiting))
	case c.Validity != 0 && c.Validity < time.Minute:
		return fail("Validity", "is less than a minute")
	}
	if c.Validity == 0 {
		c.Validity = time.Hour
	}
	if c.Timeout == 0 {
		c.Timeout = 10 * time.Second
	}
	if c.Signatures == 0 {
		c.Signatures = 4
	}
	if c.Cache == 0 {
		c.Cache = 10000
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Time == nil {
		c.Time = time.Now
	}
	key, err := keyBits(c.Issuer.RawSubjectPublicKeyInfo)
	if err != nil {
		return fail("Issuer", err.Error())
	}
	o := &OCSP{
		c: c, issuer: hashesOf(c.Issuer.RawSubject, key), cache: newCache(c.Cache), flights: map[flightKey]*flight{},
		renewing: make(chan struct{}, 1), turns: make(chan struct{}, c.Signatures), waiting: make(chan struct{}, maxWaiting),
	}
	if cert := c.Responder.Certificate(); c.Renew != nil && (c.Responder == nil || cert != nil && !c.Time().Before(cert.NotAfter)) {
		return o, nil // the first request has it renewed
	}
	if err := o.Replace(c.Responder); err != nil {
		return nil, err
	}
	return o, nil
}

// Replace has another identity sign from now on, as when the responder's key is no longer to be
// trusted. What was signed before is not given any more.
func (o *OCSP) Replace(id *scep.Identity) error {
	if err := o.replace(id, new(int)); err != nil {
		return err
	}
	o.cache.clear()
	return nil
}

func (o *OCSP) replace(id *scep.Identity, line *int) error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("status: OCSPConfig.Responder: "+format, args...)
	}
	if id == nil {
		return fail("is required, or OCSPConfig.Renew; make one with IssueResponder")
	}
	s, err := newSigner(id)
	if err != nil {
		return fail("%w", err)
	}
	now := o.c.Time()
	if now.Before(s.cert.NotBefore) || !now.Before(s.cert.NotAfter) {
		return fail("certificate %q is valid from %s to %s", s.cert.Subject, s.cert.NotBefore.Format(time.RFC3339), s.cert.NotAfter.Format(time.RFC3339))
	}
	r := &responder{signer: s, line: line, renew: s.cert.NotAfter.Add(-s.cert.NotAfter.Sub(s.cert.NotBefore) / 3)}
	if !s.cert.Equal(o.c.Issuer) {
		if err := checkResponder(s.cert, o.c.Issuer); err != nil {
			return fail("%w", err)
		}
		r.embedded = true
	}
	key, err := keyBits(s.cert.RawSubjectPublicKeyInfo)
	if err != nil {
		return fail("%w", err)
	}
	sum := sha1.Sum(key) // RFC 6960, 4.2.1
	r.id = append([]byte{0xa2, 2 + sha1.Size, 0x04, sha1.Size}, sum[:]...)
	o.responder.Store(r)
	return nil
}

// checkResponder reports why clients would not take the answers of cert (RFC 6960, 4.2.2.2).
func checkResponder(cert, issuer *x509.Certificate) error {
	if !bytes.Equal(cert.RawIssuer, issuer.RawSubject) || cert.CheckSignatureFrom(issuer) != nil {
		return fmt.Errorf("certificate %q was not issued by %q; have that issue it", cert.Subject, issuer.Subject)
	}
	if !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning) {
		return fmt.Errorf("certificate %q is not for OCSP signing (extKeyUsage id-kp-OCSPSigning); make one with IssueResponder", cert.Subject)
	}
	if cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return fmt.Errorf("keyUsage of certificate %q lacks digitalSignature", cert.Subject)
	}
	return nil
}
