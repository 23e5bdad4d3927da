package status

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha1"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"slices"
	"sync/atomic"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// OCSPConfig says what an [OCSP] is made of. Issuer, Responder and Depot are required; every other
// field is safe when zero.
type OCSPConfig struct {
	// Issuer is the certificate of the CA whose certificates are asked about.
	Issuer *x509.Certificate

	// Responder signs the answers. Its certificate is issued by Issuer for that
	// (see [IssueResponder]), or is Issuer itself.
	Responder *scep.Identity

	// Depot has the records. Each answer looks there.
	Depot scep.Depot

	// Validity is the time from thisUpdate to nextUpdate; if zero, an hour. Clients may use an
	// answer for so long.
	Validity time.Duration

	// NoNonce leaves the nonce of a request out of the answer, so that all clients get answers
	// that were signed before (RFC 5019). Those who insist on a nonce will not take them.
	NoNonce bool

	// Cache is how many signed answers are kept; if zero, 10000, some two kilobytes each.
	// Negative: none. An answer is signed anew when half of its time is over, or the record
	// has changed.
	Cache int

	// Signatures is how many the key makes at once; if zero, 4, and at most 512. The others
	// wait in order of arrival.
	Signatures int

	// Timeout bounds one answer; if zero, 10 seconds. After it the answer is tryLater.
	Timeout time.Duration

	// Log receives a record for each answer (Debug) and for our own failures (Error). If nil,
	// [slog.Default] is used.
	Log *slog.Logger

	// Time returns the current time. If nil, time.Now is used.
	Time func() time.Time
}

// An OCSP answers whether certificates of a CA are revoked (RFC 6960): a handler for POST, and for
// GET with the request at the end of the path. Mount GET without a [http.ServeMux], or below one
// whose paths have no doubled slash: a mux redirects those, and requests in base64 that a client
// did not escape can have one.
//
// Good is what the depot has as issued, with a signature of Issuer's that verifies; revoked what
// it has as revoked; unknown everything else. It starts no goroutine.
type OCSP struct {
	c         OCSPConfig
	issuer    []issuerHash
	responder atomic.Pointer[responder]
	turns     chan struct{} // holds one token for each signature under way
	waiting   chan struct{} // and for each request that waits for one, too
	cache     *cache
}

// maxWaiting is how many requests may wait for a signature at once; the others are told tryLater.
const maxWaiting = 512

// responder is who signs.
type responder struct {
	*signer
	id       []byte // ResponderID, DER
	embedded bool   // its certificate goes with the answers
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
	o := &OCSP{c: c, turns: make(chan struct{}, c.Signatures), waiting: make(chan struct{}, maxWaiting), cache: newCache(c.Cache), issuer: hashesOf(c.Issuer.RawSubject, key)}
	if err := o.Replace(c.Responder); err != nil {
		return nil, err
	}
	return o, nil
}

// Replace has another identity sign from now on, as when the responder's certificate ends soon.
func (o *OCSP) Replace(id *scep.Identity) error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("status: OCSPConfig.Responder: "+format, args...)
	}
	if id == nil {
		return fail("is required")
	}
	s, err := newSigner(id)
	if err != nil {
		return fail("%w", err)
	}
	now := o.c.Time()
	if now.Before(s.cert.NotBefore) || !now.Before(s.cert.NotAfter) {
		return fail("certificate %q is valid from %s to %s", s.cert.Subject, s.cert.NotBefore.Format(time.RFC3339), s.cert.NotAfter.Format(time.RFC3339))
	}
	r := &responder{signer: s}
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
	o.cache.clear()
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

// single is the answer for one certificate.
type single struct {
	certID  []byte // DER, as it came
	status  byte   // 0 good, 1 revoked, 2 unknown
	revoked time.Time
	reason  scep.RevocationReason
	record  scep.ID // empty if there is none
	version int64
	cert    []byte // DER, of good
}

// look asks the depot.
func (o *OCSP) look(ctx context.Context, id *certID) (*single, error) {
	s := &single{certID: id.raw, status: 2}
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
func (o *OCSP) vouch(s *single, serial *big.Int) {
	if s.status != 0 {
		return
	}
	cert, err := x509.ParseCertificate(s.cert)
	if err != nil || cert.SerialNumber.Cmp(serial) != 0 || cert.CheckSignatureFrom(o.c.Issuer) != nil {
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
	known      bool // no certificate in it is unknown
	record     scep.ID
	version    int64
	by         *responder
}

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
	by, key := o.responder.Load(), ""
	if q.nonce == nil && len(all) == 1 && all[0].record != "" {
		key = string(all[0].certID)
	}
	cached := func() *answer {
		a := o.cache.get(key)
		if key == "" || a == nil || a.by != by || a.record != all[0].record || a.version != all[0].version ||
			!o.c.Time().Before(a.this.Add(a.next.Sub(a.this)/2)) {
			return nil
		}
		return a
	}
	if a := cached(); a != nil {
		return a, nil
	}
	select {
	case o.waiting <- struct{}{}:
		defer func() { <-o.waiting }()
	default:
		return nil, errBusy
	}
	select {
	case o.turns <- struct{}{}:
		defer func() { <-o.turns }()
	case <-ctx.Done():
		return nil, fmt.Errorf("status: waiting for the key of %q: %w", by.cert.Subject, context.Cause(ctx))
	}
	if a := cached(); a != nil { // somebody was quicker
		return a, nil
	}
	now := o.c.Time()
	a := &answer{this: now.UTC().Truncate(time.Second), known: true, record: all[0].record, version: all[0].version, by: by}
	if a.next = a.this.Add(o.c.Validity); a.next.After(by.cert.NotAfter) {
		a.next = by.cert.NotAfter
	}
	if !now.Before(a.next) {
		return nil, fmt.Errorf("status: certificate %q of the OCSP responder has expired at %s; replace it", by.cert.Subject, by.cert.NotAfter.Format(time.RFC3339))
	}
	for i, s := range all {
		o.vouch(s, q.ids[i].serial)
		a.known = a.known && s.status != 2
	}
	var err error
	if a.der, err = by.respond(ctx, all, a.this, a.next, q.nonce); err != nil {
		return nil, err
	}
	if key != "" && a.known {
		o.cache.put(key, a)
	}
	return a, nil
}
