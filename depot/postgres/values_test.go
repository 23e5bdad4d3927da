package postgres_test

import (
	"bytes"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/scepkit/scepkit/depot/postgres"
	"github.com/scepkit/scepkit/depot/postgres/postgrestest"
	"github.com/scepkit/scepkit/scep"
)

func FuzzEscape(f *testing.F) {
	for _, s := range []string{"", "plain", `\`, `\\x00`, "\x00", "\xff\xfe", "ü\xc3", `\x0`, "\u2028�", `C:\x41`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e := postgres.Escape(s)
		if !utf8.ValidString(e) || strings.Contains(e, "\x00") {
			t.Errorf("%q is written as %q, which PostgreSQL cannot hold", s, e)
		}
		if got := postgres.Unescape(e); got != s {
			t.Errorf("%q is written as %q and read as %q", s, e, got)
		}
		postgres.Unescape(s) // does not panic
	})
}

// TestHostileText stores what no text column can hold, in every field that is text.
func TestHostileText(t *testing.T) {
	db := open(t, postgres.Config{URL: postgrestest.Shared(t).Database(t)})
	for i, bad := range []string{"\x00", "a\x00b", "\xff\xc3(", `\x00`, `\`, "'; DROP TABLE record; --", strings.Repeat("\x80", 10_000), "\xed\xa0\x80"} {
		rec := record("hostile " + bad)
		rec.Profile, rec.TransactionID, rec.RemoteAddr, rec.Via, rec.Reason = bad, bad, bad, bad, bad
		if err := db.Create(t.Context(), rec); err != nil {
			t.Errorf("%.20q: %v", bad, err)
			continue
		}
		got, err := db.List(t.Context(), scep.Query{Profile: &bad})
		if err != nil || len(got) != 1 || got[0].Profile != bad || got[0].TransactionID != bad || got[0].RemoteAddr != bad || got[0].Via != bad || got[0].Reason != bad {
			t.Errorf("%.20q: came back as %+v, %v", bad, got, err)
		}
		c := challengeOf(bad)
		c.Profile, c.Subject, c.SAN = bad, bad, bad
		if err := db.PutChallenge(t.Context(), c, c.Created, 1); err != nil {
			t.Errorf("%d: PutChallenge: %v", i, err)
		}
		if got, err := db.GetChallenge(t.Context(), c.Hash); err != nil || got.Profile != bad || got.Subject != bad || got.SAN != bad {
			t.Errorf("%.20q: came back as %+v, %v", bad, got, err)
		}
	}
}

func TestSerials(t *testing.T) {
	db := open(t, postgres.Config{URL: postgrestest.Shared(t).Database(t)})
	long := new(big.Int).SetBytes(bytes.Repeat([]byte{0xff}, 20))
	for _, n := range []*big.Int{new(big.Int), big.NewInt(1), big.NewInt(-1), big.NewInt(-256), long, new(big.Int).Neg(long)} {
		for _, issuer := range []string{"", "issuer"} {
			rec := record(n.String() + issuer)
			rec.Serial, rec.Issuer = n, []byte(issuer)
			if err := db.Create(t.Context(), rec); err != nil {
				t.Fatalf("%x of %q: %v", n, issuer, err)
			}
			got, err := db.GetSerial(t.Context(), []byte(issuer), n)
			if err != nil || got.ID != rec.ID || got.Serial.Cmp(n) != 0 {
				t.Errorf("%x of %q: %v, %v", n, issuer, got, err)
			}
		}
		if _, err := db.GetSerial(t.Context(), []byte("unknown issuer"), n); err != scep.ErrNotFound {
			t.Errorf("%x of an unknown issuer: %v", n, err)
		}
	}
}

// TestManyRevocations has more than one page of them.
func TestManyRevocations(t *testing.T) {
	server := postgrestest.Shared(t)
	url := server.Database(t)
	db := open(t, postgres.Config{URL: url})
	const n = 12_000
	server.Exec(t, databaseOf(url), fmt.Sprintf(fill, 1, n, n), `UPDATE scep.record SET state = 5, revoked = now(), revocation_reason = 1`)
	for _, since := range []time.Time{{}, time.Now().Add(-time.Hour)} {
		seen := map[string]bool{}
		err := db.Revocations(t.Context(), scep.RevocationQuery{Issuer: []byte("issuer"), Since: since}, func(r scep.Revocation) error {
			seen[r.Serial.String()] = true
			return nil
		})
		if err != nil || len(seen) != n {
			t.Errorf("since %v: %d revocations, %v; want %d", since, len(seen), err, n)
		}
	}
}
