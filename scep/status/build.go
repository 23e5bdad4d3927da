package status

import (
	"bytes"
	"context"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/scepkit/scepkit/scep"
)

// A draft is a CRL that is put together in one slice: room for what comes before the entries, then the entries as
// the depot tells them, then the rest. What comes before is as long as it turns out to be, and ends
// where the entries begin. So a million entries take the room of a million entries, about 50 bytes
// each. Entries beyond the size that was expected go into parts, and all into one slice in the end:
// a slice that grows would leave its former selves behind.
type draft struct {
	shard  int
	room   int      // of what comes before the entries
	parts  [][]byte // that are full
	buf    []byte   // the last, with spare capacity
	length int      // of parts
	count  int
}

// maxEntry is how long an entry is at most; maxTail how long is what comes after the extensions.
const (
	maxEntry = 128
	maxTail  = 4096
)

// newDraft returns one that needs no parts if the CRL has at most this size.
func newDraft(shard int, issuer []byte, size int) *draft {
	room := len(issuer) + 128 // lengths of up to four bytes, the algorithm and two times
	return &draft{shard: shard, room: room, buf: make([]byte, room, max(size, room+1024))}
}

// extend makes room for an entry.
func (l *draft) extend() {
	if cap(l.buf)-len(l.buf) >= maxEntry {
		return
	}
	l.parts, l.length = append(l.parts, l.buf), l.length+len(l.buf)
	l.buf = make([]byte, 0, min(max(l.length/4, 1<<10), 1<<20))
}

// join has all entries in buf, and room for so much after them.
func (l *draft) join(after int) {
	if len(l.parts) == 0 && cap(l.buf)-len(l.buf) >= after {
		return
	}
	whole := make([]byte, 0, l.length+len(l.buf)+after)
	for i, part := range l.parts {
		whole, l.parts[i] = append(whole, part...), nil
	}
	l.buf, l.parts = append(whole, l.buf...), nil
}

// add appends a revokedCertificates entry (RFC 5280, 5.1.2.6), or one that removes what has been
// unrevoked from the base that a delta CRL is for.
func (l *draft) add(r scep.Revocation) error {
	if r.Serial == nil || r.Serial.BitLen() > 8*64 {
		return fmt.Errorf("status: the depot tells of a certificate with serial number %x", r.Serial)
	}
	at, reason := r.Revoked, byte(0)
	switch {
	case !r.Unrevoked.IsZero():
		at, reason = r.Unrevoked, 8 // removeFromCRL
	case r.Reason.Valid(): // what is not does not keep others from being revoked
		reason = byte(r.Reason)
	}
	number := r.Serial
	if number.Sign() < 0 { // no CA should, and some did: two's complement
		octets := uint(number.BitLen()/8 + 1)
		number = new(big.Int).Add(number, new(big.Int).Lsh(big.NewInt(1), 8*octets))
	}
	serial := r.Serial.BitLen()/8 + 1 // with a sign bit
	length := 2 + serial + timeSize(at)
	if reason != 0 {
		length += len(reasonExtension) + 1
	}
	l.extend()
	l.buf = append(l.buf, 0x30, byte(length), 0x02, byte(serial)) // all below 128
	n := len(l.buf)
	l.buf = append(l.buf, make([]byte, serial)...)
	number.FillBytes(l.buf[n:])
	l.buf = appendTime(l.buf, at)
	if reason != 0 { // RFC 5280, 5.3.1: unspecified is left out
		l.buf = append(append(l.buf, reasonExtension...), reason)
	}
	l.count++
	return nil
}

// reasonExtension is crlEntryExtensions with reasonCode, up to its last byte.
const reasonExtension = "\x30\x0c\x30\x0a\x06\x03\x55\x1d\x15\x04\x03\x0a\x01"

// timeSize returns the length of a Time.
func timeSize(t time.Time) int {
	if y := t.UTC().Year(); y < 1950 || y >= 2050 {
		return 17
	}
	return 15
}

// appendTime writes a Time (RFC 5280, 5.1.2.4).
func appendTime(b []byte, t time.Time) []byte {
	if timeSize(t) == 15 {
		return t.UTC().AppendFormat(append(b, byte(cbasn1.UTCTime), 13), "060102150405Z")
	}
	return t.UTC().AppendFormat(append(b, byte(cbasn1.GeneralizedTime), 15), "20060102150405Z")
}

// terms are what a CRL says besides its entries.
type terms struct {
	number, base    *big.Int // base is that which a delta CRL is for, or nil
	this, next      time.Time
	point, freshest string // URLs: of issuingDistributionPoint, and of the delta CRL; or empty
	authorityKeyID  []byte
	issuer          []byte // DER of Name
	algorithm       []byte
}

// holds reports whether the entries so far are these.
func (l *draft) holds(entries []byte) bool {
	skip := l.room
	for i := range len(l.parts) + 1 {
		part := l.buf
		if i < len(l.parts) {
			part = l.parts[i]
		}
		part, skip = part[skip:], 0
		if !bytes.HasPrefix(entries, part) {
			return false
		}
		entries = entries[len(part):]
	}
	return len(entries) == 0
}

