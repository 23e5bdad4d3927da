package sqlite

import (
	"database/sql/driver"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// TestMigrate opens a file of the first version, with records in it.
func TestMigrate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "scep.db")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := connect(path, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range migrations[0] {
		if err := c.once(step); err != nil {
			t.Fatal(err)
		}
	}
	id := scep.ID(fmt.Sprintf("%064x", 7))
	for _, step := range []string{
		fmt.Sprintf("PRAGMA application_id = %d", applicationID),
		"PRAGMA user_version = 1",
		"INSERT INTO issuer (number, name) VALUES (1, x'3000')",
		fmt.Sprintf(`INSERT INTO record (id, trans, version, state, profile, changed, issuer, serial, revoked, revocation_reason, unconfirmed, generation, fail_info)
			VALUES (x'%s', x'%s', 3, 5, '', 1000000, 1, x'0102', 1000000, 1, 0, 0, 0)`, id, id),
	} {
		if err := c.once(step); err != nil {
			t.Fatal(step, err)
		}
	}
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		db, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		rec, err := db.Get(t.Context(), id)
		if err != nil || rec.State != scep.Revoked || rec.DecidedBy != "" || !rec.Unrevoked.IsZero() {
			t.Errorf("%+v, %v", rec, err)
		}
		n := 0
		err = db.Revocations(t.Context(), scep.RevocationQuery{Issuer: []byte{0x30, 0}}, func(r scep.Revocation) error {
			n++
			if r.Serial.Cmp(big.NewInt(0x102)) != 0 || r.Reason != scep.KeyCompromise || !r.Revoked.Equal(time.Unix(1, 0)) {
				return fmt.Errorf("%+v", r)
			}
			return nil
		})
		if err != nil || n != 1 {
			t.Errorf("%d revocations, %v", n, err)
		}
		if _, err := db.Get(t.Context(), scep.ID(fmt.Sprintf("%064x", 8))); !errors.Is(err, scep.ErrNotFound) {
			t.Error(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRevocationPlan has the listing of revocations read indexes alone.
func TestRevocationPlan(t *testing.T) {
	db, err := Open(filepath.Join(t.TempDir(), "scep.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for query, args := range map[string]int{listRevoked: 2, listChangedSince: 3} {
		err := db.read(t.Context(), func(r *reader) error {
			return r.each(t.Context(), "EXPLAIN QUERY PLAN "+query, 4, []driver.Value{int64(1), nil, int64(1)}[:args], func(row []driver.Value) error {
				if step := toText(row[3]); strings.Contains(step, "record") && !strings.Contains(step, "USING COVERING INDEX") {
					t.Errorf("%s\n%s", query, step)
				}
				return nil
			})
		})
		if err != nil {
			t.Error(err)
		}
	}
}
