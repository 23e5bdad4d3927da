package sqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot/sqlite"
	"github.com/scepkit/scepkit/scep"
)

// TestOpenTogether has many open a file that none of them has made yet.
func TestOpenTogether(t *testing.T) {
	path := filepath.Join(t.TempDir(), "scep.db")
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			db, err := sqlite.Open(path)
			if err != nil {
				t.Error(err)
				return
			}
			defer db.Close()
			if err := db.Create(t.Context(), record(fmt.Sprint(i))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	db := open(t, path)
	for i := range 16 {
		if _, err := db.Get(t.Context(), record(fmt.Sprint(i)).ID); err != nil {
			t.Errorf("record %d: %v", i, err)
		}
	}
}

// TestFair has two databases write to one file as fast as they can: neither is kept waiting
// until it is told that the file is locked.
func TestFair(t *testing.T) {
	path := filepath.Join(t.TempDir(), "scep.db")
	dbs := []*sqlite.DB{open(t, path), open(t, path)}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for w := range 8 { // the first does not stop before the second has had its turns
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				if err := dbs[0].Create(t.Context(), record(fmt.Sprint(w, "-", i))); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	begun := time.Now()
	for i := range 20 {
		if err := dbs[1].Create(t.Context(), record(fmt.Sprint("other ", i))); err != nil {
			t.Errorf("after %v: %v", time.Since(begun), err)
			break
		}
	}
	t.Logf("20 writes beside a busy writer took %v", time.Since(begun))
	cancel()
	wg.Wait()
}

// TestCloseLeavesOneFile is for those who copy the file while nobody uses it.
func TestCloseLeavesOneFile(t *testing.T) {
	dir := t.TempDir()
	db := open(t, filepath.Join(dir, "scep.db"))
	if err := db.Create(t.Context(), record("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Get(t.Context(), record("x").ID); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 1 {
		t.Errorf("after Close there are %v", files)
	}
}

// TestMoved takes the file away, or another in its place, or one of those beside it: nothing is
// acknowledged that would be gone with the process, or that another process would write over.
func TestMoved(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows does not let go of open files")
	}
	for name, move := range map[string]func(path string) error{
		"removed": os.Remove,
		"replaced": func(path string) error {
			content, err := os.ReadFile(path)
			return errors.Join(err, os.Remove(path), os.WriteFile(path, content, 0o600))
		},
		"log removed":   func(path string) error { return os.Remove(path + "-wal") },
		"locks removed": func(path string) error { return os.Remove(path + "-shm") },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "scep.db")
			db := open(t, path)
			if err := db.Create(t.Context(), record("before")); err != nil {
				t.Fatal(err)
			}
			if err := move(path); err != nil {
				t.Fatal(err)
			}
			err := db.Create(t.Context(), record("after"))
			if err == nil || !strings.Contains(err.Error(), "removed or replaced") || !strings.Contains(err.Error(), path) {
				t.Errorf("Create: %v", err)
			}
		})
	}
}

// TestRestoredBesideLog puts a backup in the place of the file of a process that was killed, and
// leaves there what that had in its log: the error says what to do about it.
func TestRestoredBesideLog(t *testing.T) {
	dir := t.TempDir()
	path, restored := filepath.Join(dir, "scep.db"), filepath.Join(dir, "restored.db")
	fill := func(db *sqlite.DB, name string) {
		t.Helper()
		for i := range 100 {
			if err := db.Create(t.Context(), record(fmt.Sprint(name, i))); err != nil {
				t.Fatal(err)
			}
		}
	}
	db := open(t, path)
	fill(db, "before")
	other, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.Exec("VACUUM INTO ?", restored); err != nil {
		t.Fatal(err)
	}
	other.Close()
	fill(db, "after")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}

	db = open(t, path)
	fill(db, "last")
	log, err := os.ReadFile(path + "-wal") // as kill -9 would leave it
	if err == nil {
		err = os.WriteFile(restored+"-wal", log, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if db, err := sqlite.Open(restored); err == nil {
		db.Close()
		t.Error("was opened")
	} else if !strings.Contains(err.Error(), "-wal") || !strings.Contains(err.Error(), "backup") {
		t.Error(err)
	}
}

// TestBatchGoesOn has writes that are refused share commits with others.
func TestBatchGoesOn(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "scep.db"))
	if err := db.Create(t.Context(), record("taken")); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			name := fmt.Sprint(i)
			var err, want error
			switch i % 4 {
			case 0:
				err = db.Create(t.Context(), record(name))
			case 1:
				err, want = db.Create(t.Context(), record("taken")), scep.ErrExists
			case 2:
				rec := record("taken")
				rec.Version = 99
				err, want = db.Update(t.Context(), rec), scep.ErrStale
			case 3:
				err, want = db.Update(t.Context(), record("missing")), scep.ErrNotFound
			}
			if !errors.Is(err, want) {
				t.Errorf("%d: %v, want %v", i, err, want)
			}
		})
	}
	wg.Wait()
	for i := 0; i < 64; i += 4 {
		if _, err := db.Get(t.Context(), record(fmt.Sprint(i)).ID); err != nil {
			t.Errorf("record %d, acknowledged: %v", i, err)
		}
	}
}
