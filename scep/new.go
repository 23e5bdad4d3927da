package scep

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"runtime"
	"slices"
	"time"
)

// A checker is a Depot, Challenge or Policy that can tell that it will not work as it is set up.
type checker interface{ Check() error }

// New returns a [Handler], or an error that names the field of c that cannot work and what to
// do. It signs and stores nothing. A Depot, Challenge or Policy with a method Check() error is
// asked whether it can work.
func New(c Config) (*Handler, error) {
	keysGiven := c.Limits.Keys > 0
	for _, f := range []struct {
		name  string
		value any
		hint  string
	}{
		{"CA", c.CA, "open one with a backend package, as file.Open"},
		{"Depot", c.Depot, "use sqlite.Open, or &depot.Memory{} for tests"},
		{"Challenge", c.Challenge, "use challenge.Static or challenge.OneTime; to admit everyone, write a ChallengeFunc that does"},
	} {
		if isNil(f.value) {
			return nil, fmt.Errorf("scep: Config.%s is required: %s", f.name, f.hint)
		}
	}
	c.setDefaults()
	if isNil(c.CRL) {
		c.CRL = nil
	}
	h := &Handler{c: c, caps: capabilities(&c)}
	fail := func(field string, err error) (*Handler, error) { return nil, fieldError(field, err) }
	if err := c.Limits.check(); err != nil {
		return fail("Limits", err)
	}
	if err := c.Renewal.check(); err != nil {
		return fail("Renewal", err)
	}
	if c.RetryWindow < 0 {
		return fail("RetryWindow", errors.New("is negative"))
	}
	if c.ApprovalWindow < 0 {
		return fail("ApprovalWindow", errors.New("is negative"))
	}
	if c.Legacy&^(TripleDES|SHA1|SingleDES) != 0 {
		return fail("Legacy", errors.New("holds an unknown algorithm"))
	}
	for _, f := range []struct {
		name  string
		value any
	}{{"Depot", c.Depot}, {"Challenge", c.Challenge}, {"Policy", c.Policy}} {
		if v, ok := f.value.(checker); ok {
			if err := v.Check(); err != nil {
				return fail(f.name, err)
			}
		}
	}

	ctx, cancel := context.WithTimeout(context.Background(), c.Limits.Time)
	defer cancel()
	s := setup{h: h, c: &c, keys: gates{c.Limits.Keys, keysGiven, map[*Identity]gate{}}}
	ra, err := s.current(ctx)
	if err == nil {
		err = s.upcoming(ctx)
	}
	if err == nil {
		err = s.past(ctx)
	}
	if err != nil {
		return nil, err
	}
	s.warn(c.RA, h.now())
	s.warn(c.NextRA, s.next)
	if h.caCert, h.caCertType, err = caCertificates(&c, ra, h.now().chain); err != nil {
		return fail("Chain", err)
	}
	if s.next != nil {
		if h.next, err = newNextCA(&c, s.next.chain, &h.opens[0]); err != nil {
			return fail("Next", err)
		}
	}
	h.requests = make(chan struct{}, c.Limits.Requests)
	h.derive = newGate(c.Limits.Keys)
	return h, nil
}

func (c *Config) setDefaults() {
	if isNil(c.Policy) {
		c.Policy = &Profile{}
	}
	if isNil(c.Next) {
		c.Next = nil
	}
	if c.RetryWindow == 0 {
		c.RetryWindow = 24 * time.Hour
	}
	if c.ApprovalWindow == 0 {
		c.ApprovalWindow = 30 * 24 * time.Hour
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Time == nil {
		c.Time = time.Now
	}
	c.PastRA, c.PastCA = slices.Clone(c.PastRA), slices.Clone(c.PastCA)
	if c.Renewal.On && c.Renewal.Max == 0 {
		c.Renewal.Max = 10
	}
	l := &c.Limits
	if l.Bytes == 0 {
		l.Bytes = 64 << 10
	}
	if l.Time == 0 {
		l.Time = 30 * time.Second
	}
	if l.ReadTime == 0 {
		l.ReadTime = 15 * time.Second
	}
	if l.Keys == 0 {
		l.Keys = max(2, runtime.GOMAXPROCS(0))
	}
	if l.Requests == 0 {
		l.Requests = 512
	}
	if l.Pending == 0 {
		l.Pending = 10_000
	}
}

func (l *Limits) check() error {
	if l.Bytes < 0 || l.Time < 0 || l.ReadTime < 0 || l.Keys < 0 || l.Requests < 0 {
		return errors.New("a limit is negative")
	}
	return nil
}

func (r *Renewal) check() error {
	if r.Window < 0 || r.Grace < 0 {
		return errors.New("has a negative Window or Grace")
	}
	if !r.On && *r != (Renewal{}) {
		return errors.New("has rules but is not On")
	}
	return nil
}

// checkCA reports why chain[0] is the certificate of no CA.
func checkCA(chain []*x509.Certificate) error {
	if len(chain) == 0 || slices.Contains(chain, nil) {
		return errors.New("has no certificate, or one that is nil")
	}
	cert := chain[0]
	switch {
	case !cert.BasicConstraintsValid || !cert.IsCA:
		return fmt.Errorf("certificate %q is not that of a CA (basicConstraints CA:TRUE); put the issuing CA's certificate first", cert.Subject)
	case cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return fmt.Errorf("certificate %q may not sign certificates (keyUsage keyCertSign)", cert.Subject)
	case len(cert.RawSubject) <= 2:
		return errors.New("the CA's certificate has an empty subject")
	}
	return nil
}

func checkDates(cert *x509.Certificate, now time.Time) error {
	switch {
	case now.Before(cert.NotBefore):
		return fmt.Errorf("certificate %q is not valid before %s; check the clock", cert.Subject, cert.NotBefore.Format(time.RFC3339))
	case now.After(cert.NotAfter):
		return fmt.Errorf("certificate %q has expired at %s; renew it", cert.Subject, cert.NotAfter.Format(time.RFC3339))
	}
	return nil
}

// checkUsage reports why clients would not use the certificate of id for usage (RFC 8894, 2.1.2).
func checkUsage(id *Identity, usage x509.KeyUsage, now time.Time) error {
	cert := id.Certificate()
	if cert.KeyUsage != 0 && cert.KeyUsage&usage != usage {
		want := "digitalSignature and keyEncipherment"
		switch usage {
		case x509.KeyUsageDigitalSignature:
			want = "digitalSignature"
		case x509.KeyUsageKeyEncipherment:
			want = "keyEncipherment"
		}
		return fmt.Errorf("keyUsage of certificate %q lacks %s; have it issued with that", cert.Subject, want)
	}
	return checkDates(cert, now)
}

// isNil reports whether v is nil or holds a nil pointer or func.
func isNil(v any) bool {
	if v == nil {
		return true
	}
	switch r := reflect.ValueOf(v); r.Kind() {
	case reflect.Pointer, reflect.Func, reflect.Map, reflect.Interface, reflect.Chan:
		return r.IsNil()
	}
	return false
}
