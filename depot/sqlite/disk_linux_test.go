package sqlite_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/scepkit/scepkit/depot/sqlite"
	"github.com/scepkit/scepkit/scep"
)

// disk returns the directory of a small file system of its own. Only root can make one.
func disk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("no file system can be mounted here: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

// TestDiskFull fills the disk. What was acknowledged stays, what was not is not there, and
// when there is room again all goes on, without opening the file again.
func TestDiskFull(t *testing.T) {
	dir := disk(t)
	db := open(t, filepath.Join(dir, "scep.db"))
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 512<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	var there []*scep.Record
	for i := 0; ; i++ {
		rec := record(fmt.Sprint(i))
		rec.Template = make([]byte, 3000)
		err := db.Create(t.Context(), rec)
		if err == nil {
			if there = append(there, rec); len(there) > 1000 {
				t.Fatal("the disk never fills up")
			}
			continue
		}
		if !strings.Contains(err.Error(), "full") || !strings.Contains(err.Error(), dir) {
			t.Errorf("on a full disk: %v", err)
		}
		break
	}
	for i := range 8 { // and it stays like that
		rec := record(fmt.Sprint("refused ", i))
		rec.Template = make([]byte, 3000)
		if err := db.Create(t.Context(), rec); err == nil {
			there = append(there, rec) // for a small one there may be room
		} else if _, err := db.Get(t.Context(), rec.ID); !errors.Is(err, scep.ErrNotFound) {
			t.Errorf("what was refused: %v", err)
		}
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	after := record("after")
	if err := db.Create(t.Context(), after); err != nil {
		t.Errorf("when there was room again: %v", err)
	}
	look := func(db *sqlite.DB) {
		t.Helper()
		for i, rec := range append(there, after) {
			if got, err := db.Get(t.Context(), rec.ID); err != nil || len(got.Template) != len(rec.Template) {
				t.Errorf("record %d of %d: %v", i, len(there), err)
			}
		}
	}
	look(db)
	if err := db.Close(); err != nil {
		t.Error(err)
	}
	look(open(t, filepath.Join(dir, "scep.db")))
}

// TestReadOnlyDisk opens a file that can be read only, and has one become so while it is open.
func TestReadOnlyDisk(t *testing.T) {
	dir := disk(t)
	path := filepath.Join(dir, "scep.db")
	open(t, path).Close()
	remount := func(flags uintptr) {
		t.Helper()
		if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|flags, "size=2m"); err != nil {
			t.Skip(err)
		}
	}
	remount(syscall.MS_RDONLY)
	for _, path := range []string{path, filepath.Join(dir, "new.db")} {
		db, err := sqlite.Open(path)
		if err == nil {
			db.Close()
			t.Fatal("a file was opened that cannot be written")
		}
		if !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "writable") {
			t.Errorf("Open: %v", err)
		}
	}
	remount(0)
	if err := open(t, path).Create(t.Context(), record("x")); err != nil {
		t.Errorf("when it could be written again: %v", err)
	}
}
