package postgres_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot/postgres"
	"github.com/scepkit/scepkit/depot/postgres/postgrestest"
	"github.com/scepkit/scepkit/scep"
)

// An operation is one call whose connection is lost, and how to see whether it has happened.
type operation struct {
	name     string
	reads    bool
	hang     bool // try also what hangs, which takes a while
	setUp    func(t *testing.T, db *postgres.DB, name string)
	do       func(t *testing.T, db *postgres.DB, name string) error
	happened func(t *testing.T, db *postgres.DB, name string) bool
}

func challengeOf(name string) *scep.OneTimeChallenge {
	return &scep.OneTimeChallenge{Hash: record("challenge " + name).ID, Created: time.Now(), Expires: time.Now().Add(time.Hour)}
}

func create(t *testing.T, db *postgres.DB, name string) {
	t.Helper()
	if err := db.Create(t.Context(), record(name)); err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, db *postgres.DB, name string) {
	t.Helper()
	if err := db.PutChallenge(t.Context(), challengeOf(name), time.Now(), 0); err != nil {
		t.Fatal(err)
	}
}

// there reports whether a record is there, and which version.
func there(t *testing.T, db *postgres.DB, name string) (*scep.Record, bool) {
	t.Helper()
	rec, err := db.Get(t.Context(), record(name).ID)
	if err != nil && !errors.Is(err, scep.ErrNotFound) {
		t.Fatal(err)
	}
	return rec, err == nil
}

