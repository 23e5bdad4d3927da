package postgres

import (
	"encoding/hex"
	"math/big"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/scepkit/scepkit/scep"
)

// How values are stored; back again below.

// digits returns the 32 bytes of a valid ID.
func digits(id scep.ID) []byte {
	b := make([]byte, 0, 32)
	b, _ = hex.AppendDecode(b, []byte(id))
	return b
}

func allDigits(ids []scep.ID) []byte {
	var b []byte
	for _, id := range ids {
		b = append(b, digits(id)...)
	}
	return b
}

// optional returns the time to store, or nil for none.
func optional(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// text returns the text to store, or nil for none.
func text(s string) *string {
	if s == "" {
		return nil
	}
	s = escape(s)
	return &s
}

func blob(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return b
}

// number returns the big-endian bytes of n, behind a zero byte if it is negative or zero.
func number(n *big.Int) []byte {
	switch {
	case n == nil:
		return nil
	case n.Sign() <= 0:
		return append([]byte{0}, n.Bytes()...)
	}
	return n.Bytes()
}

// escape returns s as text that PostgreSQL can hold, the same for no other s: zero bytes and what
// is not UTF-8 as \x00, and a backslash as two.
func escape(s string) string {
	if utf8.ValidString(s) && !strings.ContainsAny(s, "\x00\\") {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == '\\':
			b.WriteString(`\\`)
		case r == 0, r == utf8.RuneError && n == 1:
			b.WriteString(`\x`)
			b.WriteString(hex.EncodeToString([]byte(s[:1])))
		default:
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return b.String()
}

// unescape undoes escape.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for {
		before, after, found := strings.Cut(s, `\`)
		b.WriteString(before)
		switch {
		case !found:
			return b.String()
		case strings.HasPrefix(after, `\`):
			b.WriteByte('\\')
			s = after[1:]
		case strings.HasPrefix(after, "x") && len(after) >= 3:
			raw, _ := hex.DecodeString(after[1:3])
			b.Write(raw)
			s = after[3:]
		default:
			s = after // escape writes no such thing
		}
	}
}

func toID(b []byte) scep.ID { return scep.ID(hex.EncodeToString(b)) }

func toIDs(b []byte) []scep.ID {
	var ids []scep.ID
	for ; len(b) >= 32; b = b[32:] {
		ids = append(ids, toID(b[:32]))
	}
	return ids
}

func toTime(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}

func toText(s *string) string {
	if s == nil {
		return ""
	}
	return unescape(*s)
}

func toNumber(b []byte) *big.Int {
	if b == nil {
		return nil
	}
	n := new(big.Int).SetBytes(b)
	if len(b) > 0 && b[0] == 0 {
		n.Neg(n)
	}
	return n
}
