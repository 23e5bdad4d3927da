package challenge

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// OneTime makes challenges that each admit one request, and no other, for a limited time. The
// request that spent a challenge may be sent again: a lost reply locks nobody out. Set the fields
// before the first use. Methods may be called concurrently, and by any number of processes over
// one Store.
//
// Where Store is Config.Depot itself, and that is a [scep.Spender] as those of this module are, a
// challenge is spent in the step in which the record of its request is created. So it is good still
// if the policy refuses, or the process dies before that: for the same request and for a corrected
// one. Elsewhere it is spent when Validate admits the request, and then only that one, sent again,
// can still use it.
type OneTime struct {
	// Store keeps the hashes of the challenges: a depot, best the very value that is
	// Config.Depot. Required.
	Store scep.ChallengeStore

	// Profile is that of the handler for which challenges are made: its Config.Profile. A
	// challenge is refused by the handlers of other profiles.
	Profile string

	// TTL is how long a challenge is good; if zero, one hour.
	TTL time.Duration

	// Limit is how many unspent challenges the profile may have; if zero, 100. Negative: no
	// limit.
	Limit int

	// Key, if not empty, goes into the hashes, so that whoever can read and write the store,
	// but does not know Key, cannot make challenges. Challenges made under another Key are
	// refused.
	Key scep.Secret

	// Time returns the current time; if nil, time.Now.
	Time func() time.Time
}

// A Binding says which names a challenge is good for. The zero Binding is for any.
type Binding struct {
	// Subject must be the subject of the CSR, as [pkix.Name.String] writes it: "CN=device-1".
	Subject string

	// DNSNames, EmailAddresses, IPAddresses, URIs and UPNs must be, taken together, the
	// alternative names of the CSR: all of them and no others, in any order. If they are
	// empty and there is a Subject, the CSR must have none.
	DNSNames, EmailAddresses, URIs, UPNs []string
	IPAddresses                          []net.IP

	// AnyNames admits any alternative names, whatever the fields for them say.
	AnyNames bool
}

// retryWindow is how long after a challenge was spent the same request is admitted without a
// record. After that its record has been pruned, and it must not get another certificate.
const retryWindow = 24 * time.Hour

// New returns a fresh challenge: 26 letters and digits, which every client can write into a CSR
// and every profile can hold. If Limit is reached the error wraps [scep.ErrLimit].
func (o *OneTime) New(ctx context.Context, b Binding) (scep.Secret, error) {
	if err := o.Check(); err != nil {
		return scep.Secret{}, err
	}
	limit := o.Limit
	if limit == 0 {
		limit = 100
	}
	ttl := o.TTL
	if ttl == 0 {
		ttl = time.Hour
	}
	text, now := rand.Text(), o.now()
	c := &scep.OneTimeChallenge{
		Hash: o.hash(text), Profile: o.Profile, Subject: b.Subject, SAN: b.san(), Created: now, Expires: now.Add(ttl),
	}
	if err := o.Store.PutChallenge(ctx, c, now, max(limit, 0)); errors.Is(err, scep.ErrLimit) {
		return scep.Secret{}, fmt.Errorf("challenge: OneTime.Limit is %d; raise it, or wait until challenges are spent or, after OneTime.TTL of %v, expire: %w", limit, ttl, err)
	} else if err != nil {
		return scep.Secret{}, fmt.Errorf("challenge: storing a one-time challenge: %w", err)
	}
	return scep.NewSecret(text), nil
}

// Validate implements [scep.Challenge].
func (o *OneTime) Validate(ctx context.Context, req *scep.Request) error {
	if err := o.Check(); err != nil {
		return err
	}
	text := req.Secret.Reveal()
	if text == "" {
		return refused("no challenge")
	}
	hash, now := o.hash(text), o.now()
	c, err := o.Store.GetChallenge(ctx, hash)
	if errors.Is(err, scep.ErrNotFound) {
		return refused("no such challenge")
	}
	if err != nil {
		return fmt.Errorf("challenge: looking up a one-time challenge: %w", err)
	}
	switch {
	case c.Profile != req.Profile:
		return refused("the challenge is for profile " + strconv.Quote(c.Profile))
	case c.SpentBy == req.ID && c.SpentBy != "" && now.Sub(c.Spent) <= retryWindow:
		return nil // a retry, after a crash: otherwise the record answers it
	case c.SpentBy != "":
		return refused("the challenge was spent by record " + string(c.SpentBy))
	case !now.Before(c.Expires):
		return refused("the challenge expired at " + c.Expires.UTC().Format(time.RFC3339))
	case c.Subject != "" && (c.Subject != req.CSR.Subject.String() || hides(req.CSR.Subject)):
		return refused("the challenge is for another subject")
	case c.SAN != "" && c.SAN != requested(req.CSR):
		return refused("the challenge is for other alternative names")
	}
	if req.Spend(o.Store, hash, now) {
		return nil
	}
	by, err := o.Store.SpendChallenge(ctx, hash, req.ID, now)
	if errors.Is(err, scep.ErrNotFound) {
		return refused("no such challenge")
	}
	if err != nil {
		return fmt.Errorf("challenge: spending a one-time challenge: %w", err)
	}
	if by != req.ID {
		return refused("the challenge was spent by record " + string(by))
	}
	return nil
}

