package scep

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
)

// A setup is what New puts together of the fields for keys.
type setup struct {
	h    *Handler
	c    *Config
	keys gates
	next *authority
}

// fieldError is an error that names a field of Config.
func fieldError(field string, err error) error { return fmt.Errorf("scep: Config.%s: %w", field, err) }

// current sets the CA, its RA and the Responder.
func (s *setup) current(ctx context.Context) (ra *Identity, err error) {
	h, c := s.h, s.c
	ca, err := newAuthority(ctx, c.CA, s.keys, false)
	if err == nil {
		err = checkDates(ca.cert(), c.Time())
	}
	if err != nil {
		return nil, fieldError("CA", err)
	}
	h.cas = []*authority{ca}
	h.ownKeys = append(h.ownKeys, ca.cert().PublicKey)
	field := "RA"
	if ra = c.RA; ra == nil {
		if ra, field = ca.identity(), "CA"; ra == nil {
			return nil, fmt.Errorf("scep: Config.RA is required with a Config.CA of type %T, which cannot open requests; make one with file.RA", c.CA)
		}
	}
	usage := x509.KeyUsageKeyEncipherment | x509.KeyUsageDigitalSignature
	replier := ra
	if c.Responder != nil {
		if err := c.Responder.check(); err != nil {
			return nil, fieldError("Responder", err)
		}
		if err := checkUsage(c.Responder, x509.KeyUsageDigitalSignature, c.Time()); err != nil {
			return nil, fieldError("Responder", err)
		}
		h.ownKeys = append(h.ownKeys, c.Responder.Key.Public())
		usage, replier = x509.KeyUsageKeyEncipherment, c.Responder
	}
	err = s.open(field, ra, replier, ca)
	if err == nil {
		err = checkUsage(ra, usage, c.Time())
		if err != nil && field == "CA" {
			err = fmt.Errorf("%w; or set Config.RA (see file.RA)", err)
		}
		if err != nil {
			err = fieldError(field, err)
		}
	}
	return ra, err
}

// upcoming sets the next CA and its RA.
func (s *setup) upcoming(ctx context.Context) error {
	h, c := s.h, s.c
	if c.Next == nil {
		if c.NextRA != nil {
			return fieldError("NextRA", errors.New("is set without Config.Next"))
		}
		return nil
	}
	a, err := newAuthority(ctx, c.Next, s.keys, true)
	switch {
	case err != nil:
	case a.cert().Equal(h.now().cert()):
		err = errors.New("is Config.CA")
	case c.Time().After(a.cert().NotAfter):
		err = checkDates(a.cert(), c.Time())
	default:
		err = s.distinct(a)
	}
	if err != nil {
		return fieldError("Next", err)
	}
	s.next = a
	h.cas = append(h.cas, a)
	h.ownKeys = append(h.ownKeys, a.cert().PublicKey)
	ra, field := c.NextRA, "NextRA"
	switch {
	case a.ca == nil && ra != nil:
		return fieldError("NextRA", errors.New("is of no use while Config.Next has no key"))
	case a.ca == nil:
		return nil // is published, and that is all
	case ra == nil:
		if ra, field = a.identity(), "Next"; ra == nil {
			return fmt.Errorf("scep: Config.NextRA is required with a Config.Next of type %T, which cannot open requests; make one with file.RA", c.Next)
		}
	}
	if err := s.open(field, ra, ra, a); err != nil {
		return err
	}
	// It may begin to be valid only when it takes over.
	at := c.Time()
	if begin := ra.Certificate().NotBefore; begin.After(at) {
		at = begin
	}
	if err := checkUsage(ra, x509.KeyUsageKeyEncipherment|x509.KeyUsageDigitalSignature, at); err != nil {
		if field == "Next" {
			err = fmt.Errorf("%w; or set Config.NextRA (see file.RA)", err)
		}
		return fieldError(field, err)
	}
	return nil
}