var operations = []operation{{
	name: "Create", hang: true,
	setUp: func(*testing.T, *postgres.DB, string) {},
	do: func(t *testing.T, db *postgres.DB, name string) error {
		rec := record(name)
		err := db.Create(t.Context(), rec)
		if (err == nil) != (rec.Version == 1) {
			t.Errorf("rec.Version is %d beside %v", rec.Version, err)
		}
		return err
	},
	happened: func(t *testing.T, db *postgres.DB, name string) bool {
		_, found := there(t, db, name)
		return found
	},
}, {
	name: "Create of an issuer's first", // two statements
	setUp: func(*testing.T, *postgres.DB, string) {
	},
	do: func(t *testing.T, db *postgres.DB, name string) error {
		rec := record(name)
		rec.Issuer = []byte("issuer of " + name)
		return db.Create(t.Context(), rec)
	},
	happened: func(t *testing.T, db *postgres.DB, name string) bool {
		rec, found := there(t, db, name)
		if found && !bytes.Equal(rec.Issuer, []byte("issuer of "+name)) {
			t.Errorf("the record has issuer %q", rec.Issuer)
		}
		return found
	},
}, {
	name: "Update", hang: true,
	setUp: create,
	do: func(t *testing.T, db *postgres.DB, name string) error {
		rec := record(name)
		rec.Version, rec.State, rec.Certificate = 1, scep.Issued, []byte("certificate")
		err := db.Update(t.Context(), rec)
		if (err == nil) != (rec.Version == 2) {
			t.Errorf("rec.Version is %d beside %v", rec.Version, err)
		}
		return err
	},
	happened: func(t *testing.T, db *postgres.DB, name string) bool {
		rec, _ := there(t, db, name)
		if rec.Version > 2 || rec.Version == 2 && (rec.State != scep.Issued || string(rec.Certificate) != "certificate") {
			t.Errorf("the record has version %d, %v, certificate %q", rec.Version, rec.State, rec.Certificate)
		}
		return rec.Version == 2
	},
}, {
	name:  "PutChallenge",
	setUp: func(*testing.T, *postgres.DB, string) {},
	do: func(t *testing.T, db *postgres.DB, name string) error {
		return db.PutChallenge(t.Context(), challengeOf(name), time.Now(), 1000)
	},
	happened: func(t *testing.T, db *postgres.DB, name string) bool {
		_, err := db.GetChallenge(t.Context(), challengeOf(name).Hash)
		return err == nil
	},
}, {
	name: "SpendChallenge", hang: true,
	setUp: put,
	do: func(t *testing.T, db *postgres.DB, name string) error {
		by, err := db.SpendChallenge(t.Context(), challengeOf(name).Hash, record(name).ID, time.Now())
		if err == nil && by != record(name).ID {
			t.Errorf("spent by %.8s, which nobody named", by)
		}
		return err
	},
	happened: func(t *testing.T, db *postgres.DB, name string) bool {
		c, err := db.GetChallenge(t.Context(), challengeOf(name).Hash)
		return err == nil && c.SpentBy == record(name).ID
	},
}, {
	name: "CreateSpending", hang: true,
	setUp: put,
	do: func(t *testing.T, db *postgres.DB, name string) error {
		rec := record(name)
		rec.Issuer = []byte("issuer of " + name) // whose first it is: one statement more
		err := db.CreateSpending(t.Context(), rec, challengeOf(name).Hash, time.Now())
		if (err == nil) != (rec.Version == 1) {
			t.Errorf("rec.Version is %d beside %v", rec.Version, err)
		}
		return err
	},
	happened: func(t *testing.T, db *postgres.DB, name string) bool {
		_, found := there(t, db, name)
		c, err := db.GetChallenge(t.Context(), challengeOf(name).Hash)
		if err != nil || found != (c.SpentBy == record(name).ID) {
			t.Errorf("the record is there: %t; the challenge is %v, %v", found, c, err)
		}
		return found
	},
}, {
	name: "Load", hang: true,
	setUp: func(*testing.T, *postgres.DB, string) {},
	do: func(t *testing.T, db *postgres.DB, name string) error {
		first, second := record(name), record("second of "+name)
		second.Issuer = []byte("issuer of " + name) // whose first it is
		err := db.Load(t.Context(), []*scep.Record{first, second})
		if (err == nil) != (first.Version == 1) || first.Version != second.Version {
			t.Errorf("rec.Version is %d and %d beside %v", first.Version, second.Version, err)
		}
		return err
	},
	happened: func(t *testing.T, db *postgres.DB, name string) bool {
		_, first := there(t, db, name)
		_, second := there(t, db, "second of "+name)
		if first != second {
			t.Errorf("half of it is there: %t, %t", first, second)
		}
		return first
	},
}, {
	name: "Scan", reads: true, hang: true,
	setUp: create,
	do: func(t *testing.T, db *postgres.DB, name string) error {
		found := false
		err := db.Scan(t.Context(), func(all []*scep.Record, _ float64) error {
			for _, rec := range all {
				found = found || rec.ID == record(name).ID
			}
			return nil
		})
		if err == nil && !found {
			t.Error("Scan did not come to the record")
		}
		return err
	},
}, {
	name: "Get", reads: true, hang: true,
	setUp: create,
	do: func(t *testing.T, db *postgres.DB, name string) error {
		_, err := db.Get(t.Context(), record(name).ID)
		return err
	},
}, {
	name: "List", reads: true,
	setUp: create,
	do: func(t *testing.T, db *postgres.DB, name string) error {
		all, err := db.List(t.Context(), scep.Query{State: scep.Signing})
		if err == nil && len(all) == 0 {
			t.Error("List found nothing")
		}
		return err
	},
}, {
	name: "Revocations", reads: true,
	setUp: func(*testing.T, *postgres.DB, string) {},
	do: func(t *testing.T, db *postgres.DB, name string) error {
		return db.Revocations(t.Context(), scep.RevocationQuery{Issuer: []byte("issuer")}, func(scep.Revocation) error { return nil })
	},
}, {
	name: "GetChallenge", reads: true,
	setUp: put,
	do: func(t *testing.T, db *postgres.DB, name string) error {
		_, err := db.GetChallenge(t.Context(), challengeOf(name).Hash)
		return err
	},
}}