// finish writes the rest and signs. The results are l.buf's: the CRL, and the entries in it.
func (l *draft) finish(ctx context.Context, s *signer, t *terms) (der, entries []byte, err error) {
	extensions, err := t.extensions()
	if err != nil {
		return nil, nil, fmt.Errorf("status: CRL extensions: %w", err)
	}
	l.join(len(extensions) + maxTail)
	length := len(l.buf) - l.room
	var before []byte // from the inside to the outside
	if length > 0 {
		before = header(cbasn1.SEQUENCE, length)
	}
	before = append(appendTime(appendTime(append(append([]byte{2, 1, 1}, t.algorithm...), t.issuer...), t.this), t.next), before...)
	before = append(header(cbasn1.SEQUENCE, len(before)+length+len(extensions)), before...)

	start := l.room - len(before)
	if start < 8 {
		return nil, nil, errors.New("status: no room for the head of the CRL")
	}
	copy(l.buf[start:], before)
	l.buf = append(l.buf, extensions...)
	sig, err := s.sign(ctx, l.buf[start:])
	if err != nil {
		return nil, nil, err
	}
	var tail cryptobyte.Builder
	tail.AddBytes(t.algorithm)
	tail.AddASN1BitString(sig)
	end, err := tail.Bytes()
	if err != nil {
		return nil, nil, fmt.Errorf("status: CRL: %w", err)
	}
	l.buf = append(l.buf, end...)
	outer := header(cbasn1.SEQUENCE, len(l.buf)-start)
	start -= len(outer)
	copy(l.buf[start:], outer)
	if err := checkDER(l.buf[start:], l.count); err != nil {
		return nil, nil, err
	}
	return l.buf[start:], l.buf[l.room : l.room+length], nil
}

// header returns tag and length of an element.
func header(tag cbasn1.Tag, length int) []byte {
	switch {
	case length < 0x80:
		return []byte{byte(tag), byte(length)}
	case length < 1<<8:
		return []byte{byte(tag), 0x81, byte(length)}
	case length < 1<<16:
		return []byte{byte(tag), 0x82, byte(length >> 8), byte(length)}
	case length < 1<<24:
		return []byte{byte(tag), 0x83, byte(length >> 16), byte(length >> 8), byte(length)}
	}
	return []byte{byte(tag), 0x84, byte(length >> 24), byte(length >> 16), byte(length >> 8), byte(length)}
}

// checkDER reads a CRL as far as its entries have a say: that there are so many, each well-formed,
// and nothing else. crypto/x509 would take ten times the memory.
func checkDER(der []byte, count int) error {
	malformed := errors.New("status: the CRL came out malformed")
	in := cryptobyte.String(der)
	var crl, tbs, entries cryptobyte.String
	if !in.ReadASN1(&crl, cbasn1.SEQUENCE) || !in.Empty() || !crl.ReadASN1(&tbs, cbasn1.SEQUENCE) ||
		!crl.SkipASN1(cbasn1.SEQUENCE) || !crl.SkipASN1(cbasn1.BIT_STRING) || !crl.Empty() ||
		!tbs.SkipASN1(cbasn1.INTEGER) || !tbs.SkipASN1(cbasn1.SEQUENCE) || !tbs.SkipASN1(cbasn1.SEQUENCE) ||
		!skipTime(&tbs) || !skipTime(&tbs) || count > 0 && !tbs.ReadASN1(&entries, cbasn1.SEQUENCE) ||
		!tbs.SkipASN1(cbasn1.Tag(0).Constructed().ContextSpecific()) || !tbs.Empty() {
		return malformed
	}
	for ; !entries.Empty(); count-- {
		var e cryptobyte.String
		if !entries.ReadASN1(&e, cbasn1.SEQUENCE) || !e.SkipASN1(cbasn1.INTEGER) || !skipTime(&e) ||
			!e.SkipOptionalASN1(cbasn1.SEQUENCE) || !e.Empty() {
			return malformed
		}
	}
	if count != 0 {
		return malformed
	}
	return nil
}

func skipTime(s *cryptobyte.String) bool {
	return s.PeekASN1Tag(cbasn1.UTCTime) && s.SkipASN1(cbasn1.UTCTime) || s.SkipASN1(cbasn1.GeneralizedTime)
}

// extensions returns crlExtensions (RFC 5280, 5.2).
func (t *terms) extensions() ([]byte, error) {
	var b cryptobyte.Builder
	context := func(n uint8) cbasn1.Tag { return cbasn1.Tag(n).ContextSpecific() }
	number := func(n *big.Int) func(*cryptobyte.Builder) {
		return func(b *cryptobyte.Builder) { b.AddASN1BigInt(n) }
	}
	// point is a DistributionPointName with one URL.
	point := func(url string) func(*cryptobyte.Builder) {
		return func(b *cryptobyte.Builder) {
			b.AddASN1(context(0).Constructed(), func(b *cryptobyte.Builder) { // distributionPoint
				b.AddASN1(context(0).Constructed(), func(b *cryptobyte.Builder) { // fullName
					b.AddASN1(context(6), func(b *cryptobyte.Builder) { b.AddBytes([]byte(url)) })
				})
			})
		}
	}
	b.AddASN1(context(0).Constructed(), func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			add := func(id int, critical bool, value func(*cryptobyte.Builder)) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{2, 5, 29, id})
					if critical {
						b.AddASN1Boolean(true)
					}
					b.AddASN1(cbasn1.OCTET_STRING, value)
				})
			}
			if len(t.authorityKeyID) > 0 {
				add(35, false, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1(context(0), func(b *cryptobyte.Builder) { b.AddBytes(t.authorityKeyID) })
					})
				})
			}
			add(20, false, number(t.number))
			if t.base != nil {
				add(27, true, number(t.base))
			}
			if t.point != "" {
				add(28, true, func(b *cryptobyte.Builder) { b.AddASN1(cbasn1.SEQUENCE, point(t.point)) })
			}
			if t.freshest != "" {
				add(46, false, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1(cbasn1.SEQUENCE, point(t.freshest)) })
				})
			}
		})
	})
	return b.Bytes()
}