// Check implements the check that [scep.New] makes.
func (o *OneTime) Check() error {
	switch {
	case o.Store == nil:
		return errors.New("challenge: OneTime.Store is required: a depot")
	case o.TTL < 0:
		return errors.New("challenge: OneTime.TTL is negative")
	}
	return nil
}

func (o *OneTime) now() time.Time {
	if o.Time == nil {
		return time.Now()
	}
	return o.Time()
}

// hash names a challenge in the store. The challenges have 130 random bits: nothing slower is
// needed to keep them secret.
func (o *OneTime) hash(text string) scep.ID {
	h := hmac.New(sha256.New, []byte(o.Key.Reveal()))
	h.Write([]byte("scepkit one-time challenge"))
	h.Write([]byte(text))
	return scep.ID(hex.EncodeToString(h.Sum(nil)))
}

// hides reports whether String does not write all of a parsed name: of several common names or
// serial numbers it writes the last, and of the usual attributes only those that are text. The
// certificate could have them all.
func hides(name pkix.Name) bool {
	usual, written := 0, 0
	for _, a := range name.Names {
		if t := a.Type; len(t) == 4 && t[0] == 2 && t[1] == 5 && t[2] == 4 && slices.Contains(usualAttributes[:], t[3]) {
			usual++
		}
	}
	for _, rdn := range name.ToRDNSequence() {
		written += len(rdn)
	}
	return usual != written
}

// usualAttributes are those below 2.5.4 that have a field in pkix.Name.
var usualAttributes = [...]int{3, 5, 6, 7, 8, 9, 10, 11, 17}

// san writes the alternative names of b such that equal sets are equal texts, or nothing if any
// names will do.
func (b *Binding) san() string {
	var names []string
	add := func(kind string, values ...string) {
		for _, v := range values {
			names = append(names, kind+strconv.Quote(v))
		}
	}
	add("DNS:", b.DNSNames...)
	add("email:", b.EmailAddresses...)
	add("URI:", b.URIs...)
	add("UPN:", b.UPNs...)
	for _, ip := range b.IPAddresses {
		add("IP:", ip.String())
	}
	if b.AnyNames || len(names) == 0 && b.Subject == "" {
		return ""
	}
	return setOf(names)
}

func setOf(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), ",")
}

var (
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidNTPrincipal    = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 3}
)

// requested writes the alternative names that a CSR asks for as Binding.san does. A name that a
// Binding cannot have makes a text that no Binding has.
func requested(csr *x509.CertificateRequest) string {
	i := slices.IndexFunc(csr.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidSubjectAltName) })
	if i < 0 {
		return setOf(nil)
	}
	var list []asn1.RawValue
	if rest, err := asn1.Unmarshal(csr.Extensions[i].Value, &list); err != nil || len(rest) > 0 {
		return "?"
	}
	var names []string
	for _, n := range list {
		switch {
		case n.Class != asn1.ClassContextSpecific:
			return "?"
		case n.Tag == 0:
			upn, ok := principalName(n.Bytes)
			if !ok {
				return "?"
			}
			names = append(names, "UPN:"+strconv.Quote(upn))
		case n.Tag == 1:
			names = append(names, "email:"+strconv.Quote(string(n.Bytes)))
		case n.Tag == 2:
			names = append(names, "DNS:"+strconv.Quote(string(n.Bytes)))
		case n.Tag == 6:
			names = append(names, "URI:"+strconv.Quote(string(n.Bytes)))
		case n.Tag == 7:
			names = append(names, "IP:"+strconv.Quote(net.IP(n.Bytes).String()))
		default:
			return "?"
		}
	}
	return setOf(names)
}

// principalName reads the content of an otherName with ntPrincipalName.
func principalName(der []byte) (string, bool) {
	var oid asn1.ObjectIdentifier
	rest, err := asn1.Unmarshal(der, &oid)
	if err != nil || !oid.Equal(oidNTPrincipal) {
		return "", false
	}
	var text string
	if rest, err = asn1.UnmarshalWithParams(rest, &text, "explicit,tag:0,utf8"); err != nil || len(rest) > 0 {
		return "", false
	}
	return text, true
}
