package sqlite_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot/depottest"
	"github.com/scepkit/scepkit/depot/sqlite"
	"github.com/scepkit/scepkit/scep"
)

func open(t testing.TB, path string) *sqlite.DB {
	t.Helper()
	db, err := sqlite.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func record(name string) *scep.Record {
	sum := sha256.Sum256([]byte(name))
	return &scep.Record{
		ID: scep.ID(hex.EncodeToString(sum[:])), Transaction: scep.ID(hex.EncodeToString(sum[:])),
		TransactionID: name, State: scep.Signing, Issuer: []byte("issuer"), Serial: new(big.Int).SetBytes(sum[:20]),
		CSR: []byte(name), Created: time.Now(), Changed: time.Now(),
	}
}

func TestDepot(t *testing.T) {
	var paths sync.Map
	depottest.TestDepot(t, depottest.Harness{
		Open: func(t *testing.T) scep.Depot {
			path := filepath.Join(t.TempDir(), "scep.db")
			db := open(t, path)
			paths.Store(db, path)
			return db
		},
		Reopen: func(t *testing.T, d scep.Depot) scep.Depot {
			path, _ := paths.Load(d)
			db := open(t, path.(string))
			paths.Store(db, path)
			return db
		},
	})
}

// TestKill9 kills a process in the middle of its writes: what it had acknowledged is there.
func TestKill9(t *testing.T) {
	if path := os.Getenv("SQLITE_VICTIM"); path != "" {
		victim(t, path)
		return
	}
	path := filepath.Join(t.TempDir(), "scep.db")
	acknowledged := map[string]int64{}
	for round := range 5 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKill9$")
		cmd.Env = append(os.Environ(), "SQLITE_VICTIM="+path, fmt.Sprint("SQLITE_ROUND=", round))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			if n == 40*(round+1) {
				cmd.Process.Kill()
			}
			var name string
			var version int64
			if _, err := fmt.Sscanf(lines.Text(), "done %q %d", &name, &version); err == nil {
				acknowledged[name] = max(version, acknowledged[name])
			}
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the victim ended in peace")
		}
	}
	if len(acknowledged) < 100 {
		t.Fatalf("%d records were acknowledged; the test needs more", len(acknowledged))
	}
	db := open(t, path)
	for name, version := range acknowledged {
		rec, err := db.Get(t.Context(), record(name).ID)
		if err != nil || rec.Version < version || string(rec.CSR) != name {
			t.Errorf("%s: %v, %v; version %d was acknowledged", name, rec, err, version)
		}
	}
}

// victim writes from eight goroutines and says what was acknowledged, until it is killed.
func victim(t *testing.T, path string) {
	db := open(t, path)
	var mu sync.Mutex
	say := func(rec *scep.Record) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Printf("done %q %d\n", rec.TransactionID, rec.Version)
	}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 100_000 {
				rec := record(fmt.Sprintf("%s-%d-%d", os.Getenv("SQLITE_ROUND"), w, i))
				if err := db.Create(context.Background(), rec); err != nil {
					t.Error(err)
					return
				}
				say(rec)
				rec.State, rec.Certificate = scep.Issued, []byte("certificate")
				if err := db.Update(context.Background(), rec); err != nil {
					t.Error(err)
					return
				}
				say(rec)
			}
		})
	}
	wg.Wait()
}