// TestLostConnection loses the connection at every request of every operation, at every moment.
// What is answered is true, what could be learnt is answered, and the next call works.
func TestLostConnection(t *testing.T) {
	server := postgrestest.Shared(t)
	url := server.Database(t)
	direct := open(t, postgres.Config{URL: url, Timeout: patient})
	for _, op := range operations {
		for _, cut := range postgrestest.Cuts {
			timeout, soon := patient, prompt
			if cut == postgrestest.Hang {
				if !op.hang {
					continue
				}
				timeout, soon = 2*time.Second, 3*time.Second // most of it is waited each time
			}
			t.Run(fmt.Sprint(op.name, "/", cut), func(t *testing.T) {
				t.Parallel()
				proxy := server.Proxy(t)
				for skip := 0; ; skip++ {
					name := fmt.Sprint(op.name, cut, skip)
					op.setUp(t, direct, name)
					db := open(t, postgres.Config{URL: proxy.URL(url), MaxConns: 1, Timeout: timeout})
					proxy.Arm(cut, skip)
					begun := time.Now()
					err := op.do(t, db, name)
					took := time.Since(begun)
					lost := proxy.Disarm()
					if took > soon {
						t.Errorf("request %d: took %v", skip, took)
					}
					for _, wrong := range []error{scep.ErrExists, scep.ErrStale, scep.ErrNotFound, scep.ErrLimit} {
						if errors.Is(err, wrong) {
							t.Errorf("request %d: %v", skip, err)
						}
					}
					switch {
					case err != nil:
						t.Errorf("request %d: it could have been learnt: %v", skip, err)
					case !op.reads && err == nil && !op.happened(t, direct, name):
						t.Errorf("request %d: answered, and not there", skip)
					}
					if _, err := db.List(t.Context(), scep.Query{}); err != nil {
						t.Errorf("request %d: the next call: %v", skip, err)
					}
					db.Close()
					if !lost {
						if skip < 2 {
							t.Errorf("the connection could be lost at %d requests, want 2 at least", skip)
						}
						return
					}
				}
			})
		}
	}
}

// TestLostWhileIdle loses all connections while nobody uses them.
func TestLostWhileIdle(t *testing.T) {
	server := postgrestest.Shared(t)
	url := server.Database(t)
	proxy := server.Proxy(t)
	db := open(t, postgres.Config{URL: proxy.URL(url)})
	for _, rest := range []time.Duration{0, 1100 * time.Millisecond} {
		create(t, db, fmt.Sprint("before ", rest))
		proxy.Drop()
		time.Sleep(rest)
		create(t, db, fmt.Sprint("after ", rest))
	}
}

// TestLateWrite has a write arrive after its caller has been told that it may or may not have
// happened. Sent again it does not happen twice.
func TestLateWrite(t *testing.T) {
	server := postgrestest.Start(t)
	url := server.Database(t)
	db := open(t, postgres.Config{URL: url, MaxConns: 2})
	create(t, db, "before") // so that the statement is prepared
	server.Pause(t)
	begun := time.Now()
	err := db.Create(t.Context(), record("late"))
	if err == nil || !strings.Contains(err.Error(), "may or may not") {
		t.Errorf("Create while the server hangs: %v", err)
	}
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("Create took %v to say so", took)
	}
	server.Resume(t)
	other := record("late")
	other.Serial = record("another serial number").Serial
	if err := db.Create(t.Context(), other); err != nil && !errors.Is(err, scep.ErrExists) {
		t.Errorf("Create again: %v", err)
	}
	rec, found := there(t, db, "late")
	if !found || rec.Version != 1 {
		t.Fatalf("%v", rec)
	}
	time.Sleep(100 * time.Millisecond)
	if again, _ := there(t, db, "late"); again.Serial.Cmp(rec.Serial) != 0 {
		t.Errorf("the serial number was %x, and is %x", rec.Serial, again.Serial)
	}
}
