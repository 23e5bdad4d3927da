package scep_test

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"unsafe"

	"github.com/jackc/pgx/v5"

	"github.com/scepkit/scepkit/depot/postgres"
	"github.com/scepkit/scepkit/depot/postgres/postgrestest"
)

// TestStorageDiskFullSQLite has the disk of a handler's depot full.
func TestStorageDiskFullSQLite(t *testing.T) {
	dir := mount(t, "size=8m")
	endure(t, openSQLite(t, filepath.Join(dir, "scep.db")), full(dir))
}

// TestStorageDiskFullPostgres has the disk of PostgreSQL full.
func TestStorageDiskFullPostgres(t *testing.T) {
	postgrestest.Shared(t) // which makes the cluster that others are copies of
	dir := mount(t, "size=128m,mode=777")
	t.Setenv("TMPDIR", dir)
	server := postgrestest.Start(t)
	o := full(dir)
	o.some = true // in pages that the tables have
	endure(t, openReplica(t, postgres.Config{URL: server.Database(t)}), o)
}

// TestStorageLogFullPostgres has no room for PostgreSQL's log of what it commits, with which it
// ends.
func TestStorageLogFullPostgres(t *testing.T) {
	postgrestest.Shared(t) // or skip
	dir := mount(t, "size=64m,mode=777")
	server := postgrestest.Start(t)
	url := server.Database(t)
	server.Stop(t)
	log, there := filepath.Join(server.Dir(), "data", "pg_wal"), filepath.Join(dir, "pg_wal")
	if out, err := exec.Command("cp", "-a", log, there).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := errors.Join(os.RemoveAll(log), os.Symlink(there, log)); err != nil {
		t.Fatal(err)
	}
	server.Start(t)
	o := full(dir)
	o.name = "log full"
	fill, free := o.begin, o.end
	o.begin = func(t *testing.T) {
		fill(t)
		c := must(pgx.Connect(t.Context(), url))
		defer c.Close(t.Context())
		for range 100 { // until what it has in stock is used
			if _, err := c.Exec(t.Context(), `CREATE TABLE IF NOT EXISTS x (); DROP TABLE x; SELECT pg_switch_wal()`); err != nil {
				return
			}
		}
		t.Fatal("the log goes on on a full disk")
	}
	o.end = func(t *testing.T) {
		free(t)
		server.Kill(t) // if it has not ended
		server.Start(t)
	}
	endure(t, openReplica(t, postgres.Config{URL: url}), o)
}

// TestStorageReadOnlySQLite has files that are open such that they can only be read.
func TestStorageReadOnlySQLite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "scep.db")
	probe := must(os.Create(filepath.Join(dir, "probe")))
	defer probe.Close()
	if err := immutable(probe.Name(), true); err != nil {
		t.Skipf("files cannot be made read-only while they are open: %v", err)
	}
	_, err := probe.WriteString("x")
	immutable(probe.Name(), false)
	if err == nil {
		t.Skip("this file system lets those write who have a read-only file open")
	}
	t.Cleanup(func() { immutable(path, false); immutable(path+"-wal", false) })
	set := func(on bool) func(t *testing.T) {
		return func(t *testing.T) {
			for _, file := range []string{path, path + "-wal"} {
				if err := immutable(file, on); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	endure(t, openSQLite(t, path), outage{name: "read-only", begin: set(true), end: set(false)})
}

// mount returns the folder of a small file system of its own. Only root can make one.
func mount(t *testing.T, options string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "disk") // with a short name, as sockets need
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(dir) })
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("no file system can be mounted here: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

// full is the outage of a disk on which there is no room.
func full(dir string) outage {
	ballast := filepath.Join(dir, "ballast")
	return outage{
		name: "disk full",
		begin: func(t *testing.T) {
			f, err := os.Create(ballast)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := io.Copy(f, zeros{}); !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
		},
		end: func(t *testing.T) {
			if err := os.Remove(ballast); err != nil {
				t.Fatal(err)
			}
		},
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// immutable sets or clears the flag of a file by which nobody can write to it, also not those who
// have it open.
func immutable(path string, on bool) error {
	const getFlags, setFlags, flag = 0x80086601, 0x40086602, 0x10 // linux/fs.h
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var flags int
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), getFlags, uintptr(unsafe.Pointer(&flags))); errno != 0 {
		return errno
	}
	flags &^= flag
	if on {
		flags |= flag
	}
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), setFlags, uintptr(unsafe.Pointer(&flags))); errno != 0 {
		return errno
	}
	return nil
}