// TestTwoProcesses writes to one file from two databases at once.
func TestTwoDatabases(t *testing.T) {
	path := filepath.Join(t.TempDir(), "scep.db")
	dbs := []*sqlite.DB{open(t, path), open(t, path)}
	created := make([]int, len(dbs))
	var wg sync.WaitGroup
	for i, db := range dbs {
		wg.Go(func() {
			for n := range 100 {
				err := db.Create(t.Context(), record(fmt.Sprint(n)))
				if err == nil {
					created[i]++
				} else if !errors.Is(err, scep.ErrExists) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if created[0]+created[1] != 100 {
		t.Errorf("of 100 records, one created %d and the other %d", created[0], created[1])
	}
}

// TestLocked has another program hold the file: writers wait, are told, and go on afterwards.
func TestLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "scep.db")
	db := open(t, path)
	other, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	conn, err := other.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.ExecContext(t.Context(), "BEGIN IMMEDIATE"); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Get(t.Context(), record("x").ID); !errors.Is(err, scep.ErrNotFound) {
		t.Errorf("reading while another writes: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := db.Create(ctx, record("x")); err == nil {
		t.Error("the record was written while another program held the file")
	}
	if err := db.Create(t.Context(), record("y")); err == nil || errors.Is(err, scep.ErrExists) {
		t.Errorf("while another program held the file for longer than it may: %v", err)
	}
	if _, err := conn.ExecContext(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	if err := db.Create(t.Context(), record("z")); err != nil {
		t.Errorf("when the file was free again: %v", err)
	}
}

// TestFull has no room: nothing changes, and it goes on when there is room again.
func TestFull(t *testing.T) {
	path := filepath.Join(t.TempDir(), "scep.db")
	db := open(t, path)
	limit := func(pages int) {
		t.Helper()
		if err := db.LimitPages(pages); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Create(t.Context(), record("before")); err != nil {
		t.Fatal(err)
	}
	limit(1) // SQLite takes it for the size that the file has
	large := record("large")
	large.CSR = make([]byte, 1<<20)
	if err := db.Create(t.Context(), large); err == nil {
		t.Fatal("a megabyte was written to a full disk")
	}
	if _, err := db.Get(t.Context(), large.ID); !errors.Is(err, scep.ErrNotFound) {
		t.Errorf("what did not fit: %v", err)
	}
	if rec, err := db.Get(t.Context(), record("before").ID); err != nil || rec.Version != 1 {
		t.Errorf("what was there: %v, %v", rec, err)
	}
	limit(1 << 30)
	large.Version = 0
	if err := db.Create(t.Context(), large); err != nil {
		t.Errorf("when there was room again: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, content []byte, mode os.FileMode) string {
		t.Helper()
		if err := os.WriteFile(in(name), content, mode); err != nil {
			t.Fatal(err)
		}
		return in(name)
	}
	foreign := in("foreign.db")
	other, err := sql.Open("sqlite", foreign)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Exec("CREATE TABLE other (x)"); err != nil {
		t.Fatal(err)
	}
	other.Close()

	newer := in("newer.db")
	open(t, newer).Close()
	other, err = sql.Open("sqlite", newer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Exec("PRAGMA user_version = 99"); err != nil {
		t.Fatal(err)
	}
	other.Close()

	damaged := in("damaged.db")
	db := open(t, damaged)
	for i := range 200 {
		if err := db.Create(t.Context(), record(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	db.Close()
	content, err := os.ReadFile(damaged)
	if err != nil {
		t.Fatal(err)
	}
	for i := 8192; i < len(content)-4096; i++ {
		content[i] ^= 0x55
	}
	write("damaged.db", content, 0o600)

	tests := []struct{ name, path, want string }{
		{"no path", "", "name a file"},
		{"memory", ":memory:", "depot.Memory"},
		{"no directory", in("missing/scep.db"), "create it first"},
		{"directory is a file", filepath.Join(write("file", nil, 0o600), "scep.db"), "directory"},
		{"a directory", dir, "not a regular file"},
		{"no database", write("text", []byte(strings.Repeat("no database. ", 1000)), 0o600), "not a database"},
		{"another application's", foreign, "another application"},
		{"newer", newer, "newer version"},
		{"damaged", damaged, "backup"},
	}
	if os.Getuid() != 0 && runtime.GOOS != "windows" { // root may write anywhere
		read := write("read-only", nil, 0o400)
		tests = append(tests, struct{ name, path, want string }{"read-only", read, "writ"})
	}
	for _, tt := range tests {
		db, err := sqlite.Open(tt.path)
		if err == nil {
			db.Close()
			t.Errorf("%s: was opened", tt.name)
			continue
		}
		if !strings.Contains(err.Error(), tt.want) || tt.path != "" && !strings.Contains(err.Error(), filepath.Base(tt.path)) {
			t.Errorf("%s: %v; want the path, and %q", tt.name, err, tt.want)
		}
	}
}

func TestModes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "scep.db")
	db := open(t, path)
	if err := db.Create(t.Context(), record("x")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{path, path + "-wal", path + "-shm"} {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600", filepath.Base(name), info.Mode(), err)
		}
	}
}

func TestClosed(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "scep.db"))
	var wg sync.WaitGroup
	for i := range 16 { // some of them are on their way when it closes
		wg.Go(func() { db.Create(t.Context(), record(fmt.Sprint(i))) })
	}
	wg.Go(func() { db.Close() })
	wg.Wait()
	if err := db.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}
	ctx, rec := t.Context(), record("x")
	for name, call := range map[string]func() error{
		"Create":         func() error { return db.Create(ctx, rec) },
		"Update":         func() error { return db.Update(ctx, rec) },
		"Get":            func() error { _, err := db.Get(ctx, rec.ID); return err },
		"Latest":         func() error { _, err := db.Latest(ctx, rec.ID); return err },
		"GetSerial":      func() error { _, err := db.GetSerial(ctx, rec.Issuer, rec.Serial); return err },
		"List":           func() error { _, err := db.List(ctx, scep.Query{}); return err },
		"Revocations":    func() error { return db.Revocations(ctx, scep.RevocationQuery{}, nil) },
		"Prune":          func() error { _, err := db.Prune(ctx, scep.PruneQuery{Expired: time.Now()}); return err },
		"GetChallenge":   func() error { _, err := db.GetChallenge(ctx, rec.ID); return err },
		"SpendChallenge": func() error { _, err := db.SpendChallenge(ctx, rec.ID, rec.ID, rec.Created); return err },
		"PutChallenge": func() error {
			return db.PutChallenge(ctx, &scep.OneTimeChallenge{Hash: rec.ID}, rec.Created, 0)
		},
	} {
		if err := call(); err == nil || errors.Is(err, scep.ErrNotFound) || !strings.Contains(err.Error(), "closed") {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
}

// TestView reads the file as people do.
func TestView(t *testing.T) {
	path := filepath.Join(t.TempDir(), "scep.db")
	db := open(t, path)
	rec := record("view")
	if err := db.Create(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	shell, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer shell.Close()
	var state, serial string
	if err := shell.QueryRow("SELECT state, serial FROM certificates").Scan(&state, &serial); err != nil {
		t.Fatal(err)
	}
	if state != "signing" || !strings.EqualFold(serial, rec.Serial.Text(16)) {
		t.Errorf("state %q, serial %q; want signing, %x", state, serial, rec.Serial)
	}
}

func ExampleOpen() {
	dir, err := os.MkdirTemp("", "sqlite")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)

	db, err := sqlite.Open(filepath.Join(dir, "scep.db"))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer db.Close()
	_ = scep.Config{Depot: db} // and challenge.OneTime{Store: db}

	_, err = db.Get(context.Background(), scep.ID(strings.Repeat("0", 64)))
	fmt.Println(err)
	// Output: scep: no such record
}

var _ io.Closer = (*sqlite.DB)(nil)