// past sets the CAs and RAs of before.
func (s *setup) past(ctx context.Context) error {
	h, c := s.h, s.c
	for i, ca := range c.PastCA {
		field := fmt.Sprintf("PastCA[%d]", i)
		if isNil(ca) {
			return fieldError(field, errors.New("is nil"))
		}
		a, err := newAuthority(ctx, ca, s.keys, true)
		if err == nil {
			err = s.addPast(a)
		}
		if err != nil {
			return fieldError(field, err)
		}
	}
	for i, id := range c.PastRA {
		field := fmt.Sprintf("PastRA[%d]", i)
		if id == nil {
			return fieldError(field, errors.New("is nil"))
		}
		if err := id.check(); err != nil {
			return fieldError(field, err)
		}
		if checkCA(id.Certificates) == nil {
			if err := s.addPast(&authority{ca: id, chain: id.Certificates, gate: s.keys.gate(id)}); err != nil {
				return fieldError(field, err)
			}
		}
		of := h.now()
		for _, a := range h.cas {
			if cert := id.Certificate(); cert.Equal(a.cert()) || bytes.Equal(cert.RawIssuer, a.cert().RawSubject) && cert.CheckSignatureFrom(a.cert()) == nil {
				of = a
				break
			}
		}
		replier := id
		// Who knows a past CA alone would not take the Responder of this one.
		if c.Responder != nil && (of == h.now() || checkUsage(id, x509.KeyUsageDigitalSignature, id.Certificate().NotBefore) != nil) {
			replier = c.Responder
		}
		if err := s.open(field, id, replier, of); err != nil {
			return err
		}
	}
	return nil
}

// addPast adds a, unless there is one like it.
func (s *setup) addPast(a *authority) error {
	if slices.ContainsFunc(s.h.cas, func(b *authority) bool { return b.cert().Equal(a.cert()) }) {
		return nil
	}
	a.past = true
	s.h.cas = append(s.h.cas, a)
	s.h.ownKeys = append(s.h.ownKeys, a.cert().PublicKey)
	return s.distinct(a)
}

// distinct reports whether what names a as its issuer could mean another CA with another key.
func (s *setup) distinct(a *authority) error {
	for _, b := range s.h.cas {
		if bytes.Equal(a.cert().RawSubject, b.cert().RawSubject) && bytes.Equal(a.cert().SubjectKeyId, b.cert().SubjectKeyId) && !a.same(b) {
			return fmt.Errorf("certificate %q has name and subjectKeyIdentifier (%x) of another CA, with another key: certificates would not say which of them issues; have it issued with a subjectKeyIdentifier of its own",
				a.cert().Subject, a.cert().SubjectKeyId)
		}
	}
	return nil
}

// warn logs that ra, if there is one, has a certificate that ca did not issue.
func (s *setup) warn(ra *Identity, ca *authority) {
	if ra == nil || ra.Certificate().Equal(ca.cert()) || ra.Certificate().CheckSignatureFrom(ca.cert()) == nil {
		return
	}
	s.c.Log.Warn("scep: the RA certificate was not issued by the CA; Apple and Intune clients will refuse it",
		slog.String("ra", ra.Certificate().Subject.String()), slog.String("ca", ca.cert().Subject.String()))
}

// open has id open requests for ca, and replier answer them.
func (s *setup) open(field string, id, replier *Identity, ca *authority) error {
	if err := id.check(); err != nil {
		return fieldError(field, err)
	}
	o, err := newOpener(id, replier)
	if err != nil {
		switch field {
		case "CA":
			err = fmt.Errorf("%w; or set Config.RA (see file.RA)", err)
		case "Next":
			err = fmt.Errorf("%w; or set Config.NextRA (see file.RA)", err)
		}
		return fieldError(field, err)
	}
	for i := range s.h.opens {
		if b := &s.h.opens[i]; bytes.Equal(o.cert.RawIssuer, b.cert.RawIssuer) && bytes.Equal(o.cert.RawSerial, b.cert.RawSerial) &&
			!bytes.Equal(o.cert.Raw, b.cert.Raw) {
			return fieldError(field, fmt.Errorf("certificate %q has issuer and serial number of another, %q: requests would not say which of them is addressed",
				id.Certificate().Subject, b.id.Certificate().Subject))
		}
	}
	o.unwraps, o.replies, o.ca = s.keys.gate(id), s.keys.gate(replier), ca
	s.h.opens = append(s.h.opens, o)
	s.h.ownKeys = append(s.h.ownKeys, id.Key.Public())
	return nil
}

// gates has one gate for each identity, whatever its uses.
type gates struct {
	limit int
	given bool // by Limits.Keys, so that no key has a say
	of    map[*Identity]gate
}

func (g gates) gate(id *Identity) gate {
	if g.of[id] == nil {
		n := g.limit
		if k, ok := id.Key.(interface{ Concurrency() int }); ok && !g.given {
			n = max(1, k.Concurrency())
		}
		g.of[id] = newGate(n)
	}
	return g.of[id]
}
